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
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
OLDEST, NEWEST = (3, 10), (3, 13)
OLDEST_TORCH = (2, 4)
STAMP = "anoseg_ready"

# Measured on Linux x86-64, in GB. The registry's torch for Linux brings CUDA libraries.
CUDA_GB, PLAIN_GB = 6.6, 2.0
CUDA_DOWNLOAD_GB, PLAIN_DOWNLOAD_GB = 3.0, 0.4

IMPORTS = (
    "torch, torchvision, timm, loralib, cv2, scipy, sklearn, pycocotools.mask, yaml, anoseg_d2, "
    "detectron2.config, detectron2.modeling, detectron2.engine"
)
NO_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|Name or service not known|ProxyError|"
    r"Temporary failure in name resolution|Network is unreachable|Connection refused|"
    r"ConnectTimeout|Read timed out|SSLError|Connection aborted|Connection broken|"
    r"from versions: none"
)
NO_SPACE = re.compile(r"No space left on device|Errno 28|Disk quota exceeded")
# pip's options that would put the packages somewhere else than the environment.
ELSEWHERE = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")


class SetupError(Exception):
    """What went wrong and how to fix it, in one line."""


def main():
    """Run the command line; return the exit status."""
    args = parse_args()
    # Shells start background jobs with SIGINT ignored, so both are set.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        check_python()
        if args.detectron2_only:
            add_detectron2(Environment.current())
        else:
            make_environment(args.venv)
    except SetupError as error:
        say(f"error: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("interrupted; the same command continues from here", sys.stderr)
        return 130
    return 0


def parse_args():
    parser = argparse.ArgumentParser(description="Make the project's Python environment.")
    parser.add_argument(
        "--venv", type=Path, default=ROOT / ".venv", help="folder to make (default: .venv)"
    )
    parser.add_argument(
        "--detectron2-only",
        action="store_true",
        help="only add detectron2 to the Python that runs this, unless it already imports there",
    )
    return parser.parse_args()


def check_python(version=sys.version_info):
    """Refuse a Python that the pinned versions do not support, and name one that they do."""
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return
    names = [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    found = next((name for name in names if shutil.which(name) and runs(name)), None)
    way_out = f"use {found}" if found else "install one of them"
    raise SetupError(
        f"Python {version[0]}.{version[1]} ({sys.executable}) is not supported, only "
        f"3.{OLDEST[1]} to 3.{NEWEST[1]}; {way_out}: make PYTHON={found or '/path/to/python3'}"
    )


def runs(python):
    """Return whether the program `python` starts (a version manager's shim may not)."""
    done = subprocess.run([python, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done.returncode == 0


# --- the environment ---------------------------------------------------------------------------


class Environment:
    """One Python environment and what is installed in it."""

    def __init__(self, folder, python):
        self.folder = Path(folder)
        self.python = str(python)

    @classmethod
    def at(cls, folder):
        """Return the virtual environment in `folder`, which need not exist yet."""
        folder = Path(os.path.abspath(str(folder)))
        parts = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
        return cls(folder, folder.joinpath(*parts))

    @classmethod
    def current(cls):
        """Return the environment of the Python that runs this."""
        return cls(sys.prefix, sys.executable)

    def evaluate(self, code):
        """Run `code` in this environment; return (exit status, stdout, last line of stderr)."""
        done = subprocess.run(
            [self.python, "-I", "-c", code],
            capture_output=True,
            text=True,
        )
        complaint = (done.stderr.strip().splitlines() or [""])[-1]
        return done.returncode, done.stdout.strip(), complaint

    def has_pip(self):
        """Return whether it runs and can install packages."""
        return Path(self.python).exists() and self.evaluate("import pip")[0] == 0

    def site_packages(self):
        return Path(self.evaluate("import sysconfig; print(sysconfig.get_path('purelib'))")[1])

    def version_of(self, name):
        """Return the installed version of distribution `name`, or None."""
        code = f"from importlib.metadata import version; print(version({name!r}))"
        status, version, _ = self.evaluate(code)
        return version if status == 0 else None


def make_environment(folder):
    """Bring the environment in `folder` to the pinned state, unless it is already there."""
    environment = Environment.at(folder)
    wanted = fingerprint()
    if is_ready(environment, wanted):
        return
    announce(environment)
    started = time.time()
    create_venv(environment)
    remove_half_installed(environment)
    install_base(environment)
    check_space(environment)
    install_torch(environment)
    options = ["--require-hashes", "-r", "hashed.txt", "--no-build-isolation"]
    step(environment, "the other packages", options)
    add_detectron2(environment)
    step(
        environment, "this project", ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    )
    check_imports(environment)
    (environment.folder / STAMP).write_text(wanted + "\n")
    minutes = (time.time() - started) / 60
    say(f"ready: {folder} ({size_gb(environment.folder):.1f} GB, {minutes:.0f} min)")


def fingerprint():
    """Return a digest of everything that the environment is made from."""
    digest = hashlib.sha256(str(ROOT).encode())  # the editable install points here
    for path in sorted(REQUIREMENTS.glob("*.txt")) + [ROOT / "setup.py"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_ready(environment, wanted):
    """Return whether the last set-up of `environment` finished with the same pins."""
    stamp = environment.folder / STAMP
    ready = stamp.exists() and stamp.read_text().strip() == wanted
    return ready and Path(environment.python).exists()


def announce(environment):
    """Say what is about to happen, and refuse if there is clearly not enough disk space."""
    count = len(set(pins("lock.txt", versions=False)))
    say(f"making {environment.folder} for Python {sys.version_info[0]}.{sys.version_info[1]}")
    say(f"  {', '.join(pins('torch.txt'))}, detectron2 0.7.2, about {count} more packages;")
    say("  a torch or detectron2 that is already there is kept")
    say(f"  disk: {CUDA_GB} GB, and {CUDA_DOWNLOAD_GB} GB during set-up, with the CUDA build of")
    say(f"  torch that Linux gets by default; {PLAIN_GB} and {PLAIN_DOWNLOAD_GB} GB with a CPU one")
    require_space(environment, PLAIN_GB + PLAIN_DOWNLOAD_GB)


def create_venv(environment):
    """Make the virtual environment, or remake a broken one."""
    folder = environment.folder
    if environment.has_pip():
        return
    ours = (folder / "pyvenv.cfg").exists()
    if folder.exists() and not ours and any(path.is_file() for path in folder.rglob("*")):
        raise SetupError(
            f"{folder} exists but is not an environment with pip; move it away, or name another: "
            "make VENV=/path"
        )
    say("  the virtual environment ...")
    done = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode == 0 and environment.has_pip():
        return
    explain(done.stdout, "the virtual environment")
    raise SetupError(
        f"{sys.executable} cannot make a virtual environment: its venv module is missing or broken;"
        " add it (Debian, Ubuntu: python3-venv), or name another: make PYTHON=/path/to/python3"
    )


def remove_half_installed(environment):
    """Remove the metadata of distributions that an interrupted pip installed only partly.

    pip writes RECORD last but considers a distribution with METADATA installed, so it would never
    complete one without RECORD.
    """
    for info in environment.site_packages().glob("*.dist-info"):
        if not (info / "RECORD").exists():
            shutil.rmtree(str(info))


# --- installing --------------------------------------------------------------------------------


def install_base(environment):
    """Install the pinned pip and setuptools, the first step that needs the registry."""
    step(
        environment, "pip and setuptools", ["--retries", "2", "--require-hashes", "-r", "build.txt"]
    )


def install_torch(environment):
    """Install the pinned torch and torchvision, unless another usable torch is there."""
    found = environment.version_of("torch")
    pinned = pins("torch.txt")[0].split()[1]
    if found is None or found.split("+")[0] == pinned or as_numbers(found) < OLDEST_TORCH:
        step(environment, " and ".join(pins("torch.txt")), ["-r", "torch.txt", "-c", "lock.txt"])
        return
    say(f"  keeping the torch {found} that is there")
    if environment.version_of("torchvision") is None:
        constraint = environment.folder / "kept_torch.txt"
        constraint.write_text(f"torch=={found}\n")
        step(environment, "the torchvision for it", ["torchvision", "-c", str(constraint)])


def add_detectron2(environment):
    """Keep a detectron2 that imports; otherwise install the pinned wheel.

    The wheel is built for Python 3.10. Its Python part runs on any newer version and on every
    platform; its compiled part does not load there, but nothing here needs it.
    """
    status, where, complaint = environment.evaluate(
        "import detectron2.config, detectron2.modeling, detectron2.engine as e; print(e.__file__)"
    )
    if status == 0:
        say(f"  keeping the detectron2 in {Path(where).parent.parent}")
        return
    if environment.version_of("detectron2") is not None:
        raise SetupError(
            f"the detectron2 in {environment.folder} does not import ({complaint}); repair it, or "
            f"run `{environment.python} -m pip uninstall detectron2` and then this again"
        )
    install_wheel(environment)
    status, _, complaint = environment.evaluate("import detectron2.config")
    if status != 0:
        raise SetupError(
            f"detectron2 is installed but does not import ({complaint}); `pip install -e .` "
            "installs what it needs"
        )


def install_wheel(environment):
    """Install the pinned detectron2 wheel, whatever Python version the environment has."""
    target = environment.site_packages()
    if not os.access(str(target), os.W_OK):
        raise SetupError(
            f"{target} is not writable; use a virtual environment: python3 -m venv /path"
        )
    options = ["--target", str(target), "--upgrade", "--python-version", "3.10"]
    options += ["--only-binary=:all:", "--no-deps", "--require-hashes", "-r", "detectron2.txt"]
    step(environment, "detectron2 (pinned wheel)", options)


def step(environment, what, options):
    """Run `pip install` with `options`; names of files in requirements/ become paths."""
    say(f"  {what} ...")
    options = [str(REQUIREMENTS / o) if (REQUIREMENTS / o).is_file() else o for o in options]
    status, text = pip(environment, ["install", "--no-input", "--progress-bar", "off", *options])
    if status == 0:
        return
    log = log_path(environment)
    explain(text, what, log)
    errors = [line.strip() for line in text.splitlines() if "rror" in line] or ["no reason given"]
    raise SetupError(f"{what} could not be installed: {errors[-1][:200]} (details: {log})")


def pip(environment, arguments):
    """Run pip and show its large downloads; return (exit status, output)."""
    variables = {k: v for k, v in os.environ.items() if k not in ELSEWHERE}
    variables["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    lines = []
    # Temporary files are next to the environment: only one disk needs room, and moves are renames.
    with tempfile.TemporaryDirectory(prefix="setup_", dir=str(environment.folder)) as scratch:
        variables.setdefault("TMPDIR", scratch)
        process = subprocess.Popen(
            [environment.python, "-I", "-m", "pip"] + arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            env=variables,
        )
        try:
            with log_path(environment).open("a") as log:
                log.write("\n$ pip {}\n".format(" ".join(arguments)))
                for line in process.stdout:
                    log.write(line)
                    lines.append(line)
                    show_download(line)
            return process.wait(), "".join(lines)
        except BaseException:
            stop(process)
            raise


def stop(process):
    """End a child process that Ctrl-C may or may not have reached."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def show_download(line):
    """Print the name of a download that takes a while."""
    match = re.match(r"\s*Downloading (\S+).*\(([\d.]+) (MB|GB)\)", line)
    if match and (match.group(3) == "GB" or float(match.group(2)) >= 50):
        name = match.group(1).rsplit("/", 1)[-1].split("-")[0]
        say(f"    {name} ({match.group(2)} {match.group(3)})")


def explain(text, what, log=None):
    """Raise SetupError with a plain reason if `text`, the output of a failed command, shows one."""
    detail = f" (details: {log})" if log else ""
    if NO_SPACE.search(text):
        raise SetupError(f"no space left on the disk while installing {what}{detail}")
    if NO_NETWORK.search(text):
        raise SetupError(
            f"no package registry can be reached for {what}; check the network, or name a registry "
            f"in PIP_INDEX_URL{detail}"
        )


def check_imports(environment):
    """Refuse to call the environment ready unless everything imports."""
    status, _, complaint = environment.evaluate("import " + IMPORTS)
    if status != 0:
        raise SetupError(
            f"the environment is complete but does not import: {complaint}; delete "
            f"{environment.folder} and run this again"
        )


# --- disk --------------------------------------------------------------------------------------


def check_space(environment):
    """Refuse before the large downloads if the torch that pip would choose does not fit."""
    if brings_cuda(environment):
        require_space(environment, CUDA_GB + CUDA_DOWNLOAD_GB)


def brings_cuda(environment):
    """Return whether the torch that pip would install brings CUDA libraries with it."""
    found = environment.version_of("torch")
    if found is not None and as_numbers(found) >= OLDEST_TORCH:
        return False
    report = environment.folder / "torch_plan.json"
    arguments = ["install", "--dry-run", "--quiet", "--report", str(report)]
    arguments += ["-r", str(REQUIREMENTS / "torch.txt"), "-c", str(REQUIREMENTS / "lock.txt")]
    status, text = pip(environment, arguments)
    if status != 0:
        explain(text, "torch", log_path(environment))
        return True  # the installation itself will show what is wrong
    plan = json.loads(report.read_text(encoding="utf-8"))
    report.unlink()
    return any(item["metadata"]["name"].startswith("nvidia") for item in plan["install"])


def require_space(environment, total_gb):
    """Refuse unless `total_gb`, minus the size of the environment so far, is free."""
    place = environment.folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(str(place)).free / 1e9
    need = max(0.5, total_gb - size_gb(environment.folder))
    if free < need:
        raise SetupError(
            f"not enough space: {need:.1f} GB are needed at {place}, {free:.1f} GB are free; make "
            "room, or put the environment elsewhere: make VENV=/path"
        )


def size_gb(folder):
    """Return the size of everything in `folder`, in GB."""
    total = 0
    for base, _, names in os.walk(str(folder)):
        total += sum(os.lstat(os.path.join(base, name)).st_size for name in names)
    return total / 1e9


# --- small things ------------------------------------------------------------------------------


def pins(name, versions=True):
    """Return ["package version", ...] of a file in requirements/, or only the package names."""
    text = (REQUIREMENTS / name).read_text()
    found = re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    return [" ".join(match) if versions else match[0] for match in found]


def as_numbers(version):
    """Return (major, minor) of a version string."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def log_path(environment):
    return environment.folder / "setup.log"


def say(text, stream=None):
    print(f"set-up: {text}", file=stream or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
