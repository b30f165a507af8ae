"""Vary the stain of an H&E image as laboratories and scanners do, leaving bare glass bare."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor
from skimage.color import hed_from_rgb, rgb_from_hed
from torch import Tensor

from superst_monai.errors import RunError

DARKEST = 1e-6  # transmittance that stands for black, whose optical density would be infinite
STAINED = 0.35  # optical density (mean over channels) from which a pixel counts as fully stained; about 0.15 in log10


def stain_concentrations(rgb: Tensor) -> Tensor:
    """Unmix transmitted light into haematoxylin, eosin and DAB.

    Args:
        rgb: transmittance `(3, H, W)` in [0, 1].
    Returns:
        Concentrations `(3, H, W)` [natural optical density], which may be negative; `transmitted_light` inverts it.
    Source: Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 23:291 (2001), PMID 11531144; the matrix is scikit-image's.
    """
    return _mix(-rgb.clamp_min(DARKEST).log(), hed_from_rgb)


def transmitted_light(concentrations: Tensor) -> Tensor:
    """Mix concentrations of haematoxylin, eosin and DAB `(3, H, W)` back to transmittance `(3, H, W)`, unclipped."""
    return _mix(concentrations, rgb_from_hed).neg_().exp_()


def jitter_stain(rgb: Tensor, *, factor: Tensor, shift: Tensor, tint: Tensor) -> Tensor:
    """Scale and shift the stain concentrations of an image, then tint its light.

    The shift is weighted by how stained a pixel is, so that glass (optical density 0) takes up no stain.

    Args:
        rgb: transmittance `(3, H, W)` in [0, 1].
        factor: of each stain's concentration `(3,)`.
        shift: of each stain's concentration `(3,)` [natural optical density].
        tint: factor of each channel of the result `(3,)`, the colour of the scanner's light.
    Returns:
        Transmittance `(3, H, W)`, clipped to [0, 1].
    Source: HED jitter, Tellez et al. 2018 (doi:10.1109/TMI.2018.2820199).
    """
    stained = rgb.clamp_min(DARKEST).log().mean(0).div_(-STAINED).clamp_(0, 1)  # (H, W)
    changed = stain_concentrations(rgb) * factor[:, None, None] + shift[:, None, None] * stained
    return transmitted_light(changed).mul_(tint[:, None, None]).clamp_(0, 1)


def _mix(channels: Tensor, matrix: Any) -> Tensor:
    """Apply a colour matrix that acts on row vectors to the channels `(3, H, W)`."""
    columns = torch.as_tensor(matrix, dtype=channels.dtype).T.contiguous()
    return (columns @ channels.flatten(1)).view_as(channels)


class RandStainJitterd(RandomizableTransform, MapTransform):
    """Jitter the concentrations of haematoxylin, eosin and DAB and the tint of the light, one draw for all keys.

    Images are `(3, H, W)` float in [0, 1], as tensor or MetaTensor; the input stays as it was.

    Args:
        keys: of the images.
        sigma: each concentration is multiplied by 1 + U(-sigma, sigma).
        sigma_shift: and U(-sigma_shift, sigma_shift) is added where the pixel is stained [natural optical density].
        tint: each channel is multiplied by 1 + U(-tint, tint).
        prob: probability that an image is changed at all.
    Raises:
        RunError: an amplitude is negative or not below 1.
    Source: Ruifrok & Johnston 2001 (PMID 11531144) and Tellez et al. 2018 (doi:10.1109/TMI.2018.2820199).
    """

    def __init__(
        self, keys: KeysCollection, *, sigma: float, sigma_shift: float, tint: float, prob: float = 1.0
    ) -> None:
        """Check and keep the amplitudes."""
        RandomizableTransform.__init__(self, prob)
        MapTransform.__init__(self, keys)
        amplitudes = {"sigma": sigma, "sigma_shift": sigma_shift, "tint": tint}
        bad = {name: value for name, value in amplitudes.items() if not 0 <= value < 1}
        if bad:
            raise RunError(f"stain jitter amplitudes must lie in [0, 1), got {bad}; 0 switches one off.")
        self.sigma, self.sigma_shift, self.tint = sigma, sigma_shift, tint
        self._factor = self._shift = self._light = torch.ones(3)

    def randomize(self, data: Any = None) -> None:
        """Draw the factors and shifts of the three stains and the tint of the three channels."""
        super().randomize(data)
        draws = torch.from_numpy(self.R.uniform(-1, 1, size=(3, 3))).float()
        self._factor, self._shift, self._light = (
            1 + self.sigma * draws[0],
            self.sigma_shift * draws[1],
            1 + self.tint * draws[2],
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with jittered images."""
        sample = dict(data)
        self.randomize()
        if not self._do_transform:
            return sample
        for key in self.key_iterator(sample):
            rgb = convert_to_tensor(sample[key], track_meta=False)
            jittered = jitter_stain(rgb, factor=self._factor, shift=self._shift, tint=self._light)
            sample[key] = convert_to_dst_type(jittered, sample[key])[0]
        return sample
