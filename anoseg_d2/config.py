"""Define every config key once, with its default, rule and meaning.

docs/config.md is made from `KEYS`. Options that a class holds, such as those of adapters, are
declared there (`utils/options.py`), and their keys are taken from its fields.
"""

import functools
import logging
from collections.abc import Callable, Iterable

from anoseg_d2.data.augmentation import Augmentation
from anoseg_d2.data.cut_paste.options import CutPasteOptions, ObjectOptions, read_options
from anoseg_d2.modeling.criterion import CriterionOptions
from anoseg_d2.modeling.heads import CLASS_HEADS, ArcFaceOptions, LogitNormOptions
from anoseg_d2.modeling.inference import InferenceOptions
from anoseg_d2.modeling.lora import LoraOptions
from anoseg_d2.modeling.patch_heads import PATCH_HEADS, RatioOptions
from anoseg_d2.modeling.scores import available_scores
from anoseg_d2.modeling.vit import EoMTOptions, VitOptions, check_image_size
from anoseg_d2.utils.cli import import_modules
from anoseg_d2.utils.config_files import (
    find_config,
    flat_items,
    override_pairs,
    read_yaml,
    require_key,
    set_value,
)
from anoseg_d2.utils.constants import PIXEL_MEAN, PIXEL_STD
from anoseg_d2.utils.options import Key, keys_of, options_of
from anoseg_d2.utils.ranges import Rule, flag, integer, number, one_of, registered, sequence, text

__all__ = ["CHECKS", "KEYS", "add_anoseg_config", "changed_keys", "check_config", "load_config"]

logger = logging.getLogger(__name__)

# Keys of earlier versions; a run's config.yaml holds all keys of its time.
GONE = frozenset({"TEST.ANOMALY.POSTPROCESS", "TEST.ANOMALY.TEMPERATURE", "TEST.SEM_SEG_MAPS"})
# Where a config keeps what it said when it was checked, next to yacs' own note that it is frozen.
_CHECKED = "__checked__"


def load_config(
    config_file: str = "", overrides: Iterable | None = None, imports: Iterable[str] = ()
):
    """Read defaults, a yaml file with its bases, and `KEY VALUE` overrides; check all of it.

    Args:
        config_file: path of a yaml file, or the name of a shipped config, such as "arcface_lora"
            or "camvid/arcface"; empty for the defaults.
        overrides: keys and values in turn.
        imports: modules to import as well as MODEL.IMPORTS.
    Returns:
        detectron2 config node, not frozen.
    Raises:
        FileNotFoundError: there is no such file, and no shipped config of that name.
        ValueError: an unknown key (with the nearest known one), a value of the wrong type or out
            of its range, a detectron2 key that nothing reads, or broken yaml.
        ImportError: one of the modules is missing.
    """
    from detectron2.config import get_cfg

    import_modules(imports)  # they may add keys of their own to `KEYS`
    cfg = get_cfg()
    add_anoseg_config(cfg)
    known = [key for key, _ in flat_items(cfg)]  # after the imports, which may add some
    file = find_config(config_file) if config_file else None
    for key, value in flat_items(read_yaml(file)) if file else ():
        if key in GONE:  # config.yaml of an older run, which is evaluated or continued
            logger.warning("%s has %s, which is gone: it is left out", file, key)
            continue
        require_key(key, known, f" in {file}")
        set_value(cfg, key, value)
    for key, value in override_pairs(overrides or []):
        require_key(key, known)
        set_value(cfg, key, value)
    cfg.MODEL.IMPORTS = list(dict.fromkeys([*imports, *cfg.MODEL.IMPORTS]))
    check_config(cfg)
    return cfg


def add_anoseg_config(cfg) -> None:
    """Add the project's keys to detectron2's defaults, in place.

    Args:
        cfg: node from `detectron2.config.get_cfg()`.
    """
    import torch

    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    for key, entry in KEYS.items():
        if entry.default is THEIRS:
            continue
        *parts, leaf = key.split(".")
        node = cfg
        for part in parts:
            node = node.setdefault(part, type(cfg)())
        # Each config gets a list of its own, so that changing one changes no default.
        node[leaf] = list(entry.default) if isinstance(entry.default, list) else entry.default


