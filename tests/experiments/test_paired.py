"""Paired tests are scipy's over the genes that both scores have; boxes are the paper's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from superst_monai.experiments.figures import boxes, legend, panels, scatter
from superst_monai.experiments.paired import highest, median, paired_test


def test_a_paired_test_is_wilcoxons_signed_rank_test() -> None:
    """Against scipy on the pairs without NaN; exchanged scores change the sign of the difference alone."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.3, 1, 40), rng.normal(0, 1, 40)
    one[3], other[7] = np.nan, np.nan
    known = ~np.isnan(one - other)
    found, back = paired_test(one, other), paired_test(other, one)
    assert found["n"] == 38
    assert found["p"] == pytest.approx(wilcoxon(one[known], other[known]).pvalue)
    assert found["median_difference"] == pytest.approx(np.median((one - other)[known]))
    assert (back["p"], back["median_difference"]) == (found["p"], -found["median_difference"])


def test_what_cannot_be_tested_is_said() -> None:
    """Equal scores differ by nothing; no pair has no p."""
    same = np.arange(5.0)
    assert paired_test(same, same) == {"n": 5, "median_difference": 0.0, "p": 1.0}
    assert paired_test(same, np.full(5, np.nan)) == {"n": 0, "median_difference": None, "p": None}
    assert median([np.nan]) is None
    assert median([1.0, np.nan, 3.0]) == 2.0


def test_the_highest_genes_are_those_of_most_umis() -> None:
    """The hundred largest totals, the first of equals first (against a stable sort)."""
    total = np.random.default_rng(1).integers(0, 50, 300)
    scores = pd.DataFrame({"total": total}, index=[f"g{i}" for i in range(300)])
    assert list(highest(scores).index) == [f"g{i}" for i in np.argsort(-total, kind="stable")[:100]]


def test_boxes_hold_quartiles_and_whiskers_of_one_and_a_half_times_their_distance() -> None:
    """Against numpy: ends of the box, median, and the last values that lie within the whiskers' reach."""
    values = np.r_[np.arange(1.0, 12.0), 40.0, np.nan]
    figure, [[axes, empty]] = panels(2)
    boxes(axes, {"one": [values], "none": [np.array([np.nan])]}, ["A"])
    boxes(empty, {"one": [values]}, ["A"])
    low, middle, high = np.nanquantile(values, [0.25, 0.5, 0.75])
    [box] = [patch for patch in axes.patches if patch.get_gid() == "box"]
    corners = box.get_path().vertices[:, 1]
    np.testing.assert_allclose([corners.min(), corners.max()], [low, high])
    heights = {round(float(y), 6) for line in axes.lines for y in line.get_ydata()}
    assert {round(float(middle), 6), 1.0, 11.0, 40.0} <= heights
    assert [text.get_text() for text in axes.texts] == ["none"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "none"]
    assert empty.get_legend() is None
    assert figure.get_size_inches()[0] == 7.2


def test_letters_can_be_read_in_print() -> None:
    """No text of a figure is below seven points."""
    figure, [[axes]] = panels(1)
    axes.set(xlabel="x", ylabel="y", title="t")
    scatter(axes, np.arange(3), np.arange(3), label="points")
    legend(axes)
    figure.canvas.draw()
    labels = [axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_legend().get_texts()]
    assert min(label.get_fontsize() for label in labels) >= 7
    assert not axes.spines["top"].get_visible()
