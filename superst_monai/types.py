"""The nouns that every room shares: regions of a slide, batch keys and the names of the model's random sites."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from superst_monai.errors import ShapeError


@dataclass(frozen=True)
class Region:
    """An axis-aligned box on a slide, in level-0 pixels; it may reach beyond the slide.

    Raises:
        ShapeError: a side is not positive or a number is not finite.
    """

    x_px0: float
    y_px0: float
    width_px0: float
    height_px0: float

    def __post_init__(self) -> None:
        numbers = (self.x_px0, self.y_px0, self.width_px0, self.height_px0)
        if not all(map(math.isfinite, numbers)) or self.width_px0 <= 0 or self.height_px0 <= 0:
            raise ShapeError(
                f"a Region needs finite numbers and positive sides [level-0 px], got {self}; check the corners."
            )


class Key(StrEnum):
    """Keys of a sample and of a batch on its way from a section to the network."""

    IMAGE = "image"  # (3, H, W) float32; (B, 3, H, W) after collate
    LABEL = "label"  # (1, H, W) spot of each pixel, 0 is none; (B, H, W) int64 after collate
    OCCLUDED = "occlusion_mask"  # (1, H, W) bool, True where the image was occluded; (B, 1, H, W) after collate
    COUNTS = "counts"  # (S, G) float32
    SECTION = "section"  # index of the patch's section; (B,) int64 after collate
    SPOT_SECTION = "spot_section"  # (S,) int64, section of each spot of the batch
    SHARE = "share"  # (S,) float32, share of the spot's UMIs that its counts hold


class Site(StrEnum):
    """Random sites of the model and guide; `z` carries the pyramid level as a suffix, effects their covariate."""

    LATENT = "z"
    IMAGE = "image"
    COUNTS = "counts"
    PROFILE = "metagene_profile"
    RATE_EFFECT = "rate_effect"
    LOGIT_EFFECT = "logit_effect"
    CONDITION = "condition"
