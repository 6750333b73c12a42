"""The page of `anoseg app`: what it does without gradio, and the page itself in a browser."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from anoseg_d2.checkpoint import model_meta
from anoseg_d2.commands import app
from anoseg_d2.evaluation.map_files import read_map
from anoseg_d2.prediction.detections import Detection
from anoseg_d2.prediction.predictor import AnomalyPredictor

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture
def weights(tmp_path, tiny_eomt):
    """A checkpoint in the folder of a run that was evaluated."""
    model = tiny_eomt(has_anomaly=True)
    model.class_names = ["lawn", "path", "<shed>"]
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
def playground(weights, tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    results = weights.parent / "report/results.json"
    return app.Playground(AnomalyPredictor.from_pretrained(str(weights)), folder, "w.pth", results)


def test_without_gradio_the_way_to_install_it_is_said(weights, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert app.main(["--weights", str(weights)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the page needs gradio") and "pip install -e '.[app]'" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --weights"),
        (["--weights", "w.pth", "--port", "70000"], "--port must be in 1..65535, not 70000"),
        (["--weights", "w.pth", "--max-frames", "0"], "--max-frames must be at least 1, not 0"),
    ],
)
def test_wrong_options_are_refused(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        app.main(options)
    assert message in capsys.readouterr().err


def test_only_this_machine_can_open_the_page_unless_told_otherwise():
    assert app.build_parser().parse_args([]).host == "127.0.0.1"


def test_every_answer_forbids_what_is_elsewhere():
    sent = []

    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body"})

    async def keep(message):
        sent.append(message)

    asyncio.run(app._WithPolicy(answer)({}, None, keep))
    name, value = sent[0]["headers"][1]
    assert name == b"content-security-policy" and b"default-src 'self'" in value
    assert b"http" not in value and sent[1] == {"type": "http.response.body"}


def test_the_page_begins_with_the_best_score_at_its_best_threshold(playground, photo):
    upload, said = playground.open(str(photo))
    assert said == "<p>street.png: 64 x 48 pixels</p>"
    assert playground.first_score() == "anomaly"
    assert playground.start(upload, "anomaly") == ("road: best F1", 0.25)
    presets = ["chosen by hand", "road: best F1", "road: 90 % TPR", "road: 95 % TPR"]
    assert playground.presets("rba") == presets
    low, _, _ = upload.slider_range("rba")
    assert playground.clamp(upload, "rba", -9.0) == low > -9


def test_without_an_evaluation_the_threshold_is_the_middle_of_the_scale(playground, photo):
    alone = app.Playground(playground.predictor, playground.folder, "w.pth")
    upload, _ = alone.open(str(photo))
    assert alone.first_score() == "rba" and alone.presets("rba") == ["chosen by hand"]
    assert alone.start(upload, "msp") == ("chosen by hand", 0.5)


def test_a_broken_upload_is_named_on_the_page(playground, tmp_path):
    (tmp_path / "<b>.jpg").write_bytes(b"no image")
    upload, said = playground.open(str(tmp_path / "<b>.jpg"))
    assert upload is None and said.startswith('<p class="wrong">cannot read image &lt;b&gt;.jpg')
    assert list(playground.folder.iterdir()) == []


def test_the_maps_to_download_are_the_predictors(playground, photo):
    upload, _ = playground.open(str(photo))
    files = playground.download(upload, "rba", -0.5, 50)
    (raw,) = [path for path in files if path.endswith("raw_png.png")]
    expected = playground.predictor(photo)["scores"]["rba"]
    np.testing.assert_allclose(read_map(raw), expected, atol=1e-4)


def test_names_are_text_and_never_markup():
    legend = app.legend_html([("<shed>", (1, 2, 3), 0.25), ("path", (4, 5, 6), 0.0004)])
    assert "&lt;shed&gt; <small>25.0 %" in legend and "&lt; 0.1 %" in legend
    assert "rgb(1, 2, 3)" in legend
    assert "{c &lt; K}" in app.about_score("uno")
    found = Detection((1, 2, 30, 40), 1200, 0.5, 0.75, np.ones((40, 30), bool))
    table = app.components_html([found], 0.4)
    assert "<td>1</td><td>0.5</td><td>0.75</td><td>1,200</td><td>1</td><td>2</td>" in table
    assert "at or above 0.4" in app.components_html([], 0.4)


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
            viewport={"width": width, "height": 900}, accept_downloads=True
        )
        window.set_default_timeout(120_000)
        elsewhere = []
        own = (url, "data:", "blob:")
        window.on("request", lambda r: r.url.startswith(own) or elsewhere.append(r.url))
        window.goto(url)
        upload = window.locator("#file input[type=file]")
        upload.set_input_files(tmp_path / "broken.jpg")
        window.wait_for_selector("#status .wrong")
        assert "cannot read image broken.jpg" in window.inner_text("#status")
        assert not window.is_visible("#overlay")
        window.click("#file button[aria-label]:visible")
        upload.set_input_files(photo)
        for name in ("overlay", "heatmap", "segmentation"):
            window.wait_for_selector(f"#{name} img")
        assert "64 x 48 pixels" in window.inner_text("#status")
        assert set(window.inner_text("#legend").split()) & {"lawn", "path", "<shed>"}
        # The lowest threshold makes the whole picture one component.
        slider = window.locator("#threshold input[type=range]")
        slider.focus()
        slider.press("Home")
        window.wait_for_selector("#components td:text-is('3,072')")
        window.click("#overlay img")
        window.wait_for_selector("#probe p")
        assert window.inner_text("#probe").startswith(("x 31, y 2", "x 32, y 2"))
        window.click("#score input")
        window.click("[role=option]:has-text('entropy')")
        window.wait_for_selector("#score:has-text('entropy')")
        window.click("#prepare")
        with window.expect_download() as download:
            window.click("#files a:has-text('raw'), #files tr:has-text('raw') a")
        download.value.save_as(tmp_path / "got.png")
        assert read_map(tmp_path / "got.png").shape == (48, 64)
        assert window.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert elsewhere == []
