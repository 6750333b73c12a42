"""Load a checkpoint into a model that may differ from it, with every tensor accounted for.

Shape letters: K known classes, R class rows, C width, P rows of the position embedding, (h, w)
its grid, Q queries. The model is not changed before the whole plan is known to work.
"""

import logging
from collections.abc import Iterable
from fnmatch import fnmatch

import torch
from timm.layers import resample_patch_embed
from torch import Tensor, nn

from anoseg_d2.checkpoint.delta import warn_of_delta
from anoseg_d2.checkpoint.formats import BARE_VITS
from anoseg_d2.checkpoint.identity import model_tensors, weights_hash
from anoseg_d2.checkpoint.lora_state import lora_module_names, merge_lora_state
from anoseg_d2.checkpoint.report import LoadReport, LoadRow
from anoseg_d2.checkpoint.rules import (
    fold_position_prefix,
    linear_rows_of_arcface,
    resample_position_embedding,
    transfer_class_rows,
)
from anoseg_d2.checkpoint.spec import Checkpoint
from anoseg_d2.modeling.ratio import RATIO_PREFIX
from anoseg_d2.modeling.vit import backbone_kind
from anoseg_d2.utils.constants import ARCFACE_SCALE

__all__ = [
    "head_name",
    "load_into",
    "load_same",
    "model_grid",
    "norm_eps",
]

logger = logging.getLogger(__name__)

EMBED, KERNEL = "backbone.pos_embed", "backbone.patch_embed.proj.weight"
ROWS, BIAS = "class_head.weight", "class_head.bias"
REGISTERS = "backbone.reg_token"
# Actions after which a tensor is no longer what was trained.
UNTRAINED = ("initialised", "inserted", "converted")
# Parts that a bare ViT does not have, and parts that may start from an initialisation.
_NEW_PARTS = ("query.", "class_head.", "mask_head.", "upscale.")
_OPTIONAL = (".reg_token", ".lora_A", ".lora_B", "class_head.scale")
# Zero in DINOv3's released weights, so that some files leave them out.
_ZERO = (".attn.q_bias", ".attn.v_bias")


def load_into(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    allow_unused: Iterable[str] = (),
    allow_untrained: bool = True,
    seed: int = 0,
) -> LoadReport:
    """Load a checkpoint into an EoMT that may differ in crop, patch, head, classes or adapters.

    Position embeddings and patch kernels are resampled, class rows transferred between heads and
    class lists, adapters that the model lacks merged into their weights.

    Args:
        model: an EoMT, with or without adapters, on any device.
        checkpoint: of `read_checkpoint`.
        allow_unused: names, dotted prefixes or globs of tensors that may stay unused in the
            checkpoint, or initialised in the model; "num_blocks" allows another number of blocks.
        allow_untrained: accept tensors that nobody has trained as they are: initialised, inserted,
            or converted to another class head. Training starts from such weights; evaluation
            must not, since its figures would describe another model than the one it names.
        seed: of the Gaussian that fills a new anomaly row.
    Returns:
        LoadReport, also logged.
    Raises:
        ValueError: lists everything that no rule covers, or untrained tensors that are not
            allowed; the model is then unchanged.
    """
    _require_same_backbone(model, checkpoint)
    warn_of_delta(checkpoint)
    plan = _Plan(model, checkpoint, tuple(allow_unused), seed)
    plan.allow_untrained = allow_untrained
    plan.check_model()
    if checkpoint.format == "anoseg_adapter":
        plan.plan_adapter_file()
        return _report(plan)
    # Each rule takes the tensors that it understands, and `plan_rest` accounts for what is left,
    # so it comes last. Adapters come first, because the weights that they are merged into may be
    # changed by a later rule. The class head comes before the rest, which would take the final
    # norm whose gain an ArcFace conversion reads.
    try:
        plan.plan_adapters()
    except ValueError as error:
        raise ValueError(f"{checkpoint.source}: {error}") from error
    plan.plan_position_embedding()
    plan.plan_patch_kernel()
    plan.plan_class_head()
    plan.plan_rest()
    return _report(plan)


