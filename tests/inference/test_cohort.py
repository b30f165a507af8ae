"""Laws of a cohort: each store is that of a single prediction, none stops the others, and none is made twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from superst_monai.cli.app import app
from superst_monai.data.section import Section
from superst_monai.data.slide import Slide
from superst_monai.data.store import write_section
from superst_monai.errors import RunError, StoreError
from superst_monai.inference.cohort import predict_cohort, run_state
from superst_monai.inference.cohort_jobs import content_sha256
from superst_monai.inference.cohort_slides import CohortSlide, read_slide_list
from superst_monai.inference.maps import open_maps
from superst_monai.inference.maps_writer import MapsWriter
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.slide_map import predict


def contents(folder: Path) -> dict[str, bytes | None]:
    """Bytes of every file below a folder, None for folders."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def times(folder: Path) -> dict[Path, int]:
    """When each file below a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def cohort_of(slides: dict[str, Path], *names: str) -> list[CohortSlide]:
    """Slides by their names."""
    return [CohortSlide(slides[name]) for name in names]


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """Rows of a manifest by name."""
    return {row["name"]: row for row in json.loads((out / "manifest.json").read_text())["slides"]}


def test_each_store_is_that_of_a_single_prediction(
    run: Run, slides: dict[str, Path], single: dict[str, Path], tmp_path: Path
) -> None:
    """A cut slide is reported, the others are there to the byte, and the manifest says both after each slide."""
    seen: list[dict[str, str]] = []
    shown: list[float] = []
    told: list[str] = []

    def show(share: float, _: float) -> None:
        shown.append(share)
        seen.append({name: row["state"] for name, row in rows_of(tmp_path / "out").items()})

    found = predict_cohort(
        run.path, cohort_of(slides, "A", "bad", "B"), tmp_path / "out", samples=2, show=show, tell=told.append
    )
    assert [(end.name, end.state) for end in found] == [("A", "done"), ("bad", "failed"), ("B", "done")]
    assert "bad.tif" in (found[1].error or "")
    for name in "AB":
        assert contents(tmp_path / "out" / f"{name}.maps.zarr") == contents(single[name])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["A.maps.zarr", "B.maps.zarr", "manifest.json"]
    assert shown == sorted(shown)
    assert shown[-1] == 1.0
    assert seen[0] == {"A": "waiting", "bad": "waiting", "B": "waiting"}
    assert {"A": "done", "bad": "waiting", "B": "waiting"} in seen
    assert seen[-1] == {"A": "done", "bad": "failed", "B": "done"}
    assert any(text.startswith("A: ") for text in told)
    rows = rows_of(tmp_path / "out")
    assert rows["A"]["slide"] == str(slides["A"])
    assert {name: row["sha256"] for name, row in rows.items()} == {
        name: content_sha256(slides[name]) for name in ("A", "bad", "B")
    }
    assert rows["A"]["seconds"] > 0
    assert rows["A"]["store"] == "A.maps.zarr"
    assert (rows["A"]["error"], rows["bad"]["error"]) == (None, found[1].error)


def test_a_second_call_does_what_is_left(
    run: Run, slides: dict[str, Path], single: dict[str, Path], tmp_path: Path
) -> None:
    """What is done is not touched, what failed is tried again, and slides can be added."""
    mended = dict(slides, C=tmp_path / "C.tif")
    mended["C"].write_bytes(b"II*\0 no slide yet")
    out = tmp_path / "out"
    first = predict_cohort(run.path, cohort_of(mended, "A", "C"), out, samples=2)
    assert [end.state for end in first] == ["done", "failed"]
    before, row = times(out / "A.maps.zarr"), rows_of(out)["A"]
    shutil.copy(slides["C"], mended["C"])
    again = predict_cohort(run.path, cohort_of(mended, "C", "A", "B"), out, samples=2)
    assert [(end.name, end.state) for end in again] == [("C", "done"), ("A", "kept"), ("B", "done")]
    assert times(out / "A.maps.zarr") == before
    assert rows_of(out)["A"] == row
    assert contents(out / "B.maps.zarr") == contents(single["B"])
    assert open_maps(out / "C.maps.zarr").record["source_path"] == str(mended["C"])
    predict_cohort(run.path, cohort_of(mended, "B"), out, samples=2)
    assert {name: row["state"] for name, row in rows_of(out).items()} == dict.fromkeys("ACB", "done")


def test_what_is_killed_goes_on(
    run: Run,
    slides: dict[str, Path],
    single: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interruption keeps slides and tiles; a kill between a store and its row makes it again, to the same bytes."""
    out = tmp_path / "out"
    cohort, whole, calls = cohort_of(slides, "A", "B", "C"), MapsWriter.finish, []

    def finish(self: MapsWriter) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt("stop")
        whole(self)

    with monkeypatch.context() as patch:
        patch.setattr(MapsWriter, "finish", finish)
        with pytest.raises(KeyboardInterrupt, match="stop"):
            predict_cohort(run.path, cohort, out, samples=2)
    assert {name: row["state"] for name, row in rows_of(out).items()} == {"A": "done", "B": "waiting", "C": "waiting"}
    told: list[str] = []
    with pytest.raises(RunError, match=r"predicted from other arguments: seed was 0, got 1 \(A\); give the same"):
        predict_cohort(run.path, cohort, out, samples=2, seed=1)
    with Slide.open(slides["C"]) as slide:  # as if its row had not been written
        predict(run, slide, out / "C.maps.zarr", samples=2, source_path=slides["C"])
    found = predict_cohort(run.path, cohort, out, samples=2, tell=told.append)
    assert [end.state for end in found] == ["kept", "done", "done"]
    assert "B: 1 of 1 tiles are there already" in told
    for name in "ABC":
        assert contents(out / f"{name}.maps.zarr") == contents(single[name])


