#!/usr/bin/env python3
"""Try every broken input of `cases.yaml` and `world.py`, and print which calls held.

    python dev/faults/try_faults.py
    python dev/faults/try_faults.py --match "predict photo"
    python dev/faults/try_faults.py --sample 300 --json figures.json

A call holds when it ends with a right exit status and one message that names what is wrong,
without a traceback, a signal, a control character or a file outside its folder, within 10 s and
2 GiB. The commands are imported once; each call then runs in a forked process of its own, whose
peak memory the system counts. Its seconds leave out those in which it waited for a processor, so
that a busy machine changes no verdict. Exit status: 0 all held, 1 some did not.
"""

import argparse
import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".", "tools", "experiments", "tests", "tests/engine", "dev/faults")
SECONDS, MEMORY = 10.0, 2 << 30
SPEC = yaml.safe_load(Path(__file__).with_name("cases.yaml").read_text(encoding="utf-8"))
# What the commands import only when they need it; that time is not a call's.
LAZY = ("anoseg_d2.engine", "anoseg_d2.data.builtin", "detectron2.utils.logger", "cv2", "h5py")
LAZY += ("onnx", "onnxruntime", "onnxscript", "torch.onnx", "scipy.optimize", "matplotlib.pyplot")
NO_TYPES = {bool: (), str: ("''",), list: ("[]",), tuple: ("[]",), int: ("0", "-1")}


@dataclass
class Case:
    """A call, what is broken in it, and words of which its message must hold one."""

    call: str
    name: str
    argv: list[str]
    words: list[str]
    status: tuple[int, ...] = (2,)


