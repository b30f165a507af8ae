"""`superst bundle`: a run's network as a file for other programs, and the check of a run folder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from superst_monai.cli.kernel import add_command
from superst_monai.cli.options import require_inputs

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of superst train.")]


class FormatName(StrEnum):
    """What programs open."""

    PT2 = "pt2"
    ONNX = "onnx"
    TS = "ts"


app = typer.Typer(
    help="Check a run folder, and export its network for programs without superst.",
    epilog="Example: superst bundle check run",
    no_args_is_help=True,
)


def export_run(
    run: RunPath,
    format: Annotated[FormatName, typer.Option(help="Of torch.export, ONNX, or TorchScript.", show_choices=True)],
    out: Annotated[Path, typer.Option("--out", help="File to write; .json and .genes.csv are written beside it.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Write the network, image to scaled activity at the posterior mean, for images of any number and size."""
    require_inputs(RUN=run)
    from superst_monai.inference.deploy.export import export_network
    from superst_monai.inference.run import load_run

    found = export_network(load_run(run, device="cpu"), out, format=format.value, overwrite=overwrite)
    images, _, height, width = found.shape
    typer.echo(
        f"differs from the run's network by at most {found.absolute:.1e} per px, {found.relative:.1e} of the largest "
        f"activity, on {images} random images of {height} x {width} px"
    )
    typer.echo(f"wrote {out}, {out}.json (how to use it), {out}.genes.csv")


def check(run: RunPath) -> None:
    """Verify a run folder offline: files, metadata, configurations, weights, genes, record, domain, fields."""
    require_inputs(RUN=run)
    from superst_monai.cli.tables import show_rows
    from superst_monai.inference.deploy.check import check_run, require_sound

    findings = check_run(run)
    rows = [(f.check, f.found, f.verdict, "; ".join([*f.faults, *f.notes])) for f in findings]
    show_rows(f"Check of {run}", ("check", "found", "verdict", "why"), rows)
    require_sound(run, findings)


add_command(app, "export", export_run, example="superst bundle export run --format pt2 --out run/models/model.pt2")
add_command(app, "check", check, example="superst bundle check run")
