"""White balance: bring the glass of every slide to one colour, so that scanners' tints do not pass for tissue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from superst_monai.transforms.tissue import glass_colour

GLASS_LEVEL = 245.0
"""Grey level that empty glass is brought to; a little headroom keeps brighter pixels apart."""


def section_glass(image: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Colour of the empty glass of a slide, white where it shows none.

    Args:
        image: `(H, W, 3)` uint8.
        tissue: `(H, W)` bool; its pixels are not looked at.

    Returns:
        `(3,)`, 0..255.
    """
    usable = ~tissue & (image.max(axis=2) >= 60)
    return glass_colour(image, usable) if usable.any() else np.full(3, 255.0)


def white_balance(image: NDArray[np.uint8], glass: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scale each channel so that `glass` becomes `GLASS_LEVEL`; in optical density a shift per channel.

    Args:
        image: `(H, W, 3)` uint8.
        glass: colour of empty glass `(3,)`.

    Returns:
        `(H, W, 3)` uint8, clipped at 255.
    """
    level = np.arange(256, dtype=np.float64)[:, None] * (GLASS_LEVEL / glass)  # (256, 3)
    table = np.clip(np.rint(level), 0, 255).astype(np.uint8)
    return np.stack([table[:, channel][image[..., channel]] for channel in range(3)], axis=-1)
