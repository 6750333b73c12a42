"""Load the weights that a config names, and find the config that matches given weights."""

import dataclasses
import logging
import math
from collections.abc import Collection
from typing import Any

from torch import nn

from anoseg_d2.checkpoint.fetch_backbone import backbone_file
from anoseg_d2.checkpoint.files import SHIPPED_FILE, read_checkpoint
from anoseg_d2.checkpoint.metadata import head_name
from anoseg_d2.checkpoint.spec import CONFIG_KEYS, FORMAT_NAME, Checkpoint, ModelSpec
from anoseg_d2.checkpoint.transfer import UNTRAINED, LoadReport, load_into
from anoseg_d2.config import KEYS, changed_keys
from anoseg_d2.modeling.eomt import EoMT
from anoseg_d2.modeling.heads import CLASS_HEADS
from anoseg_d2.modeling.inference import differing, score_map_settings
from anoseg_d2.modeling.patch_heads import PATCH_HEADS, PATCH_PREFIX
from anoseg_d2.modeling.scores import ensemble_parts
from anoseg_d2.modeling.vit import BACKBONES, VitOptions
from anoseg_d2.utils.config_files import flat_items, set_value
from anoseg_d2.utils.constants import SHIPPED_NAME, VIT_SIZES
from anoseg_d2.utils.options import options_of

logger = logging.getLogger(__name__)

_SIZE_KEYS = tuple(f"MODEL.EOMT.{part}" for part in ("SIZE", "DEPTH", "WIDTH", "HEADS"))


def resolve_weights(cfg) -> str:
    """Return MODEL.WEIGHTS, with names of what is downloaded or ships spelled out.

    Raises:
        ValueError: it names another backbone than the model has.
    """
    weights, node = str(backbone_file(cfg.MODEL.WEIGHTS)), cfg.MODEL.EOMT
    if weights == SHIPPED_NAME:
        return str(SHIPPED_FILE)
    if weights not in BACKBONES:
        return weights
    if weights != node.BACKBONE:
        raise ValueError(
            f"MODEL.WEIGHTS is {weights}, MODEL.EOMT.BACKBONE is {node.BACKBONE}: set both alike"
        )
    size = options_of(cfg, "MODEL.EOMT", VitOptions).shape.timm_name
    if weights == "dinov3":
        return f"timm://vit_{size}_patch16_dinov3_qkvb.lvd1689m"
    # DINOv2 was trained once without and once with registers: these are other weights throughout.
    registers = "_reg4" if node.NUM_REGISTERS else ""
    return f"timm://vit_{size}_patch14{registers}_dinov2.lvd142m"