class Corpus:
    """All cases, whose files are written into `folder` as they are asked for."""

    def __init__(self, folder: Path):
        self.world_module = importlib.import_module("world")
        self.folder = folder
        self.world = self.world_module.make_world(folder / "world")
        self.count = 0

    def cases(self):
        """Yield every case."""
        for kind, files in self.broken().items():
            for name, path in files:
                for call, line in SPEC["calls"].items():
                    if f"{{{kind}}}" in line:
                        yield self.case(call, f"{kind}: {name}", {kind: path}, (), path.name)
        yield from self.keys()
        yield from self.options()
        yield from self.outputs()
        yield from self.runs()

    def case(self, call, name, changed=(), extra=(), *words) -> Case:
        """Make a case of one of the calls, with other files and further arguments."""
        argv = arguments(SPEC["calls"][call], self.world, changed)
        front = bool(extra) and extra[0].startswith("-") == (call in ("train", "eval", "run"))
        place = 1 if front else len(argv)
        argv[place:place] = extra
        more = (w for c, n, w in SPEC["words"] if _fits(c, n, call, name))
        allowed = (s for c, n, s in SPEC["allowed"] if _fits(c, n, call, name))
        words = [word.strip("-") for word in words] + ([] if extra else next(more, []))
        return Case(call, name, argv, words, tuple(map(int, str(next(allowed, 2)).split())))

    def file(self, kind: str, name: str, content) -> Path:
        """Write a broken file; its name says the kind and what is broken."""
        stem = re.sub(r"[^\w.]+", "_", f"{kind}_{name}")
        suffix = "" if "." in name else self.world[kind].suffix
        if isinstance(content, str) or (isinstance(content, list) and "repeat" in content):
            content = _bytes(content)
        return self.world_module.save(self.folder / "broken" / f"{stem}{suffix}", content)

    def broken(self) -> dict[str, list]:
        """Return kinds to (what is broken, path)."""
        made, found = self.world_module, {}
        good = {kind: path.read_bytes() for kind, path in self.world.items() if path.is_file()}

        def add(kind, name, path):
            found.setdefault(kind, []).append((name, path))

        for kinds, texts in SPEC["texts"].items():
            for kind in kinds.split():
                for name, text in texts.items():
                    add(kind, name, self.file(kind, name, text))
        for kind, changes in SPEC["changed"].items():
            for name, change in changes.items():
                text = good[kind].decode()
                changed = text + change if isinstance(change, str) else text.replace(*change)
                add(kind, name, self.file(kind, name, changed))
        for kind, changes in SPEC["json"].items():
            for name, change in changes.items():
                content = json.dumps(_changed(json.loads(good[kind]), change)).encode()
                add(kind, name, self.file(kind, name, content))
        for name, header in SPEC["headers"].items():
            name = f"header {name}.safetensors"
            add("weights", name, self.file("weights", name, made.header_file(header)))
        for name, files in SPEC["folders"].items():
            folder = self.folder / "broken" / f"hub_{name.replace(' ', '_')}"
            folder.mkdir()
            for file, text in files.items():
                content = made.header_file("stranger") if text == "<tensor>" else _bytes(text)
                (folder / file).write_bytes(content)
            add("weights", name, folder)
        torch = importlib.import_module("torch")
        whole = torch.load(self.world["weights"], weights_only=True)
        for name, meta in SPEC["meta"].items():
            content = {**whole, "meta": {**whole["meta"], **meta}}
            add("weights", f"meta {name}", self.file("weights", f"meta {name}.pth", content))
        for kind, contents in {
            "weights": made.broken_weights(self.world["weights"]),
            "photo": made.broken_images(good["photo"]),
            "label": made.broken_labels(good["photo"]),
            "maps": made.broken_maps((self.world["maps"] / "0.npy").read_bytes()),
            "video": made.broken_videos(good["video"]),
        }.items():
            for name, content in contents.items():
                path = self.file(kind, name, content)
                add(kind, name.rpartition(".")[0], path)
        self._special(add)
        # A broken photograph, label or map also breaks the folder or the data set that holds it.
        for kind, inner in (("photos", "photo"), ("objects", "photo")):
            for name, path in found[inner]:
                add(kind, name, self._folder({path.name: path, "0.png": path}, kind, path))
        maps = [(n, p) for n, p in found.pop("maps") if p.is_file() or not p.exists()]
        for name, path in maps:
            kept = {f"{i}.npy": self.world["maps"] / f"{i}.npy" for i in (1, 2, 3)}
            add("maps", name, self._folder({f"0{path.suffix}": path, **kept}, "maps", path))
        for part, inner in (("images", "photo"), ("labels", "label")):
            for name, path in found[inner]:
                add("card", f"{inner} {name}", self._set("card", "data", part, path))
        for name, path in found.pop("label"):
            card = self._set("anomaly_card", "data", "anomaly", path)
            add("anomaly_card", f"label {name}", card)
            scenes = self.folder / "broken" / f"scenes_{path.stem}"
            shutil.copytree(self.world["scenes"], scenes)
            _replace(next(iter(sorted(scenes.rglob("*_labelIds.png")))), path)
            add("scenes", f"label {name}", scenes)
        return found

    def _special(self, add) -> None:
        """Put a pipe, circles of links and the like in the place of every kind of file."""
        folder = self.folder / "broken"
        os.mkfifo(folder / "pipe")
        (folder / "circle").symlink_to(folder / "circle")
        (folder / "dangling").symlink_to(folder / "nowhere")
        places = [folder / "pipe", folder / "circle", folder / "dangling", folder / "missing"]
        for path in (*places, Path("/dev/zero"), Path("/proc/self/mem"), Path("/dev/stdin")):
            for kind in (*self.world, "label"):
                add(kind, f"special {path.name}", path)

    def _folder(self, files: dict[str, Path], kind: str, broken: Path) -> Path:
        self.count += 1
        folder = self.folder / "broken" / f"{kind}_{self.count}_{broken.stem}"
        folder.mkdir()
        for name, source in files.items():
            (folder / name).symlink_to(source)
        return folder

    def _set(self, kind: str, data: str, part: str, broken: Path) -> Path:
        """Copy a data set, with another file in the place of its first image or label."""
        self.count += 1
        folder = self.folder / "broken" / f"set_{self.count}"
        shutil.copytree(self.folder / "world" / data, folder / data)
        _replace(folder / data / part / "0.png", broken)
        text = self.world[kind].read_text().replace(str(self.folder / "world"), str(folder))
        return self.world_module.save(folder / f"{kind}.yaml", text.encode())

    def keys(self):
        """Values out of range, absurd ones, pairs that contradict, and wrong types of every key."""
        for section, name in (("values", "value"), ("extremes", "extreme")):
            for key, values in SPEC[section].items():
                for value in values:
                    word = key.rpartition(".")[2]
                    yield self.case("train", f"{name}: {key} {value}", (), (key, value), word)
        for pair in SPEC["together"]:
            extra = [text for item in pair.items() for text in item]
            yield self.case("train", f"together: {' '.join(extra)}", (), extra, " ")
        flat_items = importlib.import_module("anoseg_d2.utils.config_files").flat_items
        config = importlib.import_module("anoseg_d2.config")
        given = set(flat_dict(yaml.safe_load(self.world["config"].read_text())))
        for key, default in flat_items(config.load_config(str(self.world["config"]))):
            fine = NO_TYPES.get(type(default), ("0", "1.5", "1e30", "-1"))
            for value in SPEC["wrong"] if key in given else ():
                if not isinstance(default, str) and value not in fine:
                    word = key.rpartition(".")[2]
                    yield self.case("train", f"wrong: {key} {value}", (), (key, value), word)

    def options(self):
        """Options that mean nothing, contradict each other, or are no numbers."""
        for call, entries in SPEC["options"].items():
            for text in entries:
                extra = arguments(text, self.world)
                yield self.case(call, f"options: {text}", (), extra, *extra)
        for section in ("numbers", "pairs"):
            for call, given in SPEC[section].items():
                for option in given if call != "values" else ():
                    for value in SPEC[section]["values"]:
                        joined = [f"{option}={value}"]
                        extra = joined if section == "numbers" else [option, *value.split()]
                        word = option.strip("-").rstrip("s").partition("-")[0]
                        yield self.case(call, f"options: {option} {value}", (), extra, word)

    def outputs(self):
        """Outputs that are in the way or cannot be, and strange names, which all work."""
        file, pipe = self.folder / "broken/a_file", self.folder / "broken/a_pipe"
        file.write_text("in the way")
        os.mkfifo(pipe)
        for place in (
            file,
            file / "inside",
            pipe,
            Path("/proc/nowhere"),
            Path("/tmp/" + "x" * 5000),
        ):
            for call, line in SPEC["calls"].items():
                if "{out}" in line and " " not in call:
                    word = str(place)[:20]
                    yield self.case(call, f"output: {place.name[:20]}", {"out": place}, (), word)
        for name in SPEC["names"]:
            for call in ("train", "predict", "maps", "compare", "cut-paste", "convert"):
                place = "{out}/" + name.format()
                yield self.case(call, f"name: {name}", {"out": place}, (), "")

    def runs(self):
        """A finished run whose files were changed, and that is resumed, evaluated, read."""
        finished = self.folder / "finished"
        case = self.case("train", "finished", {"out": finished})
        pid = start(case, finished, self.folder / "finished.txt")
        assert os.waitpid(pid, 0)[1] == 0, (self.folder / "finished.txt").read_text()
        for name in SPEC["runs"]["files"]:
            for kind, text in {**SPEC["runs"]["contents"], "folder": None, "pipe": None}.items():
                run = self.folder / "broken" / f"run_{name.strip('.')}_{kind}"
                shutil.copytree(finished, run)
                (run / name).unlink(missing_ok=True)
                if text is not None:
                    (run / name).write_bytes(_bytes(text))
                else:
                    (run / name).mkdir() if kind == "folder" else os.mkfifo(run / name)
                title = f"run: {name} is {kind}"
                for extra in (("--resume",), ("--overwrite",)):
                    yield self.case("train", title, {"out": run}, extra, "run")
                for call in ("eval", "predict"):
                    yield self.case(
                        call, title, {"weights": run, "out": run if call == "eval" else "{out}"}
                    )


