"""An experiment's folder pins its settings, does each step once, and goes on where it was broken off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from superst_monai.data.store import read_section
from superst_monai.errors import RunError
from superst_monai.experiments import folder as room
from superst_monai.experiments.effort import Effort
from superst_monai.experiments.folder import ExperimentFolder

Shown = list[tuple[str, float]]


def test_a_folder_belongs_to_one_experiment_with_its_settings(tmp_path: Path) -> None:
    """The same settings go on, in whatever type JSON makes of them; others are refused, all of them named."""
    out = tmp_path / "out"
    ExperimentFolder(out, "try", {"a": 1, "b": (1, 2)})
    assert ExperimentFolder(out, "try", {"b": [1, 2], "a": 1}).path == out
    with pytest.raises(RunError, match=r"whose a was 1, got 2; b was \[1, 2\], got None; name another --out"):
        ExperimentFolder(out, "try", {"a": 2})
    with pytest.raises(RunError, match=r"whose experiment was try, got other"):
        ExperimentFolder(out, "other", {"a": 1, "b": [1, 2]})
    (tmp_path / "mine").touch()
    with pytest.raises(RunError, match="must be new, empty or an experiment's folder"):
        ExperimentFolder(tmp_path, "try", {})
    assert not (tmp_path / "settings.json").exists()


def test_a_section_and_a_part_are_made_once(tmp_path: Path, make_section: Any) -> None:
    """What is on disk is not made again; what fails leaves nothing."""
    out = ExperimentFolder(tmp_path / "out", "try", {})
    path = out.section("A", make_section)
    assert out.section("A", lambda: pytest.fail("made again")) == path
    np.testing.assert_array_equal(read_section(path).counts.toarray(), make_section().counts.toarray())
    with pytest.raises(ValueError, match="Out of range float"):
        out.part("p", lambda: {"x": float("nan")})
    assert out.part("p", lambda: {"x": 1.5, "y": (1,)}) == {"x": 1.5, "y": [1]}
    assert out.part("p", lambda: pytest.fail("made again")) == {"x": 1.5, "y": [1]}


def test_a_run_and_its_maps_are_made_once_and_show_their_progress(
    tmp_path: Path, stores: dict[str, Path], effort: Effort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run and its maps stay; maps can be dropped; progress names the step."""
    shown: Shown = []
    out = ExperimentFolder(tmp_path / "out", "try", {}, show=lambda name, share, _: shown.append((name, share)))
    section = read_section(stores["A"])
    run = out.run("r", [stores["A"]], seed=0, **effort.training)
    weights = (run / "models/model.pt").read_bytes()
    maps = out.maps("m", run, section, samples=1, seed=0)
    assert ("training r", 1.0) in shown
    assert ("predicting m", 1.0) in shown
    monkeypatch.setattr(room, "train", lambda *_, **__: pytest.fail("trained again"))
    assert out.run("r", [stores["A"]], seed=0, **effort.training) == run
    assert (run / "models/model.pt").read_bytes() == weights
    kept = out.maps("m", run, section, samples=9)
    assert kept.n_samples == maps.n_samples == 1
    out.forget_maps("m")
    out.forget_maps("m")
    assert out.maps("m", run, section, samples=2, seed=0).n_samples == 2


@pytest.mark.parametrize("begun", [True, False])
def test_an_unfinished_run_goes_on_or_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    """With a checkpoint the run is resumed without sections; without one its folder is cleared first."""
    calls: list[tuple[list[Any], dict[str, Any], bool]] = []

    def train(sections: list[Any], to: Path, **options: Any) -> Path:
        calls.append((list(sections), options, to.exists()))
        return to

    monkeypatch.setattr(room, "train", train)
    out = ExperimentFolder(tmp_path / "out", "try", {})
    run = out.path / "runs" / "r"
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"state": "running"}))
    if begun:
        (run / "checkpoints" / "checkpoint_epoch=3.pt").touch()
    assert out.run("r", ["A.zarr"], seed=4) == run
    wanted = ([], {"resume": True, "show": None}, True) if begun else (["A.zarr"], {"seed": 4, "show": None}, False)
    assert calls == [wanted]


def test_the_result_is_figure_table_and_json(tmp_path: Path) -> None:
    """Three files of the experiment's name; the JSON holds settings and summary, and is what is returned."""
    out = ExperimentFolder(tmp_path / "out", "try", {"a": 1})
    table = pd.DataFrame({"gene": ["NA", "B"], "r": [0.5, np.nan]})
    result = out.finish({"finding": "so"}, table, Figure())
    assert result == {"experiment": "try", "settings": {"experiment": "try", "a": 1}, "finding": "so"}
    assert json.loads((out.path / "try.json").read_text()) == result
    assert (out.path / "try.csv").read_text() == "gene,r\nNA,0.5\nB,\n"
    assert (out.path / "try.png").read_bytes().startswith(b"\x89PNG")
