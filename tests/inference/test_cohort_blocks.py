"""Laws of a slide that several processes draw block by block: the store is that of one process, whoever drew what."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster

from superst_monai.data.slide import Slide
from superst_monai.errors import RunError, SlideError, StoreError
from superst_monai.inference import cohort_jobs, slide_map
from superst_monai.inference.cohort import predict_cohort
from superst_monai.inference.cohort_dask import OnDask
from superst_monai.inference.cohort_manifest import Outcome
from superst_monai.inference.cohort_slides import CohortSlide
from superst_monai.inference.maps import open_maps
from superst_monai.inference.maps_writer import MapsWriter
from superst_monai.inference.plan import Plan, plan_maps
from superst_monai.inference.posterior import Window
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.slide_map import draw_block, fill, predict, split
from superst_monai.inference.unfinished import Unfinished, new_owner
from superst_monai.model.domain import Domain

TILE_PX, BLOCK_TILES, N_TILES = 16, 8, 49
ARGUMENTS: dict[str, Any] = {"samples": 2, "tile_px": TILE_PX}


def contents(folder: Path) -> dict[str, bytes | None]:
    """Bytes of every file below a folder, None for folders."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a slide of 49 small tiles be huge in this process."""
    monkeypatch.setattr(slide_map, "BLOCK_TILES", BLOCK_TILES)
    monkeypatch.setattr(cohort_jobs, "plan_maps", partial(plan_maps, tile_px=TILE_PX))


@pytest.fixture(scope="module")
def guarded(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that knows a domain, so that its maps have what is known only at the end."""
    run = load_run(make_run(tmp_path_factory.mktemp("guarded") / "run"))
    domain = Domain([0.0] * 4, np.eye(4).tolist(), 2.0, 9)
    (run.path / "domain.json").write_text(domain.to_json(run.weights_sha256))
    return run


@pytest.fixture(scope="module")
def whole(guarded: Run, slides: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The maps of slide A, drawn by one process."""
    with Slide.open(slides["A"]) as slide:
        out = tmp_path_factory.mktemp("whole") / "A.zarr"
        return predict(guarded, slide, out, source_path=slides["A"], **ARGUMENTS)


@pytest.fixture
def plan(guarded: Run, slides: dict[str, Path], small: None) -> Any:
    """Of the maps of slide A."""
    with Slide.open(slides["A"]) as slide:
        yield plan_maps(guarded, slide, source_path=slides["A"], **ARGUMENTS)


def fail_in(monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int], fault: BaseException, times: int) -> Counter[Any]:
    """Let a tile fail so many times when its samples are on disk; counts the ends of each tile's drawing."""
    finish, calls = MapsWriter.finish_tile, Counter[Any]()

    def faulty(self: MapsWriter, window: Window, *values: Any) -> None:
        calls[window[:2]] += 1
        if window[:2] == tile and calls[tile] <= times:
            raise fault
        finish(self, window, *values)

    monkeypatch.setattr(MapsWriter, "finish_tile", faulty)
    return calls


def on_threads(run: Run, path: Path, out: Path, **options: Any) -> list[Outcome]:
    """Predict a slide on a cluster of two workers, threads of this process."""
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
        on = OnDask(cluster.scheduler_address)
        return predict_cohort(run.path, [CohortSlide(path)], out, samples=2, workers=on, **options)


