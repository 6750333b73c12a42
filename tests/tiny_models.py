"""Small models and samples for tests, plain functions so that child processes can build them."""

import dataclasses
import weakref

import torch

from anoseg_d2.config import load_config
from anoseg_d2.modeling.criterion import SetCriterion
from anoseg_d2.modeling.eomt import EoMT
from anoseg_d2.modeling.heads import CLASS_HEADS
from anoseg_d2.modeling.inference import InferenceOptions
from anoseg_d2.modeling.lora import inject_lora
from anoseg_d2.modeling.vit import build_vit


def tiny_vit(**options):
    """ViT of 3 blocks, width 32, on 32 x 32 pixels (2 x 2 patches) unless told otherwise."""
    size = {"image_size": (32, 32), "depth": 3, "width": 32, "heads": 2, "num_registers": 1}
    vit = build_vit("S", **{**size, **options})
    for name, parameter in vit.named_parameters():
        if "gamma" in name:  # 1e-5 as in DINOv2 would hide the blocks from a tolerance
            torch.nn.init.ones_(parameter)
    return vit


def tiny_criterion(num_classes=3, **options):
    """Criterion on every pixel of the mask grid: no randomness."""
    return SetCriterion(num_classes, **{"match_points": 0, "loss_points": 0, **options})


def tiny_eomt(
    head="linear", *, num_known=3, has_anomaly=False, vit=None, head_options=None, lora=None, **kw
):
    """EoMT of 5 queries and 2 query blocks with a deterministic criterion.

    Args:
        head: name in CLASS_HEADS.
        vit: options of `tiny_vit`.
        head_options: arguments of the head.
        lora: options of `inject_lora`; the ViT is frozen then.
        kw: arguments of EoMT, and options of `InferenceOptions`.
    """
    backbone = tiny_vit(**(vit or {}))
    if lora is not None:
        inject_lora(backbone, **lora)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_("lora_" in name)
    width = backbone.embed_dim
    built = CLASS_HEADS[head](width, num_known, has_anomaly, **(head_options or {}))
    names = {field.name for field in dataclasses.fields(InferenceOptions)}
    inference = InferenceOptions(**{name: kw.pop(name) for name in names & set(kw)})
    options = {"num_queries": 5, "num_blocks": 2, "num_known": num_known, "inference": inference}
    options["criterion"] = tiny_criterion(num_known + has_anomaly)
    return EoMT(backbone=backbone, head=built, has_anomaly=has_anomaly, **{**options, **kw})


def tiny_batch(count=2, size=(32, 32), num_classes=3, seed=0):
    """Training samples: noise images, blocks of classes, a strip of void on the right."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        cells = torch.randint(num_classes, (2, 2), generator=generator)
        sem_seg = cells.repeat_interleave(size[0] // 2, 0).repeat_interleave(size[1] // 2, 1)
        sem_seg[:, -size[1] // 8 :] = 255
        image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        samples.append({"image": image, "sem_seg": sem_seg})
    return samples


def tiny_cfg(*overrides):
    """Config of a model as `tiny_eomt` builds; `overrides` are KEY, VALUE in turn."""
    cfg = load_config()
    defaults = {
        "MODEL.DEVICE": "cpu",
        "MODEL.EOMT.SIZE": "S",
        "MODEL.EOMT.DEPTH": 3,
        "MODEL.EOMT.WIDTH": 32,
        "MODEL.EOMT.HEADS": 2,
        "MODEL.EOMT.NUM_REGISTERS": 1,
        "MODEL.EOMT.NUM_CLASSES": 3,
        "MODEL.EOMT.NUM_QUERIES": 5,
        "MODEL.EOMT.NUM_BLOCKS": 2,
        "MODEL.CRITERION.MATCH_POINTS": 0,
        "MODEL.CRITERION.LOSS_POINTS": 0,
        "INPUT.CROP_SIZE": (32, 32),
        "SOLVER.MAX_ITER": 20,
        "SEED": 0,
    }
    cfg.merge_from_list([item for pair in defaults.items() for item in pair])
    cfg.merge_from_list(list(overrides))
    return cfg


def saved_bytes(model, *arguments):
    """Bytes that autograd holds after a forward pass, each storage once, parameters left out."""
    held = weakref.WeakSet()

    class Box:
        def __init__(self, tensor):
            self.tensor = tensor
            held.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Box, lambda box: box.tensor):
        losses = model(*arguments)
    storages = [box.tensor.untyped_storage() for box in held]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    for parameter in model.parameters():
        sizes.pop(parameter.untyped_storage().data_ptr(), None)
    assert losses
    return sum(sizes.values())


def set_inference(model, **options):
    """Change options of inference of a model."""
    model.inference = dataclasses.replace(model.inference, **options)


def set_info(model, **facts):
    """Change what is known about a model."""
    model.info = dataclasses.replace(model.info, **facts)


def merge_windows(maps, plan):
    """Weighted mean of window maps (n, M, h, w) where they overlap, (M, H, W): the plain way."""
    (height, width), (rows, columns) = plan.resized, plan.window
    total, weight = maps.new_zeros(maps.shape[1], height, width), maps.new_zeros(height, width)
    weights = torch.outer(*plan.weights)
    for window, (y, x) in zip(maps, plan.origins, strict=True):
        total[:, y : y + rows, x : x + columns] += window * weights
        weight[y : y + rows, x : x + columns] += weights
    return total / weight
