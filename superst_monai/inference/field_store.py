"""The fields of a run folder: one file a section, known again by its counts and by the weights of the run."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.errors import RunError
from superst_monai.inference.colours import read_colours
from superst_monai.inference.field_draws import FieldPrior
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.section_field import SectionField, Show, fit_field


def field_path(run: Run, section: Section) -> Path:
    """Where a run keeps the field of a section."""
    return _field_file(run, section.name)


def _field_file(run: Run, name: str) -> Path:
    return run.path / "fields" / (re.sub(r"[^\w.-]", "_", name) + ".pt")


def has_field(run: Run, section: Section) -> bool:
    """Whether a run keeps a field of a section of this name, and the section has counts."""
    return section.has_counts and field_path(run, section).is_file()


def save_field(run: Run, section: Section, field: SectionField) -> Path:
    """Write a field into its run folder, tensors only, whole or not at all.

    Raises:
        RunError: the folder cannot be written.
    """
    path = field_path(run, section)
    scratch = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(exist_ok=True)
        torch.save(field.state_dict() | {"belongs_to": _fingerprint(run, section)}, scratch)
        os.replace(scratch, path)
    except OSError as exc:
        scratch.unlink(missing_ok=True)
        raise RunError(
            f"{path} must be written, but {exc.strerror or exc}; free space or mend the permissions."
        ) from exc
    return path


def load_field(run: Run, section: Section) -> SectionField | None:
    """The field that a run has of a section, or None if it has none.

    Raises:
        RunError: the file is damaged, or belongs to other counts or other weights.
    """
    if not has_field(run, section):
        return None
    path = field_path(run, section)
    field, belongs = read_field(path)
    if not torch.equal(belongs, _fingerprint(run, section)):
        raise RunError(
            f"{path} was fitted to other counts of a section named {section.name}, or under other weights or another "
            "colours.json of the run; fit it again with superst fit-section, or predict with --no-field."
        )
    return field


def read_field(path: Path) -> tuple[SectionField, Tensor]:
    """A field and the fingerprint `(32,)` uint8 of what it belongs to; refuses (RunError) a damaged file."""
    try:
        state: dict[str, Tensor] = torch.load(path, weights_only=True)
        belongs = state.pop("belongs_to")
        return SectionField.from_state_dict(state), belongs
    except Exception as exc:  # torch lets the unpickler's own error through, which this package must not import
        raise RunError(
            f"{path} must hold the field of a section, but cannot be read ({exc}); fit it again with superst "
            "fit-section, or remove the file."
        ) from exc


def load_prior(run: Run) -> FieldPrior | None:
    """What the fields of the training sections say of another section's; None unless the run has all of them.

    Raises:
        RunError: a file is damaged.
    """
    names = [str(section["name"]) for section in run.record.get("sections", [])]
    files = [_field_file(run, name) for name in names]
    if not files or not all(file.is_file() for file in files):
        return None
    return FieldPrior.of([read_field(file)[0] for file in files])


def _fingerprint(run: Run, section: Section) -> Tensor:
    """Hash of the run's weights and second reading, and of the section's genes, spots and counts `(32,)` uint8."""
    counts = section.counts.tocsr()
    digest = hashlib.sha256(run.weights_sha256.encode())
    colours = read_colours(run)
    if colours is not None:
        digest.update(colours.to_json(run.weights_sha256).encode())
    digest.update("\n".join(map(str, section.genes.index)).encode())
    digest.update(section.spots[["x_um", "y_um", "radius_um"]].to_numpy(np.float64).tobytes())
    for part in (counts.indptr.astype(np.int64), counts.indices.astype(np.int64), counts.data.astype(np.int64)):
        digest.update(part.tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def fit_training_fields(run_dir: str | Path, *, show: Show | None = None) -> list[Path]:
    """Fit and keep the fields of all sections that a run was trained on, as their stores are now.

    Args:
        run_dir: of a finished run.
        show: called with the share done of all of them and the seconds spent.

    Returns:
        The files written. A store that has gone leaves none.

    Raises:
        SuperstError: a section cannot be read or fitted.
    """
    run, started = load_run(run_dir), time.monotonic()
    stores = [store for store in map(_store_of, run.record.get("sections", [])) if store is not None]
    seed, written = int(run.record.get("seed", 0)), []
    for i, store in enumerate(stores):
        section = read_section(store)
        before = i / len(stores)

        def tell(share: float, _: float, before: float = before) -> None:
            if show is not None:
                show(before + share / len(stores), time.monotonic() - started)

        written.append(save_field(run, section, fit_field(run, section, seed=seed, show=tell)))
    return written


def _store_of(section: Mapping[str, Any]) -> Path | None:
    """Where a section of a run's record lies, if it is still there."""
    path = section.get("path")
    return Path(path) if path is not None and Path(path).is_dir() else None
