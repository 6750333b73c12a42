"""The benchmark of ratio heads: they train side by side, and each has figures of its own."""

import json

import numpy as np
import pytest
import small_sets
import torch
from PIL import Image
from tiny_models import tiny_cfg

from anoseg_d2.checkpoint import AnosegCheckpointer, read_checkpoint
from anoseg_d2.data import builtin
from anoseg_d2.modeling import EoMT

CARD = """
name: {name}
root: "{root}"
images: "{{id}}.png"
labels: "labels/{{id}}.png"
classes: [road, car]
label_values: {{0: road, 1: car}}
anomaly: 2
"""


@pytest.fixture
def tool(load_benchmark):
    before = set(builtin.DATASETS)
    yield load_benchmark("ratio")
    for name in builtin.DATASETS.keys() - before:
        builtin.unregister_dataset(name)


def test_heads_of_all_kinds_learn_and_are_evaluated(
    tool, tmp_path, monkeypatch, fresh_loggers, capsys
):
    label = np.zeros((32, 64), np.uint8)
    label[4:20, 8:40] = 2  # bright, on a dark road, and not along the borders of patches
    image = np.where(label[..., None] == 2, 220, 30).repeat(3, axis=2).astype(np.uint8)
    (tmp_path / "data/labels").mkdir(parents=True)
    Image.fromarray(image).save(tmp_path / "data/a.png")
    Image.fromarray(label).save(tmp_path / "data/labels/a.png")
    (tmp_path / "card.yaml").write_text(CARD.format(name="heads_train", root=tmp_path / "data"))
    (record,) = small_sets.write_set(
        tmp_path,
        "heads_anomaly",
        [label // 2],
        evaluator_type="anomaly",
        label_rule=small_sets.ANOMALY_RULE,
    )
    Image.fromarray(image).save(record["file_name"])
    more = ["MODEL.EOMT.NUM_CLASSES", 2, "MODEL.EOMT.ANOMALY_CLASS", True]
    more += ["INPUT.CROP_SIZE", (32, 64), "SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 20]
    more += ["SOLVER.BASE_LR", 1e-3, "SOLVER.CHECKPOINT_PERIOD", 10, "DATALOADER.NUM_WORKERS", 0]
    cfg = tiny_cfg(*more)
    torch.manual_seed(0)
    AnosegCheckpointer(EoMT(cfg), str(tmp_path)).save("start")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    arguments = ["--weights", str(tmp_path / "start.pth"), "--dataset", "heads_train"]
    arguments += ["--config-file", str(tmp_path / "config.yaml"), "--test", "heads_anomaly"]
    arguments += ["--cards", str(tmp_path / "card.yaml"), "--cells", "1", "4", "--seeds", "2"]
    arguments += ["--output", str(tmp_path / "run"), "--json", str(tmp_path / "heads.json")]
    monkeypatch.setattr("sys.argv", ["ratio.py", *arguments])
    tool.main()
    found = json.loads((tmp_path / "heads.json").read_text())["heads_anomaly"]
    assert len(found) == 1 + 2 * 2 * 2
    for seed in (0, 1):
        patches, cells = (found[f"ratio_cells{n}_seed{seed}"]["auprc %"] for n in (1, 4))
        assert cells > patches > found["anomaly"]["auprc %"]
    assert "| odds | 4 | " in capsys.readouterr().out
    state = read_checkpoint(tmp_path / "run/model_final.pth").state_dict
    heads = [f"patch_maps.ratio.heads.cells1_seed{s}.layers.0.weight" for s in (0, 1)]
    assert not torch.equal(*(state[name] for name in heads)), "seeds are different heads"
