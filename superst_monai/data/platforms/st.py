"""Tables of the ST pipeline (counts named `XxY`, spot table or 3x3 transform) -> Assay.

A spot is named by its array coordinates, `10x21` or, after adjustment, `10.02x20.98`. They reach the image by a spot
table (see `st_spots`) or by a 3x3 affine matrix of nine numbers. The matrix stands in either convention: with a last
column 0 0 1 it is applied as `[x y 1] @ M` (a d 0 b e 0 tx ty 1, as the ST pipeline writes it), with a last row
0 0 1 as `M @ [x y 1]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.data.platforms.assay import (
    Assay,
    check_counts,
    duplicates,
    few,
    gene_table,
    raise_faults,
    reading,
    require_positive,
    zero_notes,
)
from superst_monai.data.platforms.frames import GridFit, fit_faults, fit_note
from superst_monai.data.platforms.st_spots import Placement, place_by_table
from superst_monai.data.platforms.tenx import open_binary
from superst_monai.errors import AssayError, SlideError

_NAME = r"-?\d+(?:\.\d+)?x-?\d+(?:\.\d+)?"
_LEAST_PITCH_PX = 2.0  # spots nearer than this in the image: the map is not one to pixels
_LAST = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class _CountTable:
    """Counts `(S, G)` with spot names, array coordinates `(S, 2)` and gene names."""

    matrix: sparse.csr_matrix
    names: pd.Index
    array: NDArray[np.float64]
    genes: list[str]
    notes: tuple[str, ...]


def read_st(
    counts: Path,
    *,
    image: Path,
    spots: Path | None = None,
    transform: Path | None = None,
    spot_diameter_um: float = 100.0,
    pitch_um: float = 200.0,
) -> Assay:
    """Read a counts table of the Spatial Transcriptomics arrays with its image.

    Args:
        counts: `.tsv` or `.tsv.gz`, rows = spots named `XxY`, columns = genes; genes x spots is recognised.
        image: slide whose pixels `spots` or `transform` refer to.
        spots: spot table with `pixel_x`, `pixel_y`; exactly one of `spots` and `transform` must be given.
        transform: file of nine numbers, the affine map from array coordinates to pixels.
        spot_diameter_um: width of a spot [um].
        pitch_um: distance between the centres of neighbours, one array unit [um].

    Returns:
        Assay in px of `image`; `mpp` follows from the pitch.

    Raises:
        AssayError: a file is corrupt, incomplete or ambiguous, counts are not raw, or no spot has counts and position.
        SlideError: the image does not exist.
    """
    require_positive("spot_diameter_um", spot_diameter_um)
    require_positive("pitch_um", pitch_um)
    if not Path(image).is_file():
        raise SlideError(f"image {image} does not exist; check the path.")
    table = _read_counts(Path(counts))
    if spots is not None and transform is None:
        placed = place_by_table(table.names, table.array, Path(spots), pitch_um)
    elif transform is not None and spots is None:
        placed = _place_by_transform(table.array, Path(transform), pitch_um)
    else:
        raise AssayError(
            f"{counts} needs its pixel positions from exactly one of spots and transform, got {spots} and {transform}; "
            "pass the spot table (spots) or the 3x3 matrix (transform)."
        )
    return _assay(table, placed, Path(image), spot_diameter_um)


def _assay(table: _CountTable, placed: Placement, image: Path, spot_diameter_um: float) -> Assay:
    """Put counts and positions together."""
    kept = table.matrix[placed.rows]
    frame = pd.DataFrame(
        {
            "x_px0": placed.position_px0[:, 0],
            "y_px0": placed.position_px0[:, 1],
            "diameter_px0": spot_diameter_um / placed.mpp,
            "array_x": placed.array[:, 0],
            "array_y": placed.array[:, 1],
        },
        index=table.names[placed.rows].rename("barcode"),
    )
    genes, gene_notes = gene_table(table.genes, table.genes)
    size_note = f"spots are {spot_diameter_um:g} um = {spot_diameter_um / placed.mpp:.4g} px wide"
    return Assay(
        counts=kept,
        spots=frame,
        genes=genes,
        platform="st",
        image=image,
        mpp=placed.mpp,
        scale_factors={},
        notes=(*table.notes, *placed.notes, size_note, *gene_notes, *zero_notes(kept)),
    )


def _read_counts(path: Path) -> _CountTable:
    """Read the table in either orientation, its header with or without a corner cell."""
    with reading(path, "tab-separated counts"), open_binary(path) as stream:
        header = [name.strip('"') for name in stream.readline().decode("utf-8-sig").rstrip("\r\n").split("\t")]
        body = pd.read_csv(
            stream, sep="\t", header=None, index_col=0, dtype={0: str}, keep_default_na=False, na_values=[""]
        )
    if len(header) not in (body.shape[1], body.shape[1] + 1):
        raise AssayError(
            f"{path} must have a header of {body.shape[1]} names (or one more for the corner) as its rows do, got "
            f"{len(header)}; write the table again, tab separated."
        )
    rows, columns = pd.Index(body.index.fillna(""), dtype=object), pd.Index(header[-body.shape[1] :], dtype=object)
    turned = _is_turned(path, rows, columns)
    _refuse_text(path, body, rows, columns)
    values = body.to_numpy()
    names, genes = (columns, rows) if turned else (rows, columns)
    raise_faults(str(path), duplicates("spots", names), "keep one row of each spot")
    matrix = check_counts(values.T if turned else values, str(path), spots=names.tolist(), genes=genes.tolist())
    array = names.str.extract(r"^(.+)x(.+)$").to_numpy(np.float64)  # (S, 2)
    note = f"counts read from {path.name}" + (", genes x spots, transposed" if turned else "")
    return _CountTable(matrix, names, array, genes.tolist(), (note,))


def _is_turned(path: Path, rows: pd.Index, columns: pd.Index) -> bool:
    """Say whether the spots are the columns, or refuse a table where neither axis consists of `XxY` names."""
    row_match, column_match = rows.str.fullmatch(_NAME), columns.str.fullmatch(_NAME)
    if row_match.all() or column_match.all():
        return not bool(row_match.all())
    by_rows = row_match.mean() >= column_match.mean()
    names, match = (rows, row_match) if by_rows else (columns, column_match)
    raise AssayError(
        f"{path} must name its spots XxY (10x21) in every {'row' if by_rows else 'column'}, "
        f"{np.count_nonzero(~match)} of {len(names)} are not: {few(names[~match])}; pass a table of spots x genes."
    )


def _refuse_text(path: Path, body: pd.DataFrame, rows: pd.Index, columns: pd.Index) -> None:
    """Refuse columns with text, naming the first cell."""
    wrong = np.flatnonzero([dtype.kind not in "iufb" for dtype in body.dtypes])
    if not len(wrong):
        return
    column = body.iloc[:, wrong[0]]
    at = int(np.flatnonzero(pd.to_numeric(column, errors="coerce").isna() & column.notna())[0])
    raise AssayError(
        f"{path} must hold numbers, got text in {len(wrong)} of {len(columns)} columns (first "
        f"{column.iloc[at]!r} in row {rows[at]!r}, column {columns[wrong[0]]!r}); keep counts only."
    )


def _place_by_transform(array: NDArray[np.float64], path: Path, pitch_um: float) -> Placement:
    """Map array coordinates `(S, 2)` to pixels by the affine matrix of a file."""
    matrix = _read_transform(path)
    position = np.column_stack([array, np.ones(len(array))]) @ matrix  # (S, 3)
    stretches = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    pitch_px = float(np.sqrt(stretches.prod()))
    if not pitch_px >= _LEAST_PITCH_PX:
        raise AssayError(
            f"{path} puts neighbouring spots {pitch_px:.3g} px apart, must be {_LEAST_PITCH_PX:g} px at least; "
            "pass the matrix from array coordinates to pixels of the image."
        )
    fit = GridFit(pitch_px / pitch_um, 0.0, float(stretches[0] / stretches[1]))
    raise_faults(str(path), fit_faults(fit, pitch_um), "pass the matrix of this array")
    notes = (f"positions by the matrix of {path.name}, all spots with counts kept", fit_note(fit, pitch_um))
    return Placement(np.arange(len(array)), position[:, :2], array, pitch_um / pitch_px, notes)


def _read_transform(path: Path) -> NDArray[np.float64]:
    """Read nine numbers as the matrix M of `[x y 1] @ M`, whichever convention the file has."""
    with reading(path, "3x3 matrix", "give nine numbers"), open_binary(path) as stream:
        words = stream.read().decode("utf-8-sig").replace(",", " ").replace(";", " ").split()
        numbers = np.array(words, dtype=np.float64)
    if len(numbers) != 9 or not np.isfinite(numbers).all():
        raise AssayError(
            f"{path} must hold nine finite numbers, got {len(numbers)}: {few(words, 9)}; give the 3x3 matrix."
        )
    matrix = numbers.reshape(3, 3)
    by_row, by_column = np.allclose(matrix[:, 2], _LAST), np.allclose(matrix[2], _LAST)
    if by_row and by_column and not np.isclose(matrix[0, 1], matrix[1, 0]):
        raise AssayError(
            f"{path} must say which way it is to be read, got no translation and {matrix[0, 1]:g}, "
            f"{matrix[1, 0]:g} off the diagonal, which fits both; pass a spot table with pixel_x and pixel_y."
        )
    if not (by_row or by_column):
        raise AssayError(
            f"{path} must be affine, with a last column or a last row 0 0 1, got the column {few(matrix[:, 2])} and "
            f"the row {few(matrix[2])}; give the matrix from array coordinates to pixels."
        )
    return matrix if by_row else matrix.T