def add_delta(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """Add the encoder of a delta checkpoint to the weights that it is a difference to.

    Args:
        checkpoint: a released delta: encoder tensors are differences, all others are whole.
        base: the ViT that it started from, of the same size.
    Raises:
        ValueError: the checkpoint is a whole model of ours, or its encoder tensors have no
            counterpart of the same shape in the base.
    """
    if checkpoint.meta.get("format") == FORMAT_NAME:
        raise ValueError(
            f"{checkpoint.source} was saved whole, so there is nothing to add it to: unset "
            "MODEL.DELTA_BASE (--delta-base)"
        )
    state = dict(checkpoint.state_dict)
    for name in [name for name in state if name.startswith("backbone.")]:
        other = base.state_dict.get(name)
        if other is None and name.endswith((".attn.q_bias", ".attn.v_bias")):
            continue  # zero in DINOv3's released weights, which some files leave out
        if other is None or other.shape != state[name].shape:
            found = "none" if other is None else tuple(other.shape)
            raise ValueError(
                f"{base.source} is not the base of {checkpoint.source}: {name} is "
                f"{tuple(state[name].shape)} in the delta, {found} in the base"
            )
        state[name] = state[name].float() + other.float()
    source = f"{checkpoint.source} + {base.source}"
    spec = dataclasses.replace(checkpoint.spec, heads=checkpoint.spec.heads or base.spec.heads)
    return dataclasses.replace(checkpoint, state_dict=state, spec=spec, source=source)


def load_weights(cfg, model: nn.Module, *, training: bool = False) -> LoadReport:
    """Load MODEL.WEIGHTS into `model`; the log shows what happened to every tensor.

    Args:
        cfg: config node.
        model: EoMT, built from it.
        training: the model is about to be trained, so that tensors may start untrained; else only
            MODEL.ALLOW_UNTRAINED permits that.
    Returns:
        LoadReport; its `file` is for `describe_weights`.
    Raises:
        FileNotFoundError, ValueError: see `read_checkpoint` and `load_into`.
    """
    weights = resolve_weights(cfg)
    if not weights:
        if not (training or cfg.MODEL.ALLOW_UNTRAINED):
            raise ValueError(
                "MODEL.WEIGHTS is empty, so every tensor is random: name the checkpoint to "
                "use, or set MODEL.ALLOW_UNTRAINED True"
            )
        logger.warning("MODEL.WEIGHTS is empty: every tensor keeps its random initialisation")
        return LoadReport("random initialisation")
    return load_checkpoint(cfg, model, read_checkpoint(weights), training=training)


def load_checkpoint(
    cfg, model: nn.Module, checkpoint: Checkpoint, *, training: bool = False
) -> LoadReport:
    """Load a checkpoint that has already been read, as the config says; see `load_weights`."""
    if cfg.MODEL.DELTA_BASE:
        checkpoint = add_delta(checkpoint, read_checkpoint(cfg.MODEL.DELTA_BASE))
    # Both change which tensors the model has, so they come before these are compared.
    if not training:
        _restore_class_head(model, checkpoint)
    checkpoint = _attach_patch_heads(model, checkpoint, training)
    report = load_into(
        model,
        checkpoint,
        allow_unused=tuple(cfg.MODEL.ALLOW_UNUSED_WEIGHTS),
        allow_untrained=training or cfg.MODEL.ALLOW_UNTRAINED,
        seed=max(cfg.SEED, 0),
    )
    spec, names = checkpoint.spec, model.info.class_names
    # A model in training has those of its dataset already.
    if names is None and spec.class_names and len(spec.class_names) == model.num_known:
        names = tuple(spec.class_names)
    changed = [row.name for row in report.rows if row.action in UNTRAINED]
    others = f"tensors are others, such as {changed[0]}" if changed else ""
    # A training measures its own statistics, and finds no thresholds.
    holds = training or _statistics_hold(cfg, checkpoint, others)
    model.info = dataclasses.replace(
        model.info,
        class_names=names,
        score_statistics=spec.score_statistics if holds else {},
        statistics_settings=checkpoint.meta.get("statistics_settings") if holds else None,
        thresholds={} if training else _thresholds_that_hold(cfg, checkpoint, others),
        averaged=not training and bool(checkpoint.meta.get("averaged")),
    )
    return report


def _statistics_hold(cfg, checkpoint: Checkpoint, others: str) -> bool:
    """Return whether the statistics of ensembles hold for the weights and settings at hand."""
    if not checkpoint.spec.score_statistics:
        return True
    then, now = checkpoint.meta.get("statistics_settings"), score_map_settings(cfg, filters=False)
    why = others
    if isinstance(then, dict):
        why = why or differing(then, now)
    elif any(len(ensemble_parts(name)) > 1 for name in cfg.TEST.ANOMALY.SCORES):
        logger.warning(
            "%s does not say at which settings (%s) and filters the statistics of its ensembles "
            "were measured; they are used as they are",
            checkpoint.source,
            ", ".join(now),
        )
    if why:
        _warn_left_out(checkpoint, "the statistics of its ensembles do", why)
    return not why


def _thresholds_that_hold(cfg, checkpoint: Checkpoint, others: str) -> dict[str, dict]:
    """Return the thresholds of a checkpoint that were found with these weights and settings."""
    found, now = {}, score_map_settings(cfg)
    try:
        for score, record in (checkpoint.meta.get("thresholds") or {}).items():
            float(record["threshold"])
            if why := others or differing(record["settings"], now):
                _warn_left_out(checkpoint, f"its threshold of {score} does", why)
            else:
                found[score] = record
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"checkpoint {checkpoint.source}: its thresholds are broken ({error!r}); run "
            "`anoseg threshold` again"
        ) from error
    return found


def _warn_left_out(checkpoint: Checkpoint, what: str, why: str) -> None:
    logger.warning("%s: %s not hold here and left out: %s", checkpoint.source, what, why)


