"""Every configuration key of the project: its default, its meaning and its range.

The comment above a key or behind it is its meaning in docs/config.md; keys of detectron2 that are
read here have theirs in `RANGES`.

Neither torch nor detectron2 is imported before a config is built, so that a misspelt key is
answered at once.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from anoseg_d2.utils.cli import import_modules
from anoseg_d2.utils.config_files import (
    assigned_keys,
    find_config,
    flat_items,
    override_pairs,
    read_yaml,
    require_key,
    set_value,
)
from anoseg_d2.utils.constants import (
    ARCFACE_SCALE,
    NO_OBJECT_WEIGHT,
    PIXEL_MEAN,
    PIXEL_STD,
    VIT_SIZES,
)
from anoseg_d2.utils.ranges import Rule, integer, number, one_of, sequence, text

__all__ = [
    "CHECKS",
    "RANGES",
    "add_anoseg_config",
    "changed_keys",
    "check_config",
    "check_key_names",
    "load_config",
]

# Patches of a window: attention compares each with each, so this needs about 100 GiB already.
MAX_TOKENS = 65_536


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

    cfg = get_cfg()
    add_anoseg_config(cfg)
    known = [key for key, _ in flat_items(cfg)]
    for key, value in _given_items(config_file, overrides):
        require_key(key, known)
        set_value(cfg, key, value)
    cfg.MODEL.IMPORTS = list(dict.fromkeys([*imports, *cfg.MODEL.IMPORTS]))
    check_config(cfg)
    return cfg


def check_key_names(config_file: str = "", overrides: Iterable | None = None) -> None:
    """Refuse a misspelt key or a missing file at once: takes no torch, no detectron2.

    Raises:
        FileNotFoundError, ValueError: as `load_config`.
    """
    found = importlib.util.find_spec("detectron2")
    if found is None:
        return  # importing it will say so
    defaults = Path(found.origin).parent / "config" / "defaults.py"
    cfg = assigned_keys(defaults.read_text(encoding="utf-8"), "_C")
    _add_keys(cfg)
    known = [key for key, _ in flat_items(cfg)]
    for key, _ in _given_items(config_file, overrides):
        require_key(key, known)


def _given_items(config_file: str, overrides: Iterable | None) -> Iterator[tuple[str, object]]:
    """Yield the keys and values of a file and then of the command line."""
    if config_file:
        yield from flat_items(read_yaml(find_config(config_file)))
    yield from override_pairs(overrides or [])


def check_config(cfg) -> None:
    """Import MODEL.IMPORTS, then check every key before anything is built from it.

    Raises:
        ValueError: names the key, its value and its range, or the key to use instead.
        ImportError: a module of MODEL.IMPORTS is missing.
    """
    RANGES["MODEL.IMPORTS"].check("MODEL.IMPORTS", cfg.MODEL.IMPORTS)
    import_modules(cfg.MODEL.IMPORTS)
    defaults = _defaults()
    for key, value in flat_items(cfg):
        if key not in defaults:
            continue  # a key of the user's own
        default, is_read = defaults[key], key in RANGES or key in READ_FLAGS
        if isinstance(default, bool) and is_read and not isinstance(value, bool):
            raise ValueError(f"{key} is {value!r}; it must be True or False")
        if key in _detectron2_keys() and not is_read and _lists(value) != _lists(default):
            raise ValueError(
                f"{key} is {value!r}, but nothing here reads it: leave it at {default!r} and "
                f"{_instead(key)}"
            )
    for key, rule in RANGES.items():
        rule.check(key, _get(cfg, key))
    _check_together(cfg)


def changed_keys(cfg) -> dict[str, object]:
    """Return the keys whose values differ from the defaults, and keys of the user's own."""
    defaults = _defaults()
    return {
        key: value
        for key, value in flat_items(cfg)
        if key not in defaults or _lists(value) != _lists(defaults[key])
    }


