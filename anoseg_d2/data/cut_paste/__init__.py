"""Make cut-paste outliers: objects cut from photographs and pasted into road scenes.

- `paste_objects`: blends given objects into one image and its label map.
- `PasteObject`: a cut-out, its mask and its label.
- `CutPasteOptions`: all settings of size, place and blending.
- `sample_and_paste`: chooses the objects of one image, and pastes them.
- `OnlineCutPaste`: does the same while training images are loaded.
- `ObjectSource`, `OBJECT_SOURCES`: base class of the sources of objects, and a user's own by name.
- `ClosedSetObjects`: segments of known things, cut from other training frames.

`frames` finds the scenes, `job` writes whole datasets. Nothing here needs detectron2.
"""

from anoseg_d2.data.cut_paste.options import CutPasteOptions
from anoseg_d2.data.cut_paste.paste import PasteObject, paste_objects
from anoseg_d2.data.cut_paste.sampling import OnlineCutPaste, sample_and_paste
from anoseg_d2.data.cut_paste.sources import OBJECT_SOURCES, ClosedSetObjects, ObjectSource

__all__ = [
    "OBJECT_SOURCES",
    "ClosedSetObjects",
    "CutPasteOptions",
    "ObjectSource",
    "OnlineCutPaste",
    "PasteObject",
    "paste_objects",
    "sample_and_paste",
]
