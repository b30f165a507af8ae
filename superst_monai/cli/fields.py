"""`superst fit-section`: a trained run takes in the counts of another measured section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from superst_monai.cli.kernel import given
from superst_monai.cli.options import Seed, pairs, require_inputs


def fit_section(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of superst train; the field is kept in it.")],
    section: Annotated[Path, typer.Argument(metavar="SECTION.zarr", help="Prepared section with counts.")],
    condition: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LEVEL", help="Level of a covariate; repeatable.", show_default=False),
    ] = None,
    seed: Seed = None,
) -> None:
    """Fit the field of a measured section under a trained run, so that superst predict uses its counts."""
    require_inputs(RUN=run, SECTION=section)
    settings = given(conditions=pairs(condition, "--condition") or None, seed=seed)
    from superst_monai.cli.progress import Progress
    from superst_monai.data.store import read_section
    from superst_monai.inference.field_store import save_field
    from superst_monai.inference.run import load_run
    from superst_monai.inference.section_field import fit_field

    trained, measured = load_run(run), read_section(section)
    with Progress("fitting") as show:
        path = save_field(trained, measured, fit_field(trained, measured, show=show, **settings))
    typer.echo(f"wrote {path}; next: superst predict {run} {section} --out {measured.name}.maps.zarr")
