"""The report: its files, its page, and the page in a browser."""

import csv
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import small_sets

from anoseg_d2.data.image_io import read_label
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.evaluation.closed_set_evaluation import ClosedSetEvaluator
from anoseg_d2.report import images as report_images
from anoseg_d2.report.curves import curve_figures
from anoseg_d2.report.runs import Cell, load_run
from anoseg_d2.report.tables import Row, Table
from anoseg_d2.report.write import combine_reports, write_report
from anoseg_d2.utils.files import read_json, without_nan, write_json

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def evaluate(folder, output_dir, signal=2.0, names=("msp", "rba")):
    """One evaluated run: two anomaly sets and a closed one."""
    for name, count in (("test_anomaly", 4), ("test_other", 15)):
        images = small_sets.anomaly_set(folder, name, count)
        evaluator = AnomalyEvaluator(name, output_dir=output_dir)
        evaluator.reset()
        for index, image in enumerate(images):
            label = read_label(image["sem_seg_file_name"])
            output = small_sets.outputs_for(label, index, names=names, signal=signal)
            evaluator.process([image], [output])
        evaluator.evaluate()
    images = small_sets.closed_set(folder, [np.array([[0, 1], [1, 255]], np.uint8)])
    closed = ClosedSetEvaluator("test_closed", output_dir)
    closed.process(images, [{"sem_seg": np.zeros((2, 2), int), "confidence": np.ones((2, 2))}])
    closed.evaluate()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two evaluated runs, each with its own report, and one over both."""
    folder = tmp_path_factory.mktemp("runs")
    evaluate(folder, folder / "weak", 1.0)
    evaluate(folder, folder / "strong", 4.0, names=("msp", "rba", "anomaly"))
    write_report(folder / "weak", model={"weights": "weak.pth", "parameters": 7}, name="weak")
    write_report(folder / "strong", model={"weights": "strong.pth"}, config="A: 1", name="strong")
    names = ["weak", "strong <b>"]
    combine_reports([folder / "weak", folder / "strong"], names, folder / "both", title="Two & two")
    return folder


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_results_json_keeps_its_contract(runs):
    results = strict(runs / "weak/report/results.json")
    assert set(results) == {"version", "datasets", "closed_set", "model", "config"}
    assert results["model"] == {"weights": "weak.pth", "parameters": 7}
    found = results["datasets"]["test_anomaly"]
    assert {"images", "anomaly_pixels", "known_pixels", "void_pixels", "scores"} <= set(found)
    entry = found["scores"]["msp"]
    figures = {"auprc", "auprc_bounds", "fpr95", "auroc", "sIoU", "PPV", "mean_F1"}
    assert figures <= set(entry)
    assert 1 < entry["auprc"] <= 100 and entry["auprc_bounds"][0] <= entry["auprc_bounds"][1]
    assert results["closed_set"]["test_closed"]["mIoU"] == pytest.approx(100 / 6)


def test_a_combined_report_holds_every_run_and_the_last_one_on_top(runs):
    results = strict(runs / "both/results.json")
    assert list(results["models"]) == ["weak", "strong <b>"]
    alone = strict(runs / "strong/report/results.json")
    assert results["models"]["strong <b>"] == alone
    assert {key: results[key] for key in alone} == alone


def test_nan_never_reaches_a_file(tmp_path):
    write_json(tmp_path / "a.json", {"x": [np.float32("nan"), float("inf"), np.int64(3)]})
    assert strict(tmp_path / "a.json") == {"x": [None, None, 3]}
    assert without_nan({1: (np.array([1.5, np.nan]),)}) == {"1": [[1.5, None]]}


def test_csv_has_the_figures_of_results_json(runs):
    rows = list(csv.DictReader((runs / "both/results.csv").read_text().splitlines()))
    results = strict(runs / "both/results.json")["models"]
    row = next(
        r for r in rows if (r["model"], r["dataset"], r["score"]) == ("weak", "test_other", "rba")
    )
    assert (
        float(row["auprc"]) == results["weak"]["datasets"]["test_other"]["scores"]["rba"]["auprc"]
    )
    assert row["mIoU"] == ""
    assert len(rows) == 2 * 2 + 2 * 3 + 2


def test_markdown_marks_the_best_of_each_column(runs):
    lines = (runs / "both/results.md").read_text().splitlines()
    heads = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert len(rows) == 5 and all(len(row) == len(heads) for row in rows)
    column = heads.index("test_anomaly AUPRC")
    values = [float(row[column].strip("*")) for row in rows]
    marked = [row[column].startswith("**") for row in rows]
    assert marked[int(np.argmax(values))] and not marked[int(np.argmin(values))]
    column = heads.index("test_anomaly FPR95")
    values = [float(row[column].strip("*")) for row in rows]
    assert rows[int(np.argmin(values))][column].startswith("**")


def test_a_column_of_equal_figures_has_no_best():
    column = ("set", "mIoU")

    def best(*values):
        return Table([column], [Row("a", 1, None, {column: Cell(v)}) for v in values]).best

    assert best(66.4, 66.4) == {} and best(66.4, None, 60.0) == {column: 66.4}


class Outline(html.parser.HTMLParser):
    """Collects what a page refers to, and its tables."""

    def __init__(self):
        super().__init__()
        self.references, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [v for k, v in attributes if k in ("src", "href", "data", "action")]


def test_the_page_needs_nothing_but_the_tables_next_to_it(runs):
    page = (runs / "both/index.html").read_text()
    outline = Outline()
    outline.feed(page)
    files = {r for r in outline.references if not r.startswith("#")}
    assert files == {"results.csv", "results.md", "results.tex", "results.json"}
    assert all((runs / "both" / file).is_file() for file in files)
    assert not re.search(r"https?://|@import|url\(|<link|fetch\(", page)
    assert outline.tags.count("svg") == 4


def test_names_are_text_and_never_markup(runs):
    page = (runs / "both/index.html").read_text()
    assert "strong &lt;b&gt;" in page and "<b>strong <b></b>" not in page
    assert "<title>Two &amp; two</title>" in page


def test_a_name_that_is_not_utf8_is_shown_with_escapes(runs, tmp_path):
    page = combine_reports([runs / "weak"], ["bad-\udcff"], tmp_path)
    assert r"bad-\udcff" in page.read_text()


def test_braces_in_a_name_are_text_too(runs):
    run = load_run(runs / "strong", name="{brace}")
    plots = curve_figures([run])[0]["plots"]
    assert all('data-run="{brace}"' in plot for plot in plots)


def test_a_script_end_in_a_name_does_not_end_the_data(runs, tmp_path):
    page = combine_reports([runs / "weak"], ["</script><i>"], tmp_path).read_text()
    assert page.count("</script>") == 2


def test_a_dataset_that_was_not_evaluated_is_named(runs):
    with pytest.raises(FileNotFoundError, match="no evaluation of absent.*test_anomaly"):
        write_report(runs / "weak", ["test_anomaly", "absent"])
    with pytest.raises(FileNotFoundError, match="any dataset"):
        load_run(runs / "nothing")


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "anomaly"}', '{"kind": 1, "result": 2}'])
def test_a_broken_evaluation_is_named(tmp_path, text):
    path = tmp_path / "inference" / "road" / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match="result.json"):
        load_run(tmp_path)


def test_only_the_named_datasets_are_shown(runs):
    run = load_run(runs / "weak", ["test_other"])
    assert list(run.results()["datasets"]) == ["test_other"] and not run.results()["closed_set"]


@pytest.mark.parametrize("names", [["a"], ["a", "a"]])
def test_names_of_combined_runs_are_unique_and_complete(runs, tmp_path, names):
    with pytest.raises(ValueError, match="unique names"):
        combine_reports([runs / "weak", runs / "strong"], names, tmp_path)


def test_images_come_worst_first_and_whole(runs):
    run = load_run(runs / "strong", name="strong")
    ranges = report_images.color_ranges([run])
    images, notes = report_images.collect_images([run], ranges)
    assert notes == []
    best = run.best_score()
    ap = {i["image_id"]: i["ap"][best] for i in run.records["test_anomaly"]["per_image"]}
    order = [ap[image["id"]] for image in images["test_anomaly"]]
    assert order[-1] is None and order[:-1] == sorted(order[:-1])
    maps = images["test_anomaly"][0]["runs"]["strong"]
    assert set(maps["heat"]) == {"msp", "rba", "anomaly"} and maps["prediction"]


def test_too_many_images_are_shrunk_then_left_out_and_said_so(runs):
    found = [load_run(runs / "strong", name="strong")]
    ranges = report_images.color_ranges(found)
    whole, _ = report_images.collect_images(found, ranges)
    size = report_images.characters
    everything = sum(size(image) for images in whole.values() for image in images)
    for share in (0.6, 0.3):
        images, notes = report_images.collect_images(found, ranges, int(everything * share))
        kept = [image for images in images.values() for image in images]
        assert notes and sum(map(size, kept)) < everything * share


def test_the_scale_of_a_score_is_one_for_all_sets(runs):
    found = load_run(runs / "weak", name="weak")
    assert set(report_images.color_ranges([found])) == {("weak", "msp"), ("weak", "rba")}


def test_a_run_without_images_has_a_page_all_the_same(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    evaluator = AnomalyEvaluator("test_anomaly", output_dir=tmp_path / "run", keep_images=False)
    labels = [read_label(image["sem_seg_file_name"]) for image in images]
    evaluator.process(images, [small_sets.outputs_for(label, 0) for label in labels])
    evaluator.evaluate()
    page = write_report(tmp_path / "run").read_text()
    assert "test_anomaly" in page


PROBE = """
<script>
addEventListener("load", async () => {
  const pause = () => new Promise(done => setTimeout(done, 300));
  const choose = (id, value) => {
    document.getElementById(id).value = value;
    document.getElementById(id).dispatchEvent(new Event("change"));
  };
  const all = query => [...document.querySelectorAll(query)];
  const table = document.getElementById("overview");
  const head = [...table.tHead.rows[1].cells].findIndex(c => c.textContent.includes("AUPRC"));
  const column = () => [...table.tBodies[0].rows].map(r => parseFloat(r.cells[head].dataset.v));
  const button = table.tHead.rows[1].cells[head].querySelector("button");
  button.click(); const falling = column();
  button.click(); const rising = column();
  /* Cards so low that the end of the page never leaves the view. */
  document.head.append(Object.assign(document.createElement("style"),
    {textContent: ".card { height: 20px; overflow: hidden; }"}));
  const seen = {falling, rising, curves: all("g.line:not(.off)").length,
    dots: all("g.dot:not(.off)").map(dot => dot.querySelector("title").textContent)};
  choose("set", "test_anomaly");
  document.getElementById("more").scrollIntoView(); await pause();
  seen.short = all(".card").length;
  choose("set", "test_other");
  for (let tries = 0; tries < 10 && all(".card").length < 15; tries++) await pause();
  seen.long = all(".card").length;
  seen.first = document.querySelector(".card h4").textContent;
  seen.crops = all(".crop").length;
  seen.classes = all("#class-key span").map(item => item.textContent);
  choose("other", "weak"); choose("score", "rba"); choose("order", "change");
  for (let tries = 0; tries < 10 && all(".card").length < 15; tries++) await pause();
  seen.pairs = all(".card .views.two").length;
  seen.changes = all(".card").map(card => Math.abs(parseFloat(
    (card.querySelector(".worse, .better") || {textContent: "nan"}).textContent)));
  choose("score", "anomaly");  /* which the other model does not have */
  for (let tries = 0; tries < 10 && all(".card").length < 15; tries++) await pause();
  seen.otherScore = document.getElementById("other-score").value;
  seen.compared = all(".card .views.two").filter(row => row.querySelectorAll("img").length === 2
    && row.textContent.includes("weak, " + seen.otherScore)).length;
  seen.ordered = all(".card").map(card => Math.abs(parseFloat(
    (card.querySelector(".worse, .better") || {textContent: "nan"}).textContent)));
  seen.scales = all("#scale b").map(name => name.textContent);
  seen.wide = document.documentElement.scrollWidth <= innerWidth;
  const out = document.createElement("pre");
  out.id = "probe"; out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
</script>
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1300, 500])
def test_the_page_works_in_a_browser(runs, tmp_path, width):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(BROWSERS)}")
    page = tmp_path / "page.html"
    page.write_text((runs / "both/index.html").read_text() + PROBE)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command += ["--disable-background-networking", "--no-first-run"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=15000"]
    dump = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=180
    )
    probe = re.search(r'<pre id="probe">(.*?)</pre>', dump.stdout, re.S)
    assert probe, dump.stderr[-2000:]
    seen = json.loads(html.unescape(probe[1]))
    assert seen["falling"] == sorted(seen["falling"], reverse=True) and len(seen["falling"]) == 5
    assert seen["rising"] == sorted(seen["rising"])
    assert seen["curves"] == 2 * 2 * 2  # one score of each of two models, two plots, two sets
    assert len(seen["dots"]) == 8 * 4 and all("threshold" in text for text in seen["dots"])
    assert (seen["short"], seen["long"]) == (4, 15)
    assert seen["first"].startswith("test_other")
    assert seen["crops"] > 0
    assert seen["classes"] == ["road", "sidewalk", "building"]
    assert seen["pairs"] == 15
    changes = [change for change in seen["changes"] if change is not None]
    assert changes == sorted(changes, reverse=True) and len(changes) == 14
    assert seen["otherScore"] in ("msp", "rba") and seen["compared"] == 15
    assert seen["scales"] == ["strong <b>, anomaly", f"weak, {seen['otherScore']}"]
    ordered = [change for change in seen["ordered"] if change is not None]
    assert ordered == sorted(ordered, reverse=True) and len(ordered) == 14
    assert seen["wide"]