def _lists(value):
    """Tuples as lists, which is what they become in a config file."""
    return [_lists(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _get(cfg, key: str):
    return functools.reduce(lambda node, part: node[part], key.split("."), cfg)


@functools.cache
def _detectron2_keys() -> frozenset[str]:
    from detectron2.config import get_cfg

    return frozenset(key for key, _ in flat_items(get_cfg()))


@functools.cache
def _defaults() -> dict[str, object]:
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_anoseg_config(cfg)
    return dict(flat_items(cfg))


def _check_together(cfg) -> None:
    """Check what several keys must agree on."""
    node, size = cfg.MODEL.EOMT, VIT_SIZES[cfg.MODEL.EOMT.SIZE]
    depth, width = node.DEPTH or size.depth, node.WIDTH or size.width
    heads = node.HEADS or size.heads
    criterion, lora, solver = cfg.MODEL.CRITERION, cfg.MODEL.LORA, cfg.SOLVER
    # Rotary positions turn pairs of channels along two axes, so a head has a multiple of four.
    step = 4 * heads if node.BACKBONE == "dinov3" else heads
    if width % step:
        raise ValueError(
            f"MODEL.EOMT.WIDTH is {width}; with MODEL.EOMT.HEADS {heads} it must be a multiple of "
            f"{step}"
        )
    if node.SIZE == "G" and node.BACKBONE == "dinov3":
        raise ValueError("MODEL.EOMT.SIZE is 'G'; with MODEL.EOMT.BACKBONE dinov3: S, B or L")
    if any(side % node.PATCH_SIZE for side in cfg.INPUT.CROP_SIZE):
        near = [max(1, round(s / node.PATCH_SIZE)) * node.PATCH_SIZE for s in cfg.INPUT.CROP_SIZE]
        raise ValueError(
            f"INPUT.CROP_SIZE {tuple(cfg.INPUT.CROP_SIZE)} is not divisible by "
            f"MODEL.EOMT.PATCH_SIZE {node.PATCH_SIZE}; nearest: {tuple(near)}"
        )
    tokens = math.prod(side // node.PATCH_SIZE for side in cfg.INPUT.CROP_SIZE)
    if tokens > MAX_TOKENS:
        raise ValueError(
            f"INPUT.CROP_SIZE {tuple(cfg.INPUT.CROP_SIZE)} with MODEL.EOMT.PATCH_SIZE "
            f"{node.PATCH_SIZE} has {tokens:,} patches; at most {MAX_TOKENS:,}"
        )
    if depth < node.NUM_BLOCKS:
        raise ValueError(f"MODEL.EOMT.NUM_BLOCKS is {node.NUM_BLOCKS}; the ViT has {depth} blocks")
    if width < lora.RANK:
        raise ValueError(f"MODEL.LORA.RANK is {lora.RANK}; the ViT's width allows 1..{width}")
    if lora.BLOCKS and not lora.BLOCKS[0] <= lora.BLOCKS[-1] < depth:
        raise ValueError(
            f"MODEL.LORA.BLOCKS is {list(lora.BLOCKS)}; it must be [first, last] with "
            f"0 <= first <= last <= {depth - 1}, or empty for all blocks"
        )
    if cfg.MODEL.RATIO.ALONE and lora.ENABLED:
        raise ValueError(
            "MODEL.RATIO.ALONE is True and so is MODEL.LORA.ENABLED, but nothing except the ratio "
            "head trains then; leave LORA off: adapters of the checkpoint are merged as it is read"
        )
    if criterion.OUTLIER_UPPER > criterion.OUTLIER_LOWER:
        raise ValueError(
            f"MODEL.CRITERION.OUTLIER_UPPER is {criterion.OUTLIER_UPPER}; it must be at most "
            f"OUTLIER_LOWER, {criterion.OUTLIER_LOWER}"
        )
    if solver.WARMUP_NEW + solver.WARMUP_VIT > 1:
        raise ValueError(
            f"SOLVER.WARMUP_NEW {solver.WARMUP_NEW} and SOLVER.WARMUP_VIT {solver.WARMUP_VIT} "
            "are fractions of one run: together they must be at most 1"
        )
    if solver.IMS_PER_BATCH % solver.ACCUMULATION:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} is not divisible by "
            f"SOLVER.ACCUMULATION {solver.ACCUMULATION}"
        )
    if solver.REFERENCE_WORLD_SIZE and solver.IMS_PER_BATCH % solver.REFERENCE_WORLD_SIZE:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} is not divisible by "
            f"SOLVER.REFERENCE_WORLD_SIZE {solver.REFERENCE_WORLD_SIZE}"
        )
    if cfg.SOLVER.BEST_FIGURE and not cfg.TEST.EVAL_PERIOD:
        raise ValueError(
            f"SOLVER.BEST_FIGURE is {cfg.SOLVER.BEST_FIGURE!r}, but TEST.EVAL_PERIOD is 0: nothing "
            "is evaluated before the end of the run; set the period in steps"
        )
    for check in CHECKS:
        check(cfg)


def add_anoseg_config(cfg) -> None:
    """Add the project's keys to detectron2's defaults, in place.

    Args:
        cfg: node from `detectron2.config.get_cfg()`.
    """
    import torch

    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    _add_keys(cfg)


def _add_keys(cfg) -> None:
    # Tracker that gets figures and pictures as well as TensorBoard, if it is installed
    cfg.TRACKER = "none"
    cfg.MODEL.META_ARCHITECTURE = "EoMT"  # the network, by its name in detectron2's registry
    # Mean of the training images, RGB in 0..255; subtracted once, inside the model
    cfg.MODEL.PIXEL_MEAN = list(PIXEL_MEAN)
    cfg.MODEL.PIXEL_STD = list(PIXEL_STD)  # their standard deviation, likewise
    cfg.MODEL.IMPORTS = []  # Python modules that register heads, scores or filters of your own
    _add_model_keys(cfg)
    _add_head_keys(cfg)
    _add_criterion_keys(cfg)
    _add_lora_keys(cfg)
    _add_ratio_keys(cfg)
    _add_data_keys(cfg)
    _add_solver_keys(cfg)
    _add_test_keys(cfg)


