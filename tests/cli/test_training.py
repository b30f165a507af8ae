"""`superst train` and `superst demo` parse and call; an interruption says how to go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from superst_monai.inference.calibration import Calibration

Runner = Callable[..., Any]
StandIn = Callable[..., None]


@pytest.fixture
def calls(stand_in: StandIn) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Calls of a training that does nothing."""
    made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def train(*args: Any, **options: Any) -> Path:
        made.append((args, options))
        options.pop("show")(0.5, 10.0, 3.0)
        return Path(args[1])

    stand_in("superst_monai.engines.workflow", train=train)
    stand_in("superst_monai.inference.field_store", fit_training_fields=lambda *_, **__: [])

    def regress(folder: Path, *, show: Callable[[float, float], None], tell: Callable[[str], None]) -> None:
        show(1.0, 2.0)
        tell("no colours")

    stand_in("superst_monai.inference.colours_fit", fit_colours=regress)

    def calibrate(folder: Path, *, show: Callable[[float, float], None], tell: Callable[[str], None]) -> dict[str, Any]:
        show(1.0, 2.0)
        tell("few spots")
        return {"field": Calibration(2.5, 37, {"top100": 0.79, "all": 0.88}, {"top100": 0.9, "all": 0.895})}

    stand_in("superst_monai.inference.calibrate", calibrate_run=calibrate)
    return made


def test_options_reach_the_training(run: Runner, calls: list[Any], tmp_path: Path) -> None:
    """Each option given is passed on under the name of the configuration; the others are left to it."""
    sections = [tmp_path / "A.zarr", tmp_path / "B.zarr"]
    for section in sections:
        section.mkdir()
    done = run(
        *("train", *sections, "--out", tmp_path / "run", "--epochs", 3, "--minutes", 1.5, "--mpp", 8, "--seed", 0),
        *("--covariate", "patient=donor", "--metagenes", 7, "--patch", 64, "--batch", 2, "--learning-rate", 0.01),
        *("--depth", 4, "--width", 8, "--val-share", 0, "--min-counts", 5, "--exclude-genes", "^X", "--nproc", 2),
    )
    assert done.exit_code == 0, done.output
    [(args, options)] = calls
    assert args == (sections, tmp_path / "run")
    assert options == {
        "resume": False,
        "epochs": 3,
        "minutes": 1.5,
        "mpp": 8.0,
        "seed": 0,
        "nproc": 2,
        "covariates": {"patient": "donor"},
        "options": {
            "n_metagenes": 7,
            "patch_px": 64,
            "batch_size": 2,
            "learning_rate": 0.01,
            "depth": 4,
            "width": 8,
            "val_share": 0.0,
            "min_counts": 5,
            "exclude_genes": "^X",
        },
    }
    assert "training:  50 %, 10 s spent, 10 s left, loss 3" in done.stderr
    assert "next: superst predict" in done.stdout
    assert "note: few spots" in done.stderr
    assert "note: no colours" in done.stderr
    assert "79.0 % before and 90.0 % after" in done.stdout


def test_nothing_given_is_nothing_passed(run: Runner, calls: list[Any], tmp_path: Path) -> None:
    """Defaults stay where they are written; resuming needs no sections."""
    assert run("train", "--resume", "--out", tmp_path / "run", "--epochs", 9).exit_code == 0
    assert calls == [(([], tmp_path / "run"), {"resume": True, "epochs": 9})]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "a new run needs at least one SECTION"),
        (["gone.zarr"], "there is no gone.zarr (SECTION)"),
        (["A.zarr", "--covariate", "x"], "--covariate takes NAME=VALUE"),
    ],
)
def test_what_does_not_go_together_is_refused(
    run: Runner, calls: list[Any], tmp_path: Path, words: list[str], reason: str
) -> None:
    """Bad combinations end with code 2 before any training."""
    done = run("train", "--out", tmp_path / "run", *words)
    assert done.exit_code == 2
    assert reason in done.stderr
    assert calls == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "Training had not begun; give the same command again."),
        (["run.json"], "holds the settings, no checkpoint yet; go on with: superst train --resume --out"),
        (
            ["run.json", "checkpoints/checkpoint_epoch=4.pt"],
            "keeps checkpoint_epoch=4; go on with: superst train --resume",
        ),
    ],
)
def test_an_interrupted_training_says_how_to_go_on(
    run: Runner, stand_in: StandIn, tmp_path: Path, files: list[str], said: str
) -> None:
    """Ctrl-C ends with code 130 and what the folder holds by then."""
    (tmp_path / "A.zarr").mkdir()

    def train(_: Any, out: Path, **options: Any) -> Path:
        for file in files:
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            (out / file).touch()
        raise KeyboardInterrupt

    stand_in("superst_monai.engines.workflow", train=train)
    done = run("train", tmp_path / "A.zarr", "--out", tmp_path / "run")
    assert done.exit_code == 130
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_prints_its_scores(run: Runner, stand_in: StandIn, tmp_path: Path) -> None:
    """The areas under the curve of model and baseline are printed, with where to look."""
    made = {}

    def run_demo(out: Path, **options: Any) -> dict[str, Any]:
        made.update(options, out=out)
        return {"auc": {"circle": 0.91234}, "baseline_auc": {"circle": 0.6}, "seconds": 12.3}

    stand_in("superst_monai.experiments.demo", run_demo=run_demo)
    done = run("demo", "--out", tmp_path / "d", "--minutes", 0.1)
    assert done.exit_code == 0, done.output
    assert made.pop("show") is not None
    assert made == {"out": tmp_path / "d", "minutes": 0.1}
    for text in ("circle", "0.912", "0.600", "12 s", "demo.png"):
        assert text in done.stdout
