"""Benchmark of super-resolution: spots withheld from a measured section, predicted by interpolation, image and both.

    python benchmarks/super_resolution.py brca C3 MOB1 C3-merged bins --data DATA --out OUT --steps 500 --folds 5

Each section (of those in docs/benchmarks.md) is prepared and cut into folds of whole spots. For each fold the network
is trained on the other spots alone, the field is fitted to them, and the withheld spots are predicted:

- linear interpolation between the training spots (nearest beyond their hull);
- ridge regression of log-normalised counts on the stains round the spot, smoothed at several scales;
- the mean of these two;
- a Gaussian process over space for each of the 100 highest genes, of one shared length scale;
- the model without its field (image alone) and with it.

With `-merged` pairs of neighbouring spots are measured as one and each of them predicted, for as many draws of pairs.
`bins` judges below the size of spots instead: a synthetic tissue with known truth, whose cells the image shows and one
third of whose genes also follow a smooth pattern that it does not show; square bins of 1, 1/2, 1/4 of a spot's width.

Scores of each fold, over those of the 100 highest genes that the model knows: the median correlation of log-normalised
values, with what a method expects of them and, of the model, with its log-normalised expectation too (`r_share`, free
of depth; see docs/formats.md), and the log-likelihood of the counts under a negative binomial with the method's mean
and one dispersion a gene. That is fitted, for each method alike, to the withheld spots of the other folds. Methods for
log-normalised values get a depth by the same method. OUT/NAME.csv holds the figures, OUT/NAME_foldK/residuals.json how
the counts that the field was fitted to lie about the model's law; a fold that is there is not computed again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from real_sections import CASES, CHECKOUT, run_stage
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_matrix
from scipy.stats import nbinom
from skimage.color import rgb2hed
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from superst_monai.analysis.evaluation import gene_correlations, lognorm
from superst_monai.analysis.files import make_folder, write_json
from superst_monai.data.section import Section
from superst_monai.data.store import read_section, write_section
from superst_monai.data.synthetic import make_tissue
from superst_monai.engines.workflow import train
from superst_monai.experiments.demo import prepare_tissue
from superst_monai.experiments.merged_pairs import merge_spots, neighbour_pairs
from superst_monai.inference.canvas import canvas_of
from superst_monai.inference.colours import FILE, colours_over
from superst_monai.inference.colours_fit import fit_colours
from superst_monai.inference.field_store import fit_training_fields
from superst_monai.inference.maps import open_maps
from superst_monai.inference.rates import choose_conditions, mean_rates
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.section_field import fit_field, modulate, spot_pixels
from superst_monai.inference.slide_map import predict
from superst_monai.model.likelihood import sum_over_spots
from superst_monai.model.predictive import expected_lognorm
from superst_monai.transforms.labels import spot_labels
from superst_monai.transforms.tissue import find_tissue

Floats = NDArray[np.float64]
SCALES_UM = (16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
TOP = 100
Predicted = dict[str, Floats]
IMAGE, FIELD = "model, image alone", "model, with field"
SECTIONS = {"brca": "visium_brca", "C3": "her2st", "MOB1": "mob"}


@dataclass(frozen=True)
class Given:
    """Settings of the benchmark."""

    out: Path
    steps: int
    folds: int
    seed: int


def subset(section: Section, keep: NDArray[np.bool_]) -> Section:
    """The section with some of its spots."""
    return replace(section, counts=section.counts[np.flatnonzero(keep)], spots=section.spots[keep])


def interpolate(xy: Floats, values: Floats, at: Floats) -> Floats:
    """Linear between the points, nearest beyond their hull."""
    found = LinearNDInterpolator(xy, values)(at)
    return np.where(np.isnan(found), NearestNDInterpolator(xy, values)(at), found)


def places(section: Section) -> Floats:
    """Centres of the spots `(S, 2)` [um]."""
    return section.spots[["x_um", "y_um"]].to_numpy(np.float64)


def stain_features(section: Section, at: Floats, mpp: float = 8.0) -> Floats:
    """Mean and sd of haematoxylin, eosin and DAB round places `(S, 2)` [um] at several scales `(S, F)`."""
    section = section.at(mpp) if section.mpp < mpp else section
    hed = rgb2hed(section.image)
    tissue = section.tissue.astype(float)
    xy = (at / section.mpp).astype(int)
    col, row = (np.clip(part, 0, n - 1) for part, n in zip(xy.T, tissue.shape[::-1], strict=True))
    columns = []
    for scale in SCALES_UM:
        sigma = scale / section.mpp
        weight = gaussian_filter(tissue, sigma)[row, col] + 1e-3
        columns.append(weight)
        for channel in np.moveaxis(hed, 2, 0):
            mean = gaussian_filter(channel * tissue, sigma)[row, col] / weight
            square = gaussian_filter(channel**2 * tissue, sigma)[row, col] / weight
            columns += [mean, np.sqrt(np.maximum(square - mean**2, 0))]
    return np.column_stack(columns)


def gaussian_process(xy: Floats, values: Floats, at: Floats) -> Floats:
    """A Gaussian process a gene; length scale and noise from the mean over the genes of largest spatial variance."""
    centre, spread = values.mean(0), values.std(0) + 1e-9
    scaled = (values - centre) / spread
    kernel = 0.5 * RBF(300.0, (50.0, 5000.0)) + WhiteKernel(0.5)
    chosen = scaled[:, :: max(1, scaled.shape[1] // 8)]
    fitted = GaussianProcessRegressor(kernel, normalize_y=False).fit(xy, chosen).kernel_
    process = GaussianProcessRegressor(fitted, optimizer=None).fit(xy, scaled)
    return process.predict(at).reshape(len(at), -1) * spread + centre


def trained(measured: Section, folder: Path, given: Given) -> Run:
    """A run that saw the measured spots alone, with its second reading; one that is there is not trained again."""
    run_dir = folder / "run"
    if not (run_dir / FILE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_section(measured, folder / "section.zarr")
        options = {"default_steps": given.steps}
        train([folder / "section.zarr"], run_dir, seed=given.seed, options=options, show=lambda *_: None)
        fit_colours(run_dir)
    return load_run(run_dir)


def model_means(
    section: Section, measured: Section, folder: Path, given: Given
) -> dict[str, tuple[Floats, Floats, list[str]]]:
    """Law of all spots without and with the field, of a model that saw the measured ones alone.

    Returns:
        For each of both the expected counts `(S, G)`, the logits `(G,)` and the names of the genes.
    """
    run = trained(measured, folder, given)
    canvas = canvas_of(section, run.mpp, find_tissue)
    pixels = spot_pixels(run.network, section, canvas, colours=colours_over(run, canvas))
    field = fit_field(run, measured, seed=given.seed)
    log_rate, logit = mean_rates(run.network, choose_conditions(run, section, None))
    nodes = np.asarray(field.mean).reshape(len(field.mean), -1).T
    moved = modulate(pixels.scaled, field.grid.weights(pixels.x_um, pixels.y_um) @ torch.from_numpy(nodes))
    found = {}
    for name, scaled, beta, gamma in (
        (IMAGE, pixels.scaled, 0.0, 0.0),
        (FIELD, moved, field.rate_effect, field.logit_effect),
    ):
        size = sum_over_spots(scaled, scaled.new_ones(len(scaled), 1), pixels.spot, n_spots=section.n_spots).numpy()
        found[name] = ((size @ np.exp(log_rate + beta)) * np.exp(logit + gamma), logit + gamma, run.genes)
    return found


def residuals(observed: Floats, mean: Floats, logit: Floats) -> dict[str, float]:
    """Mean and variance of the standardised residuals of counts `(S, G)` under the model's law, all genes together."""
    z = (observed - mean) / np.sqrt(np.maximum(mean * (1 + np.exp(logit)), 1e-12))
    return {"residual_mean": float(z.mean()), "residual_variance": float(z.var())}


