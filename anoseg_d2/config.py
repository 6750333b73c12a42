"""Every configuration key of the project, with its default and meaning."""

import difflib
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

__all__ = ["add_anoseg_config", "load_config"]


def load_config(config_file: str = "", overrides: list[str] | None = None) -> CN:
    """Read defaults, a yaml file with its bases, and `KEY VALUE` overrides.

    Args:
        config_file: path; empty for the defaults.
        overrides: keys and values in turn.
    Returns:
        config node, not frozen.
    Raises:
        FileNotFoundError: no such config file.
        ValueError: an unknown key (with the nearest known one), a value of the wrong type, or
            broken yaml.
    """
    cfg = get_cfg()
    add_anoseg_config(cfg)
    if config_file and not Path(config_file).is_file():
        raise FileNotFoundError(f"--config-file {config_file} does not exist; see configs/")
    try:
        if config_file:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        overrides = list(overrides or [])
        if len(overrides) % 2:
            raise ValueError(f"overrides come as KEY VALUE pairs; {overrides[-1]!r} is alone")
        for key, value in zip(overrides[::2], overrides[1::2], strict=True):
            _require_key(cfg, key)
            cfg.merge_from_list([key, value])
    except KeyError as error:
        key = str(error).split(":")[-1].strip(" \"'")
        _require_key(cfg, key)
        raise
    except yaml.YAMLError as error:
        raise ValueError(f"{config_file}: {' '.join(str(error).split())}") from error
    except AssertionError as error:
        raise ValueError(f"{config_file or overrides}: {error}") from error
    return cfg


def _require_key(cfg: CN, key: str) -> None:
    """Raise ValueError with the nearest keys unless `key` exists."""
    known = list(_flat_keys(cfg))
    nodes = {name.rpartition(".")[0] for name in known}
    if key in known or key in nodes:
        return
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; see anoseg_d2/config.py"
    raise ValueError(f"unknown config key {key}{hint}")


def _flat_keys(node: CN, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, CN):
            yield from _flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def add_anoseg_config(cfg: CN) -> None:
    """Add the project's keys to detectron2's defaults, in place.

    Args:
        cfg: node from `detectron2.config.get_cfg()`.
    """
    cfg.MODEL.META_ARCHITECTURE = "EoMT"
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]  # RGB 0..255, applied once, inside the model
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    _add_model_keys(cfg)
    _add_head_keys(cfg)
    _add_criterion_keys(cfg)
    _add_lora_keys(cfg)
    _add_data_keys(cfg)
    _add_solver_keys(cfg)
    _add_test_keys(cfg)


def _add_model_keys(cfg: CN) -> None:
    node = cfg.MODEL.EOMT = CN()
    node.BACKBONE = "dinov2"  # dinov2, or dinov3 (rotary positions)
    node.SIZE = "L"  # S, B, L, G: ViT small to giant (DINOv2 alone); query blocks follow it
    node.DEPTH = 0  # 0: by SIZE. A custom ViT sets DEPTH, WIDTH and HEADS
    node.WIDTH = 0
    node.HEADS = 0
    node.PATCH_SIZE = 16  # pixels; 14-pixel weights are resampled when loaded
    node.NUM_REGISTERS = 4  # DINOv3 and DINOv2 with registers have 4, DINOv2 without has 0
    node.NUM_CLASSES = 19  # K, the known classes
    node.ANOMALY_CLASS = False  # row K of the class head: the learned anomaly
    node.NUM_QUERIES = 100
    node.NUM_BLOCKS = 0  # last ViT blocks that see the queries; 0: by SIZE (S, B 3; L 4; G 5)
    node.DROP_PATH = 0.0  # stochastic depth of the ViT
    node.NORM_EPS = 0.0  # of the ViT's layer norms; 0: the backbone's own (1e-6, DINOv3 1e-5)
    node.MASKED_ATTENTION = True  # in training, annealed away within the run; off when fine-tuning
    node.ANNEALING_POWER = 0.9  # keep-probability (1 - progress)^power
    node.CHECKPOINT_ACTIVATIONS = False  # recompute ViT blocks in backward: less memory, slower
    node.COMPILE = False  # torch.compile the ViT blocks
    # Loading: weights that the encoder of MODEL.WEIGHTS is a difference to (EoMT's DINOv3 releases)
    cfg.MODEL.DELTA_BASE = ""
    # Loading: state-dict names (or prefixes) that a checkpoint may leave unused, e.g. "class_head"
    cfg.MODEL.ALLOW_UNUSED_WEIGHTS = []


def _add_head_keys(cfg: CN) -> None:
    node = cfg.MODEL.HEAD = CN()
    node.NAME = "linear"  # linear, logit_norm, arcface, or a registered head
    node.LOGIT_NORM = CN()
    node.LOGIT_NORM.TAU = 0.04
    node.LOGIT_NORM.FORM = "logits"  # logits: Wei et al. 2022; cosine: features and rows normalised
    node.LOGIT_NORM.INFERENCE = "trained"  # trained: normalised as in training; raw: W x + b
    node.ARCFACE = CN()
    node.ARCFACE.SCALE = 30.0
    node.ARCFACE.LEARN_SCALE = False
    node.ARCFACE.MARGIN = 0.5  # radians, on the known classes only
    node.ARCFACE.MARGIN_RAMP = 0.1  # share of the run over which the margin grows from 0; 0: none