def test_other_arguments_are_refused_or_predicted_anew(run: Run, slides: dict[str, Path], tmp_path: Path) -> None:
    """All that differs is said before any work; `overwrite` makes the slides that differ anew, and only these."""
    out, told = tmp_path / "out", dict(slides, D=tmp_path / "D.tif")
    shutil.copy(slides["D"], told["D"])
    predict_cohort(run.path, cohort_of(told, "A", "D"), out, samples=2)
    before, kept = contents(out), times(out / "A.maps.zarr")
    stated = CohortSlide(told["D"], conditions={"section": "C2"})
    with pytest.raises(
        RunError,
        match=r"samples was 2, got 3 \(A, D\); seed was 0, got 4 \(A, D\); conditions was \{\}, "
        r"got \{'section': 'C2'\} \(D\); give the same again, choose another --out, or pass --overwrite",
    ):
        predict_cohort(run.path, [CohortSlide(told["A"]), stated], out, samples=3, seed=4)
    shutil.copy(slides["E"], told["D"])
    assert contents(out) == before
    changed = predict_cohort(run.path, cohort_of(told, "A", "D"), out, samples=2)
    assert [end.state for end in changed] == ["kept", "failed"]
    assert "D.maps.zarr was predicted from something else: sha256 was " in (changed[1].error or "")
    assert rows_of(out)["D"]["sha256"] == content_sha256(slides["E"])
    assert contents(out / "D.maps.zarr") == {
        name.removeprefix("D.maps.zarr/"): data for name, data in before.items() if name.startswith("D.maps.zarr/")
    }
    anew = predict_cohort(run.path, [CohortSlide(told["A"]), stated], out, samples=2, overwrite=True)
    assert [end.state for end in anew] == ["kept", "done"]
    assert times(out / "A.maps.zarr") == kept
    record = open_maps(out / "D.maps.zarr").record
    assert (record["slide"]["sha256"], record["conditions"]) == (content_sha256(slides["E"]), {"section": "C2"})