def log_likelihood(observed: Floats, mean: Floats, a: Floats) -> Floats:
    """Log mass of the counts of each spot `(S,)` [nat] under negative binomials of variance mean + a_g mean^2."""
    mean = np.maximum(mean, 1e-3)
    return nbinom.logpmf(observed, 1 / a, 1 / (1 + a * mean)).sum(1)


def fit_dispersion(observed: Floats, mean: Floats) -> Floats:
    """Dispersion of each gene `(G,)` of largest likelihood, on a grid from nearly Poisson to very wide."""
    grid, mean = np.geomspace(1e-3, 10.0, 33), np.maximum(mean, 1e-3)
    mass = [nbinom.logpmf(observed, 1 / a, 1 / (1 + a * mean)).sum(0) for a in grid]
    return grid[np.argmax(mass, axis=0)]


@dataclass(frozen=True)
class Measured:
    """What the methods learn from: places, counts of one spot and stain features of each, and the section itself."""

    section: Section
    xy: Floats
    counts: Floats
    features: Floats


def without(section: Section, out: NDArray[np.bool_]) -> Measured:
    """The spots that are not withheld."""
    rest, xy = subset(section, ~out), places(section)[~out]
    return Measured(rest, xy, np.asarray(rest.counts.todense(), dtype=np.float64), stain_features(section, xy))


