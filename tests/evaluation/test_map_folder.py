"""Maps in a folder: found by name, and checked once."""

import numpy as np
import pytest
import small_sets

from anoseg_d2.data.image_io import read_label
from anoseg_d2.evaluation.map_files import MapReader
from anoseg_d2.evaluation.map_folder import MapFolder


@pytest.fixture
def maps(tmp_path):
    """A registered set of four images, and a folder of npy maps for them."""
    images = small_sets.anomaly_set(tmp_path)
    folder = tmp_path / "maps"
    folder.mkdir()
    for index, image in enumerate(images):
        label = read_label(image["sem_seg_file_name"])
        score = small_sets.outputs_for(label, index, names=("score",))["scores"]["score"]
        np.save(folder / f"{image['image_id']}.npy", score)
    return images, folder


def test_maps_are_found_by_id_photograph_or_pattern(tmp_path):
    image = {"image_id": "city__1", "file_name": "/data/1_leftImg8bit.png"}
    for name in ("city__1", "1_leftImg8bit", "city__1_score"):
        folder = tmp_path / name / "deep"
        folder.mkdir(parents=True)
        np.save(folder / f"{name}.npy", np.zeros((1, 1)))
        pattern = "{id}_score" if name.endswith("_score") else "{id}"
        found = MapFolder.find(tmp_path / name, [image], pattern)
        assert [path.stem for _, path in found.pairs] == [name] and not found.missing
    np.save(tmp_path / "city__1/city__1.npy", np.zeros((1, 1)))
    with pytest.raises(ValueError, match="several maps for city__1"):
        MapFolder.find(tmp_path / "city__1", [image])


def test_everything_wrong_is_listed_and_types_are_told(maps):
    images, folder = maps
    found = MapFolder.find(folder, images)
    shapes = {image["sem_seg_file_name"]: (40, 64) for image in images}
    types = found.check(MapReader(), shapes)
    assert set(types) == {str(path) for _, path in found.pairs}
    assert set(types.values()) == {np.dtype("float32")}
    np.save(folder / "test_anomaly_2.npy", np.zeros((4, 6)))
    with pytest.raises(ValueError, match="(?s)1 maps.*test_anomaly_2.*4x6"):
        found.check(MapReader(), shapes)
