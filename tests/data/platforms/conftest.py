"""Writers of small files of every platform, all of one known matrix."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse
from scipy.io import mmwrite

PX_PER_UM = 0.5  # of the full-resolution frame below: 2 um per px


class Known(NamedTuple):
    """The truth that every writer writes: 12 spots x 5 genes, of which spots 3 and 7 lie outside the tissue."""

    counts: NDArray[np.int64]
    barcodes: list[str]
    genes: list[str]
    ids: list[str]
    in_tissue: NDArray[np.int64]
    array_row: NDArray[np.int64]
    array_col: NDArray[np.int64]
    x_fullres: NDArray[np.float64]
    y_fullres: NDArray[np.float64]

    @property
    def under_tissue(self) -> NDArray[np.int64]:
        """Rows of the spots under tissue."""
        return np.flatnonzero(self.in_tissue)


@pytest.fixture
def known() -> Known:
    """Spots of three interlocking rows at 2 um per px, turned by 30 degrees; one symbol stands for two genes."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (12, 5))
    in_tissue = np.ones(12, dtype=np.int64)
    in_tissue[[3, 7]] = 0
    row = np.repeat([0, 1, 2], 4)
    col = np.tile([0, 2, 4, 6], 3) + row % 2
    plane = np.column_stack([col * 50.0, row * 50.0 * np.sqrt(3)]) * PX_PER_UM
    turn = np.deg2rad(30.0)
    xy = plane @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + (200.0, 100.0)
    barcodes = [f"{''.join(rng.choice(list('ACGT'), 16))}-1" for _ in range(12)]
    genes, ids = ["ACTB", "TBCE", "GAPDH", "TBCE", "XIST"], [f"ENSG{i}" for i in range(5)]
    return Known(counts, barcodes, genes, ids, in_tissue, row, col, xy[:, 0], xy[:, 1])


def positions(known: Known) -> pd.DataFrame:
    """The positions table in an order other than that of the counts."""
    table = pd.DataFrame(
        {
            "barcode": known.barcodes,
            "in_tissue": known.in_tissue,
            "array_row": known.array_row,
            "array_col": known.array_col,
            "pxl_row_in_fullres": known.y_fullres,
            "pxl_col_in_fullres": known.x_fullres,
        }
    )
    return table.iloc[::-1]


def write_v3(path: Path, known: Known, **changes: Any) -> None:
    """Write the `matrix/features` layout; `changes` replace datasets (None leaves one out)."""
    matrix = sparse.csr_matrix(changes.pop("counts", known.counts))
    fields = {
        "matrix/barcodes": np.array(known.barcodes, dtype="S"),
        "matrix/data": matrix.data,
        "matrix/indices": matrix.indices,
        "matrix/indptr": matrix.indptr,
        "matrix/shape": np.array(matrix.shape[::-1]),
        "matrix/features/id": np.array(known.ids, dtype="S"),
        "matrix/features/name": np.array(known.genes, dtype="S"),
        "matrix/features/feature_type": np.array(["Gene Expression"] * len(known.ids), dtype="S"),
        "matrix/features/genome": np.array(["GRCh38"] * len(known.ids), dtype="S"),
    }
    fields |= {key.replace("__", "/"): value for key, value in changes.items()}
    write_h5(path, fields)


def write_h5(path: Path, fields: dict[str, Any]) -> None:
    """Write datasets that are not None."""
    with h5py.File(path, "w") as file:
        for key, value in fields.items():
            if value is not None:
                file[key] = value


def write_v2(
    path: Path, genomes: dict[str, tuple[NDArray[np.int64], Sequence[str], Sequence[str], Sequence[str]]]
) -> None:
    """Write one group per genome of (counts, barcodes, genes, ids)."""
    fields: dict[str, Any] = {}
    for name, (counts, barcodes, genes, ids) in genomes.items():
        matrix = sparse.csr_matrix(counts)
        fields |= {
            f"{name}/barcodes": np.array(barcodes, dtype="S"),
            f"{name}/data": matrix.data,
            f"{name}/indices": matrix.indices,
            f"{name}/indptr": matrix.indptr,
            f"{name}/shape": np.array(matrix.shape[::-1]),
            f"{name}/genes": np.array(ids, dtype="S"),
            f"{name}/gene_names": np.array(genes, dtype="S"),
        }
    write_h5(path, fields)


def write_text(path: Path, content: str) -> None:
    """Write text, gzipped if the name says so."""
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mtx(folder: Path, known: Known, *, packed: bool, features: str, columns: int) -> None:
    """Write an mtx folder with a features table of 1, 2 or 3 columns."""
    folder.mkdir(parents=True)
    end = ".gz" if packed else ""
    mmwrite(folder / "matrix.mtx", sparse.coo_matrix(known.counts.T))
    if packed:
        write_text(folder / "matrix.mtx.gz", (folder / "matrix.mtx").read_text())
        (folder / "matrix.mtx").unlink()
    rows = [(i, g, "Gene Expression")[:columns] for i, g in zip(known.ids, known.genes, strict=True)]
    write_text(folder / f"{features}{end}", "".join("\t".join(row) + "\n" for row in rows))
    write_text(folder / f"barcodes.tsv{end}", "".join(f"{b}\n" for b in known.barcodes))


def write_image(path: Path, size: int = 40) -> Path:
    """Write a plain picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), 200, np.uint8)).save(path)
    return path


FACTORS = {"spot_diameter_fullres": 27.5, "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1}


@pytest.fixture
def outs(tmp_path: Path, known: Known) -> Path:
    """A Space Ranger 2 folder: v3 `.h5`, positions with header, hires and lowres image."""
    folder = tmp_path / "outs"
    spatial = folder / "spatial"
    spatial.mkdir(parents=True)
    positions(known).to_csv(spatial / "tissue_positions.csv", index=False)
    (spatial / "scalefactors_json.json").write_text(json.dumps(FACTORS))
    write_v3(folder / "filtered_feature_bc_matrix.h5", known)
    write_image(spatial / "tissue_hires_image.png")
    write_image(spatial / "tissue_lowres_image.png")
    return folder


@pytest.fixture
def write() -> SimpleNamespace:
    """The writers above, since test files cannot import each other."""
    return SimpleNamespace(
        v2=write_v2,
        v3=write_v3,
        mtx=write_mtx,
        text=write_text,
        image=write_image,
        positions=positions,
        factors=FACTORS,
    )
