"""Counts of 10x pipelines: `.h5` files (one group per genome, or `matrix`) and mtx folders of every version."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import h5py
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.io import mmread

from superst_monai.data.platforms.assay import check_counts, few, raise_faults, reading
from superst_monai.errors import AssayError

_EXPRESSION = "Gene Expression"
_STEMS = ("filtered_feature_bc_matrix", "raw_feature_bc_matrix")
_H5_FIELDS = ("barcodes", "data", "indices", "indptr", "shape")
_COPY = "copy or download the file again"


@dataclass(frozen=True)
class TenxCounts:
    """A counts matrix as the pipeline wrote it.

    Attributes:
        counts: raw counts `(S, G)`, int32, of the features of type Gene Expression.
        barcodes: S barcodes in the order of the file, not yet checked for repeats.
        genes: G gene symbols.
        gene_ids: G gene ids.
        file: where it was read from.
        raw: whether it holds the spots outside the tissue too.
        notes: what was chosen or left out, one sentence each.
    """

    counts: sparse.csr_matrix
    barcodes: list[str]
    genes: list[str]
    gene_ids: list[str]
    file: Path
    raw: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Features:
    """Rows of the features table: symbol, id, type and genome of each."""

    names: list[str]
    ids: list[str]
    types: list[str]
    genomes: list[str]


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed if its first bytes are those of gzip, whatever its name."""
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(path, "rb")) if packed else path.open("rb")


def one_of(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """Find the first of several names in the folders, also with a sample's prefix (`GSM123_barcodes.tsv`).

    Raises:
        AssayError: several files of one folder carry the name with a prefix.
    """
    for name in names:
        for folder in folders:
            if (folder / name).exists():
                return folder / name
            found = sorted(folder.glob(f"*[_.-]{name}"))
            if len(found) > 1:
                raise AssayError(
                    f"{folder} must hold one {name}, got {few(f.name for f in found)}; give each sample its own folder."
                )
            if found:
                return found[0]
    return None


def find_counts(folder: Path) -> Path | None:
    """Find the counts of a Space Ranger folder: filtered before raw, `.h5` before the mtx folder, then loose files."""
    found = one_of([folder], [f"{stem}{ending}" for stem in _STEMS for ending in (".h5", "")])
    loose = one_of([folder], ["matrix.mtx", "matrix.mtx.gz"]) if found is None else None
    return folder if loose is not None else found


def read_tenx(path: Path) -> TenxCounts:
    """Read a `*_feature_bc_matrix.h5` file or a `*_feature_bc_matrix/` folder.

    Genes of several genomes are all kept, since their ids tell them apart; features of another type than
    Gene Expression (antibodies, CRISPR guides) are dropped; both are noted.

    Args:
        path: `.h5` file with `matrix/features` or with one group per genome (`genes`, `gene_names`), or the folder
            of `matrix.mtx`, `barcodes.tsv` and `features.tsv` or `genes.tsv`, each plain or gzipped.

    Raises:
        AssayError: the file is corrupt or truncated, a part is missing, lengths differ, or counts are not raw.
    """
    matrix, barcodes, features = _read_folder(path) if path.is_dir() else _read_h5(path)
    notes = [f"counts read from {path.name}"]
    raw = "raw_feature_bc_matrix" in path.name
    if raw:
        notes.append("filtered_feature_bc_matrix is absent, so raw counts were read and spots under tissue kept")
    wanted = np.array([kind in ("", _EXPRESSION) for kind in features.types], dtype=bool)
    if not wanted.any():
        raise AssayError(
            f"{path} must hold features of type {_EXPRESSION}, got only {few(sorted(set(features.types)))}; "
            "pass the gene expression output."
        )
    if not wanted.all():
        kinds = pd.Series(features.types)[~wanted].value_counts(sort=False)
        listed = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        notes.append(f"{int((~wanted).sum())} of {len(wanted)} features are no genes and were dropped ({listed})")
    kept = np.flatnonzero(wanted)
    genomes = sorted({features.genomes[i] for i in kept} - {""})
    if len(genomes) > 1:
        notes.append(f"{len(genomes)} genomes ({', '.join(genomes)}), the genes of all were kept")
    names = [features.names[i] for i in kept]
    matrix = matrix if wanted.all() else matrix[:, kept]
    counts = check_counts(matrix, str(path), spots=barcodes, genes=names)
    return TenxCounts(counts, barcodes, names, [features.ids[i] for i in kept], path, raw, tuple(notes))


def _read_h5(path: Path) -> tuple[sparse.csr_matrix, list[str], _Features]:
    """Read either layout of the HDF5 file as `(S, features)`."""
    with reading(path, "10x HDF5 counts"), h5py.File(path, "r") as file:
        if isinstance(file.get("matrix"), h5py.Group):
            group = file["matrix"]
            _require(path, group, (*_H5_FIELDS, "features/id", "features/name"))
            names, ids = _text(group["features/name"]), _text(group["features/id"])
            blank = [""] * len(ids)
            types = _text(group["features/feature_type"]) if "feature_type" in group["features"] else blank
            genomes = _text(group["features/genome"]) if "genome" in group["features"] else blank
            barcodes = _text(group["barcodes"])
            return _matrix_of(path, group, len(barcodes), len(ids)), barcodes, _Features(names, ids, types, genomes)
        groups = {name: item for name, item in file.items() if isinstance(item, h5py.Group)}
        if not groups or not all("genes" in group for group in groups.values()):
            raise AssayError(
                f"{path} must hold the group matrix or one group per genome with genes, got {few(file) or 'nothing'}; "
                "pass filtered_feature_bc_matrix.h5 of Space Ranger."
            )
        return _read_genomes(path, groups)


def _read_genomes(path: Path, groups: dict[str, h5py.Group]) -> tuple[sparse.csr_matrix, list[str], _Features]:
    """Read the old layout; a spot that one genome does not list has no count of its genes."""
    for group in groups.values():
        _require(path, group, (*_H5_FIELDS, "genes", "gene_names"))
    listed = {name: _text(group["barcodes"]) for name, group in groups.items()}
    repeated = [f"{name}/barcodes repeats a barcode" for name, own in listed.items() if len(set(own)) < len(own)]
    raise_faults(str(path), repeated, _COPY)
    barcodes = pd.Index(list(dict.fromkeys(barcode for own in listed.values() for barcode in own)))
    blocks, features = [], _Features([], [], [], [])
    for name, group in groups.items():
        own, ids = listed[name], _text(group["genes"])
        matrix = _matrix_of(path, group, len(own), len(ids)).tocoo()
        rows = barcodes.get_indexer(pd.Index(own))[matrix.row]
        blocks.append(sparse.csr_matrix((matrix.data, (rows, matrix.col)), shape=(len(barcodes), len(ids))))
        features.names.extend(_text(group["gene_names"]))
        features.ids.extend(ids)
        features.types.extend([""] * len(ids))
        features.genomes.extend([name] * len(ids))
    return sparse.csr_matrix(sparse.hstack(blocks)), barcodes.tolist(), features


def _require(path: Path, group: h5py.Group, fields: Sequence[str]) -> None:
    """Refuse a group that lacks datasets."""
    missing = [f"{group.name}/{field}" for field in fields if not isinstance(group.get(field), h5py.Dataset)]
    raise_faults(str(path), [f"datasets {', '.join(missing)} are missing"] if missing else [], _COPY)


def _matrix_of(path: Path, group: h5py.Group, n_barcodes: int, n_features: int) -> sparse.csr_matrix:
    """Build `(S, features)` from the compressed columns (one per barcode) of a group, indices checked."""
    shape = tuple(int(side) for side in group["shape"][()])
    if shape != (n_features, n_barcodes):
        raise AssayError(
            f"{path} must have {group.name}/shape = (features, barcodes) = ({n_features}, {n_barcodes}), got {shape}; "
            f"{_COPY}."
        )
    parts = (group["data"][()], group["indices"][()], group["indptr"][()])
    matrix = sparse.csr_matrix(parts, shape=(n_barcodes, n_features))
    matrix.check_format(full_check=True)
    return matrix


def _text(values: h5py.Dataset) -> list[str]:
    """Decode the fixed- or variable-length strings of a dataset `(N,)`."""
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values[()]]


