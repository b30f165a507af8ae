"""Shifts are as long as told, and only the spots trained on are shifted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.errors import RunError
from superst_monai.experiments.alteration import over_repeats, summarise
from superst_monai.experiments.effort import Effort
from superst_monai.experiments.misalignment import run_misalignment, shift_spots
from superst_monai.experiments.withheld_spots import KINDS, SCORES, draw_withheld, score_spots
from superst_monai.inference.maps import open_maps

Done = tuple[Path, dict[str, Any]]
MakeSection = Callable[..., Section]
SETTINGS: dict[str, Any] = {"radii": (2.0,), "withheld": 0.3, "seed": 3}


@pytest.fixture(scope="module")
def once(effort: Effort) -> Effort:
    """The effort with one repeat."""
    return replace(effort, repeats=1)


@pytest.fixture(scope="module")
def done(stores: dict[str, Path], once: Effort, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The experiment on section A."""
    out = tmp_path_factory.mktemp("misalignment") / "out"
    return out, run_misalignment(out, [stores["A"]], effort=once, **SETTINGS)


@pytest.mark.parametrize("radii", [0.0, 1.0, 2.0, 4.0])
def test_each_spot_moves_by_so_many_radii_and_stays_on_the_slide(make_section: MakeSection, radii: float) -> None:
    """The distance is exact for spots of any size, also at the border; nothing else changes."""
    section = make_section()
    spots = section.spots.assign(radius_um=np.linspace(20.0, 40.0, section.n_spots))
    section = replace(section, spots=spots)
    moved = shift_spots(section, radii, np.random.default_rng(0))
    step = (moved.spots[["x_um", "y_um"]] - spots[["x_um", "y_um"]]).to_numpy()
    np.testing.assert_allclose(np.hypot(*step.T), radii * spots["radius_um"], atol=1e-9)
    assert moved.spots["x_um"].between(0, 800, inclusive="left").all()
    assert moved.spots["y_um"].between(0, 960, inclusive="left").all()
    assert moved.image is section.image or (moved.image == section.image).all()
    assert (moved.counts != section.counts).nnz == 0
    if radii:
        assert len(np.unique(step.round(6), axis=0)) == section.n_spots


