"""`superst predict`, `superst maps` and `superst evaluate`: from a run to numbers and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from superst_monai.cli.cohorts import list_slides, only_source, predict_many
from superst_monai.cli.kernel import given
from superst_monai.cli.options import (
    Folder,
    Overwrite,
    Seed,
    SlideMpp,
    gene_list,
    pairs,
    require_inputs,
    require_store_name,
)
from superst_monai.errors import RunError

MapsPath = Annotated[Path, typer.Argument(metavar="MAPS.zarr", help="Posterior maps of superst predict.")]


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of superst train.")],
    out: Annotated[
        Path, typer.Option("--out", help="Maps to write, a folder that ends in .zarr; any other, for those of many.")
    ],
    sources: Annotated[
        list[Path] | None, typer.Argument(metavar="SECTION_OR_SLIDE", help="Prepared sections, or any slides.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Posterior samples.", show_default="10")] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LEVEL", help="Level of a covariate on the slides; repeatable.", show_default=False),
    ] = None,
    slide_mpp: SlideMpp = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a prediction that was broken off; that of many always does.")
    ] = False,
    no_field: Annotated[
        bool, typer.Option("--no-field", help="Of a measured section, predict from histology alone.")
    ] = False,
    slides: Annotated[
        Path | None,
        typer.Option(help="List of slides: a path a line (.txt), or columns slide, name, mpp, covariates (.csv)."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask cluster that predicts the slides.", show_default="none")
    ] = None,
) -> None:
    """Predict the expression of every gene at the resolution of the image, with its uncertainty."""
    source = only_source(sources, out, slides=slides, scheduler=scheduler)
    conditions = pairs(condition, "--condition")
    settings = given(samples=samples, seed=seed) | {"overwrite": overwrite, "use_field": not no_field}
    if source is None:
        cohort = list_slides(sources, slides, slide_mpp=slide_mpp, conditions=conditions)
        predict_many(run, cohort, out, scheduler=scheduler, settings=settings)
        return
    require_inputs(RUN=run, SECTION_OR_SLIDE=source)
    require_store_name(out, overwrite=overwrite)
    if slide_mpp is not None and source.suffix == ".zarr":
        raise RunError(f"--slide-mpp is for a slide, but {source} is a section with its own; leave it out.")
    settings |= given(conditions=conditions or None) | {"resume": resume}
    _predict_one(run, source, out, slide_mpp=slide_mpp, settings=settings)


def _predict_one(run: Path, source: Path, out: Path, *, slide_mpp: float | None, settings: dict[str, Any]) -> None:
    """Predict one slide or section into one store."""
    from superst_monai.cli.progress import Progress
    from superst_monai.inference.canvas import open_source
    from superst_monai.inference.run import load_run
    from superst_monai.inference.slide_map import predict as write_maps
    from superst_monai.transforms.tissue import find_tissue

    trained = load_run(run)
    with open_source(source, slide_mpp=slide_mpp) as opened, Progress("predicting") as show:
        write_maps(
            trained,
            opened,
            out,
            source_path=source,
            show=show,
            tell=lambda text: typer.echo(f"note: {text}", err=True),
            find_tissue=find_tissue,
            **settings,
        )
    typer.echo(f"wrote {out}; next: superst maps {out} --genes A,B --out figures")


def gene_maps(
    maps: MapsPath,
    genes: Annotated[str, typer.Option(metavar="A,B", help="Genes, separated by commas.")],
    out: Folder,
) -> None:
    """Draw genes: histology, expected UMIs per pixel and their standard deviation, with a table of the numbers."""
    require_inputs(MAPS=maps)
    wanted = gene_list(genes)
    from superst_monai.analysis.gene_maps import write_gene_maps

    for path in write_gene_maps(maps, wanted, out):
        typer.echo(f"wrote {path}")


def evaluate(
    maps: MapsPath,
    truth: Annotated[Path, typer.Option(help="Section with counts of the same slide.")],
    out: Folder,
) -> None:
    """Compare maps with the counts of a section: correlation, error, likelihood, coverage, and the baselines'."""
    require_inputs(MAPS=maps, truth=truth)
    from superst_monai.analysis.report import evaluate_maps
    from superst_monai.cli.tables import show_rows

    result = evaluate_maps(maps, truth, out)
    for note in result["notes"]:
        typer.echo(f"note: {note}", err=True)
    rows = [_row("superst", result)]
    rows += [_row(name.replace("_", " "), found) for name, found in result["baselines"].items() if found is not None]
    headings = (
        "",
        "r raw, top 100",
        "r raw, all",
        "r log-norm., top 100",
        "r log-norm., all",
        "r expected log-norm., top 100",
        "depth r",
        "R2, top 100",
    )
    show_rows(f"{result['n_spots']} spots, {result['n_genes']} genes; median over genes", headings, rows)
    before, calibration = result["uncalibrated"], result["calibration"]
    laws = {"not recalibrated": result}
    if before is not None:
        laws = {f"recalibrated by {calibration['factor']:g}": result, "before recalibration": before}
    points = ("coverage", "50 %, top 100", "50 %, all", "90 %, top 100", "90 %, all", "log likelihood, nat per spot")
    show_rows("Counts within their central intervals", points, [_covered(name, law) for name, law in laws.items()])
    typer.echo(f"wrote {out}: evaluation.json, genes.csv, predicted.h5ad, evaluation.png")


def _row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    """Scores of the model or of a baseline."""
    medians = [found[kind][part]["median"] for kind in ("raw", "lognorm") for part in ("top100", "all")]
    law = found.get("lognorm_expected")  # baselines have no law
    expected = None if law is None else law["top100"]["median"]
    return (name, *map(_number, [*medians, expected, found["depth"], found["r2"]["top100"]]))


def _covered(name: str, law: dict[str, Any]) -> tuple[str, ...]:
    """Coverage and likelihood of a law of counts."""
    points = [law[part][level] for level in ("50", "90") for part in ("coverage_top100", "coverage")]
    likelihood = law["nb_loglik_per_spot"]
    return (name, *map(_percent, points), "-" if likelihood is None else f"{likelihood:,.1f}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
