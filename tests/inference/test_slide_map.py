"""Laws of prediction onto disk: what is stored, and that it is stored whole or not at all."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
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
from superst_monai.data.store import write_section
from superst_monai.errors import RunError, SlideError, StoreError
from superst_monai.inference.canvas import canvas_of
from superst_monai.inference.maps import open_maps
from superst_monai.inference.maps_store import open_store
from superst_monai.inference.maps_writer import MapsWriter
from superst_monai.inference.posterior import Window
from superst_monai.inference.rates import rate_moments
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.slide_map import predict
from superst_monai.transforms.tissue import find_tissue
from superst_monai.types import Region


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


def test_the_record_says_where_the_maps_come_from(maps_path: Path, run: Run, section: Section) -> None:
    """Run, its weights, source, slide, conditions and seed stand in the store."""
    record = open_maps(maps_path).record
    assert record["run"] == str(run.path.resolve())
    assert record["run_sha256"] == run.weights_sha256
    assert (record["source"], record["seed"], record["samples"]) == ("C2", 0, 4)
    assert record["slide"]["mpp_x"] == 0.5
    assert record["conditions"] == {"section": "C2"}
    assert record["drawn_conditions"] == {}
    assert (record["device"], record["precision"]) == (run.device.type, "float32")
    assert record["pixels_sha256"] == canvas_of(section, run.mpp, find_tissue).sha256


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


def contents(folder: Path) -> dict[str, bytes | None]:
    """Bytes of every file below a folder, None for folders."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def stop_in(monkeypatch: pytest.MonkeyPatch, fault: BaseException, nth: int) -> None:
    """Let writing the nth tile fail when its samples are on disk and its means are not."""
    whole, calls = MapsWriter.finish_tile, []

    def finish(self: MapsWriter, window: Window, *values: np.ndarray) -> None:
        calls.append(window)
        if len(calls) == nth:
            raise fault
        whole(self, window, *values)

    monkeypatch.setattr(MapsWriter, "finish_tile", finish)


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StoreError, "disk full"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_nothing_is_left_of_a_prediction_that_ends_before_its_first_tile(
    run: Run,
    section: Section,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    error: type[BaseException],
    says: str,
) -> None:
    """A full disk or an interruption before anything is finished leaves the folder as it was, with an older store."""
    old = predict(run, section, tmp_path / "a.zarr", samples=1, tile_px=64)
    before = contents(tmp_path)
    stop_in(monkeypatch, fault, 1)
    with pytest.raises(error, match=says):
        predict(run, section, old, samples=2, tile_px=64, overwrite=True)
    assert contents(tmp_path) == before
    assert open_maps(old).n_samples == 1


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            StoreError,
            "disk full.*, 2 finished tiles are kept in .*resume",
        ),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_a_prediction_that_ended_early_goes_on_to_the_same_bytes(
    run: Run,
    section: Section,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    error: type[BaseException],
    says: str,
) -> None:
    """What is finished is kept beside the name and said; with `resume` only the rest is drawn, and no byte differs."""
    options = {"samples": 2, "tile_px": 64, "source_path": "C2.zarr"}
    whole = predict(run, section, tmp_path / "whole" / "a.zarr", **options)
    out = tmp_path / "parts" / "a.zarr"
    with monkeypatch.context() as patch:
        stop_in(patch, fault, 3)
        with pytest.raises(error, match=says) as ended:
            predict(run, section, out, **options)
    left = "2 finished tiles are kept in "
    assert (left in str(ended.value)) or any(left in note for note in ended.value.__notes__)
    assert [path.name for path in out.parent.iterdir()] == ["a.zarr.unfinished"]
    scrap = out.parent / "a.zarr.unfinished" / "maps.zarr" / "images" / "scale" / "s0" / "c" / "0.123.partial"
    scrap.parent.mkdir(parents=True, exist_ok=True)
    scrap.write_bytes(b"cut")
    said: list[str] = []
    shown: list[float] = []
    predict(run, section, out, resume=True, tell=said.append, show=lambda share, _: shown.append(share), **options)
    assert "2 of 4 tiles are there already" in said
    assert shown == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert [path.name for path in out.parent.iterdir()] == ["a.zarr"]
    assert contents(out) == contents(whole)


def test_workers_do_not_change_a_byte(run: Run, section: Section, maps_path: Path, tmp_path: Path) -> None:
    """One reading thread or five, the store is the same file by file."""
    for workers in (1, 5):
        out = predict(run, section, tmp_path / f"{workers}.zarr", samples=4, tile_px=64, workers=workers)
        assert contents(out) == contents(maps_path)