def test_directions_do_not_depend_on_the_length_and_are_uniform(make_section: MakeSection) -> None:
    """In the middle of a slide half the shift is half the way; over many spots no direction is preferred."""
    section = make_section()
    many = pd.concat([section.spots.iloc[[12]]] * 4000)
    many.index = pd.Index([f"s{i}" for i in range(len(many))])
    section = replace(section, spots=many, counts=section.counts[[12] * 4000])
    one, two = (shift_spots(section, r, np.random.default_rng(0)).spots[["x_um", "y_um"]] for r in (1.0, 2.0))
    start = many[["x_um", "y_um"]].to_numpy()
    np.testing.assert_allclose(two.to_numpy() - start, 2 * (one.to_numpy() - start), atol=1e-9)
    direction = (one.to_numpy() - start) / many["radius_um"].to_numpy()[:, None]
    np.testing.assert_allclose(direction.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose((direction**2).mean(axis=0), 0.5, atol=0.05)


def test_a_shift_wider_than_the_slide_is_refused(make_section: MakeSection) -> None:
    """No direction is left."""
    with pytest.raises(RunError, match="stay on the slide, 800 x 960 um, but 40 radii take 30 of 30"):
        shift_spots(make_section(), 40.0, np.random.default_rng(0))


def test_trained_on_is_the_section_without_the_withheld_spots_shifted(done: Done, stores: dict[str, Path]) -> None:
    """No withheld spot is in a store that is trained on; at 0 radii the others are where they were, at 2 they moved."""
    out, _ = done
    section = read_section(stores["A"])
    kept = ~draw_withheld(section.n_spots, 0.3, np.random.default_rng((3, 0, 0, 0)))
    plain, moved = (read_section(out / f"sections/0-{level}-0.zarr") for level in (0, 2))
    for store in (plain, moved):
        assert list(store.spots.index) == list(section.spots.index[kept])
        np.testing.assert_array_equal(store.counts.toarray(), section.counts.toarray()[kept])
    where = section.spots.loc[kept, ["x_um", "y_um"]].to_numpy()
    np.testing.assert_array_equal(plain.spots[["x_um", "y_um"]], where)
    length = np.hypot(*(moved.spots[["x_um", "y_um"]].to_numpy() - where).T)
    np.testing.assert_allclose(length, 60.0)
    for level in (0, 2):
        record = json.loads((out / f"runs/0-{level}/run.json").read_text())
        assert [part["spots"] for part in record["sections"]] == [kept.sum()]


def test_table_and_tests_are_those_of_the_maps(done: Done, stores: dict[str, Path]) -> None:
    """Scores are of the withheld spots in their true place, and the test is scipy's over the genes."""
    out, result = done
    section = read_section(stores["A"])
    withheld = draw_withheld(section.n_spots, 0.3, np.random.default_rng((3, 0, 0, 0)))
    table = pd.read_csv(out / "misalignment.csv")
    assert len(table) == 2 * len(KINDS) * 12
    for kind in KINDS:
        mine = {}
        for level in (0.0, 2.0):
            rows = table[(table["kind"] == kind) & (table["level"] == level)].set_index("gene")
            maps = open_maps(out / f"maps/0-{level:g}-A-{kind}.zarr")
            wanted = score_spots(maps, section, withheld).set_index("gene")
            np.testing.assert_allclose(rows[list(SCORES)], wanted.loc[rows.index], rtol=1e-9)
            assert (rows["spots"] == withheld.sum()).all()
            mine[level] = wanted
        [said] = [row for row in result["levels"] if (row["kind"], row["level"]) == (kind, 2.0)]
        assert said["spots"] == withheld.sum()
        for score in SCORES:
            change = (mine[2.0] - mine[0.0])[score]
            assert said["medians"][score] == pytest.approx(mine[2.0][score].median())
            assert said["unaltered"][score] == pytest.approx(mine[0.0][score].median())
            assert said["tests"][score]["p"] == pytest.approx(wilcoxon(change).pvalue)
            assert said["tests"][score]["median_difference"] == pytest.approx(change.median())
        [same] = [row for row in result["levels"] if (row["kind"], row["level"]) == (kind, 0.0)]
        assert same["medians"] == same["unaltered"]
        assert {test["p"] for test in same["tests"].values()} == {1.0}
    assert "shifted by 2 radii" in result["finding"]
    assert (out / "misalignment.png").stat().st_size > 10_000


@pytest.mark.usefixtures("no_training")
def test_resuming_trains_nothing_again(done: Done, stores: dict[str, Path], once: Effort) -> None:
    """The result is the same; other settings are refused."""
    out, result = done
    assert run_misalignment(out, [stores["A"]], effort=once, **SETTINGS) == result
    with pytest.raises(RunError, match=r"whose withheld was 0\.3, got 0\.2"):
        run_misalignment(out, [stores["A"]], effort=once, **(SETTINGS | {"withheld": 0.2}))


def test_repeats_are_averaged_gene_by_gene() -> None:
    """A repeat in which a gene has no score does not count; spots are summed over sections, their mean over repeats."""
    rows = [
        {"repeat": r, "kind": "field", "part": "all", "level": 1.0, "section": s, "spots": 6, "gene": "G", "r2": r2}
        for r, s, r2 in ((0, "A", 0.2), (1, "A", np.nan), (0, "B", 0.4), (1, "B", 0.8))
    ]
    table = pd.DataFrame(rows).assign(raw=0.5, lognorm=0.5)
    table = table.assign(raw_unaltered=0.6, lognorm_unaltered=0.5, r2_unaltered=0.5)
    means = over_repeats(table).set_index("section")["r2"]
    assert means.to_dict() == pytest.approx({"A": 0.2, "B": 0.6})
    [said] = summarise(table)
    assert said["spots"] == 12
    assert said["medians"]["r2"] == pytest.approx(0.4)
    assert said["tests"]["raw"]["median_difference"] == pytest.approx(-0.1)
    assert said["tests"]["raw"]["n"] == 2


@pytest.mark.parametrize("radii", [(), (0.0,), (1.0, 1.0), (-1.0,)])
def test_impossible_shifts_are_refused_before_any_work(
    stores: dict[str, Path], tmp_path: Path, radii: tuple[float, ...]
) -> None:
    """Zero is always there; each shift once."""
    with pytest.raises(RunError, match="radii must be positive, each once"):
        run_misalignment(tmp_path / "out", [stores["A"]], radii=radii)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("share", "said"), [(0.1, "A: 3 of 30; B: 3 of 30"), (1.0, "A: 30 of 30; B: 30 of 30")])
def test_too_few_spots_to_judge_or_train_are_refused(
    stores: dict[str, Path], tmp_path: Path, share: float, said: str
) -> None:
    """A correlation over three spots says nothing; all sections are named, and nothing is begun."""
    with pytest.raises(RunError, match=f"withholds {said}"):
        run_misalignment(tmp_path / "out", [stores["A"], stores["B"]], withheld=share)
    assert not (tmp_path / "out").exists()
