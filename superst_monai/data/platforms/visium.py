"""Space Ranger `outs/` of every version and Visium HD bins -> Assay."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from superst_monai.data.platforms.assay import (
    Assay,
    duplicates,
    few,
    gene_table,
    raise_faults,
    reading,
    zero_notes,
)
from superst_monai.data.platforms.frames import (
    COLUMN_UM,
    PITCH_UM,
    ROW_UM,
    check_factors,
    fit_faults,
    fit_grid,
    fit_note,
    scale_of_image,
)
from superst_monai.data.platforms.tenx import TenxCounts, find_counts, one_of, open_binary, read_tenx
from superst_monai.errors import AssayError, SlideError

_POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
_IMAGES = tuple(f"tissue_{size}_image.{ending}" for size in ("hires", "lowres") for ending in ("png", "jpg", "tif"))
_MPP_ADVICE = (
    "correct the positions, or write the um per full-resolution px as microns_per_pixel into scalefactors_json.json"
)


@dataclass(frozen=True)
class _Files:
    """The files of one capture area."""

    counts: Path
    positions: Path
    factors: Path
    image: Path


def read_visium(outs: Path, *, image: Path | None = None, image_scale: float | None = None) -> Assay:
    """Read the output folder of Space Ranger, or one `binned_outputs/square_*` folder of Visium HD.

    Spots outside the tissue are left out. Multi-genome counts keep the genes of every genome. Space Ranger's
    spot diameter (a theoretical 55 to 65 um spot) is kept, and noted in um.

    Args:
        outs: folder with the counts and `spatial/`; files of `spatial/` may also lie directly in it.
        image: slide; a file named like `tissue_hires_image` or `tissue_lowres_image` brings its scale factor, any
            other is the full-resolution image. Without it the hires, then the lowres image of the folder is taken.
        image_scale: factor from full-resolution px to px of the image; overrides the image's own.

    Returns:
        Assay in px of the image. `mpp` comes from `microns_per_pixel` of the scale factors, else from the pitch of
        the array (fitted over all positions); None where fewer than three positions lie off one line.

    Raises:
        AssayError: a file is missing, corrupt or contradicts another; all faults of a file at once.
        SlideError: the given image does not exist.
    """
    files = _find_files(Path(outs), image)
    factors = _read_factors(files.factors)
    scale, scale_note = scale_of_image(files.image.name, factors, image_scale)
    positions = _read_positions(files.positions)
    tenx = read_tenx(files.counts)
    rows, join_notes = _join(tenx, positions, files)
    mpp_fullres, mpp_note = _mpp_fullres(positions, factors, files)
    diameter_px, diameter_note = _diameter(factors, mpp_fullres, files.factors)
    kept = positions.iloc[rows[rows >= 0]]
    spots = pd.DataFrame(
        {
            "x_px0": kept["pxl_col_in_fullres"] * scale,
            "y_px0": kept["pxl_row_in_fullres"] * scale,
            "diameter_px0": diameter_px * scale,
            "array_row": kept["array_row"],
            "array_col": kept["array_col"],
        }
    )
    counts = tenx.counts[np.flatnonzero(rows >= 0)]
    genes, gene_notes = gene_table(tenx.genes, tenx.gene_ids)
    return Assay(
        counts=counts,
        spots=spots,
        genes=genes,
        platform="visium",
        image=files.image,
        mpp=None if mpp_fullres is None else mpp_fullres / scale,
        scale_factors={key: value for key, value in factors.items() if key.endswith("_scalef")},
        shape="square" if "bin_size_um" in factors else "circle",
        notes=(*tenx.notes, scale_note, *join_notes, mpp_note, diameter_note, *gene_notes, *zero_notes(counts)),
    )


def _find_files(outs: Path, image: Path | None) -> _Files:
    """Find the four files, or say all that is missing and where it was looked for."""
    if not outs.is_dir():
        raise AssayError(f"{outs} must be a folder, the outs/ of Space Ranger; check the path.")
    if image is not None and not Path(image).is_file():
        raise SlideError(f"image {image} does not exist; check the path.")
    folders = [outs / "spatial", outs]
    counts = find_counts(outs)
    positions = one_of(folders, [f"{name}{packed}" for name in _POSITIONS for packed in ("", ".gz")])
    factors = one_of(folders, ["scalefactors_json.json", "scalefactors_json.json.gz"])
    picture = Path(image) if image is not None else one_of(folders, _IMAGES)
    bins = sorted(folder.name for folder in outs.glob("binned_outputs/square_*"))
    if counts is None and bins:
        raise AssayError(
            f"{outs} holds Visium HD bins of several sizes; pass one of binned_outputs/: {', '.join(bins)}."
        )
    faults = []
    if counts is None:
        faults.append("no counts: filtered_feature_bc_matrix.h5 or filtered_feature_bc_matrix/ (or raw_...) is missing")
    if positions is None:
        faults.append(f"no positions: {', '.join(_POSITIONS)} are all missing, in spatial/ too")
    if factors is None:
        faults.append("no scale factors: scalefactors_json.json is missing, in spatial/ too")
    if picture is None:
        faults.append("no image: tissue_hires_image.png is missing, pass --image (CLI) / image= (Python)")
    if counts is None or positions is None or factors is None or picture is None:
        raise AssayError(f"{outs}: {'; '.join(faults)}; pass the whole outs/ folder of Space Ranger.")
    return _Files(counts, positions, factors, picture)


def _read_factors(path: Path) -> dict[str, float]:
    """Read the numbers of `scalefactors_json.json`, each finite and positive."""
    with reading(path, "json"), open_binary(path) as stream:
        content = json.load(stream)
    if not isinstance(content, dict):
        raise AssayError(
            f"{path} must hold a json object of scale factors, got a {type(content).__name__}; copy it again."
        )
    numbers = check_factors(content, str(path))
    if "spot_diameter_fullres" not in numbers and "bin_size_um" not in numbers:
        raise AssayError(
            f"{path} must hold spot_diameter_fullres, got {few(content, 8) or 'nothing'}; copy the file again."
        )
    return numbers


def _read_positions(path: Path) -> pd.DataFrame:
    """Read any version of the positions table: index `barcode`, five numeric columns, all faults at once."""
    with reading(path, "positions table"):
        if ".parquet" in path.suffixes:
            table = pd.read_parquet(path)
            table = table.reset_index() if table.index.name == "barcode" else table
        else:
            with open_binary(path) as stream:
                table = pd.read_csv(stream, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            if str(table.iat[0, 0]).strip().lower() == "barcode":
                table = table.iloc[1:].set_axis(table.iloc[0].str.strip(), axis=1)
            elif table.shape[1] == len(_COLUMNS):
                table = table.set_axis(list(_COLUMNS), axis=1)
    missing = [column for column in _COLUMNS if column not in table]
    if missing:
        raise AssayError(
            f"{path} must hold the columns {', '.join(_COLUMNS)}, {', '.join(missing)} missing; copy the file of "
            "Space Ranger again."
        )
    table = table.set_index("barcode")
    numbers: pd.DataFrame = table[list(_COLUMNS[1:])].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    raise_faults(str(path), _position_faults(numbers), "copy the file of Space Ranger again")
    whole = ["in_tissue", "array_row", "array_col"]
    numbers[whole] = numbers[whole].astype(np.int64)
    return numbers


def _position_faults(numbers: pd.DataFrame) -> list[str]:
    """List repeated barcodes and every column with values it must not have."""
    faults = duplicates("barcodes", numbers.index)
    for column in numbers.columns:
        values = numbers[column]
        if column == "in_tissue":
            bad, law = ~values.isin([0, 1]), "0 or 1"
        elif column.startswith("array"):
            bad, law = ~np.isfinite(values) | (values != np.rint(values)), "whole numbers"
        else:
            bad, law = ~np.isfinite(values), "finite numbers"
        if bad.any():
            faults.append(f"{column} must be {law}, is not at {few(numbers.index[bad])}")
    return faults


def _join(tenx: TenxCounts, positions: pd.DataFrame, files: _Files) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Give the row in `positions` of each barcode of the counts `(S,)`, -1 outside the tissue, and what was dropped."""
    barcodes = pd.Index(tenx.barcodes)
    rows = positions.index.get_indexer(barcodes)
    faults = duplicates(f"barcodes of {files.counts.name}", barcodes)
    if (rows < 0).any():
        faults.append(
            f"{np.count_nonzero(rows < 0)} of {len(rows)} barcodes of {files.counts.name} are not in "
            f"{files.positions.name}: {few(barcodes[rows < 0])} (its barcodes: {few(positions.index)})"
        )
    raise_faults(str(files.counts.parent), faults, "pass counts and positions of the same run")
    in_tissue = positions["in_tissue"].to_numpy() == 1
    kept = in_tissue[rows]
    if not kept.any():
        raise AssayError(f"{files.positions} puts none of the {len(rows)} spots under tissue; set in_tissue to 1.")
    notes = [f"positions read from {files.positions.name}"]
    if not kept.all():
        notes.append(
            f"{np.count_nonzero(~kept)} of {len(kept)} spots with counts are not under tissue and were left out"
        )
    without = int(in_tissue.sum() - kept.sum())
    if without:
        notes.append(f"{without} positions under tissue have no counts and were dropped")
    return np.where(kept, rows, -1), tuple(notes)


