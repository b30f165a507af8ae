"""From a slide or section to posterior maps on disk, tile by tile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from superst_monai.data.section import Section, TissueFinder
from superst_monai.data.slide import Slide
from superst_monai.engines.memory import bound_memory, give_back_memory
from superst_monai.inference.domain import TileGuard, in_words, summarise
from superst_monai.inference.maps_store import join_maps, lay_out_maps, new_maps
from superst_monai.inference.maps_writer import MapsWriter
from superst_monai.inference.pipeline import Behind, ahead
from superst_monai.inference.plan import SAMPLES, SEED, TILE_PX, WORKERS, Plan, plan_maps
from superst_monai.inference.posterior import Window
from superst_monai.inference.run import Run
from superst_monai.inference.tiles import draw_part, read_part
from superst_monai.inference.unfinished import Unfinished, require_free
from superst_monai.transforms.tissue import find_tissue as find_tissue_by_stain

_LOG = logging.getLogger(__name__)
Show = Callable[[float, float], None]
BLOCK_TILES = 32
"""A slide with more tiles to draw is huge: several processes draw them, that many at a time. Opening it again for each
block takes seconds, and a tile takes some on a CPU."""


def predict(
    run: Run,
    source: Section | Slide,
    out: str | Path,
    *,
    samples: int = SAMPLES,
    seed: int = SEED,
    tile_px: int = TILE_PX,
    conditions: Mapping[str, str] | None = None,
    source_path: str | Path | None = None,
    show: Show | None = None,
    tell: Callable[[str], None] = _LOG.warning,
    find_tissue: TissueFinder = find_tissue_by_stain,
    overwrite: bool = False,
    resume: bool = False,
    use_field: bool = True,
    workers: int = WORKERS,
) -> Path:
    """Draw posterior maps of a slide or section and store them.

    Sample n is one joint draw of everything: of the gene parameters, the unknown conditions and z of the whole slide.
    It does not depend on the tiling. It sees the slide in orientation n mod 8 of the square's symmetries, so that with
    8 samples or more the mean prefers no direction. Only tiles with tissue are computed, and a pixel that is neither
    tissue nor in a spot of a measured section is zero.

    Tiles are read ahead and written behind the network by threads. Memory is that of a few tiles with their halos and
    of an overview of the slide, whatever its size and N. If the process ends early, finished tiles are kept
    in a folder beside `out`; with `resume` they are not computed again, and the store is the same to the byte.

    Where the run knows its domain, the image `domain` of the store says how far each part of the tissue is from the
    training sections; see `inference/domain.py`.

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
        show: called after each sample of each tile with the share done of what was left to do and the seconds spent.
        tell: receives what a user should know: how much was there already, and the verdict of the guard.
        find_tissue: finds the tissue of a slide.
        overwrite: replace a store of that name, and drop an unfinished one.
        resume: go on with an unfinished store of the same arguments.
        use_field: of a measured section whose field the run has (`inference/field_store.py`), use its counts. Otherwise
            the map is what histology alone says, and the prior of the field is part of its uncertainty.
        workers: threads that read; their number does not change the result.

    Returns:
        Path of the store.

    Raises:
        RunError: samples, seed, tile_px, workers or a condition is not possible, or the run or arguments are not those
            of the store to resume.
        ResolutionError: the source is coarser than the run.
        AlignmentError: no tissue.
        SlideError: a part of the slide cannot be read.
        StoreError: the store cannot be written, or there is none to resume.
    """
    out = Path(out)
    require_free(out, overwrite=overwrite, resume=resume)
    plan = plan_maps(
        run,
        source,
        samples=samples,
        seed=seed,
        tile_px=tile_px,
        conditions=conditions,
        source_path=source_path,
        tell=tell,
        find_tissue=find_tissue,
        use_field=use_field,
        workers=workers,
    )
    fill(plan, out, show=show, tell=tell, overwrite=overwrite, resume=resume)
    return out


def fill(
    plan: Plan,
    out: Path,
    *,
    show: Show | None = None,
    tell: Callable[[str], None] = _LOG.warning,
    overwrite: bool = False,
    resume: bool = False,
    owner: str | None = None,
) -> None:
    """Draw all tiles of a plan that are not there yet, and finish the store.

    Args:
        plan: of `plan_maps`.
        out: `.zarr` folder to write.
        owner: in whose name, if not this process alone fills it; see `Unfinished`. Others are those of `predict`.

    Raises:
        SuperstError: see `predict`.
    """
    with new_maps(out, plan.layout, overwrite=overwrite, resume=resume, owner=owner) as writer:
        todo = writer.left(plan.tiles)
        if len(todo) < len(plan.tiles):
            tell(f"{len(plan.tiles) - len(todo)} of {len(plan.tiles)} tiles are there already")
        _draw_tiles(plan, writer, todo, show)
        if writer.domain is not None:
            summary = summarise(writer.domain)
            writer.add_record(domain=summary)
            tell(in_words(summary))


def split(plan: Plan, out: Path, *, overwrite: bool, resume: bool, owner: str) -> list[list[Window]]:
    """Lay out the store of a huge slide, for `draw_block` to draw its tiles and then `fill` to finish it.

    Arguments and errors are those of `fill`.

    Returns:
        Blocks of consecutive tiles that are not there yet; none, and nothing is written, if the slide is not huge.
    """
    there = len(Unfinished(out).done) if resume else 0
    if len(plan.tiles) - there <= BLOCK_TILES:
        return []
    todo = lay_out_maps(out, plan.layout, overwrite=overwrite, resume=resume, owner=owner).left(plan.tiles)
    return [todo[first : first + BLOCK_TILES] for first in range(0, len(todo), BLOCK_TILES)]


def draw_block(plan: Plan, out: Path, tiles: Sequence[Window], *, owner: str) -> None:
    """Draw those of some tiles that are not there yet, into a store that `split` has laid out.

    Args:
        plan: that of `split`, made here.
        out: the `.zarr` folder to come.
        tiles: a block.
        owner: as given to `split`.

    Raises:
        SuperstError: see `predict`, and `join_maps`.
    """
    with join_maps(out, plan.layout, owner=owner) as writer:
        _draw_tiles(plan, writer, writer.left(tiles), None)


def _draw_tiles(plan: Plan, writer: MapsWriter, tiles: Sequence[Window], show: Show | None) -> None:
    """Draw tiles and write them, in their order."""
    bound_memory()
    sampler, fields = plan.sampler, plan.fields
    started, ready, total = time.monotonic(), 0, sampler.samples * len(tiles)
    n_metagenes = sampler.network.arch.n_metagenes
    with (
        Behind() as behind,
        closing(
            ahead(lambda t: read_part(plan.canvas, sampler, t, plan.colours), tiles, workers=plan.workers)
        ) as parts,
    ):
        for part in parts:
            shape = (n_metagenes, part.tile.height, part.tile.width)
            mean = np.zeros(shape, np.float32)
            guard = None if plan.domain is None else TileGuard(plan.domain, sampler, part)
            row, col = (first + place.start for first, place in zip(part.tile[:2], part.place, strict=True))
            for n, values in draw_part(sampler, part, guard):
                sample = np.zeros(shape, np.float32)
                place = (slice(None), *part.place)
                sample[place] = values if fields is None else fields.over(n, values, row=row, col=col)
                mean += sample / np.float32(sampler.samples)
                behind(writer.write_sample, part.tile, n, sample)
                ready += 1
                if show is not None:
                    show(ready / total, time.monotonic() - started)
            behind(writer.finish_tile, part.tile, mean, None if guard is None else guard.layer)
            give_back_memory()
