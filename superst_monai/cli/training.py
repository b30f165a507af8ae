"""`superst train` and `superst demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from superst_monai.cli.kernel import given, if_interrupted
from superst_monai.cli.options import Seed, pairs, require_inputs
from superst_monai.errors import RunError


def train(
    out: Annotated[Path, typer.Option("--out", help="Run folder to write, new or empty.")],
    sections: Annotated[list[Path] | None, typer.Argument(metavar="SECTION", help="Stores of superst prepare.")] = None,
    epochs: Annotated[int | None, typer.Option(help="At most so many passes over the sections.")] = None,
    minutes: Annotated[float | None, typer.Option(help="At most so much wall-clock, minutes.")] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Working resolution, um per pixel.", show_default="chosen from the spots")
    ] = None,
    covariate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN", help="Effect of a column of the spots, such as section=section; repeatable."
        ),
    ] = None,
    seed: Seed = None,
    metagenes: Annotated[int | None, typer.Option(help="Most metagenes.", show_default="12 to 24, by spots")] = None,
    patch: Annotated[int | None, typer.Option(help="Side of a patch, pixels.", show_default="96")] = None,
    batch: Annotated[int | None, typer.Option(help="Patches of one step.", show_default="8")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="First step size of Adam.", show_default="0.003")] = None,
    depth: Annotated[int | None, typer.Option(help="Levels of the network.", show_default="5")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of its finest level.", show_default="16")] = None,
    val_share: Annotated[float | None, typer.Option(help="Share of spots held out.", show_default="0.1")] = None,
    min_counts: Annotated[int | None, typer.Option(help="Least UMIs of a gene.", show_default="50")] = None,
    exclude_genes: Annotated[
        str | None,
        typer.Option(help="Regular expression of genes to leave out.", show_default="mitochondrial, ribosomal"),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(help="Processes that share each batch, one a GPU.", show_default="1")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; needs no sections.")] = False,
) -> None:
    """Train on sections and write a run folder, which is a MONAI bundle with weights."""
    options: dict[str, Any] = {
        "n_metagenes": metagenes,
        "patch_px": patch,
        "batch_size": batch,
        "learning_rate": learning_rate,
    }
    options |= {"depth": depth, "width": width, "val_share": val_share}
    options |= {"min_counts": min_counts, "exclude_genes": exclude_genes}
    settings = given(
        mpp=mpp,
        seed=seed,
        nproc=nproc,
        covariates=pairs(covariate, "--covariate") or None,
        options=given(**options) or None,
    )
    check_sections(sections or [], resume=resume)
    from superst_monai.cli.progress import Progress
    from superst_monai.engines.workflow import train as run

    limits = given(epochs=epochs, minutes=minutes)
    with if_interrupted(lambda: kept(out)), Progress("training") as show:
        folder = run(sections or [], out, resume=resume, show=show, **limits, **settings)
    complete(folder)
    typer.echo(f"wrote {folder}; next: superst predict {folder} SECTION_OR_SLIDE --out MAPS.zarr")


def complete(folder: Path) -> None:
    """Fit what a trained run keeps beside its weights: depths by colour, fields of its sections, width of intervals."""
    from superst_monai.cli.progress import Progress
    from superst_monai.inference.calibrate import calibrate_run
    from superst_monai.inference.calibration import in_words
    from superst_monai.inference.colours import in_words as colours_in_words
    from superst_monai.inference.colours_fit import fit_colours
    from superst_monai.inference.field_store import fit_training_fields

    def note(text: str) -> None:
        typer.echo(f"note: {text}", err=True)

    with Progress("reading colours") as show_sections:
        reading = fit_colours(folder, show=show_sections, tell=note)
    if reading is not None:
        typer.echo(colours_in_words(reading))
    with Progress("fitting fields") as show_fields:
        fit_training_fields(folder, show=show_fields)
    with Progress("recalibrating") as show_spots:
        found = calibrate_run(folder, show=show_spots, tell=note)
    for mode, calibration in found.items():
        typer.echo(in_words(mode, calibration))


def check_sections(sections: list[Path], *, resume: bool) -> None:
    """Refuse a new run without sections.

    Raises:
        RunError: there are none.
        StoreError: a section does not exist.
    """
    if not resume and not sections:
        raise RunError("a new run needs at least one SECTION, got none; name stores of `superst prepare`, or --resume.")
    require_inputs(SECTION=sections)


def kept(out: Path) -> str:
    """What an interrupted training left in its folder, and how to go on."""
    if not (out / "run.json").exists():
        return "Training had not begun; give the same command again."
    checkpoints = sorted((out / "checkpoints").glob("checkpoint_*.pt"), key=lambda path: path.stat().st_mtime)
    state = f"{out} keeps {checkpoints[-1].stem}" if checkpoints else f"{out} holds the settings, no checkpoint yet"
    return f"{state}; go on with: superst train --resume --out {out}"


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write, new or empty.")] = Path("superst-demo"),
    minutes: Annotated[
        float | None, typer.Option(help="Wall-clock of the training, minutes.", show_default="4.0")
    ] = None,
    seed: Seed = None,
) -> None:
    """Make a synthetic tissue, train on its spots, and see how well the map finds what lies within them."""
    from superst_monai.cli.progress import Progress
    from superst_monai.cli.tables import show_rows
    from superst_monai.experiments.demo import run_demo

    with if_interrupted(lambda: kept(out / "run")), Progress("training") as show:
        summary = run_demo(out, show=show, **given(minutes=minutes, seed=seed))
    rows = [
        (subtype, f"{auc:.3f}", f"{summary['baseline_auc'][subtype]:.3f}") for subtype, auc in summary["auc"].items()
    ]
    show_rows("Area under the ROC curve over pixels", ("subtype", "superst", "spots spread evenly"), rows)
    typer.echo(f"wrote {out} in {summary['seconds']:.0f} s; look at {out / 'demo.png'} and {out / 'summary.md'}")