def merged(section: Section, pairs: NDArray[np.int64]) -> Measured:
    """Pairs of neighbours counted as one: for a method of places, half the counts in the middle."""
    both, xy = merge_spots(section, pairs), places(section)[pairs]  # (P, 2, 2)
    counts = np.asarray(both.counts.todense(), dtype=np.float64) / 2
    features = stain_features(section, xy.reshape(-1, 2)).reshape(*pairs.shape, -1).mean(1)
    return Measured(both, xy.mean(1), counts, features)


def predict_spots(
    section: Section, rows: NDArray[np.intp], known: Measured, top: NDArray[np.intp], folder: Path, given: Given
) -> Predicted:
    """What each method says of some spots `(3, S', TOP)`: log-normalised values, counts, log-normalised counts.

    The first are what is expected of log-normalised counts, the second expected counts, the third log-normalised
    expected counts, which are the first for methods that are fitted to log-normalised counts. The run of the model
    stays in `folder`, beside the residuals of the spots that its field was fitted to.
    """
    xy, counts_of_top = places(section)[rows], known.counts[:, top]
    target, depth = lognorm(known.counts)[:, top], known.counts.sum(1)
    found: Predicted = {}

    def as_counts(log: Floats, size: Floats) -> Floats:
        return np.expm1(np.maximum(log, 0)) / 1e4 * size[:, None]

    linear_log = interpolate(known.xy, target, xy)
    total = interpolate(known.xy, depth, xy)
    found["linear interpolation"] = np.stack([linear_log, interpolate(known.xy, counts_of_top, xy)])
    scaler, alphas = StandardScaler().fit(known.features), np.logspace(0, 5, 11)
    learnt, there = (scaler.transform(part) for part in (known.features, stain_features(section, xy)))
    ridge_log = RidgeCV(alphas).fit(learnt, target).predict(there)
    seen = np.exp(RidgeCV(alphas).fit(learnt, np.log1p(depth)).predict(there))
    found["H&E ridge regression"] = np.stack([ridge_log, as_counts(ridge_log, seen)])
    both = (ridge_log + linear_log) / 2
    found["mean of the two"] = np.stack([both, as_counts(both, np.sqrt(seen * np.maximum(total, 1)))])
    process = gaussian_process(known.xy, target, xy)
    size = gaussian_process(known.xy, np.log1p(depth)[:, None], xy)[:, 0]
    found["Gaussian process"] = np.stack([process, as_counts(process, np.exp(size))])
    measured = np.setdiff1d(np.arange(section.n_spots), rows)
    for method, (mean, logit, genes) in model_means(section, known.section, folder, given).items():
        if method == FIELD and known.section.n_spots == len(measured):  # else pairs were measured
            counts = section.counts[measured][:, section.genes.index.get_indexer(genes)].toarray()
            write_json(folder / "residuals.json", residuals(counts, mean[measured], logit))
        columns = pd.Index(genes).get_indexer(section.genes.index[top])
        counts = np.where(columns >= 0, mean[rows][:, columns], np.nan)  # a gene left out of training has no figure
        whole = mean[rows].sum(1)
        expected = expected_lognorm(counts, np.exp(logit)[columns], whole)
        found[method] = np.stack([expected, counts, lognorm(counts, whole)])
    return {name: said if len(said) == 3 else np.concatenate([said, said[:1]]) for name, said in found.items()}