def test_a_section_is_known_by_its_content_and_its_field(
    run: Run, section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A section may be in a cohort; a field fitted to it later changes what its maps follow from."""
    write_section(section, tmp_path / "C2.zarr")
    cohort = [CohortSlide(tmp_path / "C2.zarr")]
    whole = predict(run, section, tmp_path / "single.zarr", samples=1, source_path=tmp_path / "C2.zarr")
    assert predict_cohort(run.path, cohort, tmp_path / "out", samples=1)[0].state == "done"
    assert contents(tmp_path / "out" / "C2.maps.zarr") == contents(whole)
    assert predict_cohort(run.path, cohort, tmp_path / "out", samples=1)[0].state == "kept"
    (tmp_path / "C2.pt").write_bytes(b"a field")
    monkeypatch.setattr("superst_monai.inference.cohort_jobs.has_field", lambda *_: True)
    monkeypatch.setattr("superst_monai.inference.cohort_jobs.field_path", lambda *_: tmp_path / "C2.pt")
    assert "field was None, got '" in (predict_cohort(run.path, cohort, tmp_path / "out", samples=1)[0].error or "")
    (end,) = predict_cohort(run.path, cohort, tmp_path / "alone", samples=1, use_field=False)
    assert end.made_from is not None
    assert end.made_from["field"] is None


def test_a_run_is_known_by_all_that_its_maps_follow_from(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """A recalibration, or other weights, make another run of it."""
    path = make_run(tmp_path / "run")
    first = run_state(load_run(path))
    assert run_state(load_run(path)) == first
    (path / "calibration.json").write_text("{}")
    assert run_state(load_run(path)) != first


def test_a_fault_of_the_program_stops_no_other_slide(
    run: Run, slides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a slide raises is its outcome, and said to be no fault of the slide."""
    monkeypatch.setattr("superst_monai.inference.cohort_jobs.plan_maps", lambda *_, **__: [][0])
    found = predict_cohort(run.path, cohort_of(slides, "A", "B"), tmp_path / "out")
    assert [end.error for end in found] == [
        "unexpected IndexError: list index out of range; this is a fault of superst, please report it."
    ] * 2


def test_slides_are_told_apart_before_the_work(run: Run, slides: dict[str, Path], tmp_path: Path) -> None:
    """Missing slides, one name for two, a resolution of a section and unknown levels are refused at once."""
    (tmp_path / "A.svs").touch()
    (tmp_path / "S.zarr").mkdir()
    cohort = [
        CohortSlide(slides["A"], conditions={"section": "C9"}),
        CohortSlide(tmp_path / "A.svs"),
        CohortSlide(tmp_path / "gone.svs"),
        CohortSlide(tmp_path / "S.zarr", mpp=0.5),
        *(CohortSlide(slides[name], conditions={"donor": "p"}) for name in "BCDE"),
        CohortSlide(slides["A"], "../up"),
    ]
    with pytest.raises(RunError) as refused:
        predict_cohort(run.path, cohort, tmp_path / "out")
    said = str(refused.value)
    assert f"there is no {tmp_path / 'gone.svs'};" in said
    assert f"{slides['A']}, {tmp_path / 'A.svs'} would all be A.maps.zarr: give each a name in the column name" in said
    assert "'../up' cannot be the name of a file" in said
    assert "S.zarr is a section with a resolution of its own, but gets mpp 0.5" in said
    assert "section=C9 is not among the levels C2, C6" in said
    assert "(B, C, D and 1 more)" in said
    with pytest.raises(RunError, match="there is none"):
        predict_cohort(run.path, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_maps_of_others_are_not_touched(run: Run, slides: dict[str, Path], tmp_path: Path) -> None:
    """A store that the manifest does not know, and a damaged manifest, are refused."""
    (tmp_path / "A.maps.zarr").mkdir()
    with pytest.raises(StoreError, match=r"manifest.json, but A\.maps\.zarr are there and are not; choose another"):
        predict_cohort(run.path, cohort_of(slides, "A"), tmp_path)
    for text in ("{", "[]", '{"format_version": 9}', '{"format_version": 1, "slides": [{}]}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(StoreError, match=r"must be the manifest of a cohort, but is damaged \(.*restore it"):
            predict_cohort(run.path, cohort_of(slides, "A"), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        predict_cohort(run.path, cohort_of(slides, "A"), tmp_path / "file")


def test_lists_of_slides(tmp_path: Path) -> None:
    """Tables of any separator, and plain paths; what a line leaves empty is that of all."""
    folder = tmp_path / "case.1"
    folder.mkdir()
    table = "\ufeffslide;name;mpp;section\n a.svs ; first; 0.25; C2\n\n/b/b.ome.tif;;;\n" + f"{folder};;1;\n"
    (tmp_path / "list.csv").write_text(table, encoding="utf-8")
    assert read_slide_list(tmp_path / "list.csv", mpp=2.0, conditions={"section": "C6", "donor": "p"}) == [
        CohortSlide(tmp_path / "a.svs", "first", 0.25, {"section": "C2", "donor": "p"}),
        CohortSlide(Path("/b/b.ome.tif"), "b.ome", 2.0, {"section": "C6", "donor": "p"}),
        CohortSlide(folder, "case.1", 1.0, {"section": "C6", "donor": "p"}),
    ]
    (tmp_path / "list.txt").write_text("a, b.svs\n\nc.svs\n")
    assert read_slide_list(tmp_path / "list.txt") == [
        CohortSlide(tmp_path / "a, b.svs"),
        CohortSlide(tmp_path / "c.svs", "c"),
    ]
    (tmp_path / "list.tsv").write_text("mpp\tslide\n\ta.svs\n1,5\tb.svs\n-1\tc.svs\n1\t\n1\td\tmore\n")
    with pytest.raises(
        RunError,
        match="but line 3 has no positive mpp; line 4 has no positive mpp; line 5 names no slide; "
        "line 6 has more cells than the heading; correct",
    ):
        read_slide_list(tmp_path / "list.tsv")
    for text in ("", "a.svs\nb.svs\n", "slide,mpp,mpp\n"):
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(RunError, match=r"with a column slide and each heading once, but begins with '.*or let the"):
            read_slide_list(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="must be a list of slides in UTF-8"):
        read_slide_list(tmp_path / "list.csv")


def test_the_command_reports_what_failed(
    run: Run, slides: dict[str, Path], single: dict[str, Path], tmp_path: Path
) -> None:
    """`superst predict` of a list, end to end: code 2 and the reason for a cut slide, and all others are there."""
    listed = tmp_path / "list.csv"
    listed.write_text(f"slide,section\n{slides['A']},\n{slides['bad']},\n{slides['B']},C2\n")
    words = ["predict", str(run.path), "--slides", str(listed), "--out", str(tmp_path / "out"), "--samples", "2"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.output
    assert "superst: 1 of 3 slides failed: bad. All others are in " in done.stderr
    error = rows_of(tmp_path / "out")["bad"]["error"]
    assert error.startswith("bad.tif ")
    assert error.split()[0] in done.stdout
    assert contents(tmp_path / "out" / "A.maps.zarr") == contents(single["A"])
    assert open_maps(tmp_path / "out" / "B.maps.zarr").record["conditions"] == {"section": "C2"}
