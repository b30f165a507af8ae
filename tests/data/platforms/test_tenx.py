"""10x counts of every layout give the known matrix, and corrupt ones an error that names file and part."""

from __future__ import annotations

import gzip

import h5py
import numpy as np
import pytest
from scipy import sparse
from scipy.io import mmwrite

from superst_monai.data.platforms.tenx import find_counts, one_of, read_tenx
from superst_monai.errors import AssayError


def test_the_v3_h5_layout_gives_the_known_matrix(known, write, tmp_path):
    """`matrix/features` is read with barcodes, symbols and ids."""
    write.v3(tmp_path / "filtered_feature_bc_matrix.h5", known)
    got = read_tenx(tmp_path / "filtered_feature_bc_matrix.h5")
    np.testing.assert_array_equal(got.counts.toarray(), known.counts)
    assert (got.barcodes, got.genes, got.gene_ids) == (known.barcodes, known.genes, known.ids)
    assert not got.raw
    assert got.notes == ("counts read from filtered_feature_bc_matrix.h5",)


def test_a_v3_file_without_types_and_genomes_is_all_genes(known, write, tmp_path):
    """Files that name no feature type hold genes only."""
    write.v3(tmp_path / "a.h5", known, matrix__features__feature_type=None, matrix__features__genome=None)
    np.testing.assert_array_equal(read_tenx(tmp_path / "a.h5").counts.toarray(), known.counts)


def test_features_that_are_no_genes_are_dropped_and_noted(known, write, tmp_path):
    """Antibodies and guides leave, by kind in the note; the genes keep their counts."""
    kinds = ["Gene Expression", "Antibody Capture", "Gene Expression", "CRISPR Guide Capture", "Antibody Capture"]
    write.v3(tmp_path / "a.h5", known, matrix__features__feature_type=np.array(kinds, dtype="S"))
    got = read_tenx(tmp_path / "a.h5")
    np.testing.assert_array_equal(got.counts.toarray(), known.counts[:, [0, 2]])
    assert got.genes == ["ACTB", "GAPDH"]
    assert "3 of 5 features are no genes and were dropped (2 Antibody Capture, 1 CRISPR Guide Capture)" in got.notes


def test_a_file_without_genes_is_refused(known, write, tmp_path):
    """Protein alone is not what the model fits."""
    write.v3(tmp_path / "a.h5", known, matrix__features__feature_type=np.array(["Antibody Capture"] * 5, dtype="S"))
    with pytest.raises(AssayError, match="features of type Gene Expression, got only Antibody Capture"):
        read_tenx(tmp_path / "a.h5")


def test_genes_of_all_genomes_are_kept_and_noted(known, write, tmp_path):
    """A barnyard file keeps every gene with its id."""
    genomes = np.array(["GRCh38"] * 3 + ["mm10"] * 2, dtype="S")
    write.v3(tmp_path / "a.h5", known, matrix__features__genome=genomes)
    got = read_tenx(tmp_path / "a.h5")
    assert got.gene_ids == known.ids
    assert "2 genomes (GRCh38, mm10), the genes of all were kept" in got.notes


def test_the_v2_layout_of_one_genome_gives_the_known_matrix(known, write, tmp_path):
    """One group with `genes` and `gene_names` is read like the newer layout."""
    write.v2(tmp_path / "a.h5", {"GRCh38": (known.counts, known.barcodes, known.genes, known.ids)})
    got = read_tenx(tmp_path / "a.h5")
    np.testing.assert_array_equal(got.counts.toarray(), known.counts)
    assert (got.barcodes, got.genes, got.gene_ids) == (known.barcodes, known.genes, known.ids)