def _add_model_keys(cfg) -> None:
    node = cfg.MODEL.EOMT = type(cfg)()
    node.BACKBONE = "dinov2"  # kind of ViT: dinov2, or dinov3 (rotary positions)
    node.SIZE = "L"  # S, B, L, G: ViT small to giant (G: only DINOv2); query blocks follow it
    node.DEPTH = 0  # blocks of the ViT; a custom ViT sets DEPTH, WIDTH and HEADS
    node.WIDTH = 0  # channels of the ViT
    node.HEADS = 0  # attention heads of the ViT
    node.PATCH_SIZE = 16  # side of a patch, pixels; 14-pixel weights are resampled when loaded
    # Register tokens: DINOv3 and DINOv2 with registers have 4, DINOv2 without has 0
    node.NUM_REGISTERS = 4
    node.NUM_CLASSES = 19  # K, the number of known classes
    node.ANOMALY_CLASS = False  # learn the anomaly as class K, from pasted objects
    node.NUM_QUERIES = 100  # learned queries, each of which predicts one mask and its class
    node.NUM_BLOCKS = 0  # last ViT blocks that see the queries; 0: by SIZE (S, B 3; L 4; G 5)
    node.DROP_PATH = 0.0  # stochastic depth of the ViT
    # Epsilon of the ViT's layer norms; 0: the backbone's own (1e-6, DINOv3 1e-5)
    node.NORM_EPS = 0.0
    # Queries attend to their own masks in training, less and less within a run; off in fine-tuning
    node.MASKED_ATTENTION = True
    node.ANNEALING_POWER = 0.9  # a mask is kept with probability (1 - progress)^power
    # What is not kept for the backward pass: none; heads (predictions: half the memory, no slower);
    # all (ViT blocks too, which are computed again: least memory, slower)
    node.RECOMPUTE = "heads"
    node.COMPILE = False  # compile the ViT blocks with torch.compile
    # Weights that the encoder of MODEL.WEIGHTS is a difference to (EoMT's DINOv3 releases)
    cfg.MODEL.DELTA_BASE = ""
    # Names or prefixes of tensors that may stay unused in a checkpoint, such as "class_head"
    cfg.MODEL.ALLOW_UNUSED_WEIGHTS = []
    # Evaluate also with tensors that the checkpoint lacks, or that were converted, not trained
    cfg.MODEL.ALLOW_UNTRAINED = False


def _add_head_keys(cfg) -> None:
    node = cfg.MODEL.HEAD = type(cfg)()
    node.NAME = "linear"  # class head; your own is registered by a module of MODEL.IMPORTS
    node.LOGIT_NORM = type(cfg)()
    node.LOGIT_NORM.TAU = 0.04  # temperature that normalised logits are divided by
    # What is normalised; logits: the vector of logits (Wei et al. 2022); cosine: features and rows
    node.LOGIT_NORM.FORM = "logits"
    # Logits at inference; trained: normalised as in training; raw: W x + b
    node.LOGIT_NORM.INFERENCE = "trained"
    node.ARCFACE = type(cfg)()
    node.ARCFACE.SCALE = ARCFACE_SCALE  # factor on the cosines
    node.ARCFACE.LEARN_SCALE = False  # train that factor too
    node.ARCFACE.MARGIN = 0.5  # added to the angle of the true class, radians; known classes only
    node.ARCFACE.MARGIN_RAMP = 0.1  # fraction of the run over which the margin grows; 0: none


def _add_criterion_keys(cfg) -> None:
    node = cfg.MODEL.CRITERION = type(cfg)()
    node.MASK_WEIGHT = 5.0  # weight of the binary cross entropy of masks
    node.DICE_WEIGHT = 5.0  # weight of the dice loss of masks
    node.CLASS_WEIGHT = 2.0  # weight of the cross entropy of classes
    node.NO_OBJECT_WEIGHT = NO_OBJECT_WEIGHT  # weight of the no-object class in it
    node.MATCH_MASK_COST = 5.0  # weight of the mask loss in matching queries with classes
    node.MATCH_DICE_COST = 5.0  # weight of the dice loss in matching
    node.MATCH_CLASS_COST = 2.0  # weight of the class probability in matching
    node.MATCH_POINTS = 12544  # points of an image at which masks are matched
    node.LOSS_POINTS = 12544  # points of a matched mask at which the loss is taken
    # LOSS_POINTS are chosen from this many times as many random ones
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_RATIO = 0.75  # fraction of LOSS_POINTS where the mask is least certain
    # What void pixels do; negative: they push every mask down; exclude: they have no loss
    node.VOID = "negative"
    node.OUTLIER_WEIGHT = 0.0  # weight of RbA's hinge on pasted and known pixels; 0: none
    node.OUTLIER_UPPER = -0.7  # the hinge pushes the RbA score of known pixels below this
    node.OUTLIER_LOWER = -0.1  # the hinge pushes the RbA score of pasted pixels above this


