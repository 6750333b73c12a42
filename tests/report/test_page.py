"""The page: alone, safe against its names, and in a browser."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest
import small_sets

from anoseg_d2.data.image_io import read_label
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.report.write import combine_reports, write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


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


def test_a_script_end_in_a_name_does_not_end_the_data(runs, tmp_path):
    page = combine_reports([runs / "weak"], ["</script><i>"], tmp_path).read_text()
    assert page.count("</script>") == 2


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


def test_the_evaluated_weights_are_named_on_the_page(runs, tmp_path):
    shutil.copytree(runs / "weak/inference", tmp_path / "inference")
    model = {"weights_file": "a/model_ema.pth", "weights_sha256": "0123abcd", "averaged": True}
    page = write_report(tmp_path, model=model).read_text()
    for text in ("evaluated weights", "a/model_ema.pth", "0123abcd", "averaged"):
        assert text in page