def test_blocks_on_two_workers_make_the_store_of_one_process(
    guarded: Run, slides: dict[str, Path], whole: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both workers draw at the same time; a block that fails is tried again and draws no finished tile again."""
    drawn: list[tuple[str, int, float, float]] = []

    def draw(plan: Plan, out: Path, tiles: list[Window], *, owner: str) -> None:
        start = time.monotonic()
        draw_block(plan, out, tiles, owner=owner)
        drawn.append((threading.current_thread().name, len(tiles), start, time.monotonic()))

    monkeypatch.setattr(cohort_jobs, "draw_block", draw)
    calls = fail_in(monkeypatch, (48, 48), SlideError("A.tif is damaged."), 1)
    shown: list[float] = []
    (end,) = on_threads(guarded, slides["A"], tmp_path / "out", show=lambda share, _: shown.append(share))
    assert (end.state, end.error) == ("done", None)
    assert contents(tmp_path / "out" / "A.maps.zarr") == contents(whole)
    assert open_maps(whole).record["domain"]["blocks"] > 100
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["A.maps.zarr", "manifest.json"]
    assert sorted(n for _, n, *_ in drawn) == [1, *[BLOCK_TILES] * 6]
    first, other = ([span for name, _, *span in drawn if name == thread] for thread in {name for name, *_ in drawn})
    assert any(a[0] < b[1] and b[0] < a[1] for a in first for b in other)
    assert len(calls) == N_TILES
    assert {tile: n for tile, n in calls.items() if n > 1} == {(48, 48): 2}
    assert shown == sorted(shown)
    assert shown[-1] == 1.0
    assert sum(0 < share < 1 for share in shown) > 3


def test_a_bad_tile_stops_no_other_block_and_one_process_can_go_on(
    guarded: Run, slides: dict[str, Path], whole: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slide fails with its error; what is left is its block from there on, here or on the cluster again."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        calls = fail_in(patch, (0, 32), SlideError("A.tif is damaged."), 9)
        (end,) = on_threads(guarded, slides["A"], out)
    assert end.state == "failed"
    assert (end.error or "").startswith("A.tif is damaged. ")
    assert "kept in " in (end.error or "")
    assert calls[0, 32] == 3
    left = Unfinished(out / "A.maps.zarr")
    n_done = len(left.done)
    assert n_done == N_TILES - BLOCK_TILES + 2  # its block ends at the third tile
    with Slide.open(slides["A"]) as slide:  # under another name, as if this process were not the leader
        predict(guarded, slide, out / "A.maps.zarr", source_path=slides["A"], resume=True, **ARGUMENTS)
    assert contents(out / "A.maps.zarr") == contents(whole)
    assert [path for path in out.iterdir() if "unfinished" in path.name] == []


def test_blocks_go_on_with_what_one_process_left(
    guarded: Run, slides: dict[str, Path], whole: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tiles are in no block; if all blocks fail before a tile ends, nothing is left behind."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_in(patch, (32, 0), KeyboardInterrupt("stop"), 1)
        with pytest.raises(KeyboardInterrupt, match="stop"):
            predict_cohort(guarded.path, [CohortSlide(slides["A"])], out, samples=2)
    n_done = len(Unfinished(out / "A.maps.zarr").done)
    assert n_done == 14
    calls = fail_in(monkeypatch, (0, 0), KeyboardInterrupt("never"), 0)
    (end,) = on_threads(guarded, slides["A"], out)
    assert end.state == "done"
    assert set(calls.values()) == {1}
    assert len(calls) == N_TILES - n_done
    assert contents(out / "A.maps.zarr") == contents(whole)

    def broken(*_: Any) -> None:
        raise SlideError("A.tif is gone.")

    monkeypatch.setattr(MapsWriter, "finish_tile", broken)
    (end,) = on_threads(guarded, slides["A"], tmp_path / "none")
    assert end.error == "A.tif is gone."
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["manifest.json"]


def test_a_store_under_way_belongs_to_one_owner(
    plan: Plan, guarded: Run, slides: dict[str, Path], whole: Path, tmp_path: Path
) -> None:
    """A second prediction waits while the leader lives; blocks of a leader that lost the store write no more."""
    out = tmp_path / "A.zarr"
    leader = f"{socket.gethostname()} {os.getppid()} led"
    blocks = split(plan, out, overwrite=False, resume=False, owner=leader)
    assert [tile for block in blocks for tile in block] == list(plan.tiles)
    draw_block(plan, out, blocks[0], owner=leader)
    for resume in (True, False):
        with pytest.raises(StoreError, match=f"is being filled by process {os.getppid()}; wait for it"):
            fill(plan, out, overwrite=True, resume=resume)
    with Slide.open(slides["A"]) as slide:
        other = plan_maps(guarded, slide, source_path=slides["A"], **ARGUMENTS | {"seed": 3})
    with pytest.raises(RunError, match=r"follow from, but seed was 0, got 3"):
        draw_block(other, out, blocks[1], owner=leader)
    (out.parent / "A.zarr.unfinished" / "owner").write_text("elsewhere 7 died\n")
    heir = new_owner()
    blocks_left = split(plan, out, overwrite=False, resume=True, owner=heir)
    assert blocks_left == blocks[1:]
    before = contents(tmp_path)
    with pytest.raises(StoreError, match="belong to this prediction while it is filled, but another one has taken"):
        draw_block(plan, out, blocks[1], owner=leader)
    assert contents(tmp_path) == before
    for block in blocks_left:
        draw_block(plan, out, block, owner=heir)
    fill(plan, out, resume=True, owner=heir)
    assert contents(out) == contents(whole)
    with pytest.raises(StoreError, match="or has finished it or removed it"):
        draw_block(plan, out, blocks[1], owner=heir)
    assert [path.name for path in tmp_path.iterdir()] == ["A.zarr"]


def test_who_loses_the_store_amid_a_tile_stops(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tile in flight is in no account, and the folder of the new owner stays."""
    out, finish = tmp_path / "A.zarr", MapsWriter.finish_tile

    def robbed(self: MapsWriter, *values: Any) -> None:
        (tmp_path / "A.zarr.unfinished" / "owner").write_text("elsewhere 7 robber\n")
        finish(self, *values)

    monkeypatch.setattr(MapsWriter, "finish_tile", robbed)
    with pytest.raises(StoreError, match="another one has taken it over"):
        fill(plan, out)
    left = Unfinished(out)
    assert left.store.is_dir()
    assert left.done == set()


def test_a_slide_that_is_not_huge_is_not_split(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one of few tiles, nor one of which few are left; nothing is written."""
    monkeypatch.setattr(slide_map, "BLOCK_TILES", N_TILES)
    assert split(plan, tmp_path / "A.zarr", overwrite=False, resume=False, owner="host 0 me") == []
    assert list(tmp_path.iterdir()) == []
