"""The law of the training sections as a trained network sees them, stored with the run for the out-of-domain guard."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from superst_monai.data.section import Section
from superst_monai.engines.run_folder import RunFolder
from superst_monai.model.domain import Domain, block_statistics
from superst_monai.model.objective import FusionVAE
from superst_monai.transforms.balance import section_glass, white_balance
from superst_monai.transforms.crops import WHITE
from superst_monai.transforms.finish import to_network_range

_LOG = logging.getLogger(__name__)
_WINDOW_BLOCKS, _MARGIN_BLOCKS = 16, 4
"""Side of the windows that are looked at, and what they are read with around them, in pixels of the deepest level."""


def training_domain(
    network: FusionVAE, sections: Sequence[Section], *, most_windows: int = 48, seed: int = 0
) -> Domain | None:
    """Law of the block statistics over the tissue of sections, unchanged: no augmentation, all spots.

    Args:
        network: trained.
        sections: at the resolution of the network.
        most_windows: of each section; of more, as many evenly spaced ones are looked at.
        seed: of the draws of the latent variables.

    Returns:
        The law; None where there is too little tissue.
    """
    generator = torch.Generator().manual_seed(seed)
    network = network.eval()
    return Domain.fit([_section_statistics(network, section, most_windows, generator) for section in sections])


def write_training_domain(folder: RunFolder, network: FusionVAE, sections: Sequence[Section]) -> None:
    """Store the law of the training sections under the weights that the run keeps, `domain.json`.

    Args:
        folder: of a finished run.
        network: of the run; its own weights may be others and stay.
        sections: that it was trained on, at its resolution.
    """
    if not folder.writes:
        return
    weights = folder.models / "model.pt"
    device = next(network.parameters()).device
    kept = copy.deepcopy(network)
    kept.load_state_dict(torch.load(weights, map_location=device, weights_only=True))
    domain = training_domain(kept, sections)
    if domain is None:
        _LOG.info("too little tissue to tell what lies outside the domain of the training; predictions get no guard")
        return
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder.write("domain.json", domain.to_json(digest))


def _section_statistics(
    network: FusionVAE, section: Section, most_windows: int, generator: torch.Generator
) -> NDArray[np.float32]:
    """Statistics `(1 + D, n)` of the blocks of a section that are tissue by half or more."""
    block = 2 ** (network.arch.depth - 1)
    side, margin = _WINDOW_BLOCKS * block, _MARGIN_BLOCKS * block
    image = white_balance(section.image, section_glass(section.image, section.tissue))
    height, width = section.tissue.shape
    corners = [
        (row, col)
        for row in range(0, height, side)
        for col in range(0, width, side)
        if section.tissue[row : row + side, col : col + side].any()
    ]
    chosen = np.unique(np.linspace(0, len(corners) - 1, min(most_windows, len(corners))).round().astype(int))
    found = [np.zeros((1 + network.arch.depth, 0), np.float32)]
    for row, col in (corners[i] for i in chosen):
        window = _cut(image, row - margin, col - margin, side + 2 * margin)
        statistics = _statistics(network, window, generator)[
            :, _MARGIN_BLOCKS:-_MARGIN_BLOCKS, _MARGIN_BLOCKS:-_MARGIN_BLOCKS
        ]
        tissue = np.zeros((side, side), np.float32)
        inside = section.tissue[row : row + side, col : col + side]
        tissue[: inside.shape[0], : inside.shape[1]] = inside
        share = F.avg_pool2d(torch.from_numpy(tissue)[None, None], block)[0, 0]
        found.append(statistics[:, share >= 0.5].numpy())
    return np.concatenate(found, axis=1)


def _cut(image: NDArray[np.uint8], row: int, col: int, side: int) -> NDArray[np.uint8]:
    """A square of an image `(side, side, 3)`, white beyond it."""
    window = np.full((side, side, 3), WHITE, np.uint8)
    top, left = max(row, 0), max(col, 0)
    inside = image[top : row + side, left : col + side]
    window[top - row : top - row + inside.shape[0], left - col : left - col + inside.shape[1]] = inside
    return window


def _statistics(network: FusionVAE, window: NDArray[np.uint8], generator: torch.Generator) -> torch.Tensor:
    """Block statistics of one draw `(1 + D, h, w)`, on the CPU."""
    device = next(network.parameters()).device
    image = to_network_range(torch.from_numpy(window).permute(2, 0, 1)[None].float().div_(WHITE))
    with torch.inference_mode():
        image = image.to(device).contiguous(memory_format=torch.channels_last)
        laws = network.guide.encoder(image)
        latents = [mean + sd * torch.randn(mean.shape, generator=generator).to(device) for mean, sd in laws]
        h = network.generative.decode(latents)
        return block_statistics(network.generative, image, laws, h).cpu()
