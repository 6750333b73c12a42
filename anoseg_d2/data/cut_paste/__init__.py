"""Cut-paste outliers: objects cut from photographs, pasted into road scenes.

`paste` blends given objects into one image, `sources` finds objects, `draw` chooses what an image
gets (offline, and while loading), `frames` finds the scenes, `job` writes whole sets.
"""

from anoseg_d2.data.cut_paste.paste import (
    ANOMALY_LABEL_ID,
    CutPasteOptions,
    PasteObject,
    paste_objects,
)

__all__ = ["ANOMALY_LABEL_ID", "CutPasteOptions", "PasteObject", "paste_objects"]
