"""Make the project's environment: `python3 tools/setup_env.py`, or any `make` target.

It needs Python 3.10 or newer with venv, and a package registry, but no root rights; it changes
nothing outside the environment except pip's cache. A second run finds the environment ready, and
after an interruption the next run continues. pip's configuration and PIP_* variables apply, so
your own registry or an index with CPU builds of torch can be named there. A torch of 2.4 or newer
and a detectron2 that imports are kept if the environment already has them.

This file uses only the standard library and no syntax newer than Python 3.6, so that an old Python
shows the message below instead of a syntax error.
"""

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
OLDEST, NEWEST = (3, 10), (3, 13)
OLDEST_TORCH = (2, 4)
# Measured on Linux x86-64: with a CPU build of torch; the registry's own brings CUDA with it.
PLAIN_GB, CUDA_GB = 2.4, 9.6
IMPORTS = (
    "torch, torchvision, timm, loralib, cv2, scipy, sklearn, pycocotools.mask, yaml, anoseg_d2, "
    "detectron2.config, detectron2.modeling, detectron2.engine, detectron2.model_zoo"
)


class SetupError(Exception):
    """What went wrong and how to fix it, in one line."""


def main():
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Make the project's Python environment.")
    parser.add_argument("--venv", default=ROOT / ".venv", help="folder to make (default: .venv)")
    only = "only add detectron2 to the Python that runs this, unless it already imports there"
    parser.add_argument("--detectron2-only", action="store_true", help=only)
    args = parser.parse_args()
    # Shells start background jobs with SIGINT ignored, so both are set.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        check_python(sys.version_info)
        if args.detectron2_only:
            add_detectron2(Environment(sys.prefix, sys.executable))
        else:
            make_environment(Path(os.path.abspath(str(args.venv))))
    except SetupError as error:
        say(f"error: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("interrupted; the same command continues from here", sys.stderr)
        return 130
    return 0


def check_python(version):
    """Refuse a Python that the pinned versions do not support."""
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        raise SetupError(
            f"Python {version[0]}.{version[1]} ({sys.executable}) is not supported, only "
            f"3.{OLDEST[1]} to 3.{NEWEST[1]}; name one of them: make PYTHON=/path/to/python3"
        )


def make_environment(folder):
    """Bring the environment in `folder` to the pinned state, unless it is already there."""
    parts = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    environment = Environment(folder, folder.joinpath(*parts))
    stamp = folder / "anoseg_ready"
    if stamp.exists() and stamp.read_text() == fingerprint() and environment.runs("pass"):
        return
    pinned = " ".join(pins("torch.txt") + pins("detectron2.txt"))
    say(f"making {folder}: {pinned}, {len(pins('lock.txt'))} more;")
    say(f"  {PLAIN_GB} GB, or {CUDA_GB} with the CUDA build of torch that Linux gets by default")
    check_space(folder)
    create(environment)
    environment.pip("install", "--require-hashes", "-r", "build.txt")
    found = environment.version("torch")
    if tuple(map(int, re.findall(r"\d+", found or "0")[:2])) >= OLDEST_TORCH:
        say(f"  keeping torch {found}")
        environment.pip("install", "torchvision", f"torch=={found}")
    else:
        environment.pip("install", "-c", "lock.txt", "-r", "torch.txt")
    environment.pip("install", "--require-hashes", "--no-build-isolation", "-r", "hashed.txt")
    add_detectron2(environment)
    environment.pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    if not environment.runs("import " + IMPORTS):
        raise SetupError(
            f"the environment is complete but does not import: {environment.said}; delete "
            f"{folder} and run this again"
        )
    stamp.write_text(fingerprint())
    say(f"ready: {folder}")


def fingerprint():
    """Return a digest of everything that the environment is made from."""
    digest = hashlib.sha256(str(ROOT).encode())  # the editable install points here
    for path in sorted(REQUIREMENTS.glob("*.txt")) + [ROOT / "setup.py", Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def check_space(folder):
    """Refuse to begin where not even the smallest set-up fits."""
    place = next(path for path in [folder, *folder.parents] if path.exists())
    free = shutil.disk_usage(str(place)).free / 1e9
    there = sum(os.lstat(str(path)).st_size for path in folder.rglob("*")) / 1e9
    if free + there < PLAIN_GB:
        raise SetupError(
            f"not enough space: {PLAIN_GB} GB are needed at {place}, {free:.1f} GB are free; make "
            "room, or put the environment elsewhere: make VENV=/path"
        )


def create(environment):
    """Make the virtual environment, or remake a broken one; forget half-installed packages."""
    folder = environment.folder
    if not environment.runs("import pip"):
        strange = folder.exists() and not (folder / "pyvenv.cfg").exists()
        if strange and any(path.is_file() for path in folder.rglob("*")):
            raise SetupError(
                f"{folder} exists but is not an environment; move it away, or name another: "
                "make VENV=/path"
            )
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)])
        if made.returncode != 0 or not environment.runs("import pip"):
            raise SetupError(
                f"{sys.executable} cannot make a virtual environment; add its venv module (Debian, "
                "Ubuntu: python3-venv), or name another: make PYTHON=/path/to/python3"
            )
    # pip writes RECORD last, and takes for complete what it was interrupted in.
    for info in folder.rglob("*.dist-info"):
        if not (info / "RECORD").exists():
            shutil.rmtree(str(info))


