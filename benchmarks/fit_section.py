"""Benchmark of the fit of a section's field: how long a large one takes, and what is lost where its spots take turns.

    python benchmarks/super_resolution.py brca --data DATA --out OUT --steps 500 --folds 5
    THP_MEM_ALLOC_ENABLE=1 python benchmarks/fit_section.py OUT/brca_fold0/run OUT/brca.zarr --turns 1 2 7 10 17

The section, of which the run saw a part, is laid out as a full capture area of 6.5 mm: its image repeated, 78 x 64
spots 100 um apart, each with the counts of the spot that lies there. Printed are the seconds of the fit, of which for
reading the image, and the peak memory. Then the field is fitted to the spots that the run saw, once for each number of
turns that they take, and the others are predicted: median correlation of the log-normalised 100 highest genes that the
run knows, and log likelihood of their counts as in super_resolution.py, dispersions fitted to these spots.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from scipy.spatial import cKDTree
from super_resolution import FIELD, TOP, Given, fit_dispersion, log_likelihood, model_means, places

from superst_monai.analysis.evaluation import gene_correlations, lognorm
from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.inference import section_field
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.section_field import SpotPixels, fit_field, spot_pixels

ROWS, COLUMNS, PITCH_UM, SIDE_UM = 78, 64, 100.0, 6700.0


def capture_area(section: Section) -> Section:
    """A full capture area of ROWS x COLUMNS spots made of a section."""
    row, col = (grid.ravel() for grid in np.mgrid[:ROWS, :COLUMNS])
    x_um, y_um = PITCH_UM * (1 + col + row % 2 / 2), PITCH_UM * (1 + row * math.sqrt(3) / 2)
    height, width = section.tissue.shape
    there = np.stack([x_um % (width * section.mpp), y_um % (height * section.mpp)], axis=1)
    near = cKDTree(places(section)).query(there)[1]
    spots = section.spots.iloc[near].assign(x_um=x_um, y_um=y_um)
    spots.index = pd.Index([f"spot{i}" for i in range(len(spots))], name=section.spots.index.name)
    side = round(SIDE_UM / section.mpp)
    times = (-(-side // height), -(-side // width))
    image = np.tile(section.image, (*times, 1))[:side, :side]
    return replace(section, image=image, tissue=np.ones((side, side), bool), counts=section.counts[near], spots=spots)


def time_large(run: Run, section: Section) -> None:
    """Print what the fit of a full capture area takes."""
    area = capture_area(section.at(run.mpp) if section.mpp < run.mpp else section)
    reading = 0.0

    def timed(*args: object, **options: object) -> SpotPixels:
        nonlocal reading
        started = time.monotonic()
        found = spot_pixels(*args, **options)  # type: ignore[arg-type]
        reading = time.monotonic() - started
        return found

    with patch.object(section_field, "spot_pixels", timed):
        started = time.monotonic()
        fit_field(run, area)
        seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{area.n_spots} spots, {len(run.genes)} genes, {run.network.arch.n_metagenes} metagenes, "
        f"{' x '.join(map(str, area.tissue.shape))} px: {seconds:.1f} s, of which {reading:.1f} s for reading; "
        f"peak {peak} MiB",
        flush=True,
    )


def judge_turns(run: Run, section: Section, turns: list[int]) -> None:
    """Print what withheld spots say of fields that were fitted in some numbers of turns."""
    seen = read_section(run.record["sections"][0]["path"])
    rows = np.flatnonzero(~section.spots.index.isin(seen.spots.index))
    observed = np.asarray(section.counts.todense(), dtype=np.float64)
    top = np.argsort(-observed.sum(0), kind="stable")[:TOP]
    columns = pd.Index(run.genes).get_indexer(section.genes.index[top])
    top, columns = top[columns >= 0], columns[columns >= 0]
    truth, measured = lognorm(observed)[rows][:, top], observed[rows][:, top]
    given = Given(run.path.parent, steps=0, folds=1, seed=0)  # the run is there: nothing is trained
    for n in turns:
        with patch.object(section_field, "SPOTS_A_STEP", -(-seen.n_spots // n)):
            mean = model_means(section, seen, run.path.parent, given)[FIELD][0][rows]
        counts = mean[:, columns]
        r = np.nanmedian(gene_correlations(lognorm(counts, mean.sum(1)), truth))
        mass = log_likelihood(measured, counts, fit_dispersion(measured, counts)).mean()
        print(f"{n} turns: r log-norm. {r:.4f}, log likelihood {mass:.2f}", flush=True)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("section", type=Path, help="of which the run saw some spots")
    parser.add_argument("--turns", type=int, nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    run, section = load_run(given.run), read_section(given.section)
    time_large(run, section)
    judge_turns(run, section, given.turns)


if __name__ == "__main__":
    main()
