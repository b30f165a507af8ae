"""What all commands of `superst experiment` share: their options, their progress, and what they say at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from superst_monai.cli.kernel import given, if_interrupted
from superst_monai.cli.progress import Steps

if TYPE_CHECKING:
    from superst_monai.experiments.effort import Effort

Out = Annotated[Path, typer.Option("--out", help="Folder of the experiment; the same command goes on with it.")]
Quick = Annotated[bool, typer.Option("--quick", help="Minutes on 2 cores: short trainings, few samples and repeats.")]
Minutes = Annotated[
    float | None,
    typer.Option(help="Wall-clock of each training, minutes.", show_default="none: 1000 steps, 60 with --quick"),
]
Samples = Annotated[int | None, typer.Option(help="Posterior samples.", show_default="10, 4 with --quick")]
Sections = Annotated[list[Path], typer.Argument(metavar="SECTION", help="Stores of superst prepare, with counts.")]


def effort_of(*, quick: bool, **numbers: float | None) -> Effort:
    """The effort that the options ask for.

    Args:
        quick: start from `QUICK` instead of `FULL`.
        numbers: `minutes`, `samples` and `repeats` as given; None keeps what it is.

    Raises:
        RunError: a number is not possible.
    """
    from superst_monai.experiments.effort import FULL, QUICK

    return replace(QUICK if quick else FULL, **given(**numbers))


def perform(name: str, out: Path, run: Callable[[Steps], Mapping[str, Any]]) -> None:
    """Run an experiment with its progress; say its finding and what was written.

    Args:
        name: of the experiment and its files.
        out: its folder.
        run: called with the progress, returns the content of `NAME.json`, which has a `finding`: one sentence.
    """
    kept = f"{out} keeps the steps that were finished; give the same command again to go on."
    with if_interrupted(lambda: kept), Steps() as show:
        result = run(show)
    typer.echo(result["finding"])
    typer.echo(f"wrote {name}.json, {name}.csv and {name}.png to {out}")
