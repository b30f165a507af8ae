"""`superst predict`, `maps` and `evaluate` parse, call and show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from superst_monai.errors import StoreError

Runner = Callable[..., Any]
StandIn = Callable[..., None]


@pytest.fixture
def made(stand_in: StandIn) -> dict[str, Any]:
    """What a prediction that does nothing was called with."""
    seen: dict[str, Any] = {}

    @contextmanager
    def open_source(path: Path, **options: Any) -> Iterator[str]:
        seen["source"] = (path, options)
        yield "opened"

    def predict(run: str, source: str, out: Path, **options: Any) -> None:
        options.pop("show")(1.0, 2.0)
        options.pop("tell")("3 % are far")
        assert callable(options.pop("find_tissue"))
        seen["call"] = (run, source, out, options)

    stand_in("superst_monai.inference.canvas", open_source=open_source)
    stand_in("superst_monai.inference.run", load_run=lambda path: f"run {path.name}")
    stand_in("superst_monai.inference.slide_map", predict=predict)
    return seen


def test_options_reach_the_prediction(run: Runner, made: dict[str, Any], tmp_path: Path) -> None:
    """Samples, seed, conditions and resolution are passed on when given."""
    (tmp_path / "r").mkdir()
    (tmp_path / "s.svs").touch()
    out = tmp_path / "m.zarr"
    more = ("--samples", 4, "--seed", 2, "--condition", "section=C2", "--slide-mpp", 0.5)
    more += ("--overwrite", "--resume", "--no-field")
    done = run("predict", tmp_path / "r", tmp_path / "s.svs", "--out", out, *more)
    assert done.exit_code == 0, done.output
    assert made["source"] == (tmp_path / "s.svs", {"slide_mpp": 0.5})
    options = {
        "overwrite": True,
        "resume": True,
        "use_field": False,
        "samples": 4,
        "seed": 2,
        "conditions": {"section": "C2"},
    }
    options["source_path"] = tmp_path / "s.svs"
    assert made["call"] == ("run r", "opened", out, options)
    assert "predicting: 100 %" in done.stderr
    assert "note: 3 % are far\n" in done.stderr


def test_predict_leaves_defaults_alone(run: Runner, made: dict[str, Any], tmp_path: Path) -> None:
    """Nothing given is nothing passed."""
    (tmp_path / "s.zarr").mkdir()
    assert run("predict", tmp_path, tmp_path / "s.zarr", "--out", tmp_path / "m.zarr").exit_code == 0
    assert made["call"][3] == {
        "overwrite": False,
        "resume": False,
        "use_field": True,
        "source_path": tmp_path / "s.zarr",
    }


def test_an_error_of_a_prediction_says_what_was_kept(run: Runner, stand_in: StandIn, tmp_path: Path) -> None:
    """What a prediction adds to its error or interruption is shown with it."""

    def predict(*_: object, **options: Any) -> None:
        stop = StoreError("disk full.") if options["overwrite"] else KeyboardInterrupt()
        stop.add_note("2 finished tiles are kept.")
        raise stop

    stand_in("superst_monai.inference.run", load_run=lambda path: path)
    stand_in("superst_monai.inference.canvas", open_source=lambda path, **_: nullcontext(path))
    stand_in("superst_monai.inference.slide_map", predict=predict)
    (tmp_path / "s.svs").touch()
    words = ("predict", tmp_path, tmp_path / "s.svs", "--out", tmp_path / "m.zarr")
    full, interrupted = run(*words, "--overwrite"), run(*words)
    assert (full.exit_code, full.stderr) == (2, "superst: disk full. 2 finished tiles are kept.\n")
    assert (interrupted.exit_code, interrupted.stderr) == (130, "superst: interrupted. 2 finished tiles are kept.\n")


def test_predict_refuses_before_the_work(run: Runner, made: dict[str, Any], tmp_path: Path) -> None:
    """Missing inputs, a taken name and a resolution for a section end with code 2."""
    gone = run("predict", tmp_path / "r", tmp_path / "s", "--out", tmp_path / "m.zarr")
    assert (gone.exit_code, "(RUN), no" in gone.stderr) == (2, True)
    (tmp_path / "s.zarr").mkdir()
    taken = run("predict", tmp_path, tmp_path / "s.zarr", "--out", tmp_path / "s.zarr")
    assert "must not exist yet" in taken.stderr
    finer = run("predict", tmp_path, tmp_path / "s.zarr", "--out", tmp_path / "m.zarr", "--slide-mpp", 1)
    assert (finer.exit_code, "--slide-mpp is for a slide" in finer.stderr) == (2, True)
    assert made == {}


def test_maps_writes_what_is_asked_for(run: Runner, stand_in: StandIn, tmp_path: Path) -> None:
    """Genes are split at commas, and every file written is named."""
    calls = []

    def write_gene_maps(*args: Any) -> list[Path]:
        calls.append(args)
        return [tmp_path / "A.png"]

    stand_in("superst_monai.analysis.gene_maps", write_gene_maps=write_gene_maps)
    done = run("maps", tmp_path, "--genes", "A, B", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert calls == [(tmp_path, ["A", "B"], tmp_path / "out")]
    assert done.stdout == f"wrote {tmp_path / 'A.png'}\n"
    assert run("maps", tmp_path, "--genes", ",", "--out", tmp_path / "out").exit_code == 2


def test_evaluate_shows_scores_and_says_notes(run: Runner, stand_in: StandIn, tmp_path: Path) -> None:
    """Model and baselines that could be fitted have a row, undefined scores a dash; notes go to stderr."""

    def block(value: float | None) -> dict[str, Any]:
        kinds = {kind: {part: {"median": value} for part in ("top100", "all")} for kind in ("raw", "lognorm")}
        return {**kinds, "depth": value, "r2": {"top100": value}}

    def law(share: float, likelihood: float | None) -> dict[str, Any]:
        points = {"50": share, "90": None}
        return {"coverage": points, "coverage_top100": points, "nb_loglik_per_spot": likelihood}

    result = {
        **block(0.512345),
        "lognorm_expected": {"top100": {"median": 0.61728}},
        "n_spots": 6,
        "n_genes": 3,
        **law(0.512, None),
        "uncalibrated": law(0.431, -1234.56),
        "calibration": {"mode": "histology", "factor": 2.25},
        "baselines": {"gene_mean": block(None), "image_intensity": None},
        "notes": ["section S was in the training set"],
    }
    stand_in("superst_monai.analysis.report", evaluate_maps=lambda *_: result)
    done = run("evaluate", tmp_path, "--truth", tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "note: section S was in the training set" in done.stderr
    assert "0.5123" in done.stdout
    assert "0.6173" in done.stdout
    assert "gene mean" in done.stdout
    assert "image intensity" not in done.stdout
    table = [line.split() for line in done.stdout.replace("│", " ").splitlines()]
    assert ["recalibrated", "by", "2.25", *["51.2", "%"] * 2, "-", "-", "-"] in table
    assert ["before", "recalibration", *["43.1", "%"] * 2, "-", "-", "-1,234.6"] in table
    result |= {"uncalibrated": None, "calibration": None}
    done = run("evaluate", tmp_path, "--truth", tmp_path, "--out", tmp_path / "out")
    assert "not recalibrated" in done.stdout
    assert "before recalibration" not in done.stdout
