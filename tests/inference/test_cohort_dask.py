"""Laws of a cohort on a Dask cluster: the stores are those of one process, whatever happens to a worker."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import KilledWorker, LocalCluster

from superst_monai.data.slide import Slide
from superst_monai.errors import RunError, SlideError
from superst_monai.inference import cohort_dask
from superst_monai.inference.cohort import predict_cohort
from superst_monai.inference.cohort_dask import OnDask
from superst_monai.inference.cohort_jobs import Job, content_sha256
from superst_monai.inference.cohort_manifest import Outcome
from superst_monai.inference.cohort_slides import CohortSlide
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.slide_map import predict


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """A cluster of one worker, a thread of this process."""
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as made:
        yield made


def jobs_of(tmp_path: Path, *names: str) -> list[Job]:
    """Jobs that no one does."""
    return [
        Job(CohortSlide(tmp_path / name), tmp_path / f"{name}.zarr", tmp_path, "0", {}, None, False, "host 0 me")
        for name in names
    ]


def ends(on: OnDask, run: Run, jobs: list[Job]) -> dict[str, tuple[str, str | None]]:
    """State and error of each job."""
    return {end.name: (end.state, end.error) for end in on(run, jobs, lambda _: None)}


def test_an_error_is_tried_again_and_then_reported(
    cluster: LocalCluster, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What passes at the second try is done; what never does is the outcome of its slide alone."""

    def do(job: Job) -> Outcome:  # travels by value: it can tell what it did by files only
        name = job.slide.name
        with job.slide.path.open("a") as tries:
            tries.write("x")
        if name == "bad" or (name == "late" and job.slide.path.read_text() == "x"):
            exc = SlideError(f"{name} is damaged.")
            exc.add_note("Take another.")
            raise exc
        return Outcome(name, "done", None, 1.0)

    monkeypatch.setattr(cohort_dask, "_do_on_worker", do)
    found = ends(OnDask(cluster.scheduler_address), run, jobs_of(tmp_path, "late", "bad", "good"))
    assert found == {
        "late": ("done", None),
        "bad": ("failed", "bad is damaged. Take another."),
        "good": ("done", None),
    }
    assert {name: len((tmp_path / name).read_text()) for name in found} == {"late": 2, "bad": 3, "good": 1}


def test_a_cluster_that_cannot_work_is_refused(run: Run, tmp_path: Path) -> None:
    """No scheduler, no address and no worker are said with what to start."""
    jobs = jobs_of(tmp_path, "a")
    for address in ("tcp://127.0.0.1:1", "nowhere://x"):
        with pytest.raises(RunError, match=rf"but {address} cannot be reached \(.*start one with `dask scheduler`"):
            ends(OnDask(address, patience_s=0.3), run, jobs)
    with LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty:
        address = empty.scheduler_address
        with pytest.raises(
            RunError, match=rf"none came in 0\.3 s; start some with `dask worker {address} --nthreads 1`"
        ):
            ends(OnDask(address, patience_s=0.3), run, jobs)


def test_a_scheduler_that_goes_away_ends_the_cohort(
    cluster: LocalCluster, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no fault of a slide: what is done is done, and the call says how to go on."""

    def do(job: Job) -> Outcome:
        if job.slide.name == "b":
            job.slide.path.touch()
            time.sleep(0.5)
        return Outcome(job.slide.name, "done", None, 1.0)

    monkeypatch.setattr(cohort_dask, "_do_on_worker", do)

    def close() -> None:
        while not (tmp_path / "b").exists():
            time.sleep(0.01)
        cluster.close()

    threading.Thread(target=close).start()
    seen: list[str] = []
    with pytest.raises(RunError, match=r"must stay until the last slide, but it is gone; .*goes on with what is left"):
        seen.extend(
            end.name
            for end in OnDask(cluster.scheduler_address, patience_s=0.5)(
                run, jobs_of(tmp_path, "a", "b", "c"), lambda _: None
            )
        )
    assert seen in ([], ["a"])


def test_a_slide_that_kills_workers_is_told_of() -> None:
    """A slide over which worker after worker dies fails with the advice to look for memory."""

    def result() -> Outcome:
        raise KilledWorker("task", SimpleNamespace(address="tcp://w:1"), 3)  # type: ignore[arg-type]

    released: list[int] = []
    future: Any = SimpleNamespace(result=result, release=lambda: released.append(1))
    error = OnDask("tcp://s:1")._result(future)
    assert isinstance(error, RunError)
    assert str(error).startswith("4 workers died over this slide, the last one tcp://w:1; look into their logs")
    assert released == [1]


def test_a_worker_loads_the_run_once_and_knows_it(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """One network for all slides; another run under the same path is refused."""
    path = make_run(tmp_path / "run")
    sha256 = load_run(path).weights_sha256
    assert cohort_dask._opened(path, sha256) is cohort_dask._opened(path, sha256)
    with pytest.raises(RunError, match=r"every worker must see the same run, but .* has other weights here"):
        cohort_dask._opened(path, "other")


HUGE = """
from superst_monai.inference import cohort_jobs, plan, slide_map
def plan_maps(*slide, source_path, **given):
    return plan.plan_maps(*slide, source_path=source_path, tile_px=16 if source_path.stem == "A" else 512, **given)
cohort_jobs.plan_maps, slide_map.BLOCK_TILES = plan_maps, 8
"""
# On a worker: slide A has 49 small tiles, and is huge.


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_does_all_that_can_be_done(
    run: Run, slides: dict[str, Path], single: dict[str, Path], tmp_path: Path
) -> None:
    """Two worker processes, one killed amid a huge slide, and a cut slide: five stores to the byte, and one error."""
    killed: list[int] = []
    out = tmp_path / "out"
    with Slide.open(slides["A"]) as slide:
        whole = predict(run, slide, tmp_path / "A.zarr", samples=2, tile_px=16, source_path=slides["A"])

    def kill() -> None:
        """End a process when two blocks of tiles are under way."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if len(list(out.glob("A.*.unfinished/tiles-*.txt"))) >= 2:
                killed.append(workers[0])
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    options: dict[str, Any] = {"threads_per_worker": 1, "processes": True, "dashboard_address": ":0", "preload": HUGE}
    with LocalCluster(n_workers=2, **options) as cluster:
        workers = [int(nanny.pid) for nanny in cluster.workers.values()]
        killer.start()
        on = OnDask(cluster.scheduler_address)
        found = predict_cohort(run.path, [CohortSlide(path) for path in slides.values()], out, samples=2, workers=on)
        killer.join()
    assert len(killed) == 1
    assert {end.name: end.state for end in found} == dict.fromkeys("ABCDE", "done") | {"bad": "failed"}
    assert "bad.tif" in (found[-1].error or "")
    for name, expected in {**single, "A": whole}.items():
        assert content_sha256(out / f"{name}.maps.zarr") == content_sha256(expected)
    rows = json.loads((out / "manifest.json").read_text())["slides"]
    assert {row["name"]: row["state"] for row in rows} == dict.fromkeys("ABCDE", "done") | {"bad": "failed"}
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(f"{n}.maps.zarr" for n in "ABCDE"), "manifest.json"]
    )
