"""Find the stained tissue on an H&E image by colour and texture, whatever the tint of the glass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_holes, remove_small_objects

from superst_monai.data.resample import resample
from superst_monai.errors import ResolutionError, ShapeError

Mask = NDArray[np.bool_]
Array = NDArray[np.float64]
Pixels = NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.float64]


def find_tissue(
    image: NDArray[np.uint8],
    mpp: float,
    *,
    work_mpp: float = 8.0,
    smooth_um: float = 16.0,
    score_range: tuple[float, float] = (0.03, 0.04),
    min_tissue_um2: float = 30_000.0,
    max_hole_um2: float = 60_000.0,
) -> Mask:
    """Mark the pixels that show tissue.

    The optical density against the glass is measured per channel. Haematoxylin and eosin both absorb green more
    than their weakest channel, dust and blurred fiducials absorb all channels alike: the difference (chroma) is the
    stain. Its local mean times its local spread tells tissue from the smooth veil of leaked eosin around it. Otsu's
    threshold on the score is kept within `score_range`, so that an image that is all glass, or all tissue, is not
    split in two.

    Args:
        image: H&E `(H, W, 3)`, uint8.
        mpp: size of a pixel [um].
        work_mpp: pixel size at which the score is taken, if the image is finer [um].
        smooth_um: standard deviation of the window for local mean and spread [um].
        score_range: bounds of the threshold [optical density].
        min_tissue_um2: smaller pieces are dropped: dust, fiducial dots [um2].
        max_hole_um2: smaller holes are filled: fat cells, lumina, vessels [um2].
    Returns:
        Tissue mask `(H, W)`, bool; all False when nothing is stained.
    Raises:
        ShapeError: the image is not `(H, W, 3)` uint8.
        ResolutionError: mpp is not a positive number.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"the image must be (H, W, 3) uint8, got {image.shape} {image.dtype}; convert it to RGB.")
    if not (np.isfinite(mpp) and mpp > 0):
        raise ResolutionError(
            f"mpp must be a positive number of um per pixel, got {mpp}; check the slide's resolution."
        )
    factor = max(1.0, work_mpp / mpp)
    shape = (max(1, round(image.shape[0] / factor)), max(1, round(image.shape[1] / factor)))
    work = resample(image, start=(0.0, 0.0), step=(factor, factor), shape=shape)
    step = mpp * factor
    padding = _padding(work, step)
    if padding.all():
        return np.zeros(image.shape[:2], bool)
    window_px = max(smooth_um / step, 1.5)  # narrower windows hold too few pixels for a spread
    score, chroma = _stain_score(work, padding, sigma_px=window_px)
    glass_to_tissue = float(np.clip(threshold_otsu(score[~padding]), *score_range))
    mask: Mask = (score > glass_to_tissue) & (chroma > score_range[0])
    mask = remove_small_objects(mask, max_size=int(min_tissue_um2 / step**2))
    if not mask.any():  # glass smaller than a hole would be filled like one
        return np.zeros(image.shape[:2], bool)
    mask = remove_small_holes(mask, max_size=int(max_hole_um2 / step**2))
    halo = round(smooth_um / step)  # the window sees tissue from so far outside
    mask = ndimage.binary_erosion(mask, iterations=halo, border_value=1) if halo else mask
    return _enlarge(mask & ~padding, factor, (image.shape[0], image.shape[1]))


def _padding(image: Pixels, mpp: float, *, black: float = 60.0, reach_um: float = 16.0) -> Mask:
    """Pixels of the scanner's black frame or black padding, and the pixels blended with it."""
    reach = max(1, round(reach_um / mpp))
    dark = ndimage.binary_opening(image.max(axis=2) < black, iterations=reach)
    return np.asarray(ndimage.binary_dilation(dark, iterations=reach), bool)


def glass_colour(image: Pixels, usable: Mask, *, depth: float = 25.0, tint: float = 60.0, pink: float = 25.0) -> Array:
    """Colour of the empty glass: the median of the smoothest among the brightest, hardly saturated pixels.

    Lamps tint glass yellow, blue or grey; a strong lack of green is stain. Pure white is where a viewer pads a
    slide, so it is the glass only when nothing else is bright.

    Args:
        image: `(H, W, 3)`, 0..255, of any real dtype; planes of it are converted one at a time.
        usable: pixels to look at `(H, W)`.
        depth: how much darker than the brightest glass may be [grey levels].
        tint: largest spread between the channels of glass [grey levels].
        pink: largest lack of green of glass [grey levels].
    Returns:
        Colour `(3,)`, 0..255; white when no pixel can be glass.
    """
    level = image.mean(axis=2, dtype=np.float64)
    unevenness = ndimage.maximum_filter(level, 3) - ndimage.minimum_filter(level, 3)
    top, bottom = image.max(axis=2), image.min(axis=2)
    bright = usable & (bottom >= 150) & (top - bottom <= tint) & (top - image[..., 1] <= pink)
    tinted = bright & (bottom < 255)
    if np.count_nonzero(tinted) >= 0.05 * np.count_nonzero(usable):
        bright = tinted
    if not bright.any():
        return np.full(3, 255.0)
    bright &= level >= np.percentile(level[bright], 99) - depth
    smooth = bright & (unevenness <= np.percentile(unevenness[bright], 10))
    glass: Array = np.median(image[smooth].astype(np.float64), axis=0)
    return glass


def _stain_score(image: Pixels, padding: Mask, *, sigma_px: float) -> tuple[Array, Array]:
    """Score and lightly smoothed chroma `(H, W)` of stain [optical density], zero on padding."""
    glass = glass_colour(image, ~padding)
    red, green, blue = (-np.log(np.maximum(image[..., c], 8.0, dtype=np.float64) / glass[c]) for c in range(3))
    chroma = green - np.minimum(red, blue)
    del red, green, blue  # planes of a large slide
    chroma[padding] = 0.0
    mean = ndimage.gaussian_filter(chroma, sigma_px)
    spread = np.sqrt(np.maximum(ndimage.gaussian_filter(chroma**2, sigma_px) - mean**2, 0.0))
    score = np.sqrt(np.maximum(mean, 0.0) * spread)
    return np.minimum(score, 0.15), ndimage.gaussian_filter(chroma, sigma_px / 2)


def _enlarge(mask: Mask, factor: float, shape: tuple[int, int]) -> Mask:
    """Nearest pixel of a coarse mask for each fine pixel centre."""
    row, column = (
        np.minimum(((np.arange(n) + 0.5) / factor).astype(np.int64), m - 1)
        for n, m in zip(shape, mask.shape, strict=True)
    )
    enlarged: Mask = mask[row[:, None], column]
    return enlarged
