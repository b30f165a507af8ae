"""The evaluation of held-out spots: scores of genes, their summary, and the assembled result."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import nbinom

from superst_monai.analysis.evaluation import evaluate, gene_correlations, lognorm, score_genes, summarise
from superst_monai.analysis.law_scores import LEVELS, PIT_BINS, GeneChunk
from superst_monai.errors import RunError, ShapeError
from superst_monai.model.predictive import coverage, expected_lognorm, nb_log_likelihood, score_counts


class Truth:
    """Held-out spots of a known law: one sample's parameters, its mean and sd, and counts drawn from it."""

    def __init__(self, n_spots=300, n_genes=130, seed=0):
        """Draw parameters, then counts."""
        rng = np.random.default_rng(seed)
        self.total_count = rng.gamma(3.0, 1.0, (1, n_spots, 1)) * rng.gamma(0.7, 3.0, (1, n_spots, n_genes))
        self.logits = rng.normal(0.0, 0.5, (1, 1, n_genes))
        self.mean = (self.total_count * np.exp(self.logits))[0]
        self.sd = np.sqrt(self.mean * (1 + np.exp(self.logits[0])))
        self.counts = rng.poisson(rng.standard_gamma(self.total_count[0]) * np.exp(self.logits[0]))

    def chunks(self, *ends):
        """Parameters in chunks of genes that end at `ends`."""
        for start, end in zip((0, *ends[:-1]), ends, strict=True):
            genes = slice(start, end)
            yield GeneChunk(genes, self.total_count[..., genes], self.logits[..., genes])


@pytest.fixture(scope="module")
def truth() -> Truth:
    """Held-out spots whose law is known."""
    return Truth()


def test_correlations_are_pearsons(truth):
    """Each gene's correlation agrees with numpy's corrcoef."""
    got = gene_correlations(truth.mean, truth.counts)
    plain = [np.corrcoef(truth.mean[:, g], truth.counts[:, g])[0, 1] for g in range(130)]
    np.testing.assert_allclose(got, plain, atol=1e-12)


def test_a_constant_column_has_no_correlation():
    """A column that is constant on either side, or varies less than a double resolves, gives NaN; a copy gives 1."""
    varying, constant, tiny = np.array([0.0, 1.0, 5.0]), np.full(3, 0.1), np.array([0.0, 0.0, 1e-200])
    predicted = np.stack([varying, constant, varying, tiny, varying], axis=1)
    observed = np.stack([varying, varying, constant, varying, -varying], axis=1)
    np.testing.assert_allclose(gene_correlations(predicted, observed), [1.0, np.nan, np.nan, np.nan, -1.0])


def test_what_log_normalised_counts_will_be_is_the_sum_over_their_law():
    """The expectation of log-normalised counts is that of the sum over all counts, and below that of the mean."""
    rng = np.random.default_rng(0)
    whole = np.array([20.0, 1e3, 1e4, 3e5, 0.0])
    mean = np.minimum(np.exp(rng.uniform(-8, 8, (5, 40))), np.maximum(whole, 1.0)[:, None])
    odds = np.exp(rng.uniform(-4, 3, 40))
    got = expected_lognorm(mean, odds, whole)
    x = np.arange(60_000)[:, None]
    for row, total in enumerate(whole[:-1]):
        mass = nbinom.pmf(x, mean[row] / odds, 1 / (1 + odds))
        np.testing.assert_allclose(got[row], (mass * np.log1p(1e4 * x / total)).sum(0), atol=1e-5)
    assert not got[-1].any()
    assert (got[:-1] < lognorm(mean, whole)[:-1]).all()


def test_lognorm_scales_each_spot_to_ten_thousand():
    """Rows become log1p(1e4 * share); an empty row stays zero; a part of the genes needs the whole's total."""
    counts = np.array([[1, 3], [0, 0]])
    wanted = [[np.log1p(2500.0), np.log1p(7500.0)], [0.0, 0.0]]
    np.testing.assert_allclose(lognorm(counts), wanted)
    np.testing.assert_allclose(lognorm(counts[:, :1], np.array([4, 0])), np.array(wanted)[:, :1])


def test_gene_scores_do_not_depend_on_chunks_or_storage():
    """Scores of 600 genes, more than one chunk, agree with those computed at once; sparse agrees with dense."""
    truth = Truth(n_spots=20, n_genes=600)
    table = score_genes(truth.mean.astype(np.float32), csr_matrix(truth.counts), names=[f"g{i}" for i in range(600)])
    np.testing.assert_allclose(table["total"], truth.counts.sum(0))
    np.testing.assert_allclose(table["raw"], gene_correlations(truth.mean, truth.counts), atol=1e-6)
    both = gene_correlations(lognorm(truth.mean), lognorm(truth.counts))
    np.testing.assert_allclose(table["lognorm"], both, atol=1e-6)
    dense = score_genes(truth.mean.astype(np.float32), truth.counts)
    np.testing.assert_array_equal(dense.to_numpy(), table.to_numpy())
    assert list(table.index[:2]) == ["g0", "g1"]
    assert list(dense.index[:2]) == [0, 1]


