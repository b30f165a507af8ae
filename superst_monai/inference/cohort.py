"""A cohort: many slides predicted with one run, so that none stops the others and none is done twice."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from superst_monai.errors import RunError, StoreError
from superst_monai.inference.cohort_jobs import Job, content_sha256, differences, do, failed
from superst_monai.inference.cohort_manifest import Manifest, Outcome
from superst_monai.inference.cohort_slides import SUFFIX, CohortSlide, require_slides, some_of
from superst_monai.inference.field_store import load_prior
from superst_monai.inference.plan import SAMPLES, SEED
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.slide_map import Show
from superst_monai.inference.unfinished import new_owner

_LOG = logging.getLogger(__name__)
_RUN_FILES = ("genes.csv", "domain.json", "calibration.json", "colours.json")
"""Of a run folder, beside its weights and fields: what maps depend on and may change after the training."""


Workers = Callable[[Run, Sequence[Job], Callable[[float], None]], Iterator[Outcome]]
"""Does jobs in any order and yields what became of each; may tell the share of all that is done [0 to 1]."""


def predict_cohort(
    run_dir: str | Path,
    slides: Sequence[CohortSlide],
    out: str | Path,
    *,
    samples: int = SAMPLES,
    seed: int = SEED,
    use_field: bool = True,
    overwrite: bool = False,
    workers: Workers | None = None,
    show: Show | None = None,
    tell: Callable[[str], None] = _LOG.warning,
) -> list[Outcome]:
    """Predict slides into a folder, `NAME.maps.zarr` each, and keep its `manifest.json`.

    Each store is that of `predict`. A slide whose store is there, from the same run, arguments and content, is left
    alone; one that was broken off goes on where it was; one that failed is tried again. So the same call can be given
    until all are done. Sample n is one draw of the gene parameters for all slides.

    Args:
        run_dir: folder written by `superst train`.
        slides: the cohort.
        out: folder.
        samples: N.
        seed: of all draws, of each slide.
        use_field: see `predict`.
        overwrite: predict slides anew whose store follows from something else; drop unfinished stores.
        workers: who does it; one slide after the other in this process if not given.
        show: called with the share of the cohort that is done and the seconds spent.
        tell: receives what a user should know of a slide, its name in front.

    Returns:
        What became of each slide, in their order.

    Raises:
        RunError: slides are missing or cannot be told apart, conditions are not of the run, or stores that are there
            follow from other arguments; all faults. What is wrong with a single slide is in its outcome.
        StoreError: a store is there that is not of this cohort, or the manifest cannot be read or written.
    """
    run, out, started = load_run(run_dir), Path(out).resolve(), time.monotonic()
    require_slides(run, slides)
    manifest, owner = Manifest(out), new_owner()
    common = {"run_state": run_state(run), "samples": samples, "seed": seed, "use_field": use_field}
    jobs = [
        Job(
            slide=CohortSlide(slide.path.absolute(), slide.name, slide.mpp, dict(slide.conditions)),
            store=out / f"{slide.name}{SUFFIX}",
            run=run.path.resolve(),
            weights_sha256=run.weights_sha256,
            arguments={**common, "mpp": slide.mpp, "conditions": dict(slide.conditions)},
            made_from=manifest.made_from(slide.name),
            overwrite=overwrite,
            owner=owner,
        )
        for slide in slides
    ]
    if not overwrite:
        _require_same(jobs, manifest)

    found, most = dict[str, Outcome](), 0.0

    def progress(share: float) -> None:
        nonlocal most
        most = max(most, share)  # slides that are done say nothing of those under way
        if show is not None:
            show(most, time.monotonic() - started)

    manifest.begin(slides)
    for outcome in (workers or here)(run, jobs, progress):
        found[outcome.name] = outcome
        manifest.add(outcome)
        progress(len(found) / len(jobs))
        for note in outcome.notes:
            tell(f"{outcome.name}: {note}")
    return [found[slide.name] for slide in slides]


def here(run: Run, jobs: Sequence[Job], progress: Callable[[float], None]) -> Iterator[Outcome]:
    """Do jobs in this process, one after the other."""
    for i, job in enumerate(jobs):
        before = time.monotonic()

        def show(share: float, _: float, i: int = i) -> None:
            progress((i + share) / len(jobs))

        try:
            yield do(job, run, show)
        except Exception as exc:  # one bad slide, whatever is wrong with it, must not stop the others
            yield failed(job, exc, time.monotonic() - before)


def run_state(run: Run) -> str:
    """Hash of all in a run that its maps of any slide follow from: weights, genes, calibration, and prior of fields."""
    digest = hashlib.sha256(run.weights_sha256.encode())
    for file in (run.path / name for name in _RUN_FILES):
        digest.update(f"{file.name} {content_sha256(file) if file.is_file() else None}\n".encode())
    prior = load_prior(run)
    digest.update(b"" if prior is None else prior.log_precision.tobytes() + str(prior.spacing_um).encode())
    return digest.hexdigest()


def _require_same(jobs: Sequence[Job], manifest: Manifest) -> None:
    """Refuse stores that are there but were made otherwise, as far as it shows without reading the slides."""
    strange = [job.store.name for job in jobs if job.store.exists() and job.slide.name not in manifest.rows]
    if strange:
        raise StoreError(
            f"maps must not exist yet, or be in {manifest.path}, but {some_of(strange)} are there and are not; choose "
            "another --out, or pass --overwrite / overwrite=True."
        )
    changed: dict[str, list[str]] = {}
    for job in jobs:
        if job.made_from is not None and job.store.exists():
            for fault in differences({key: job.made_from.get(key) for key in job.arguments}, job.arguments):
                changed.setdefault(fault, []).append(job.slide.name)
    if changed:
        said = "; ".join(f"{fault} ({some_of(names)})" for fault, names in changed.items())
        raise RunError(
            f"the maps in {manifest.path.parent} were predicted from other arguments: {said}; give the same again, "
            "choose another --out, or pass --overwrite / overwrite=True to predict these slides anew."
        )
