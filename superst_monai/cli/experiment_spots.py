"""`superst experiment` deconvolution-synthetic and -merged, misalignment, occlusion and differential."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from superst_monai.cli.experiment_options import Minutes, Out, Quick, Samples, Sections, effort_of, perform
from superst_monai.cli.experiment_sections import Covariate
from superst_monai.cli.kernel import given
from superst_monai.cli.options import Seed, pairs, require_inputs

Repeats = Annotated[
    int | None,
    typer.Option(help="How often all that is random is drawn anew.", show_default="4, 2 with --quick"),
]
Withheld = Annotated[
    float | None, typer.Option(help="Share of the spots that are judged and never trained on.", show_default="0.2")
]
QUICK_TISSUES = 2


def deconvolution_synthetic(
    out: Out,
    tissues: Annotated[int | None, typer.Option(help="Tissues to make.", show_default="10, 2 with --quick")] = None,
    quick: Quick = False,
    minutes: Minutes = None,
    samples: Samples = None,
    seed: Seed = None,
) -> None:
    """Make synthetic tissues, train on their spots, and score the map of each cell subtype at every pixel."""
    effort = effort_of(quick=quick, minutes=minutes, samples=samples)
    from superst_monai.experiments.deconvolution_synthetic import NAME, run_deconvolution_synthetic

    options = given(seed=seed, tissues=tissues or (QUICK_TISSUES if quick else None))
    perform(NAME, out, lambda show: run_deconvolution_synthetic(out, effort=effort, show=show, **options))


def deconvolution_merged(
    sections: Sections,
    out: Out,
    repeats: Repeats = None,
    covariate: Covariate = None,
    quick: Quick = False,
    minutes: Minutes = None,
    samples: Samples = None,
    seed: Seed = None,
) -> None:
    """Merge pairs of neighbouring spots, train on these alone, and predict which spot of a pair has more of a gene."""
    require_inputs(SECTION=sections)
    covariates = pairs(covariate, "--covariate")
    effort = effort_of(quick=quick, minutes=minutes, samples=samples, repeats=repeats)
    from superst_monai.experiments.deconvolution_merged import NAME, run_deconvolution_merged

    options = given(seed=seed, covariates=covariates or None)
    perform(NAME, out, lambda show: run_deconvolution_merged(out, sections, effort=effort, show=show, **options))


def misalignment(
    sections: Sections,
    out: Out,
    radii: Annotated[
        list[float] | None,
        typer.Option(help="Shift in radii of a spot, beside 0; repeatable.", show_default="1.0 and 2.0"),
    ] = None,
    withheld: Withheld = None,
    repeats: Repeats = None,
    covariate: Covariate = None,
    quick: Quick = False,
    minutes: Minutes = None,
    samples: Samples = None,
    seed: Seed = None,
) -> None:
    """Shift training spots in random directions, and score the prediction of withheld spots that stay in place."""
    require_inputs(SECTION=sections)
    covariates = pairs(covariate, "--covariate")
    effort = effort_of(quick=quick, minutes=minutes, samples=samples, repeats=repeats)
    from superst_monai.experiments.misalignment import NAME, run_misalignment

    options = given(seed=seed, covariates=covariates or None, radii=radii or None, withheld=withheld)
    perform(NAME, out, lambda show: run_misalignment(out, sections, effort=effort, show=show, **options))


def occlusion(
    sections: Sections,
    out: Out,
    share: Annotated[
        list[float] | None,
        typer.Option(help="Share of the tiles to hide, beside 0; repeatable.", show_default="0.1, 0.2 and 0.4"),
    ] = None,
    grid: Annotated[
        int | None, typer.Option(help="Tiles along the longer side of the image.", show_default="100")
    ] = None,
    withheld: Withheld = None,
    repeats: Repeats = None,
    covariate: Covariate = None,
    quick: Quick = False,
    minutes: Minutes = None,
    samples: Samples = None,
    seed: Seed = None,
) -> None:
    """Hide tiles of the image, train on what is left, and score withheld spots that are seen and that are hidden."""
    require_inputs(SECTION=sections)
    covariates = pairs(covariate, "--covariate")
    effort = effort_of(quick=quick, minutes=minutes, samples=samples, repeats=repeats)
    from superst_monai.experiments.occlusion import NAME, run_occlusion

    options = given(seed=seed, covariates=covariates or None, shares=share or None, grid=grid, withheld=withheld)
    perform(NAME, out, lambda show: run_occlusion(out, sections, effort=effort, show=show, **options))


def differential(
    sections: Sections,
    regions: Annotated[
        list[Path], typer.Option(help="GeoJSON, label image, or section with `regions`; one for each SECTION.")
    ],
    of: Annotated[str, typer.Option(metavar="NAME", help="Class or name of the region.")],
    reference: Annotated[Path, typer.Option(help="Text file of genes known to be higher there, one a line.")],
    out: Out,
    against: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Class or name of the other region.", show_default="the other tissue"),
    ] = None,
    covariate: Covariate = None,
    quick: Quick = False,
    minutes: Minutes = None,
    samples: Samples = None,
    seed: Seed = None,
) -> None:
    """Rank the genes of a region by the model and by a test of spots, and compare both with a reference list."""
    require_inputs(SECTION=sections, regions=regions, reference=reference)
    covariates = pairs(covariate, "--covariate")
    effort = effort_of(quick=quick, minutes=minutes, samples=samples)
    from superst_monai.experiments.differential import NAME, run_differential

    options = given(seed=seed, covariates=covariates or None, against=against)
    perform(
        NAME,
        out,
        lambda show: run_differential(out, sections, regions, reference, of=of, effort=effort, show=show, **options),
    )
