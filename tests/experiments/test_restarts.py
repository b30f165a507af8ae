"""Restarts: the same seed gives the same maps, and the spread is measured as it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from superst_monai.errors import AlignmentError, RunError
from superst_monai.experiments.effort import Effort
from superst_monai.experiments.restarts import judge, random_regions, relative_spread, run_restarts
from superst_monai.inference.maps import open_maps

SETTINGS: dict[str, Any] = {"seeds": (0, 0, 1), "n_regions": 15, "radius_um": 60.0}
Done = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def done(stores: dict[str, Path], effort: Effort, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Three trainings on section A, two of them with one seed."""
    out = tmp_path_factory.mktemp("restarts") / "out"
    return out, run_restarts(out, [stores["A"]], effort=effort, **SETTINGS)


def test_the_same_seed_correlates_one(done: Done) -> None:
    """Two trainings of one seed agree exactly; another seed gives what its regions say (against numpy)."""
    out, result = done
    table = pd.read_csv(out / "restarts.csv")
    same = table[(table["restart_a"] == 0) & (table["restart_b"] == 1)]
    np.testing.assert_allclose(same["correlation"], 1.0)
    parts = [json.loads((out / f"parts/restart-{i}-A.json").read_text()) for i in (0, 2)]
    mean = [np.array(part["mean"]) for part in parts]
    other = table[(table["restart_a"] == 0) & (table["restart_b"] == 2)].set_index("gene")["correlation"]
    assert other.max() < 1
    for column, gene in enumerate(parts[0]["genes"]):
        assert other[gene] == pytest.approx(np.corrcoef(mean[0][:, column], mean[1][:, column])[0, 1], abs=1e-6)
    assert result["correlation"]["median"] == pytest.approx(table["correlation"].median())
    assert result["correlation"]["pairs"][0]["median"] == pytest.approx(1.0)
    assert [run["seed"] for run in result["runs"]] == [0, 0, 1]


@pytest.mark.usefixtures("no_training")
def test_resuming_gives_the_same_result_without_work(done: Done, stores: dict[str, Path], effort: Effort) -> None:
    """Nothing is trained or predicted again."""
    out, result = done
    before = (out / "restarts.json").read_bytes()
    assert run_restarts(out, [stores["A"]], effort=effort, **SETTINGS) == result
    assert (out / "restarts.json").read_bytes() == before


def test_regions_are_discs_in_the_tissue(done: Done) -> None:
    """Each holds its centre, none leaves the tissue or its radius; the seed decides; sums are sums of pixels."""
    out, _ = done
    maps = open_maps(out / "maps/restart-0-A.zarr")
    label = random_regions(maps, 15, 60.0, seed=0)
    assert set(np.unique(label)) == set(range(16))
    assert not label[~maps.tissue].any()
    for region in range(1, 16):
        row, col = np.nonzero(label == region)
        assert max(np.ptp(row), np.ptp(col)) <= 2 * 60.0 / maps.mpp
    np.testing.assert_array_equal(label, random_regions(maps, 15, 60.0, seed=0))
    assert (label != random_regions(maps, 15, 60.0, seed=1)).any()
    part = json.loads((out / "parts/restart-0-A.json").read_text())
    pixels, _ = maps.gene(part["genes"][0])
    wanted = [pixels[label == region].sum() for region in range(1, 16)]
    np.testing.assert_allclose(np.array(part["mean"])[:, 0], wanted, rtol=1e-3)
    with pytest.raises(AlignmentError, match="as many tissue pixels, got 5120"):
        random_regions(maps, 6000, 60.0, seed=0)


def test_runs_that_differ_as_much_as_they_say_have_ratio_one() -> None:
    """Drawn with a known sd the ratio is one and ranks agree; a tenth of the told sd makes it ten."""
    rng = np.random.default_rng(0)
    sd = rng.uniform(0.05, 1.0, (200, 30))
    mean = 20 + sd * rng.standard_normal((8, 200, 30))
    told, found = relative_spread(mean, np.broadcast_to(sd, mean.shape))
    said = judge(told, found)
    assert said["ratio"] == pytest.approx(1.0, abs=0.02)
    assert said["spearman"] == pytest.approx(spearmanr(told, found).statistic)
    assert said["spearman"] > 0.8
    assert sum(part["n"] for part in said["bins"]) == 6000
    for part in said["bins"]:
        assert part["between_runs"] == pytest.approx(part["predicted"], rel=0.1)
    assert judge(told / 10, found)["ratio"] == pytest.approx(10 * said["ratio"])
    mean[:, 3, 4] = 0
    assert len(relative_spread(mean, np.broadcast_to(sd, mean.shape))[0]) == 5999


def test_equal_runs_have_no_spread() -> None:
    """Where nothing varies there is no rank correlation, and no sd no ratio."""
    assert judge(np.full(20, 0.1), np.zeros(20))["spearman"] is None
    assert judge(np.zeros(20), np.zeros(20))["ratio"] is None


def test_one_run_cannot_be_compared(stores: dict[str, Path], tmp_path: Path) -> None:
    """Pairs need two seeds, a correlation three regions."""
    with pytest.raises(RunError, match="got 1 seeds, 1 sections and 2 regions"):
        run_restarts(tmp_path / "out", [stores["A"]], effort=Effort(repeats=1), n_regions=2)
