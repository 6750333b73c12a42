"""Every command in the docs parses as it stands; those that a tiny model can run are run."""

import argparse
import ast
import functools
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tiny_vit

from anoseg_d2 import cli
from anoseg_d2.checkpoint import model_meta
from anoseg_d2.config import load_config
from anoseg_d2.data.builtin import DATASETS
from anoseg_d2.engine import argument_parser
from anoseg_d2.engine.short_form import split_places
from anoseg_d2.modeling.patch_heads import PATCH_HEADS
from anoseg_d2.modeling.scores import SCORES, ensemble_parts
from anoseg_d2.prediction.video import VideoWriter
from anoseg_d2.utils.config_files import find_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "datasets/*.md", "benchmarks/*.md", "experiments/**/*.md")
    for path in ROOT.glob(pattern)
)
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("anoseg_d2/commands/*.py", "tools/*.py", "datasets/*.py", "experiments/*.py")
    + ("benchmarks/*.py", "dev/*.py", "*.py")
    for path in ROOT.glob(pattern)
)
OURS = ("anoseg", "python", ".venv/bin/python", "make")
# Other people's programs, and what a shell does itself.
OTHERS = ("export", "apptainer", "pip", "docker", "hf", "git", "head=$(scontrol")
OTHERS += ("cmake", "build/anoseg", "trtexec")


def commands_of(path: Path) -> list[str]:
    """Return the commands of a page or of a script's docstring, each on one line."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".py":
        found = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    else:
        fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
        blocks = [body for language, body in fenced if language in ("", "bash", "sh", "console")]
        blocks += re.findall(r"(?:^    \S.*\n)+", text, re.M)
        found = [line for block in blocks for line in block.splitlines()]
        inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        # `anoseg train` alone is a name, not a call.
        found += [" ".join(code.split()) for code in inline if code.count(" ") > 1]
    joined = re.sub(r"\\+\n\s*", "", "\n".join(line.strip() for line in found))
    lines = (re.sub(r"^\$ ", "", line) for line in joined.splitlines())
    return [line for line in lines if first_word(line) in (*OURS, *OTHERS)]


def first_word(line: str) -> str:
    """Return the program of a line, after the variables that are set for it."""
    words = [word for word in line.split() if not re.match(r"[A-Z_0-9]+=", word)]
    return words[0] if words else ""


CALLS = [
    pytest.param(path, line, id=f"{path.as_posix()}: {line[:70]}")
    for path in (*PAGES, *SCRIPTS)
    for line in dict.fromkeys(commands_of(path))
]


def test_commands_are_found_where_they_are():
    counts = {path.as_posix(): len(commands_of(path)) for path in (*PAGES, *SCRIPTS)}
    for name in ("README.md", "GETTING_STARTED.md", "MODEL_ZOO.md", "CONTRIBUTING.md"):
        assert counts[name] > 0, name
    for name in ("docs/scaling.md", "docs/export.md", "datasets/README.md", "benchmarks/README.md"):
        assert counts[name] > 1, name
    assert counts["anoseg_d2/commands/train.py"] > 1


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_help_keeps_the_lines_of_its_examples(path):
    # A lone backslash at the end of a docstring's line joins it with the next one.
    shown = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    assert not re.search(r"\S {4,}--", shown), path


def test_every_block_for_a_shell_is_understood():
    for path in PAGES:
        text = (ROOT / path).read_text(encoding="utf-8")
        for block in re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.M | re.S):
            for line in re.sub(r"\\\n", "", block).splitlines():
                line = line.partition("# ")[0].strip()
                assert not line or first_word(line) in (*OURS, *OTHERS), f"{path}: {line}"


@pytest.mark.parametrize("path,line", CALLS)
def test_a_command_of_the_docs_parses(path, line, monkeypatch, capsys):
    mention = re.fullmatch(r"anoseg ([\w-]+)(?: --[\w-]+(?: [\w/]+)?)+", line)
    if mention and f"`{line}`" in (ROOT / path).read_text(encoding="utf-8"):
        # A sentence names options; what the command needs besides is left out.
        with pytest.raises(SystemExit, match="0"):
            cli.main([mention[1], "--help"])
        said = capsys.readouterr().out
        assert all(option in said for option in re.findall(r"--[\w-]+", line))
        return
    line = line.replace("<folder>", "folder").replace("<", "").replace(">", " ")
    words = [w for w in shlex.split(line, comments=True) if w not in ("...", "$")]
    while re.match(r"[A-Z_0-9]+=", words[0]):
        words.pop(0)
    if words[0] == "pip":
        extras = re.findall(r"\.\[(\w+)\]", line)
        assert all(f'"{extra}": [' in (ROOT / "setup.py").read_text() for extra in extras)
    elif words[0] == "make":
        check_make(words[1:], monkeypatch)
    elif words[0] == "anoseg":
        check_anoseg(words[1:], monkeypatch)
    elif words[0] in ("python", ".venv/bin/python"):
        module = words[1] == "-m"
        check_python(words[2:] if module else words[1:], monkeypatch, module)


def check_make(words, monkeypatch):
    """Check targets and variables, and what the variable ARGS passes on."""
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split()
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            assert name in targets, word
            continue
        assert re.search(rf"^{name} \?=", makefile, re.M), word
        if name == "ARGS" and words[0] in ("demo", "camvid", "camvid-unseen"):
            recipe = "configs/quickstart/recipe.yaml"
            check_python(["experiments/run.py", recipe, *shlex.split(value)], monkeypatch)


def check_python(words, monkeypatch, module=False):
    """Check a call of a script of this checkout, or of a module."""
    if module and words[0] == "anoseg_d2":
        check_anoseg(words[1:], monkeypatch)
    elif module:
        assert words[0] == "pytest", words
        assert all((ROOT / word).exists() for word in words[1:] if not word.startswith("-"))
    else:
        if words[0] in ("train_net.py", "my_train.py"):  # the page that a user copies, and the copy
            check_options(argument_parser().parse_args(words[1:]), words[0])
            return
        assert (ROOT / words[0]).is_file(), words[0]
        if words[0] != "dev/list_licences.py":  # it has no options
            check_options(parse(script(words[0]).main, words[1:], monkeypatch), words[0])


def check_anoseg(words, monkeypatch):
    """Check a call of a sub-command."""
    args = parse(cli.main, words, monkeypatch)
    if args is None or args.command not in cli.COMMANDS:
        return
    module, first, _ = cli.COMMANDS[args.command]
    main = importlib.import_module(f"anoseg_d2.commands.{module}").main
    check_options(parse(main, [*first, *args.arguments], monkeypatch), words[0])


@functools.cache
def script(path: str):
    """Load a script as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Parsed(Exception):
    """Carries what a parser read, out of the command that it belongs to."""


