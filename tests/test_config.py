"""Config keys, and what a user's mistake in them says."""

import json
import re
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg

from anoseg_d2.config import FIXED, KEYS, add_anoseg_config, check_config, load_config
from anoseg_d2.modeling.heads import CLASS_HEADS
from anoseg_d2.utils.config_files import flat_items

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "configs").rglob("*.yaml")
    if "steps" not in yaml.safe_load(path.read_text())  # recipes: lists of stages, not configs
)


@pytest.fixture
def write(tmp_path):
    def file(text):
        path = tmp_path / "user.yaml"
        path.write_text(text)
        return str(path)

    return file


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_shipped_config_loads_and_says_only_what_differs_from_its_base(path):
    own = yaml.safe_load((ROOT / path).read_text())
    cfg = load_config(str(ROOT / path))
    base = own.pop("_BASE_", None)
    if base is None:  # a base may spell defaults out
        return
    own.pop("VERSION", None)
    parent = load_config(str((ROOT / path).parent / base))
    for key, _ in flat_items(own):
        ours, theirs = cfg, parent
        for part in key.split("."):
            ours, theirs = ours[part], theirs[part]
        assert ours != theirs, f"{path}: {key} repeats its base"


def test_overrides_come_after_the_file(write):
    path = write("SOLVER: {MAX_ITER: 10, BASE_LR: 0.5}\nVERSION: 2\n")
    cfg = load_config(path, ["SOLVER.MAX_ITER", "20"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (20, 0.5)


@pytest.mark.parametrize(
    "wrong,right",
    [
        ("MODEL.EOMT.NUM_QUERYS", "MODEL.EOMT.NUM_QUERIES"),
        ("MODEL.LORA.RANKS", "MODEL.LORA.RANK"),
        ("SOLVER.ACUMULATION", "SOLVER.ACCUMULATION"),
        ("MODEL.HEAD.ARCFACE.MARGN", "MODEL.HEAD.ARCFACE.MARGIN"),
    ],
)
def test_a_misspelt_key_names_the_nearest_one(write, wrong, right):
    with pytest.raises(ValueError, match=f"unknown config key {wrong}.* did you mean .*{right}"):
        load_config("", [wrong, "1"])
    text = "1"
    for part in reversed(wrong.split(".")):
        text = f"{{{part}: {text}}}"
    with pytest.raises(ValueError, match=f"unknown config key {wrong}.* did you mean .*{right}"):
        load_config(write(text + "\n"))


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="--config-file no/such.yaml.*exist"):
        load_config("no/such.yaml")


def test_broken_yaml_names_its_file(write):
    path = write("MODEL: {EOMT: [\n")
    with pytest.raises(ValueError, match=re.escape(path)):
        load_config(path)


def test_a_value_of_the_wrong_type_names_its_key():
    with pytest.raises(ValueError, match="SOLVER.MAX_ITER"):
        load_config("", ["SOLVER.MAX_ITER", "many"])
    with pytest.raises(ValueError, match="MODEL.LORA.ENABLED"):
        load_config("", ["MODEL.LORA.ENABLED", "3"])


def test_a_key_without_value_is_refused():
    with pytest.raises(ValueError, match="KEY VALUE pairs; 'SEED' has no value"):
        load_config("", ["SOLVER.MAX_ITER", "3", "SEED"])


def test_yaml_cannot_run_code(write, tmp_path):
    victim = tmp_path / "made"
    path = write(f"SEED: !!python/object/apply:pathlib.Path.touch [{victim}]\n")
    with pytest.raises(ValueError):
        load_config(path)
    assert not victim.exists()


def test_every_key_of_ours_has_a_default_that_its_part_accepts(tiny_cfg):
    from anoseg_d2.modeling import EoMT
    from anoseg_d2.modeling.criterion import SetCriterion

    cfg = load_config()
    defaults = SetCriterion.from_config(cfg)
    for key, value in vars(SetCriterion(3)).items():
        if key in defaults:
            assert defaults[key] == value, key
    model = EoMT(tiny_cfg())
    assert model.masked_attention and model.annealing_power == 0.9
    assert model.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


def our_defaults():
    """Values of the keys that this project adds or changes, by name."""
    cfg = get_cfg()
    theirs = dict(flat_items(cfg))
    add_anoseg_config(cfg)
    return {k: v for k, v in flat_items(cfg) if k not in theirs or theirs[k] != v}


def test_every_key_of_ours_is_in_the_table_and_its_default_is_allowed():
    assert set(our_defaults()) <= set(KEYS)
    check_config(load_config())


def test_every_row_of_the_table_belongs_to_a_key():
    assert set(KEYS) <= {key for key, _ in flat_items(load_config())}


WRONG = [
    ("MODEL.EOMT.NUM_QUERIES", 0, "an integer in 1.."),
    ("MODEL.EOMT.WIDTH", 47, "multiple of 16"),
    ("MODEL.EOMT.WIDTH", -1, "an integer in 0.."),
    ("MODEL.EOMT.PATCH_SIZE", 0, "an integer in 1..128"),
    ("MODEL.EOMT.DROP_PATH", -0.1, "a number from 0 to 0.99"),
    ("MODEL.EOMT.SIZE", "XL", "one of S, B, L, G"),
    ("MODEL.EOMT.NUM_BLOCKS", 25, "24 blocks"),
    ("MODEL.EOMT.NUM_CLASSES", 0, "an integer in 1..253"),
    ("MODEL.PIXEL_STD", [0, 1, 1], "a list of 3 entries, each a number above 0"),
    ("MODEL.PIXEL_MEAN", [1, 1], "a list of 3 entries"),
    ("MODEL.DEVICE", "cuda:99", "cpu, or cuda"),
    ("MODEL.DEVICE", "toaster", "cpu, or cuda"),
    ("MODEL.META_ARCHITECTURE", "MaskFormer", "EoMT"),
    ("MODEL.HEAD.NAME", "archface", "one of linear, logit_norm, arcface"),
    ("MODEL.HEAD.LOGIT_NORM.TAU", 0, "a number above 0"),
    ("MODEL.CRITERION.MATCH_POINTS", -1, "an integer in 0.."),
    ("MODEL.CRITERION.VOID", "ignore", "one of negative, exclude"),
    ("MODEL.CRITERION.OUTLIER_UPPER", 0.5, "CRITERION.OUTLIER_LOWER"),
    ("MODEL.LORA.RANK", 0, "an integer in 1.."),
    ("MODEL.LORA.RANK", 1025, "1..1024"),
    ("MODEL.LORA.BLOCKS", [1], "0 or 2 entries"),
    ("MODEL.LORA.BLOCKS", [3, 1], "smaller first"),
    ("MODEL.LORA.BLOCKS", [0, 24], "0..23"),
    ("MODEL.LORA.TARGETS", ["qkv"], "one of q, k, v, proj, fc1, fc2"),
    ("INPUT.CROP_SIZE", (64,), "2 entries"),
    ("INPUT.CROP_SIZE", (100, 64), "not divisible by MODEL.EOMT.PATCH_SIZE 16; nearest: (96, 64)"),
    ("INPUT.CROP_SIZE", (16, 1_600_000), "an integer in 1..16384"),
    ("INPUT.SCALE_JITTER", (1,), "2 entries"),
    ("INPUT.SCALE_JITTER", (1, 500), "at most 16"),
    ("INPUT.SCALE_JITTER", (2, 1), "the smaller first"),
    ("INPUT.SCALE_JITTER", 500, "a list such as"),
    ("INPUT.CUT_PASTE.COUNT", (3, 1), "the smaller first"),
    ("INPUT.CUT_PASTE.SCALE", (1.5, 0.5), "the smaller first"),
    ("INPUT.WINDOW_BATCH", -1, "an integer in 0.."),
    ("TEST.WINDOW_OVERLAP", 1.0, "a number from 0 to 0.95"),
    ("SOLVER.MAX_ITER", 0, "an integer of at least 1"),
    ("SOLVER.CHECKPOINT_PERIOD", 0, "an integer of at least 1"),
    ("SOLVER.IMS_PER_BATCH", 0, "an integer in 1..4096"),
    ("SOLVER.ACCUMULATION", 3, "IMS_PER_BATCH 16 is not divisible by SOLVER.ACCUMULATION 3"),
    ("SOLVER.WARMUP_VIT", 1.0, "together they must be at most 1"),
    ("SOLVER.AMP.PRECISION", "int8", "one of auto, bf16, fp16"),
    ("SOLVER.REFERENCE_WORLD_SIZE", 7, "16 is not divisible by"),
    ("SOLVER.BASE_LR", 1e300, "a number from 0 to 1000"),
    ("TEST.EXPECTED_RESULTS", [1], "[dataset, figure, value, tolerance]"),
    ("SOLVER.OPTIMIZER", "SGD", "one of ADAMW"),
    ("SOLVER.CLIP_GRADIENTS.ENABLED", 1, "True or False"),
    ("SOLVER.BEST_FIGURE", "closed_set.mIoU", "TEST.EVAL_PERIOD is 0"),
    ("SOLVER.PATIENCE", 3, "SOLVER.BEST_FIGURE is empty"),
    ("OUTPUT_DIR", "", "a string that is not empty"),
    ("OUTPUT_DIR", "caf\udce9", "in UTF-8"),
    ("SEED", -2, "an integer in -1.."),
    ("SEED", None, "an integer"),
]


@pytest.mark.parametrize("key,value,allowed", WRONG, ids=[f"{k} {v}" for k, v, _ in WRONG])
def test_a_value_out_of_range_is_named_with_its_key_and_range(key, value, allowed):
    with pytest.raises(ValueError, match=re.escape(key)) as caught:
        load_config("", [key, "1e999" if value == float("inf") else str(value)])
    assert allowed in str(caught.value)
    assert repr(value[0] if isinstance(value, (list, tuple)) else value)[1:-1] in str(caught.value)


def test_a_config_made_in_python_is_checked_before_the_model_is_built(tiny_cfg):
    from anoseg_d2 import EoMT

    with pytest.raises(ValueError, match="MODEL.EOMT.NUM_QUERIES.*0.*integer"):
        EoMT(tiny_cfg("MODEL.EOMT.NUM_QUERIES", 0))


def test_integers_do_where_a_float_is_meant(write):
    path = write("MODEL: {LORA: {DROPOUT: 0, ALPHA: 8}}\nINPUT: {SCALE_JITTER: '(1, 2)'}\n")
    cfg = load_config(path, ["SOLVER.BASE_LR", "1", "MODEL.HEAD.ARCFACE.SCALE", 64])
    for value, expected in (
        (cfg.MODEL.LORA.DROPOUT, 0.0),
        (cfg.MODEL.LORA.ALPHA, 8.0),
        (cfg.SOLVER.BASE_LR, 1.0),
        (cfg.MODEL.HEAD.ARCFACE.SCALE, 64.0),
    ):
        assert value == expected and type(value) is float
    assert cfg.INPUT.SCALE_JITTER == (1, 2)
    with pytest.raises(ValueError, match="MODEL.LORA.RANK.*'8.5'.*integer"):
        load_config("", ["MODEL.LORA.RANK", "8.5"])


def test_a_number_can_be_the_name_of_a_folder():
    assert load_config("", ["OUTPUT_DIR", "2024"]).OUTPUT_DIR == "2024"


BROKEN = {
    "a list": "[1, 2]\n",
    "a word": "hello\n",
    "deep": "{a: " * 3000 + "1" + "}" * 3000 + "\n",
    "a loop": "_BASE_: user.yaml\n",
    "a missing base": "_BASE_: nowhere.yaml\n",
    "a value in place of a group": "MODEL: 3\n",
    "a group in place of a value": "SEED: {A: 1}\n",
    "integer keys": "{1: {2: 3}}\n",
    "two documents": "SEED: 1\n---\nSEED: 2\n",
    "an old version": "VERSION: 1\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_config_file_ends_in_one_message(write, kind):
    path = write(BROKEN[kind])
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_config(path)
    assert "\n" not in str(caught.value).strip()


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"OUTPUT_DIR: stra\xdfe\n")
    with pytest.raises(ValueError, match="latin.yaml is not a readable yaml file"):
        load_config(str(path))


def test_a_config_that_was_dumped_loads_again(write):
    cfg = load_config("", ["SOLVER.MAX_ITER", "7"])
    assert "BBOX_REG_WEIGHTS: *id" in cfg.dump()  # yacs writes one tuple once, and then aliases
    found = dict(flat_items(load_config(write(cfg.dump()))))
    for key, value in flat_items(cfg):
        assert json.dumps(found[key]) == json.dumps(value), key  # tuples in tuples become lists


def test_keys_of_earlier_versions_are_left_out_of_a_file(write, caplog):
    cfg = load_config(write("TEST: {ANOMALY: {TEMPERATURE: 1.0}}\nSEED: 3\n"))
    assert cfg.SEED == 3 and "TEMPERATURE" in caplog.text


def test_an_empty_file_is_the_defaults(write):
    assert load_config(write("")) == load_config()


REFUSED = {
    "SOLVER.STEPS": (1,),
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.WARMUP_ITERS": 5,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 1.0,
    "SOLVER.WEIGHT_DECAY_NORM": 0.5,
    "SOLVER.BIAS_LR_FACTOR": 2.0,
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TEST": 640,
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "TEST.AUG.ENABLED": True,
    "MODEL.BACKBONE.NAME": "build_vit",
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_detectron2_key_that_nothing_reads_is_refused_with_what_to_do(key):
    with pytest.raises(ValueError, match=f"{key} is .* nothing here reads it.* and [a-z]+ .*"):
        load_config("", [key, str(REFUSED[key])])


def test_every_detectron2_key_is_either_read_or_refused():
    for key, value in flat_items(get_cfg()):
        if key in KEYS and KEYS[key].rule is not FIXED:
            continue
        cfg = load_config()
        *parts, leaf = key.split(".")
        node = cfg
        for part in parts:
            node = node[part]
        node[leaf] = not value if isinstance(value, bool) else "changed"
        with pytest.raises(ValueError, match=f"{key} is .*nothing here reads it"):
            check_config(cfg)


def test_modules_of_ones_own_are_imported_before_names_are_checked(tmp_path, monkeypatch):
    (tmp_path / "my_head_for_a_test.py").write_text(
        "from anoseg_d2.modeling.heads import CLASS_HEADS, LinearHead\n"
        "CLASS_HEADS.register('upside_down')(type('Mine', (LinearHead,), {}))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    asked = ["MODEL.HEAD.NAME", "upside_down"]
    with pytest.raises(ValueError, match="HEAD.NAME"):
        load_config("", asked)
    with pytest.raises(ImportError, match="no_such_module"):
        load_config("", ["MODEL.IMPORTS", "['no_such_module']"])
    try:
        cfg = load_config("", [*asked, "MODEL.IMPORTS", "['my_head_for_a_test']"])
        assert cfg.MODEL.HEAD.NAME == "upside_down"
        cfg = load_config("", asked, imports=["my_head_for_a_test"])
        assert cfg.MODEL.IMPORTS == ["my_head_for_a_test"]
    finally:
        CLASS_HEADS.remove("upside_down")
