"""AnnData files (`.h5ad` with `obsm["spatial"]`) -> Assay."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.data.platforms.assay import (
    SPOT_COLUMNS,
    Assay,
    check_counts,
    duplicates,
    few,
    gene_table,
    raise_faults,
    require_positive,
    unreadable,
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
from superst_monai.data.slide import Slide
from superst_monai.errors import AssayError, ResolutionError, SlideError

_ID_COLUMNS = ("gene_ids", "gene_id")
_ROUNDING = 1e-3  # by which a float image may leave [0, 1]


@dataclass(frozen=True)
class _Library:
    """What `uns["spatial"]` says of the one library: images by size and scale factors."""

    images: Mapping[str, Any]
    factors: dict[str, float]


def read_h5ad(
    path: Path,
    *,
    image: Path | None = None,
    image_scale: float | None = None,
    spot_diameter_um: float | None = None,
    slide_mpp: float | None = None,
) -> Assay:
    """Read an AnnData file of one section.

    Counts are taken from `X` if it holds non-negative integers, else from `layers["counts"]`, else from `raw.X`.
    Spots whose `obs["in_tissue"]` is 0 are left out; the other columns of `obs` are kept.

    Args:
        path: `.h5ad` with `obsm["spatial"]` (n, 2) = (x, y) [full-resolution px].
        image: slide; a name like `tissue_hires_image` or `tissue_lowres_image` brings its factor from
            `uns["spatial"]`. Without it `images["hires"]`, then `images["lowres"]` of `uns["spatial"]` is taken.
        image_scale: factor from px of `obsm["spatial"]` to px of the image; overrides the image's own.
        spot_diameter_um: width of a spot [um]; overrides `spot_diameter_fullres` of `uns["spatial"]`.
        slide_mpp: um per level-0 px of the image, to convert `spot_diameter_um`.

    Returns:
        Assay in px of the image; `mpp` only where `uns["spatial"]` holds `microns_per_pixel`, or
        `spot_diameter_fullres` while `obs` has `array_row`, `array_col` that fit the array of Visium.

    Raises:
        AssayError: the file is corrupt, holds no raw counts or several libraries, or leaves frame or diameter open.
        SlideError: the given image does not exist.
    """
    require_positive("spot_diameter_um", spot_diameter_um)
    require_positive("slide_mpp", slide_mpp)
    if image is not None and not Path(image).is_file():
        raise SlideError(f"image {image} does not exist; check the path.")
    data = _open(Path(path))
    library = _library(data, path)
    pixels, scale, scale_note = _image(library, path, image, image_scale)
    position, kept, spot_notes = _spots(data, path)
    mpp_fullres, mpp_notes = _mpp_fullres(data.obs, position, library.factors)
    mpp = None if mpp_fullres is None else mpp_fullres / scale
    diameter_px0, size_note = _diameter(
        library, path, scale, spot_diameter_um, slide_mpp or mpp or _mpp_of_file(pixels)
    )
    counts, var, count_notes = _counts(data, path)
    counts = counts[np.flatnonzero(kept)]
    names = var.index.astype(str).tolist()
    id_column = next((name for name in _ID_COLUMNS if name in var), None)
    genes, gene_notes = gene_table(names, names if id_column is None else var[id_column].astype(str).tolist())
    return Assay(
        counts=counts,
        spots=_spot_table(data.obs[kept], position[kept] * scale, diameter_px0),
        genes=genes,
        platform="h5ad",
        image=pixels,
        mpp=mpp,
        scale_factors={key: value for key, value in library.factors.items() if key.endswith("_scalef")},
        shape="square" if "bin_size_um" in library.factors else "circle",
        notes=(*count_notes, scale_note, *spot_notes, *mpp_notes, size_note, *gene_notes, *zero_notes(counts)),
    )


def _spot_table(obs: pd.DataFrame, position_px0: NDArray[np.float64], diameter_px0: float) -> pd.DataFrame:
    """Put the geometry before the other columns of `obs`."""
    extra = obs.drop(columns=["in_tissue", *SPOT_COLUMNS], errors="ignore")
    geometry = pd.DataFrame(position_px0, columns=["x_px0", "y_px0"], index=obs.index)
    spots = pd.concat([geometry.assign(diameter_px0=diameter_px0), extra], axis=1)
    spots.index = pd.Index(spots.index.astype(str), name="barcode", dtype=object)
    return spots


def _open(path: Path) -> anndata.AnnData:
    """Read the file; names that are not unique are handled by the caller, old layouts are read silently."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return anndata.read_h5ad(path)
        except Exception as exc:  # anndata's own errors (an unknown encoding) have no public class
            raise unreadable(path, "AnnData", exc) from exc


