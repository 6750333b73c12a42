"""What the JSON of an evaluation holds, and the one check of it.

result.json of a dataset, results.json and curves.json of a report are written by this project and
read again, perhaps after somebody edited, cut or received them. Their form is stated once, below;
what does not have it is to be evaluated again. Entries that nothing reads may be anything.
"""

import re
import sys

__all__ = ["CURVES", "RECORD", "RESULTS", "VERSION", "check_stored"]

VERSION = 1  # files without a version are of version 1


def _number(value) -> bool:
    # bool is an int in Python; integers beyond float, infinities and NaN fail the comparison.
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def _figure(value) -> bool:
    return value is None or _number(value)


def _natural(value) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _pair(value) -> bool:
    """Whether it is None or two bounds."""
    whole = isinstance(value, list) and len(value) == 2 and all(map(_figure, value))
    return value is None or whole


def _thresholds(value) -> bool:
    """Whether it is None or {true-positive rate in percent: threshold}."""
    if value is None or not isinstance(value, dict):
        return value is None
    return all(n.replace(".", "", 1).isdecimal() and _figure(v) for n, v in value.items())


def _box(value) -> bool:
    whole = isinstance(value, list) and len(value) == 4 and all(map(_natural, value))
    return whole and min(value[2:]) > 0


def _curve(value) -> bool:
    """Whether it is None or holds lists of numbers of one length."""
    lists = [value.get(k) for k in _CURVE] if isinstance(value, dict) else []
    whole = all(isinstance(v, list) and all(map(_number, v)) for v in lists)
    return value is None or (whole and len({len(v) for v in lists}) == 1)


def _crop_file(value) -> bool:
    """Whether it names a crop in its own folder: kind, quoted score, rank."""
    pattern = r"(false|missed)-[A-Za-z0-9._+%-]+-[0-9]{2}\.npz"
    return isinstance(value, str) and bool(re.fullmatch(pattern, value))


_CURVE = ("recall", "precision", "fpr")
_COUNTS = ("images", "classes", "pixels", "anomaly_pixels", "known_pixels", "void_pixels")
# A form is a type, a predicate, a tuple of alternatives, [of every entry], {name: of an entry that
# may be absent} or {...: of every entry}.
_SCORE = {
    **dict.fromkeys(("auprc", "fpr95", "auroc", "best_f1"), _figure),
    **dict.fromkeys(("auprc_bounds", "fpr95_bounds", "auroc_bounds", "best_f1_bounds"), _pair),
    **dict.fromkeys(("sIoU", "PPV", "mean_F1", "best_f1_threshold"), _figure),
    "tpr_thresholds": _thresholds,
    "components_at": (None, {...: {...: _figure}}),
    "why": (None, str),
}
_ANOMALY = {
    "scores": {...: _SCORE},
    **dict.fromkeys(_COUNTS, _figure),
    "warnings": (None, [str]),
}
_CLOSED = {
    **dict.fromkeys(
        ("mIoU", "mIoU_union", "pixel_accuracy", "mean_accuracy", "ECE", *_COUNTS), _figure
    ),
    "IoU": {...: _figure},
}
CURVES = {...: _curve}
RESULTS = {
    "datasets": {...: _ANOMALY},
    "closed_set": {...: _CLOSED},
    "model": (None, dict),
    "models": {...: dict},
}
_IMAGE = {"image_id": str, "ap": {...: _figure}}
RECORD = {
    "kind": ("anomaly", "closed_set"),
    "result": {**_ANOMALY, **_CLOSED},
    "method": (None, str),
    "labels": (None, str),
    "score_warnings": {...: [str]},
    "per_image": [_IMAGE],
    "curves": CURVES,
    "false_components": {...: [{"image_id": str, "box": _box, "area": _natural}]},
    "failures": [
        {
            "image_id": str,
            "place": [_natural],
            "kind": str,
            "score": str,
            "file": _crop_file,
            "value": _figure,  # None for an infinite score
        }
    ],
}
_REQUIRED = ("image_id", "ap", "box", "area", "place", "kind", "score", "file")


def check_stored(value, form, source, where: str = "the file"):
    """Return `value` if it has a form, and a version that is known.

    Args:
        value: what the file holds.
        form: `RESULTS`, `RECORD` or `CURVES`.
        source: the file, for the message.
        where: of the entry in it.
    Raises:
        ValueError: names the file and the entry, and says to evaluate again.
    """
    if where == "the file" and isinstance(value, dict) and form is not CURVES:
        version = value.get("version", VERSION)
        if version != VERSION:
            raise ValueError(
                f"{source}: version is {version!r:.40}, this release reads {VERSION}; evaluate "
                "again with it"
            )
    inner = _entries(value, form, where)
    if inner is None:
        raise ValueError(
            f"{source}: {where} is {repr(value)[:60]}, not what an evaluation writes; evaluate "
            "again (anoseg eval, anoseg maps)"
        )
    for entry, entry_form, name in inner:
        check_stored(entry, entry_form, source, name)
    return value


def _entries(value, form, where: str) -> list | None:
    """Return (entry, form, name) of what is still to be checked; None if `value` is wrong."""
    name = "" if where == "the file" else f"{where}."
    if isinstance(form, tuple):
        found = (_entries(value, one, where) for one in form)
        return next((entries for entries in found if entries is not None), None)
    if isinstance(form, list):
        whole = isinstance(value, list)
        return [(v, form[0], f"{name}{i}") for i, v in enumerate(value)] if whole else None
    if isinstance(form, dict):
        named = [key for key in form if key in _REQUIRED]
        if not isinstance(value, dict) or any(key not in value for key in named):
            return None
        every = form.get(...)
        return [
            (v, every or form[key], f"{name}{key}")
            for key, v in value.items()
            if every is not None or key in form
        ]
    if isinstance(form, type):
        return [] if isinstance(value, form) else None
    right = form(value) if callable(form) else value == form
    return [] if right else None
