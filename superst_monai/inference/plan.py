"""What a prediction does, made out before anything is drawn: the canvas, its tiles, and the store to come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from superst_monai.data.section import Section, TissueFinder
from superst_monai.data.slide import Slide
from superst_monai.engines.prepare import prefers_bfloat16
from superst_monai.errors import RunError
from superst_monai.inference.calibration import Mode, read_calibration
from superst_monai.inference.canvas import Canvas, canvas_of
from superst_monai.inference.colours import ColourPlane, colours_over
from superst_monai.inference.domain import read_domain
from superst_monai.inference.field_draws import FieldDraws
from superst_monai.inference.field_store import has_field, load_field, load_prior
from superst_monai.inference.maps_store import MapsLayout
from superst_monai.inference.posterior import TileSampler, Window
from superst_monai.inference.rates import choose_conditions, draw_rates, rate_moments
from superst_monai.inference.run import Run
from superst_monai.inference.tiles import tissue_tiles
from superst_monai.model.domain import Domain
from superst_monai.transforms.tissue import find_tissue as find_tissue_by_stain

_LOG = logging.getLogger(__name__)
SAMPLES, SEED, TILE_PX, WORKERS = 10, 0, 512, 2
"""Of a prediction, or of all those of a cohort, for which none are given."""


@dataclass(frozen=True, eq=False)
class Plan:
    """All that the tiles of a map are drawn from; each of them can be drawn by itself.

    Attributes:
        sampler: draws them.
        canvas: section or slide.
        domain: of the run, for the guard; None if it has none.
        fields: draws of the section field; None if the run has none.
        colours: second reading of the slide; None if the run has none.
        layout: of the store.
        tiles: those with tissue, row by row.
        workers: threads that read.
    """

    sampler: TileSampler
    canvas: Canvas
    domain: Domain | None
    fields: FieldDraws | None
    colours: ColourPlane | None
    layout: MapsLayout
    tiles: Sequence[Window]
    workers: int


def plan_maps(
    run: Run,
    source: Section | Slide,
    *,
    samples: int = SAMPLES,
    seed: int = SEED,
    tile_px: int = TILE_PX,
    conditions: Mapping[str, str] | None = None,
    source_path: str | Path | None = None,
    tell: Callable[[str], None] = _LOG.warning,
    find_tissue: TissueFinder = find_tissue_by_stain,
    use_field: bool = True,
    workers: int = WORKERS,
) -> Plan:
    """Plan the posterior maps of a slide or section; arguments and errors are those of `slide_map.predict`."""
    # On CPUs bfloat16 saves a fifth of the time and is 0.1 % off, 2 % in a pixel: there all machines agree instead.
    bfloat16 = run.device.type != "cpu" and prefers_bfloat16(run.device)
    sampler = TileSampler(run.network, samples=samples, seed=seed, bfloat16=bfloat16)
    _check(run, sampler, tile_px=tile_px, workers=workers)
    chosen = choose_conditions(run, source, conditions)
    domain = read_domain(run)
    if domain is None:
        tell("the run does not know the domain of its training, so this prediction has no guard; train again for one")
    canvas = canvas_of(source, run.mpp, find_tissue)
    colours = colours_over(run, canvas)
    fields = _fields(run, source, canvas.shape, tell, use_field=use_field, samples=samples, seed=seed)
    opened_from = None if source_path is None else str(Path(source_path).resolve())
    record: dict[str, Any] = {
        "source": canvas.name,
        "source_path": opened_from,
        "slide": dict(canvas.slide),
        "seed": seed,
    }
    record |= {"device": run.device.type, "precision": "bfloat16" if bfloat16 else "float32"}
    record |= {"field": None if fields is None else fields.sha256}
    record |= {"colours": None if colours is None else colours.reading.parts}
    counts_used = use_field and isinstance(source, Section) and has_field(run, source)
    record |= {"counts_used": counts_used, "calibration": _calibration(run, counts_used, tell)}
    layout = _layout(run, canvas, chosen, record, fields, samples=samples, tile_px=tile_px, guarded=domain is not None)
    return Plan(sampler, canvas, domain, fields, colours, layout, tissue_tiles(canvas.covered, tile_px), workers)


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
