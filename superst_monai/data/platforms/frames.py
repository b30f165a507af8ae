"""From full-resolution px to the px of the chosen image, and from the pitch of the array to um per px."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superst_monai.data.platforms.assay import raise_faults, require_positive
from superst_monai.errors import AssayError

MOST_RESIDUAL = 0.2  # of the pitch, root mean square: beyond it positions and array do not belong together
MOST_STRETCH = 1.25  # between the axes: beyond it array rows and columns are swapped or are of another array
PITCH_UM = 100.0  # centre to centre of neighbouring Visium spots (10x Genomics, 6.5 and 11 mm capture areas)
COLUMN_UM = PITCH_UM / 2  # one step of array_col: spots of a row have every second column
ROW_UM = PITCH_UM * 3**0.5 / 2  # one step of array_row: rows interlock as a hexagonal packing
_NUMBERS = ("spot_diameter_fullres", "bin_size_um", "microns_per_pixel", "tissue_hires_scalef", "tissue_lowres_scalef")
_NOTED_STRETCH = 1.02
_LEAST_RANK = 1e-6  # of the first singular value; below it positions lie on one line
# Pictures of Space Ranger whose frame is not that of the positions or that carry drawings.
_OTHER_FRAMES = ("cytassist_image", "aligned_fiducials", "detected_tissue_image", "aligned_tissue_image")


def check_factors(content: Mapping[str, Any], source: str) -> dict[str, float]:
    """Return the numbers among scale factors; those that the readers use must be positive.

    Args:
        content: factors by Space Ranger's names, as numbers, numpy scalars or arrays of one number.
        source: file (and field) named in the error.

    Raises:
        AssayError: a known factor is not a positive finite number; all of them at once.
    """
    arrays = {key: np.asarray(value) for key, value in content.items()}
    numbers = {k: float(v.item()) for k, v in arrays.items() if v.size == 1 and v.dtype.kind in "iuf"}
    faults = [
        f"{key} must be a positive number, got {content[key]!r}"
        for key in _NUMBERS
        if key in content and not 0 < numbers.get(key, np.nan) < np.inf
    ]
    raise_faults(source, faults, "copy the scale factors of Space Ranger again")
    return numbers


def scale_of_image(name: str, factors: Mapping[str, float], image_scale: float | None) -> tuple[float, str]:
    """Choose the factor from full-resolution px to px of the image called `name`, and say why.

    Args:
        name: file or field name of the image; `tissue_hires_image` and `tissue_lowres_image` are recognised.
        factors: known scale factors, by Space Ranger's names (`tissue_hires_scalef`, ...).
        image_scale: the caller's factor, which overrides the name.

    Returns:
        The factor [image px / full-resolution px] and a sentence for the log.

    Raises:
        AssayError: the factor of a recognised image is not known, or the image's frame is not known.
    """
    if image_scale is not None:
        require_positive("image_scale", image_scale)
        return image_scale, f"positions and diameters multiplied by {image_scale:g} (given) to fit image {name}"
    for key in ("tissue_hires", "tissue_lowres"):
        if f"{key}_image" in name:
            if f"{key}_scalef" not in factors:
                known = ", ".join(sorted(factors)) or "none"
                raise AssayError(
                    f"image {name} needs the scale factor {key}_scalef, known are: {known}; "
                    "pass --image-scale (CLI) / image_scale= (Python) or the full-resolution image."
                )
            factor = factors[f"{key}_scalef"]
            return factor, f"positions and diameters multiplied by {factor:g} ({key}_scalef) to fit image {name}"
    if any(other in name for other in _OTHER_FRAMES):
        raise AssayError(
            f"image {name} must be the full-resolution, hires or lowres image, its name is that of another picture of "
            "Space Ranger; pass one of the three, or --image-scale (CLI) / image_scale= (Python)."
        )
    return 1.0, f"image {name} taken as the full-resolution image, positions unchanged"


@dataclass(frozen=True)
class GridFit:
    """How an array maps to the image.

    Attributes:
        px_per_um: geometric mean over the two axes.
        residual_um: root mean square distance between mapped and given positions.
        stretch: larger over smaller scale of the map, 1 for a similarity.
    """

    px_per_um: float
    residual_um: float
    stretch: float


def fit_grid(grid_um: NDArray[np.float64], position_px: NDArray[np.float64]) -> GridFit | None:
    """Fit the affine map from array to image by least squares.

    Args:
        grid_um: nominal positions on the array `(N, 2)` [um].
        position_px: the same spots in the image `(N, 2)` [px].

    Returns:
        The fit, or None with fewer than three positions off one line, in the array or in the image.
    """
    if len(grid_um) < 3:
        return None
    grid = grid_um - grid_um.mean(axis=0)
    position = position_px - position_px.mean(axis=0)
    linear, _, rank, _ = np.linalg.lstsq(grid, position, rcond=_LEAST_RANK)  # (2, 2)
    stretches = np.linalg.svd(linear, compute_uv=False)
    if rank < 2 or not stretches[1] > _LEAST_RANK * stretches[0]:
        return None
    px_per_um = float(np.sqrt(stretches.prod()))
    distance_px = np.linalg.norm(grid @ linear - position, axis=1)
    return GridFit(px_per_um, float(np.sqrt(np.mean(distance_px**2))) / px_per_um, float(stretches[0] / stretches[1]))


def fit_faults(fit: GridFit, pitch_um: float) -> list[str]:
    """List why a fit does not tell the um per px, or nothing.

    Args:
        fit: map from array to image.
        pitch_um: nominal distance between the centres of neighbours [um].
    """
    faults = []
    if fit.residual_um > MOST_RESIDUAL * pitch_um:
        faults.append(
            f"positions miss the array of {pitch_um:g} um pitch by {fit.residual_um:.0f} um (root mean square), "
            f"must be below {MOST_RESIDUAL:.0%} of the pitch"
        )
    if fit.stretch > MOST_STRETCH:
        faults.append(
            f"the axes of the array differ {fit.stretch:.2f}-fold in the image, must be {MOST_STRETCH} at most"
        )
    return faults


def fit_note(fit: GridFit, pitch_um: float) -> str:
    """Say what mpp the array's pitch gave, how well it fits, and whether the two axes differ."""
    axes = f", axes differ by {fit.stretch - 1:.1%} (mean used)" if fit.stretch > _NOTED_STRETCH else ""
    return (
        f"mpp {1 / fit.px_per_um:.4g} um/px from the array's pitch of {pitch_um:g} um, "
        f"residual {fit.residual_um:.2g} um{axes}"
    )
