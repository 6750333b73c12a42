"""Curves as inline SVG."""

import re

import numpy as np
import pytest

from anoseg_d2.report.curves import curve_figures, seed_figures
from anoseg_d2.report.runs import load_run


def test_braces_in_a_name_are_text_too(runs):
    run = load_run(runs / "strong", name="{brace}")
    plots = curve_figures([run])[0]["plots"]
    assert all('data-run="{brace}"' in plot for plot in plots)


def test_plots_say_what_each_group_shows_and_refer_to_nothing(runs):
    first, second = curve_figures([load_run(runs / "weak", name="a<b>")])
    assert (first["dataset"], second["dataset"]) == ("test_anomaly", "test_other")
    assert [entry["label"] for entry in first["legend"]] == ["msp", "rba"]
    assert sum(entry["best"] for entry in first["legend"]) == 1
    for plot in first["plots"]:
        assert plot.startswith("<svg") and not re.search("xmlns|https?:|url\\(|<style", plot)
        assert plot.count('class="curve line" data-run="a&lt;b&gt;"') == 2
        # Four stated rates of two scores, each with what the threshold reaches.
        titles = re.findall(r'class="curve dot"[^>]*><title>([^<]*)</title>', plot)
        assert len(titles) == 8 and all("threshold" in title for title in titles)


def test_seeds_have_their_mean_and_spread(runs):
    assert seed_figures([load_run(runs / "weak")]) == []
    repeats = [load_run(runs / name, name="ours") for name in ("weak", "strong")]
    row = seed_figures(repeats)[0]["rows"][0]
    assert row["mean"] == pytest.approx(np.mean(row["each"])) and len(row["each"]) == 2
    assert row["low"] < row["mean"] < row["high"]
