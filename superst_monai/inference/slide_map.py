"""From a slide or section to posterior maps on disk, tile by tile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from superst_monai.data.section import Section, TissueFinder
from superst_monai.data.slide import Slide
from superst_monai.errors import RunError
from superst_monai.inference.canvas import Canvas, canvas_of
from superst_monai.inference.maps_store import MapsLayout, new_maps
from superst_monai.inference.posterior import TileSampler, Window
from superst_monai.inference.rates import choose_conditions, draw_rates, rate_moments
from superst_monai.inference.run import Run
from superst_monai.transforms.tissue import find_tissue as find_tissue_by_stain

Show = Callable[[float, float], None]


def predict(
    run: Run,
    source: Section | Slide,
    out: str | Path,
    *,
    samples: int = 10,
    seed: int = 0,
    tile_px: int = 256,
    conditions: Mapping[str, str] | None = None,
    source_path: str | Path | None = None,
    show: Show | None = None,
    find_tissue: TissueFinder = find_tissue_by_stain,
    overwrite: bool = False,
) -> Path:
    """Draw posterior maps of a slide or section and store them.

    Sample n is one joint draw of everything: of the gene parameters, the unknown conditions and z of the whole slide.
    It does not depend on the tiling. It sees the slide in orientation n mod 8 of the square's symmetries, so that with
    8 samples or more the mean prefers no direction. Only tiles with tissue are computed, and a pixel that is neither
    tissue nor in a spot of a measured section is zero. Memory is that of one tile, its halo and N samples.

    The network must not use spatial statistics at inference (batch normalisation does not); with another
    normalisation tiles are not seamless.

    Args:
        run: of `load_run`.
        source: a section, resampled to the run's mpp, or an open slide, read tile by tile.
        out: `.zarr` folder to write.
        samples: N.
        seed: of all draws; the same seed gives the same maps.
        tile_px: side of a tile [px], a multiple of 2^(depth - 1); larger is faster and takes more memory.
        conditions: level of covariates, for example `{"section": "C2"}`. One that is not given is taken from the
            section's column, and drawn anew in each sample where that does not tell.
        source_path: file or store that `source` was opened from, recorded so that maps can be drawn beside it.
        show: called after each sample of each tile with the share done and the seconds spent.
        find_tissue: finds the tissue of a slide.
        overwrite: replace a store of that name.

    Returns:
        Path of the store.

    Raises:
        RunError: samples, seed, tile_px or a condition is not possible.
        ResolutionError: the source is coarser than the run.
        AlignmentError: no tissue.
        StoreError: the store cannot be written.
    """
    out = Path(out)
    sampler = TileSampler(run.network, samples=samples, seed=seed)
    if tile_px < sampler.multiple or tile_px % sampler.multiple:
        raise RunError(
            f"tile_px must be a positive multiple of {sampler.multiple} for a network of depth "
            f"{run.network.arch.depth}, got {tile_px}; for example {max(256, sampler.multiple)}."
        )
    chosen = choose_conditions(run, source, conditions)
    canvas = canvas_of(source, run.mpp, find_tissue)
    opened_from = None if source_path is None else str(Path(source_path).resolve())
    record = {"source": canvas.name, "source_path": opened_from, "slide": dict(canvas.slide), "seed": seed}
    layout = _layout(run, canvas, chosen, record, samples=samples, tile_px=tile_px)
    tiles = tissue_tiles(canvas.covered, tile_px)
    started, total = time.monotonic(), samples * len(tiles)
    with new_maps(out, layout, overwrite=overwrite) as writer:
        for done, tile in enumerate(tiles):
            drawn = np.zeros((samples, run.network.arch.n_metagenes, tile.height, tile.width), np.float32)
            for ready, (n, part, place) in enumerate(draw_tile(sampler, canvas, tile), start=1):
                drawn[n][:, *place] = part
                if show is not None:
                    show((done * samples + ready) / total, time.monotonic() - started)
            writer.write(tile, drawn)
    return out


def tissue_tiles(covered: NDArray[np.bool_], tile_px: int) -> list[Window]:
    """Tiles with at least one covered pixel, cut at the border of the map, row by row."""
    height, width = covered.shape
    grid = (
        Window(row, col, min(tile_px, height - row), min(tile_px, width - col))
        for row in range(0, height, tile_px)
        for col in range(0, width, tile_px)
    )
    return [w for w in grid if covered[w.row : w.row + w.height, w.col : w.col + w.width].any()]


def draw_tile(
    sampler: TileSampler, canvas: Canvas, tile: Window
) -> Iterator[tuple[int, NDArray[np.float32], tuple[slice, slice]]]:
    """Draw the covered part of a tile, sample by sample.

    Args:
        sampler: of the run.
        canvas: section or slide.
        tile: with a covered pixel; its corner is on the grid of the deepest level.

    Yields:
        Number of the sample, scaled activity `(K, h, w)` [1/px] of the box round the covered pixels, zero where not covered, and the place
        of that box in the tile.
    """
    covered = canvas.covered[tile.row : tile.row + tile.height, tile.col : tile.col + tile.width]
    (top, height), (left, width) = (_extent(np.asarray(covered.any(axis)), sampler.multiple) for axis in (1, 0))
    window = Window(tile.row + top, tile.col + left, height, width)
    image = canvas.image(window.grown(sampler.halo.whole))
    place = (slice(top, top + height), slice(left, left + width))
    mask = covered[place].astype(np.float32)
    for n, sample in sampler.draw(image, window):
        part = sample.numpy()[:, : mask.shape[0], : mask.shape[1]]  # the window may go on beyond the map
        yield n, part * mask, (slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1]))


def _extent(used: NDArray[np.bool_], multiple: int) -> tuple[int, int]:
    """First index and length of the stretch of a line that holds all used pixels, in whole `multiple`s."""
    first, last = np.flatnonzero(used)[[0, -1]]
    start = int(first) // multiple * multiple
    return start, -(-(int(last) + 1 - start) // multiple) * multiple


def _layout(
    run: Run,
    canvas: Canvas,
    conditions: Mapping[str, str | None],
    known: Mapping[str, Any],
    *,
    samples: int,
    tile_px: int,
) -> MapsLayout:
    """Everything of the store that does not depend on pixels; `known` goes into its record."""
    rates = draw_rates(run.network, conditions, samples=samples, seed=known["seed"])
    record: dict[str, Any] = {
        **known,
        "run": str(run.path.resolve()),
        "run_sha256": run.weights_sha256,
        "conditions": dict(conditions),
        "drawn_conditions": {c: drawn for c, drawn in rates.levels.items() if conditions[c] is None},
        "samples": samples,
        "superst_monai": version("superst-monai"),
    }
    genes = pd.DataFrame(
        {"gene_id": run.gene_ids, "logit": rates.logit.mean(axis=0)}, index=pd.Index(run.genes, name="gene")
    )
    return MapsLayout(
        mpp=run.mpp,
        tissue=canvas.tissue,
        tile_px=tile_px,
        rates=rates,
        log_rate=rate_moments(run.network, conditions),
        active=run.network.generative.active.cpu().numpy(),
        genes=genes,
        record=record,
    )