def parse(main, words, monkeypatch):
    """Return the arguments as the command's own parser reads them; None after --help."""
    with monkeypatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            original = getattr(argparse.ArgumentParser, name)

            def stop(parser, args=None, namespace=None, original=original):
                raise Parsed(original(parser, args, namespace))

            patch.setattr(argparse.ArgumentParser, name, stop)
        patch.setattr(sys, "argv", ["command", *words])
        try:
            main()
        except Parsed as parsed:
            return parsed.args[0]
        except SystemExit as end:
            assert end.code == 0, words
            return None
    raise AssertionError("the command parsed nothing")


def check_options(args, what):
    """Check names of configs, keys, datasets, recipes and scores."""
    if args is None:
        return
    options = vars(args)
    config = options.get("config_file") or ""
    if config:
        find_config(ROOT / config if (ROOT / config).is_file() else config)
    overrides = [*split_places(options.get("opts") or [])[1], "MODEL.DEVICE", "cpu"]
    # A module of the user's own may have keys of its own; tests/test_docs_python.py runs these.
    if options.get("imports") or what == "my_train.py":
        overrides = []
    load_config(ROOT / config if config and (ROOT / config).is_file() else config, overrides)
    if "recipe" in options:
        assert (ROOT / options["recipe"]).is_file()
    if what in ("check", "datasets/check.py") and not options["card"]:
        assert set(options["names"]) <= set(DATASETS)
    if what in ("maps", "memory", "tools/evaluate_maps.py"):
        assert options["dataset"] in (None, *DATASETS)
    if options.get("score") and what in ("predict", "submit"):
        parts = [part for name in options["score"].split(",") for part in ensemble_parts(name)]
        assert set(parts) <= {*SCORES, *PATCH_HEADS}


# --- those that run --------------------------------------------------------------------------


def runnable() -> list:
    """Commands that need nothing but photographs and a checkpoint, page by page in order."""
    pages = ("README.md", "GETTING_STARTED.md", "docs/memory.md", "docs/export.md")
    wanted = ("anoseg predict", "anoseg memory", "anoseg export", "python tools/exp")
    found = []
    for page in pages:
        lines = [
            line
            for line in dict.fromkeys(commands_of(Path(page)))
            if line.startswith(wanted) and not re.search("--help|--fp16", line)
        ]
        found += [pytest.param(lines, id=page)] if lines else []
    return found


@pytest.fixture
def folder(tmp_path, tiny_eomt, monkeypatch):
    """A folder with everything that the docs' examples name."""
    generator = np.random.default_rng(0)
    photos = ["street.jpg", "odd.jpg", "a.jpg", "trip/x/b.png", *(f"{d}/{i}.png" for d in
              ("photos", "my_photos") for i in range(3))]  # fmt: skip
    for name in photos:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    with VideoWriter(tmp_path / "drive.mp4", 10) as writer:
        for _ in range(2):
            writer.write(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    model = tiny_eomt(has_anomaly=True)
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, tmp_path / "public.pth")
    for name in ("model_final.pth", "output/model_final.pth", "run/model_final.pth"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "public.pth", tmp_path / name)
    sets = {"a": {"scores": {"anomaly": {"tpr_thresholds": {"95": 0.5}}}}}
    (tmp_path / "run" / "report").mkdir()
    (tmp_path / "run" / "report" / "results.json").write_text(json.dumps({"datasets": sets}))
    vit = tiny_vit(depth=4, width=384, heads=6, patch_size=14, image_size=(56, 56))
    save_file(vit.state_dict(), tmp_path / "dinov2_vits14.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("lines", runnable())
def test_the_commands_of_a_page_run_one_after_the_other(lines, folder):
    for line in lines:
        # A tiny checkpoint takes the place of those on the hub, and a tiny image that of a large.
        line = re.sub(r"hf://\S+", "public.pth", line).replace("1080 1920", "40 56")
        line = line.replace("dinov2-s ", "dinov2_vits14.safetensors ")
        if line.startswith("anoseg predict") and "--weights" not in line:
            line += " --weights public.pth"  # not the model that ships, whose ViT is downloaded
        words = shlex.split(line, comments=True)
        # A page shows several calls that write the same file, each of which refuses to replace it.
        for output in re.findall(r"--output (\S+\.\w+)", line):
            Path(output).unlink(missing_ok=True)
        before = set(folder.rglob("*"))
        main = cli.main if words[0] == "anoseg" else script(words[1]).main
        assert main(words[1:] if words[0] == "anoseg" else words[2:]) == 0, line
        assert set(folder.rglob("*")) - before or "predict" in line, line