class Environment:
    """A Python environment, and pip in it."""

    def __init__(self, folder, python):
        self.folder, self.python = Path(folder), str(python)
        self.said = ""  # the last line that `runs` printed, or its last complaint

    def runs(self, code):
        """Return whether `code` runs in this environment."""
        if not Path(self.python).exists():
            return False
        done = subprocess.run([self.python, "-I", "-c", code], capture_output=True, text=True)
        text = done.stderr if done.returncode else done.stdout
        self.said = (text.strip().splitlines() or [""])[-1]
        return done.returncode == 0

    def version(self, name):
        """Return the installed version of a distribution, or None."""
        found = self.runs(f"from importlib.metadata import version; print(version({name!r}))")
        return self.said if found else None

    def pip(self, command, *options):
        """Run pip, which prints why it fails; names of files in requirements/ become paths."""
        options = [str(REQUIREMENTS / o) if (REQUIREMENTS / o).is_file() else o for o in options]
        say(f"  {command} {Path(options[-1]).name} ...")
        # Settings that would put packages elsewhere do not apply.
        elsewhere = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
        variables = {k: v for k, v in os.environ.items() if k not in elsewhere}
        log = str(self.folder / "setup.log")
        arguments = [command, "--no-input", "--disable-pip-version-check", "-qq", "--log", log]
        arguments += options
        # Temporary files are in the environment: only one disk needs room, and moves are renames.
        variables.setdefault("TMPDIR", str(self.folder))
        if subprocess.run([self.python, "-I", "-m", "pip"] + arguments, env=variables).returncode:
            raise SetupError(
                f"pip could not {command} what the line above names (details: {log}); check the "
                "network and the disk, or name a registry of your own in PIP_INDEX_URL"
            )


def add_detectron2(environment):
    """Keep a detectron2 that imports; otherwise install the Python part of the pinned wheel."""
    if environment.runs("import detectron2.modeling, detectron2.engine as e; print(e.__file__)"):
        say(f"  keeping the detectron2 in {environment.said}")
        return
    complaint = environment.said
    if environment.version("detectron2") is not None:
        raise SetupError(
            f"the detectron2 in {environment.folder} does not import ({complaint}); repair it, or "
            f"run `{environment.python} -m pip uninstall detectron2` and then this again"
        )
    with tempfile.TemporaryDirectory() as folder:
        options = ["--only-binary=:all:", "--python-version", "3.10", "--platform", "linux_x86_64"]
        options += ["--dest", folder, "--no-deps", "--require-hashes", "-r", "detectron2.txt"]
        environment.pip("download", *options)
        (wheel,) = Path(folder).glob("*.whl")
        environment.pip("install", "--no-deps", str(pure_wheel(wheel)))


def pure_wheel(wheel):
    """Copy a wheel without its compiled part, which nothing here needs; return the copy."""
    pure = wheel.with_name("-".join(wheel.name.split("-")[:2]) + "-py3-none-any.whl")
    with zipfile.ZipFile(str(wheel)) as source, zipfile.ZipFile(str(pure), "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(".dist-info/RECORD"):
                content = re.sub(rb"(?m)^\S+\.(so|pyd),.*\n", b"", content)
            elif name.endswith(".dist-info/WHEEL"):
                content = re.sub(rb"(?m)^Tag: .*$", b"Tag: py3-none-any", content)
                content = content.replace(b"Purelib: false", b"Purelib: true")
            if not name.endswith((".so", ".pyd")):
                target.writestr(name, content)
    return pure


def pins(name):
    """Return ["package==version", ...] of a file in requirements/."""
    return re.findall(r"^[\w.-]+==[\w.]+", (REQUIREMENTS / name).read_text(), re.MULTILINE)


def say(text, stream=None):
    print(f"set-up: {text}", file=stream or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
