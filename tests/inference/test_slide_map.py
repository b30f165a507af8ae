"""Laws of prediction onto disk: what is stored, and that it is stored whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from spatialdata import get_extent, read_zarr

from superst_monai.data.section import Section
from superst_monai.data.slide import Slide
from superst_monai.errors import RunError, StoreError
from superst_monai.inference import slide_map
from superst_monai.inference.maps import open_maps
from superst_monai.inference.maps_store import MapsWriter, open_store
from superst_monai.inference.rates import rate_moments
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.slide_map import predict


def test_the_store_is_spatialdata(maps_path: Path, run: Run, section: Section) -> None:
    """Anything that opens SpatialData finds activity, scale, tissue and metagenes, in micrometres."""
    sdata = read_zarr(maps_path)
    assert set(sdata.images) == {"activity", "scale"}
    assert sdata.images["activity"].dtype == sdata.images["scale"].dtype == np.float32
    np.testing.assert_array_equal(sdata.labels["tissue"].to_numpy().astype(bool), section.tissue)
    extent = get_extent(sdata["activity"], coordinate_system="global")
    assert (extent["x"], extent["y"]) == ((0.0, 840.0), (0.0, 600.0))
    table = sdata.tables["metagenes"]
    mean, sd = rate_moments(run.network, {"section": "C2"})
    np.testing.assert_allclose(table.X, mean)
    np.testing.assert_allclose(table.layers["sd"], sd)
    assert list(table.var_names) == run.genes
    assert table.obs["active"].all()
    assert list(table.obs_names) == ["metagene_1", "metagene_2", "metagene_3", "metagene_4"]


def test_the_stored_means_are_those_of_the_samples(maps_path: Path) -> None:
    """Activity is the mean of the posterior samples, scale its sum over metagenes; both to the rounding of float16."""
    group, meta = open_store(maps_path)
    samples = np.asarray(group["posterior/activity"]).astype(np.float64) / meta["multiplier"]
    activity = np.asarray(group["images/activity/s0"])
    np.testing.assert_allclose(activity, samples.mean(axis=0), rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(np.asarray(group["images/scale/s0"])[0], activity.sum(axis=0), rtol=1e-5)
    assert (activity.sum(axis=0) > 0).sum() > 7000
    assert np.asarray(group["posterior/computed"]).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_the_record_says_where_the_maps_come_from(maps_path: Path, run: Run) -> None:
    """Run, its weights, source, slide, conditions and seed stand in the store."""
    record = open_maps(maps_path).record
    assert record["run"] == str(run.path.resolve())
    assert record["run_sha256"] == run.weights_sha256
    assert (record["source"], record["seed"], record["samples"]) == ("C2", 0, 4)
    assert record["slide"]["mpp_x"] == 0.5
    assert record["conditions"] == {"section": "C2"}
    assert record["drawn_conditions"] == {}


def test_tiling_and_repetition_do_not_matter(run: Run, section: Section, maps_path: Path, tmp_path: Path) -> None:
    """One seed gives one map, whatever the tiles; another seed gives another."""
    first = open_maps(maps_path).gene("Mbp")[0]
    again = open_maps(predict(run, section, tmp_path / "a.zarr", samples=4, tile_px=128)).gene("Mbp")[0]
    np.testing.assert_allclose(again, first, rtol=2e-3)
    other = open_maps(predict(run, section, tmp_path / "b.zarr", samples=4, tile_px=64, seed=1)).gene("Mbp")[0]
    assert not np.allclose(other, first, rtol=0.02)


def test_a_slide_is_predicted_with_an_unknown_condition(run: Run, section: Section, tmp_path: Path) -> None:
    """A slide that says nothing gets null for the condition, and the drawn levels are told."""
    slide = Slide.from_array(section.image.copy(), mpp=4.0, name="slide")
    path = predict(run, slide, tmp_path / "slide.zarr", samples=3, find_tissue=lambda image, _: image[..., 1] < 200)
    maps = open_maps(path)
    assert maps.record["conditions"] == {"section": None}
    assert len(maps.record["drawn_conditions"]["section"]) == 3
    assert maps.shape == section.tissue.shape
    assert maps.gene("ACTB")[0][60, 70] > 0


def test_progress_goes_from_nothing_to_all(run: Run, section: Section, tmp_path: Path) -> None:
    """The share done rises after each sample of each tile, to 1."""
    seen: list[tuple[float, float]] = []
    predict(run, section, tmp_path / "a.zarr", samples=2, tile_px=64, show=lambda *now: seen.append(now))
    assert [share for share, _ in seen] == pytest.approx(np.arange(1, 9) / 8)
    assert all(a[1] <= b[1] for a, b in pairwise(seen))


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StoreError, "disk full"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_nothing_is_left_of_a_prediction_that_ends_early(
    run: Run,
    section: Section,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    error: type[BaseException],
    says: str,
) -> None:
    """A full disk or an interruption in the middle leaves the folder as it was, an older store included."""
    old = predict(run, section, tmp_path / "a.zarr", samples=1, tile_px=64)
    before = sorted(str(file) for file in tmp_path.rglob("*"))
    whole = MapsWriter.write

    def write(self: MapsWriter, window: slide_map.Window, samples: np.ndarray) -> None:
        if window.col:
            raise fault
        whole(self, window, samples)

    monkeypatch.setattr(MapsWriter, "write", write)
    with pytest.raises(error, match=says):
        predict(run, section, old, samples=2, tile_px=64, overwrite=True)
    assert sorted(str(file) for file in tmp_path.rglob("*")) == before
    assert open_maps(old).n_samples == 1


def test_an_existing_store_is_kept_unless_told_otherwise(run: Run, section: Section, tmp_path: Path) -> None:
    """A second prediction under the same name is refused, or replaces the first."""
    path = predict(run, section, tmp_path / "a.zarr", samples=1)
    with pytest.raises(StoreError, match="--overwrite"):
        predict(run, section, path, samples=2)
    assert open_maps(predict(run, section, path, samples=2, overwrite=True)).n_samples == 2


@pytest.mark.parametrize("tile_px", [0, 6, -4])
def test_tiles_off_the_grid_of_the_deepest_level_are_refused(run: Run, section: Section, tile_px: int) -> None:
    """A tile's side is a multiple of 2^(depth - 1)."""
    with pytest.raises(RunError, match=f"positive multiple of 4 for a network of depth 3, got {tile_px}; .*256"):
        predict(run, section, "never.zarr", tile_px=tile_px)