def load_same(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a checkpoint of exactly this model, with equal names and shapes.

    Raises:
        ValueError: the checkpoint is not one of ours, or the model is built differently.
    """
    if checkpoint.format != "anoseg" or not checkpoint.meta:
        raise ValueError(f"{checkpoint.source} was not saved by a training run: cannot resume it")
    plan = _Plan(model, checkpoint, (), 0)
    plan.check_model()
    ours = {"head": head_name(model), "has_anomaly": getattr(model, "has_anomaly", None)}
    for key, value in ours.items():
        if value != checkpoint.meta.get(key):
            plan.problems.append(f"{key}: {checkpoint.meta.get(key)} saved, {value} in the model")
    if tuple(checkpoint.spec.grid or ()) != model_grid(model):
        plan.problems.append(
            f"grid: {checkpoint.spec.grid} saved, {model_grid(model)} in the model"
        )
    missing = set(plan.target) ^ set(plan.source)
    plan.problems += [f"{name}: only on one side" for name in sorted(missing)]
    for name in set(plan.target) & set(plan.source):
        plan.put(name, plan.source[name], "loaded")
    plan.commit()


def _require_same_backbone(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse another backbone in one line instead of a page of missing and unknown names."""
    stored, ours = checkpoint.spec.backbone, backbone_kind(model.backbone)
    if stored and stored != ours:
        raise ValueError(
            f"{checkpoint.source} is built on {stored}, the model on {ours}; "
            f"set MODEL.EOMT.BACKBONE {stored}"
        )


def _report(plan: "_Plan") -> LoadReport:
    report = plan.commit()
    counts = ", ".join(f"{count} {action}" for action, count in report.counts().items())
    # What was loaded as it is fills a page, and nobody has to look at it.
    table = report.table(leave_out=("loaded",))
    logger.info("Loaded %s: %s%s", report.source, counts, f"\n{table}" if table else "")
    logger.debug("Every tensor of it:\n%s", report.table())
    return report


class _Plan:
    """The decisions of one load; `commit` carries all of them out, or none."""

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, allow: tuple[str, ...], seed):
        self.model, self.checkpoint, self.allow, self.seed = model, checkpoint, allow, seed
        self.allow_untrained = True
        self.spec = checkpoint.spec
        self.source = dict(checkpoint.state_dict)
        self.target = model_tensors(model)
        self.waiting = dict(self.target)
        self.values: dict[str, Tensor] = {}
        self.rows: list[LoadRow] = []
        self.problems: list[str] = []

    # What a rule can do with a tensor.

    def put(self, name: str, value: Tensor, action: str, note: str = "") -> None:
        """Load `value` under `name`; it replaces what the file has there."""
        target, stored = self.waiting.pop(name, None), self.source.pop(name, None)
        if target is None:
            self.problems.append(f"{name}: the model has no such tensor")
            return
        origin = None if stored is None else tuple(stored.shape)
        if value.shape != target.shape:
            self.problems.append(
                f"{name}: {tuple(value.shape)} in the checkpoint, {tuple(target.shape)} in the "
                f"model{_shape_hint(name)}"
            )
            return
        if not value.is_floating_point():
            # copy_ would convert integers silently.
            self.problems.append(f"{name}: holds {value.dtype}, not floating-point weights")
            return
        if not torch.isfinite(value).all():
            self.problems.append(f"{name}: holds NaN or infinite values")
            return
        self.values[name] = value
        kinds = [str(t.dtype).split(".")[-1] for t in (stored, target) if t is not None]
        if len(set(kinds)) > 1:
            note = _join(note, " to ".join(kinds))
        self.rows.append(LoadRow(name, action, origin, tuple(target.shape), note))

    def initialise(self, name: str, note: str) -> None:
        shape = tuple(self.waiting.pop(name).shape)
        self.rows.append(LoadRow(name, "initialised", None, shape, note))

    def ignore(self, name: str, note: str) -> None:
        shape = tuple(self.source.pop(name).shape)
        self.rows.append(LoadRow(name, "ignored", shape, None, note))

    def allowed(self, name: str) -> bool:
        return any(name == a or name.startswith(a + ".") or fnmatch(name, a) for a in self.allow)

    # The rules, in the order in which they run.

    def check_model(self) -> None:
        """Refuse differences that no tensor shape would reveal."""
        stored, ours = self.spec.num_blocks, getattr(self.model, "num_blocks", None)
        if stored and ours and stored != ours and not self.allowed("num_blocks"):
            self.problems.append(
                f"num_blocks: queries enter the last {stored} blocks in the checkpoint, the last "
                f"{ours} in the model; set MODEL.EOMT.NUM_BLOCKS {stored}"
            )
        heads = _attention_heads(self.model)
        if heads and self.spec.heads and heads != self.spec.heads:
            self.problems.append(
                f"attention heads: {self.spec.heads} in the checkpoint, {heads} in the model; "
                f"set MODEL.EOMT.HEADS {self.spec.heads}"
            )
        stored, ours = self.spec.norm_eps, norm_eps(self.model)
        if stored and ours and abs(stored / ours - 1) > 1e-3 and not self.allowed("norm_eps"):
            self.problems.append(
                f"layer norm: eps {stored:g} in the checkpoint, {ours:g} in the model; "
                f"set MODEL.EOMT.NORM_EPS {stored:g}"
            )
        for key in ("pixel_mean", "pixel_std"):
            ours, stored = getattr(self.model, key, None), getattr(self.spec, key)
            if ours is None or not stored:
                continue
            ours = [round(float(v), 3) for v in ours.flatten()]
            if any(abs(a - b) > 0.01 for a, b in zip(ours, stored, strict=True)):
                self.problems.append(
                    f"{key}: the checkpoint was trained with {stored} (0..255), the model has "
                    f"{ours}; set MODEL.{key.upper()}"
                )

    def plan_adapters(self) -> None:
        """Merge adapters that the model lacks; compare alpha of those that it has."""
        stored = self.spec.adapters
        theirs, ours = lora_module_names(self.source), set(lora_module_names(self.target))
        merge = [name for name in theirs if name not in ours]
        before = self.source
        self.source = merge_lora_state(before, stored, merge)
        for name in merge:
            if f"{name}.weight" in self.waiting:
                self.put(f"{name}.weight", self.source[f"{name}.weight"], "merged", "LoRA added")
            for part in ("lora_A", "lora_B"):
                shape = tuple(before[f"{name}.{part}"].shape)
                note = "merged into its weight: the model has no adapter here"
                self.rows.append(LoadRow(f"{name}.{part}", "merged", shape, None, note))
        self._compare_adapter_scales(name for name in theirs if name in ours)

    def _compare_adapter_scales(self, names: Iterable[str]) -> None:
        stored = self.spec.adapters
        scales = _adapter_scales(self.model)
        for name in (name for name in names if name in stored):
            scale = stored[name]["alpha"] / stored[name]["rank"]
            if name in scales and abs(scales[name] - scale) > 1e-9:
                self.problems.append(
                    f"{name}: LoRA scaled by alpha / rank = {scale:g} in the checkpoint, "
                    f"{scales[name]:g} in the model; set MODEL.LORA.ALPHA and RANK as it had them, "
                    "or merge it first (anoseg convert --merge)"
                )

    def plan_adapter_file(self) -> None:
        """Load an adapter file, if the frozen rest of the model is the base that it belongs to."""
        frozen = {name: t for name, t in self.target.items() if name not in self.source}
        missing = [name for name in self.source if name not in self.target]
        missing_adapters = [n for n in frozen if n.endswith((".lora_A", ".lora_B"))]
        self._compare_adapter_scales(lora_module_names(self.source))
        if missing or missing_adapters:
            self.problems += [f"{name}: the model has no such tensor" for name in missing]
            self.problems += [f"{name}: missing in the adapter" for name in missing_adapters]
        elif weights_hash(frozen) != self.checkpoint.meta.get("base_hash"):
            self.problems.append(
                "the frozen weights of the model are not those that this adapter was trained on; "
                "load its base checkpoint first (same file, same crop, same patch size)"
            )
        for name in [name for name in self.source if name in self.waiting]:
            self.put(name, self.source[name], "loaded")

    def plan_position_embedding(self) -> None:
        """Fit class row and grid of the position embedding to the model's."""
        if EMBED not in self.source or EMBED not in self.waiting:
            return
        stored, target = self.source[EMBED], self.waiting[EMBED]
        grid, prefix = self.spec.grid, self.spec.pos_prefix
        new_grid = model_grid(self.model)
        new_prefix = target.shape[1] - new_grid[0] * new_grid[1]
        if grid is None or prefix < 0:
            if stored.shape != target.shape:
                self.problems.append(
                    f"{EMBED}: {stored.shape[1]} rows fit no known grid ({grid}); "
                    "set checkpoint.spec.grid (rows, columns) and checkpoint.spec.pos_prefix"
                )
                del self.source[EMBED], self.waiting[EMBED]
                return
            grid, prefix = new_grid, new_prefix
        notes = []
        head = stored[:, :prefix].float()
        if prefix != new_prefix:
            notes.append("positions of the prefix folded into its tokens")
            head = torch.zeros(1, new_prefix, stored.shape[-1])
            folded = fold_position_prefix(self.source, prefix)
            for name in folded.keys() - {EMBED}:
                self.put(name, folded[name], "transferred", "its position added to it")
        patches = resample_position_embedding(stored[:, prefix:], grid, new_grid)
        resampled = tuple(grid) != tuple(new_grid)
        if resampled:
            notes.append(f"grid {grid[0]}x{grid[1]} to {new_grid[0]}x{new_grid[1]}, bicubic")
        action = "resampled" if resampled else ("transferred" if notes else "loaded")
        self.put(EMBED, torch.cat([head, patches], dim=1), action, "; ".join(notes))

    def plan_patch_kernel(self) -> None:
        """Resample the patch kernel to the model's patch size."""
        stored, target = self.source.get(KERNEL), self.waiting.get(KERNEL)
        if stored is None or target is None or stored.shape == target.shape:
            return
        if stored.dim() == 4 and stored.shape[:2] == target.shape[:2]:
            size = list(target.shape[-2:])
            value = resample_patch_embed(stored.float(), size)
            note = f"patch {stored.shape[-1]} to {size[-1]} pixels"
            self.put(KERNEL, value, "resampled", note)

    def plan_class_head(self) -> None:
        """Transfer the class rows between heads and class lists."""
        if ROWS not in self.source or ROWS not in self.waiting:
            return
        had, reason = self._stored_anomaly()
        if reason:
            if not self.allowed("class_head"):
                self.problems.append(reason)
            self._reinitialise_head("allowed: class lists differ" if reason else "")
            return
        has = bool(getattr(self.model, "has_anomaly", False))
        self._compare_head_options()
        note = self._plan_rows(had, has)
        self._plan_bias(had, has)
        if note:
            logger.info("class head: %s", note)

    def _compare_head_options(self) -> None:
        """Warn if the same head is configured differently, which changes its logits."""
        head = self.model.class_head
        if head_name(self.model) != self.spec.head:
            return
        for key, stored in self.spec.head_options.items():
            ours = getattr(head, "fixed_scale" if key == "scale" else key, None)
            if ours is not None and ours != stored:
                source = self.checkpoint.source
                logger.warning("class head: %s was %s in %s, is %s here", key, stored, source, ours)

    def _stored_anomaly(self) -> tuple[bool, str]:
        """Whether the file has the anomaly row, or why its class list does not fit the model's."""
        num_rows, had = self.source[ROWS].shape[0], self.spec.has_anomaly
        known = getattr(self.model, "num_known", None)
        if known is None:
            known = self.waiting[ROWS].shape[0] - 1 - int(getattr(self.model, "has_anomaly", False))
        if had is None:
            had = num_rows - 2 == known
        stored = num_rows - 1 - int(had)
        if stored == known:
            return had, ""
        return had, (
            f"class_head: {stored} known classes in the checkpoint"
            f"{' and the anomaly class' if had else ''}, {known} in the model. Set "
            f"MODEL.EOMT.NUM_CLASSES {stored} to keep its classes, or start a new head with "
            'MODEL.ALLOW_UNUSED_WEIGHTS ["class_head"]'
        )

    def _reinitialise_head(self, note: str) -> None:
        for name in [n for n in self.source if n.startswith("class_head.")]:
            self.ignore(name, note)
        for name in [n for n in self.waiting if n.startswith("class_head.")]:
            self.initialise(name, note)

    def _plan_rows(self, had: bool, has: bool) -> str:
        rows, note = transfer_class_rows(self.source[ROWS], had, has, self.seed)
        action = "inserted" if has and not had else "converted" if note else "loaded"
        old, new = self.spec.head, head_name(self.model)
        if old == "arcface" and BIAS in self.waiting:
            state = {**self.source, ROWS: rows}
            rows, factor = linear_rows_of_arcface(state, self._arcface_scale())
            note = "; ".join(
                filter(None, (note, f"unit rows times {factor:.3g} (arcface s / |f|)"))
            )
            action = "converted" if action == "loaded" else action
        elif old and new and old != new:
            note = _join(note, f"{old} to {new}, rows keep their direction")
            action = "converted" if action == "loaded" else action
        self.put(ROWS, rows.to(self.waiting[ROWS].dtype), action, note)
        return note

    def _arcface_scale(self) -> float:
        """s of the stored arcface head, learned or fixed."""
        stored = self.source.get("class_head.scale")
        options = self.spec.head_options
        return float(stored) if stored is not None else float(options.get("scale") or ARCFACE_SCALE)

    def _plan_bias(self, had: bool, has: bool) -> None:
        if BIAS in self.source and BIAS in self.waiting:
            bias, note = transfer_class_rows(self.source[BIAS], had, has)
            action = "inserted" if has and not had else "converted" if note else "loaded"
            self.put(BIAS, bias, action, note)
        elif BIAS in self.source:
            self.ignore(BIAS, f"{head_name(self.model) or 'the head'} has no bias")
        elif BIAS in self.waiting:
            zero = torch.zeros(self.waiting[BIAS].shape)
            self.put(BIAS, zero, "converted", "zero: the head of the checkpoint has no bias")
        other_head = head_name(self.model) != self.spec.head
        if other_head and "class_head.scale" in self.source:
            self.ignore("class_head.scale", "belongs to the arcface head")

    def plan_rest(self) -> None:
        """Load equal names, and account for what is left on either side."""
        for name in [name for name in self.source if name in self.waiting]:
            self.put(name, self.source[name], "loaded")
        bare = self.checkpoint.format in BARE_VITS or not any(
            name.startswith(_NEW_PARTS) for name in self.checkpoint.state_dict
        )
        for name in list(self.waiting):
            if bare and name.startswith(_NEW_PARTS):
                self.initialise(name, "not part of a bare ViT")
            elif bare and name.endswith(_ZERO):
                self.put(name, torch.zeros(self.waiting[name].shape), "initialised", "zero")
            elif name.endswith(_OPTIONAL) or name.startswith(RATIO_PREFIX):
                self.initialise(name, "not in the checkpoint")
            elif self.allowed(name):
                self.initialise(name, "not in the checkpoint; allowed by name")
            else:
                self.problems.append(f"{name}: missing in the checkpoint")
        for name in list(self.source):
            if self.allowed(name):
                self.ignore(name, "allowed by name")
            else:
                self.problems.append(f"{name}: the model has no such tensor")
        for name, reason in self.checkpoint.ignored:
            self.rows.append(LoadRow(name, "ignored", None, None, reason))

    @torch.no_grad()
    def commit(self) -> LoadReport:
        """Write the tensors into the model, unless there is any problem."""
        label = f"{self.checkpoint.source} ({self.checkpoint.format})"
        if self.problems:
            shown = [f"  {problem}" for problem in self.problems[:20]]
            if len(self.problems) > 20:
                shown.append(f"  ... and {len(self.problems) - 20} more")
            raise ValueError(
                f"{label} does not fit the model; nothing was loaded:\n"
                + "\n".join(shown)
                + "\nTensors that may be left out are named in MODEL.ALLOW_UNUSED_WEIGHTS"
            )
        self._check_trained(label)
        for name, value in self.values.items():
            self.target[name].copy_(value)
        order = {name: index for index, name in enumerate(self.target)}
        self.rows.sort(key=lambda row: order.get(row.name, len(order)))
        return LoadReport(label, self.rows, self.checkpoint.file)

    def _check_trained(self, label: str) -> None:
        """Name tensors that nobody has trained as the model would use them, or refuse them."""
        report = LoadReport(label, self.rows)
        if any(name == REGISTERS for name in report.names("initialised")):
            count = self.target[REGISTERS].shape[1]
            logger.warning(
                "%s has no register tokens, the model has %d: they start untrained. Set "
                "MODEL.EOMT.NUM_REGISTERS 0 to build it without them",
                label,
                count,
            )
        untrained = [row for row in self.rows if row.action in UNTRAINED]
        if self.allow_untrained or not untrained:
            return
        table = LoadReport(label, untrained).table()
        raise ValueError(
            f"{label} leaves {len(untrained)} tensors of the model untrained; nothing was loaded:\n"
            f"{table}\nEvaluate the checkpoint that was trained for this config, change the config "
            "to the checkpoint's (head, ANOMALY_CLASS, NUM_REGISTERS, LORA, RATIO), or set "
            "MODEL.ALLOW_UNTRAINED True to use it all the same"
        )


