"""`superst experiment` of spots parses and calls; what is not given is left to the function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from superst_monai.experiments.effort import FULL, QUICK

Runner = Callable[..., Any]
StandIn = Callable[..., None]
Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def pretend(stand_in: StandIn) -> Callable[[str], Calls]:
    """Put an experiment that does nothing in the place of the one of a name; its calls."""

    def put(name: str) -> Calls:
        made: Calls = []

        def perform(*args: Any, **options: Any) -> dict[str, Any]:
            options.pop("show")("training 0", 0.5, 10.0)
            made.append((args, options))
            return {"finding": "It was found."}

        module = name.replace("-", "_")
        stand_in(f"superst_monai.experiments.{module}", NAME=name, **{f"run_{module}": perform})
        return made

    return put


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A path that exists."""
    (tmp_path / "A.zarr").mkdir()
    return tmp_path / "A.zarr"


@pytest.mark.parametrize("name", ["deconvolution-merged", "misalignment", "occlusion"])
def test_nothing_given_is_nothing_passed(run: Runner, pretend: Any, store: Path, tmp_path: Path, name: str) -> None:
    """Sections, folder and the full effort; the finding and the files are named."""
    calls = pretend(name)
    done = run("experiment", name, store, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert calls == [((tmp_path / "out", [store]), {"effort": FULL})]
    assert "It was found." in done.stdout
    assert f"{name}.json, {name}.csv and {name}.png" in done.stdout
    assert "training 0:  50 %" in done.stderr


@pytest.mark.parametrize(
    ("name", "words", "options"),
    [
        ("deconvolution-merged", [], {}),
        ("misalignment", ["--radii", 0.5, "--radii", 3, "--withheld", 0.3], {"radii": [0.5, 3.0], "withheld": 0.3}),
        (
            "occlusion",
            ["--share", 0.25, "--grid", 50, "--withheld", 0.3],
            {"shares": [0.25], "grid": 50, "withheld": 0.3},
        ),
    ],
)
def test_options_reach_the_experiment(
    run: Runner, pretend: Any, store: Path, tmp_path: Path, name: str, words: list[Any], options: dict[str, Any]
) -> None:
    """Under the names of the function; the effort starts from the quick one."""
    calls = pretend(name)
    shared = ["--quick", "--repeats", 3, "--samples", 5, "--minutes", 0.5, "--seed", 0, "--covariate", "s=section"]
    done = run("experiment", name, store, "--out", tmp_path / "out", *words, *shared)
    assert done.exit_code == 0, done.output
    [(_, given)] = calls
    effort = given.pop("effort")
    assert (effort.repeats, effort.samples, effort.minutes) == (3, 5, 0.5)
    assert effort.options == QUICK.options
    assert given == options | {"seed": 0, "covariates": {"s": "section"}}


@pytest.mark.parametrize(
    ("words", "options"),
    [([], {}), (["--quick"], {"tissues": 2}), (["--quick", "--tissues", 5, "--seed", 1], {"tissues": 5, "seed": 1})],
)
def test_synthetic_tissues(
    run: Runner, pretend: Any, tmp_path: Path, words: list[Any], options: dict[str, Any]
) -> None:
    """Ten by default, which is written in the function; two in a hurry."""
    calls = pretend("deconvolution-synthetic")
    assert run("experiment", "deconvolution-synthetic", "--out", tmp_path, *words).exit_code == 0
    assert calls == [((tmp_path,), {"effort": QUICK if "--quick" in words else FULL, **options})]


def test_differential(run: Runner, pretend: Any, store: Path, tmp_path: Path) -> None:
    """Files and names of the regions are passed on; missing files are refused at once."""
    calls = pretend("differential")
    regions, genes = tmp_path / "A.geojson", tmp_path / "genes.txt"
    words = ["experiment", "differential", store, "--out", tmp_path / "out", "--of", "m", "--against", "g"]
    words += ["--regions", regions, "--reference", genes]
    done = run(*words)
    assert done.exit_code == 2
    assert "A.geojson (regions)" in done.stderr
    assert "genes.txt (reference)" in done.stderr
    regions.touch()
    genes.touch()
    assert run(*words).exit_code == 0
    assert calls == [
        ((tmp_path / "out", [store], [regions], genes), {"of": "m", "against": "g", "effort": FULL}),
    ]


@pytest.mark.parametrize("name", ["deconvolution-merged", "misalignment", "occlusion"])
def test_missing_sections_are_refused(run: Runner, pretend: Any, tmp_path: Path, name: str) -> None:
    """Before any work, with code 2."""
    calls = pretend(name)
    done = run("experiment", name, "gone.zarr", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "there is no gone.zarr (SECTION)" in done.stderr
    assert calls == []
