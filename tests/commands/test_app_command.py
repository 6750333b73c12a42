"""The page of `anoseg app`: what it does without gradio, and the page itself in a browser."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import set_info

from anoseg_d2.checkpoint import model_meta
from anoseg_d2.commands import app
from anoseg_d2.evaluation.map_files import read_map
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
def playground(weights, tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    results = weights.parent / "report/results.json"
    return app.Playground(AnomalyPredictor.from_pretrained(str(weights)), folder, "w.pth", results)


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
        ([], "give --weights"),
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


def answered(host, hosts):
    """Status and headers of the answer to a request for a host's name."""
    sent = []

    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def keep(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(b"host", host.encode())]}
    asyncio.run(app.Guard(answer, hosts)(scope, None, keep))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_every_answer_forbids_what_is_elsewhere():
    policy = answered("x", None)[1][b"content-security-policy"]
    assert b"default-src 'self'" in policy and b"http" not in policy


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("127.0.0.1:7860", 200), ("localhost:7860", 200), ("[::1]:7860", 200)),
        *(("evil.example:7860", 403), ("127.0.0.1.evil.example", 403), ("", 403)),
    ],
)
def test_a_page_of_this_machine_answers_to_its_names_only(host, status):
    assert answered(host, ("127.0.0.1", "localhost", "::1"))[0] == status


def test_uploads_go_to_a_folder_that_gradio_knows_when_it_is_imported(weights, monkeypatch):
    seen = []

    def import_gradio():
        seen.append(os.environ["GRADIO_TEMP_DIR"])
        raise ImportError("enough")

    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(app, "import_gradio", import_gradio)
    assert app.main(["--weights", str(weights)]) == 2
    assert "anoseg-app-" in seen[0]


def test_the_page_begins_with_the_best_score_at_its_best_threshold(playground, photo):
    upload, said = playground.open(str(photo))
    assert said == "street.png: 64 x 48 pixels"
    assert playground.first_score == "anomaly"
    assert playground.threshold(upload, "anomaly") == (0.25, "initially that of road: best F1")
    low, high = upload.extremes("rba")
    assert low <= playground.threshold(upload, "rba")[0] <= high


def test_without_an_evaluation_the_threshold_is_the_middle_of_the_scale(playground, photo):
    alone = app.Playground(playground.predictor, playground.folder, "w.pth")
    upload, _ = alone.open(str(photo))
    assert alone.first_score == "rba"
    assert alone.threshold(upload, "msp")[0] == sum(upload.extremes("msp")) / 2


def test_a_broken_upload_is_named_on_the_page(playground, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    upload, said = playground.open(str(tmp_path / "a.jpg"))
    assert upload is None and said.startswith("error: cannot read image a.jpg")
    assert list(playground.folder.iterdir()) == []


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
        window.set_default_timeout(60_000)
        elsewhere = []
        own = (url, "data:", "blob:")
        window.on("request", lambda r: r.url.startswith(own) or elsewhere.append(r.url))
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
        assert set(window.inner_text("#classes").lower().split()) & {"lawn", "path", "<shed>"}
        # The lowest threshold makes the whole picture one component.
        slider = window.locator("#threshold input[type=range]")
        slider.focus()
        slider.press("Home")
        playwright.expect(window.locator("#components")).to_contain_text("3072")
        window.click("#score input")
        window.click("[role=option]:has-text('entropy')")
        playwright.expect(window.locator("#score input")).to_have_value("entropy")
        window.click("#prepare")
        with window.expect_download() as download:
            window.click("#files a:has-text('zip'), #files tr:has-text('zip') a")
        download.value.save_as(tmp_path / "got.zip")
        with zipfile.ZipFile(tmp_path / "got.zip") as archive:
            archive.extractall(tmp_path / "got")
        assert read_map(tmp_path / "got/entropy/raw_png/street.png").shape == (48, 64)
        assert window.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert elsewhere == []
