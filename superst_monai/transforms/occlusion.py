"""Hide tiles of the image behind its mean colour and say which pixels were hidden."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from superst_monai.errors import RunError
from superst_monai.types import Key


def paint_tiles(chosen: Tensor, *, tile_px: int, height: int, width: int) -> Tensor:
    """Paint a grid of tiles over an image.

    Args:
        chosen: `(ceil(height / tile_px), ceil(width / tile_px))`, bool.
        tile_px: side of a tile [px]; the last row and column of tiles may be cut.
        height: of the image [px].
        width: of the image [px].
    Returns:
        Mask `(1, height, width)`, bool, True in the chosen tiles.
    """
    painted = chosen.repeat_interleave(tile_px, 0).repeat_interleave(tile_px, 1)
    return painted[None, :height, :width].contiguous()


class RandTissueOcclusiond(RandomizableTransform, MapTransform):
    """Replace a share of the tiles of an image by its mean colour, the same tiles for all keys.

    Images are `(C, H, W)` float, as tensor or MetaTensor; the input stays as it was. Key.OCCLUDED `(1, H, W)` bool
    is added, all False where nothing was hidden, so that a loss can ask for what the network could not see.

    Args:
        keys: of the images, all of one height and width.
        tile_px: side of a tile [px].
        share: of the tiles to hide, rounded to whole tiles.
        prob: probability that an image is occluded at all.
    Raises:
        RunError: the share is not in [0, 1] or the tile has no pixel.
    """

    def __init__(self, keys: KeysCollection, *, tile_px: int, share: float, prob: float) -> None:
        """Check and keep the tiling."""
        RandomizableTransform.__init__(self, prob)
        MapTransform.__init__(self, keys)
        if not 0 <= share <= 1 or tile_px < 1:
            raise RunError(
                f"occlusion needs a share in [0, 1] and tiles of at least 1 px, got share={share}, tile_px={tile_px}; "
                "prob=0 switches occlusion off."
            )
        self.tile_px, self.share = tile_px, share
        self._mask = torch.zeros(1, 0, 0, dtype=torch.bool)

    def randomize(self, data: Tensor) -> None:
        """Draw the tiles to hide in an image shaped as `data`."""
        super().randomize(None)
        height, width = data.shape[-2:]
        grid = (-(-height // self.tile_px), -(-width // self.tile_px))
        chosen = np.zeros(grid, dtype=bool)
        if self._do_transform:
            chosen.flat[self.R.permutation(chosen.size)[: round(self.share * chosen.size)]] = True
        self._mask = paint_tiles(torch.from_numpy(chosen), tile_px=self.tile_px, height=height, width=width)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with occluded images and their mask."""
        sample = dict(data)
        self.randomize(sample[self.first_key(sample)])
        sample[Key.OCCLUDED] = self._mask
        if not self._do_transform:
            return sample
        for key in self.key_iterator(sample):
            image = convert_to_tensor(sample[key], track_meta=False)
            hidden = torch.where(self._mask, image.mean((-2, -1), keepdim=True), image)
            sample[key] = convert_to_dst_type(hidden, sample[key])[0]
        return sample
