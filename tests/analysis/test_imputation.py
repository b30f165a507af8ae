"""Imputed counts are sums of pixels, divided by what they should be, under the condition that is wanted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from superst_monai.analysis.imputation import impute, write_imputation
from superst_monai.analysis.support_files import open_supports
from superst_monai.errors import AlignmentError, RunError
from superst_monai.inference.maps import Maps, open_maps
from superst_monai.inference.rates import Effects

StoreMaps = Callable[..., Path]
SHAPE = (20, 30)
SAMPLES = np.random.default_rng(0).integers(1, 64, (3, 2, *SHAPE)) / 256
TISSUE = np.tile(np.arange(30) < 22, (20, 1))
LOG_RATE = np.random.default_rng(1).normal(0, 1, (3, 2, 4))
EFFECT = np.random.default_rng(2).normal(0, 1, (3, 2, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def path(store_maps: StoreMaps) -> Path:
    """Maps of four genes under the first of two chemistries."""
    effects = Effects([("chemistry", "v1"), ("chemistry", "v2")], EFFECT, 0.5 * EFFECT)
    log_rate = LOG_RATE + EFFECT[:, :1]
    logit = 0.5 * EFFECT[:, 0]
    conditions = {"chemistry": "v1"}
    return store_maps(SAMPLES, log_rate, logit=logit, tissue=TISSUE, effects=effects, conditions=conditions)


@pytest.fixture
def maps(path: Path) -> Maps:
    """The maps."""
    return open_maps(path)


@pytest.mark.parametrize("per", ["support", "area", "scale"])
def test_values_are_those_of_plain_sums(maps: Maps, per: str) -> None:
    """Mean and sd over samples of each bin's sum over its pixels, divided by one, area or scale."""
    with open_supports(maps, "bins", bin_um=40) as bins:
        found = impute(maps, bins, ["g2", "g0"], per=per)  # type: ignore[arg-type]
    assert list(found.var_names) == ["g2", "g0"]
    assert found.uns["superst_monai"]["conditions"] == {"chemistry": "v1"}
    for row in (0, 7, 14):
        i, j = found.obs["array_row"].iloc[row], found.obs["array_col"].iloc[row]
        place = (slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4))
        inside = TISSUE[place]
        size = (SAMPLES * TISSUE)[(..., *place)].sum((2, 3))  # (N, K)
        area = inside.sum() * 100 / 1000
        divisor = {"support": np.ones(3), "area": np.full(3, area), "scale": size.sum(1)}[per]
        rates = np.exp(maps.log_rate + maps.logit[:, None])[:, :, [2, 0]]
        expected = np.einsum("nk,nkg->ng", size, rates) / divisor[:, None]
        np.testing.assert_allclose(found.X[row], expected.mean(0), rtol=1e-4)
        np.testing.assert_allclose(found.layers["sd"][row], expected.std(0), rtol=1e-3)
        assert found.obs["covered_um2"].iloc[row] == inside.sum() * 100
        assert found.obs["scale"].iloc[row] == pytest.approx(size.sum(1).mean(), rel=1e-5)


def test_bins_add_up_to_the_section(maps: Maps) -> None:
    """Expected counts of all bins, whatever their size, sum to those of the tissue."""
    whole = maps.sum_over(TISSUE.astype(int)).mean[0]
    for bin_um in (25.0, 70.0):
        with open_supports(maps, "bins", bin_um=bin_um) as bins:
            np.testing.assert_allclose(impute(maps, bins).X.sum(0), whole, rtol=1e-4)


def test_supports_without_prediction_have_no_density(maps: Maps, tmp_path: Path) -> None:
    """Off the tissue there are no counts, and no counts per area; if all supports are off it, they are refused."""
    features = []
    for left in (2, 24):
        ring = [[left, 2], [left + 4, 2], [left + 4, 6], [left, 6], [left, 2]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": {"name": f"at {left}"}, "geometry": geometry})
    file = tmp_path / "r.geojson"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    with open_supports(maps, "regions", file) as regions:
        assert (impute(maps, regions).X[1] == 0).all()
        assert np.isnan(impute(maps, regions, per="area").X[1]).all()
        assert np.isfinite(impute(maps, regions, per="area").X[0]).all()
    file.write_text(json.dumps(features[1]))
    with (
        open_supports(maps, "regions", file) as regions,
        pytest.raises(AlignmentError, match="at least one of the 1 regions must lie on tissue of S, but none does"),
    ):
        impute(maps, regions)


def test_covariates_are_set_and_removed(path: Path, tmp_path: Path) -> None:
    """Files hold the counts under the wanted condition, which differ by its effects alone, and say so."""
    found = {}
    for name, conditions in {"v1": {}, "v2": {"chemistry": "v2"}, "none": {"chemistry": None}}.items():
        written = write_imputation([path], tmp_path / name, to="bins", bin_um=100, conditions=conditions)
        assert [file.name for file in written] == ["S.h5ad", "S.csv"]
        found[name] = anndata.read_h5ad(written[0])
        pd.testing.assert_frame_equal(pd.read_csv(written[1], index_col="bin"), found[name].obs, check_index_type=False)
    sizes = (SAMPLES * TISSUE)[..., :10, :10].sum((2, 3))
    effect = {"v1": EFFECT[:, 0], "v2": EFFECT[:, 1], "none": 0 * EFFECT[:, 0]}
    for name, table in found.items():
        rates = np.exp(LOG_RATE + 1.5 * effect[name][:, None])  # of log rate and half as much of the logit
        np.testing.assert_allclose(table.X[0], np.einsum("nk,nkg->g", sizes, rates) / 3, rtol=1e-4)
    assert found["v2"].uns["superst_monai"]["conditions"] == {"chemistry": "v2"}
    assert list(found["none"].uns["superst_monai"]["removed"]) == ["chemistry"]


def test_what_cannot_be_imputed_is_refused(path: Path, maps: Maps, tmp_path: Path) -> None:
    """Unknown genes, conditions, and files that do not match the sections; nothing is written."""
    with open_supports(maps, "bins", bin_um=40) as bins, pytest.raises(RunError, match=r"not 'G0' .did you mean g0"):
        impute(maps, bins, ["G0"])
    with pytest.raises(RunError, match="chemistry=v9 is not among the levels v1, v2"):
        write_imputation([path], tmp_path / "out", to="bins", bin_um=40, conditions={"chemistry": "v9"})
    with pytest.raises(RunError, match="one file of regions for each section, in their order, got 2 for 1"):
        write_imputation([path], tmp_path / "out", to="regions", objects=["a.geojson", "b.geojson"])
    with pytest.raises(RunError, match="regions need --objects"):
        write_imputation([path], tmp_path / "out", to="regions")
    assert not (tmp_path / "out").exists()
