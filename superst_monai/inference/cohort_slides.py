"""Which slides a cohort has: given by their paths or listed in a file, and checked before the work."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from superst_monai.errors import RunError
from superst_monai.inference.rates import choose_conditions
from superst_monai.inference.run import Run

SUFFIX = ".maps.zarr"
_SHOWN = 3  # slides that are named where a fault is that of many


@dataclass(frozen=True)
class CohortSlide:
    """A slide or section of a cohort.

    Attributes:
        path: image, or store of a section.
        name: its maps are `NAME.maps.zarr`; empty for the name of the file.
        mpp: resolution of a slide whose file does not state it [um per level-0 px].
        conditions: level of covariates of the run; one that is not given is treated as `predict` does.
    """

    path: Path
    name: str = ""
    mpp: float | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Fill in the name."""
        is_folder = self.path.is_dir() and self.path.suffix != ".zarr"  # such as the folder `case.1` of a DICOM slide
        object.__setattr__(self, "name", self.name or (self.path.name if is_folder else self.path.stem))


def read_slide_list(
    path: str | Path, *, mpp: float | None = None, conditions: Mapping[str, str] | None = None
) -> list[CohortSlide]:
    """Read a list of slides.

    A `.txt` file has a path a line. Any other is a table, separated by commas, semicolons or tabs, with a column
    `slide` and, where wanted, `name`, `mpp` and one column for each covariate, headed by its name. What is left empty
    is not stated. Relative paths start at the folder of the list.

    Args:
        path: the list, UTF-8.
        mpp: of slides for which the list states none.
        conditions: levels of slides for which the list states none.

    Raises:
        RunError: the file is no such list; all faults.
    """
    path = Path(path)
    heading, rows = _table(path)
    faults: list[str] = []
    found = []
    for number, row in enumerate(rows, start=1 if path.suffix == ".txt" else 2):
        if not any(row):
            continue
        cells = dict(zip(heading, row, strict=False))
        slide, name, own_mpp = cells.pop("slide", ""), cells.pop("name", ""), _number(cells.pop("mpp", ""))
        if any(row[len(heading) :]):
            faults.append(f"line {number} has more cells than the heading")
        if not slide:
            faults.append(f"line {number} names no slide")
        if own_mpp is not None and not 0 < own_mpp < math.inf:
            faults.append(f"line {number} has no positive mpp")
        levels = {key: level for key, level in cells.items() if level}
        own_mpp = mpp if own_mpp is None else own_mpp
        found.append(CohortSlide(path.parent / slide, name, own_mpp, {**(conditions or {}), **levels}))
    if faults:
        raise RunError(f"{path} must list a slide a line, but {'; '.join(faults)}; correct the list.")
    return found


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Headings of a list, and the cells of its lines."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise RunError(f"{path} must be a list of slides in UTF-8, but cannot be read ({exc}); check it.") from exc
    if path.suffix == ".txt":
        return ["slide"], [[line.strip()] for line in lines]
    first = lines[0] if lines else ""
    table = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=max(",;\t", key=first.count))]
    heading = table[0] if table else []
    if "slide" not in heading or len(set(heading)) < len(heading):
        raise RunError(
            f"{path} must be a table with a column slide and each heading once, but begins with {first!r}; correct the "
            "first line, or let the name of a list of bare paths end in .txt."
        )
    return heading, table[1:]


def _number(text: str) -> float | None:
    """A number, None where nothing is written, and NaN where it is something else."""
    try:
        return float(text) if text else None
    except ValueError:
        return math.nan


def require_slides(run: Run, slides: Sequence[CohortSlide]) -> None:
    """Refuse slides that are missing, or cannot be told apart or predicted with what is stated, before the work.

    Args:
        run: knows the covariates and their levels.
        slides: the cohort.

    Raises:
        RunError: all faults.
    """
    faults = [] if slides else ["there is none"]
    faults += [f"there is no {slide.path}" for slide in slides if not slide.path.exists()]
    by_name: dict[str, list[CohortSlide]] = {}
    for slide in slides:
        by_name.setdefault(slide.name, []).append(slide)
    for name, same in by_name.items():
        if len(same) > 1:
            shown = ", ".join(str(slide.path) for slide in same)
            faults.append(f"{shown} would all be {name}{SUFFIX}: give each a name in the column name of --slides")
        if not name or name.startswith(".") or Path(name).name != name:
            faults.append(f"{name!r} cannot be the name of a file")
    faults += [
        f"{slide.path} is a section with a resolution of its own, but gets mpp {slide.mpp:g}: leave that out"
        for slide in slides
        if slide.mpp is not None and slide.path.suffix == ".zarr"
    ]
    unknown: dict[str, list[str]] = {}
    for slide in slides:
        try:
            choose_conditions(run, None, slide.conditions)
        except RunError as exc:
            unknown.setdefault(str(exc).rstrip("."), []).append(slide.name)
    faults += [f"{fault} ({some_of(names)})" for fault, names in unknown.items()]
    if faults:
        raise RunError(f"the slides of a cohort must exist and be told apart, but {'; '.join(faults)}.")


def some_of(names: Iterable[str]) -> str:
    """The first few of many names, and how many more there are."""
    listed = list(names)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