_HINTS = {
    "query.weight": "; set MODEL.EOMT.NUM_QUERIES to the first number",
    KERNEL: "; set MODEL.EOMT.SIZE (or WIDTH) to the checkpoint's",
}


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _shape_hint(name: str) -> str:
    if name.endswith((".lora_A", ".lora_B")):
        return "; set MODEL.LORA.RANK and TARGETS as the checkpoint had them, or merge it first"
    return _HINTS.get(name, "")


def model_grid(model: nn.Module) -> tuple[int, int]:
    """Return (rows, columns) of the patches that the model sees."""
    grid = getattr(getattr(model.backbone, "patch_embed", None), "grid_size", None)
    if grid is None:
        grid = (side // model.patch_size for side in model.image_size)
    return tuple(grid)


def _attention_heads(model: nn.Module) -> int | None:
    blocks = getattr(getattr(model, "backbone", None), "blocks", None)
    return getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None


def norm_eps(model: nn.Module) -> float | None:
    """Return the epsilon of the ViT's layer norms."""
    return getattr(getattr(model.backbone, "norm", None), "eps", None)


def head_name(model: nn.Module) -> str | None:
    """Return the name that the type of the model's class head is registered under, or None."""
    # Its own name only: a subclass that nobody registered would inherit that of its parent.
    return vars(type(getattr(model, "class_head", None))).get("name")


def _adapter_scales(model: nn.Module) -> dict[str, float]:
    return {
        name.replace("_orig_mod.", ""): float(module.scaling)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "scaling")
    }
