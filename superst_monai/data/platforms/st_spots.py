"""Spot tables of the ST Spot Detector: which pixel each array coordinate lies at, and which spots are under tissue.

With a header the columns are known by name: `x`, `y` (array), `pixel_x`, `pixel_y`, optionally `new_x`, `new_y`
(adjusted array coordinates) and `selected` (also `under_tissue`, `in_tissue`). Without one, seven columns are
x y new_x new_y pixel_x pixel_y selected, six the same without the last, and four are x y pixel_x pixel_y where the last
two spread over many times the extent of the first two. Four columns that stay within one array unit of each other are
x y new_x new_y and hold no pixels; these and every other form are refused.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from superst_monai.data.platforms.assay import few, raise_faults, reading
from superst_monai.data.platforms.frames import fit_faults, fit_grid, fit_note
from superst_monai.data.platforms.tenx import open_binary
from superst_monai.errors import AssayError

_COLUMNS = ("x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected")
_NEEDED = ("x", "y", "pixel_x", "pixel_y")
_SELECTED = ("under_tissue", "in_tissue")
_LEAST_SPREAD = 5.0  # px per array unit from which two unnamed columns are pixels
_MOST_SHIFT = 1.0  # array units between x y and new_x new_y
_ADJUSTED = 0.011  # array units: names carry new_x, new_y with two decimals
_HALF = 0.499  # array units: nearest whole coordinate


@dataclass(frozen=True)
class Placement:
    """Where the spots of a counts table lie.

    Attributes:
        rows: rows of the counts table that are kept `(S,)`.
        position_px0: their centres (x, y) `(S, 2)` [px of the image].
        array: their array coordinates (x, y) `(S, 2)`.
        mpp: um per px of the image.
        notes: what was decided or dropped, one sentence each.
    """

    rows: NDArray[np.int64]
    position_px0: NDArray[np.float64]
    array: NDArray[np.float64]
    mpp: float
    notes: tuple[str, ...]


def place_by_table(names: pd.Index, array: NDArray[np.float64], path: Path, pitch_um: float) -> Placement:
    """Match spots with the rows of a spot table; spots in only one of the two are dropped with a note.

    Whole names are matched with `x`, `y`; adjusted names with `new_x`, `new_y`, or else with the nearest `x`, `y`.

    Args:
        names: S spot names of the counts table.
        array: array coordinates in the names `(S, 2)`.
        path: the spot table.
        pitch_um: one array unit [um].

    Raises:
        AssayError: the table is corrupt or ambiguous, no spot is in both tables, or the pixels do not fit the array.
    """
    table = _read_table(path)
    match = _match(array, table)
    taken = match[match >= 0]
    if not len(taken):
        raise AssayError(
            f"{path} must share spots with the counts table, none of its {len(table)} rows "
            f"({few(_names(table))}) is among the {len(names)} spots with counts ({few(names)}); "
            "pass tables of one section."
        )
    both = pd.Index(taken)
    if both.has_duplicates:
        twice = _names(table.iloc[both[both.duplicated()].unique()])
        raise AssayError(
            f"{path} has rows that fit several spots with counts: {few(twice)}; name spots as the table does."
        )
    fit = fit_grid(np.rint(table[["x", "y"]].to_numpy()) * pitch_um, table[["pixel_x", "pixel_y"]].to_numpy())
    if fit is None:
        raise AssayError(f"{path} must hold three spots off one line to tell the um per px; pass the whole spot table.")
    raise_faults(
        str(path), fit_faults(fit, pitch_um), "pass the table made on this image, with array coordinates in x, y"
    )
    selected = table["selected"].to_numpy() == 1
    kept = (match >= 0) & selected[match]
    if not kept.any():
        raise AssayError(f"{path} selects none of the {len(taken)} spots with counts; set selected to 1 under tissue.")
    notes = (f"positions read from {path.name}", *_drop_notes(match, kept, names, table), fit_note(fit, pitch_um))
    rows, at = np.flatnonzero(kept), match[kept]
    position = table[["pixel_x", "pixel_y"]].to_numpy()[at]
    return Placement(rows, position, np.rint(table[["x", "y"]].to_numpy()[at]), 1 / fit.px_per_um, notes)


def _drop_notes(
    match: NDArray[np.int64], kept: NDArray[np.bool_], names: pd.Index, table: pd.DataFrame
) -> tuple[str, ...]:
    """Say which spots were dropped and why."""
    selected = table["selected"].to_numpy() == 1
    unplaced, outside = match < 0, (match >= 0) & ~kept
    uncounted = selected.copy()
    uncounted[match[match >= 0]] = False
    dropped = (
        (unplaced, f"spots with counts have no position and were dropped: {few(names[unplaced])}"),
        (outside, "spots with counts are not selected (not under tissue) and were left out"),
        (uncounted, f"positions have no counts and were dropped: {few(_names(table[uncounted]))}"),
    )
    return tuple(f"{np.count_nonzero(which)} of {len(which)} {text}" for which, text in dropped if which.any())


def _match(array: NDArray[np.float64], table: pd.DataFrame) -> NDArray[np.int64]:
    """Give the row of the table for each array coordinate `(S, 2)`, -1 where there is none `(S,)`."""
    adjusted = not np.array_equal(array, np.rint(array)) and "new_x" in table and "new_y" in table
    target, most = (["new_x", "new_y"], _ADJUSTED) if adjusted else (["x", "y"], _HALF)
    tree = cKDTree(table[target].to_numpy())
    _, rows = tree.query(array, p=np.inf, distance_upper_bound=most)  # (S,); len(table) is none
    return np.where(rows == len(table), -1, rows).astype(np.int64)


def _names(table: pd.DataFrame) -> pd.Series:
    """Write array coordinates as spot names."""
    return table["x"].map("{:g}".format).astype(str) + "x" + table["y"].map("{:g}".format).astype(str)


def _read_table(path: Path) -> pd.DataFrame:
    """Read and validate the table: float columns `x`, `y`, `pixel_x`, `pixel_y`, `selected` and what else it has."""
    with reading(path, "spot table"), open_binary(path) as stream:
        content = stream.read().decode("utf-8-sig").translate(str.maketrans(",;", "  ", '"')).strip()
        first, _, rest = content.partition("\n")
        header = [] if _is_numbers(first) else first.lower().split()
        body = pd.read_csv(io.StringIO(rest if header else content), sep=r"\s+", header=None, dtype=str)
    if header and body.shape[1] == len(header) + 1:  # names of rows, as R writes them
        body = body.iloc[:, 1:]
    if header and (body.shape[1] != len(header) or len(set(header)) < len(header)):
        raise AssayError(
            f"{path} must have one distinct name for each of its {body.shape[1]} columns, got "
            f"{', '.join(header)}; correct the header."
        )
    body = body.set_axis(header or _unnamed(path, body), axis=1)
    body = body.rename(columns={name: "selected" for name in _SELECTED if "selected" not in body})
    missing = [name for name in _NEEDED if name not in body]
    if missing:
        raise AssayError(
            f"{path} must hold the columns {', '.join(_NEEDED)}, {', '.join(missing)} missing (it has "
            f"{', '.join(body.columns)}); pass the full table, or the 3x3 matrix as transform."
        )
    known = [name for name in _COLUMNS if name in body]
    table: pd.DataFrame = body[known].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    table = table if "selected" in table else table.assign(selected=1.0)
    raise_faults(str(path), _table_faults(table), "correct these rows")
    return table


def _is_numbers(line: str) -> bool:
    """Say whether every word of a line is a number."""
    return bool(pd.to_numeric(pd.Series(line.split(), dtype=str), errors="coerce").notna().all())


def _table_faults(table: pd.DataFrame) -> list[str]:
    """List values that are no numbers, repeated spots, and `selected` other than 0 and 1."""
    faults = []
    for name in table.columns:
        bad = ~np.isfinite(table[name])
        if bad.any():
            faults.append(f"{name} must be a finite number, is not in data row {few(table.index[bad] + 1)}")
    wrong = np.isfinite(table["selected"]) & ~table["selected"].isin([0, 1])
    if wrong.any():
        faults.append(f"selected must be 0 or 1, is {few(table['selected'][wrong].unique())}")
    repeated = table.duplicated(["x", "y"]) & table["x"].notna() & table["y"].notna()
    if repeated.any():
        faults.append(f"{int(repeated.sum())} spots are repeated: {few(_names(table[repeated]))}")
    return faults


def _unnamed(path: Path, body: pd.DataFrame) -> list[str]:
    """Name the columns of a table without header, or refuse to guess."""
    if body.shape[1] in (6, 7):
        return list(_COLUMNS[: body.shape[1]])
    if body.shape[1] != 4:
        raise AssayError(
            f"{path} has no header and {body.shape[1]} columns, must have 4, 6 or 7; add the header "
            f"{' '.join(_COLUMNS)} (those that it has)."
        )
    numbers = body.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)  # (N, 4)
    if not np.isfinite(numbers).all():
        return list(_NEEDED)  # whatever they are, the rows with other words are reported first
    array, other = numbers[:, :2], numbers[:, 2:]
    if np.median(np.abs(other - array)) <= _MOST_SHIFT:
        raise AssayError(
            f"{path} has no header and its last two columns repeat the array coordinates (x y new_x new_y), pixels are "
            "missing; pass the table with pixel_x pixel_y, or the 3x3 matrix as transform."
        )
    spread = float(np.hypot(*np.std(other, axis=0)) / max(np.hypot(*np.std(array, axis=0)), 1e-9))
    if spread < _LEAST_SPREAD:
        raise AssayError(
            f"{path} has no header and its last two columns spread over {spread:.2g} px per array unit, too few to be "
            "taken for pixels; add the header x y pixel_x pixel_y, if this is what they are."
        )
    return list(_NEEDED)