def _library(data: anndata.AnnData, path: Path) -> _Library:
    """Read `uns["spatial"]`, empty where there is none, its known factors positive."""
    spatial = data.uns.get("spatial")
    content: Mapping[str, Any] = spatial if isinstance(spatial, Mapping) else {}
    libraries = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    if "scalefactors" in libraries:  # written without a library level
        libraries = {"spatial": content}
    if len(libraries) > 1:
        raise AssayError(
            f"{path} must hold one section, uns['spatial'] has the libraries {', '.join(libraries)}; write "
            "one file for each (adata[adata.obs[...] == name], with its own uns['spatial'])."
        )
    library: Mapping[str, Any] = next(iter(libraries.values()), {})
    parts = {key: library.get(key) for key in ("images", "scalefactors")}
    images, factors = ({} if not isinstance(part, Mapping) else part for part in parts.values())
    return _Library(images, check_factors(factors, f"{path}, uns['spatial']"))


def _mpp_fullres(
    obs: pd.DataFrame, position: NDArray[np.float64], factors: Mapping[str, float]
) -> tuple[float | None, tuple[str, ...]]:
    """Give the um per px of `obsm["spatial"]` if the file says it, by number or by Visium's array, and say which."""
    if "microns_per_pixel" in factors:
        mpp = factors["microns_per_pixel"]
        return mpp, (f"mpp {mpp:.4g} um per full-resolution px from microns_per_pixel of uns['spatial']",)
    columns = ["array_col", "array_row"]
    if "spot_diameter_fullres" not in factors or "bin_size_um" in factors or not set(columns) <= set(obs):
        return None, ()
    grid_um = obs[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64) * (COLUMN_UM, ROW_UM)  # (n, 2)
    usable = np.isfinite(grid_um).all(axis=1) & np.isfinite(position).all(axis=1)
    fit = fit_grid(grid_um[usable], position[usable])
    if fit is None or fit_faults(fit, PITCH_UM):
        return None, ("mpp unknown: array_row and array_col of obs do not fit the array of Visium",)
    return 1 / fit.px_per_um, (f"full-resolution {fit_note(fit, PITCH_UM)}",)


def _image(
    library: _Library, path: Path, image: Path | None, image_scale: float | None
) -> tuple[Path | NDArray[np.uint8], float, str]:
    """Choose the image with its scale factor and the sentence that says so."""
    if image is not None:
        return Path(image), *scale_of_image(Path(image).name, library.factors, image_scale)
    for size in ("hires", "lowres"):
        if size in library.images:
            name = f"tissue_{size}_image of {Path(path).name}"
            return _pixels(library.images[size], f"{path}, {name}"), *scale_of_image(name, library.factors, image_scale)
    raise AssayError(
        f"{path} holds no image in uns['spatial'] ({few(library.images) or 'nothing'}); pass the slide with "
        "--image (CLI) / image= (Python)."
    )


def _pixels(values: Any, source: str) -> NDArray[np.uint8]:
    """Bring an image `(H, W, 3 or 4)` of uint8 or of floats in [0, 1] to uint8 `(H, W, 3)`, on white."""
    array = np.asarray(values)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or 0 in array.shape:
        raise AssayError(f"{source} must be (H, W, 3), got {array.shape}; pass the slide as a file.")
    if array.dtype == np.uint8 and array.shape[2] == 3:
        return array
    if array.dtype == np.uint8:
        share = array.astype(np.float32) / 255
    elif (
        array.dtype.kind == "f"
        and np.isfinite(array).all()
        and -_ROUNDING <= array.min() <= array.max() <= 1 + _ROUNDING
    ):
        share = array.clip(0, 1)
    else:
        raise AssayError(
            f"{source} must be uint8 or floats in [0, 1], got {array.dtype} in [{array.min():.4g}, {array.max():.4g}]; "
            "pass the slide as a file."
        )
    if share.shape[2] == 4:
        share = share[..., :3] * share[..., 3:] + 1 - share[..., 3:]
    return np.rint(share * 255).astype(np.uint8)