def judge_pairs(name: str, section: Section, given: Given) -> pd.DataFrame:
    """Share of right directions within merged pairs and likelihood of their spots: a row for each method and draw.

    A direction is which spot of a pair has more of a gene's counts, or more of it in its log-normalised counts. The
    dispersions are fitted to the pairs of the other draws.
    """
    observed = np.asarray(section.counts.todense(), dtype=np.float64)
    top = np.argsort(-observed.sum(0), kind="stable")[:TOP]
    draws = []
    for k in range(given.folds):
        pairs = neighbour_pairs(places(section), np.random.default_rng((given.seed, k)))
        kept = given.out / f"{name}_pairs{k}.npz"
        if not kept.exists():
            folder = given.out / f"{name}_pairs{k}"
            np.savez(kept, **predict_spots(section, pairs.T.ravel(), merged(section, pairs), top, folder, given))
        with np.load(kept) as stored:
            draws.append((pairs.T.ravel(), dict(stored)))
    known = ~np.isnan(draws[0][1][IMAGE]).any((0, 1))
    rows = []
    for method in draws[0][1]:
        for k, (at, said) in enumerate(draws):
            others = [draw for i, draw in enumerate(draws) if i != k] or draws
            width = fit_dispersion(
                np.concatenate([observed[spots][:, top[known]] for spots, _ in others]),
                np.concatenate([part[method][1][:, known] for _, part in others]),
            )
            seen, truth = observed[at][:, top[known]], lognorm(observed)[at][:, top[known]]
            log, counts, normalised = said[method][:, :, known]
            found = {"section": name, "method": method, "fold": k}
            found["loglik"] = float(log_likelihood(seen, counts, width).mean())
            for words, predicted, measured in (
                ("right_counts", counts, seen),
                ("right_lognorm", log, truth),
                ("right_share", normalised, truth),
            ):
                ahead = [np.sign(np.subtract(*np.split(part, 2))) for part in (predicted, measured)]
                found[words] = float((ahead[0] == ahead[1])[ahead[1] != 0].mean())
            rows.append(found)
    return pd.DataFrame(rows)