def arguments(line: str, world: dict[str, Path], changed=()) -> list[str]:
    """Split a command line, and put in the valid files but for `changed`."""
    good = {f"good_{kind}": path for kind, path in world.items()}
    names = {**world, **good, "out": "{out}", **dict(changed)}
    return [part.format(**names) for part in shlex.split(line)]


def flat_dict(tree: dict, prefix: str = ""):
    """Yield the dotted names of all entries."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat_dict(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _fits(call_pattern, name_pattern, call, name) -> bool:
    return fnmatchcase(call, call_pattern) and fnmatchcase(name, name_pattern)


def _bytes(text) -> bytes:
    if isinstance(text, list):  # [repeat, head, a, number, b]
        _, head, first, number, last = text
        text = head + first * number + last * number
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def _replace(path: Path, source: Path) -> None:
    path.unlink()
    path.symlink_to(source)


def _changed(content, changes: dict):
    for path, value in changes.items():
        if not path:
            return value
        *parents, last = (int(part) if part.isdecimal() else part for part in path.split("."))
        node = content
        for part in parents:
            node = node[part]
        if value == "<gone>":
            del node[last]
        else:
            node[last] = value
    return content


def start(case, output: Path, log: Path) -> int:
    """Run one call in a forked process; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        os.setsid()
        stream = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        command, *argv = [argument.replace("{out}", str(output)) for argument in case.argv]
        sys.argv = [command, *argv]
        scripts = {"run": "run", "plot": "plot_results"}
        module = importlib.import_module(scripts.get(command, "anoseg_d2.cli"))
        status = module.main(argv if command in scripts else [command, *argv])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        importlib.import_module("traceback").print_exc()
        status = 98
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status or 0)


