"""What every reader relies on: raw counts are recognised, names made unique, parts fit, bad files are named."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from superst_monai.data.platforms.assay import (
    Assay,
    check_counts,
    few,
    gene_table,
    reading,
    require_positive,
    unique_names,
    zero_notes,
)
from superst_monai.errors import AssayError, ShapeError


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float32", "float64", "bool"])
@pytest.mark.parametrize(
    "form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix, sparse.csr_array]
)
def test_integers_of_every_type_and_form_are_counts(dtype, form):
    """Whole numbers keep their values whatever stores them."""
    truth = np.random.default_rng(1).integers(0, 2 if dtype == "bool" else 100, (6, 4))
    got = check_counts(form(truth.astype(dtype)), "file")
    assert sparse.isspmatrix_csr(got)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got.toarray(), truth)


def test_repeated_entries_are_summed_and_the_input_is_untouched():
    """Two stored values of one cell add up, zeros are not stored, and the caller's matrix stays as it was."""
    matrix = sparse.csr_matrix((np.array([1.0, 2.0, 0.0]), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2))
    got = check_counts(matrix, "file")
    np.testing.assert_array_equal(got.toarray(), [[0, 3], [0, 0]])
    assert (got.nnz, matrix.nnz) == (1, 3)


def test_all_kinds_of_wrong_values_are_reported_with_their_first():
    """NaN, negative, fractional and huge values are counted, each with spot and gene of its first."""
    matrix = np.array([[1.0, np.nan, -2.0], [0.5, 3e9, 0.25]])
    with pytest.raises(AssayError) as caught:
        check_counts(matrix, "a.h5ad, X", spots=["s0", "s1"], genes=["g0", "g1", "g2"])
    for part in (
        "a.h5ad, X, which must hold raw counts",
        "1 of 6 stored values are not finite (first nan at spot 's0', gene 'g1')",
        "1 of 6 stored values are negative (first -2 at spot 's0', gene 'g2')",
        "2 of 6 stored values are not integers (first 0.5 at spot 's1', gene 'g0')",
        "1 of 6 stored values are larger than 2^31 - 1 (first 3e+09 at spot 's1', gene 'g1')",
        "layers['counts']",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("matrix", "looks"),
    [
        ([[0.0, 0.69], [1.1, 0.0]], "looks log-normalised"),
        ([[0.0, 1234.5], [1.1, 0.0]], "looks normalised"),
        ([[0.3, -1.2], [1.1, 0.0]], "looks scaled"),
    ],
)
def test_normalised_input_is_recognised(matrix, looks):
    """The refusal says what the values look like, and without names gives row and column."""
    with pytest.raises(AssayError, match=rf"at row 0, column \d\).*{looks}"):
        check_counts(np.array(matrix), "file")


@pytest.mark.parametrize("matrix", [np.array([["a"]]), np.zeros(3), np.zeros((2, 2), complex), np.array([[None]])])
def test_what_is_no_matrix_of_numbers_is_refused(matrix):
    """Text, objects, complex numbers and vectors are no counts."""
    with pytest.raises(AssayError, match="file must be a matrix of numbers"):
        check_counts(matrix, "file")


def test_corrupt_sparse_indices_are_refused():
    """A column index beyond the matrix is found before anything reads out of bounds."""
    matrix = sparse.csr_matrix(np.eye(3))
    matrix.indices[1] = 7
    with pytest.raises(AssayError, match="file is not a valid sparse matrix"):
        check_counts(matrix, "file")


def test_unique_names_counts_on_over_taken_suffixes():
    """The first keeps its name, later ones get the next free suffix, an empty name its id."""
    names = ["A", "B", "A", "A-1", "A", "", "B"]
    assert unique_names(names, list("1234567")) == ["A", "B", "A-2", "A-1", "A-3", "6", "B-1"]


