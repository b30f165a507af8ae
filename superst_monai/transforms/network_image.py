"""An H&E image in memory, as the network takes it: what a pipeline that hands over pixels and not paths needs."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform
from numpy.typing import NDArray
from torch import Tensor

from superst_monai.errors import ShapeError
from superst_monai.transforms.balance import section_glass, white_balance
from superst_monai.transforms.crops import WHITE
from superst_monai.transforms.finish import to_network_range
from superst_monai.transforms.tissue import find_tissue


class NetworkImaged(MapTransform):
    """Balance, scale and pad H&E images in memory; a path passes as it is, for its pixels are read tile by tile.

    Args:
        keys: of the images.
        mpp: um per pixel of the images, that of the run.
        multiple: what the sides are padded to a multiple of, 2^(D-1).
    """

    def __init__(self, keys: KeysCollection, *, mpp: float, multiple: int) -> None:
        """Keep the arguments."""
        super().__init__(keys)
        self.mpp = mpp
        self.multiple = multiple

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with its images as `network_image` gives them."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            if not isinstance(sample[key], str | os.PathLike):
                sample[key] = network_image(np.asarray(sample[key]), self.mpp, multiple=self.multiple)
        return sample


def network_image(image: NDArray[np.uint8], mpp: float, *, multiple: int) -> Tensor:
    """Balance an image by its own glass, scale it and pad it with white at the bottom and on the right.

    Args:
        image: `(3, H, W)` uint8, RGB, with some glass beside the tissue.
        mpp: um per pixel.
        multiple: of the sides of the result.

    Returns:
        `(3, H', W')` float32 in [-0.9, 0.9], H' and W' the next multiples.

    Raises:
        ShapeError: the image is not `(3, H, W)` uint8.
        ResolutionError: mpp is not a positive number.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"the image must be (3, H, W) uint8, got {image.shape} {image.dtype}; convert it to RGB.")
    pixels = np.ascontiguousarray(np.moveaxis(image, 0, -1))  # (H, W, 3)
    balanced = white_balance(pixels, section_glass(pixels, find_tissue(pixels, mpp)))
    margins = [(0, -side % multiple) for side in balanced.shape[:2]]
    padded = np.pad(balanced, (*margins, (0, 0)), constant_values=WHITE)
    return to_network_range(torch.from_numpy(padded).permute(2, 0, 1).float().div_(WHITE))