def test_an_unfinished_prediction_is_neither_mixed_nor_lost(
    run: Run, section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other arguments are refused, all that differ are named; only --resume or --overwrite may touch what is there."""
    out = tmp_path / "a.zarr"
    with pytest.raises(StoreError, match=r"there is no .*a\.zarr\.unfinished; leave --resume out"):
        predict(run, section, out, resume=True)
    with monkeypatch.context() as patch:
        stop_in(patch, KeyboardInterrupt("stop"), 2)
        with pytest.raises(KeyboardInterrupt, match="stop"):
            predict(run, section, out, samples=2, tile_px=64)
    before = contents(tmp_path)
    with pytest.raises(
        StoreError, match=r"1 finished tile is kept in .* --resume .* to go on, or start anew with --overwrite"
    ):
        predict(run, section, out, samples=2, tile_px=64)
    with pytest.raises(RunError, match=r"follow from, but seed was 0, got 5; .*samples was 2, got 3"):
        predict(run, section, out, samples=3, seed=5, tile_px=64, resume=True)
    other = replace(section, tissue=np.roll(section.tissue, 1, axis=0))
    with pytest.raises(RunError, match=r"follow from, but pixels_sha256 was '.*', got '.*'; give the same"):
        predict(run, other, out, samples=2, tile_px=64, resume=True)
    assert {name: data for name, data in contents(tmp_path).items() if not name.endswith("owner")} == {
        name: data for name, data in before.items() if not name.endswith("owner")
    }
    assert open_maps(predict(run, section, out, samples=3, tile_px=64, overwrite=True)).n_samples == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_killed_prediction_resumes_to_the_same_bytes(
    run: Run, section: Section, maps_path: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle of a tile loses that tile and those in flight, and nothing of the result."""
    write_section(section, tmp_path / "C2.zarr")
    code = f"""
import os, signal
from superst_monai.data.store import read_section
from superst_monai.inference.run import load_run
from superst_monai.inference.slide_map import predict
def show(share, seconds):
    if share > 0.8:
        os.kill(os.getpid(), signal.SIGKILL)
predict(load_run({str(run.path)!r}), read_section({str(tmp_path / "C2.zarr")!r}), {str(tmp_path / "out.zarr")!r},
        samples=4, tile_px=64, show=show)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    said: list[str] = []
    out = predict(run, section, tmp_path / "out.zarr", samples=4, tile_px=64, resume=True, tell=said.append)
    assert said[-1] in {f"{n} of 4 tiles are there already" for n in (2, 3)}
    assert contents(out) == contents(maps_path)


def test_an_unreadable_tile_is_an_error_that_keeps_the_others(
    run: Run, section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is the reader's own, says where, and what was kept; a mended slide is predicted to its end."""
    slide = Slide.from_array(section.image.copy(), mpp=4.0, name="slide")
    options = {"samples": 1, "tile_px": 64, "find_tissue": lambda image, _: image[..., 1] < 200, "workers": 1}
    read = Slide.read

    def damaged(self: Slide, region: Region, mpp: float) -> np.ndarray:
        if region.y_px0 > 20 and mpp == 4.0:
            raise SlideError("slide.tif is damaged.")
        return read(self, region, mpp)

    with monkeypatch.context() as patch:
        patch.setattr(Slide, "read", damaged)
        with pytest.raises(SlideError, match=r"slide\.tif is damaged\.") as caught:
            predict(run, slide, tmp_path / "a.zarr", **options)
    where, kept = caught.value.__notes__
    assert where == "It was read for rows 64 to 128, columns 0 to 64 of the map."
    assert kept.startswith("2 finished tiles are kept in ")
    assert open_maps(predict(run, slide, tmp_path / "a.zarr", resume=True, **options)).gene("Mbp")[0][60, 70] > 0


def test_an_existing_store_is_kept_unless_told_otherwise(run: Run, section: Section, tmp_path: Path) -> None:
    """A second prediction under the same name is refused, or replaces the first."""
    path = predict(run, section, tmp_path / "a.zarr", samples=1)
    with pytest.raises(StoreError, match="--overwrite"):
        predict(run, section, path, samples=2)
    assert open_maps(predict(run, section, path, samples=2, overwrite=True)).n_samples == 2


@pytest.mark.parametrize("tile_px", [0, 6, -4])
def test_tiles_off_the_grid_of_the_deepest_level_are_refused(run: Run, section: Section, tile_px: int) -> None:
    """A tile's side is a multiple of 2^(depth - 1)."""
    with pytest.raises(RunError, match=f"multiple of 4 .* depth 3, got {tile_px}; .*512; workers must be .* 1, got 0"):
        predict(run, section, "never.zarr", tile_px=tile_px, workers=0)


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


@pytest.mark.gpu
def test_a_gpu_predicts_what_the_cpu_predicts(run: Run, section: Section, maps_path: Path, tmp_path: Path) -> None:
    """Chosen where there is one, in mixed precision: the maps are those of the CPU to a few hundredths."""
    there = load_run(run.path)
    assert there.device.type == "cuda"
    maps = open_maps(predict(there, section, tmp_path / "a.zarr", samples=4, tile_px=64))
    assert maps.record["device"] == "cuda"
    found, expected = maps.gene("Mbp")[0], open_maps(maps_path).gene("Mbp")[0]
    inside = expected > 0
    assert np.abs(found[inside] / expected[inside] - 1).mean() < 0.03


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
