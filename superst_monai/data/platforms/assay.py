"""What every platform's reader returns: raw counts, spot geometry and the image they belong to."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.errors import AssayError, ShapeError

SPOT_COLUMNS = ("x_px0", "y_px0", "diameter_px0")
_LOG_LIMIT = 25.0  # exp(25) UMIs fit no spot: all-positive values below it may be logarithms


@dataclass(frozen=True)
class Assay:
    """The counts of one capture area with the position and shape of each spot.

    Attributes:
        counts: raw counts `(S, G)`, int32, rows in the order of `spots`, columns in that of `genes`.
        spots: index `barcode`; `x_px0`, `y_px0` (centre) and `diameter_px0` [level-0 px of `image`], then the extra
            columns of the platform (`array_row`, ...). For squares the diameter is the side.
        genes: index `gene` (unique name), column `gene_id`.
        platform: `"visium"`, `"st"` or `"h5ad"`.
        image: file of the slide, or pixels `(H, W, 3)` uint8.
        mpp: [um per level-0 px of `image`] that the assay implies; None where it does not say.
        scale_factors: known factors from full-resolution px to the px of other images.
        shape: `"circle"` or `"square"`.
        notes: decisions of the reader, one sentence each.

    Raises:
        ShapeError: counts, spots and genes differ in length, or a column of `spots` is missing.
        AssayError: names are not unique, a position is not finite or a diameter is not positive.
    """

    counts: sparse.csr_matrix
    spots: pd.DataFrame
    genes: pd.DataFrame
    platform: str
    image: Path | NDArray[np.uint8]
    mpp: float | None
    scale_factors: dict[str, float]
    shape: str = "circle"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        if self.counts.shape != (len(self.spots), len(self.genes)):
            raise ShapeError(
                f"counts must be (spots, genes) = ({len(self.spots)}, {len(self.genes)}), got {self.counts.shape}; "
                "subset the three together."
            )
        missing = [column for column in SPOT_COLUMNS if column not in self.spots]
        if missing:
            raise ShapeError(f"spots must have the columns {', '.join(SPOT_COLUMNS)}, {', '.join(missing)} missing.")
        geometry = self.spots[list(SPOT_COLUMNS)].to_numpy(dtype=np.float64)  # (S, 3)
        bad = ~np.isfinite(geometry).all(axis=1) | ~(geometry[:, 2] > 0)
        faults = duplicates("spot names", self.spots.index) + duplicates("gene names", self.genes.index)
        if bad.any():
            faults.append(f"{few(self.spots.index[bad])} lack a finite position or a positive diameter")
        raise_faults(f"the {self.platform} assay", faults, "correct the spot table")


def check_counts(
    matrix: Any, source: str, *, spots: Sequence[str] | None = None, genes: Sequence[str] | None = None
) -> sparse.csr_matrix:
    """Return a matrix as raw counts, or refuse it.

    Args:
        matrix: counts `(S, G)`, dense or sparse, of any number type.
        source: file (and field) named in the error.
        spots: S names for the error; row numbers otherwise.
        genes: G names for the error; column numbers otherwise.

    Returns:
        Non-negative integers `(S, G)`, csr, int32, without stored zeros or duplicates.

    Raises:
        AssayError: values that are NaN, negative, fractional or beyond int32, all kinds listed with their first.
    """
    csr = _as_csr(matrix, source)
    values = csr.data
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        fractional = finite & (values != np.rint(values)) if values.dtype.kind == "f" else np.zeros(len(values), bool)
        kinds = {
            "not finite": ~finite,
            "negative": values < 0,
            "not integers": fractional,
            "larger than 2^31 - 1": finite & (values > np.iinfo(np.int32).max),
        }
    faults = [
        f"{np.count_nonzero(bad)} of {len(values)} stored values are {kind} ({_first(csr, bad, spots, genes)})"
        for kind, bad in kinds.items()
        if bad.any()
    ]
    if faults and fractional.any():
        looks = "scaled" if (values < 0).any() else "log-normalised" if np.nanmax(values) < _LOG_LIMIT else "normalised"
        faults.append(f"it looks {looks}")
    raise_faults(
        f"{source}, which must hold raw counts (non-negative integers)",
        faults,
        "pass raw UMI counts (layers['counts'] or .raw of an AnnData, filtered_feature_bc_matrix of Space Ranger)",
    )
    counts = sparse.csr_matrix(csr.astype(np.int32))
    counts.eliminate_zeros()
    return counts


def _as_csr(matrix: Any, source: str) -> sparse.csr_matrix:
    """Bring any real matrix to csr with duplicates summed, its indices checked, and its caller's copy untouched."""
    if not sparse.issparse(matrix):
        matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.dtype.kind not in "buif":
        raise AssayError(
            f"{source} must be a matrix of numbers, got {matrix.ndim} dimensions of type {matrix.dtype}; "
            "pass raw UMI counts, spots x genes."
        )
    if matrix.dtype.kind == "b":
        matrix = matrix.astype(np.int32)
    csr = sparse.csr_matrix(matrix)
    try:
        csr.check_format(full_check=True)
    except ValueError as exc:
        raise AssayError(f"{source} is not a valid sparse matrix ({exc}); write or copy the file again.") from exc
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    return csr