def test_unique_names_leaves_unique_names_alone():
    """Unique names come back as they are, also none at all."""
    assert unique_names(["x", "y"], ["1", "2"]) == ["x", "y"]
    assert unique_names([], []) == []


def test_gene_table_keeps_ids_and_notes_changes():
    """The index is unique, `gene_id` is the id, and changed names are noted."""
    table, notes = gene_table(["A", "A"], ["i", "j"])
    assert table.index.tolist() == ["A", "A-1"]
    assert table.index.name == "gene"
    assert table["gene_id"].tolist() == ["i", "j"]
    assert notes == ("1 of 2 gene names were repeated or empty and got a suffix or their id (gene_id is kept)",)
    assert gene_table(["A"], ["i"])[1] == ()


def test_empty_spots_and_genes_are_noted():
    """Rows and columns without counts are counted in notes, and none is a note."""
    assert zero_notes(sparse.csr_matrix([[0, 1, 0], [0, 0, 0]])) == (
        "1 of 2 spots have no count",
        "2 of 3 genes have no count in any spot kept",
    )
    assert zero_notes(sparse.csr_matrix([[1]])) == ()


def test_few_lists_the_first_and_the_number():
    """A long list is cut, a short one is whole."""
    assert few("abcd") == "a, b, c ... (4)"
    assert few("abc") == "a, b, c"


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_impossible_options_are_refused(value):
    """An option that is a length or a factor is positive and finite."""
    with pytest.raises(AssayError, match="image_scale must be a positive number, got"):
        require_positive("image_scale", value)


@pytest.mark.parametrize(
    "error", [OSError("bad"), EOFError(), zlib.error("bad"), KeyError("x"), RuntimeError("bad"), UnicodeError("bad")]
)
def test_what_decoders_raise_names_the_file(error):
    """Each decoder's own error becomes an AssayError with file, kind and next step."""
    with (
        pytest.raises(AssayError, match=r"a\.h5 cannot be read as counts \(.+\); copy or download"),
        reading(Path("a.h5"), "counts"),
    ):
        raise error


def test_an_assay_error_passes_through_reading():
    """A fault that is already explained is not wrapped."""
    with pytest.raises(AssayError, match=r"^mine$"), reading(Path("a.h5"), "counts"):
        raise AssayError("mine")


def spots(**changes):
    """Two spots."""
    table = {"x_px0": [1.0, 2.0], "y_px0": [1.0, 2.0], "diameter_px0": [1.0, 1.0]} | changes
    return pd.DataFrame(table, index=pd.Index(changes.pop("index", ["a", "b"]), name="barcode"))


def assay(table, counts=((1, 0), (0, 2)), genes=("g", "h")):
    """Build an assay of the table."""
    return Assay(
        counts=sparse.csr_matrix(np.array(counts)),
        spots=table,
        genes=gene_table(genes, genes)[0],
        platform="st",
        image=Path("a.png"),
        mpp=None,
        scale_factors={},
    )


def test_an_assay_of_fitting_parts_is_a_circle_without_notes():
    """Shape and notes have their defaults."""
    made = assay(spots())
    assert (made.shape, made.notes) == ("circle", ())


def test_an_assay_refuses_lengths_that_differ():
    """Counts must have a row for each spot."""
    with pytest.raises(ShapeError, match=r"= \(2, 2\), got \(1, 2\)"):
        assay(spots(), counts=((1, 0),))


def test_an_assay_refuses_a_missing_column():
    """Every spot needs a diameter."""
    with pytest.raises(ShapeError, match="diameter_px0 missing"):
        assay(spots().drop(columns="diameter_px0"))


def test_an_assay_lists_all_faults_of_its_spots():
    """Repeated names and impossible geometry are reported together."""
    table = spots(x_px0=[np.nan, 1.0], diameter_px0=[1.0, 0.0]).set_axis(["a", "a"])
    with pytest.raises(AssayError, match=r"1 spot names are repeated: a; a, a lack a finite position"):
        assay(table)