def _add_lora_keys(cfg) -> None:
    node = cfg.MODEL.LORA = type(cfg)()
    node.ENABLED = False  # freeze the ViT and train low-rank adapters in it
    node.TARGETS = ["q", "k", "v", "proj", "fc1", "fc2"]  # the layers that get adapters
    node.RANK = 8  # rank of an adapter
    node.ALPHA = 16.0  # an adapter's output is multiplied by ALPHA / RANK
    node.DROPOUT = 0.1  # dropout on the input of the adapters
    node.BLOCKS = []  # [first, last] ViT block with adapters, inclusive; empty: all
    node.TRAIN_NORMS = False  # train the layer norms of the ViT too
    node.LR_FACTOR = 3.0  # learning rate of the adapters over BASE_LR


def _add_ratio_keys(cfg) -> None:
    node = cfg.MODEL.RATIO = type(cfg)()
    node.ENABLED = False  # train a head for the `ratio` score next to the rest, on pasted objects
    node.ALONE = False  # train only that head: the checkpoint it is trained on stays as it is
    node.CELLS = 4  # cells along each side of a patch, each with a score of its own
    node.THRESHOLD = 0.5  # a cell is unknown where more than this fraction of its pixels is
    node.LR_FACTOR = 10.0  # learning rate of the head over BASE_LR


def _add_data_keys(cfg) -> None:
    cfg.DATASETS.CARDS = []  # dataset cards to register: yaml files, or names of shipped cards
    # Accept another number of images than a dataset is known to have
    cfg.DATASETS.ALLOW_COUNT_MISMATCH = False
    cfg.INPUT.FORMAT = "RGB"  # order of the channels
    cfg.INPUT.MIN_SIZE_TEST = 0  # detectron2's predictor resizes nothing, because windows do
    cfg.INPUT.CROP_SIZE = (1024, 1024)  # (H, W) that the model sees, divisible by PATCH_SIZE
    cfg.INPUT.COLOR_JITTER = True  # change brightness, contrast, saturation and hue in training
    # Range of a random factor in training, on the scale that fits the image inside the crop
    cfg.INPUT.SCALE_JITTER = (0.5, 2.0)
    cfg.INPUT.FLIP = True  # mirror half of the training images
    cfg.INPUT.WINDOW_BATCH = 0  # most windows that are predicted at once, of all images
    node = cfg.INPUT.CUT_PASTE = type(cfg)()  # pasting while loading, without the offline generator
    node.ENABLED = False  # paste unknown objects while loading
    # COCO's instances_train2017.json, relative to DETECTRON2_DATASETS or absolute
    node.COCO_JSON = ""
    node.COCO_IMAGES = ""  # the folder of its photographs, likewise
    node.CUTOUTS = ""  # folder of images with an alpha channel, pasted as unknown objects
    node.TEXTURES = ""  # folder of photographs that fill random blobs
    node.STUFF_JSON = ""  # COCO's stuff_*.json: patches of surfaces out of COCO_IMAGES
    # COCO categories that are never pasted as unknown objects; empty: those that Cityscapes knows
    node.DROP_CATEGORIES = []
    node.MIN_AREA = 1000.0  # least area of a COCO object, pixels
    node.KEEP_CUT = False  # take objects that their photograph's border cuts off (the paper does)
    node.RATIO = 0.5  # fraction of the images that receive objects (the paper: 1.0)
    node.COUNT = (1, 3)  # fewest and most unknown objects of an image
    node.PARTS = 0.0  # fraction of the unknown objects of which only a random part is pasted
    node.CONTROL_OBJECTS = 0  # at most this many known COCO objects under their own label
    node.CONTROL_LEAST = 0  # at least this many known COCO objects
    # At most this many segments of known things, cut from other training frames by their labels
    node.CLOSED_SET_OBJECTS = 0
    node.CLOSED_SET_LEAST = 0  # at least this many of these segments
    node.CLOSED_SET_RAREST_FIRST = False  # paste each known class equally often
    node.SCALE = (0.5, 1.5)  # range of the factor on an object's size
    node.MAX_FRACTION = 0.4  # greatest size, as a fraction of the frame's height and width
    node.MIN_SIDE = 32  # least side of a pasted object, pixels
    node.PLACEMENT = "uniform"  # where objects are put: anywhere, or with their foot on the ground
    # What SCALE applies to: uniform, the size in the photograph; perspective, a size by the row
    node.SCALE_MODE = "uniform"
    node.PERSPECTIVE_SIDE = 0.08  # longest side at the frame's bottom, fraction of its short side
    node.PERSPECTIVE_MIN_SIDE = 8  # takes the place of MIN_SIDE in perspective, pixels
    node.FEATHER = (5.0, 0.1)  # sigma of the alpha's blur: min(first, second * sqrt(mask area)) px
    node.RIM = 2  # pixels cleaned inside an object's outline (the paper: 0)
    node.OPAQUE_CORE = False  # the eroded mask stays fully opaque, whatever the blur
    node.BLENDING = ["feather"]  # kinds of blending; of several, one is drawn for each object
    node.COLOR_JITTER = False  # change the objects' colours, as the training augmentation does
    node.BLUR = 0.0  # objects are blurred by a sigma up to this, pixels of their photograph
    node.NOISE = 0.0  # objects get noise with a deviation up to this, grey levels
    node.MAX_REDRAWS = 20  # how often an object that found no place is replaced