def test_a_network_that_diverged_is_refused(run: Run, section: Section, tmp_path: Path) -> None:
    """A pixel larger than what float16 can hold is no result, and nothing is written."""
    head = run.network.generative.expression_decoder.scale
    saved = head.bias.detach().clone()
    with torch.no_grad():
        head.bias.fill_(1e4)
    try:
        with pytest.raises(RunError, match=r"below that of 256 mean spots, got .* at row 0, column 0"):
            predict(run, section, tmp_path / "a.zarr", samples=1)
    finally:
        with torch.no_grad():
            head.bias.copy_(saved)
    assert list(tmp_path.iterdir()) == []


def test_inactive_metagenes_have_no_activity(tmp_path: Path, make_run: Callable, section: Section) -> None:
    """A dropped metagene is zero in every sample and marked in the table."""
    path = make_run(tmp_path / "run")
    state = torch.load(path / "models" / "model.pt", weights_only=True)
    state["generative.active"][2] = False
    torch.save(state, path / "models" / "model.pt")
    out = predict(load_run(path), replace(section, name="x"), tmp_path / "a.zarr", samples=2)
    group = zarr.open_group(out, mode="r", use_consolidated=False)
    assert not np.asarray(group["posterior/activity"])[:, 2].any()
    assert np.asarray(group["tables/metagenes/obs/active"]).tolist() == [True, True, False, True]
