"""Load a checkpoint into a model that may differ from it, with every tensor accounted for.

Shape letters: K known classes, R class rows, C width, P rows of the position embedding, (h, w)
its grid, Q queries. The model is not changed before the whole plan is known to work.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import torch
from tabulate import tabulate
from timm.layers import resample_patch_embed
from torch import Tensor

from anoseg_d2.checkpoint.adapters import lora_module_names, merge_lora_state
from anoseg_d2.checkpoint.metadata import head_name, model_grid, model_tensors
from anoseg_d2.checkpoint.rules import (
    fold_position_prefix,
    resample_position_embedding,
    transfer_class_rows,
)
from anoseg_d2.checkpoint.spec import Checkpoint
from anoseg_d2.modeling.eomt import EoMT
from anoseg_d2.modeling.patch_heads import PATCH_PREFIX
from anoseg_d2.modeling.vit import backbone_kind

logger = logging.getLogger(__name__)

EMBED, KERNEL = "backbone.pos_embed", "backbone.patch_embed.proj.weight"
ROWS, BIAS, SCALE = "class_head.weight", "class_head.bias", "class_head.scale"
# Actions after which a tensor is no longer what was trained.
UNTRAINED = ("initialised", "inserted", "converted")
# Parts that a bare ViT does not have, and parts that may start from an initialisation.
_NEW_PARTS = ("query.", "class_head.", "mask_head.", "upscale.")
_OPTIONAL = (".reg_token", ".lora_A", ".lora_B", SCALE)
# Zero in DINOv3's released weights, so that some files leave them out.
_ZERO = (".attn.q_bias", ".attn.v_bias")
# What to do about a tensor of another shape.
_HINTS = {
    "query.weight": "; set MODEL.EOMT.NUM_QUERIES to the first number",
    KERNEL: "; set MODEL.EOMT.SIZE (or WIDTH) to the checkpoint's",
}
_LORA_HINT = "; set MODEL.LORA.RANK and TARGETS as the checkpoint had them, or merge it first"


@dataclass(frozen=True)
class LoadRow:
    """What happened to one tensor; a shape is None if that side does not have the tensor."""

    name: str
    action: str  # see LoadReport
    stored: tuple[int, ...] | None = None
    loaded: tuple[int, ...] | None = None
    note: str = ""


@dataclass
class LoadReport:
    """What happened to every tensor in one load.

    Attributes:
        source: what was read, and its format.
        rows: one LoadRow per tensor of the model and per tensor of the file that went unused.
            Actions: `loaded` as it is; `resampled` to another grid or patch size; `transferred`
            without changing what the model computes; `merged` with its adapter; and those that
            leave it untrained, `initialised`, `inserted` (class rows) and `converted` (to another
            head or class list). Tensors of the file may be `ignored`.
        file: what was read, for `describe_weights`; None if it came from memory.
    """

    source: str
    rows: list[LoadRow] = field(default_factory=list)
    file: Path | None = None

    def names(self, action: str) -> list[str]:
        """Return the names of the tensors that `action` happened to."""
        return [row.name for row in self.rows if row.action == action]

    def counts(self) -> dict[str, int]:
        """Count the tensors per action, in order of appearance."""
        return dict(Counter(row.action for row in self.rows))

    def table(self, leave_out: tuple[str, ...] = ()) -> str:
        """Lay the rows out as text; numbered siblings with the same fate share a line.

        Args:
            leave_out: actions whose rows are not shown.
        Returns:
            the table; empty if it would have no row.
        """
        lines: Counter[tuple[str, ...]] = Counter()
        for row in self.rows:
            shapes = [shape for shape in (row.stored, row.loaded) if shape is not None]
            texts = dict.fromkeys("x".join(map(str, shape)) or "scalar" for shape in shapes)
            if row.action not in leave_out:
                name = re.sub(r"(?<=\.)\d+(?=\.)", "*", row.name)
                lines[name, row.action, " -> ".join(texts), row.note] += 1
        headers = ["tensor", "action", "shape", "note", "count"]
        rows = [[*line, count] for line, count in lines.items()]
        return tabulate(rows, headers=headers, disable_numparse=True) if rows else ""


def load_into(
    model: EoMT,
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
        model: with or without adapters, on any device.
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
    checkpoint.require_whole()
    stored, ours = checkpoint.spec.backbone, backbone_kind(model.backbone)
    if stored and stored != ours:  # one line instead of a page of missing and unknown names
        raise ValueError(
            f"{checkpoint.source} is built on {stored}, the model on {ours}; "
            f"set MODEL.EOMT.BACKBONE {stored}"
        )
    warn_of_delta(checkpoint)
    plan = _Plan(model, checkpoint, tuple(allow_unused), seed)
    plan.make()
    report = plan.commit(allow_untrained)
    counts = ", ".join(f"{count} {action}" for action, count in report.counts().items())
    # Tensors loaded unchanged would fill a page and need no attention.
    table = report.table(leave_out=("loaded",))
    logger.info("Loaded %s: %s%s", report.source, counts, f"\n{table}" if table else "")
    logger.debug("Every tensor of it:\n%s", report.table())
    return report


def load_same(model: EoMT, checkpoint: Checkpoint) -> None:
    """Load a checkpoint of exactly this model, with equal names and shapes.

    Raises:
        ValueError: the checkpoint is not one of ours, or the model is built differently.
    """
    if checkpoint.format != "anoseg" or not checkpoint.meta:
        raise ValueError(f"{checkpoint.source} was not saved by a training run: cannot resume it")
    plan = _Plan(model, checkpoint, (), 0)
    plan.make()
    # What any rule had to change means that the optimiser's state belongs to another model.
    changed = [row for row in plan.rows if row.action != "loaded"]
    plan.problems += [f"{row.name}: {_join(row.action, row.note)}" for row in changed]
    grid = checkpoint.spec.grid
    if grid and grid != model_grid(model):  # computed positions have no tensor that shows it
        plan.problems.append(f"grid: {grid} saved, {model_grid(model)} in the model")
    plan.commit()


def warn_of_delta(checkpoint: Checkpoint) -> None:
    """Warn if a checkpoint looks like a difference to other weights, as EoMT's authors release.

    The file itself does not state it. A trained LayerNorm has gains near 1; those of a difference
    are near 0.
    """
    gains = [
        tensor.float().flatten()
        for name, tensor in checkpoint.state_dict.items()
        if name.startswith("backbone.") and name.endswith(("norm1.weight", "norm2.weight"))
    ]
    if gains and torch.cat(gains).abs().mean() <= 0.02:
        logger.warning(
            "%s: the LayerNorm gains of the encoder are near 0. It looks like a delta that is to "
            "be added to other weights: name them in MODEL.DELTA_BASE, or add them once with "
            "`anoseg convert --delta-base`",
            checkpoint.source,
        )


class _Plan:
    """The decisions of one load; `commit` applies all of them or none.

    Attributes:
        source: tensors of the file that no rule has taken yet.
        target: all tensors of the model; `waiting` those that no rule has filled yet.
        values: what will be written into the model.
        rows: what the report will say.
        problems: what no rule covers; a single one stops the load.
    """

    def __init__(self, model: EoMT, checkpoint: Checkpoint, allow: tuple[str, ...], seed: int):
        self.model, self.checkpoint, self.allow, self.seed = model, checkpoint, allow, seed
        self.spec = checkpoint.spec
        self.source = dict(checkpoint.state_dict)
        self.target = model_tensors(model)
        self.waiting = dict(self.target)
        self.values: dict[str, Tensor] = {}
        self.rows: list[LoadRow] = []
        self.problems: list[str] = []

    def make(self) -> None:
        """Let each rule take the tensors that it understands."""
        self.check_model()
        # The weights that adapters are merged into may be changed by a later rule, and the head
        # reads the gain of the final norm, which `plan_rest` takes with all that is left.
        self.plan_adapters()
        self.plan_position_embedding()
        self.plan_patch_kernel()
        self.plan_class_head()
        self.plan_rest()

    def put(self, name: str, value: Tensor, action: str, note: str = "") -> None:
        """Load `value` under `name`; it replaces what the file has there."""
        target, stored = self.waiting.pop(name, None), self.source.pop(name, None)
        if target is None:
            problem = "the model has no such tensor"
        elif value.shape != target.shape:
            lora = name.endswith((".lora_A", ".lora_B"))
            hint = _LORA_HINT if lora else _HINTS.get(name, "")
            shapes = tuple(value.shape), tuple(target.shape)
            problem = f"{shapes[0]} in the checkpoint, {shapes[1]} in the model{hint}"
        elif not value.is_floating_point():  # copy_ would convert integers silently
            problem = f"holds {value.dtype}, not floating-point weights"
        elif not torch.isfinite(value).all():
            problem = "holds NaN or infinite values"
        else:
            self.values[name] = value  # the model changes only in `commit`
            origin = None if stored is None else tuple(stored.shape)
            kinds = [str(t.dtype).split(".")[-1] for t in (stored, target) if t is not None]
            cast = " to ".join(kinds) if len(set(kinds)) > 1 else ""
            self.rows.append(LoadRow(name, action, origin, tuple(target.shape), _join(note, cast)))
            return
        self.problems.append(f"{name}: {problem}")

    def leave(self, name: str, note: str) -> None:
        """Leave a tensor of the model as it is, and one of the file out."""
        target, stored = self.waiting.pop(name, None), self.source.pop(name, None)
        if target is not None:
            self.rows.append(LoadRow(name, "initialised", None, tuple(target.shape), note))
        if stored is not None:
            self.rows.append(LoadRow(name, "ignored", tuple(stored.shape), None, note))

    def allowed(self, name: str) -> bool:
        return any(name == a or name.startswith(a + ".") or fnmatch(name, a) for a in self.allow)

    def check_model(self) -> None:
        """Refuse differences that no tensor's shape would reveal."""
        model, spec = self.model, self.spec
        compared = (
            ("num_blocks", "NUM_BLOCKS", "queries enter the last {} blocks", model.num_blocks),
            ("heads", "HEADS", "{} attention heads", model.backbone.blocks[0].attn.num_heads),
            ("norm_eps", "NORM_EPS", "layer norms have eps {:g}", model.backbone.norm.eps),
        )
        for name, key, text, ours in compared:
            stored = getattr(spec, name)
            if not stored or math.isclose(stored, ours, rel_tol=1e-3):
                continue
            # Another number of heads is another network; the other two are a matter of judgement.
            if name == "heads" or not self.allowed(name):
                self.problems.append(
                    f"{name}: {text.format(stored)} in the checkpoint, {ours:g} in the model; "
                    f"set MODEL.EOMT.{key} {stored:g}"
                )
        for name in ("pixel_mean", "pixel_std"):
            ours, stored = getattr(model, name).flatten().tolist(), getattr(spec, name)
            # Files round these to a hundredth of a grey level.
            if stored and any(abs(a - b) > 0.01 for a, b in zip(ours, stored, strict=True)):
                self.problems.append(
                    f"{name}: the checkpoint was trained with {stored} (0..255), the model has "
                    f"{[round(value, 3) for value in ours]}; set MODEL.{name.upper()}"
                )

    def plan_adapters(self) -> None:
        """Merge adapters that the model lacks; compare alpha of those that it has."""
        before, present = self.source, set(lora_module_names(self.target))
        merge = [name for name in lora_module_names(before) if name not in present]
        try:
            self.source = merge_lora_state(before, self.spec.adapters, merge)
        except ValueError as error:
            raise ValueError(f"{self.checkpoint.source}: {error}") from error
        for name in merge:
            if f"{name}.weight" in self.waiting:
                self.put(f"{name}.weight", self.source[f"{name}.weight"], "merged", "LoRA added")
            for part in ("lora_A", "lora_B"):
                shape = tuple(before[f"{name}.{part}"].shape)
                note = "merged into its weight: the model has no adapter here"
                self.rows.append(LoadRow(f"{name}.{part}", "merged", shape, None, note))
        # Those that stay may be scaled differently, which no tensor's shape shows.
        modules = {n.replace("_orig_mod.", ""): m for n, m in self.model.named_modules()}
        for name in lora_module_names(self.source):
            stored, module = self.spec.adapters.get(name), modules.get(name)
            if stored is None or not hasattr(module, "scaling"):
                continue
            theirs, ours = stored["alpha"] / stored["rank"], float(module.scaling)
            if abs(ours - theirs) > 1e-9:
                self.problems.append(
                    f"{name}: LoRA scaled by alpha / rank = {theirs:g} in the checkpoint, "
                    f"{ours:g} in the model; set MODEL.LORA.ALPHA and RANK as it had them, "
                    "or merge it first (anoseg convert --merge)"
                )

    def plan_position_embedding(self) -> None:
        """Fit the prefix and grid of the position embedding to the model."""
        if EMBED not in self.source or EMBED not in self.waiting:
            return
        stored, target = self.source[EMBED], self.waiting[EMBED]
        grid, prefix = self.spec.grid, self.spec.pos_prefix
        new_grid = model_grid(self.model)
        new_prefix = target.shape[1] - math.prod(new_grid)
        known = grid is not None and prefix is not None and prefix >= 0
        if known and grid != new_grid and not self.spec.grid_stated:
            # A guessed square that has as many patches as the model's oblong could be either.
            known = math.prod(grid) != math.prod(new_grid)
        if not known and (grid or stored.shape != target.shape):
            self.problems.append(
                f"{EMBED}: its {stored.shape[1]} rows fit no known grid, and the file does not "
                "say which; give the crop it was trained at: `anoseg convert "
                f"{self.checkpoint.source} --image-size H W --to anoseg --output FILE`"
            )
            del self.source[EMBED], self.waiting[EMBED]  # or `plan_rest` reports it again
            return
        if not known:  # no square, but as many rows as the model has
            grid, prefix = new_grid, new_prefix
        action, notes, head = "loaded", [], stored[:, :prefix].float()
        if prefix != new_prefix:
            # The model only ever sees token plus position, so the sum may move into the token.
            action = "transferred"
            notes.append("positions of the prefix folded into its tokens")
            head = torch.zeros(1, new_prefix, stored.shape[-1])
            folded = fold_position_prefix(self.source, prefix)
            for name in folded.keys() - {EMBED}:
                self.put(name, folded[name], "transferred", "its position added to it")
        if tuple(grid) != new_grid:
            action = "resampled"
            notes.append(f"grid {grid[0]}x{grid[1]} to {new_grid[0]}x{new_grid[1]}, bicubic")
        patches = resample_position_embedding(stored[:, prefix:], grid, new_grid)
        self.put(EMBED, torch.cat([head, patches], dim=1), action, _join(*notes))

    def plan_patch_kernel(self) -> None:
        """Resample the patch kernel to the model's patch size."""
        stored, target = self.source.get(KERNEL), self.waiting.get(KERNEL)
        if stored is None or target is None or stored.shape == target.shape:
            return
        # Another width or number of channels is no resampling; `plan_rest` will name the shapes.
        if stored.dim() == 4 and stored.shape[:2] == target.shape[:2]:
            size = list(target.shape[-2:])
            note = f"patch {stored.shape[-1]} to {size[-1]} pixels"
            self.put(KERNEL, resample_patch_embed(stored.float(), size), "resampled", note)

    def plan_class_head(self) -> None:
        """Transfer the class rows between heads and class lists."""
        if ROWS not in self.source or ROWS not in self.waiting:
            return
        had, has, known = self.spec.has_anomaly, self.model.has_anomaly, self.model.num_known
        num_rows = len(self.source[ROWS])
        if had is None:  # a file without metadata: one row too many is the anomaly's
            had = num_rows - 2 == known
        stored = num_rows - 1 - int(had)
        if stored != known:
            if not self.allowed("class_head"):
                anomaly = " and the anomaly class" if had else ""
                self.problems.append(
                    f"class_head: {stored} known classes in the checkpoint{anomaly}, {known} in "
                    f"the model. Set MODEL.EOMT.NUM_CLASSES {stored} to keep its classes, or "
                    'start a new head with MODEL.ALLOW_UNUSED_WEIGHTS ["class_head"]'
                )
            # Remove them even after a problem, or `plan_rest` would report each tensor again.
            for name in [*self.source, *self.waiting]:
                if name.startswith("class_head."):
                    self.leave(name, "allowed: class lists differ")
            return
        row = "loaded" if had == has else "inserted" if has else "converted"
        rows, note = transfer_class_rows(self.source[ROWS], had, has, self.seed)
        old, new, action = self.spec.head, head_name(self.model), row
        if old and new and old != new:
            note = _join(note, f"{old} to {new}, rows keep their direction")
            action = "converted" if row == "loaded" else row
        if note:
            logger.info("class head: %s", note)
        self.put(ROWS, rows, action, note)
        if old != new and SCALE in self.source:
            self.leave(SCALE, "belongs to the arcface head")
        if BIAS in self.source and BIAS in self.waiting:
            bias, note = transfer_class_rows(self.source[BIAS], had, has)
            self.put(BIAS, bias, row, note)
        elif BIAS in self.source:
            self.leave(BIAS, f"{new or 'the head'} has no bias")
        elif BIAS in self.waiting:
            zero = torch.zeros(self.waiting[BIAS].shape)
            self.put(BIAS, zero, "converted", "zero: the head of the checkpoint has no bias")

    def plan_rest(self) -> None:
        """Load tensors of equal name, and account for the rest of both sides."""
        for name in [name for name in self.source if name in self.waiting]:
            self.put(name, self.source[name], "loaded")
        # So that a ViT in an EoMT's format, without any head, is as bare as timm's.
        bare = not any(name.startswith(_NEW_PARTS) for name in self.checkpoint.state_dict)
        for name in list(self.waiting):
            if bare and name.startswith(_NEW_PARTS):
                self.leave(name, "not part of a bare ViT")
            elif bare and name.endswith(_ZERO):
                self.put(name, torch.zeros(self.waiting[name].shape), "initialised", "zero")
            elif name.endswith(_OPTIONAL) or name.startswith(PATCH_PREFIX):
                self.leave(name, "not in the checkpoint")
            elif self.allowed(name):
                self.leave(name, "not in the checkpoint; allowed by name")
            else:
                self.problems.append(f"{name}: missing in the checkpoint")
        for name in list(self.source):
            if self.allowed(name):
                self.leave(name, "allowed by name")
            else:
                self.problems.append(f"{name}: the model has no such tensor")
        for name, reason in self.checkpoint.ignored:
            self.rows.append(LoadRow(name, "ignored", None, None, reason))

    @torch.no_grad()
    def commit(self, allow_untrained: bool = True) -> LoadReport:
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
        if not allow_untrained:
            self.check_trained(label)
        for name, value in self.values.items():
            self.target[name].copy_(value)
        # In the model's order, not in that of the rules; what it does not have comes last.
        order = {name: index for index, name in enumerate(self.target)}
        self.rows.sort(key=lambda row: order.get(row.name, len(order)))
        return LoadReport(label, self.rows, self.checkpoint.file)

    def check_trained(self, label: str) -> None:
        """Refuse tensors that nobody trained, and masks that belong to an unfinished training."""
        masks = self.spec.mask_probs
        if masks and not self.allowed("attn_mask_probs"):
            shown = ", ".join(f"{probability:g}" for probability in masks)
            raise ValueError(
                f"{label} was trained with attention masks that are still on (attn_mask_probs "
                f"{shown}); nothing was loaded. Here a model is used without attention masks, "
                "which changes its predictions. Train it further, which anneals them away "
                "(MODEL.EOMT.MASKED_ATTENTION), or use it without them anyway: "
                'MODEL.ALLOW_UNUSED_WEIGHTS ["attn_mask_probs"]'
            )
        untrained = LoadReport(label, [row for row in self.rows if row.action in UNTRAINED])
        if untrained.rows:
            raise ValueError(
                f"{label} leaves {len(untrained.rows)} tensors of the model untrained; nothing was "
                f"loaded:\n{untrained.table()}\n"
                "Evaluate the checkpoint that was trained for this config, change the config to "
                "the checkpoint's (head, ANOMALY_CLASS, NUM_REGISTERS, LORA, RATIO), or set "
                "MODEL.ALLOW_UNTRAINED True to use it anyway"
            )


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
