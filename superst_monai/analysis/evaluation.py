"""How good a prediction is on held-out spots: correlation, error, likelihood and coverage, beside the baselines'."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from superst_monai.analysis.law_scores import Counts, Floats, GeneChunk, dense, law_blocks
from superst_monai.errors import ShapeError
from superst_monai.model.predictive import expected_lognorm

TOP = 100  # genes in the blocks called top100: those with most UMIs observed
_CHUNK = 512  # genes scored at once


def lognorm(counts: NDArray[Any], total: NDArray[Any] | None = None) -> Floats:
    """Normalise to 10,000 a spot and take log(1 + x), natural.

    Args:
        counts: counts or expected counts `(S, G)`.
        total: what a row sums to `(S,)` if `counts` holds only some of its genes.

    Returns:
        log1p(1e4 * x / total) `(S, G)`; rows that sum to zero stay zero.
    """
    counts = np.asarray(counts, dtype=np.float64)
    whole = counts.sum(1) if total is None else np.asarray(total, dtype=np.float64)
    return np.log1p(1e4 * counts / np.where(whole > 0, whole, 1.0)[:, None])


def gene_correlations(predicted: NDArray[Any], observed: NDArray[Any]) -> Floats:
    """Pearson correlation over spots of each gene.

    Args:
        predicted: `(S, G)`.
        observed: `(S, G)`.

    Returns:
        Correlations `(G,)`; NaN where either column is constant, as it has none.

    Raises:
        ShapeError: the two differ in shape or hold no spot.
    """
    predicted, observed = np.asarray(predicted, dtype=np.float64), np.asarray(observed, dtype=np.float64)
    _same_shape("predicted", predicted, observed)
    a, b = predicted - predicted.mean(0), observed - observed.mean(0)
    varies = (np.ptp(predicted, axis=0) > 0) & (np.ptp(observed, axis=0) > 0)
    scale = np.sqrt((a**2).sum(0)) * np.sqrt((b**2).sum(0))
    varies &= scale > 0
    return np.where(varies, (a * b).sum(0) / np.where(varies, scale, 1.0), np.nan).clip(-1, 1)


def score_genes(predicted: NDArray[Any], observed: Counts, *, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Score a prediction gene by gene, some genes at a time.

    Args:
        predicted: expected counts `(S, G)`.
        observed: counts `(S, G)`, dense or sparse.
        names: of the G genes; their numbers if not given.

    Returns:
        G rows: `total` observed UMIs; correlation of `raw` counts and of `lognorm`; `r2` of raw counts, 1 - squared
        error / squared deviation from the observed mean. NaN where a score is not defined.

    Raises:
        ShapeError: prediction and observation differ in shape or hold no spot.
    """
    _same_shape("predicted", predicted, observed)
    whole = _row_sums(predicted), _row_sums(observed)
    pieces = []
    for start in range(0, observed.shape[1], _CHUNK):
        genes = slice(start, start + _CHUNK)
        said, seen = np.asarray(predicted[:, genes], dtype=np.float64), dense(observed, genes)
        varies = np.ptp(seen, axis=0) > 0
        spread = np.where(varies, ((seen - seen.mean(0)) ** 2).sum(0), np.nan)
        scores = {
            "total": seen.sum(0),
            "raw": gene_correlations(said, seen),
            "lognorm": gene_correlations(lognorm(said, whole[0]), lognorm(seen, whole[1])),
            "r2": 1.0 - ((said - seen) ** 2).sum(0) / spread,
        }
        pieces.append(pd.DataFrame(scores))
    columns = ["total", "raw", "lognorm", "r2"]
    table = pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame(columns=columns, dtype=np.float64)
    return table.set_index(pd.Index(range(len(table)) if names is None else list(names), name="gene"))


def summarise(scores: pd.DataFrame, depth: float) -> dict[str, Any]:
    """Summarise the scores of genes.

    Args:
        scores: from `score_genes`.
        depth: correlation over spots of predicted and observed totals.

    Returns:
        `raw` and `lognorm`: for `top100` and `all` genes the median, q25 and q75 of the correlation over the genes that
        have one, with `n_genes` and `n_undefined` (constant in prediction or observation, left out); `depth`; `r2`:
        for `top100` and `all` the median over genes. None stands for what is not defined; JSON has no NaN.
    """
    parts = {"top100": scores.iloc[_top(scores["total"].to_numpy())], "all": scores}
    correlations = {
        kind: {part: _quartiles(table[kind].to_numpy()) for part, table in parts.items()} for kind in ("raw", "lognorm")
    }
    r2 = {part: _quartiles(table["r2"].to_numpy())["median"] for part, table in parts.items()}
    return {**correlations, "depth": _number(depth), "r2": r2}


