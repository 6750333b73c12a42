"""Names that scripts, notebooks and other people's tests call: they stay as they are."""

import inspect
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from tiny_models import tiny_cfg, tiny_eomt, tiny_vit

import anoseg_d2
from anoseg_d2 import AnomalyPredictor, PixelMetrics, add_anoseg_config, cli
from anoseg_d2.data.cut_paste import PasteObject, paste_objects
from anoseg_d2.evaluation.components import component_metrics
from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.heads import CLASS_HEADS
from anoseg_d2.modeling.lora import inject_lora, lora_state_dict, merge_lora
from anoseg_d2.modeling.scores import SCORES, anomaly_scores

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "train_net.py": (
        *("--config-file", "--resume", "--eval-only", "--num-gpus", "--num-machines"),
        *("--machine-rank", "--dist-url", "opts"),
    ),
    "datasets/prepare_cut_paste.py": (
        *("--cityscapes", "--coco-json", "--coco-images", "--output", "--seed", "--ratio"),
        *("--workers", "--shard", "--count", "--scale", "--feather", "--min-area"),
        *("--controls", "--closed-set", "--parts", "--placement", "--rim", "--as-benchmark"),
    ),
    "datasets/check.py": ("NAME",),
    "tools/evaluate_maps.py": ("--dataset", "--maps", "--output"),
    "tools/export_model.py": ("--output", "--scores"),
    "tools/plot_results.py": (),
}
SCORE_NAMES = (
    *("msp", "max_logit", "max_logit_raw", "energy", "entropy", "rba", "rba_sum", "anomaly"),
    *("uno", "memory", "ratio", "odds"),
)


def help_of(script: str, monkeypatch, capsys) -> str:
    """What a script of this checkout prints when it is asked for help."""
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_answer_help_and_name_their_options(script, monkeypatch, capsys):
    text = help_of(script, monkeypatch, capsys)
    for option in SCRIPTS[script]:
        assert option in text, option


@pytest.mark.parametrize("script", ["cut_paste", "export", "metrics", "training"])
def test_benchmarks_write_their_figures_as_json(script, monkeypatch, capsys):
    assert "--json" in help_of(f"benchmarks/{script}.py", monkeypatch, capsys)


def test_make_has_its_targets():
    text = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "setup"):
        assert re.search(rf"^{target}:", text, re.M), target


@pytest.mark.parametrize(
    "name",
    [
        *("add_anoseg_config", "AnomalyPredictor", "EoMT", "Trainer", "AnosegDatasetMapper"),
        *("AnomalyEvaluator", "PixelMetrics"),
    ],
)
def test_the_package_has_its_public_names(name):
    assert callable(getattr(anoseg_d2, name))


def test_a_detectron2_user_builds_the_model_and_finds_the_data():
    cfg = get_cfg()
    add_anoseg_config(cfg)
    cfg.merge_from_other_cfg(tiny_cfg())
    assert isinstance(build_model(cfg), EoMT)
    assert "road_anomaly" in DatasetCatalog.list()


def test_a_model_is_built_by_keywords_or_by_a_config():
    kinds = {p.kind for n, p in inspect.signature(EoMT.__init__).parameters.items() if n != "self"}
    assert isinstance(EoMT(backbone=tiny_vit(), head="linear", num_blocks=2), EoMT)
    assert isinstance(EoMT(tiny_cfg()), EoMT)
    assert inspect.Parameter.POSITIONAL_OR_KEYWORD not in kinds


@pytest.mark.parametrize("has_anomaly,rows", [(False, 4), (True, 5)])
def test_predict_masks_gives_logits_of_every_layer(has_anomaly, rows):
    model = tiny_eomt(has_anomaly=has_anomaly).eval()
    layers = model.predict_masks(255 * torch.rand(2, 3, 32, 32))
    assert len(layers) == 3
    for mask_logits, class_logits in layers:
        assert mask_logits.shape == (2, 5, 8, 8) and class_logits.shape == (2, 5, rows)


def test_the_predictor_gives_maps_of_native_size(tmp_path):
    cfg = tiny_cfg("MODEL.ALLOW_UNTRAINED", True)
    result = AnomalyPredictor(cfg)(np.zeros((20, 50, 3), np.uint8))
    assert result["sem_seg"].shape == (20, 50) and result["sem_seg"].dtype.kind == "i"
    for score in result["scores"].values():
        assert score.shape == (20, 50) and score.dtype == np.float32
    assert callable(AnomalyPredictor.from_pretrained)


def test_scores_are_functions_of_logits():
    found = anomaly_scores(torch.randn(2, 6, 5), torch.randn(2, 6, 4, 8), 3)
    assert {"rba", "msp", "anomaly"} <= found.keys()
    assert all(score.shape == (2, 4, 8) for score in found.values())
    assert list(anomaly_scores(torch.randn(2, 6, 4), torch.randn(2, 6, 4, 8), 3, ["msp"])) == [
        "msp"
    ]


def test_the_registries_have_their_entries():
    assert all(name in SCORES for name in SCORE_NAMES)
    assert all(name in CLASS_HEADS for name in ("linear", "logit_norm", "arcface"))


def test_adapters_go_into_any_module_of_timm_blocks():
    vit = tiny_vit()
    inject_lora(vit, rank=2)
    assert lora_state_dict(vit)
    merge_lora(vit)
    assert vit.forward_features(torch.zeros(1, 3, 32, 32)).ndim == 3


def test_pixel_metrics_update_merge_and_compute():
    scores, labels = np.float32([[0.1, 0.9, 0.8]]), np.uint8([[0, 1, 255]])
    one, other = PixelMetrics(), PixelMetrics(exact=True)
    one.update(scores, labels)
    second = PixelMetrics()
    second.update(scores, labels)
    one.merge(second)
    other.update(scores, labels)
    assert {"auprc", "auprc_bounds", "fpr95", "fpr95_bounds", "auroc"} <= one.compute().keys()
    assert other.compute()["auprc"] == 1.0


def test_component_metrics_take_score_label_and_threshold():
    label = np.zeros((40, 60), np.uint8)
    label[10:30, 10:40] = 1
    assert component_metrics(label.astype(np.float32), label, 0.5) is not None


def test_pasting_is_a_pure_function():
    image, label = np.zeros((60, 80, 3), np.uint8), np.full((60, 80), 7, np.uint8)
    objects = [PasteObject(np.full((20, 20, 3), 200, np.uint8), np.ones((20, 20), bool))]
    out, out_label, records = paste_objects(image, label, objects, np.random.default_rng(0))
    assert out.shape == image.shape and (out_label != label).any() and len(records) == 1
    assert not image.any() and (label == 7).all()


def test_anoseg_has_its_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for name in ("train", "eval", "predict", "export", "convert", "maps", "check", "memory"):
        assert re.search(rf"^\s+{name} ", text, re.M), name
    with pytest.raises(SystemExit, match="0"):
        cli.main(["memory", "--help"])
    memory = capsys.readouterr().out
    assert "--images" in memory and "--output" in memory


def test_config_keys_keep_their_names():
    cfg = yaml.safe_load(tiny_cfg().dump())
    for key in (
        *("MODEL.EOMT.NUM_QUERIES", "MODEL.EOMT.ANOMALY_CLASS", "MODEL.LORA.RANK"),
        *("MODEL.HEAD.NAME", "MODEL.HEAD.ARCFACE.MARGIN", "TEST.ANOMALY.SCORES"),
        *("INPUT.CUT_PASTE.SCALE_MODE", "INPUT.CUT_PASTE.RATIO", "MODEL.RATIO.ENABLED"),
    ):
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]
