"""`superst experiment` holdout, stain, restarts and runtime: trainings on whole sections."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from superst_monai.cli.experiment_options import Minutes, Out, Quick, Samples, Sections, effort_of, perform
from superst_monai.cli.kernel import given
from superst_monai.cli.options import Seed, pairs, require_inputs
from superst_monai.errors import RunError

if TYPE_CHECKING:
    from superst_monai.experiments.holdout_splits import Split

Covariate = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=COLUMN",
        help="Effect of a column of the spots in the training; repeatable.",
        show_default=False,
    ),
]
Train = Annotated[list[Path] | None, typer.Option(help="Section to train on; repeatable.", show_default=False)]
Test = Annotated[list[Path] | None, typer.Option(help="Section to predict; repeatable.", show_default=False)]


class LeaveOut(StrEnum):
    """What is left out of each training in turn."""

    SECTION = "section"
    PATIENT = "patient"


def holdout(
    out: Out,
    sections: Annotated[
        list[Path] | None, typer.Argument(metavar="SECTION", help="Sections to leave out in turn.")
    ] = None,
    train: Train = None,
    test: Test = None,
    leave_out: Annotated[
        LeaveOut | None, typer.Option(help="Leave out each section, or each patient, of SECTION.", show_default=False)
    ] = None,
    patient: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of the spots that names the patient.", show_default=False),
    ] = None,
    same_patient: Annotated[
        bool, typer.Option("--same-patient", help="Allow a test section of a patient who is in training.")
    ] = False,
    covariate: Covariate = None,
    quick: Quick = False,
    minutes: Minutes = None,
    samples: Samples = None,
    seed: Seed = None,
) -> None:
    """Train on some sections, predict others from histology, compare with their counts and with baselines."""
    require_inputs(SECTION=sections, train=train, test=test)
    _check_design(sections, train, test, leave_out, patient)
    covariates = pairs(covariate, "--covariate")
    effort = effort_of(quick=quick, minutes=minutes, samples=samples)
    from superst_monai.experiments.holdout import NAME, run_holdout

    splits = _splits(sections or [], train or [], test or [], leave_out, patient)
    options = given(seed=seed, covariates=covariates or None)
    perform(
        NAME,
        out,
        lambda show: run_holdout(out, splits, same_patient=same_patient, effort=effort, show=show, **options),
    )


def stain(
    out: Out,
    test: Test = None,
    run: Annotated[Path | None, typer.Option(help="Trained run; left out: one is trained.", show_default=False)] = None,
    train: Train = None,
    factor: Annotated[
        list[float] | None,
        typer.Option(help="Factor of each stain; repeatable.", show_default="0.6 to 1.4; fewer with --quick"),
    ] = None,
    covariate: Covariate = None,
    quick: Quick = False,
    minutes: Minutes = None,
    samples: Samples = None,
    seed: Seed = None,
) -> None:
    """Rescale haematoxylin and eosin of held-out sections, predict, and correlate gene by gene."""
    require_inputs(test=test, run=run, train=train)
    covariates = pairs(covariate, "--covariate")
    effort = effort_of(quick=quick, minutes=minutes, samples=samples)
    from superst_monai.experiments.stain import NAME, QUICK_FACTORS, run_stain

    factors = factor or (QUICK_FACTORS if quick else None)
    options = given(seed=seed, covariates=covariates or None, factors=factors)
    perform(
        NAME,
        out,
        lambda show: run_stain(out, test or [], run=run, train=train or [], effort=effort, show=show, **options),
    )


def restarts(
    sections: Sections,
    out: Out,
    repeats: Annotated[int | None, typer.Option(help="Trainings.", show_default="4, 2 with --quick")] = None,
    covariate: Covariate = None,
    quick: Quick = False,
    minutes: Minutes = None,
    samples: Samples = None,
    seed: Seed = None,
) -> None:
    """Train with several seeds and compare predicted counts in random regions, and their uncertainty."""
    require_inputs(SECTION=sections)
    covariates = pairs(covariate, "--covariate")
    effort = effort_of(quick=quick, minutes=minutes, samples=samples, repeats=repeats)
    from superst_monai.experiments.restarts import NAME, run_restarts

    options = given(seed=seed, covariates=covariates or None)
    perform(NAME, out, lambda show: run_restarts(out, sections, effort=effort, show=show, **options))


def runtime(
    sections: Sections,
    out: Out,
    covariate: Covariate = None,
    quick: Quick = False,
    minutes: Minutes = None,
    seed: Seed = None,
) -> None:
    """Train on the first section, the first two, and so on; say when the objective is nearly at its best."""
    require_inputs(SECTION=sections)
    covariates = pairs(covariate, "--covariate")
    effort = effort_of(quick=quick, minutes=minutes)
    from superst_monai.experiments.runtime import NAME, run_runtime

    options = given(seed=seed, covariates=covariates or None)
    perform(NAME, out, lambda show: run_runtime(out, sections, effort=effort, show=show, **options))


def _check_design(
    sections: Sequence[Path] | None,
    train: Sequence[Path] | None,
    test: Sequence[Path] | None,
    leave_out: LeaveOut | None,
    patient: str | None,
) -> None:
    """Refuse options that do not go together, all at once."""
    faults = []
    if (not sections) != (leave_out is None):
        faults.append("SECTION... and --leave-out go together")
    if (not train) != (not test):
        faults.append("--train and --test go together")
    if bool(sections) == bool(train or test):
        faults.append("pass either --train and --test, or SECTION... and --leave-out")
    if leave_out is LeaveOut.PATIENT and patient is None:
        faults.append("--leave-out patient needs --patient COLUMN")
    if faults:
        raise RunError("; ".join(faults) + ".")


def _splits(
    sections: Sequence[Path],
    train: Sequence[Path],
    test: Sequence[Path],
    leave_out: LeaveOut | None,
    patient: str | None,
) -> Sequence[Split]:
    """The design that the options ask for."""
    from superst_monai.experiments.holdout_splits import leave_one_patient_out, leave_one_section_out, one_split

    if leave_out is LeaveOut.PATIENT and patient is not None:
        return leave_one_patient_out(sections, patient=patient)
    if leave_out is LeaveOut.SECTION:
        return leave_one_section_out(sections, patient=patient)
    return one_split(train, test, patient=patient)
