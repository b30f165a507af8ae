"""`superst experiment` holdout, stain, restarts and runtime parse and call; an interruption says how to go on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from superst_monai.cli.app import app
from superst_monai.engines.run_folder import bundle_folder
from superst_monai.experiments.effort import FULL, QUICK
from superst_monai.experiments.restarts import run_restarts

Runner = Callable[..., Any]
StandIn = Callable[..., None]
Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]
ROOM = "superst_monai.experiments"


@pytest.fixture
def calls(stand_in: StandIn) -> Calls:
    """What experiments that do nothing were called with."""
    seen: Calls = []

    def fake(name: str, result: Any) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if "show" in options:
                options.pop("show")("training", 1.0, 2.0)
            seen.append((name, args, options))
            return result

        return call

    for name in ("holdout", "stain", "restarts", "runtime"):
        run = {f"run_{name}": fake(name, {"finding": f"{name} found."})}
        stand_in(f"{ROOM}.{name}", NAME=name, QUICK_FACTORS=(0.5, 1.0), **run)
    splits = ("one_split", "leave_one_section_out", "leave_one_patient_out")
    stand_in(f"{ROOM}.holdout_splits", **{name: fake(name, [name]) for name in splits})
    return seen


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    """Three folders that stand for sections."""
    paths = [tmp_path / f"{name}.zarr" for name in "ABC"]
    for path in paths:
        path.mkdir()
    return paths


def test_holdout_takes_three_designs(run: Runner, calls: Calls, stores: list[Path], tmp_path: Path) -> None:
    """Splits come from the design; everything else is handed on, defaults only where given."""
    a, b, c = stores
    out = tmp_path / "o"
    done = run("experiment", "holdout", "--train", a, "--train", b, "--test", c, "--out", out)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"holdout found.\nwrote holdout.json, holdout.csv and holdout.png to {out}\n"
    assert "training: 100 %" in done.stderr
    more = ("--same-patient", "--covariate", "batch=section", "--quick", "--minutes", 2, "--samples", 7, "--seed", 3)
    assert run("experiment", "holdout", *stores, "--leave-out", "section", "--out", out, *more).exit_code == 0
    patients = ("--leave-out", "patient", "--patient", "donor")
    assert run("experiment", "holdout", *stores, *patients, "--out", out).exit_code == 0
    effort = replace(QUICK, minutes=2.0, samples=7)
    given = {"same_patient": True, "covariates": {"batch": "section"}, "seed": 3, "effort": effort}
    assert calls == [
        ("one_split", ([a, b], [c]), {"patient": None}),
        ("holdout", (out, ["one_split"]), {"same_patient": False, "effort": FULL}),
        ("leave_one_section_out", (stores,), {"patient": None}),
        ("holdout", (out, ["leave_one_section_out"]), given),
        ("leave_one_patient_out", (stores,), {"patient": "donor"}),
        ("holdout", (out, ["leave_one_patient_out"]), {"same_patient": False, "effort": FULL}),
    ]


def test_designs_that_do_not_go_together_are_refused(run: Runner, calls: Calls, stores: list[Path]) -> None:
    """All faults of the options in one message, with code 2, before any work."""
    a, *_ = stores
    done = run("experiment", "holdout", a, "--train", a, "--out", a / "o")
    assert done.exit_code == 2
    for fault in ("SECTION... and --leave-out go together", "--train and --test go together", "pass either --train"):
        assert fault in done.stderr
    done = run("experiment", "holdout", a, "--leave-out", "patient", "--out", a / "o")
    assert (done.exit_code, "--leave-out patient needs --patient COLUMN" in done.stderr) == (2, True)
    gone = run("experiment", "runtime", a / "none", "--out", a / "o")
    assert (gone.exit_code, "(SECTION)" in gone.stderr) == (2, True)
    bad = run("experiment", "runtime", a, "--out", a / "o", "--minutes", -1)
    assert (bad.exit_code, "minutes must be positive" in bad.stderr) == (2, True)
    assert calls == []


def test_the_others_hand_on_what_is_given(run: Runner, calls: Calls, stores: list[Path], tmp_path: Path) -> None:
    """Stain takes a run or training sections and fewer factors when quick; restarts their number."""
    a, b, c = stores
    out = tmp_path / "o"
    for words in (
        ("stain", "--run", a, "--test", c),
        ("stain", "--train", a, "--train", b, "--test", c, "--quick"),
        ("stain", "--run", a, "--test", c, "--factor", 0.5, "--factor", 2, "--covariate", "x=y"),
        ("restarts", a, b, "--repeats", 5, "--seed", 1),
        ("runtime", a, b, c, "--quick"),
    ):
        done = run("experiment", *words, "--out", out)
        assert done.exit_code == 0, done.output
    assert calls == [
        ("stain", (out, [c]), {"run": a, "train": [], "effort": FULL}),
        ("stain", (out, [c]), {"run": None, "train": [a, b], "effort": QUICK, "factors": (0.5, 1.0)}),
        ("stain", (out, [c]), {"run": a, "train": [], "effort": FULL, "covariates": {"x": "y"}, "factors": [0.5, 2.0]}),
        ("restarts", (out, [a, b]), {"effort": replace(FULL, repeats=5), "seed": 1}),
        ("runtime", (out, [a, b, c]), {"effort": QUICK}),
    ]


def test_an_interruption_says_how_to_go_on(run: Runner, stand_in: StandIn, stores: list[Path], tmp_path: Path) -> None:
    """What is finished is kept, with code 130."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    stand_in(f"{ROOM}.runtime", NAME="runtime", run_runtime=stop)
    done = run("experiment", "runtime", stores[0], "--out", tmp_path / "o")
    assert done.exit_code == 130
    assert "keeps the steps that were finished; give the same command again" in done.stderr


def test_defaults_shown_are_those_of_the_efforts() -> None:
    """What the help says of samples, repeats, steps and seed is what the code holds."""
    group = typer.main.get_command(app).commands["experiment"]  # type: ignore[attr-defined]
    shown = {p.name: p.show_default for p in group.commands["restarts"].params}
    steps = yaml.safe_load((bundle_folder() / "configs" / "train.yaml").read_text())["default_steps"]
    assert shown["samples"] == f"{FULL.samples}, {QUICK.samples} with --quick"
    assert shown["repeats"] == f"{FULL.repeats}, {QUICK.repeats} with --quick"
    assert shown["minutes"] == f"none: {steps} steps, {QUICK.options['default_steps']} with --quick"
    assert shown["seed"] == str(inspect.signature(run_restarts).parameters["seed"].default)
