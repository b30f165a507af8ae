"""Runtime: curves are read as they were written, and times are the first that reach their share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from superst_monai.errors import RunError
from superst_monai.experiments.effort import Effort
from superst_monai.experiments.runtime import read_curve, run_runtime, time_to

Done = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def longer(effort: Effort) -> Effort:
    """Four epochs."""
    return replace(effort, options={**effort.options, "default_steps": 40})


@pytest.fixture(scope="module")
def done(stores: dict[str, Path], longer: Effort, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Trainings on A, and on A and B."""
    out = tmp_path_factory.mktemp("runtime") / "out"
    return out, run_runtime(out, [stores["A"], stores["B"]], effort=longer)


def test_the_data_grow_section_by_section(done: Done) -> None:
    """A run each for one and two sections, its steps and seconds from its own record, its curve from its metrics."""
    out, result = done
    assert [(run["sections"], run["spots"]) for run in result["runs"]] == [(["A"], 30), (["A", "B"], 60)]
    table = pd.read_csv(out / "runtime.csv")
    for n, run in enumerate(result["runs"], start=1):
        record = json.loads((out / f"runs/first-{n}/run.json").read_text())
        assert (run["steps"], run["seconds"]) == (record["steps"], record["seconds"]) == (40, record["seconds"])
        metrics = pd.read_csv(out / f"runs/first-{n}/metrics.csv")
        mine = table[table["sections"] == n]
        np.testing.assert_array_equal(mine["elbo"], -metrics["loss"])
        np.testing.assert_array_equal(mine["counts"], -metrics["expression"])
        assert run["times"]["elbo"]["seconds_to_0.95"] in metrics["seconds"].to_numpy()
    assert f"{result['runs'][1]['times']['elbo']['seconds_to_0.95']:.0f} s (60 spots)" in result["finding"]


@pytest.mark.usefixtures("no_training")
def test_resuming_gives_the_same_result_without_work(done: Done, stores: dict[str, Path], longer: Effort) -> None:
    """Nothing is trained again; measured times stay."""
    out, result = done
    before = (out / "runtime.json").read_bytes()
    assert run_runtime(out, [stores["A"], stores["B"]], effort=longer) == result
    assert (out / "runtime.json").read_bytes() == before


def test_times_of_a_known_curve(tmp_path: Path) -> None:
    """An objective that nears its best exponentially is 95 % there after ln 20 time constants, 99 % after ln 100."""
    seconds = np.arange(0, 100.0)
    loss = 5000 * np.exp(-seconds / 10) - 300
    metrics = pd.DataFrame({"epoch": range(1, 101), "step": 10 * np.arange(1, 101), "seconds": seconds, "loss": loss})
    metrics.assign(expression=7.0).to_csv(tmp_path / "metrics.csv", index=False)
    curve = read_curve(tmp_path / "metrics.csv")
    found = time_to(curve, "elbo")
    assert found["seconds_to_0.95"] == pytest.approx(10 * np.log(20), abs=2)
    assert found["seconds_to_0.99"] == pytest.approx(10 * np.log(100), abs=2)
    assert found["steps_to_0.95"] == 10 * (found["seconds_to_0.95"] + 1)
    assert (found["first"], found["best"]) == (pytest.approx(-4700), pytest.approx(300, abs=1))
    assert (curve["counts_normalised"] == 1).all()


def test_noise_of_one_epoch_does_not_pass_for_the_best(tmp_path: Path) -> None:
    """A single outlier is not what the curve is normalised by."""
    loss = np.r_[np.linspace(1000, 0, 50), np.zeros(50)]
    loss[20] = -1e6
    metrics = pd.DataFrame({"epoch": range(100), "step": range(100), "seconds": range(100), "loss": loss})
    metrics.assign(expression=loss).to_csv(tmp_path / "metrics.csv", index=False)
    curve = read_curve(tmp_path / "metrics.csv")
    assert time_to(curve, "elbo")["seconds_to_0.95"] == pytest.approx(47, abs=2)


def test_no_section_is_refused(tmp_path: Path) -> None:
    """There is nothing to train on."""
    with pytest.raises(RunError, match="needs at least one section, got none"):
        run_runtime(tmp_path / "out", [])
