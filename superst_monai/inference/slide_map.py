"""From a slide or section to posterior maps on disk, tile by tile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from superst_monai.data.section import Section, TissueFinder
from superst_monai.data.slide import Slide
from superst_monai.engines.prepare import prefers_bfloat16
from superst_monai.errors import RunError
from superst_monai.inference.calibration import Mode, read_calibration
from superst_monai.inference.canvas import Canvas, canvas_of
from superst_monai.inference.domain import TileGuard, in_words, read_domain, summarise
from superst_monai.inference.field_draws import FieldDraws
from superst_monai.inference.field_store import has_field, load_field, load_prior
from superst_monai.inference.maps_store import MapsLayout, new_maps
from superst_monai.inference.maps_writer import MapsWriter
from superst_monai.inference.pipeline import Behind, ahead, bound_memory, give_back_memory
from superst_monai.inference.posterior import TileSampler, Window
from superst_monai.inference.rates import choose_conditions, draw_rates, rate_moments
from superst_monai.inference.run import Run
from superst_monai.inference.tiles import draw_part, read_part, tissue_tiles
from superst_monai.inference.unfinished import require_free
from superst_monai.model.domain import Domain
from superst_monai.transforms.tissue import find_tissue as find_tissue_by_stain

_LOG = logging.getLogger(__name__)
Show = Callable[[float, float], None]
SAMPLES, SEED = 10, 0
"""Of a prediction, or of all those of a cohort, for which none are given."""


def predict(
    run: Run,
    source: Section | Slide,
    out: str | Path,
    *,
    samples: int = SAMPLES,
    seed: int = SEED,
    tile_px: int = 512,
    conditions: Mapping[str, str] | None = None,
    source_path: str | Path | None = None,
    show: Show | None = None,
    tell: Callable[[str], None] = _LOG.warning,
    find_tissue: TissueFinder = find_tissue_by_stain,
    overwrite: bool = False,
    resume: bool = False,
    use_field: bool = True,
    workers: int = 2,
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
    # On CPUs bfloat16 saves a fifth of the time and is 0.1 % off, 2 % in a pixel: there all machines agree instead.
    bfloat16 = run.device.type != "cpu" and prefers_bfloat16(run.device)
    sampler = TileSampler(run.network, samples=samples, seed=seed, bfloat16=bfloat16)
    _check(run, sampler, tile_px=tile_px, workers=workers)
    chosen = choose_conditions(run, source, conditions)
    domain = read_domain(run)
    if domain is None:
        tell("the run does not know the domain of its training, so this prediction has no guard; train again for one")
    canvas = canvas_of(source, run.mpp, find_tissue)
    fields = _fields(run, source, canvas.shape, tell, use_field=use_field, samples=samples, seed=seed)
    opened_from = None if source_path is None else str(Path(source_path).resolve())
    record = {"source": canvas.name, "source_path": opened_from, "slide": dict(canvas.slide), "seed": seed}
    record |= {"device": run.device.type, "precision": "bfloat16" if bfloat16 else "float32"}
    record |= {"field": None if fields is None else fields.sha256}
    counts_used = use_field and isinstance(source, Section) and has_field(run, source)
    record |= {"counts_used": counts_used, "calibration": _calibration(run, counts_used, tell)}
    layout = _layout(run, canvas, chosen, record, fields, samples=samples, tile_px=tile_px, guarded=domain is not None)
    tiles = tissue_tiles(canvas.covered, tile_px)
    with new_maps(out, layout, overwrite=overwrite, resume=resume) as writer:
        todo = [tile for tile in tiles if not writer.has(tile)]
        if len(todo) < len(tiles):
            tell(f"{len(tiles) - len(todo)} of {len(tiles)} tiles are there already")
        _draw_tiles(sampler, canvas, domain, fields, writer, todo, show, workers=workers)
        if writer.domain is not None:
            summary = summarise(writer.domain)
            writer.add_record(domain=summary)
            tell(in_words(summary))
    return out


def _check(run: Run, sampler: TileSampler, *, tile_px: int, workers: int) -> None:
    """Refuse impossible numbers."""
    faults = []
    if tile_px < sampler.multiple or tile_px % sampler.multiple:
        faults.append(
            f"tile_px must be a positive multiple of {sampler.multiple} for a network of depth "
            f"{run.network.arch.depth}, got {tile_px}; for example {max(512, sampler.multiple)}"
        )
    if workers < 1:
        faults.append(f"workers must be at least 1, got {workers}")
    if faults:
        raise RunError("; ".join(faults) + ".")


def _fields(
    run: Run,
    source: Section | Slide,
    shape: tuple[int, int],
    tell: Callable[[str], None],
    *,
    use_field: bool,
    samples: int,
    seed: int,
) -> FieldDraws | None:
    """The field of a measured section if the run has it and it is wanted, else draws from the prior of the run."""
    if isinstance(source, Section) and source.has_counts and use_field:
        field = load_field(run, source)
        if field is not None:
            return FieldDraws.of_section(field, samples=samples, seed=seed, mpp=run.mpp)
        tell(
            f"the counts of {source.name} are not used: the run has no field of it, so this is what histology alone "
            "says; superst fit-section fits one"
        )
    prior = load_prior(run)
    return None if prior is None else FieldDraws.of_prior(prior, shape, samples=samples, seed=seed, mpp=run.mpp)


def _calibration(run: Run, counts_used: bool, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """The run's recalibration of such a prediction, as it is recorded."""
    mode: Mode = "field" if counts_used else "histology"
    found = read_calibration(run, mode)
    if found is None:
        tell(
            "the intervals of counts are as the model has them, not recalibrated: the run has no calibration.json of "
            "its weights (it withheld too few spots, or comes from a version without)"
        )
        return None
    return {"mode": mode, "factor": found.factor}


