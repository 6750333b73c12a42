"""Match the score maps in a folder to the images of a dataset, and check them all beforehand."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anoseg_d2.data.label_rules import load_label
from anoseg_d2.evaluation.map_files import MAP_EXTENSIONS, MapReader
from anoseg_d2.utils.constants import ANOMALY, KNOWN
from anoseg_d2.utils.files import file_hash
from anoseg_d2.utils.folders import same_name, walk_files

__all__ = ["MapFolder", "coarse_warning", "read_labels"]

_SHOWN = 10  # names of each kind in an error


def read_labels(metadata, images: list[dict]) -> tuple[dict[str, tuple[int, int]], str]:
    """Read every label of a dataset once.

    Args:
        metadata: of the dataset, as detectron2's catalog has it.
        images: its dataset dicts.
    Returns:
        {label file: (H, W)}, and a digest of what makes figures comparable: the images, their
        labels and how these are read.
    Raises:
        ValueError: a label that the rule does not cover, or labels with nothing but void, nothing
            but known, or nothing but anomaly pixels. Those are placeholders of a hidden test set,
            and no figure can be computed from them.
    """
    shapes, files, known, anomaly = {}, [], 0, 0
    for image in images:
        path = image["sem_seg_file_name"]
        label = load_label(path, metadata.label_rule)
        shapes[path] = label.shape
        files.append((str(image["image_id"]), file_hash(path)))  # folders may move
        known += int((label == KNOWN).sum())
        anomaly += int((label == ANOMALY).sum())
    if not known or not anomaly:
        found = "anomaly" if anomaly else "known" if known else "void"
        folder = Path(images[0]["sem_seg_file_name"]).parent if images else "an empty dataset"
        raise ValueError(
            f"the {len(images)} labels in {folder} hold nothing but {found} pixels, as the "
            "placeholders of a hidden test set do: there is nothing to evaluate. Use the "
            "validation set, whose labels are public"
        )
    facts = [repr(metadata.label_rule), metadata.get("component_track", None), files]
    return shapes, hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass
class MapFolder:
    """The map file of every image of a dataset.

    Args:
        pairs: (dataset dict, map file), in the dataset's order.
        missing: names of images without a map.
        extra: map files that belong to no image.
    """

    pairs: list[tuple[dict, Path]]
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    @classmethod
    def find(cls, folder, images: list[dict], pattern: str = "{id}") -> "MapFolder":
        """Match files to images by name.

        Args:
            folder: searched with all its subfolders.
            images: dataset dicts.
            pattern: a map's name without extension, in which {id} stands for the image's id or for
                the photograph's name without extension.
        Raises:
            FileNotFoundError: no such folder.
            ValueError: a pattern without {id}, or several files for one image.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"no such folder of score maps: {folder}")
        if "{id}" not in pattern:
            raise ValueError(f"the name pattern {pattern!r} needs {{id}}, as in '{{id}}_score'")
        files: dict[str, list[Path]] = {}
        for path in walk_files(folder, MAP_EXTENSIONS):
            files.setdefault(same_name(path.stem), []).append(path)
        result = cls([])
        for image in images:
            ids = dict.fromkeys((str(image["image_id"]), Path(image["file_name"]).stem))
            names = [same_name(pattern.replace("{id}", i)) for i in ids]
            found = [path for name in names for path in files.get(name, [])]
            if len(found) > 1:
                raise ValueError(f"several maps for {names[0]}: {', '.join(map(str, found))}")
            if found:
                result.pairs.append((image, found[0]))
            else:
                result.missing.append(names[0])
        used = {path for _, path in result.pairs}
        result.extra = [str(p) for paths in files.values() for p in paths if p not in used]
        return result

    def check(
        self,
        reader: MapReader,
        shapes: dict[str, tuple[int, int]],
        progress: Callable[[], object] = lambda: None,
    ) -> dict[str, np.dtype]:
        """Read every map once and report everything that is wrong, before anything is computed.

        Args:
            reader: how maps are read.
            shapes: {label file: (H, W)}, the sizes that the maps must have.
            progress: called after each map.
        Returns:
            {file: type of its values}.
        Raises:
            ValueError: lists missing, extra, unreadable, wrong-sized and NaN maps.
        """
        wrong, found = [], {}
        for image, path in self.pairs:
            try:
                reader(path, shapes[image["sem_seg_file_name"]])
                found[str(path)] = reader.dtype(path)
            except (ValueError, OSError) as error:  # one run should name all unusable maps
                wrong.append(str(error))
            progress()
        problems = [
            *_listed("images have no map", self.missing),
            *_listed("maps belong to no image", self.extra),
            *_listed("maps cannot be used", wrong),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return found


def coarse_warning(types: dict[str, np.dtype]) -> str | None:
    """Return a warning about 8-bit maps, from what `check` found; None if there are none."""
    coarse = [name for name, dtype in types.items() if dtype.itemsize == 1]
    if not coarse:
        return None
    return (
        f"{len(coarse)} maps hold 8-bit values ({Path(coarse[0]).name}, ...): a map has at most "
        "256 different scores, and ties decide part of every figure. Save float32 or 16 bits "
        "where you can"
    )


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = [f"  ... and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return [f"{len(names)} {what}:", *(f"  {name}" for name in names[:_SHOWN]), *more]
