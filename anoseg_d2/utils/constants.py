"""Define numbers and colours on which several packages must agree."""

from typing import NamedTuple

# Values in label maps of the anomaly benchmarks, once their label rule is applied.
KNOWN, ANOMALY = 0, 1
# Void and padding in every label map; no metric counts them.
VOID = 255
# Value of pasted objects in Cityscapes labelIds maps, as in the paper; official ids end at 33.
PASTED_ID = 254

# ImageNet statistics, RGB in 0..255, with which DINOv2 and DINOv3 were trained.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class ViTSize(NamedTuple):
    """Depth, width, heads, number of blocks that see queries, and timm's name of a size."""

    depth: int
    width: int
    heads: int
    num_blocks: int
    timm_name: str


VIT_SIZES = {
    "S": ViTSize(12, 384, 6, 3, "small"),
    "B": ViTSize(12, 768, 12, 3, "base"),
    "L": ViTSize(24, 1024, 16, 4, "large"),
    "G": ViTSize(40, 1536, 24, 5, "giant"),  # with SwiGLU; only DINOv2 has it
}


# Weight of no-object in the cross entropy, as in Mask2Former: most queries match nothing, so at
# weight 1 they would dominate the loss.
NO_OBJECT_WEIGHT = 0.1
# Scale s of ArcFace's cosines (arXiv:1801.07698).
ARCFACE_SCALE = 30.0

CITYSCAPES_CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle"),
)
CITYSCAPES_COLORS = (
    *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
    *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
    *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100)),
    *((0, 80, 100), (0, 0, 230), (119, 11, 32)),
)

# Where weights are named: the model that ships. Its card is weights/README.md.
SHIPPED_NAME = "road-s"

VOID_COLOR = (0, 0, 0)
# The learned anomaly class, and pasted objects, drawn over an image.
ANOMALY_COLOR = (255, 60, 0)
# Label maps of the anomaly benchmarks, drawn without an image below them.
ANOMALY_COLORS = {KNOWN: (60, 66, 82), ANOMALY: (255, 170, 60), VOID: (150, 150, 150)}