def test_r2_is_one_at_best_and_zero_for_the_mean():
    """A copy explains everything, the observed mean nothing, the reverse less; a constant gene has no r2."""
    seen = np.array([[1.0, 1.0, 1.0, 2.0], [2.0, 2.0, 2.0, 2.0], [6.0, 6.0, 6.0, 2.0]])
    said = np.array([[1.0, 3.0, 6.0, 2.0], [2.0, 3.0, 2.0, 1.0], [6.0, 3.0, 1.0, 2.0]])
    np.testing.assert_allclose(score_genes(said, seen)["r2"], [1.0, 0.0, 1 - 50 / 14, np.nan])


def test_summary_gives_quartiles_of_all_and_of_the_highest_genes():
    """Quartiles are numpy's over defined genes, for the 100 highest totals and for all; undefined genes are counted."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame(rng.random((150, 4)), columns=["total", "raw", "lognorm", "r2"])
    table.loc[::10, "raw"] = np.nan
    got = summarise(table, 0.25)
    top = table.sort_values("total", ascending=False).head(100)
    for part, genes in (("all", table), ("top100", top)):
        q25, median, q75 = np.nanquantile(genes["raw"], [0.25, 0.5, 0.75])
        assert got["raw"][part] == {
            "median": pytest.approx(median),
            "q25": pytest.approx(q25),
            "q75": pytest.approx(q75),
            "n_genes": len(genes),
            "n_undefined": int(genes["raw"].isna().sum()),
        }
        assert got["r2"][part] == pytest.approx(np.median(genes["r2"]))
    assert got["lognorm"]["all"]["n_undefined"] == 0
    assert got["depth"] == 0.25


def test_the_true_law_is_honest(truth):
    """Given the true law, coverage is nominal, errors have the predicted size, and no other law is more likely."""
    result = evaluate(truth.mean, csr_matrix(truth.counts), sd=truth.sd, samples=truth.chunks(50, 130))
    for block in ("coverage", "coverage_top100"):
        assert result[block]["50"] == pytest.approx(0.5, abs=0.01)
        assert result[block]["90"] == pytest.approx(0.9, abs=0.01)
    np.testing.assert_allclose(result["coverage_curve"]["all"], LEVELS, atol=0.01)
    np.testing.assert_allclose(result["pit"]["all"], np.full(PIT_BINS, 1 / PIT_BINS), atol=0.003)
    assert sum(result["pit"]["top100"]) == pytest.approx(1.0)
    assert result["uncalibrated"] is None
    assert result["sd_ratio"]["all"] == pytest.approx(1.0, abs=0.05)
    other = [GeneChunk(slice(0, 130), truth.total_count * 1.3, truth.logits)]
    assert evaluate(truth.mean, truth.counts, samples=other)["nb_loglik_per_spot"] < result["nb_loglik_per_spot"]
    assert result["n_spots"] == 300
    assert result["n_genes"] == 130
    assert result["raw"]["top100"]["median"] > 0.8


def test_likelihood_is_summed_over_genes_and_does_not_depend_on_chunks(truth):
    """The likelihood of a spot is the sum over its genes, however they are cut or ordered."""
    whole = nb_log_likelihood(truth.counts, truth.total_count, truth.logits).sum(1).mean()
    shuffled = np.random.default_rng(2).permutation(130)
    parts = [
        GeneChunk(genes, truth.total_count[..., genes], truth.logits[..., genes])
        for genes in np.array_split(shuffled, 3)
    ]
    cut = evaluate(truth.mean, csr_matrix(truth.counts), samples=parts)
    once = evaluate(truth.mean, truth.counts, samples=truth.chunks(130))
    assert cut["nb_loglik_per_spot"] == pytest.approx(whole)
    assert once["nb_loglik_per_spot"] == pytest.approx(whole)
    np.testing.assert_allclose(cut["coverage_curve"]["top100"], once["coverage_curve"]["top100"])
    for part in ("top100", "all"):
        assert cut["lognorm_expected"][part]["median"] == pytest.approx(once["lognorm_expected"][part]["median"])


def test_depth_in_log_normalised_counts_is_expected():
    """Spots of one composition that differ in depth alone: composition tells nothing, the law does."""
    rng = np.random.default_rng(3)
    mean = rng.gamma(1.0, 1.0, (400, 1)) * np.tile(np.geomspace(0.5, 20.0, 60), (400, 1))
    counts, logits = rng.poisson(rng.standard_gamma(mean / 0.3) * 0.3), np.full((1, 1, 60), np.log(0.3))
    result = evaluate(mean, counts, samples=[GeneChunk(slice(0, 60), mean[None] / 0.3, logits)])
    said = expected_lognorm(mean, np.array(0.3), mean.sum(1))
    plain = np.median(gene_correlations(said, lognorm(counts)))
    assert result["lognorm_expected"]["all"]["median"] == pytest.approx(plain)
    assert plain > 0.3
    assert abs(result["lognorm"]["all"]["median"] or 0.0) < 0.1


def test_the_law_before_recalibration_is_scored_beside(truth):
    """The curve is that of `coverage` at each level, and the block of the other law is what it would get alone."""
    narrow = [GeneChunk(slice(0, 130), truth.total_count * 5, truth.logits - np.log(5))]
    result = evaluate(truth.mean, truth.counts, samples=truth.chunks(130), uncalibrated=narrow)
    scores = score_counts(truth.counts, truth.total_count * 5, truth.logits - np.log(5))
    before = result["uncalibrated"]
    np.testing.assert_allclose(before["coverage_curve"]["all"], coverage(*scores[1:], LEVELS).mean((1, 2)), atol=1e-12)
    assert before["coverage_top100"]["90"] < 0.85 < result["coverage_top100"]["90"]
    assert before["pit"]["top100"][0] > 1.5 / PIT_BINS
    alone = evaluate(truth.mean, truth.counts, samples=narrow)
    assert before == {key: alone[key] for key in before}


def test_baselines_are_judged_by_the_same_scores(truth):
    """A baseline equal to the model has its blocks; the gene mean has no correlation and r2 of 0, but is reported."""
    baselines = {"gene_mean": truth.counts.mean(0), "image_intensity": truth.mean}
    result = evaluate(truth.mean, truth.counts, baselines=baselines)
    blocks = ("raw", "lognorm", "depth", "r2")
    assert result["baselines"]["image_intensity"] == {block: result[block] for block in blocks}
    flat = result["baselines"]["gene_mean"]
    assert flat["raw"]["all"] == {"median": None, "q25": None, "q75": None, "n_genes": 130, "n_undefined": 130}
    assert flat["lognorm"]["top100"]["n_undefined"] == 100
    assert flat["depth"] is None
    assert flat["r2"]["all"] == pytest.approx(0.0, abs=1e-9)


def test_the_result_is_json_without_nan():
    """What is not defined is None: one spot, impossible counts and a variance of zero leave no NaN or infinity."""
    counts = np.array([[3, 0]])
    impossible = [GeneChunk(slice(0, 2), np.zeros((1, 1, 2)), np.zeros(2))]
    result = evaluate(np.ones((1, 2)), counts, sd=np.zeros((1, 2)), samples=impossible)
    again = json.loads(json.dumps(result, allow_nan=False))
    assert again == result
    assert result["nb_loglik_per_spot"] is None
    assert result["depth"] is None
    assert result["sd_ratio"] == {"top100": None, "all": None}
    assert result["lognorm_expected"]["all"]["median"] is None
    assert result["coverage"] == {"50": pytest.approx(0.25), "90": pytest.approx(0.45)}  # [0, 1] half in, 1 outside


def test_what_is_not_given_is_none(truth):
    """Without samples, sd and baselines the result keeps its keys, empty."""
    result = evaluate(truth.mean, truth.counts)
    assert result["nb_loglik_per_spot"] is None
    assert result["coverage"] == {"50": None, "90": None}
    assert result["coverage_curve"] == {"nominal": list(LEVELS)}
    assert result["pit"] == {}
    assert result["sd_ratio"] == {"top100": None, "all": None}
    assert result["lognorm_expected"]["all"]["median"] is None
    assert result["baselines"] == {}


def test_no_genes_give_an_empty_summary():
    """Spots without any gene in common are summarised as nothing rather than failing."""
    result = evaluate(np.ones((3, 0)), np.ones((3, 0)))
    assert result["raw"]["all"]["median"] is None
    assert result["raw"]["all"]["n_genes"] == 0


def test_samples_must_hold_each_gene_once(truth):
    """Missing and repeated genes are counted in the error."""
    with pytest.raises(ShapeError, match="each of the 130 genes once, got 80 missing and 0 repeated"):
        evaluate(truth.mean, truth.counts, samples=truth.chunks(50))
    twice = [*truth.chunks(130), *truth.chunks(10)]
    with pytest.raises(ShapeError, match="got 0 missing and 10 repeated"):
        evaluate(truth.mean, truth.counts, samples=twice)
    within = [GeneChunk(np.array([0, 1, 1]), np.ones((1, 300, 3)), np.zeros(3))]
    with pytest.raises(ShapeError, match="got 128 missing and 1 repeated"):
        evaluate(truth.mean, truth.counts, samples=within)


def test_arrays_must_fit(truth):
    """Predictions or deviations of other shape, no spots, and parameters that are NaN raise."""
    with pytest.raises(ShapeError, match=r"mean must be .* got \(300, 129\) and \(300, 130\)"):
        evaluate(truth.mean[:, 1:], truth.counts)
    with pytest.raises(ShapeError, match=r"sd must be .* got \(299, 130\) and \(300, 130\)"):
        evaluate(truth.mean, truth.counts, sd=truth.sd[1:])
    with pytest.raises(ShapeError, match=r"with S > 0, got \(0, 4\) and \(0, 4\)"):
        gene_correlations(np.ones((0, 4)), np.ones((0, 4)))
    broken = [GeneChunk(slice(0, 130), truth.total_count * np.nan, truth.logits)]
    with pytest.raises(RunError, match="use a checkpoint"):
        evaluate(truth.mean, truth.counts, samples=broken)
