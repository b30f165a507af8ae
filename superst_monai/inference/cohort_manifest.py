"""The manifest of a cohort: what became of each slide, on disk after each of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from superst_monai.data.atomic import cannot_write
from superst_monai.errors import StoreError
from superst_monai.inference.cohort_slides import SUFFIX, CohortSlide

FILE = "manifest.json"
FORMAT_VERSION = 1
State = Literal["done", "kept", "failed"]
"""Predicted now; was there already, from the same arguments; or not predicted."""


@dataclass(frozen=True)
class Outcome:
    """What became of a slide.

    Attributes:
        name: of the slide.
        state: see `State`.
        sha256: hash of the slide; None where it could not be read.
        seconds: that were spent on it.
        error: why it failed.
        notes: what the prediction told.
        made_from: all that the store follows from, if it was written now.
    """

    name: str
    state: State
    sha256: str | None
    seconds: float
    error: str | None = None
    notes: Sequence[str] = ()
    made_from: Mapping[str, Any] | None = None


class Manifest:
    """The file `manifest.json` of a folder of maps; only the process that leads the cohort writes it.

    Args:
        folder: of the maps.

    Attributes:
        rows: what is known of each slide, by its name; also of slides of earlier calls.

    Raises:
        StoreError: the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        """Read what earlier calls left."""
        self.path = folder / FILE
        self.rows: dict[str, dict[str, Any]] = {}
        if not self.path.is_file():
            return
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format version {found['format_version']}, not {FORMAT_VERSION}")
            self.rows = {str(row["name"]): dict(row) for row in found["slides"]}
        except (ValueError, KeyError, TypeError) as exc:
            raise StoreError(
                f"{self.path} must be the manifest of a cohort, but is damaged ({exc!r}); restore it, choose another "
                "--out, or remove it and predict all slides again with --overwrite."
            ) from exc

    def made_from(self, name: str) -> Mapping[str, Any] | None:
        """All that the store of a slide follows from; None if there is no such store or it is not known."""
        made: Mapping[str, Any] | None = self.rows.get(name, {}).get("made_from")
        return made

    def begin(self, slides: Sequence[CohortSlide]) -> None:
        """Note that slides wait for their turn."""
        for slide in slides:
            before = self.rows.get(slide.name, {})
            row: dict[str, Any] = {"name": slide.name, "slide": str(slide.path.resolve())}
            row |= {
                "store": f"{slide.name}{SUFFIX}",
                "state": "waiting",
                "sha256": None,
                "seconds": None,
                "ended": None,
                "error": None,
                "notes": [],
            }
            kept = {key: before[key] for key in ("sha256", "seconds", "ended", "notes") if key in before}
            self.rows[slide.name] = row | kept | {"made_from": before.get("made_from")}
        self._write()

    def add(self, outcome: Outcome) -> None:
        """Note what became of a slide."""
        row = self.rows[outcome.name]
        row |= {"state": "failed" if outcome.state == "failed" else "done", "error": outcome.error}
        if outcome.state != "kept":
            row |= {"sha256": outcome.sha256, "seconds": round(outcome.seconds, 2), "notes": list(outcome.notes)}
            row["ended"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if outcome.made_from is not None:
            row["made_from"] = dict(outcome.made_from)
        self._write()

    def _write(self) -> None:
        """Put the file in its place, whole."""
        scratch = self.path.with_name(f".{FILE}.partial")
        content = {"kind": "cohort", "format_version": FORMAT_VERSION, "slides": list(self.rows.values())}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(scratch, self.path)
        except OSError as exc:
            raise cannot_write(self.path, exc, "finished maps are kept") from exc