def judge(name: str, section: Section, given: Given) -> pd.DataFrame:
    """Scores of all methods on one section: a row for each method and fold."""
    observed = np.asarray(section.counts.todense(), dtype=np.float64)
    top = np.argsort(-observed.sum(0), kind="stable")[:TOP]
    target = lognorm(observed)[:, top]
    fold = np.random.default_rng(given.seed).permutation(section.n_spots) % given.folds
    parts: list[Predicted] = []
    for k in range(given.folds):
        started, kept = time.monotonic(), given.out / f"{name}_fold{k}.npz"
        if not kept.exists():
            rows = np.flatnonzero(fold == k)
            folder = given.out / f"{name}_fold{k}"
            np.savez(kept, **predict_spots(section, rows, without(section, fold == k), top, folder, given))
            print(f"{name}: fold {k + 1} of {given.folds}, {time.monotonic() - started:.0f} s", flush=True)
        with np.load(kept) as stored:
            parts.append(dict(stored))
    known = ~np.isnan(parts[0][IMAGE]).any((0, 1))
    seen = [observed[fold == k][:, top][:, known] for k in range(given.folds)]
    rows = []
    for method in parts[0]:
        counts = [part[method][1][:, known] for part in parts]
        for k in range(given.folds):
            others = [i for i in range(given.folds) if i != k]  # where the dispersions come from
            width = fit_dispersion(
                np.concatenate([seen[i] for i in others]), np.concatenate([counts[i] for i in others])
            )
            found = {"section": name, "method": method, "fold": k}
            for words, layer in (("r_lognorm", 0), ("r_share", 2)):
                r = gene_correlations(parts[k][method][layer][:, known], target[fold == k][:, known])
                found[words] = float(np.nanmedian(r))
            rows.append(found | {"loglik": float(log_likelihood(seen[k], counts[k], width).mean())})
    return pd.DataFrame(rows)


def compare(table: pd.DataFrame, best: str = FIELD) -> pd.DataFrame:
    """Mean over folds of each score, and how much more the model with field has, with the standard error over folds."""
    rows = {}
    for score in [column for column in table if column not in ("section", "method", "fold")]:
        wide = table.pivot(index="fold", columns="method", values=score)
        more = wide[[best]].to_numpy() - wide
        rows |= {score: wide.mean(), f"{score}_se": wide.sem(), f"{score}_more": more.mean()}
        rows |= {f"{score}_more_se": more.sem()}
    return pd.DataFrame(rows).loc[list(dict.fromkeys(table["method"]))]


def hidden_tissue(seed: int, out: Path) -> tuple[Section, Floats]:
    """A synthetic section part of whose structure no image shows.

    The cells' subtypes are seen; a smooth pattern, unseen, multiplies a third of the genes by e^1.2 to e^-1.2. The
    counts are drawn again under it.

    Returns:
        The section and the expected UMIs of each gene in pixels of the section's resolution `(G, H, W)`.
    """
    tissue, rng = make_tissue(seed=seed), np.random.default_rng(seed)
    section = prepare_tissue(tissue, out, 4.0)
    noise = gaussian_filter(rng.standard_normal(section.tissue.shape), 100.0 / section.mpp)
    pattern = np.tanh(2 * noise / noise.std())
    weight = np.where(np.arange(section.n_genes) % 3 == 0, 1.2, 0.0) * np.where(
        rng.random(section.n_genes) < 0.5, 1, -1
    )
    rate = np.stack([tissue.expected(gene, mpp=section.mpp) for gene in section.genes.index])
    rate = (rate * np.exp(weight[:, None, None] * pattern)).astype(np.float32)
    label = torch.from_numpy(spot_labels(section)).flatten()
    label[label > section.n_spots] = 0
    mean = (
        torch.zeros(section.n_spots + 1, len(rate)).index_add(0, label, torch.from_numpy(rate).flatten(1).T)[1:].numpy()
    )
    odds = np.exp(tissue.logits)
    counts = rng.poisson(rng.gamma(np.maximum(mean / odds, 1e-9)) * odds)
    return replace(section, counts=csr_matrix(counts.astype(np.int32))), rate


