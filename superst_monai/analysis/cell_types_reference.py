"""What cell types look like: their profiles from single-cell counts, or their marker genes from a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.errors import AssayError, StoreError

Floats = NDArray[np.float64]
_ROWS = 4096  # cells read at once


@dataclass(frozen=True, eq=False)
class Reference:
    """T cell types by G genes.

    Attributes:
        cell_types: names.
        genes: names, unique.
        gene_ids: further names of the genes, or the same.
        profile: mean share of each gene in a cell of the type, rows sum to 1; or weight of a marker, 0 for no marker.
        n_cells: cells of each type `(T,)`; None for a marker table.
    """

    cell_types: list[str]
    genes: list[str]
    gene_ids: list[str]
    profile: Floats
    n_cells: NDArray[np.int64] | None

    @property
    def is_table(self) -> bool:
        """Whether it holds markers, not profiles."""
        return self.n_cells is None


def read_markers(path: Path | str) -> Reference:
    """Read a marker table: CSV with columns `cell_type`, `gene` and, if markers count differently, `weight`.

    Raises:
        StoreError: the file cannot be read.
        AssayError: a column is missing, a weight is not positive, a row is incomplete, or there are no two types.
    """
    try:
        table = pd.read_csv(path, sep=None, engine="python", dtype=str, keep_default_na=False)
    except OSError as exc:
        raise StoreError(f"marker table {path} cannot be read ({exc.strerror or exc}); check the path.") from exc
    except ValueError as exc:
        raise AssayError(f"marker table {path} must be a CSV table ({exc}); save it as one.") from exc
    missing = [column for column in ("cell_type", "gene") if column not in table]
    if missing:
        raise AssayError(
            f"marker table {path} must have the columns cell_type and gene, missing {', '.join(missing)}, "
            f"got {', '.join(map(str, table.columns))}; rename its columns."
        )
    weight = pd.to_numeric(table["weight"], errors="coerce") if "weight" in table else pd.Series(1.0, table.index)
    wrong = (table["cell_type"] == "") | (table["gene"] == "") | ~(weight > 0) | ~np.isfinite(weight)
    cell_types = sorted(table.loc[~wrong, "cell_type"].unique())
    faults = [f"row {i + 2} is incomplete or has no positive weight" for i in np.flatnonzero(wrong)[:5]]
    faults += [f"at least two cell types are needed, got {len(cell_types)}"] * (len(cell_types) < 2)
    if faults:
        raise AssayError(f"marker table {path}: {'; '.join(faults)}; correct the table.")
    genes = sorted(table["gene"].unique())
    profile = np.zeros((len(cell_types), len(genes)))
    rows = pd.Index(cell_types).get_indexer(table["cell_type"])
    np.maximum.at(profile, (rows, pd.Index(genes).get_indexer(table["gene"])), weight.to_numpy(np.float64))
    return Reference(cell_types, genes, genes, profile, None)


def read_reference(path: Path | str, labels: str) -> Reference:
    """Average the cells of each type of a single-cell AnnData file, some cells at a time.

    A cell's counts are divided by their sum, so that deep cells do not weigh more; the profile of a type is the mean of
    its cells. Cells without a label or without counts are left out.

    Args:
        path: `.h5ad` with raw counts in layer `counts`, in `raw`, or in X: the first of them that is there.
        labels: column of `obs` with the cell type.

    Raises:
        StoreError: the file cannot be read.
        AssayError: there is no such column, there are no raw counts, or no two types.
    """
    try:
        with h5py.File(path, "r") as file:
            return _average(file, path, labels)
    except OSError as exc:
        raise StoreError(f"reference {path} cannot be read as .h5ad ({exc}); check the path.") from exc


def _average(file: h5py.File, path: Path | str, labels: str) -> Reference:
    """The profiles of an open file."""
    from anndata.io import read_elem

    if not {"obs", "var", "X"} <= set(file):
        raise AssayError(f"reference {path} must be an AnnData file with obs, var and X; write it with anndata.")
    obs: pd.DataFrame = read_elem(file["obs"])
    if labels not in obs:
        raise AssayError(
            f"reference {path} must have the column {labels} in obs, got {', '.join(map(str, obs.columns)) or 'none'}; "
            "name the column of the cell types."
        )
    place = next(name for name in ("layers/counts", "raw/X", "X") if name in file)
    var: pd.DataFrame = read_elem(file["raw/var" if place == "raw/X" else "var"])
    known = obs[labels].notna().to_numpy()
    cell_types = sorted(obs.loc[known, labels].astype(str).unique())
    if len(cell_types) < 2:
        raise AssayError(f"reference {path} must hold at least two cell types in {labels}, got {len(cell_types)}.")
    code = np.where(known, pd.Index(cell_types).get_indexer(obs[labels].astype(str)), -1)
    total, n_cells = np.zeros((len(cell_types), len(var))), np.zeros(len(cell_types), np.int64)
    for start, counts in _blocks(file[place], len(obs)):
        _require_counts(counts, f"{place} of reference {path}")
        depth = np.asarray(counts.sum(axis=1)).ravel()
        rows = np.flatnonzero((code[start : start + len(depth)] >= 0) & (depth > 0))
        kind = code[start + rows]
        member = sparse.csr_matrix((1 / depth[rows], (kind, rows)), shape=(len(cell_types), len(depth)))
        total += np.asarray((member @ counts).todense())
        n_cells += np.bincount(kind, minlength=len(cell_types))
    empty = [name for name, n in zip(cell_types, n_cells, strict=True) if n == 0]
    if empty:
        raise AssayError(f"every cell type of reference {path} must have counts, but {', '.join(empty)} have none.")
    genes = pd.Series([str(name) for name in var.index])
    first = ~genes.duplicated().to_numpy()
    ids = next((var[c].astype(str) for c in ("gene_ids", "gene_id") if c in var), genes).to_numpy()
    return Reference(cell_types, list(genes[first]), list(ids[first]), total[:, first] / n_cells[:, None], n_cells)


def _blocks(element: Any, n_cells: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """Yield the first row and the counts of some cells at a time, from any encoding that AnnData writes."""
    from anndata.io import read_elem, sparse_dataset

    if isinstance(element, h5py.Dataset):
        source: Any = element
    elif element.attrs.get("encoding-type") == "csr_matrix":
        source = sparse_dataset(element)
    else:  # stored gene by gene: rows cannot be read apart
        source = read_elem(element).tocsr()
    for start in range(0, n_cells, _ROWS):
        yield start, sparse.csr_matrix(source[start : start + _ROWS]).astype(np.float64)


def _require_counts(counts: sparse.csr_matrix, what: str) -> None:
    """Refuse what are no raw counts."""
    values = counts.data
    if values.size and (not np.isfinite(values).all() or values.min() < 0 or (values % 1 != 0).any()):
        raise AssayError(
            f"{what} must hold raw counts, got {values[(values < 0) | (values % 1 != 0)][:1]}; "
            "put the counts into layers['counts']."
        )


def shared_columns(reference: Reference, names: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Column of the reference for each gene of a run `(G,)`, -1 where it has none; by the naming that matches most.

    Args:
        reference: with names and ids of its genes.
        names: namings of the run's genes, such as `genes` and `gene_ids`, each G long.

    Raises:
        AssayError: no gene is shared.
    """
    pairs = [(mine, theirs) for mine in (reference.genes, reference.gene_ids) for theirs in names]
    found = [_positions(mine, theirs) for mine, theirs in pairs]
    best = max(found, key=lambda columns: int((columns >= 0).sum()))
    if not (best >= 0).any():
        raise AssayError(
            f"reference and maps must share genes, but none is in both: {', '.join(reference.genes[:3])} ... and "
            f"{', '.join(names[0][:3])} ...; use one naming (symbols or Ensembl ids)."
        )
    return best


def _positions(known: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """Position of each wanted name among the known ones, the first of repeated ones; -1 for none."""
    first = pd.Series(np.arange(len(known)), index=list(known))
    first = first[~first.index.duplicated()]
    return np.asarray(first.reindex(list(wanted)).fillna(-1), dtype=np.int64)