def test_every_class_has_a_colour_of_its_own(runs):
    run = load_run(runs / "weak", model={"num_known": 133})
    names, palette = report_images.run_classes(run)
    assert len(names) == 134 and len({tuple(color) for color in palette[:134]}) == 134
    assert palette[:134].any(axis=1).all(), "a class that is black looks like void"
    seen = report_images.seen_classes(run)
    assert [name for name, _ in seen] == ["class 0", "class 1", "class 2"]


def test_names_and_colours_are_those_of_a_fitting_closed_set(runs):
    names, palette = report_images.run_classes(load_run(runs / "weak", model={"num_known": 3}))
    assert names == ["road", "car", "sky", "anomaly"] and palette[1].tolist() == [0, 0, 142]


def test_false_components_are_shown_with_the_box_and_area_of_native_size(tmp_path):
    label = np.zeros((800, 1200), np.uint8)
    label[100:200, 100:200] = 1
    images = small_sets.write_set(
        tmp_path, "test_one", [label], evaluator_type="anomaly", label_rule=small_sets.ANOMALY_RULE
    )
    score = (label == 1) * np.float32(2)
    score[400:600, 800:1000] = 1.5  # below the best threshold
    score[300:321, 600:630] = 3  # above it, 630 pixels
    evaluator = AnomalyEvaluator("test_one", output_dir=tmp_path / "run")
    evaluator.reset()
    evaluator.process(images, [{"scores": {"s": score}, "sem_seg": label}])
    evaluator.evaluate()
    (found,) = report_images.false_components(load_run(tmp_path / "run"), "test_one")["s"]
    assert found["text"] == "630 pixels above 2"
    rows, columns = np.nonzero(found["component"])
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (9, 12)  # thumbnails are 0.4 times as large
    assert found["score"][rows, columns].mean() > 2 and found["photo"].shape == (128, 128, 3)


def test_the_cross_is_on_the_worst_pixel(runs):
    run = load_run(runs / "weak")
    for failure in run.records["test_anomaly"]["failures"]:
        crop = report_images.kept_crop(run, "test_anomaly", failure)
        if failure["kind"] == "false":
            assert crop["score"][tuple(crop["place"])] == pytest.approx(failure["value"], rel=1e-3)


def test_the_evaluated_weights_are_named_on_the_page(runs, tmp_path):
    shutil.copytree(runs / "weak/inference", tmp_path / "inference")
    model = {"weights_file": "a/model_ema.pth", "weights_sha256": "0123abcd", "averaged": True}
    page = write_report(tmp_path, model=model).read_text()
    for text in ("evaluated weights", "a/model_ema.pth", "0123abcd", "averaged"):
        assert text in page


def test_every_file_of_a_report_can_be_read_again(runs):
    for name in ("results.json", "curves.json"):
        assert read_json(runs / "weak/report" / name)
    broken = runs / "broken.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match="broken.json"):
        read_json(broken)
    with pytest.raises(FileNotFoundError, match="absent.json"):
        read_json(runs / "absent.json")
