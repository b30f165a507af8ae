"""From a section to a patch for the network: the MONAI chains for training and validation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import RandScaleIntensityFixedMeand, RandShiftIntensityd
from monai.transforms.spatial.dictionary import RandAffined, RandFlipd, RandRotate90d
from monai.transforms.transform import Transform

from superst_monai.errors import ShapeError
from superst_monai.transforms.collate import collate_patches
from superst_monai.transforms.crops import CenterPatchd, RandTissuePatchd
from superst_monai.transforms.finish import MARGIN, FinishPatchd, KeepWholeSpotsd
from superst_monai.transforms.occlusion import RandTissueOcclusiond
from superst_monai.transforms.sampling import PatchDataset, share_items
from superst_monai.transforms.sources import PatchKey, PatchSource
from superst_monai.transforms.stain import RandStainJitterd
from superst_monai.types import Key

__all__ = [
    "CenterPatchd",
    "FinishPatchd",
    "KeepWholeSpotsd",
    "PatchDataset",
    "PatchKey",
    "PatchSource",
    "RandTissuePatchd",
    "collate_patches",
    "share_items",
    "training_chain",
    "validation_chain",
    "window_side",
]


def window_side(side: int, *, scale: float, shear_deg: float) -> int:
    """Return the side of a window from which any rotation, scale and shear fills `side` pixels [px].

    The farthest pixel of the patch lies side / sqrt(2) from its centre; a rotation keeps that distance and the scale
    stretches it by at most 1 + scale. MONAI shears rows and columns one after the other, each by up to t =
    tan(shear_deg); the spectral norm of either shear is (t + sqrt(t^2 + 4)) / 2. The result is even if `side` is, so
    that both centres fall on the same grid and an identity does not blur.
    """
    slope = math.tan(math.radians(shear_deg))
    stretch = (1 + scale) * ((slope + math.hypot(slope, 2)) / 2) ** 2
    least = math.ceil(side * math.sqrt(2) * stretch)
    return least + (least - side) % 2


def training_chain(
    sources: Sequence[PatchSource],
    *,
    size: int,
    turn_prob: float = 0.75,
    flip_prob: float = 0.5,
    rotate_deg: float = 0.0,
    scale: float = 0.0,
    shear_deg: float = 0.0,
    stain: float = 0.05,
    stain_shift: float = 0.015,
    tint: float = 0.02,
    brightness: float = 0.03,
    contrast: float = 0.06,
    occlusion_prob: float = 0.0,
    occlusion_share: float = 0.25,
    occlusion_tile_px: int = 16,
) -> Compose:
    """Build the chain from `{Key.SECTION: int}` to a random, augmented patch.

    By default patches are turned by quarters and flipped, which moves pixels and changes none. Any other warp
    interpolates, and so blurs: a network that has only seen blurred patches reads sharp slides worse the longer it
    learns, up to totals a third too high.

    Args:
        sources: the sections; Key.SECTION counts them from 0.
        size: side of the patch [px].
        turn_prob: probability of 1, 2 or 3 quarter turns.
        flip_prob: probability of a flip up-down, and of one left-right.
        rotate_deg: rotation U(-rotate_deg, rotate_deg) [degree].
        scale: factor 1 + U(-scale, scale) of height and width, each.
        shear_deg: shear of height and width, each tan(shear_deg) * U(-1, 1) [degree].
        stain: concentration of each stain times 1 + U(-stain, stain).
        stain_shift: plus U(-stain_shift, stain_shift) where stained [natural optical density].
        tint: each colour channel times 1 + U(-tint, tint).
        brightness: plus U(-brightness, brightness), of the image in [0, 1].
        contrast: deviation from the mean of the patch times 1 + U(-contrast, contrast).
        occlusion_prob: probability that a patch is occluded.
        occlusion_share: share of its tiles then hidden.
        occlusion_tile_px: side of a tile [px].
    Returns:
        Chain whose patches have Key.IMAGE `(3, size, size)` float32 in [-0.9, 0.9], Key.LABEL `(1, size, size)`
        int64, Key.COUNTS `(n, G)` float32, Key.SHARE `(n,)` float32, Key.OCCLUDED `(1, size, size)` bool,
        Key.SECTION int and PatchKey.SPOT_IDS `(n,)` int64.
    Raises:
        ShapeError: no section, sections with different genes or without tissue, or a size below 1.
        RunError: an amplitude of the stain or the occlusion is impossible.
    """
    side = _with_margin(size)
    shear = math.tan(math.radians(shear_deg))
    both = (Key.IMAGE, Key.LABEL)
    cut: list[Transform] = [RandTissuePatchd(sources, side=side)]
    if rotate_deg or scale or shear_deg:
        cut = [
            RandTissuePatchd(sources, side=window_side(side, scale=scale, shear_deg=shear_deg)),
            RandAffined(
                keys=both,
                prob=1.0,
                rotate_range=math.radians(rotate_deg),
                scale_range=(scale, scale),
                shear_range=(shear, shear),
                spatial_size=(side, side),
                mode=("bilinear", "nearest"),
                padding_mode=("border", "zeros"),  # never reached: the window is large enough
            ),
        ]
    warp: list[Transform] = [
        *cut,
        RandRotate90d(keys=both, prob=turn_prob),
        RandFlipd(keys=both, prob=flip_prob, spatial_axis=0),
        RandFlipd(keys=both, prob=flip_prob, spatial_axis=1),
        KeepWholeSpotsd(sources),
    ]
    recolour: list[Transform] = [
        RandStainJitterd(Key.IMAGE, sigma=stain, sigma_shift=stain_shift, tint=tint),
        RandScaleIntensityFixedMeand(Key.IMAGE, prob=1.0, factors=contrast),
        RandShiftIntensityd(Key.IMAGE, prob=1.0, offsets=brightness),
        RandTissueOcclusiond(Key.IMAGE, tile_px=occlusion_tile_px, share=occlusion_share, prob=occlusion_prob),
    ]
    return Compose([*warp, *recolour, FinishPatchd(sources)])


def validation_chain(sources: Sequence[PatchSource], *, size: int) -> Compose:
    """Build the chain from `{Key.SECTION, PatchKey.ROW, PatchKey.COL}` to the patch round that pixel, unchanged.

    Args:
        sources: the sections; Key.SECTION counts them from 0.
        size: side of the patch [px]; it starts at (row - size // 2, col - size // 2).
    Returns:
        Chain whose patches have the same keys as those of `training_chain`.
    Raises:
        ShapeError: no section, sections with different genes, or a size below 1.
    """
    return Compose([CenterPatchd(sources, side=_with_margin(size)), KeepWholeSpotsd(sources), FinishPatchd(sources)])


def _with_margin(size: int) -> int:
    """Return the side of a patch with its margin on both sides [px]."""
    if size < 1:
        raise ShapeError(f"a patch needs a size of at least 1 px, got {size}; pass a multiple of the network's stride.")
    return size + 2 * MARGIN
