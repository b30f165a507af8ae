"""`superst predict` of many slides into one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from superst_monai.cli.kernel import if_interrupted
from superst_monai.cli.options import require_inputs
from superst_monai.errors import RunError

if TYPE_CHECKING:  # the room below takes seconds to import
    from superst_monai.inference.cohort_slides import CohortSlide


def only_source(
    sources: Sequence[Path] | None, out: Path, *, slides: Path | None, scheduler: str | None
) -> Path | None:
    """The one source of a store; None if `out` is a folder for the stores of many.

    Raises:
        RunError: one store cannot hold what is given.
    """
    if out.suffix != ".zarr":
        return None
    given = [f"{len(sources or [])} slides"] * (len(sources or []) != 1)
    given += ["--slides"] * (slides is not None) + ["--scheduler"] * (scheduler is not None)
    if given or not sources:
        raise RunError(
            f"--out {out} names the maps of one slide, but got {', '.join(given)}; pass one slide, or a folder as "
            f"--out, such as {out.with_suffix('')}."
        )
    return sources[0]


def list_slides(
    sources: Sequence[Path] | None, slides: Path | None, *, slide_mpp: float | None, conditions: Mapping[str, str]
) -> list[CohortSlide]:
    """The slides of a cohort.

    Args:
        sources: slides and sections.
        slides: list of more slides.
        slide_mpp: resolution of slides for which the list states none [um per level-0 px].
        conditions: levels of covariates, for slides for which the list states none.

    Raises:
        SuperstError: the list cannot be read.
    """
    require_inputs(slides=slides)
    from superst_monai.inference.cohort_slides import CohortSlide, read_slide_list

    cohort = [CohortSlide(path, mpp=slide_mpp, conditions=conditions) for path in sources or ()]
    return cohort + ([] if slides is None else read_slide_list(slides, mpp=slide_mpp, conditions=conditions))


def predict_many(
    run: Path, cohort: Sequence[CohortSlide], out: Path, *, scheduler: str | None, settings: Mapping[str, Any]
) -> None:
    """Predict the slides of a cohort into a folder; say what became of each, and fail if one failed.

    Args:
        run: run folder.
        cohort: its slides.
        out: folder of the maps.
        scheduler: address of a Dask cluster that does the work; None for this process.
        settings: other arguments of `predict_cohort`.

    Raises:
        RunError: at least one slide failed.
    """
    require_inputs(RUN=run)
    from superst_monai.cli.progress import Progress, clock
    from superst_monai.cli.tables import show_rows
    from superst_monai.inference.cohort import here, predict_cohort
    from superst_monai.inference.cohort_dask import OnDask

    advice = f"Finished maps are kept in {out}; give the same command again to go on."
    with if_interrupted(lambda: advice), Progress(f"predicting {len(cohort)} slide(s)") as show:
        found = predict_cohort(
            run,
            cohort,
            out,
            workers=here if scheduler is None else OnDask(scheduler),
            show=show,
            tell=lambda text: typer.echo(f"note: {text}", err=True),
            **settings,
        )
    words = {"done": "done", "kept": "was there already", "failed": "failed"}
    rows = [(end.name, words[end.state], clock(end.seconds), end.error or "") for end in found]
    show_rows(f"Cohort {out}", ("slide", "", "time", "error"), rows)
    failed = [end.name for end in found if end.state == "failed"]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(found)} slides failed: {', '.join(failed)}. All others are in {out}; mend what the "
            "table says and give the same command again, which tries only these."
        )
    typer.echo(f"wrote {out}: {len(found)} maps, and manifest.json")
