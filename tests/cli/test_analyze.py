"""`superst analyze` parses, calls and names what was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

Runner = Callable[..., Any]
StandIn = Callable[..., None]
Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def calls(stand_in: StandIn) -> Calls:
    """What analyses that do nothing were called with."""
    seen: Calls = []

    def fake(name: str, result: object = None) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if options.pop("say", None) is not None:
                seen.append((f"{name} says", (), {}))
            seen.append((name, args, options))
            return [Path("a.csv"), Path("a.png")] if result is None else result

        return call

    room = "superst_monai.analysis"
    stand_in(f"{room}.metagene_summary_figures", write_metagenes=fake("metagenes"))
    stand_in(f"{room}.gene_folds", write_gene_folds=fake("genes"))
    stand_in(f"{room}.imputation", write_imputation=fake("impute"))
    stand_in(f"{room}.differential_figures", write_differential=fake("differential"))
    stand_in(f"{room}.cell_types_figures", write_cell_types=fake("types"))
    stand_in(f"{room}.regions", read_regions=fake("regions", [("in", "out")]))
    stand_in(f"{room}.several_maps", open_several=fake("open", "opened"))
    stand_in(
        f"{room}.cell_types_reference", read_markers=fake("markers", "table"), read_reference=fake("cells", "cells")
    )
    return seen


def test_metagenes_and_genes(run: Runner, calls: Calls, tmp_path: Path) -> None:
    """Maps come in their order, options only where given, and every file is named."""
    other = tmp_path / "b"
    other.mkdir()
    done = run("analyze", "metagenes", tmp_path, other, "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    assert done.stdout == "wrote a.csv\nwrote a.png\n"
    assert run("analyze", "metagenes", other, "--out", tmp_path / "o", "--top", 3).exit_code == 0
    assert run("analyze", "genes", other, "--genes", "A, B", "--out", tmp_path / "o", "--common-range").exit_code == 0
    out = tmp_path / "o"
    assert calls == [
        ("metagenes", ([tmp_path, other], out), {}),
        ("metagenes", ([other], out), {"top": 3}),
        ("genes", ([other], ["A", "B"], out), {"common_range": True}),
    ]


def test_impute(run: Runner, calls: Calls, tmp_path: Path) -> None:
    """Conditions are levels to set, and None for effects to remove; defaults are left alone."""
    file, out = tmp_path / "r.geojson", tmp_path / "o"
    file.touch()
    more = ("--condition", "patient=P1", "--remove", "section", "--per", "area", "--genes", "A")
    done = run("analyze", "impute", tmp_path, "--to", "regions", "--objects", file, "--out", out, *more)
    assert done.exit_code == 0, done.output
    assert run("analyze", "impute", tmp_path, "--to", "bins", "--bin-um", 50, "--out", out).exit_code == 0
    conditions = {"patient": "P1", "section": None}
    given = {"to": "regions", "objects": [file], "genes": ["A"], "per": "area", "conditions": conditions}
    assert [call for call in calls if "says" not in call[0]] == [
        ("impute", ([tmp_path], out), given),
        ("impute", ([tmp_path], out), {"to": "bins", "bin_um": 50.0, "conditions": {}}),
    ]


def test_differential(run: Runner, calls: Calls, tmp_path: Path) -> None:
    """Maps are opened under the conditions, regions read by name, and both handed on; notes are said."""
    file, out = tmp_path / "r.geojson", tmp_path / "o"
    file.touch()
    base = ("analyze", "differential", tmp_path, "--regions", file, "--of", "T", "--out", out)
    assert run(*base).exit_code == 0
    assert run(*base, "--against", "S", "--per", "area", "--remove", "section").exit_code == 0
    masks = [("in", "out")]
    assert calls == [
        ("open", ([tmp_path],), {"conditions": {}}),
        ("regions says", (), {}),
        ("regions", ("opened", [file], "T", None), {}),
        ("differential", ("opened", masks, out), {"names": ("T", "the other tissue")}),
        ("open", ([tmp_path],), {"conditions": {"section": None}}),
        ("regions says", (), {}),
        ("regions", ("opened", [file], "T", "S"), {}),
        ("differential", ("opened", masks, out), {"names": ("T", "S"), "per": "area"}),
    ]


def test_differential_with_counts(run: Runner, calls: Calls, stand_in: StandIn, tmp_path: Path) -> None:
    """Counts are compared with maps under the conditions of the measurement; there is one section for each maps."""
    file, out = tmp_path / "r.geojson", tmp_path / "o"
    file.touch()
    base = ("analyze", "differential", tmp_path, "--regions", file, "--of", "T", "--out", out, "--counts", file)
    done = run(*base, "--counts", file)
    assert done.exit_code == 2
    assert "--counts must name one section for each MAPS, got 2 for 1" in done.output
    assert calls == []
    stand_in("superst_monai.data.store", read_section=lambda path: f"section {path.name}")
    seen = []
    stand_in("superst_monai.analysis.counted_regions", count_regions=lambda *words: seen.append(words) or "counted")
    opened = SimpleNamespace(maps="maps")
    conditions = []

    def open_several(_: object, **options: object) -> list[SimpleNamespace]:
        conditions.append(options)
        return [opened]

    stand_in("superst_monai.analysis.several_maps", open_several=open_several)
    assert run(*base, "--remove", "section").exit_code == 0
    assert seen == [(["maps"], ["section r.geojson"], [("in", "out")])]
    assert conditions == [{"conditions": {"section": None}}, {}]
    assert calls[-1][2] == {"names": ("T", "the other tissue"), "counted": "counted"}


def test_cell_types(run: Runner, calls: Calls, tmp_path: Path) -> None:
    """Either reference is read; a region is read where a border is wanted."""
    file, out = tmp_path / "f", tmp_path / "o"
    file.touch()
    assert run("analyze", "cell-types", tmp_path, "--markers", file, "--out", out).exit_code == 0
    more = ("--reference", file, "--labels", "kind", "--regions", file, "--border", "T")
    assert run("analyze", "cell-types", tmp_path, "--out", out, *more).exit_code == 0
    assert [call for call in calls if call[0] != "regions says"] == [
        ("open", ([tmp_path],), {}),
        ("markers", (file,), {}),
        ("types", ("opened", "table", out), {}),
        ("open", ([tmp_path],), {}),
        ("cells", (file, "kind"), {}),
        ("regions", ("opened", [file], "T"), {}),
        ("types", ("opened", "cells", out), {"regions": ["in"], "region_name": "T"}),
    ]


def test_what_does_not_go_together_is_refused_before_the_work(run: Runner, calls: Calls, tmp_path: Path) -> None:
    """All faults of the options in one message, with code 2."""
    file, out = tmp_path / "f", tmp_path / "o"
    file.touch()
    done = run("analyze", "cell-types", tmp_path, "--labels", "x", "--border", "T", "--out", out)
    assert done.exit_code == 2
    for fault in ("pass either --reference or --markers", "--labels go together", "--regions and --border go together"):
        assert fault in done.stderr
    both = run("analyze", "cell-types", tmp_path, "--markers", file, "--reference", file, "--labels", "x", "--out", out)
    assert (both.exit_code, "pass either" in both.stderr) == (2, True)
    twice = ("--to", "bins", "--condition", "a=1", "--remove", "a")
    done = run("analyze", "impute", tmp_path, "--out", out, *twice)
    assert (done.exit_code, "--condition and --remove both name a" in done.stderr) == (2, True)
    gone = run("analyze", "metagenes", tmp_path / "none", "--out", out)
    assert (gone.exit_code, "(MAPS)" in gone.stderr) == (2, True)
    assert run("analyze", "genes", tmp_path, "--genes", ",", "--out", out).exit_code == 2
    assert calls == []