def check_config(cfg) -> None:
    """Import MODEL.IMPORTS, then check every key before anything is built from it.

    A config that was checked before, also by the process that it was pickled in, and has not
    changed since is not checked again.

    Raises:
        ValueError: names the key, its value and its range, or the key to use instead.
        ImportError: a module of MODEL.IMPORTS is missing.
    """
    # These modules may add names to registries, and checks of their own.
    KEYS["MODEL.IMPORTS"].rule.check("MODEL.IMPORTS", cfg.MODEL.IMPORTS)
    import_modules(cfg.MODEL.IMPORTS)
    if cfg.__dict__.get(_CHECKED) == repr(cfg):
        return
    _refuse_unread_keys(cfg)
    # Each key by itself first: what several must agree on takes each of them for granted.
    for key, entry in KEYS.items():
        entry.rule.check(key, _get(cfg, key))
    for check in CHECKS:
        check(cfg)
    cfg.__dict__[_CHECKED] = repr(cfg)


def _refuse_unread_keys(cfg) -> None:
    """Refuse detectron2 keys that were changed although nothing here reads them."""
    defaults, theirs = _defaults()
    for key in theirs:
        if key in KEYS and KEYS[key].rule is not FIXED:
            continue
        value, default = _get(cfg, key), defaults[key]
        if _lists(value) != _lists(default):
            raise ValueError(
                f"{key} is {value!r}, but nothing here reads it: leave it at {default!r}, and see "
                "docs/config.md for the keys that are read"
            )


def changed_keys(cfg) -> dict[str, object]:
    """Return the keys whose values differ from the defaults, and user-defined keys."""
    defaults, _ = _defaults()
    return {
        key: value
        for key, value in flat_items(cfg)
        if key not in defaults or _lists(value) != _lists(defaults[key])
    }


