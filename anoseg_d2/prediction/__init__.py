"""Predict images and videos, and write pictures, raw maps and components (`anoseg predict`).

- `AnomalyPredictor`: images, paths or lists of them in, maps out.
- `find_inputs`: finds the images and videos that a user names.
- `PredictionJob`: predicts many inputs while it reads and writes others.
- `ScoreOutputs`: writes every requested output of one score.
- `find_detections`: finds the connected components of a thresholded score map.
- `EventLinker`: links the components of a video's frames into events.
- `TemporalFilter`: smooths the scores of a video along its motion.
- `open_video`, `VideoWriter`: read and write the frames of a video.
"""

from anoseg_d2.utils.index import lazy_index

# Resolved on first use.
__all__, __getattr__, __dir__ = lazy_index(
    __name__,
    {
        "predictor": ["AnomalyPredictor"],
        "input_files": ["find_inputs"],
        "job": ["PredictionJob"],
        "outputs": ["ScoreOutputs"],
        "detections": ["find_detections"],
        "events": ["EventLinker"],
        "temporal": ["TemporalFilter"],
        "video": ["open_video", "VideoWriter"],
    },
)
