"""One slide of a cohort: whether it is to be predicted, and doing so as a whole or block by block."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from superst_monai.data.section import Section
from superst_monai.data.slide import Slide
from superst_monai.errors import RunError, SuperstError
from superst_monai.inference.canvas import open_source
from superst_monai.inference.cohort_manifest import Outcome
from superst_monai.inference.cohort_slides import CohortSlide
from superst_monai.inference.field_store import field_path, has_field
from superst_monai.inference.plan import Plan, plan_maps
from superst_monai.inference.posterior import Window
from superst_monai.inference.run import Run
from superst_monai.inference.slide_map import Show, draw_block, fill, split
from superst_monai.inference.unfinished import Unfinished

_LOG = logging.getLogger(__name__)
Block: TypeAlias = Sequence[Window]
"""Tiles of a slide that one process draws."""


@dataclass(frozen=True)
class Job:
    """A slide to predict, with all that a process elsewhere must know of it.

    Attributes:
        slide: the slide, under its absolute path.
        store: where its maps go.
        run: absolute path of the run.
        weights_sha256: of the run, so that a process that sees another one there says so.
        arguments: what the maps follow from, beside the content of slide and field.
        made_from: what the store on disk follows from; None if there is none or it is not known.
        overwrite: replace a store that follows from something else.
        owner: of `new_owner`, in whose name the store is filled: the process that leads the cohort.
        begun: its blocks are drawn, and to be kept whatever `overwrite` says.
    """

    slide: CohortSlide
    store: Path
    run: Path
    weights_sha256: str
    arguments: Mapping[str, Any]
    made_from: Mapping[str, Any] | None
    overwrite: bool
    owner: str
    begun: bool = False


def do(job: Job, run: Run, show: Show | None = None) -> Outcome:
    """Predict a slide unless its store is there; doing so twice leaves what doing so once does.

    Args:
        job: the slide.
        run: its run, opened.
        show: see `predict`.

    Raises:
        SuperstError: see `predict`.
        RunError: the store follows from something else, and must not be replaced.
    """
    with _opened(job, run) as slide:
        return slide.kept() or slide.whole(show)


def do_or_split(job: Job, run: Run) -> Outcome | list[Block]:
    """As `do`, but of a huge slide only lay out the store.

    Returns:
        What became of the slide, or blocks of its tiles, for `do_block`; once they are drawn, do the job again as
        `begun`.
    """
    with _opened(job, run) as slide:
        return slide.kept() or slide.blocks() or slide.whole()


def do_block(job: Job, run: Run, block: Block) -> None:
    """Draw a block of the tiles of a slide; those that are there already are left alone."""
    with open_source(job.slide.path, slide_mpp=job.slide.mpp) as source:
        draw_block(_plan(job, run, source, []), job.store, block, owner=job.owner)


@dataclass(eq=False)
class _Opened:
    """A slide of a cohort while it is open.

    Attributes:
        made_from: all that its maps follow from.
        started: when it was opened.
        notes: what the prediction told.
    """

    job: Job
    run: Run
    source: Section | Slide
    made_from: Mapping[str, Any]
    started: float
    notes: list[str] = field(default_factory=list)

    @cached_property
    def plan(self) -> Plan:
        """Of its maps."""
        return _plan(self.job, self.run, self.source, self.notes)

    @cached_property
    def _how(self) -> dict[str, Any]:
        """How to deal with what is on disk, as `split` and `fill` take it."""
        job = self.job
        resume = bool(Unfinished(job.store).done) and (job.begun or not job.overwrite)
        return {"overwrite": job.overwrite or job.store.exists(), "resume": resume, "owner": job.owner}

    def kept(self) -> Outcome | None:
        """Leave a store that is there alone, or refuse it."""
        job = self.job
        if job.made_from is None or not job.store.exists():
            return None
        other = differences(job.made_from, self.made_from)
        if not other:
            return Outcome(job.slide.name, "kept", self.made_from["sha256"], time.monotonic() - self.started)
        if not job.overwrite:
            raise RunError(
                f"{job.store.name} was predicted from something else: {'; '.join(other)}; --overwrite / "
                "overwrite=True predicts it anew."
            )
        return None

    def blocks(self) -> list[Block]:
        """Of a huge slide, laid out; see `split`."""
        return list(split(self.plan, self.job.store, **self._how))

    def whole(self, show: Show | None = None) -> Outcome:
        """Draw all tiles that are not there yet, and finish the store."""
        fill(self.plan, self.job.store, show=show, tell=self.notes.append, **self._how)
        return Outcome(
            self.job.slide.name,
            "done",
            self.made_from["sha256"],
            time.monotonic() - self.started,
            notes=self.notes,
            made_from=self.made_from,
        )


@contextmanager
def _opened(job: Job, run: Run) -> Iterator[_Opened]:
    """Open a slide, and hash what its maps follow from."""
    started, path = time.monotonic(), job.slide.path
    with open_source(path, slide_mpp=job.slide.mpp) as source:
        sha256 = str(source.properties["sha256"]) if path.is_file() and isinstance(source, Slide) else None
        sha256 = sha256 or content_sha256(path)
        fitted = None
        if job.arguments["use_field"] and not isinstance(source, Slide) and has_field(run, source):
            fitted = content_sha256(field_path(run, source))
        yield _Opened(job, run, source, {**job.arguments, "sha256": sha256, "field": fitted}, started)


def _plan(job: Job, run: Run, source: Section | Slide, notes: list[str]) -> Plan:
    """Plan the maps of an open slide."""
    given = {key: job.arguments[key] for key in ("samples", "seed", "use_field")}
    return plan_maps(
        run, source, conditions=job.slide.conditions, source_path=job.slide.path, tell=notes.append, **given
    )


def failed(job: Job, exc: BaseException, seconds: float) -> Outcome:
    """What became of a slide whose job ended with an error; a store that was laid out for nothing is removed."""
    under_way = Unfinished(job.store, job.owner)
    if under_way.is_own and not under_way.done:
        under_way.remove()
    said = " ".join([str(exc), *getattr(exc, "__notes__", [])])
    if not isinstance(exc, SuperstError):
        _LOG.error("%s failed unexpectedly", job.slide.path, exc_info=exc)
        said = f"unexpected {type(exc).__name__}: {said}; this is a fault of superst, please report it."
    try:
        sha256 = content_sha256(job.slide.path)
    except OSError:
        sha256 = None
    return Outcome(job.slide.name, "failed", sha256, seconds, error=said)


def content_sha256(path: Path) -> str:
    """Hash of a file's bytes; of a folder, that of the names and bytes of all files in it.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            if file != path:
                digest.update(f"{file.relative_to(path)}\n{file.stat().st_size}\n".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two sets of arguments, in words."""
    return [f"{key} was {before.get(key)!r}, got {value!r}" for key, value in now.items() if before.get(key) != value]
