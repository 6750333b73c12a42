"""Train a network with adapters to answer as the whole network from which they were cut.

No label is read, so any photographs serve: roads of other countries, and objects that are on no
road. Every folder is drawn from equally often. In a first phase only queries, heads, biases, norms
and layer scales train, in a second one the adapters as well.

    python experiments/small/distill.py whole.pth cut.pth --images DIR [DIR ...] --output out.pth
"""

import argparse
import random
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from anoseg_d2.checkpoint import read_checkpoint
from anoseg_d2.checkpoint.files import write_checkpoint
from anoseg_d2.checkpoint.metadata import meta_of_checkpoint
from anoseg_d2.data.image_io import IMAGE_EXTENSIONS, read_image
from anoseg_d2.prediction.predictor import AnomalyPredictor
from anoseg_d2.utils.folders import walk_files

BATCH = 4
RATES = 5e-4, 1.5e-4  # of the two phases


def crops(folders: list[str], side: int, seed: int) -> Iterator[Tensor]:
    """Yield batches (BATCH, 3, side, side) of random square crops, RGB 0..255."""
    files = [list(walk_files(folder, IMAGE_EXTENSIONS)) for folder in folders]
    empty = [folder for folder, found in zip(folders, files, strict=True) if not found]
    if empty:
        raise SystemExit(f"no image in {', '.join(empty)}")
    draw = random.Random(seed)  # noqa: S311

    def crop() -> Tensor:
        image = read_image(str(draw.choice(draw.choice(files))))
        height, width = image.shape[:2]
        size = int(min(height, width) * draw.uniform(0.4, 1))
        y, x = draw.randint(0, height - size), draw.randint(0, width - size)
        mode = cv2.INTER_AREA if size > side else cv2.INTER_LINEAR
        image = cv2.resize(image[y : y + size, x : x + size], (side, side), interpolation=mode)
        image = image[:, ::-1] if draw.random() < 0.5 else image
        image = image * np.float32(draw.uniform(0.7, 1.2)) + np.float32(draw.uniform(-15, 15))
        return torch.from_numpy(image.clip(0, 255)).permute(2, 0, 1)

    while True:
        yield torch.stack([crop() for _ in range(BATCH)])


def disagreement(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Compare mask logits (B, Q, h, w), class logits (B, Q, R) and the maps made of them."""
    (masks, logits), (wanted_masks, wanted_logits) = student, teacher
    probs = wanted_logits.softmax(dim=-1)
    classes = F.kl_div(logits.log_softmax(dim=-1), probs, reduction="none").sum(dim=(1, 2)).mean()
    # The mask of a query counts for as much as the query claims an object.
    claims, wanted = 1 - probs[..., -1], wanted_masks.sigmoid()
    apart = F.binary_cross_entropy_with_logits(masks, wanted, reduction="none")
    apart = apart - F.binary_cross_entropy(wanted, wanted, reduction="none")
    shapes = (claims * apart.mean(dim=(2, 3))).sum() / claims.sum()
    maps = F.smooth_l1_loss(log_odds(masks, logits), log_odds(wanted_masks, wanted_logits))
    return classes + 5 * shapes + maps / 2


def log_odds(mask_logits: Tensor, class_logits: Tensor) -> Tensor:
    """Return the log odds of the map of every class, (B, R - 1, h, w)."""
    probs = class_logits.softmax(dim=-1)[..., :-1]
    return torch.einsum("bqc,bqhw->bchw", probs, mask_logits.sigmoid()).logit(eps=1e-3)


def trained(model: nn.Module, adapters: bool) -> list[nn.Parameter]:
    """Freeze what does not train, and return the rest."""
    model.requires_grad_(False)
    chosen = []
    for name, parameter in model.named_parameters():
        small = name.endswith(("bias", "gamma")) or "norm" in name or (adapters and "lora_" in name)
        if (small or not name.startswith("backbone.")) and not name.startswith("patch_maps."):
            chosen.append(parameter.requires_grad_(True))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", help="a network that was trained as a whole")
    parser.add_argument("student", help="what extract_lora.py --rank cut from it")
    parser.add_argument("--images", nargs="+", required=True, help="folders of photographs")
    parser.add_argument("--steps", type=int, nargs=2, default=(600, 700), help="of both phases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    checkpoint = read_checkpoint(args.student)
    meta = meta_of_checkpoint(checkpoint)
    lora = {"ENABLED": True, "RANK": meta["lora"]["rank"], "ALPHA": meta["lora"]["alpha"]}
    keys = [item for key, value in lora.items() for item in (f"MODEL.LORA.{key}", value)]
    teacher = AnomalyPredictor.from_pretrained(args.teacher).model
    student = AnomalyPredictor.from_pretrained(args.student, keys).model
    for adapters, (steps, rate) in enumerate(zip(args.steps, RATES, strict=True)):
        parameters = trained(student, bool(adapters))
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
        batches = crops(args.images, student.image_size[0], args.seed)
        progress = trange(steps, desc="adapters too" if adapters else "heads", mininterval=5)
        for _, images in zip(progress, batches, strict=False):
            with torch.autocast("cpu", torch.bfloat16):
                with torch.no_grad():
                    wanted = teacher.predict_masks(images, final_only=True)[-1]
                found = student.predict_masks(images, final_only=True)[-1]
            loss = disagreement([v.float() for v in found], [v.float() for v in wanted])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            scheduler.step()
            progress.set_postfix(loss=f"{loss.item():.2f}")
    state = student.state_dict()
    tensors = {name: state.get(name, tensor) for name, tensor in checkpoint.state_dict.items()}
    write_checkpoint({"model": tensors, "meta": meta}, args.output)


if __name__ == "__main__":
    main()