def _draw_tiles(
    sampler: TileSampler,
    canvas: Canvas,
    domain: Domain | None,
    fields: FieldDraws | None,
    writer: MapsWriter,
    tiles: Sequence[Window],
    show: Show | None,
    *,
    workers: int,
) -> None:
    """Draw tiles and write them, in their order."""
    bound_memory()
    started, ready, total = time.monotonic(), 0, sampler.samples * len(tiles)
    n_metagenes = sampler.network.arch.n_metagenes
    with Behind() as behind, closing(ahead(lambda t: read_part(canvas, sampler, t), tiles, workers=workers)) as parts:
        for part in parts:
            shape = (n_metagenes, part.tile.height, part.tile.width)
            mean = np.zeros(shape, np.float32)
            guard = None if domain is None else TileGuard(domain, sampler, part)
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


def _layout(
    run: Run,
    canvas: Canvas,
    conditions: Mapping[str, str | None],
    known: Mapping[str, Any],
    fields: FieldDraws | None,
    *,
    samples: int,
    tile_px: int,
    guarded: bool,
) -> MapsLayout:
    """Everything of the store that does not depend on pixels; `known` goes into its record."""
    rates = draw_rates(run.network, conditions, samples=samples, seed=known["seed"])
    mean, sd = rate_moments(run.network, conditions)
    if fields is not None:
        rates, mean = fields.effects(rates), mean + fields.rate_effect
    record: dict[str, Any] = {
        **known,
        "run": str(run.path.resolve()),
        "run_sha256": run.weights_sha256,
        "conditions": dict(conditions),
        "drawn_conditions": {c: drawn for c, drawn in rates.levels.items() if conditions[c] is None},
        "samples": samples,
        "pixels_sha256": canvas.sha256,
        "domain": None,
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
        log_rate=(mean, sd),
        active=run.network.generative.active.cpu().numpy(),
        genes=genes,
        record=record,
        block_px=2 ** (run.network.arch.depth - 1) if guarded else None,
    )
