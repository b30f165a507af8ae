"""Designs of a hold-out experiment: which sections are trained on, and which are predicted from their image alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from superst_monai.errors import RunError
from superst_monai.experiments.sections import Entry, file_name, list_sections, refuse_seen


class Split(NamedTuple):
    """One training and the sections that it is tested on."""

    name: str
    train: tuple[Entry, ...]
    test: tuple[Entry, ...]

    @property
    def shared_patients(self) -> list[str]:
        """Patients who are on both sides, as far as they are known."""
        trained = {entry.patient for entry in self.train}
        return sorted({entry.patient for entry in self.test if entry.patient is not None and entry.patient in trained})


def one_split(
    train: Sequence[Path | str], test: Sequence[Path | str], *, patient: str | None = None
) -> tuple[Split, ...]:
    """Train on some sections, test on others; raises as `list_sections` does."""
    entries = list_sections([*train, *test], patient=patient)
    return (Split("split", tuple(entries[: len(train)]), tuple(entries[len(train) :])),)


def leave_one_section_out(sections: Sequence[Path | str], *, patient: str | None = None) -> tuple[Split, ...]:
    """Test on each section once, trained on all others; raises as `list_sections` does."""
    entries = list_sections(sections, patient=patient)
    return tuple(
        Split(file_name(left.name), tuple(entry for entry in entries if entry is not left), (left,)) for left in entries
    )


def leave_one_patient_out(sections: Sequence[Path | str], *, patient: str) -> tuple[Split, ...]:
    """Test on the sections of each patient once, trained on those of all others.

    Args:
        sections: stores with counts.
        patient: column of the spots that names the patient.

    Raises:
        RunError: a section does not name its patient.
        SuperstError: as `list_sections`.
    """
    entries = list_sections(sections, patient=patient)
    levels = dict.fromkeys(str(entry.patient) for entry in entries)
    return tuple(
        Split(
            file_name(level),
            tuple(entry for entry in entries if entry.patient != level),
            tuple(entry for entry in entries if entry.patient == level),
        )
        for level in levels
    )


def check_splits(splits: Sequence[Split], *, same_patient: bool) -> None:
    """Refuse splits that would not measure a prediction.

    Args:
        splits: of one of the designs.
        same_patient: whether a patient may be on both sides.

    Raises:
        RunError: there is no split, one has no training or no test section, a section is on both sides, or a patient
            is and may not.
    """
    empty = [split.name for split in splits if not split.train or not split.test]
    if empty or not splits:
        raise RunError(
            f"there must be splits with a training and a test section each, got {len(splits)}, without either: "
            f"{', '.join(empty) or 'none'}; name more sections, or of more patients."
        )
    for split in splits:
        refuse_seen(split.train, split.test)
    leaking = [f"{', '.join(split.shared_patients)} ({split.name})" for split in splits if split.shared_patients]
    if leaking and not same_patient:
        raise RunError(
            f"a test patient must not be in training, but {'; '.join(leaking)} would be: the scores would be of other "
            "sections of a known tumour, not of a new patient. Leave whole patients out, or allow it with "
            "--same-patient (same_patient=True)."
        )