def test_v2_genomes_with_other_spots_are_joined_with_zeros(known, write, tmp_path):
    """A spot that one genome does not list has no counts of its genes."""
    first, second = known.counts[:8, :3], known.counts[4:, 3:]
    write.v2(
        tmp_path / "a.h5",
        {
            "hg": (first, known.barcodes[:8], known.genes[:3], known.ids[:3]),
            "mm": (second[::-1], known.barcodes[4:][::-1], known.genes[3:], known.ids[3:]),
        },
    )
    got = read_tenx(tmp_path / "a.h5")
    truth = np.zeros_like(known.counts)
    truth[:8, :3], truth[4:, 3:] = first, second
    order = [got.barcodes.index(barcode) for barcode in known.barcodes]
    np.testing.assert_array_equal(got.counts.toarray()[order], truth)
    assert got.gene_ids == known.ids


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("features", "columns"), [("features.tsv", 3), ("genes.tsv", 2), ("features.tsv", 1)])
def test_mtx_folders_of_every_version_give_the_known_matrix(known, write, tmp_path, packed, features, columns):
    """Plain or gzipped, with one to three columns of features."""
    folder = tmp_path / "filtered_feature_bc_matrix"
    write.mtx(folder, known, packed=packed, features=features, columns=columns)
    got = read_tenx(folder)
    np.testing.assert_array_equal(got.counts.toarray(), known.counts)
    assert (got.barcodes, got.gene_ids) == (known.barcodes, known.ids)
    assert got.genes == (known.ids if columns == 1 else known.genes)


def test_a_gene_called_na_keeps_its_name(known, write, tmp_path):
    """Words that tables take for missing values are names here."""
    write.mtx(
        tmp_path / "m",
        known._replace(genes=["NA", "nan", 'a"b', "null", "1"]),
        packed=True,
        features="features.tsv",
        columns=3,
    )
    assert read_tenx(tmp_path / "m").genes == ["NA", "nan", 'a"b', "null", "1"]


def test_fractions_under_an_integer_header_are_refused(known, write, tmp_path):
    """A value that the header would cut off to an integer is seen."""
    folder = tmp_path / "m"
    write.mtx(folder, known, packed=False, features="features.tsv", columns=3)
    body = (folder / "matrix.mtx").read_text().rstrip().rsplit(" ", 1)[0] + " 2.5\n"
    (folder / "matrix.mtx").write_text(body)
    with pytest.raises(AssayError, match=r"1 of \d+ stored values are not integers \(first 2\.5 at spot"):
        read_tenx(folder)


def test_raw_counts_are_known_as_raw(known, write, tmp_path):
    """Counts of a raw file are marked and noted."""
    write.v3(tmp_path / "raw_feature_bc_matrix.h5", known)
    got = read_tenx(tmp_path / "raw_feature_bc_matrix.h5")
    assert got.raw
    assert any("raw counts were read" in note for note in got.notes)


def test_filtered_comes_before_raw_and_h5_before_mtx(known, write, tmp_path):
    """The choice among several counts is fixed: filtered h5, filtered mtx, raw h5, raw mtx, loose files."""
    assert find_counts(tmp_path) is None
    write.mtx(tmp_path / "loose", known, packed=False, features="genes.tsv", columns=2)
    assert find_counts(tmp_path / "loose") == tmp_path / "loose"
    for name in (
        "raw_feature_bc_matrix",
        "raw_feature_bc_matrix.h5",
        "filtered_feature_bc_matrix",
        "S1_filtered_feature_bc_matrix.h5",
    ):
        (tmp_path / name).mkdir()
        assert find_counts(tmp_path) == tmp_path / name


def test_two_samples_in_one_folder_are_refused(tmp_path):
    """A prefix is accepted where it is not ambiguous."""
    (tmp_path / "A_barcodes.tsv").touch()
    assert one_of([tmp_path], ["barcodes.tsv"]) == tmp_path / "A_barcodes.tsv"
    (tmp_path / "B_barcodes.tsv").touch()
    with pytest.raises(AssayError, match=r"must hold one barcodes\.tsv, got A_barcodes\.tsv, B_barcodes\.tsv"):
        one_of([tmp_path], ["barcodes.tsv"])


def test_a_truncated_h5_is_named(known, write, tmp_path):
    """Half a file is refused with its name and the next step."""
    path = tmp_path / "a.h5"
    write.v3(path, known)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AssayError, match=r"a\.h5 cannot be read as 10x HDF5 counts .*copy or download the file again"):
        read_tenx(path)