def _first(
    csr: sparse.csr_matrix, bad: NDArray[np.bool_], spots: Sequence[str] | None, genes: Sequence[str] | None
) -> str:
    """Name the first bad value with its spot and gene."""
    at = int(np.flatnonzero(bad)[0])
    row = int(np.searchsorted(csr.indptr, at, side="right")) - 1
    column = int(csr.indices[at])
    spot = f"row {row}" if spots is None else f"spot {spots[row]!r}"
    gene = f"column {column}" if genes is None else f"gene {genes[column]!r}"
    return f"first {csr.data[at]:.6g} at {spot}, {gene}"


def unique_names(names: Iterable[str], ids: Iterable[str]) -> list[str]:
    """Make gene names unique: the second `ACTB` becomes `ACTB-1`, the third `ACTB-2`, in the order of the file.

    Args:
        names: G gene symbols; an empty one is replaced by its id.
        ids: G gene ids.

    Returns:
        G unique names; a suffix that would collide with another symbol is counted on.

    Source: the rule of `anndata.AnnData.var_names_make_unique`, so that names agree with scanpy's.
    """
    symbol = pd.Series(list(names), dtype=object)
    symbol = symbol.where(symbol.notna() & (symbol != ""), pd.Series(list(ids), dtype=object)).astype(str)
    repeated = symbol.duplicated().to_numpy()
    taken = set(symbol)
    result = symbol.tolist()
    counter: dict[str, int] = {}
    for position in np.flatnonzero(repeated):
        name = result[position]
        number = counter.get(name, 0) + 1
        while f"{name}-{number}" in taken:
            number += 1
        counter[name] = number
        result[position] = f"{name}-{number}"
        taken.add(result[position])
    return result


def gene_table(names: Iterable[str], ids: Iterable[str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Build the genes of an Assay: index `gene` (unique), column `gene_id`; and a note if names were changed."""
    names, ids = list(names), list(ids)
    unique = unique_names(names, ids)
    table = pd.DataFrame({"gene_id": ids}, index=pd.Index(unique, name="gene", dtype=object), dtype=object)
    changed = sum(old != new for old, new in zip(names, unique, strict=True))
    note = (
        f"{changed} of {len(unique)} gene names were repeated or empty and got a suffix or their id (gene_id is kept)"
    )
    return table, (note,) if changed else ()


def zero_notes(counts: sparse.csr_matrix) -> tuple[str, ...]:
    """Say how many spots and genes hold no count at all; both are legal in an assay."""
    rows = np.diff(counts.indptr) == 0
    columns = np.bincount(counts.indices, minlength=counts.shape[1]) == 0
    found = (("spots", "count", rows), ("genes", "count in any spot kept", columns))
    return tuple(f"{int(z.sum())} of {len(z)} {noun} have no {what}" for noun, what, z in found if z.any())


def few(items: Iterable[Any], most: int = 3) -> str:
    """List the first items and say how many there are: `AAAC, AAAG, AAAT ... (12)`."""
    everything = [str(item) for item in items]
    text = ", ".join(everything[:most])
    return f"{text} ... ({len(everything)})" if len(everything) > most else text


def duplicates(what: str, names: pd.Index) -> list[str]:
    """Return the fault of repeated names, or nothing."""
    repeated = names[names.duplicated()].unique()
    return [f"{len(repeated)} {what} are repeated: {few(repeated)}"] if len(repeated) else []


def require_positive(name: str, value: float | None) -> None:
    """Refuse an argument that is given but is not a positive finite number.

    Raises:
        AssayError: zero, negative, NaN or infinite.
    """
    if value is not None and not (np.isfinite(value) and value > 0):
        raise AssayError(f"{name} must be a positive number, got {value}; correct the option or leave it out.")


def raise_faults(source: str, faults: Sequence[str], advice: str) -> None:
    """Report all faults of one source at once.

    Raises:
        AssayError: there is at least one fault.
    """
    if faults:
        raise AssayError(f"{source}: {'; '.join(faults)}; {advice}.")


@contextmanager
def reading(path: Path, kind: str, advice: str = "copy or download the file again") -> Iterator[None]:
    """Turn what libraries raise on a corrupt, truncated or missing file into an AssayError that names the file.

    Raises:
        AssayError: anything the decoders of gzip, csv, json, parquet, hdf5 and mtx raise on bad bytes.
    """
    try:
        yield
    except AssayError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, LookupError, RuntimeError, TypeError, ArithmeticError) as exc:
        raise unreadable(path, kind, exc, advice) from exc


def unreadable(path: Path, kind: str, exc: Exception, advice: str = "copy or download the file again") -> AssayError:
    """Build the error of a file that a library could not decode, with what the library said."""
    reason = str(exc).strip().replace("\n", " ")[:200] or type(exc).__name__
    return AssayError(f"{path} cannot be read as {kind} ({reason}); {advice}.")