def judge_bins(given: Given) -> pd.DataFrame:
    """Correlation over square bins of expected expression and truth, median over genes: all, seen and unseen ones."""
    scratch = make_folder(given.out / "bins")
    section, rate = hidden_tissue(given.seed, make_folder(scratch / "tissue"))
    store = scratch / "section.zarr"
    write_section(section, store, overwrite=True)
    run_dir = scratch / "run"
    if not (run_dir / "fields").exists():
        train(
            [store],
            run_dir,
            mpp=section.mpp,
            seed=given.seed,
            options={"default_steps": 2 * given.steps},
            show=lambda *_: None,
        )
        fit_colours(run_dir)
        fit_training_fields(run_dir)
    run, xy = load_run(run_dir), places(section)
    observed = np.asarray(section.counts.todense(), dtype=np.float64)
    features = StandardScaler().fit(stain_features(section, xy))
    seen = features.transform(stain_features(section, xy))
    ridge = RidgeCV(np.logspace(0, 5, 11)).fit(seen, observed)
    genes, rows = section.genes.index, []
    unseen = np.arange(len(genes)) % 3 == 0
    for share in (1, 2, 4):
        side = round(65.0 / share / section.mpp)
        height, width = (n // side * side for n in section.tissue.shape)
        grid = np.arange(height // side * (width // side)).reshape(height // side, -1) + 1
        label = np.zeros(section.tissue.shape, np.int64)
        label[:height, :width] = np.kron(grid, np.ones((side, side), np.int64))
        whole = np.bincount(label[section.tissue], minlength=grid.size + 1)[1:] == side**2
        centre = np.stack(np.nonzero(grid)[::-1], 1) * side + side / 2
        at = (centre * section.mpp)[whole]
        truth = np.stack([np.bincount(label.ravel(), part.ravel(), grid.size + 1)[1:][whole] for part in rate], 1)
        found = {
            "linear interpolation": interpolate(xy, observed, at),
            "H&E ridge regression": ridge.predict(features.transform(stain_features(section, at))),
            "Gaussian process": gaussian_process(xy, observed, at),
        }
        found["mean of the two"] = (found["linear interpolation"] + found["H&E ridge regression"]) / 2
        for method, field in ((IMAGE, False), (FIELD, True)):
            maps = predict(run, section, scratch / "maps.zarr", use_field=field, overwrite=True, tell=lambda _: None)
            sums = open_maps(maps).sum_over(label, genes=list(run.genes), n_supports=grid.size)
            order = pd.Index(run.genes).get_indexer(genes)
            found[method] = np.where(order >= 0, np.asarray(sums.mean)[whole][:, order], np.nan)
        for method, said in found.items():
            r = gene_correlations(said, truth)
            parts = {"all": slice(None), "seen": ~unseen, "unseen": unseen}
            rows += [{"bin": f"1/{share} spot", "method": method} | {k: np.nanmedian(r[v]) for k, v in parts.items()}]
    return pd.DataFrame(rows)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*SECTIONS, *(f"{name}-merged" for name in SECTIONS), "bins"]
    parser.add_argument("sections", nargs="*", choices=[[], *known], metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--data", type=Path, default=CHECKOUT.parent / "shared" / "data", help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("runs") / "super_resolution", help="folder to write")
    parser.add_argument("--steps", type=int, default=500, help="training steps of each fold")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    given = Given(words.out, words.steps, words.folds, words.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in words.sections or known:
        if name == "bins":
            table = judge_bins(given)
            print(table.round(3).to_string())
        else:
            where, _, merge = name.partition("-")
            store = given.out / f"{where}.zarr"
            if not store.exists():
                told = CASES[SECTIONS[where]].prepare(words.data, where)
                run_stage(given.out, f"prepare_{where}", ["prepare", *told, "--out", str(store), "--name", where])
            table = (judge_pairs if merge else judge)(where, read_section(store), given)
            print(f"{name}\n{compare(table).round(3).to_string()}", flush=True)
            left = [json.loads(file.read_text()) for file in sorted(given.out.glob(f"{where}_fold*/residuals.json"))]
            if left and not merge:
                print(f"residuals of the field's own spots\n{pd.DataFrame(left).round(3).to_string()}", flush=True)
        table.to_csv(given.out / f"{name}.csv", index=False)


if __name__ == "__main__":
    main()
