"""`superst predict` of many slides parses, calls, and says what became of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

Runner = Callable[..., Any]
StandIn = Callable[..., None]


@pytest.fixture
def made(stand_in: StandIn) -> dict[str, Any]:
    """What a cohort that is not predicted was called with; of its slides, `bad` fails and `old` was there."""
    seen: dict[str, Any] = {}

    def predict_cohort(run: Path, slides: list[Any], out: Path, **options: Any) -> list[Any]:
        if any(slide.name == "stop" for slide in slides):
            raise KeyboardInterrupt
        options.pop("show")(1.0, 2.0)
        options.pop("tell")("a: 3 % are far")
        seen["call"] = (run, slides, out, options)
        states = {"bad": "failed", "old": "kept"}
        ends = [SimpleNamespace(name=s.name, state=states.get(s.name, "done"), seconds=65, error=None) for s in slides]
        for end in ends:
            end.error = "it is cut." if end.state == "failed" else None
        return ends

    stand_in("superst_monai.inference.cohort", here="here", predict_cohort=predict_cohort)
    stand_in("superst_monai.inference.cohort_dask", OnDask=lambda address: f"on {address}")
    return seen


def paths(folder: Path, *names: str) -> list[Path]:
    """Files that are there."""
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def test_options_reach_the_cohort(run: Runner, made: dict[str, Any], tmp_path: Path) -> None:
    """Slides and list are joined; resolution and conditions are of all for which the list states none."""
    from superst_monai.inference.cohort_slides import CohortSlide

    first, second = paths(tmp_path, "a.svs", "b.svs")
    listed = tmp_path / "list.csv"
    listed.write_text("slide,mpp,section\na2.svs,0.25,\nb2.svs,,C6\n")
    more = ("--samples", 4, "--seed", 2, "--condition", "section=C2", "--slide-mpp", 0.5, "--overwrite", "--no-field")
    words = ("predict", tmp_path, first, second, "--slides", listed, "--scheduler", "tcp://h:1", "--resume")
    done = run(*words, "--out", tmp_path / "maps", *more)
    assert done.exit_code == 0, done.output
    c2 = {"section": "C2"}
    slides = [CohortSlide(first, "a", 0.5, c2), CohortSlide(second, "b", 0.5, c2)]
    slides += [CohortSlide(tmp_path / "a2.svs", "a2", 0.25, c2)]
    slides += [CohortSlide(tmp_path / "b2.svs", "b2", 0.5, {"section": "C6"})]
    options = {"workers": "on tcp://h:1", "samples": 4, "seed": 2, "overwrite": True, "use_field": False}
    assert made["call"] == (tmp_path, slides, tmp_path / "maps", options)
    assert "predicting 4 slide(s): 100 %" in done.stderr
    assert "note: a: 3 % are far\n" in done.stderr
    assert f"wrote {tmp_path / 'maps'}: 4 maps, and manifest.json\n" in done.stdout


def test_a_failed_slide_ends_with_code_2(run: Runner, made: dict[str, Any], tmp_path: Path) -> None:
    """The table has every slide, the message those that failed; nothing given is nothing passed."""
    done = run("predict", tmp_path, *paths(tmp_path, "bad.svs", "old.svs", "new.svs"), "--out", tmp_path / "maps")
    assert done.exit_code == 2
    assert made["call"][3] == {"workers": "here", "overwrite": False, "use_field": True}
    rows = [" ".join(line.strip("│").split()).replace(" │", ",") for line in done.stdout.splitlines()]
    assert {"bad, failed, 1:05 min, it is cut.", "old, was there already, 1:05 min,", "new, done, 1:05 min,"} <= set(
        rows
    )
    assert "superst: 1 of 3 slides failed: bad. All others are in " in done.stderr
    assert "wrote" not in done.stdout


def test_an_interrupted_cohort_says_how_to_go_on(run: Runner, made: dict[str, Any], tmp_path: Path) -> None:
    """What is kept, and that the same command goes on."""
    stopped = run("predict", tmp_path, *paths(tmp_path, "stop.svs"), "--out", tmp_path / "maps")
    said = (
        f"superst: interrupted. Finished maps are kept in {tmp_path / 'maps'}; give the same command again to go on.\n"
    )
    assert (stopped.exit_code, stopped.stderr) == (130, said)


def test_one_store_is_of_one_slide(run: Runner, made: dict[str, Any], tmp_path: Path) -> None:
    """A name of a store with many slides, a list or a cluster is refused with all that does not fit."""
    out = tmp_path / "m.zarr"
    two = run("predict", tmp_path, *paths(tmp_path, "a.svs", "b.svs"), "--out", out, "--scheduler", "tcp://h:1")
    assert two.exit_code == 2
    assert "names the maps of one slide, but got 2 slides, --scheduler; pass one slide, or a folder" in two.stderr
    assert f"as --out, such as {tmp_path / 'm'}.\n" in two.stderr
    none = run("predict", tmp_path, "--slides", tmp_path / "a.svs", "--out", out)
    assert (none.exit_code, "but got 0 slides, --slides;" in none.stderr) == (2, True)
    gone = run("predict", tmp_path / "r", "--slides", tmp_path / "list.csv", "--out", tmp_path / "maps")
    assert (gone.exit_code, "list.csv (slides); check the path" in gone.stderr) == (2, True)
    assert made == {}