def test_another_h5_is_refused(tmp_path):
    """A file of another program is not taken for counts."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["expression"] = np.zeros(3)
    with pytest.raises(
        AssayError, match="must hold the group matrix or one group per genome with genes, got expression"
    ):
        read_tenx(tmp_path / "a.h5")


def test_missing_datasets_are_all_named(known, write, tmp_path):
    """Both absent parts stand in one message."""
    write.v3(tmp_path / "a.h5", known, matrix__indptr=None, matrix__features__id=None)
    with pytest.raises(AssayError, match="datasets /matrix/indptr, /matrix/features/id are missing"):
        read_tenx(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("matrix__shape", np.array([12, 5]), r"\(features, barcodes\) = \(5, 12\), got \(12, 5\)"),
        ("matrix__indices", np.full(60, 99), "cannot be read as 10x HDF5 counts"),
        ("matrix__indptr", np.array([0, 5]), "cannot be read as 10x HDF5 counts"),
    ],
)
def test_h5_parts_that_contradict_each_other_are_refused(known, write, tmp_path, field, value, said):
    """Shape, indices and pointers must fit, before anything is read out of bounds."""
    full = known._replace(counts=known.counts + 1)
    write.v3(tmp_path / "a.h5", full, **{field: value})
    with pytest.raises(AssayError, match=said):
        read_tenx(tmp_path / "a.h5")


def test_repeated_barcodes_of_a_genome_are_refused(known, write, tmp_path):
    """The old layout cannot be joined over barcodes that repeat."""
    barcodes = [known.barcodes[0], *known.barcodes[:-1]]
    write.v2(tmp_path / "a.h5", {"hg": (known.counts, barcodes, known.genes, known.ids)})
    with pytest.raises(AssayError, match="hg/barcodes repeats a barcode"):
        read_tenx(tmp_path / "a.h5")


def test_missing_files_of_an_mtx_folder_are_all_named(tmp_path):
    """An empty folder lacks three files."""
    with pytest.raises(AssayError, match=r"matrix\.mtx is missing .*barcodes\.tsv is missing .*features\.tsv or genes"):
        read_tenx(tmp_path)


@pytest.mark.parametrize("name", ["matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"])
def test_a_truncated_gz_is_named(known, write, tmp_path, name):
    """Each of the three files is refused when its end is missing."""
    folder = tmp_path / "m"
    write.mtx(folder, known, packed=True, features="features.tsv", columns=3)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(AssayError, match=rf"{name} cannot be read as .*copy or download the file again"):
        read_tenx(folder)


def test_a_gz_with_broken_bytes_is_named(known, write, tmp_path):
    """Damage inside the stream is found too."""
    folder = tmp_path / "m"
    write.mtx(folder, known, packed=True, features="features.tsv", columns=3)
    data = bytearray((folder / "matrix.mtx.gz").read_bytes())
    data[20:60] = b"\xff" * 40
    (folder / "matrix.mtx.gz").write_bytes(data)
    with pytest.raises(AssayError, match=r"matrix\.mtx\.gz cannot be read as Matrix Market counts"):
        read_tenx(folder)


def test_mtx_and_names_of_different_runs_are_refused(known, write, tmp_path):
    """The sides of the matrix must be the lengths of the two tables."""
    folder = tmp_path / "m"
    write.mtx(folder, known, packed=False, features="features.tsv", columns=3)
    mmwrite(folder / "matrix.mtx", sparse.coo_matrix(known.counts))
    with pytest.raises(
        AssayError, match=r"must be \(features, barcodes\) = \(5, 12\) as features\.tsv and barcodes\.tsv say"
    ):
        read_tenx(folder)


def test_gzip_is_known_by_its_bytes(known, write, tmp_path):
    """A gzipped table without its ending is still read."""
    folder = tmp_path / "m"
    write.mtx(folder, known, packed=False, features="features.tsv", columns=3)
    table = folder / "features.tsv"
    table.write_bytes(gzip.compress(table.read_bytes()))
    assert read_tenx(folder).genes == known.genes