def failure(case, status: int, seconds: float, memory: int, output: str) -> str:
    """Say in what way a call did not hold; empty when it did."""
    lines = [line for line in output.splitlines() if line.strip()]
    errors = sum(line.startswith("error: ") or ": error: " in line for line in lines)
    for wrong, text in (
        (seconds > SECONDS, f"took {seconds:.0f} s"),
        (memory > MEMORY, f"took {memory / 2**20:.0f} MiB"),
        (status < 0, f"died by signal {-status}"),
        (any(line.startswith("Traceback (most") for line in lines), f"traceback: {lines[-1:]}"),
        (status not in case.status, f"exit status {status}, not {case.status}: {lines[-1:]}"),
        (re.search(r"[\x07\x08]|\x1b\]", output), "control characters"),
        (
            status and not any(word.lower() in output.lower() for word in case.words),
            f"names none of {case.words}: {lines[-1:]}",
        ),
        (status == 2 and errors != 1, f"{errors} messages: {lines[-2:]}"),
    ):
        if wrong:
            return text
    return ""


def number_in(path: str, field: int) -> int:
    """Return a number of a file in /proc; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(path).read_text().split()[field])
    return 0


def try_all(cases, folder: Path, jobs: int):
    """Run the cases, a few at a time; yields each with how it failed, its seconds and memory."""
    cases, running, ended = enumerate(cases), {}, False
    while running or not ended:
        while not ended and len(running) < jobs:
            index, case = next(cases, (None, None))
            ended = case is None
            if not ended:
                output, log = folder / f"out/{index}", folder / f"log/{index}.txt"
                output.mkdir(parents=True)
                log.parent.mkdir(exist_ok=True)
                running[start(case, output, log)] = (case, log, time.monotonic())
        for pid, (case, log, began) in list(running.items()):
            seconds = time.monotonic() - began - number_in(f"/proc/{pid}/schedstat", 1) / 1e9
            resident = number_in(f"/proc/{pid}/statm", 1) * os.sysconf("SC_PAGE_SIZE")
            # A call over the limits is stopped well above them, which shows by how much.
            if seconds > 3 * SECONDS or resident > 2 * MEMORY:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # what the call may have left running
                del running[pid]
                text, memory = log.read_text(errors="replace"), usage.ru_maxrss << 10
                code = os.waitstatus_to_exitcode(status)
                yield case, failure(case, code, seconds, memory, text), seconds, memory
        time.sleep(0.02)


def import_commands() -> None:
    """Import every command and what it would import later."""
    for name in ("anoseg_d2.cli", "run", "plot_results", *LAZY):
        importlib.import_module(name)
    for module, *_ in sys.modules["anoseg_d2.cli"].COMMANDS.values():
        importlib.import_module(f"anoseg_d2.commands.{module}")


def make_ready() -> None:
    """Start this script anew with the environment that the commands need."""
    if os.environ.get("FAULTS_READY") != "1":
        path = os.pathsep.join(str(ROOT / folder) for folder in FOLDERS)
        ready = {"FAULTS_READY": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        ready |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ready})


def run(args) -> int:
    """Build the corpus, try it, print a table per call."""
    import_commands()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        os.chdir(folder)
        cases = list(Corpus(folder).cases())
        if args.match:
            cases = [case for case in cases if args.match in f"{case.call} {case.name}"]
        if args.sample:
            cases = cases[:: max(1, len(cases) // args.sample)][: args.sample]
        if args.list:
            print("\n".join(f"{case.call}; {case.name}; {shlex.join(case.argv)}" for case in cases))
            return 0
        tried, held, failures, slowest, largest = Counter(), Counter(), [], 0.0, 0
        for case, failed, seconds, memory in try_all(cases, folder, args.jobs):
            tried[case.call] += 1
            held[case.call] += not failed
            slowest, largest = max(slowest, seconds), max(largest, memory)
            if failed:
                failures.append((case.call, case.name, failed))
                print(f"not held: {case.call}, {case.name!r}: {failed}"[:600], flush=True)
        places = (Path("/tmp/planted"), Path("/tmp/escaped"), *folder.parent.glob("escaped*"))
        for path in (*places, *(p for p in folder.glob("**/escaped*") if "broken" not in p.parts)):
            if path.exists():
                failures.append(("all", "files outside", str(path)))
                print(f"not held: {path} was written")
    for call in (*SPEC["calls"], "all"):
        count, fine = (tried[call], held[call]) if call != "all" else (tried.total(), held.total())
        print(f"{call:<20} {count:>6} {fine:>6}")
    print(f"slowest call: {slowest:.1f} s; most memory: {largest / 2**20:.0f} MiB")
    if args.json:
        args.json.write_text(json.dumps({"tried": tried, "held": held, "failures": failures}))
    return int(bool(failures))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--match", help="only cases whose call and name contain this text")
    parser.add_argument("--sample", type=int, help="about this many cases, spread over all calls")
    parser.add_argument("--jobs", type=int, default=2, help="calls at once (default: 2)")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--list", action="store_true", help="print the cases and try none")
    args = parser.parse_args()
    args.json = args.json and args.json.resolve()
    make_ready()
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
