"""Benchmark of differential expression: effects of known size, planted into a synthetic tissue, and how often they lie
within their credible intervals.

    python benchmarks/planted_effect.py --out runs/planted --steps 500

The tissue of the demo; within a disc a third of the genes has 2 or 1/2 times its expression, which the image does not
show. Spots are drawn anew under that, a model is trained on them and its field fitted, and all genes are compared
between the disc and the other tissue, per area, without and with the counts of the spots in both. The truth is the
log2 ratio of the true expression of both. Reported: how often it lies within the interval, and the error, of planted
genes and of the others. Figures are in docs/experiments.md.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from superst_monai.analysis.counted_regions import count_regions
from superst_monai.analysis.differential import differential
from superst_monai.analysis.files import make_folder
from superst_monai.data.section import Section
from superst_monai.data.store import write_section
from superst_monai.data.synthetic import make_tissue
from superst_monai.engines.workflow import train
from superst_monai.experiments.demo import prepare_tissue
from superst_monai.inference.colours_fit import fit_colours
from superst_monai.inference.field_store import fit_training_fields
from superst_monai.inference.maps import open_maps
from superst_monai.inference.run import load_run
from superst_monai.inference.slide_map import predict
from superst_monai.transforms.labels import spot_labels

RADIUS_UM, MPP, SAMPLES = 500.0, 4.0, 64
LEVELS = (0.5, 0.8, 0.95)


def planted(seed: int, out: Path) -> tuple[Section, np.ndarray, np.ndarray, np.ndarray]:
    """The section, the disc `(H, W)`, expected UMIs of each gene in its pixels `(G, H, W)`, and which are planted."""
    tissue, rng = make_tissue(seed=seed), np.random.default_rng(seed)
    section = prepare_tissue(tissue, out, MPP)
    height, width = section.tissue.shape
    row, col = np.mgrid[:height, :width]
    disc = np.hypot(row - height / 2, col - width / 2) * section.mpp < RADIUS_UM
    chosen = np.arange(section.n_genes) % 3 == 0
    fold = np.where(chosen, rng.choice([0.5, 2.0], section.n_genes), 1.0)
    rate = np.stack([tissue.expected(gene, mpp=section.mpp) for gene in section.genes.index])
    rate *= np.where(disc, fold[:, None, None], 1.0)
    label = spot_labels(section).ravel()
    label[label > section.n_spots] = 0
    mean = np.stack([np.bincount(label, part.ravel(), section.n_spots + 1)[1:] for part in rate], axis=1)
    odds = np.exp(tissue.logits)
    counts = rng.poisson(rng.gamma(np.maximum(mean / odds, 1e-9)) * odds)
    return replace(section, counts=csr_matrix(counts.astype(np.int32))), disc, rate, chosen


def main() -> None:
    """Plant, train, compare, and print how often the truth is covered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs") / "planted", help="folder to write")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    out = make_folder(given.out)
    shutil.rmtree(out / "tissue", ignore_errors=True)
    section, disc, rate, chosen = planted(given.seed, make_folder(out / "tissue"))
    store, run_dir = out / "section.zarr", out / "run"
    write_section(section, store, overwrite=True)
    if not (run_dir / "fields").exists():
        options = {"default_steps": given.steps}
        train([store], run_dir, mpp=section.mpp, seed=given.seed, options=options, show=lambda *_: None)
        fit_colours(run_dir)
        fit_training_fields(run_dir)
    run = load_run(run_dir)
    maps = open_maps(predict(run, section, out / "maps.zarr", samples=SAMPLES, overwrite=True, tell=print))
    inside, outside = disc & section.tissue, ~disc & section.tissue
    genes = [section.genes.index.get_loc(gene) for gene in run.genes]
    truth = np.log2(rate[genes][:, inside].mean(axis=1) / rate[genes][:, outside].mean(axis=1))
    is_planted = chosen[genes]
    counted = count_regions([maps], [section], [(inside, outside)])
    for words, counts in (("model alone", None), ("with the counts of its spots", counted)):
        print(words)
        for level in LEVELS:
            found = differential([maps], [(inside, outside)], per="area", level=level, counted=counts)
            found = found.loc[list(run.genes)]
            covered = ((found["low"] <= truth) & (truth <= found["high"])).to_numpy()
            print(f"{level:.0%}: planted {covered[is_planted].mean():.1%}, others {covered[~is_planted].mean():.1%}")
        error, sd = found["log2_fold_change"].to_numpy() - truth, found["sd"].to_numpy()
        for name, part in (("planted", is_planted), ("others", ~is_planted)):
            print(
                f"{name}: {part.sum()} genes, error {error[part].mean():+.3f} +- {error[part].std():.3f} log2, "
                f"predicted sd {sd[part].mean():.3f}, error / sd has sd {(error[part] / sd[part]).std():.2f}"
            )


if __name__ == "__main__":
    main()