def _mpp_of_file(image: Path | NDArray[np.uint8]) -> float | None:
    """Mean um per px that an image file states, if it does."""
    if not isinstance(image, Path):
        return None
    try:
        with Slide.open(image) as slide:
            return float(np.sqrt(slide.mpp_x * slide.mpp_y))
    except ResolutionError:
        return None


def _diameter(
    library: _Library, path: Path, scale: float, spot_diameter_um: float | None, mpp: float | None
) -> tuple[float, str]:
    """Give the diameter of a spot [px of the image], from the caller or the file, and say which."""
    if spot_diameter_um is not None:
        if mpp is None:
            raise AssayError(
                f"{path} does not say the um per px, which a spot diameter of {spot_diameter_um:g} um needs; pass "
                "--slide-mpp (CLI) / slide_mpp= (Python)."
            )
        return (
            spot_diameter_um / mpp,
            f"spots are {spot_diameter_um:g} um (given) = {spot_diameter_um / mpp:.4g} px wide",
        )
    if "spot_diameter_fullres" not in library.factors:
        raise AssayError(
            f"{path} does not say how wide its spots are (uns['spatial'] lacks spot_diameter_fullres); pass "
            "--spot-diameter-um (CLI) / spot_diameter_um= (Python)."
        )
    diameter_px0 = library.factors["spot_diameter_fullres"] * scale
    in_um = "" if mpp is None else f" = {diameter_px0 * mpp:.1f} um"
    return diameter_px0, f"spots are {diameter_px0:.4g} px{in_um} wide by spot_diameter_fullres"


def _spots(data: anndata.AnnData, path: Path) -> tuple[NDArray[np.float64], NDArray[np.bool_], tuple[str, ...]]:
    """Read positions `(n, 2)` and which spots lie under tissue `(n,)`, all faults at once."""
    faults = duplicates("spot names", data.obs_names)
    kept = np.ones(data.n_obs, dtype=bool)
    if "in_tissue" in data.obs:
        flag = data.obs["in_tissue"].astype(str).str.lower()
        kept = flag.isin(["1", "1.0", "true"]).to_numpy()
        wrong = ~kept & ~flag.isin(["0", "0.0", "false"]).to_numpy()
        if wrong.any():
            faults.append(f"obs['in_tissue'] must be 0 or 1, is {few(flag[wrong].unique())}")
    position = np.zeros((data.n_obs, 2))
    if "spatial" not in data.obsm:
        faults.append(f"obsm['spatial'] is missing (obsm holds {few(data.obsm.keys()) or 'nothing'})")
    else:
        given = np.asarray(data.obsm["spatial"])
        if given.shape != position.shape or given.dtype.kind not in "iuf":
            faults.append(f"obsm['spatial'] must be {position.shape} numbers, got {given.shape} of type {given.dtype}")
        else:
            position = given.astype(np.float64)
            bad = kept & ~np.isfinite(position).all(axis=1)
            if bad.any():
                faults.append(f"obsm['spatial'] must be finite, is not at {few(data.obs_names[bad])}")
    if not faults and not kept.any():
        faults.append(f"none of its {data.n_obs} spots is under tissue (obs['in_tissue'])")
    raise_faults(str(path), faults, "correct the file")
    left_out = f"{np.count_nonzero(~kept)} of {len(kept)} spots are not under tissue (in_tissue) and were left out"
    return position, kept, () if kept.all() else (left_out,)


def _counts(data: anndata.AnnData, path: Path) -> tuple[sparse.csr_matrix, pd.DataFrame, tuple[str, ...]]:
    """Take raw counts from the first of X, layers["counts"] and raw.X that holds them, or refuse with all reasons."""
    sources = {
        "X": (data.X, data.var),
        "layers['counts']": (data.layers.get("counts"), data.var),
        "raw.X": (None, data.var) if data.raw is None else (data.raw.X, data.raw.var),
    }
    refused: list[str] = []
    for field, (matrix, var) in sources.items():
        if matrix is None:
            continue
        try:
            counts = check_counts(matrix, f"{path}, {field}", spots=data.obs_names, genes=var.index)
        except AssayError as exc:
            refused.append(str(exc))
            continue
        why = (
            f"X of {Path(path).name} holds no raw counts, {field} was read" if refused else f"counts read from {field}"
        )
        return counts, var, (why,)
    raise AssayError(
        " ".join(refused) or f"{path} must hold counts in X, layers['counts'] or raw.X, got none; add them."
    )