def _mpp_fullres(positions: pd.DataFrame, factors: Mapping[str, float], files: _Files) -> tuple[float | None, str]:
    """Give the um per full-resolution px, from the scale factors or else from the array's pitch, and say which."""
    if "microns_per_pixel" in factors:
        mpp = factors["microns_per_pixel"]
        return mpp, f"mpp {mpp:.4g} um per full-resolution px from microns_per_pixel of {files.factors.name}"
    pitch_um = factors.get("bin_size_um", PITCH_UM)
    steps_um = (pitch_um, pitch_um) if "bin_size_um" in factors else (COLUMN_UM, ROW_UM)
    grid_um = positions[["array_col", "array_row"]].to_numpy(np.float64) * steps_um  # (N, 2)
    fit = fit_grid(grid_um, positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(np.float64))
    if fit is None:
        return None, f"mpp unknown: {files.positions.name} has fewer than three positions off one line"
    raise_faults(str(files.positions), fit_faults(fit, pitch_um), _MPP_ADVICE)
    return 1 / fit.px_per_um, f"full-resolution {fit_note(fit, pitch_um)}"


def _diameter(factors: Mapping[str, float], mpp_fullres: float | None, path: Path) -> tuple[float, str]:
    """Give the diameter of a spot or the side of a bin [full-resolution px] and say it in um."""
    if "bin_size_um" in factors and mpp_fullres is not None:
        side_um = factors["bin_size_um"]
        return (
            side_um / mpp_fullres,
            f"bins are squares of {side_um:g} um = {side_um / mpp_fullres:.2f} full-resolution px",
        )
    if "spot_diameter_fullres" not in factors:
        raise AssayError(
            f"{path} must hold spot_diameter_fullres or microns_per_pixel beside bin_size_um; copy it again."
        )
    diameter_px = factors["spot_diameter_fullres"]
    in_um = "unknown um" if mpp_fullres is None else f"{diameter_px * mpp_fullres:.1f} um"
    return diameter_px, f"spot_diameter_fullres is {diameter_px:.4g} px = {in_um} (a printed Visium spot is 55 um wide)"
