"""Options of pasting, for the config, the command and the constructor alike."""

from dataclasses import dataclass

from anoseg_d2.utils.constants import PASTED_ID
from anoseg_d2.utils.options import check_options, names_of, option, options_of
from anoseg_d2.utils.ranges import integer, number, one_of, sequence, text

NODE = "INPUT.CUT_PASTE"
_FRACTION = number(0, 1)
_RANGE = sequence(integer(0, 100), (2,), ascending=True)


@dataclass(frozen=True)
class ObjectOptions:
    """Where the pasted objects come from, and which of them are used."""

    coco_json: str = option(
        "",
        text(),
        "COCO's instances_train2017.json; in a config relative to DETECTRON2_DATASETS or absolute",
        metavar="FILE",
    )
    coco_images: str = option("", text(), "the folder of its photographs, likewise", metavar="DIR")
    cutouts: str = option(
        "",
        text(),
        "folder of images with an alpha channel, pasted as unknown objects",
        metavar="DIR",
    )
    textures: str = option(
        "", text(), "folder of photographs that fill random blobs", metavar="DIR"
    )
    source: str = option(
        "",
        text(),
        "a source of unknown objects of your own, by its name in OBJECT_SOURCES",
        metavar="NAME",
    )
    drop_categories: tuple[str, ...] = option(
        [],
        sequence(text(empty=False)),
        "COCO categories that are never pasted as unknown objects; empty: those that Cityscapes "
        "knows",
        metavar="NAME",
    )
    min_area: float = option(1000.0, number(0), "least area of a COCO object, pixels")
    keep_cut: bool = option(
        False, says="take objects that their photograph's border cuts off (the paper does)"
    )
    rarest_first: bool = option(
        False, says="paste each known class equally often", key="CLOSED_SET_RAREST_FIRST"
    )

    def __post_init__(self):
        check_options(self)
        if bool(self.coco_json) != bool(self.coco_images):
            both = " and ".join(names_of(self, "coco_json", "coco_images"))
            raise ValueError(f"{both} belong together; one of them is empty")


@dataclass(frozen=True)
class CutPasteOptions:
    """How many objects are pasted, where, at what size, and how they are blended.

    The paper states the defaults of `count`, `scale`, `max_fraction` and of the first `feather`
    value (a blur of radius 5). Its text implies a `ratio` of 1.0. It has no `min_side` and no
    `rim`, and its feather does not shrink with the object.

    Args:
        control_count: (0, 0) is off, and so for `closed_set_count`.
        min_side: at most half of what `max_fraction` allows (which matters in frames under 160
            pixels). An object too thin to satisfy both limits is not placed.
        size: `perspective` makes an object shrink with the row of its base, from
            `perspective_side` at the bottom to 0 at the horizon; `scale` applies to that.
        perspective_side: 0.08 gives a median near 0.04, as in Lost and Found.
        ground_labels: label values that count as ground (Cityscapes ids of road and pavement).
        rim: outlines are drawn by hand and often include some background, so the colours of a band
            inside of them are replaced by those further inside; 0 keeps them.
        anomaly_value: label value of pasted unknown objects.
        max_redraws: of an object without a visible label pixel.
    """

    ratio: float = option(
        0.5, _FRACTION, "fraction of the images that receive objects (the paper: 1.0)"
    )
    count: tuple[int, int] = option((1, 3), _RANGE, "fewest and most unknown objects of an image")
    parts: float = option(
        0.0, _FRACTION, "fraction of the unknown objects of which only a random part is pasted"
    )
    # A config has two keys for each of these ranges.
    control_count: tuple[int, int] = option(
        (0, 0),
        _RANGE,
        "fewest and most pasted COCO objects of known classes, under their own label; try 0 2",
        key="",
        argument="--controls",
    )
    closed_set_count: tuple[int, int] = option(
        (0, 0),
        _RANGE,
        "fewest and most segments of known things, cut from other training frames by their labels",
        key="",
        argument="--closed-set",
    )
    scale: tuple[float, float] = option(
        (0.5, 1.5),
        sequence(number(0, 100, above=True), (2,), ascending=True),
        "range of the factor on an object's size",
    )
    max_fraction: float = option(
        0.4,
        number(0, 1, above=True),
        "greatest size, as a fraction of the frame's height and width",
    )
    min_side: int = option(32, integer(1, 16_384), "least side of a pasted object, pixels")
    # Spelt SCALE_MODE in a config, and `uniform` for `native`.
    size: str = option(
        "native",
        one_of("native", "perspective"),
        "what the scale applies to: the size in the photograph, or one that follows the row",
        key="",
    )
    perspective_side: float = option(
        0.08,
        number(0, 10, above=True),
        "longest side at the frame's bottom, fraction of its short side",
    )
    perspective_min_side: int = option(
        8, integer(1, 16_384), "takes the place of MIN_SIDE in perspective, pixels"
    )
    placement: str = option(
        "uniform",
        one_of("uniform", "road"),
        "where objects are put: anywhere, or with their foot on the ground",
    )
    # No key: it follows from the coding of the labels, as `anomaly_value` does.
    ground_labels: tuple[int, ...] = (7, 8)
    feather: tuple[float, float] = option(
        (5.0, 0.1),
        sequence(number(0, 1000), (2,)),
        "sigma of the alpha's blur: min(first, second * sqrt(mask area)) px",
    )
    rim: int = option(
        2, integer(0, 100), "pixels cleaned inside an object's outline (the paper: 0)"
    )
    opaque_core: bool = option(False, says="the eroded mask stays fully opaque, whatever the blur")
    anomaly_value: int = PASTED_ID
    max_redraws: int = option(
        20, integer(0, 10_000), "how often an object that found no place is replaced"
    )

    def __post_init__(self):
        check_options(self)
        counts = (self.count, self.control_count, self.closed_set_count)
        if not any(most for _, most in counts):
            raise ValueError(f"{names_of(self, 'count')[0]} is {self.count}: nothing is pasted")


def read_options(cfg, **labels) -> CutPasteOptions:
    """Return what INPUT.CUT_PASTE describes.

    Args:
        cfg: config node.
        labels: `ground_labels` and `anomaly_value` in the coding of the labels.
    """
    node = cfg.INPUT.CUT_PASTE
    return options_of(
        cfg,
        NODE,
        CutPasteOptions,
        control_count=(node.CONTROL_LEAST, node.CONTROL_OBJECTS),
        closed_set_count=(node.CLOSED_SET_LEAST, node.CLOSED_SET_OBJECTS),
        size="native" if node.SCALE_MODE == "uniform" else node.SCALE_MODE,
        **labels,
    )
