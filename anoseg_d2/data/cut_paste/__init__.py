"""Cut-paste outliers: objects cut from photographs, pasted into road scenes.

- `paste_objects`: blends given objects into one image and its label map.
- `PasteObject`: a cut-out, its mask and its label.
- `CutPasteOptions`: every choice of size, place and blending.
- `sample_and_paste`: chooses what one image receives, and pastes it.
- `OnlineCutPaste`: the same while training images are loaded.
- `OBJECT_SOURCES`: where objects come from, by name; one's own source joins here.
- `ObjectSource`: what such a source has to offer.
- `ClosedSetObjects`: segments of known things, cut from other training frames.

`frames` finds the scenes, `job` writes whole datasets. Nothing here needs detectron2.
"""

from anoseg_d2.data.cut_paste.closed_set import ClosedSetObjects
from anoseg_d2.data.cut_paste.paste import CutPasteOptions, PasteObject, paste_objects
from anoseg_d2.data.cut_paste.sampling import OnlineCutPaste, sample_and_paste
from anoseg_d2.data.cut_paste.sources import OBJECT_SOURCES, ObjectSource

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
