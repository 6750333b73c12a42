"""Nothing in the repository loads a file in a way that could run code in it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("anoseg_d2", "tools", "datasets", "experiments", "benchmarks", "dev", "train_net.py")

# Calls by the end of their dotted name that run, or may run, what a file holds.
FORBIDDEN = (
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("dill.load", "joblib.load", "cloudpickle.load", "shelve.open", "read_pickle"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.Loader"),
    *("eval", "exec", "compile", "__import__", "runpy.run_path", "os.system", "os.popen"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "hub.load_state_dict_from_url"),
    *("np.load", "numpy.load", "merge_from_file", "extractall"),
)
# Methods and functions of the same name that have nothing to do with it.
HARMLESS = ("re.compile", "torch.compile", "block.compile", "model.eval", ".eval")

# (file, call) to the reason why it is safe there.
EXCEPTIONS = {
    ("experiments/small/study.py", "eval"): "a formula of the user's own command line",
    ("anoseg_d2/checkpoint/files.py", "torch.load"): (
        "weights_only, unless the user passes --allow-pickle for a file they trust"
    ),
}


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def is_safe(name, node):
    options = {keyword.arg: keyword.value for keyword in node.keywords}

    def says(option, value):
        return isinstance(options.get(option), ast.Constant) and options[option].value is value

    if name == "torch.load":
        return says("weights_only", True)
    if name in ("np.load", "numpy.load"):
        return says("allow_pickle", False)  # the default has changed once already
    if name.endswith("merge_from_file"):
        return says("allow_unsafe", False)
    return False


def scripts():
    for place in map(ROOT.joinpath, PLACES):
        yield from [place] if place.suffix else sorted(place.rglob("*.py"))


def findings():
    for path in scripts():
        where = str(path.relative_to(ROOT))
        for name, node in calls(path):
            shell = [k for k in node.keywords if k.arg == "shell"]
            if shell and ast.unparse(shell[0].value) != "False":
                yield where, f"{name} with a shell"
            forbidden = any(name == bad or name.endswith(f".{bad}") for bad in FORBIDDEN)
            if forbidden and not name.endswith(HARMLESS) and not is_safe(name, node):
                yield where, name


def test_no_loader_can_run_code_but_those_that_are_known_by_name():
    assert sorted(set(findings())) == sorted(EXCEPTIONS)


def test_the_search_finds_what_it_is_for(tmp_path):
    source = "pickle.loads(b'')\ntorch.load('a')\ntorch.load('a', weights_only=True)\n"
    (tmp_path / "bad.py").write_text(source)
    found = [name for name, node in calls(tmp_path / "bad.py") if not is_safe(name, node)]
    assert found == ["pickle.loads", "torch.load"]