def _add_solver_keys(cfg) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # the optimiser
    cfg.SOLVER.BASE_LR = 1e-4  # peak learning rate of new parameters and of the last ViT block
    cfg.SOLVER.WEIGHT_DECAY = 0.05  # weight decay of every parameter except adapters
    # Factor on the learning rate for each step from the last ViT block to the first
    cfg.SOLVER.LAYER_DECAY = 0.8
    cfg.SOLVER.DECAY_QUERY_BLOCKS = True  # False: the blocks that see the queries keep BASE_LR
    cfg.SOLVER.WARMUP_NEW = 0.025  # warm-up of new parameters, as a fraction of MAX_ITER
    cfg.SOLVER.WARMUP_VIT = 0.05  # warm-up of the ViT, which begins after the first one, likewise
    cfg.SOLVER.POLY_POWER = 0.9  # the learning rate then falls as (1 - progress)^power
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True  # clip the gradient of a step
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = (
        "full_model"  # what is clipped: one norm over every parameter
    )
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01  # largest norm of a step's gradient
    cfg.SOLVER.ACCUMULATION = 1  # micro-batches per step; IMS_PER_BATCH stays the whole batch
    # Kind of mixed precision; auto: bf16 where the device has it, fp16 on older GPUs, else none
    cfg.SOLVER.AMP.PRECISION = "auto"
    cfg.SOLVER.KEEP_CHECKPOINTS = 3  # newest periodic checkpoints that stay
    # Also keep model_best.pth by this evaluated figure, such as "road_anomaly/anomaly/rba.auprc"
    cfg.SOLVER.BEST_FIGURE = ""
    cfg.SOLVER.EMA = type(cfg)()
    cfg.SOLVER.EMA.ENABLED = False  # keep an averaged copy and evaluate it too: model_ema.pth
    cfg.SOLVER.EMA.DECAY = 0.999  # weight of the average so far in each step


def _add_test_keys(cfg) -> None:
    # Queries that change no map by more than this are left out before masks are enlarged
    cfg.TEST.QUERY_TOLERANCE = 1e-4
    # Run the network in the mixed precision that SOLVER.AMP.PRECISION names; scores stay float32
    cfg.TEST.AMP = False
    cfg.TEST.WINDOW_OVERLAP = 0.0  # least overlap of neighbouring windows, fraction of a window
    cfg.TEST.FLIP = False  # average with the mirrored image: every window twice, twice the time
    # Average over these enlargements of the image; at 2 a window covers half of what it does at 1
    cfg.TEST.SCALES = (1.0,)
    # Give `sem_seg` one-hot (K, H, W), as detectron2's evaluators take it, instead of (H, W) ids
    cfg.TEST.SEM_SEG_MAPS = False
    node = cfg.TEST.ANOMALY = type(cfg)()
    # Scores to evaluate, or ensembles such as "rba+anomaly"; empty: all that the model offers
    node.SCORES = []
    node.TEMPERATURE = 1.0  # temperature of the class softmax behind msp and entropy
    # Radius, in patches, of the guided filter that draws scores to the photograph's edges; 0: none
    node.GUIDED_FILTER = 0.0
    node.POSTPROCESS = []  # registered filters of the score map, in order
    node.EXACT = False  # sort every pixel, on disk, instead of counting with certified bounds
    node.COMPONENTS = True  # also component metrics (a second pass over the scores)
    node.REPORT_IMAGES = True  # keep thumbnails for the report page


def _is_device(value) -> bool:
    import torch

    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        return False
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    return device.type in ("cpu", "mps", "xpu")


def _devices() -> str:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cpu, or cuda ({count} found here), cuda:0, ..."


def _is_expected_result(value) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return False
    names, numbers = value[:2], value[2:]
    return all(isinstance(n, str) for n in names) and all(number().allows(v) for v in numbers)


_FRACTION = number(0, 1)
_NOT_NEGATIVE = number(0)
_POSITIVE = number(0, above=True)