def _read_folder(folder: Path) -> tuple[sparse.csr_matrix, list[str], _Features]:
    """Read the three files of an mtx folder as `(S, features)`."""
    wanted: dict[str, tuple[str, ...]] = {part: (part, f"{part}.gz") for part in ("matrix.mtx", "barcodes.tsv")}
    wanted["features.tsv or genes.tsv"] = ("features.tsv", "features.tsv.gz", "genes.tsv", "genes.tsv.gz")
    found = {part: one_of([folder], names) for part, names in wanted.items()}
    absent = [part for part, file in found.items() if file is None]
    raise_faults(str(folder), [f"{part} is missing (plain or .gz)" for part in absent], "copy the whole folder")
    matrix_file, barcode_file, feature_file = (file for file in found.values() if file is not None)
    matrix = _read_mtx(matrix_file)
    barcodes = _read_tsv(barcode_file)[0].tolist()
    table = _read_tsv(feature_file)
    if matrix.shape != (len(table), len(barcodes)):
        raise AssayError(
            f"{matrix_file} must be (features, barcodes) = ({len(table)}, {len(barcodes)}) as {feature_file.name} and "
            f"{barcode_file.name} say, got {matrix.shape}; copy the three files of one run."
        )
    ids = table[0].tolist()
    names = table[1].tolist() if 1 in table else ids
    types = table[2].tolist() if 2 in table else [""] * len(ids)
    return sparse.csr_matrix(matrix.T), barcodes, _Features(names, ids, types, [""] * len(ids))


def _read_mtx(path: Path) -> sparse.coo_matrix:
    """Read a Matrix Market file; numbers are read as reals, since an `integer` header would cut off fractions."""
    with reading(path, "Matrix Market counts"):
        with open_binary(path) as stream:
            header = stream.readline().replace(b"integer", b"real")
            body = stream.read()
        return sparse.coo_matrix(mmread(io.BytesIO(header + body)))


def _read_tsv(path: Path) -> pd.DataFrame:
    """Read a table of strings without header, tab separated; a `NA` stays text and a quote is a letter."""
    with reading(path, "tab-separated table"), open_binary(path) as stream:
        return pd.read_csv(stream, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=3).fillna("")
