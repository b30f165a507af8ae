"""Benchmark of the analyses: time and peak memory of each on a map of any size with thousands of genes.

    python benchmarks/analyses.py --side 4000 --genes 15000
    python benchmarks/analyses.py --side 1000 --genes 15000 --only each_gene

The map has tissue everywhere, 10 samples of 12 metagenes of made-up activity, in tiles of 512 pixels that repeat, and
three regions. Each analysis runs in a process of its own. Everything lies in a temporary folder. Figures are in
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from superst_monai.analysis.cell_types_figures import write_cell_types
from superst_monai.analysis.cell_types_reference import read_markers
from superst_monai.analysis.differential_figures import write_differential
from superst_monai.analysis.gene_folds import write_gene_folds
from superst_monai.analysis.imputation import write_imputation
from superst_monai.analysis.metagene_summary_figures import write_metagenes
from superst_monai.analysis.regions import read_regions
from superst_monai.analysis.several_maps import open_several
from superst_monai.inference.maps import open_maps
from superst_monai.inference.maps_store import MapsLayout, new_maps
from superst_monai.inference.posterior import Window
from superst_monai.inference.rates import RateSamples

TILE_PX, SAMPLES, METAGENES, MPP = 512, 10, 12, 2.0


def write_maps(path: Path, side: int, n_genes: int) -> None:
    """Write the map; four different tiles repeat."""
    rng = np.random.default_rng(0)
    rates = RateSamples(
        rng.normal(0, 0.5, (SAMPLES, METAGENES, n_genes)).astype(np.float32) - 4,
        rng.normal(-0.5, 0.2, (SAMPLES, n_genes)).astype(np.float32),
        {},
    )
    names = pd.Index([f"G{i}" for i in range(n_genes)], name="gene")
    layout = MapsLayout(
        mpp=MPP,
        tissue=np.ones((side, side), bool),
        tile_px=TILE_PX,
        rates=rates,
        log_rate=(rates.log_rate.mean(0), rates.log_rate.std(0)),
        active=np.ones(METAGENES, bool),
        genes=pd.DataFrame({"gene_id": names, "logit": rates.logit.mean(0)}, index=names),
        record={"run": None, "source": "S", "slide": {"sha256": "same", "mpp_x": MPP, "mpp_y": MPP}},
    )
    coarse = rng.gamma(1.0, 1e-3, (4, SAMPLES, METAGENES, TILE_PX // 8, TILE_PX // 8)).astype(np.float32)
    with new_maps(path, layout) as writer:
        for i, row in enumerate(range(0, side, TILE_PX)):
            for j, col in enumerate(range(0, side, TILE_PX)):
                tile = coarse[(2 * i + j) % 4].repeat(8, axis=-1).repeat(8, axis=-2)
                height, width = min(TILE_PX, side - row), min(TILE_PX, side - col)
                writer.write(Window(row, col, height, width), tile[..., :height, :width])


def each_gene(maps: Path, _: Path) -> None:
    """Maps of 100 genes, one after the other."""
    opened = open_maps(maps)
    names = opened.genes[:100]
    started = time.perf_counter()
    total = sum(float(mean.sum()) for _, mean, _ in opened.each_gene(names))
    print(f"  {len(names)} genes in {time.perf_counter() - started:.2f} s, {total:.0f} UMIs")


def differential(maps: Path, out: Path) -> None:
    """All genes, one half of the map against the other tissue."""
    several = open_several([maps])
    masks = read_regions(several, [maps.parent / "regions.tif"], "1", None, say=print)
    write_differential(several, masks, out, names=("1", "the other tissue"))


def cell_types(maps: Path, out: Path) -> None:
    """Three types of ten markers each, and the distance to the border of a region."""
    table = maps.parent / "markers.csv"
    rows = [(f"type {i // 10}", f"G{i}") for i in range(30)]
    pd.DataFrame(rows, columns=["cell_type", "gene"]).to_csv(table, index=False)
    several = open_several([maps])
    inside = [mask for mask, _ in read_regions(several, [maps.parent / "regions.tif"], "1", say=print)]
    write_cell_types(several, read_markers(table), out, regions=inside, region_name="1")


ANALYSES: dict[str, Callable[[Path, Path], object]] = {
    "each_gene": each_gene,
    "metagenes": lambda maps, out: write_metagenes([maps], out),
    "genes": lambda maps, out: write_gene_folds([maps], ["G0", "G1", "G2"], out),
    "impute": lambda maps, out: write_imputation([maps], out, to="bins", bin_um=100.0, conditions={}, say=print),
    "differential": differential,
    "cell_types": cell_types,
}


def measured(name: str, maps: Path, out: Path, threads: int) -> None:
    """Run one analysis and print what it took."""
    torch.set_num_threads(threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    started = time.perf_counter()
    ANALYSES[name](maps, out)
    took, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{name}: {took:.1f} s, {before:.0f} MiB before, {peak:.0f} MiB at the peak", flush=True)


def main() -> None:
    """Write the map and run the analyses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4000, help="of the map [px]")
    parser.add_argument("--genes", type=int, default=15_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(ANALYSES), default=list(ANALYSES))
    given = parser.parse_args()
    import tifffile

    spawn = get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="analyses-") as name:
        folder = Path(name)
        label = np.zeros((given.side, given.side), np.uint8)
        label[: given.side // 2] = 1
        tifffile.imwrite(folder / "regions.tif", label, compression="zlib")
        jobs = [(write_maps, (folder / "maps.zarr", given.side, given.genes))]
        jobs += [(measured, (job, folder / "maps.zarr", folder / job, given.threads)) for job in given.only]
        for do, arguments in jobs:  # each in a process of its own, so that its peak is its own
            process = spawn.Process(target=do, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