# What each key may be; True and False need no entry. Keys that must fit each other are checked in
# `_check_together`. The modules that hold heads and filters narrow their keys to registered names.
RANGES: dict[str, Rule] = {
    "MODEL.META_ARCHITECTURE": text(empty=False),  # which names: modeling/eomt.py
    # Device of the model
    "MODEL.DEVICE": Rule(_devices, _is_device),
    # Checkpoint to start from or to evaluate: path, folder, hf://, timm://, dinov2
    "MODEL.WEIGHTS": text(),
    "MODEL.PIXEL_MEAN": sequence(number(0, 255), (3,)),
    "MODEL.PIXEL_STD": sequence(number(0, 255, above=True), (3,)),
    "MODEL.IMPORTS": sequence(text(empty=False)),
    "MODEL.DELTA_BASE": text(),
    "MODEL.ALLOW_UNUSED_WEIGHTS": sequence(text(empty=False)),
    "MODEL.EOMT.BACKBONE": one_of("dinov2", "dinov3"),
    "MODEL.EOMT.SIZE": one_of("S", "B", "L", "G"),
    "MODEL.EOMT.DEPTH": integer(0, 100, "0: by SIZE"),
    "MODEL.EOMT.WIDTH": integer(0, 8192, "0: by SIZE"),
    "MODEL.EOMT.HEADS": integer(0, 1000, "0: by SIZE"),
    "MODEL.EOMT.PATCH_SIZE": integer(1, 128),
    "MODEL.EOMT.NUM_REGISTERS": integer(0, 1000),
    "MODEL.EOMT.NUM_CLASSES": integer(1, 253),  # labels are bytes: anomaly and void follow
    "MODEL.EOMT.NUM_QUERIES": integer(1, 2000),
    "MODEL.EOMT.NUM_BLOCKS": integer(0, 100, "0: by SIZE"),
    "MODEL.EOMT.DROP_PATH": number(0, 0.99),
    "MODEL.EOMT.NORM_EPS": _FRACTION,
    "MODEL.EOMT.ANNEALING_POWER": _POSITIVE,
    "MODEL.EOMT.RECOMPUTE": one_of("none", "heads", "all"),
    "MODEL.HEAD.NAME": text(empty=False),  # which names: modeling/heads.py
    "MODEL.HEAD.LOGIT_NORM.TAU": _POSITIVE,
    "MODEL.HEAD.LOGIT_NORM.FORM": one_of("logits", "cosine"),
    "MODEL.HEAD.LOGIT_NORM.INFERENCE": one_of("trained", "raw"),
    "MODEL.HEAD.ARCFACE.SCALE": _POSITIVE,
    "MODEL.HEAD.ARCFACE.MARGIN": number(0, 3.14),
    "MODEL.HEAD.ARCFACE.MARGIN_RAMP": _FRACTION,
    "MODEL.CRITERION.MASK_WEIGHT": _NOT_NEGATIVE,
    "MODEL.CRITERION.DICE_WEIGHT": _NOT_NEGATIVE,
    "MODEL.CRITERION.CLASS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.CRITERION.NO_OBJECT_WEIGHT": _NOT_NEGATIVE,
    "MODEL.CRITERION.MATCH_MASK_COST": _NOT_NEGATIVE,
    "MODEL.CRITERION.MATCH_DICE_COST": _NOT_NEGATIVE,
    "MODEL.CRITERION.MATCH_CLASS_COST": _NOT_NEGATIVE,
    "MODEL.CRITERION.MATCH_POINTS": integer(0, 10**6, "0: every pixel of the mask grid"),
    "MODEL.CRITERION.LOSS_POINTS": integer(0, 10**6, "0: every pixel of the mask grid"),
    "MODEL.CRITERION.OVERSAMPLE_RATIO": number(1, 10),
    "MODEL.CRITERION.IMPORTANCE_RATIO": _FRACTION,
    "MODEL.CRITERION.VOID": one_of("negative", "exclude"),
    "MODEL.CRITERION.OUTLIER_WEIGHT": _NOT_NEGATIVE,
    "MODEL.CRITERION.OUTLIER_UPPER": number(),
    "MODEL.CRITERION.OUTLIER_LOWER": number(),
    "MODEL.LORA.TARGETS": sequence(one_of("q", "k", "v", "proj", "fc1", "fc2")),
    "MODEL.LORA.RANK": integer(1, 100_000),
    "MODEL.LORA.ALPHA": _POSITIVE,
    "MODEL.LORA.DROPOUT": number(0, 0.99),
    "MODEL.LORA.BLOCKS": sequence(integer(0), (0, 2)),
    "MODEL.LORA.LR_FACTOR": number(0, 1000),
    "MODEL.RATIO.CELLS": integer(1, 32),
    "MODEL.RATIO.THRESHOLD": number(0, 0.99),
    "MODEL.RATIO.LR_FACTOR": number(0, 1000),
    # Datasets to train on; with several, all of their images
    "DATASETS.TRAIN": sequence(text(empty=False)),
    # Datasets to evaluate on, one after the other
    "DATASETS.TEST": sequence(text(empty=False)),
    "DATASETS.CARDS": sequence(text(empty=False)),
    # Processes that load images, per rank
    "DATALOADER.NUM_WORKERS": integer(0, 1000),
    "INPUT.CROP_SIZE": sequence(integer(1, 16_384), (2,)),
    "INPUT.SCALE_JITTER": sequence(number(0, 16, above=True), (2,), ascending=True),
    "INPUT.WINDOW_BATCH": integer(0, 10_000, "0: up to 8"),
    "INPUT.CUT_PASTE.COCO_JSON": text(),
    "INPUT.CUT_PASTE.COCO_IMAGES": text(),
    "INPUT.CUT_PASTE.CUTOUTS": text(),
    "INPUT.CUT_PASTE.TEXTURES": text(),
    "INPUT.CUT_PASTE.STUFF_JSON": text(),
    "INPUT.CUT_PASTE.PARTS": _FRACTION,
    "INPUT.CUT_PASTE.DROP_CATEGORIES": sequence(text(empty=False)),
    "INPUT.CUT_PASTE.MIN_AREA": number(0),
    "INPUT.CUT_PASTE.RATIO": _FRACTION,
    "INPUT.CUT_PASTE.COUNT": sequence(integer(0, 100), (2,), ascending=True),
    "INPUT.CUT_PASTE.CONTROL_LEAST": integer(0, 100),
    "INPUT.CUT_PASTE.CLOSED_SET_OBJECTS": integer(0, 100),
    "INPUT.CUT_PASTE.CLOSED_SET_LEAST": integer(0, 100),
    "INPUT.CUT_PASTE.SCALE": sequence(number(0, 100, above=True), (2,), ascending=True),
    "INPUT.CUT_PASTE.MAX_FRACTION": number(0, 1, above=True),
    "INPUT.CUT_PASTE.MIN_SIDE": integer(1, 16_384),
    "INPUT.CUT_PASTE.PERSPECTIVE_SIDE": number(0, 10, above=True),
    "INPUT.CUT_PASTE.PERSPECTIVE_MIN_SIDE": integer(1, 16_384),
    "INPUT.CUT_PASTE.RIM": integer(0, 100),
    "INPUT.CUT_PASTE.BLENDING": sequence(one_of("feather", "hard", "poisson")),
    "INPUT.CUT_PASTE.BLUR": number(0, 100),
    "INPUT.CUT_PASTE.NOISE": number(0, 100),
    "INPUT.CUT_PASTE.MAX_REDRAWS": integer(0, 10_000),
    "INPUT.CUT_PASTE.CONTROL_OBJECTS": integer(0, 100),
    "INPUT.CUT_PASTE.PLACEMENT": one_of("uniform", "road"),
    "INPUT.CUT_PASTE.SCALE_MODE": one_of("uniform", "perspective"),
    "INPUT.CUT_PASTE.FEATHER": sequence(number(0, 1000), (2,)),
    "SOLVER.OPTIMIZER": one_of("ADAMW"),
    # Steps of the run
    "SOLVER.MAX_ITER": integer(1),
    "SOLVER.BASE_LR": number(0, 1000),
    "SOLVER.WEIGHT_DECAY": number(0, 1000),
    # Images of a step, over all ranks and micro-batches
    "SOLVER.IMS_PER_BATCH": integer(1, 4096),
    # Number of ranks that the config is written for; with others, batch, steps and rate scale
    "SOLVER.REFERENCE_WORLD_SIZE": integer(0, also="0: the config is not scaled"),
    # Steps between two checkpoints
    "SOLVER.CHECKPOINT_PERIOD": integer(1),
    "SOLVER.KEEP_CHECKPOINTS": integer(0, also="0: all of them"),
    "SOLVER.BEST_FIGURE": text(),
    "SOLVER.LAYER_DECAY": number(0, 1, above=True),
    "SOLVER.WARMUP_NEW": _FRACTION,
    "SOLVER.WARMUP_VIT": _FRACTION,
    "SOLVER.POLY_POWER": _NOT_NEGATIVE,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
    "SOLVER.ACCUMULATION": integer(1),
    "SOLVER.AMP.PRECISION": one_of("auto", "bf16", "fp16"),
    "SOLVER.EMA.DECAY": _FRACTION,
    # Steps between two evaluations within a training
    "TEST.EVAL_PERIOD": integer(0, also="0: only after the last step"),
    # Figures that the run must reach, checked after its last evaluation
    "TEST.EXPECTED_RESULTS": sequence(
        Rule("[dataset, figure, value, tolerance]", _is_expected_result)
    ),
    "TEST.QUERY_TOLERANCE": number(0, 0.1),
    "TEST.WINDOW_OVERLAP": number(0, 0.95),
    "TEST.SCALES": sequence(number(1, 8), (1, 2, 3, 4)),
    "TEST.ANOMALY.SCORES": sequence(text(empty=False)),
    "TEST.ANOMALY.TEMPERATURE": _POSITIVE,
    "TEST.ANOMALY.GUIDED_FILTER": number(0, 4),
    "TEST.ANOMALY.POSTPROCESS": sequence(text(empty=False)),  # modeling/postprocess.py
    # Folder of everything that the run writes
    "OUTPUT_DIR": text(empty=False),
    # Seed of everything random
    "SEED": integer(-1, 2**31 - 1, "-1: drawn anew in every run"),
    # Steps between two pictures of fixed test images in TensorBoard: photo, label, classes, score
    "VIS_PERIOD": integer(0, also="0: none"),
    "TRACKER": one_of("none", "wandb", "mlflow"),
    # Version of detectron2's config format
    "VERSION": one_of(2),
}

