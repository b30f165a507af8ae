"""A cohort on a Dask cluster: whole slides to workers that see the same files, with retries."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from distributed import Client, Future, KilledWorker, as_completed

from superst_monai.errors import RunError
from superst_monai.inference.cohort import Job, do, failed
from superst_monai.inference.cohort_manifest import Outcome
from superst_monai.inference.run import Run, load_run


@dataclass(frozen=True)
class OnDask:
    """Does the jobs of a cohort on an existing Dask cluster; see `Workers`.

    The workers must have superst_monai, and see run, slides and output folder under the same absolute paths: only
    paths and arguments travel. A worker loads the run once. As many slides are under way as there are workers, each
    worker being given one at a time as far as the scheduler can, whatever its threads; workers that join are used
    from the next finished slide on. A slide is the unit of work: its tiles are drawn by one worker.

    A slide whose worker dies goes to another and on from its finished tiles; one that raises an error is tried again.

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
        del run, progress  # the workers load it themselves; whole slides are all there is to tell
        waiting, running = deque(jobs), dict[str, tuple[Job, Future[Outcome], float]]()
        with self._client() as client:
            ended = as_completed(loop=client.loop)

            def top_up() -> None:
                """Hand out one job for each worker that may be free."""
                while waiting and len(running) < max(1, len(client.scheduler_info(n_workers=-1)["workers"])):
                    job = waiting.popleft()
                    future = client.submit(_do_on_worker, job, pure=False, retries=self.retries)
                    running[str(future.key)] = job, future, time.monotonic()
                    ended.add(future)

            top_up()
            for future in ended:
                job, _, started = running.pop(str(future.key))
                yield self._outcome(job, future, time.monotonic() - started)
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

    def _outcome(self, job: Job, future: Future[Outcome], seconds: float) -> Outcome:
        """What became of a job whose future is at its end."""
        try:
            return future.result()
        except KilledWorker as exc:
            died = RunError(
                f"{exc.allowed_failures + 1} workers died over this slide, the last one {exc.last_worker.address}; "
                "look into their logs: most often the memory did not suffice, so give them more, or one thread each."
            )
            return failed(job, died, seconds)
        except CancelledError as exc:
            raise RunError(
                f"the Dask scheduler {self.address} must stay until the last slide, but it is gone; start it "
                "again and give the same command, which goes on with what is left."
            ) from exc
        except Exception as exc:  # as in `here`
            return failed(job, exc, seconds)
        finally:
            future.release()  # else the slide would be done again if its worker goes


def _do_on_worker(job: Job) -> Outcome:
    """Do a job in the process of a worker."""
    return do(job, _opened(job.run, job.weights_sha256))


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