def _lists(value):
    """Return tuples as lists, which is what they become in a config file."""
    return [_lists(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _get(cfg, key: str):
    return functools.reduce(lambda node, part: node[part], key.split("."), cfg)


@functools.cache
def _defaults() -> tuple[dict[str, object], tuple[str, ...]]:
    """Return every key with its default, and the keys that are detectron2's."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    theirs = tuple(key for key, _ in flat_items(cfg))
    add_anoseg_config(cfg)
    return dict(flat_items(cfg)), theirs


def _is_device(value) -> bool:
    import torch

    try:
        device = torch.device(str(value))
    except RuntimeError:
        return False
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    return device.type in ("cpu", "mps", "xpu")


def _devices() -> str:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cpu, or cuda ({count} found here), cuda:0, ..."


def _architectures() -> list[str]:
    # detectron2's registry answers an unknown name with a KeyError that lists nothing.
    from detectron2.modeling import META_ARCH_REGISTRY

    return [name for name, _ in META_ARCH_REGISTRY]


def _is_expected_result(value) -> bool:
    rules = (text(), text(), number(), number())
    right = isinstance(value, (list, tuple)) and len(value) == len(rules)
    return right and all(rule.allows(v) for rule, v in zip(rules, value, strict=True))


def _check_network(cfg) -> None:
    """Check what the ViT, the crop and the adapters must agree on."""
    # Before anything is built: a ViT takes seconds, and fails with words of its own.
    vit = options_of(cfg, "MODEL.EOMT", VitOptions)
    check_image_size(cfg.INPUT.CROP_SIZE, vit.patch_size)
    if vit.shape.depth < cfg.MODEL.EOMT.NUM_BLOCKS:
        raise ValueError(
            f"MODEL.EOMT.NUM_BLOCKS is {cfg.MODEL.EOMT.NUM_BLOCKS}; the ViT has {vit.shape.depth} "
            "blocks"
        )
    options_of(cfg, "MODEL.LORA", LoraOptions).check_fits(vit.shape.depth, vit.shape.width)
    if cfg.MODEL.RATIO.ALONE and cfg.MODEL.LORA.ENABLED:
        raise ValueError(
            "MODEL.RATIO.ALONE is True and so is MODEL.LORA.ENABLED, but nothing except the ratio "
            "head trains then; leave LORA off: adapters of the checkpoint are merged as it is read"
        )


def _check_options(cfg) -> None:
    """Check what the options of a class must agree on, by building it, and names of scores."""
    options_of(cfg, "MODEL.CRITERION", CriterionOptions)
    options_of(cfg, "INPUT.CUT_PASTE", ObjectOptions)
    read_options(cfg)
    # Maps of patch tokens come with the weights, so a config cannot know which are missing.
    # Whether the model has the anomaly class may only be known from its checkpoint.
    available_scores(True, cfg.TEST.ANOMALY.SCORES, PATCH_HEADS)


def _check_solver(cfg) -> None:
    """Check what the lengths and sizes of a run must agree on."""
    solver, batch = cfg.SOLVER, cfg.SOLVER.IMS_PER_BATCH
    if solver.WARMUP_NEW + solver.WARMUP_VIT > 1:
        raise ValueError(
            f"SOLVER.WARMUP_NEW {solver.WARMUP_NEW} and SOLVER.WARMUP_VIT {solver.WARMUP_VIT} "
            "are fractions of one run: together they must be at most 1"
        )
    for key in ("ACCUMULATION", "REFERENCE_WORLD_SIZE"):
        if solver[key] and batch % solver[key]:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH {batch} is not divisible by SOLVER.{key} {solver[key]}"
            )
    if solver.BEST_FIGURE and not cfg.TEST.EVAL_PERIOD:
        raise ValueError(
            f"SOLVER.BEST_FIGURE is {solver.BEST_FIGURE!r}, but TEST.EVAL_PERIOD is 0: nothing "
            "is evaluated before the end of the run; set the period in steps"
        )
    if solver.PATIENCE and not solver.BEST_FIGURE:
        raise ValueError(f"SOLVER.PATIENCE is {solver.PATIENCE}, but SOLVER.BEST_FIGURE is empty")


# What several keys must agree on. A module of MODEL.IMPORTS may append a function of its own.
CHECKS: list[Callable[[object], None]] = [_check_network, _check_options, _check_solver]

THEIRS = object()  # a key of detectron2 that keeps its default
FLAG = flag()
FIXED = Rule("fixed", lambda value: True)  # other values are refused: nothing reads the key
_FRACTION = number(0, 1)
_NOT_NEGATIVE = number(0)
_POSITIVE = number(0, above=True)
_ARCHITECTURE = Rule(
    lambda: "one of " + ", ".join(_architectures()), lambda value: value in _architectures()
)
_EXPECTED = Rule("[dataset, figure, value, tolerance]", _is_expected_result)

# fmt: off
KEYS: dict[str, Key] = {
    "MODEL.META_ARCHITECTURE": Key("EoMT", _ARCHITECTURE,
        "The network, by its name in detectron2's registry"),
    "MODEL.PIXEL_MEAN": Key(list(PIXEL_MEAN), sequence(number(0, 255), (3,)),
        "Mean of the training images, RGB in 0..255; subtracted once, inside the model"),
    "MODEL.PIXEL_STD": Key(list(PIXEL_STD), sequence(number(0, 255, above=True), (3,)),
        "Standard deviation of the training images, RGB in 0..255"),
    "MODEL.IMPORTS": Key([], sequence(text(empty=False)),
        "Python modules that register heads or scores of your own"),
    "MODEL.DELTA_BASE": Key("", text(),
        "Weights that the encoder of MODEL.WEIGHTS is a difference to (EoMT's DINOv3 releases)"),
    "MODEL.ALLOW_UNUSED_WEIGHTS": Key([], sequence(text(empty=False)),
        'Names or prefixes of tensors that may stay unused in a checkpoint, such as "class_head"'),
    "MODEL.ALLOW_UNTRAINED": Key(False, FLAG,
        "Also evaluate with untrained tensors: missing in the checkpoint, or converted"),
    "MODEL.DEVICE": Key(THEIRS, Rule(_devices, _is_device), "Device of the model"),
    "MODEL.WEIGHTS": Key(THEIRS, text(),
        "Checkpoint to start from or to evaluate: path, folder, hf://, timm://, dinov2, road-s"),
    **keys_of("MODEL.EOMT", VitOptions),
    **keys_of("MODEL.EOMT", EoMTOptions),
    "MODEL.HEAD.NAME": Key("linear", registered(CLASS_HEADS),
        "Class head; your own is registered by a module of MODEL.IMPORTS"),
    **keys_of("MODEL.HEAD.LOGIT_NORM", LogitNormOptions),
    **keys_of("MODEL.HEAD.ARCFACE", ArcFaceOptions),
    **keys_of("MODEL.CRITERION", CriterionOptions),
    **keys_of("MODEL.LORA", LoraOptions),
    **keys_of("MODEL.RATIO", RatioOptions),
    "DATASETS.CARDS": Key([], sequence(text(empty=False)),
        "Dataset cards to register: yaml files, or names of shipped cards"),
    "DATASETS.ALLOW_COUNT_MISMATCH": Key(False, FLAG,
        "Accept datasets whose number of images is not the expected one"),
    "DATASETS.TRAIN": Key(THEIRS, sequence(text(empty=False)),
        "Datasets to train on; with several, all of their images"),
    "DATASETS.TEST": Key(THEIRS, sequence(text(empty=False)),
        "Datasets to evaluate on, one after the other"),
    "DATALOADER.NUM_WORKERS": Key(THEIRS, integer(0, 1000), "Processes that load images, per rank"),
    "INPUT.FORMAT": Key("RGB", FIXED, "Order of the channels"),
    "INPUT.MIN_SIZE_TEST": Key(0, FIXED,
        "Detectron2's predictor must not resize: images are scaled with their windows"),
    **keys_of("INPUT", Augmentation),
    "INPUT.CUT_PASTE.ENABLED": Key(False, FLAG, "Paste unknown objects while loading"),
    **keys_of("INPUT.CUT_PASTE", ObjectOptions),
    **keys_of("INPUT.CUT_PASTE", CutPasteOptions),
    "INPUT.CUT_PASTE.CONTROL_OBJECTS": Key(0, integer(0, 100),
        "At most this many known COCO objects under their own label"),
    "INPUT.CUT_PASTE.CONTROL_LEAST": Key(0, integer(0, 100),
        "At least this many known COCO objects"),
    "INPUT.CUT_PASTE.CLOSED_SET_OBJECTS": Key(0, integer(0, 100),
        "At most this many segments of known things, cut from other training frames by their "
        "labels"),
    "INPUT.CUT_PASTE.CLOSED_SET_LEAST": Key(0, integer(0, 100),
        "At least this many of these segments"),
    "INPUT.CUT_PASTE.SCALE_MODE": Key("uniform", one_of("uniform", "perspective"),
        "What SCALE applies to: uniform, the size in the photograph; perspective, a size by the "
        "row"),
    "SOLVER.OPTIMIZER": Key("ADAMW", one_of("ADAMW"), "The optimiser"),
    "SOLVER.BASE_LR": Key(1e-4, number(0, 1000),
        "Peak learning rate of new parameters and of the last ViT block"),
    "SOLVER.WEIGHT_DECAY": Key(0.05, number(0, 1000),
        "Weight decay of every parameter except adapters"),
    "SOLVER.LAYER_DECAY": Key(0.8, number(0, 1, above=True),
        "Factor on the learning rate for each step from the last ViT block to the first"),
    "SOLVER.DECAY_QUERY_BLOCKS": Key(True, FLAG,
        "False: the blocks that see the queries keep BASE_LR"),
    "SOLVER.WARMUP_NEW": Key(0.025, _FRACTION,
        "Warm-up of new parameters, as a fraction of MAX_ITER"),
    "SOLVER.WARMUP_VIT": Key(0.05, _FRACTION,
        "Warm-up of the ViT, after that of new parameters, as a fraction of MAX_ITER"),
    "SOLVER.POLY_POWER": Key(0.9, _NOT_NEGATIVE,
        "The learning rate then falls as (1 - progress)^power"),
    "SOLVER.ACCUMULATION": Key(1, integer(1),
        "Micro-batches per step; IMS_PER_BATCH stays the whole batch"),
    "SOLVER.KEEP_CHECKPOINTS": Key(3, integer(0, also="0: all of them"),
        "Newest periodic checkpoints that stay"),
    "SOLVER.BEST_FIGURE": Key("", text(),
        "Also keep model_best.pth by this evaluated figure, such as "
        '"road_anomaly/anomaly/rba.auprc"'),
    "SOLVER.PATIENCE": Key(0, integer(0, also="0: never"),
        "End the run after as many evaluations in a row without a better BEST_FIGURE"),
    "SOLVER.MAX_ITER": Key(THEIRS, integer(1), "Steps of the run"),
    "SOLVER.IMS_PER_BATCH": Key(THEIRS, integer(1, 4096),
        "Images of a step, over all ranks and micro-batches"),
    "SOLVER.REFERENCE_WORLD_SIZE": Key(THEIRS, integer(0, also="0: the config is not scaled"),
        "Number of ranks that the config is written for; with others, batch, steps and rate scale"),
    "SOLVER.CHECKPOINT_PERIOD": Key(THEIRS, integer(1), "Steps between two checkpoints"),
    "SOLVER.CLIP_GRADIENTS.ENABLED": Key(True, FLAG, "Clip the gradient of a step"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": Key("full_model", FIXED,
        "What is clipped: one norm over every parameter"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": Key(0.01, _POSITIVE, "Largest norm of a step's gradient"),
    "SOLVER.AMP.PRECISION": Key("auto", one_of("auto", "bf16", "fp16"),
        "Kind of mixed precision; auto: bf16 where the device has it, fp16 on older GPUs, else "
        "none"),
    "SOLVER.AMP.ENABLED": Key(THEIRS, FLAG,
        "Train in mixed precision, of the kind that SOLVER.AMP.PRECISION names"),
    "SOLVER.EMA.ENABLED": Key(False, FLAG,
        "Keep an averaged copy and evaluate it too: model_ema.pth"),
    "SOLVER.EMA.DECAY": Key(0.999, _FRACTION, "Weight of the average so far in each step"),
    **keys_of("", InferenceOptions),
    "TEST.AMP": Key(False, FLAG,
        "Run the network in the mixed precision that SOLVER.AMP.PRECISION names; scores stay "
        "float32"),
    "TEST.EVAL_PERIOD": Key(THEIRS, integer(0, also="0: only after the last step"),
        "Steps between two evaluations within a training"),
    "TEST.EXPECTED_RESULTS": Key(THEIRS, sequence(_EXPECTED),
        "Figures that the run must reach, checked after its last evaluation"),
    "TEST.ANOMALY.EXACT": Key(False, FLAG,
        "Keep the score of every pixel in memory, instead of counting with certified bounds"),
    "TEST.ANOMALY.COMPONENTS": Key(True, FLAG,
        "Also component metrics (a second pass over the scores)"),
    "TEST.ANOMALY.REPORT_IMAGES": Key(True, FLAG, "Keep a few images for the report page"),
    "TRACKER": Key("none", one_of("none", "wandb", "mlflow"),
        "Tracker that gets the same figures and pictures as TensorBoard; must be installed"),
    "OUTPUT_DIR": Key(THEIRS, text(empty=False), "Folder of everything that the run writes"),
    "SEED": Key(THEIRS, integer(-1, 2**31 - 1, "-1: a new one for every run"),
        "Seed of everything random"),
    "VERSION": Key(THEIRS, one_of(2), "Version of detectron2's config format"),
    "CUDNN_BENCHMARK": Key(THEIRS, FLAG, "Let cuDNN search for the fastest kernels in training"),
}
# fmt: on
