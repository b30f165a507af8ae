"""A cohort on a Dask cluster: slides, and blocks of huge ones, to workers that see the same files, with retries."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from distributed import Client, Future, KilledWorker, as_completed

from superst_monai.errors import RunError
from superst_monai.inference.cohort_jobs import Block, Job, do_block, do_or_split, failed
from superst_monai.inference.cohort_manifest import Outcome
from superst_monai.inference.run import Run, load_run


@dataclass(frozen=True)
class OnDask:
    """Does the jobs of a cohort on an existing Dask cluster; see `Workers`.

    The workers must have superst_monai, and see run, slides and output folder under the same absolute paths: only
    paths and arguments travel. A worker loads the run once. As many slides are under way as there are workers, each
    worker being given one at a time as far as the scheduler can, whatever its threads; workers that join are used
    from the next finished task on. A slide is the unit of work, but a huge one (`slide_map.BLOCK_TILES`) is laid out by
    one worker; then blocks of its tiles are the units, and one worker finishes it when all are drawn.

    What a worker that dies was given goes to another and on from its finished tiles; what raises an error is tried
    again. A block that never succeeds does not stop the others; its error is that of the slide.

    Args:
        address: of the scheduler, such as `tcp://host:8786`.
        retries: further tries after an error.
        patience_s: how long to wait for the scheduler, and for a first worker [s].
    """

    address: str
    retries: int = 2
    patience_s: float = 30.0

    def __call__(self, run: Run, jobs: Sequence[Job], progress: Callable[[float], None]) -> Iterator[Outcome]:
        """Do jobs and yield what became of each, as they end."""
        del run  # the workers load it themselves
        slides = [_OnCluster(job) for job in jobs]
        waiting = deque[tuple[_OnCluster, Block | None]]((slide, None) for slide in slides)
        running = dict[str, _OnCluster]()
        with self._client() as client:
            ended = as_completed(loop=client.loop)

            def top_up() -> None:
                """Hand out one task for each worker that may be free."""
                while waiting and len(running) < max(1, len(client.scheduler_info(n_workers=-1)["workers"])):
                    slide, block = waiting.popleft()
                    task = (_do_on_worker, slide.job) if block is None else (_draw_on_worker, slide.job, block)
                    future = client.submit(*task, pure=False, retries=self.retries)
                    running[str(future.key)] = slide
                    slide.started = slide.started or time.monotonic()
                    ended.add(future)

            top_up()
            for future in ended:
                slide = running.pop(str(future.key))
                found = slide.after(self._result(future))
                if isinstance(found, Outcome):
                    yield found
                else:
                    waiting.extendleft((slide, block) for block in reversed(found))
                progress(sum(slide.share for slide in slides) / len(slides))
                top_up()

    @contextmanager
    def _client(self) -> Iterator[Client]:
        """Connect to a cluster that has a worker; what is still under way at the end is given up."""
        try:
            client = Client(self.address, timeout=self.patience_s, set_as_default=False)
        except (OSError, ValueError) as exc:
            raise RunError(
                f"--scheduler must be the address of a Dask scheduler, but {self.address} cannot be reached ({exc}); "
                "start one with `dask scheduler`, and pass the address that it names."
            ) from exc
        with client:
            try:
                client.wait_for_workers(1, timeout=self.patience_s)
            except TimeoutError as exc:
                raise RunError(
                    f"the Dask scheduler {self.address} must have a worker, but none came in {self.patience_s:g} s; "
                    f"start some with `dask worker {self.address} --nthreads 1`."
                ) from exc
            yield client

    def _result(self, future: Future[Any]) -> Any:
        """What a task gave, or the error that it ended with."""
        try:
            return future.result()
        except KilledWorker as exc:
            return RunError(
                f"{exc.allowed_failures + 1} workers died over this slide, the last one {exc.last_worker.address}; "
                "look into their logs: most often the memory did not suffice, so give them more, or one thread each."
            )
        except CancelledError as exc:
            raise RunError(
                f"the Dask scheduler {self.address} must stay until the last slide, but it is gone; start it "
                "again and give the same command, which goes on with what is left."
            ) from exc
        except Exception as exc:  # as in `here`
            return exc
        finally:
            future.release()  # else the task would be done again if its worker goes


@dataclass(eq=False)
class _OnCluster:
    """A slide of which tasks are waiting or under way.

    Attributes:
        job: the slide.
        started: when its first task was handed out.
        blocks: it was divided into; 0 if it was not.
        left: tasks that have not ended.
        errors: of those that have.
        ended: whether it is known what became of it.
    """

    job: Job
    started: float | None = None
    blocks: int = 0
    left: int = 1
    errors: list[Exception] = field(default_factory=list)
    ended: bool = False

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1."""
        return 1.0 if self.ended else (1 - self.left / self.blocks if self.blocks else 0.0)

    def after(self, found: Outcome | list[Block] | Exception | None) -> Outcome | Sequence[Block | None]:
        """Take account of the end of a task.

        Args:
            found: what the task gave, None from a block; or its error.

        Returns:
            What became of the slide, or the tasks that can be done now: blocks, or None for the job itself.
        """
        self.left -= 1
        seconds = time.monotonic() - (self.started or time.monotonic())
        if isinstance(found, Outcome):
            self.ended = True
            return replace(found, seconds=seconds)
        if isinstance(found, list):
            self.blocks = self.left = len(found)
            return found
        if found is not None:
            self.errors.append(found)
        if self.left:
            return []
        if self.errors:
            self.ended = True
            return failed(self.job, self.errors[0], seconds)
        self.job, self.left = replace(self.job, begun=True), 1
        return [None]


def _do_on_worker(job: Job) -> Outcome | list[Block]:
    """Do a job in the process of a worker, or lay it out."""
    return do_or_split(job, _opened(job.run, job.weights_sha256))


def _draw_on_worker(job: Job, block: Block) -> None:
    """Draw a block in the process of a worker."""
    do_block(job, _opened(job.run, job.weights_sha256), block)


@lru_cache(maxsize=1)
def _opened(path: Path, weights_sha256: str) -> Run:
    """The run at a path, loaded once as long as its weights are the same."""
    run = load_run(path)
    if run.weights_sha256 != weights_sha256:
        raise RunError(
            f"every worker must see the same run, but {path} has other weights here; share its folder with all "
            "workers under one path, and let a training of it end first."
        )
    return run
