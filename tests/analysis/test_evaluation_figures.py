"""The figure of an evaluation shows the numbers of the result, with units and what they are compared to."""

from __future__ import annotations

import numpy as np
import pytest

from superst_monai.analysis.evaluation import evaluate, score_genes
from superst_monai.analysis.evaluation_figures import evaluation_figure
from superst_monai.analysis.law_scores import GeneChunk


def figure_of(*, samples: bool, constant: bool, recalibrated: bool = False):
    """Evaluate drawn counts and draw the figure; a constant prediction has no correlation."""
    rng = np.random.default_rng(0)
    mean = np.full((80, 20), 2.0) if constant else rng.gamma(2.0, 3.0, (80, 20))
    counts = rng.poisson(mean)
    flat = np.broadcast_to(counts.mean(0), mean.shape)
    chunk = [GeneChunk(slice(0, 20), mean[None] * 1e4, np.full(20, np.log(1e-4)))] if samples else []
    before = [GeneChunk(slice(0, 20), mean[None], np.zeros(20))] if recalibrated else None
    result = evaluate(mean, counts, samples=chunk, uncalibrated=before, baselines={"gene_mean": flat})
    scores = {"model": score_genes(mean, counts), "gene_mean": score_genes(flat, counts)}
    totals = {"predicted_total": mean.sum(1), "observed_total": counts.sum(1)}
    return evaluation_figure(result, **totals, scores=scores), result, totals, scores


def test_the_panels_show_the_numbers_of_the_result(tmp_path):
    """Points are the totals, the box's median the median correlation, the curve the coverage; axes carry units."""
    figure, result, totals, scores = figure_of(samples=True, constant=False)
    points, boxes, curve, pit = figure.axes
    np.testing.assert_allclose(
        points.collections[0].get_offsets(), np.stack([totals["observed_total"], totals["predicted_total"]], 1)
    )
    assert points.get_title() == f"Total counts: r = {result['depth']:.2f}"
    assert "[UMIs per spot]" in points.get_xlabel()
    medians = [line.get_ydata()[0] for line in boxes.lines]
    assert any(value == pytest.approx(result["raw"]["all"]["median"]) for value in medians)
    assert [text.get_text() for text in boxes.get_legend().get_texts()] == [
        "model (20 genes)",
        "gene mean (0 genes)",
    ]
    shown = {line.get_label(): line for line in curve.lines}
    np.testing.assert_allclose(shown["all genes"].get_ydata(), 100 * np.array(result["coverage_curve"]["all"]))
    np.testing.assert_allclose(shown["all genes"].get_xdata(), np.arange(10, 100, 10))
    heights = {patch.get_label(): patch.get_data().values for patch in pit.patches}
    np.testing.assert_allclose(heights["all genes"], 20 * np.array(result["pit"]["all"]))
    assert figure.get_suptitle() == "Held-out spots: 80 spots, 20 genes"
    figure.savefig(tmp_path / "evaluation.png", dpi=50)
    assert (tmp_path / "evaluation.png").stat().st_size > 5000
    assert scores["gene_mean"]["raw"].isna().all()


def test_what_is_missing_is_said_in_the_figure():
    """A constant prediction and a missing predictive law are named in words, not left blank."""
    figure, *_ = figure_of(samples=False, constant=True)
    points, boxes, curve, pit = figure.axes
    assert points.get_title() == "Total counts: r undefined (constant)"
    assert [text.get_text() for text in boxes.texts] == ["constant,\nno correlation"] * 4
    for panel in (curve, pit):
        assert [text.get_text() for text in panel.texts] == ["no predictive samples given"]


def test_a_recalibrated_law_is_shown_beside_the_one_before():
    """Both curves and both histograms are there, told apart by name and line style."""
    figure, result, *_ = figure_of(samples=True, constant=False, recalibrated=True)
    *_, curve, pit = figure.axes
    lines = {line.get_label(): line for line in curve.lines}
    before = lines["100 highest genes, before"]
    np.testing.assert_allclose(before.get_ydata(), 100 * np.array(result["uncalibrated"]["coverage_curve"]["top100"]))
    assert before.get_linestyle() == ":"
    assert lines["100 highest genes, recalibrated"].get_linestyle() == "-"
    assert len(pit.patches) == 4


def test_the_legend_tells_normalisations_apart_where_they_differ():
    """A gene that is constant only after normalisation is counted in one and not in the other."""
    counts = np.array([[1, 1], [2, 2], [5, 5]])  # shares are constant, counts are not
    scores = {"model": score_genes(counts, counts)}
    totals = {"predicted_total": counts.sum(1), "observed_total": counts.sum(1)}
    figure = evaluation_figure(evaluate(counts, counts), **totals, scores=scores)
    legend = figure.axes[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["model (2 genes raw, 0 log-normalised)"]
