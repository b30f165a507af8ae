"""References of cell types: profiles against plain means, in every encoding, and every fault named."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from superst_monai.analysis import cell_types_reference
from superst_monai.analysis.cell_types_reference import read_markers, read_reference, shared_columns
from superst_monai.errors import AssayError, StoreError

COUNTS = np.random.default_rng(0).poisson(2.0, (11, 5))
LABELS = ["B", "T", "B", None, "T", "B", "T", "T", "B", "B", "T"]


def cells(x: object) -> anndata.AnnData:
    """Eleven cells, the seventh of which is empty and the fourth without a label."""
    obs = pd.DataFrame({"kind": pd.Categorical(LABELS)}, index=[f"c{i}" for i in range(11)])
    var = pd.DataFrame({"gene_ids": [f"ENSG{i}" for i in range(5)]}, index=[f"g{i}" for i in range(5)])
    return anndata.AnnData(x, obs=obs, var=var)


def counts() -> np.ndarray:
    """Counts with an empty cell."""
    values = COUNTS.astype(np.float32)
    values[6] = 0
    return values


@pytest.mark.parametrize("where", ["X dense", "X csr", "X csc", "layer", "raw"])
def test_profiles_are_means_of_shares(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every type's mean of counts over depth, read a few cells at a time from wherever raw counts are."""
    monkeypatch.setattr(cell_types_reference, "_ROWS", 4)
    logged = np.log1p(counts())
    if where == "layer":
        adata = cells(logged)
        adata.layers["counts"] = sparse.csr_matrix(counts())
    elif where == "raw":
        adata = cells(sparse.csr_matrix(counts()))
        adata.raw = adata.copy()
        adata.X = logged
    else:
        make = {"X dense": np.asarray, "X csr": sparse.csr_matrix, "X csc": sparse.csc_matrix}[where]
        adata = cells(make(counts()))
    adata.write_h5ad(tmp_path / "ref.h5ad")
    found = read_reference(tmp_path / "ref.h5ad", "kind")
    assert found.cell_types == ["B", "T"]
    assert found.genes == [f"g{i}" for i in range(5)]
    assert found.gene_ids == [f"ENSG{i}" for i in range(5)]
    for t, name in enumerate("BT"):
        mine = [i for i in range(11) if LABELS[i] == name and i != 6]
        share = [counts()[i] / counts()[i].sum() for i in mine]
        np.testing.assert_allclose(found.profile[t], np.mean(share, axis=0), rtol=1e-6)
        assert found.n_cells is not None
        assert found.n_cells[t] == len(mine)


def test_what_is_no_reference_is_refused(tmp_path: Path) -> None:
    """No file, another file, no column, no counts, one type, a type without counts."""
    with pytest.raises(StoreError, match=r"cannot be read as .h5ad"):
        read_reference(tmp_path / "none.h5ad", "kind")
    (tmp_path / "text.h5ad").write_text("x")
    with pytest.raises(StoreError, match=r"cannot be read as .h5ad"):
        read_reference(tmp_path / "text.h5ad", "kind")
    path = tmp_path / "ref.h5ad"
    cells(np.log1p(counts())).write_h5ad(path)
    with pytest.raises(AssayError, match="must have the column type in obs, got kind; name the column"):
        read_reference(path, "type")
    with pytest.raises(AssayError, match=r"X of reference .* must hold raw counts, got"):
        read_reference(path, "kind")
    one = cells(counts())
    one.obs["kind"] = "B"
    one.write_h5ad(path)
    with pytest.raises(AssayError, match="at least two cell types in kind, got 1"):
        read_reference(path, "kind")
    empty = counts()
    empty[[i for i in range(11) if LABELS[i] == "T"]] = 0
    cells(empty).write_h5ad(path)
    with pytest.raises(AssayError, match=r"every cell type of reference .* must have counts, but T have none"):
        read_reference(path, "kind")


def test_marker_tables_are_read(tmp_path: Path) -> None:
    """Types and genes in alphabetical order, weights where given, any separator."""
    path = tmp_path / "markers.csv"
    path.write_text("gene,cell_type,weight\nCD3E,T,1\nMS4A1,B,2.5\nCD19,B,1\nCD3E,B,0.5\n")
    found = read_markers(path)
    assert (found.cell_types, found.genes) == (["B", "T"], ["CD19", "CD3E", "MS4A1"])
    np.testing.assert_array_equal(found.profile, [[1, 0.5, 2.5], [0, 1, 0]])
    assert found.is_table
    path.write_text("cell_type\tgene\nT\tCD3E\nB\tCD19\n")
    np.testing.assert_array_equal(read_markers(path).profile, [[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("type,gene\nT,CD3E\n", "must have the columns cell_type and gene, missing cell_type, got type, gene"),
        ("cell_type,gene\nT,CD3E\nT,CD2\n", "at least two cell types are needed, got 1"),
        ("cell_type,gene,weight\nT,CD3E,x\nB,,1\nB,CD19,-1\nB,CD79A,1\n", "row 2 is .*; row 3 is .*; row 4 is incompl"),
    ],
)
def test_marker_tables_with_faults_are_refused(text: str, fault: str, tmp_path: Path) -> None:
    """Every faulty row is named by its line in the file."""
    path = tmp_path / "markers.csv"
    path.write_text(text)
    with pytest.raises(AssayError, match=fault):
        read_markers(path)
    with pytest.raises(StoreError, match="cannot be read"):
        read_markers(tmp_path / "none.csv")


def test_genes_are_matched_by_the_naming_that_fits_best(tmp_path: Path) -> None:
    """Names against names, names against ids, ids against ids; of repeated names the first counts."""
    cells(counts()).write_h5ad(tmp_path / "ref.h5ad")
    reference = read_reference(tmp_path / "ref.h5ad", "kind")
    names, ids = ["g4", "g0", "x"], ["ENSG4", "ENSG0", "y"]
    for naming in ([names, ids], [ids, names], [["p", "q", "r"], ids]):
        np.testing.assert_array_equal(shared_columns(reference, naming), [4, 0, -1])
    with pytest.raises(AssayError, match="none is in both"):
        shared_columns(reference, [["p"], ["q"]])