# Further checks of a whole config, added by the modules that know what is allowed.
CHECKS: list[Callable[[object], None]] = []

# Flags of detectron2 that are read here; `tests/test_config.py` finds out which keys are.
READ_FLAGS = (
    "SOLVER.CLIP_GRADIENTS.ENABLED",
    # Train in mixed precision, of the kind that SOLVER.AMP.PRECISION names
    "SOLVER.AMP.ENABLED",
    # Let cuDNN search for the fastest kernels in training
    "CUDNN_BENCHMARK",
)

# What to use instead of a detectron2 key, or of a whole branch, that nothing here reads.
_INSTEAD = {
    "SOLVER.WARMUP": "set SOLVER.WARMUP_NEW and SOLVER.WARMUP_VIT, fractions of the run",
    "SOLVER.LR_SCHEDULER_NAME": "override Trainer.build_lr_scheduler",
    "SOLVER.STEPS": "set SOLVER.POLY_POWER, or override Trainer.build_lr_scheduler",
    "SOLVER.GAMMA": "set SOLVER.POLY_POWER, or override Trainer.build_lr_scheduler",
    "SOLVER.NUM_DECAYS": "set SOLVER.POLY_POWER, or override Trainer.build_lr_scheduler",
    "SOLVER.RESCALE_INTERVAL": "set SOLVER.POLY_POWER, or override Trainer.build_lr_scheduler",
    "SOLVER.BASE_LR_END": "set SOLVER.POLY_POWER, or override Trainer.build_lr_scheduler",
    "SOLVER.WEIGHT_DECAY": "set SOLVER.WEIGHT_DECAY, which holds for every parameter",
    "SOLVER.BIAS_LR_FACTOR": "set SOLVER.LAYER_DECAY, or override Trainer.build_optimizer",
    "SOLVER.MOMENTUM": "override Trainer.build_optimizer; AdamW has no such setting",
    "SOLVER.NESTEROV": "override Trainer.build_optimizer; AdamW has no such setting",
    "SOLVER.CLIP_GRADIENTS": "set SOLVER.CLIP_GRADIENTS.CLIP_VALUE, the largest global L2 norm",
    "INPUT.FORMAT": "give MODEL.PIXEL_MEAN and MODEL.PIXEL_STD in RGB",
    "INPUT.MIN_SIZE_TRAIN": "set INPUT.SCALE_JITTER and INPUT.CROP_SIZE",
    "INPUT.MAX_SIZE_TRAIN": "set INPUT.SCALE_JITTER and INPUT.CROP_SIZE",
    "INPUT.MIN_SIZE_TEST": "set INPUT.CROP_SIZE: windows are resized to it",
    "INPUT.MAX_SIZE_TEST": "set INPUT.CROP_SIZE: windows are resized to it",
    "INPUT.RANDOM_FLIP": "set INPUT.FLIP",
    "INPUT.CROP": "set INPUT.CROP_SIZE",
    "INPUT.MASK_FORMAT": "give a dataset card with label maps",
    "DATASETS": "name the datasets in DATASETS.TRAIN and DATASETS.TEST",
    "DATALOADER": "override Trainer.build_train_loader",
    "MODEL.BACKBONE": "set MODEL.EOMT.BACKBONE and MODEL.EOMT.SIZE",
    "MODEL.SEM_SEG_HEAD": "set MODEL.EOMT.NUM_CLASSES and MODEL.HEAD.NAME",
    "MODEL": "set the keys of MODEL.EOMT",
    "TEST.AUG": "set TEST.SCALES, TEST.FLIP or TEST.WINDOW_OVERLAP",
    "TEST.PRECISE_BN": "go without: the network has no batch norms",
    "TEST": "set the keys of TEST.ANOMALY",
    "GLOBAL": "go without",
}


def _instead(key: str) -> str:
    return next((hint for start, hint in _INSTEAD.items() if key.startswith(start)), "go without")
