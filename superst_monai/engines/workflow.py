"""The one way to train: fill in the bundle's training configuration and run its workflow."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigWorkflow

from superst_monai.engines.memory import keep_memory
from superst_monai.engines.processes import Show, launch
from superst_monai.engines.run_folder import RunFolder, bundle_folder
from superst_monai.engines.settings import check_settings
from superst_monai.errors import RunError, SuperstError


def train(
    sections: Sequence[str | Path],
    out: str | Path,
    *,
    covariates: Mapping[str, str] | None = None,
    mpp: float | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    nproc: int | None = None,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
    show: Show | None = None,
) -> Path:
    """Train on prepared sections and write the run folder, a bundle with weights.

    Args:
        sections: stores written by `superst prepare`; with `resume` none, or those of the run.
        out: run folder, new or empty; with `resume` the run to continue.
        covariates: column of the spot table for each covariate.
        mpp: working resolution [um/px]; None chooses it from the spots.
        epochs: at most so many passes over the sections.
        minutes: at most so much wall-clock [min].
        seed: of everything random; None is that of the configuration.
        nproc: processes that share each batch, one a GPU, or with an equal share of the cores; None is the
            configuration's. A script that asks for several calls this under `if __name__ == "__main__":`.
        resume: continue with the settings of the run; only epochs and minutes may differ from them.
        options: other keys of `configs/train.yaml`.
        show: progress; None logs.

    Returns:
        The run folder.

    Raises:
        RunError: options that the configuration does not have, or sections that do not fit.
        TrainingError: the loss became NaN, or a process was killed.
    """
    out = Path(out).resolve()
    source = out / "configs" if resume else bundle_folder() / "configs"
    if resume and not (source / "train.yaml").exists():
        raise RunError(f"--resume continues a run, but {out} holds none (no configs/train.yaml); leave --resume out.")
    known = yaml.safe_load((source / "train.yaml").read_text())
    settings: dict[str, Any] = {"sections": [str(Path(s).resolve()) for s in sections], **dict(options or {})}
    settings |= {"covariates": dict(covariates or {}), "mpp": mpp, "seed": seed, "nproc": nproc}
    settings = {key: value for key, value in settings.items() if value not in (None, [], {})}
    _check_options(settings, known)
    limits = {} if resume and epochs is None and minutes is None else {"epochs": epochs, "minutes": minutes}
    if resume:
        _check_same(settings, known)
        settings = {}
    check_settings(known | settings | limits)
    RunFolder(out, resume=resume)  # refuses a folder before any process is started
    given = {"run_dir": str(out), "resume": resume, **settings, **limits}
    n = settings.get("nproc", known["nproc"])
    overlay = [source / "multi_gpu_train.yaml"] if n > 1 else []
    work = partial(_train_here, [source / "train.yaml", *overlay], source / "metadata.json", given)
    if n > 1:
        launch(n, work, show)
    else:
        work(show)
    return out


def _train_here(configs: Sequence[Path], meta: Path, given: Mapping[str, Any], show: Show | None) -> None:
    """Train in this process."""
    keep_memory()
    run_config("train", configs, meta, {**given, "show": show})


def run_config(kind: str, configs: Sequence[Path], meta: Path, given: Mapping[str, Any]) -> ConfigWorkflow:
    """Run a bundle configuration and its overlays with some of its keys given; the finished workflow.

    MONAI announces at every start that `$` expressions of a configuration are evaluated; these configurations are
    the package's own, so the notice is not passed on.
    """
    with warnings.catch_warnings(), _quiet("ignite", logging.WARNING), _quiet("monai.bundle.workflows", logging.ERROR):
        warnings.filterwarnings("ignore", message=".*eval.*", category=UserWarning)
        workflow = ConfigWorkflow(
            config_file=[str(config) for config in configs],
            meta_file=str(meta),
            logging_file=False,
            workflow_type=kind,
            **dict(given),
        )
        try:
            workflow.initialize()
            workflow.run()
            workflow.finalize()
        except RuntimeError as exc:  # the configuration's evaluation wraps whatever goes wrong in it
            found = next((cause for cause in causes(exc) if isinstance(cause, SuperstError)), None)
            if found is None:
                raise
            raise found from exc
    return workflow


@contextmanager
def _quiet(name: str, level: int) -> Iterator[None]:
    """Let a library's logger say nothing below a level, for a while."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def causes(exc: BaseException) -> Iterator[BaseException]:
    """An exception and what caused it, outermost first."""
    found: BaseException | None = exc
    while found is not None:
        yield found
        found = found.__cause__


def _check_same(settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse settings that differ from those of the run to continue."""
    other = [f"{key} was {known[key]}, got {value}" for key, value in settings.items() if known[key] != value]
    if other:
        raise RunError(
            f"--resume continues with the settings of the run, but {'; '.join(other)}; "
            "leave them out, or start a new run in another folder."
        )


def _check_options(given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise RunError(f"the training configuration has no {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