def _add_criterion_keys(cfg: CN) -> None:
    node = cfg.MODEL.CRITERION = CN()
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    node.CLASS_WEIGHT = 2.0
    node.NO_OBJECT_WEIGHT = 0.1  # of the no-object class in the cross entropy
    node.MATCH_MASK_COST = 5.0
    node.MATCH_DICE_COST = 5.0
    node.MATCH_CLASS_COST = 2.0
    node.MATCH_POINTS = 12544  # per image; 0: every pixel of the mask grid
    node.LOSS_POINTS = 12544  # per matched mask; 0: every pixel of the mask grid
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_RATIO = 0.75
    node.VOID = "negative"  # negative: void pushes every mask down; exclude: no loss there
    node.OUTLIER_WEIGHT = 0.0  # RbA hinge on pasted and known pixels
    node.OUTLIER_UPPER = -0.7
    node.OUTLIER_LOWER = -0.1


def _add_lora_keys(cfg: CN) -> None:
    node = cfg.MODEL.LORA = CN()
    node.ENABLED = False
    node.TARGETS = ["q", "k", "v", "proj", "fc1", "fc2"]
    node.RANK = 8
    node.ALPHA = 16.0
    node.DROPOUT = 0.1
    node.BLOCKS = []  # [first, last] ViT block, inclusive; empty: all
    node.TRAIN_NORMS = False  # LayerNorms of the ViT train too
    node.LR_FACTOR = 3.0  # learning rate of the adapters over BASE_LR


def _add_data_keys(cfg: CN) -> None:
    cfg.DATASETS.CARDS = []  # yaml files, or names of shipped cards, to register
    cfg.DATASETS.ALLOW_COUNT_MISMATCH = False  # go on when a set has not its known number of images
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.CROP_SIZE = (1024, 1024)  # (H, W) seen by the model, divisible by PATCH_SIZE
    cfg.INPUT.COLOR_JITTER = True
    cfg.INPUT.SCALE_JITTER = (0.5, 2.0)  # on the scale that fits the image inside the crop
    cfg.INPUT.FLIP = True
    cfg.INPUT.WINDOW_BATCH = 0  # windows per forward at inference; 0: as many as an image has
    node = cfg.INPUT.CUT_PASTE = CN()  # pasting while loading, beside the offline generator
    node.ENABLED = False
    node.COCO_JSON = ""  # relative to DETECTRON2_DATASETS, or absolute
    node.COCO_IMAGES = ""
    node.RATIO = 0.5
    node.CONTROL_OBJECTS = 0  # at most this many known COCO objects under their own label
    node.PLACEMENT = "uniform"  # uniform, road
    node.SCALE_MODE = "uniform"  # uniform, perspective
    node.FEATHER = (5.0, 0.1)  # sigma of the alpha's blur: min(first, second * sqrt(mask area)) px
    node.OPAQUE_CORE = False  # the eroded mask stays fully opaque, whatever the blur


def _add_solver_keys(cfg: CN) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    cfg.SOLVER.LAYER_DECAY = 0.8  # per ViT block, from the last to the first
    cfg.SOLVER.DECAY_QUERY_BLOCKS = True  # False: the blocks that see the queries keep BASE_LR
    # Warm-ups as shares of MAX_ITER: new parameters first, the ViT after them
    cfg.SOLVER.WARMUP_NEW = 0.025
    cfg.SOLVER.WARMUP_VIT = 0.05
    cfg.SOLVER.POLY_POWER = 0.9
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"  # global norm over every parameter
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    cfg.SOLVER.ACCUMULATION = 1  # micro-batches per step; IMS_PER_BATCH stays the whole batch
    cfg.SOLVER.AMP.PRECISION = "auto"  # auto: bf16 where the device has it; bf16; fp16 (scaler)
    cfg.SOLVER.EMA = CN()
    cfg.SOLVER.EMA.ENABLED = False  # an averaged copy, evaluated beside the model
    cfg.SOLVER.EMA.DECAY = 0.999


def _add_test_keys(cfg: CN) -> None:
    cfg.TEST.WINDOW_OVERLAP = 0.0  # least overlap of neighbouring windows, share of the window
    node = cfg.TEST.ANOMALY = CN()
    # Names in the score registry, or ensembles as "rba+anomaly"; empty: all that the model offers
    node.SCORES = []
    node.TEMPERATURE = 1.0  # of the class softmax behind msp and entropy
    node.POSTPROCESS = []  # registered filters of the score map, in order
    node.EXACT = False  # metrics over every pixel, spilled to disk
    node.COMPONENTS = True  # component metrics (second pass over the scores)
    node.REPORT_IMAGES = True  # keep thumbnails for the report page
