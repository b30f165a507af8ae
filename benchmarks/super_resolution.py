"""Benchmark of super-resolution: spots withheld from a measured section, predicted by interpolation, image and both.

    python benchmarks/super_resolution.py brca C3 MOB1 --data DATA --out OUT --minutes 3 --folds 5

Each section (of those in docs/benchmarks.md) is prepared and cut into folds of whole spots. For each fold the network
is trained on the other spots alone, the field is fitted to them, and the withheld spots are predicted:

- linear interpolation between the training spots (nearest beyond their hull);
- ridge regression of log-normalised counts on the stains round the spot, smoothed at several scales;
- the mean of these two;
- a Gaussian process over space for each of the 100 highest genes, of one shared length scale;
- the model without its field (image alone) and with it.

Scores, over all withheld spots of the folds together: the median over the 100 highest genes of the correlation of
log-normalised values, and the log-likelihood of the counts of these genes under a negative binomial with the method's
mean (its composition times the depth of the training spots' mean for methods that predict composition only) and one
dispersion a gene, fitted to the method's own training residuals. OUT/benchmark.json holds the figures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from real_sections import CASES, CHECKOUT, run_stage
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.ndimage import gaussian_filter
from scipy.stats import nbinom
from skimage.color import rgb2hed
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from superst_monai.analysis.evaluation import gene_correlations, lognorm
from superst_monai.data.section import Section
from superst_monai.data.store import read_section, write_section
from superst_monai.engines.workflow import train
from superst_monai.inference.canvas import canvas_of
from superst_monai.inference.rates import choose_conditions, mean_rates
from superst_monai.inference.run import load_run
from superst_monai.inference.section_field import fit_field, modulate, spot_pixels
from superst_monai.model.likelihood import sum_over_spots
from superst_monai.transforms.tissue import find_tissue

Floats = NDArray[np.float64]
SCALES_UM = (16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
TOP = 100
SECTIONS = {"brca": "visium_brca", "C3": "her2st", "MOB1": "mob"}


def subset(section: Section, keep: NDArray[np.bool_]) -> Section:
    """The section with some of its spots."""
    return replace(section, counts=section.counts[np.flatnonzero(keep)], spots=section.spots[keep])


def interpolate(xy: Floats, values: Floats, at: Floats) -> Floats:
    """Linear between the points, nearest beyond their hull."""
    found = LinearNDInterpolator(xy, values)(at)
    return np.where(np.isnan(found), NearestNDInterpolator(xy, values)(at), found)


def stain_features(section: Section, mpp: float = 8.0) -> Floats:
    """Mean and sd of haematoxylin, eosin and DAB round each spot at several scales `(S, F)`."""
    section = section.at(mpp) if section.mpp < mpp else section
    hed = rgb2hed(section.image)
    tissue = section.tissue.astype(float)
    xy = (section.spots[["x_um", "y_um"]].to_numpy() / section.mpp).astype(int)
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
    return process.predict(at) * spread + centre


def model_means(
    section: Section, keep: NDArray[np.bool_], minutes: float, seed: int
) -> dict[str, tuple[Floats, list[str]]]:
    """Expected counts of all spots `(S, G)` without and with the field, of a model that saw the kept spots alone."""
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "section.zarr"
        write_section(subset(section, keep), store)
        run = load_run(train([store], Path(scratch) / "run", minutes=minutes, seed=seed, show=lambda *_: None))
        pixels = spot_pixels(run.network, section, canvas_of(section, run.mpp, find_tissue))
        field = fit_field(run, section, keep=keep, seed=seed)
    log_rate, logit = mean_rates(run.network, choose_conditions(run, section, None))
    nodes = np.asarray(field.mean).reshape(len(field.mean), -1).T
    moved = modulate(pixels.scaled, field.grid.weights(pixels.x_um, pixels.y_um) @ torch.from_numpy(nodes))
    found = {}
    for name, scaled, beta, gamma in (
        ("model, image alone", pixels.scaled, 0.0, 0.0),
        ("model, with field", moved, field.rate_effect, field.logit_effect),
    ):
        size = sum_over_spots(scaled, scaled.new_ones(len(scaled), 1), pixels.spot, n_spots=section.n_spots).numpy()
        found[name] = ((size @ np.exp(log_rate + beta)) * np.exp(logit + gamma), run.genes)
    return found


def log_likelihood(observed: Floats, mean: Floats, residual_of: tuple[Floats, Floats]) -> float:
    """Mean log mass of counts [nat per spot] of negative binomials of variance mean + a mean^2, a fitted a gene."""
    seen, expected = residual_of
    excess = ((seen - expected) ** 2 - expected).sum(0) / np.maximum((expected**2).sum(0), 1e-9)
    a = np.clip(excess, 1e-3, 10.0)
    mean = np.maximum(mean, 1e-3)
    return float(nbinom.logpmf(observed, 1 / a, 1 / (1 + a * mean)).sum(1).mean())


def judge(name: str, section: Section, *, minutes: float, folds: int, seed: int) -> dict[str, dict[str, float]]:
    """Scores of all methods on one section."""
    observed = np.asarray(section.counts.todense(), dtype=np.float64)
    depth = observed.sum(1)
    top = np.argsort(-observed.sum(0), kind="stable")[:TOP]
    genes = list(section.genes.index[top])
    xy = section.spots[["x_um", "y_um"]].to_numpy(np.float64)
    features = stain_features(section)
    fold = np.random.default_rng(seed).permutation(section.n_spots) % folds
    logs: dict[str, Floats] = {}
    likelihood: dict[str, list[float]] = {}

    def take(method: str, out: NDArray[np.bool_], log: Floats, counts: Floats) -> None:
        """Keep a method's log-normalised values and expected counts of all spots, of which `out` were withheld."""
        logs.setdefault(method, np.zeros((section.n_spots, TOP)))[out] = log[out]
        fitted = (observed[~out][:, top], counts[~out])
        likelihood.setdefault(method, []).append(log_likelihood(observed[out][:, top], counts[out], fitted))

    target = lognorm(observed)[:, top]
    for k in range(folds):
        started, out = time.monotonic(), fold == k
        keep = ~out
        linear = interpolate(xy[keep], observed[keep][:, top], xy)
        linear_log = interpolate(xy[keep], target[keep], xy)
        total = interpolate(xy[keep], depth[keep], xy)
        take("linear interpolation", out, linear_log, linear)
        scaler = StandardScaler().fit(features[keep])
        ridge = RidgeCV(np.logspace(0, 5, 11)).fit(scaler.transform(features[keep]), target[keep])
        ridge_log = ridge.predict(scaler.transform(features))
        volume = RidgeCV(np.logspace(0, 5, 11)).fit(scaler.transform(features[keep]), np.log(depth[keep] + 1))
        seen = np.exp(volume.predict(scaler.transform(features)))
        as_counts = lambda log, size: np.expm1(np.maximum(log, 0)) / 1e4 * size[:, None]  # noqa: E731
        take("H&E ridge regression", out, ridge_log, as_counts(ridge_log, seen))
        both = (ridge_log + linear_log) / 2
        take("mean of the two", out, both, as_counts(both, np.sqrt(seen * np.maximum(total, 1))))
        process = gaussian_process(xy[keep], target[keep], xy)
        take("Gaussian process", out, process, as_counts(process, total))
        for method, (mean, known) in model_means(section, keep, minutes, seed).items():
            at = {gene: i for i, gene in enumerate(known)}
            columns = [at.get(gene, -1) for gene in genes]
            counts = np.where(np.array(columns) >= 0, mean[:, columns], observed[keep][:, top].mean(0))
            take(method, out, lognorm(counts, mean.sum(1)), counts)
        print(f"{name}: fold {k + 1} of {folds}, {time.monotonic() - started:.0f} s", flush=True)
    modelled = [i for i, gene in enumerate(genes) if gene in known]
    return {
        method: {
            "r_lognorm": float(np.nanmedian(gene_correlations(log, target)[modelled])),
            "loglik_per_spot": float(np.mean(likelihood[method])),
            "n_genes": len(modelled),
        }
        for method, log in logs.items()
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sections", nargs="*", choices=[[], *SECTIONS], metavar="SECTION", help=f"of {', '.join(SECTIONS)}"
    )
    parser.add_argument("--data", type=Path, default=CHECKOUT.parent / "shared" / "data", help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("runs") / "super_resolution", help="folder to write")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    table = {}
    for name in given.sections or SECTIONS:
        store = given.out / f"{name}.zarr"
        if not store.exists():
            words = CASES[SECTIONS[name]].prepare(given.data, name)
            run_stage(given.out, f"prepare_{name}", ["prepare", *words, "--out", str(store), "--name", name])
        section = read_section(store)
        table[name] = judge(name, section, minutes=given.minutes, folds=given.folds, seed=given.seed)
        for method, scores in table[name].items():
            print(
                f"  {method:24} r {scores['r_lognorm']:.3f}   log-likelihood {scores['loglik_per_spot']:.1f} nat a spot"
            )
        (given.out / "benchmark.json").write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
