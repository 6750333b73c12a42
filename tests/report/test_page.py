"""The page: alone, and safe against its names."""

import html.parser
import re
import shutil

import pytest
import small_sets

from anoseg_d2.data.image_io import read_label
from anoseg_d2.evaluation.anomaly_evaluation import AnomalyEvaluator
from anoseg_d2.report.write import write_report


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
    files = {r for r in outline.references if not r.startswith(("#", "data:"))}
    assert files == {"results.csv", "results.md", "results.tex", "results.json"}
    assert all((runs / "both" / file).is_file() for file in files)
    assert not re.search(r"https?://|@import|url\(|<link|<script", page)
    # Curves of two sets, and of two runs a sheet of three sets and a confusion matrix.
    assert outline.tags.count("img") == 2 + 2 * (3 + 1)


def test_names_are_text_and_never_markup(runs):
    page = (runs / "both/index.html").read_text()
    assert "strong &lt;b&gt;" in page and "<b>strong <b></b>" not in page
    assert "<title>Two &amp; two</title>" in page


def test_a_run_without_images_has_a_page_all_the_same(tmp_path):
    images = small_sets.anomaly_set(tmp_path)
    evaluator = AnomalyEvaluator("test_anomaly", output_dir=tmp_path / "run", keep_images=False)
    labels = [read_label(image["sem_seg_file_name"]) for image in images]
    evaluator.process(images, [small_sets.outputs_for(label, 0) for label in labels])
    evaluator.evaluate()
    page = write_report(tmp_path / "run").read_text()
    assert "test_anomaly" in page


@pytest.mark.slow
def test_the_evaluated_weights_are_named_on_the_page(runs, tmp_path):
    shutil.copytree(runs / "weak/inference", tmp_path / "inference")
    model = {"weights_file": "a/model_ema.pth", "weights_sha256": "0123abcd", "averaged": True}
    page = write_report(tmp_path, model=model).read_text()
    for text in ("evaluated weights", "a/model_ema.pth", "0123abcd", "averaged"):
        assert text in page


@pytest.mark.slow
def test_the_curves_of_a_training_are_on_the_page_of_its_run(runs, tmp_path):
    assert 'id="training"' not in (runs / "weak/report/index.html").read_text()
    shutil.copytree(runs / "weak", tmp_path / "run")
    (tmp_path / "run/metrics.json").write_text('{"iteration": 0, "total_loss": 2.0, "lr/vit": 0.1}')
    page = write_report(tmp_path / "run").read_text()
    assert page.count('alt="Training"') == 1 and 'href="#training"' in page