def evaluate(
    mean: NDArray[Any],
    observed: Counts,
    *,
    sd: NDArray[Any] | None = None,
    samples: Iterable[GeneChunk] = (),
    uncalibrated: Iterable[GeneChunk] | None = None,
    baselines: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, Any]:
    """Evaluate predicted counts of held-out spots; the result is ready for JSON.

    Args:
        mean, observed: expected counts and counts `(S, G)`, the latter dense or sparse.
        sd: predictive standard deviation `(S, G)`, of counts and not of their mean.
        samples: parameters of the predictive law, chunk by chunk so that memory stays bounded; each gene once.
        uncalibrated: of the law before recalibration, if there was one.
        baselines: predictions `(S, G)` or `(G,)` by name, judged by the same scores.

    Returns:
        `n_spots`, `n_genes`, the blocks of `summarise`, `lognorm_expected` (as `lognorm`, but of what the law expects
        of log-normalised counts, see `expected_lognorm`, instead of log-normalised expected counts), `sd_ratio` (root
        mean squared error over root mean variance, median over genes; 1 is honest), those of `law_scores.law_blocks`,
        the same of the law before recalibration in `uncalibrated`, and `baselines`. None: not given or not defined.

    Raises:
        ShapeError: arrays differ in shape, or the samples do not hold each gene once.
        RunError: a parameter in `samples` is not finite.
    """
    _same_shape("mean", mean, observed)
    _same_shape("sd", mean if sd is None else sd, observed)
    scores = score_genes(mean, observed)
    top = _top(scores["total"].to_numpy())
    others = {name: np.broadcast_to(said, mean.shape) for name, said in (baselines or {}).items()}
    expected = np.full(observed.shape[1], np.nan)
    law = law_blocks(_correlated(samples, observed, _row_sums(mean), expected), observed, top)
    return {
        "n_spots": int(observed.shape[0]),
        "n_genes": int(observed.shape[1]),
        **_blocks(mean, observed, scores),
        "lognorm_expected": {"top100": _quartiles(expected[top]), "all": _quartiles(expected)},
        "sd_ratio": _sd_ratio(mean, observed, sd, top),
        **law,
        "uncalibrated": None if uncalibrated is None else law_blocks(uncalibrated, observed, top),
        "baselines": {name: _blocks(said, observed, score_genes(said, observed)) for name, said in others.items()},
    }


def _blocks(predicted: NDArray[Any], observed: Counts, scores: pd.DataFrame) -> dict[str, Any]:
    """The blocks that model and baselines share."""
    totals = _row_sums(predicted)[:, None], _row_sums(observed)[:, None]
    return summarise(scores, float(gene_correlations(*totals)[0]))


def _correlated(
    samples: Iterable[GeneChunk], observed: Counts, whole: Floats, found: NDArray[np.float64]
) -> Iterator[GeneChunk]:
    """Hand the chunks on, and write the correlation of expected and observed log-normalised counts into `found`."""
    total = _row_sums(observed)
    for chunk in samples:
        odds = np.exp(chunk.logits)
        mean, spread = (chunk.total_count * odds).mean(axis=0), odds.mean(axis=0)
        said = expected_lognorm(mean, spread, whole)
        found[chunk.genes] = gene_correlations(said, lognorm(dense(observed, chunk.genes), total))
        yield chunk


def _sd_ratio(
    mean: NDArray[Any], observed: Counts, sd: NDArray[Any] | None, top: NDArray[np.int64]
) -> dict[str, float | None]:
    """Median over genes of root mean squared error over root mean variance; genes of no variance left out."""
    if sd is None:
        return {"top100": None, "all": None}
    ratio = np.full(observed.shape[1], np.nan)
    for start in range(0, observed.shape[1], _CHUNK):
        genes = slice(start, start + _CHUNK)
        error = ((np.asarray(mean[:, genes], dtype=np.float64) - dense(observed, genes)) ** 2).sum(0)
        variance = (np.asarray(sd[:, genes], dtype=np.float64) ** 2).sum(0)
        ratio[genes] = np.where(variance > 0, np.sqrt(error / np.where(variance > 0, variance, 1.0)), np.nan)
    return {"top100": _quartiles(ratio[top])["median"], "all": _quartiles(ratio)["median"]}


def _top(total: NDArray[Any]) -> NDArray[np.int64]:
    """The genes with the highest totals, the first of equals first `(min(TOP, G),)`."""
    return np.argsort(-total, kind="stable")[:TOP].astype(np.int64)


def _quartiles(values: NDArray[Any]) -> dict[str, float | int | None]:
    """Median and quartiles of what is defined, and how many values are not."""
    defined = values[~np.isnan(values)]
    q25, median, q75 = np.quantile(defined, [0.25, 0.5, 0.75]) if defined.size else (math.nan,) * 3
    said = {"median": _number(median), "q25": _number(q25), "q75": _number(q75)}
    return {**said, "n_genes": len(values), "n_undefined": len(values) - len(defined)}


def _number(value: float) -> float | None:
    """The number for JSON, which knows neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def _row_sums(counts: Counts) -> Floats:
    """Total of each spot `(S,)`."""
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


def _same_shape(name: str, predicted: NDArray[Any], observed: Counts) -> None:
    """Refuse a prediction that is not one number for each observed count, or an observation of no spot."""
    if predicted.shape != observed.shape or len(observed.shape) != 2 or observed.shape[0] == 0:
        raise ShapeError(
            f"{name} must be (S, G) as the observed counts, with S > 0, got {predicted.shape} and {observed.shape}; "
            "take both from the same spots and genes."
        )