def _restore_class_head(model: EoMT, checkpoint: Checkpoint) -> None:
    """Give a user-defined class head the options that a checkpoint was trained with.

    Those of the built-in heads come through config keys.
    """
    name, stored = checkpoint.spec.head, checkpoint.spec.head_options
    if not stored or _head_overrides(checkpoint.spec) or head_name(model) != name:
        return
    if model.class_head.stored_options() != stored:
        logger.info("Class head %s: options of the checkpoint, %s", name, stored)
        sizes = model.backbone.embed_dim, model.num_known, model.has_anomaly
        model.class_head = CLASS_HEADS[name](*sizes, **stored).to(model.device)


def _attach_patch_heads(model: EoMT, checkpoint: Checkpoint, training: bool) -> Checkpoint:
    """Give the model the patch heads that a checkpoint holds.

    A model that is about to be trained keeps those that its config names. Others are dropped: they
    would not follow the tokens that they read.

    Raises:
        ValueError: a head is not registered, or was made for another backbone.
    """
    of_heads = {n: t for n, t in checkpoint.state_dict.items() if n.startswith(PATCH_PREFIX)}
    rest = {n: t for n, t in checkpoint.state_dict.items() if n not in of_heads}
    kept = dict(rest)
    for name in dict.fromkeys(n.removeprefix(PATCH_PREFIX).split(".")[0] for n in of_heads):
        prefix = f"{PATCH_PREFIX}{name}."
        tensors = {n: t for n, t in of_heads.items() if n.startswith(prefix)}
        if training and name not in model.patch_maps:
            how = PATCH_HEADS[name].wanted if name in PATCH_HEADS else "MODEL.IMPORTS knows it"
            text = "%s: its %s head is dropped in training; %s"
            logger.warning(text, checkpoint.source, name, how)
            continue
        kept |= tensors
        # The memory's state has a place of its own, from before there were other heads.
        state = (checkpoint.meta.get("patch_heads") or {}).get(name)
        state = state or checkpoint.meta.get(name) or {}
        if training or (name in model.patch_maps and model.patch_maps[name].state() == state):
            continue
        if name not in PATCH_HEADS:
            raise ValueError(
                f"{checkpoint.source}: holds a patch head {name!r}, which nothing registers; name "
                "the module that does in MODEL.IMPORTS"
            )
        own = {n.removeprefix(prefix): t for n, t in tensors.items()}
        head = PATCH_HEADS[name].from_state(state, own, model.backbone, model.num_blocks)
        try:
            head.check_backbone(rest)
        except ValueError as error:
            raise ValueError(f"{checkpoint.source}: {error}") from error
        model.patch_maps[name] = head.requires_grad_(False).to(model.device)
    return dataclasses.replace(checkpoint, state_dict=kept)


def build_config_overrides(checkpoint: Checkpoint) -> list[Any]:
    """Return the config overrides that build a model this checkpoint fits exactly.

    Args:
        checkpoint: of `read_checkpoint`. A plain model is described: adapters of the checkpoint
            are merged when it is loaded.
    Returns:
        `[key, value, ...]` for `cfg.merge_from_list`. What the checkpoint does not say is left
        out (the number of query blocks of a file without metadata).
    Raises:
        ValueError: the attention heads are neither stored nor known from the width.
    """
    checkpoint.require_whole()
    spec = checkpoint.spec
    try:
        overrides: list[Any] = _size_overrides(spec)
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint.source}: {error}") from error
    for name, key in CONFIG_KEYS.items():
        value = getattr(spec, name)
        if value is not None:
            overrides += [key, list(value) if isinstance(value, tuple) else value]
    overrides += _head_overrides(spec)
    if spec.image_size is None and spec.num_queries:
        logger.warning(
            "%s does not say which crop it was trained at: set INPUT.CROP_SIZE", checkpoint.source
        )
    if "class_head.scale" in checkpoint.state_dict:
        overrides += ["MODEL.HEAD.ARCFACE.LEARN_SCALE", True]
    return overrides


def _head_overrides(spec: ModelSpec) -> list[Any]:
    """Return the options of a built-in class head; those of a user's own have no keys."""
    overrides = []
    for name, value in spec.head_options.items():
        key = f"MODEL.HEAD.{spec.head}.{name}".upper()
        overrides += [key, value] if key in KEYS and value is not None else []
    return overrides


def inference_overrides(checkpoint: Checkpoint) -> list[Any]:
    """Return the TEST keys that a checkpoint asks to be used with, as `[key, value, ...]`."""
    stored = checkpoint.meta.get("inference")
    pairs = stored.items() if isinstance(stored, dict) else ()
    return [part for key, value in pairs if key.startswith("TEST.") for part in (key, value)]


