"""The sections of an experiment: which they are, of which patient, and that none is on both sides of a split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from superst_monai.analysis.training_sections import read_run
from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.errors import AssayError, RunError


class Entry(NamedTuple):
    """What an experiment must know of a section before it reads it."""

    name: str
    path: str  # of the store, resolved
    slide: str | None  # hash of the image file
    patient: str | None = None


def list_sections(paths: Sequence[Path | str], *, patient: str | None = None) -> list[Entry]:
    """Look at sections, one at a time.

    Args:
        paths: stores with counts.
        patient: column of the spots that names the patient of a section; None if that does not matter.

    Raises:
        StoreError: a store cannot be read.
        AssayError: a section has no counts, or two have one name; all faults.
        RunError: a section does not say its patient, or names several; all of them.
    """
    entries, faults, unknown = [], [], []
    for path in paths:
        section = read_section(path)
        levels = [] if patient is None else _levels(section, patient)
        if not section.has_counts:
            faults.append(f"{section.name} ({path}) has no counts")
        elif patient is not None and len(levels) != 1:
            unknown.append(f"{section.name} names {', '.join(levels) or 'none'}")
        level = levels[0] if len(levels) == 1 else None
        entries.append(Entry(section.name, str(Path(path).resolve()), section.slide.get("sha256"), level))
    files = [file_name(entry.name) for entry in entries]
    twice = sorted({name for name in files if files.count(name) > 1})
    faults += [f"{name} is the name of several" for name in twice]
    if faults:
        raise AssayError(
            f"an experiment needs measured sections of different names, but {'; '.join(faults)}; leave one out, or "
            "prepare it again with --name."
        )
    if unknown:
        raise RunError(
            f"each section must name one patient in the column {patient} of its spots, but {'; '.join(unknown)}; name "
            f"another column, or prepare again with --set {patient}=NAME."
        )
    return entries


def trained_on(run: Path | str) -> list[Entry]:
    """The training sections of a run, from its record.

    Raises:
        RunError: the record cannot be read.
    """
    return [Entry(e["name"], str(e.get("path")), e.get("slide")) for e in read_run(run)["sections"]]


def refuse_seen(train: Sequence[Entry], test: Sequence[Entry]) -> None:
    """Refuse test sections that are trained on: of the same store, or of the same image file under any name.

    Raises:
        RunError: at least one; all of them.
    """
    seen = [
        f"{mine.name} is the training section {other.name}"
        for mine in test
        for other in train
        if mine.path == other.path or (mine.slide is not None and mine.slide == other.slide)
    ]
    if seen:
        raise RunError(f"a test section must not be in training, but {'; '.join(seen)}; take it out of one of the two.")


def _levels(section: Section, column: str) -> list[str]:
    """What a column of the spots holds, empty if there is none."""
    return sorted({str(v) for v in section.spots[column].dropna()} - {""}) if column in section.spots else []


def file_name(name: str) -> str:
    """A name as part of a file's: letters, digits, dot, dash and underscore stay."""
    return re.sub(r"[^\w.-]+", "_", name)
