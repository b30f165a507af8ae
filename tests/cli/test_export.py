"""`superst export` parses, calls and says what must be said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Runner = Callable[..., Any]
StandIn = Callable[..., None]


@pytest.fixture
def calls(stand_in: StandIn) -> list[tuple[Any, dict[str, Any]]]:
    """What an export that does nothing was called with."""
    seen = []

    def export(*args: Any, **options: Any) -> list[str]:
        options.pop("show")(1.0, 2.0)
        assert options.pop("command").startswith("superst")
        seen.append((args, options))
        return ["cells: 1 of 3 lie off the slide"]

    stand_in("superst_monai.analysis.exports.export", export=export)
    return seen


def test_options_reach_the_export(run: Runner, calls: list[Any], tmp_path: Path) -> None:
    """All options are passed on; notes go to stderr."""
    objects, out = tmp_path / "c.tif", tmp_path / "c.h5ad"
    objects.touch()
    more = ("--objects", objects, "--genes", "A, B", "--layers", "mean, q95", "--overwrite")
    done = run("export", tmp_path, "--to", "cells", "--out", out, *more)
    assert done.exit_code == 0, done.output
    options = {"to": "cells", "objects": objects, "genes": ["A", "B"], "layers": ["mean", "q95"]}
    assert calls == [((tmp_path, out), options | {"overwrite": True})]
    assert done.stdout == f"wrote {out}\n"
    assert "note: cells: 1 of 3 lie off the slide" in done.stderr
    assert "exporting: 100 %" in done.stderr


def test_defaults_are_left_alone(run: Runner, calls: list[Any], tmp_path: Path) -> None:
    """Nothing given is nothing passed."""
    out = tmp_path / "b.h5ad"
    assert run("export", tmp_path, "--to", "bins", "--bin-um", 8, "--out", out).exit_code == 0
    assert calls == [((tmp_path, out), {"to": "bins", "bin_um": 8.0, "overwrite": False})]


def test_bad_words_end_with_code_2(run: Runner, calls: list[Any], tmp_path: Path) -> None:
    """An unknown kind, missing maps and missing objects are refused before the work."""
    out = tmp_path / "o.h5ad"
    assert run("export", tmp_path, "--to", "nuclei", "--out", out).exit_code == 2
    gone = run("export", tmp_path / "m", "--to", "cells", "--objects", tmp_path / "c.geojson", "--out", out)
    assert (gone.exit_code, "(MAPS), no" in gone.stderr, "(objects)" in gone.stderr) == (2, True, True)
    assert run("export", tmp_path, "--to", "bins", "--genes", ",", "--out", out).exit_code == 2
    assert calls == []