def follow_checkpoint(
    cfg, checkpoint: Checkpoint, given: Collection[str] = (), *, finished: bool
) -> None:
    """Set a config's network keys to those of a checkpoint, except where the user chose otherwise.

    Every key that is taken from the checkpoint is logged, every one that stays different is named
    with what that does. A bare ViT changes nothing: it becomes a part of whatever network the
    config describes.

    Args:
        cfg: config node, not frozen; changed in place.
        checkpoint: of MODEL.WEIGHTS.
        given: keys of the command line, whose values stay.
        finished: the network is used as it is, in an evaluation or with MODEL.RATIO.ALONE. Before
            a training the keys that the config file changes stay too, since they define the stage.
    """
    bare = checkpoint.spec.num_queries is None
    if bare and not (checkpoint.spec.architecture and finished):
        return
    shape = options_of(cfg, "MODEL.EOMT", VitOptions).shape
    if checkpoint.spec.heads is None and shape.width == checkpoint.spec.width:
        # Some files leave them out.
        spec = dataclasses.replace(checkpoint.spec, heads=shape.heads)
        checkpoint = dataclasses.replace(checkpoint, spec=spec)
    spec, overrides = checkpoint.spec, build_config_overrides(checkpoint)
    if finished:
        overrides += inference_overrides(checkpoint)
    stored = dict(zip(overrides[::2], overrides[1::2], strict=True))
    # An evaluation wants the network that was trained; a training wants what its stage is about.
    values, changed = dict(flat_items(cfg)), set(changed_keys(cfg))
    kept = set(given) if finished else {*given, *changed}
    # What 0 stands for, which is never written where the network is the same.
    implied = {"MODEL.EOMT.NORM_EPS": 1e-5 if cfg.MODEL.EOMT.BACKBONE == "dinov3" else 1e-6}
    if shape[:3] == (spec.depth, spec.width, spec.attention_heads()):
        implied["MODEL.EOMT.NUM_BLOCKS"] = shape.num_blocks
        stored = {key: value for key, value in stored.items() if key not in _SIZE_KEYS}
    else:  # SIZE may imply all of them
        stored = {**dict.fromkeys(_SIZE_KEYS, 0), **stored}
    if not kept.isdisjoint(_SIZE_KEYS):
        kept |= set(_SIZE_KEYS)
    if "MODEL.HEAD.NAME" in kept and values["MODEL.HEAD.NAME"] != spec.head:  # options of another
        head = stored.pop("MODEL.HEAD.NAME")
        stored = {key: v for key, v in stored.items() if not key.startswith("MODEL.HEAD.")}
        stored["MODEL.HEAD.NAME"] = head
    for key, value in stored.items():
        ours = values[key] or implied.get(key, values[key])
        if _same(ours, value):
            continue
        if key in kept:
            logger.warning(
                "%s is %s, but %s in %s: what is loaded is converted to it, or does not fit",
                *(key, ours, value, checkpoint.source),
            )
            continue
        set_value(cfg, key, value)
        level = logging.WARNING if key in changed else logging.INFO
        logger.log(level, "%s is %s, as in %s (not %s)", key, value, checkpoint.source, ours)


def _same(ours, stored) -> bool:
    """Return whether two values of a key are equal, although files hold lists and round."""
    if isinstance(stored, (list, tuple)):
        return len(ours) == len(stored) and all(map(_same, ours, stored))
    if isinstance(stored, float):
        return math.isclose(ours, stored, rel_tol=1e-4)
    return ours == stored


def _size_overrides(spec: ModelSpec) -> list[Any]:
    """Return the name of the ViT size, or its depth, width and heads."""
    for name, size in VIT_SIZES.items():
        same = (size.depth, size.width) == (spec.depth, spec.width)
        if same and spec.heads in (None, size.heads):
            return ["MODEL.EOMT.SIZE", name]
    return [
        *("MODEL.EOMT.SIZE", "G" if spec.swiglu else "S"),  # only G has gated MLPs
        *("MODEL.EOMT.DEPTH", spec.depth),
        *("MODEL.EOMT.WIDTH", spec.width),
        *("MODEL.EOMT.HEADS", spec.attention_heads()),
    ]
