"""The page of `anoseg app`: what it does without gradio, and the page itself in a browser."""

import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import set_info

from anoseg_d2.checkpoint import model_meta
from anoseg_d2.commands import app
from anoseg_d2.prediction.predictor import AnomalyPredictor

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture
def weights(tmp_path, tiny_eomt):
    """A checkpoint in the folder of a run that was evaluated."""
    model = tiny_eomt(has_anomaly=True)
    set_info(model, class_names=["lawn", "path", "<shed>"])
    run = tmp_path / "run"
    (run / "report").mkdir(parents=True)
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, run / "model_final.pth")
    rba = {"auprc": 20.0, "best_f1_threshold": -0.2, "tpr_thresholds": {"90": -0.5, "95": -9.0}}
    scores = {"rba": rba, "anomaly": {"auprc": 30.0, "best_f1_threshold": 0.25}}
    (run / "report/results.json").write_text(json.dumps({"datasets": {"road": {"scores": scores}}}))
    return run / "model_final.pth"


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    return tmp_path / "street.png"


@pytest.fixture
def playground(weights):
    results = weights.parent / "report/results.json"
    return app.Playground(AnomalyPredictor.from_pretrained(str(weights)), "w.pth", results)


def test_the_page_takes_the_settings_of_the_evaluation_or_goes_without_its_thresholds(
    weights, monkeypatch, caplog
):
    place, made = weights.parent / "report/results.json", []
    for name in ("import_gradio", "serve"):
        monkeypatch.setattr(app, name, lambda *_: None)
    monkeypatch.setattr(app, "build_page", lambda _, playground: made.append(playground))
    place.write_text(json.dumps({**json.loads(place.read_text()), "config": "TEST: {FLIP: true}"}))
    assert app.main(["--weights", str(weights)]) == 0
    assert made[0].predictor.model.inference.flip and made[0].thresholds
    assert app.main(["--weights", str(weights), "--opts", "TEST.FLIP", "False"]) == 0
    assert not made[1].thresholds and "TEST.FLIP was True, is False" in caplog.text


def test_without_gradio_the_way_to_install_it_is_said(weights, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert app.main(["--weights", str(weights)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the page needs gradio") and "pip install -e '.[app]'" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "w.pth", "--port", "70000"], "--port"),
    ],
)
def test_wrong_options_are_refused(options, message, capsys):
    try:
        status = app.main(options)
    except SystemExit as error:
        status = error.code
    assert status == 2 and message in capsys.readouterr().err


def test_only_this_machine_can_open_the_page_unless_told_otherwise():
    assert app.build_parser().parse_args([]).host == "127.0.0.1"


def test_the_page_begins_with_the_best_score_at_its_best_threshold(playground, photo):
    opened, said = playground.open(str(photo))
    assert said == "street.png: 64 x 48 pixels"
    assert playground.first_score == "anomaly"
    slider = playground.slider(opened, "anomaly")
    assert slider["value"] == 0.25 and slider["info"].endswith("road: best F1")
    slider = playground.slider(opened, "rba")
    assert slider["minimum"] <= slider["value"] <= slider["maximum"]


def test_without_an_evaluation_the_threshold_is_the_middle_of_the_scale(playground, photo):
    alone = app.Playground(playground.predictor, "w.pth")
    opened, _ = alone.open(str(photo))
    assert alone.first_score == "rba"
    slider = alone.slider(opened, "msp")
    assert slider["value"] == (slider["minimum"] + slider["maximum"]) / 2


def test_a_view_shows_the_components(playground, photo):
    opened, _ = playground.open(str(photo))
    score = opened["scores"]["msp"]
    overlay, heat, classes, rows = playground.view(opened, "msp", float(score.min()), 1)
    assert overlay.shape == classes.shape == (48, 64, 3) and heat.shape[1:] == (64, 3)
    assert [row[2:] for row in rows] == [[48 * 64, 0, 0, 64, 48]]
    assert playground.view(opened, "msp", float(score.max()) + 1, 1)[3] == []


def test_a_broken_photo_is_named_on_the_page(playground, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    opened, said = playground.open(str(tmp_path / "a.jpg"))
    assert opened is None and said.startswith("error: cannot read image a.jpg")


@pytest.fixture
def page(weights):
    """The address of the page, served by the command in a process of its own."""
    command = [sys.executable, "-m", "anoseg_d2", "app", "--weights", str(weights)]
    served = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = served.stdout.readline()
        assert line.startswith("open http://127.0.0.1:"), line
        yield line.split()[1]
        served.send_signal(signal.SIGINT)
        assert served.wait(60) == 130
    finally:
        served.kill()
        served.wait()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1300, 390])
def test_the_page_works_in_a_browser(request, photo, tmp_path, width):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")
    playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(BROWSERS)}")
    url = request.getfixturevalue("page")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with playwright.sync_playwright() as driver:
        options = {"executable_path": browser, "args": ["--no-sandbox", "--disable-gpu"]}
        window = driver.chromium.launch(**options).new_page(
            viewport={"width": width, "height": 900}
        )
        window.set_default_timeout(60_000)
        window.goto(url)
        upload = window.locator("#file input[type=file]")
        upload.set_input_files(tmp_path / "broken.jpg")
        said = window.locator("#status textarea")
        playwright.expect(said).to_have_value(re.compile("cannot read image broken.jpg"))
        window.click("#file button[aria-label]:visible")
        upload.set_input_files(photo)
        for name in ("overlay", "heatmap", "segmentation"):
            window.wait_for_selector(f"#{name} img")
        playwright.expect(said).to_have_value("street.png: 64 x 48 pixels")
        # The lowest threshold makes the whole picture one component.
        slider = window.locator("#threshold input[type=range]")
        slider.focus()
        slider.press("Home")
        playwright.expect(window.locator("#components")).to_contain_text("3072")
        window.click("#score input")
        window.click("[role=option]:has-text('entropy')")
        playwright.expect(window.locator("#score input")).to_have_value("entropy")
        assert window.evaluate("document.documentElement.scrollWidth <= innerWidth")
