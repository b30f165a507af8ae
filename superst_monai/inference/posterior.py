"""Posterior samples of a tile of the map that agree with those of its neighbours, whatever the tiling.

A tile is computed from a window that reaches beyond it by a halo, so that zero padding at the window's border does not
reach the tile; and the noise of z is a function of the absolute position, so that two windows draw the same z where
they overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from superst_monai.errors import RunError
from superst_monai.model.objective import FusionVAE
from superst_monai.networks.decoders import DILATIONS

_BLOCK_PX = 64
"""Side of a block of noise [image px]; a block is drawn whole."""
ORIENTATIONS = 8
"""A tissue has no up: sample n sees the slide in orientation n mod 8, so that means and spreads include what the
network makes of each."""
_LATENT_STREAM = 0  # spawn keys of a sample: its z (and level), and everything else
Laws = Sequence[tuple[Tensor, Tensor]]
"""Mean and standard deviation of q(z_d | image) of each level."""
Look = Callable[[Tensor, Laws, Tensor], None]
"""Receives an image `(1, 3, H, W)`, the laws of its latent variables and the features `(1, C_0, H, W)` of a draw."""


class Window(NamedTuple):
    """A box of the map [px of the map]; it may reach beyond it."""

    row: int
    col: int
    height: int
    width: int

    def grown(self, by: int) -> Window:
        """The window with a margin on each side."""
        return Window(self.row - by, self.col - by, self.height + 2 * by, self.width + 2 * by)


@dataclass(frozen=True)
class Halo:
    """How far a pixel of the map sees [px], rounded up to whole pixels of the deepest level.

    Attributes:
        decoder: reach of the map into the latent variables.
        whole: reach of the map into the image, through decoder and encoder.
    """

    decoder: int
    whole: int


def halo_of(depth: int) -> Halo:
    """Reach of a network of D levels, by following the pixels that a tile needs down and up the pyramid.

    The expression decoder reads the features around a tile. At level d it needs the fused features [lo_d, hi_d]. The
    two 3 x 3 convolutions of a join widen that by 2; what comes from the level below is up-sampled by the nearest
    pixel, so that level d + 1 is needed on [lo_d // 2, hi_d // 2]; the deepest level has one convolution. z_d then
    comes from a head and a convolution (3 x 3 each) on encoder features of level d, and these by a convolution of
    stride 2 (pixel i reads 2 i - 1 ... 2 i + 1 of the level above) and by one more on each level above, two on the
    first.

    Args:
        depth: D.
    """
    multiple = 2 ** (depth - 1)
    reach = sum(DILATIONS)  # of the expression decoder into the features
    low, high = -reach, multiple - 1 + reach  # a tile on the grid of the deepest level
    decoder = whole = 0
    for level in range(depth):
        widen = 2 if level < depth - 1 else 1
        low, high = low - widen, high + widen  # of z_level
        decoder = max(decoder, -low * 2**level, (high + 1) * 2**level - multiple)
        first, last = low - 1, high + 1  # of the encoder's features at this level
        for _ in range(level):
            first, last = 2 * (first - 1) - 1, 2 * (last + 1) + 1
        whole = max(whole, 2 - first, last + 2 - (multiple - 1))
        low, high = low // 2, high // 2
    return Halo(*(-(-farthest // multiple) * multiple for farthest in (decoder, whole)))


def latent_noise(
    shape: Sequence[int], *, row: int, col: int, level: int, key: NDArray[np.uint64]
) -> NDArray[np.float32]:
    """Standard normal noise of one level of one sample in a box, a function of the absolute position.

    The plane is cut into blocks of 64 image pixels, and each is a counter range of its own of one Philox stream, so
    that no block needs another (Salmon et al. 2011, doi:10.1145/2063384.2063405). A value is the normal quantile of 16
    random bits, of 65536 equally probable ones up to 4.3; that takes a fifth of the time of exact normals, which would
    be a quarter of the whole prediction.

    Args:
        shape: `(C, h, w)`.
        row: first row of the box [px of the level]; may be negative.
        col: first column.
        level: d, pyramid level.
        key: of the stream `(2,)`.

    Returns:
        `(C, h, w)`.
    """
    channels, height, width = shape
    block = max(1, _BLOCK_PX >> level)
    rows = range(row // block, (row + height - 1) // block + 1)
    cols = range(col // block, (col + width - 1) // block + 1)
    noise = np.empty((channels, len(rows) * block, len(cols) * block), np.float32)
    for i, block_row in enumerate(rows):
        for j, block_col in enumerate(cols):
            place = [block_row % 2**64, block_col % 2**64]
            stream = np.random.Philox(key=key, counter=np.array([0, 0, *place], np.uint64))
            bits = stream.random_raw(-(-channels * block**2 // 4)).view(np.uint16)[: channels * block**2]
            drawn = _quantiles().take(bits).reshape(channels, block, block)
            noise[:, i * block : (i + 1) * block, j * block : (j + 1) * block] = drawn
    top, left = row - rows[0] * block, col - cols[0] * block
    return noise[:, top : top + height, left : left + width]


@cache
def _quantiles() -> NDArray[np.float32]:
    """Standard normal quantiles in the middle of 65536 equally probable steps."""
    table: NDArray[np.float32] = ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)
    return table


class TileSampler:
    """Draws the scaled activity of windows of one slide, sample by sample.

    Args:
        network: in evaluation mode.
        samples: N.
        seed: sample n of a seed is the same whatever N and the tiling.
        bfloat16: run encoder and fusion network in bfloat16; the expression decoder stays in float32.

    Raises:
        RunError: fewer than one sample, or a negative seed.
    """

    def __init__(self, network: FusionVAE, *, samples: int, seed: int, bfloat16: bool = False) -> None:
        """Derive the key of each sample and level."""
        faults = [f"samples must be at least 1, got {samples}"] * (samples < 1)
        faults += [f"seed must not be negative, got {seed}"] * (seed < 0)
        if faults:
            raise RunError("; ".join(faults) + "; for example samples=10, seed=0.")
        depth = network.arch.depth
        self.network = network
        self.samples = samples
        self.multiple = 2 ** (depth - 1)
        self.halo = halo_of(depth)
        self.bfloat16 = bfloat16
        self._keys = [[_stream_key(seed, n, level) for level in range(depth)] for n in range(samples)]

    def draw(self, image: Tensor, window: Window, look: Look | None = None) -> Iterator[tuple[int, Tensor]]:
        """Encode the image once an orientation and decode N samples of its latent variables.

        Args:
            image: `(3, height + 2 whole, width + 2 whole)` in [-0.9, 0.9]: the window grown by the whole halo.
            window: part of the map to draw, its corner and sides multiples of 2^(D-1).
            look: called once, with what sample 0 is made of, in the window grown by the decoder's halo.

        Yields:
            Number n of a sample, orientation by orientation, and its scaled activity `(K, height, width)` float32 on
            the CPU [1/px].
        """
        batch = image[None].to(next(self.network.parameters()).device)  # (1, 3, H, W)
        inner = window.grown(self.halo.decoder)
        for turn in range(min(ORIENTATIONS, self.samples)):
            laws = self._encode(batch, turn)
            for n in range(turn, self.samples, ORIENTATIONS):
                yield n, self._sample(batch, laws, n, inner, turn, look if n == 0 else None)
            del laws  # before the next are there

    @torch.inference_mode()
    def _encode(self, batch: Tensor, turn: int) -> Laws:
        """Laws of the latent variables of an oriented image, as far as the window needs them."""
        trim = self.halo.whole - self.halo.decoder
        with self._autocast(batch.device):
            found: Laws = self.network.guide.encoder(orient(batch, turn).contiguous(memory_format=torch.channels_last))
        return [
            (_kept(_trimmed(mean, trim >> d)), _kept(_trimmed(sd, trim >> d))) for d, (mean, sd) in enumerate(found)
        ]

    @torch.inference_mode()
    def _sample(self, batch: Tensor, laws: Laws, n: int, inner: Window, turn: int, look: Look | None) -> Tensor:
        """Scaled activity of sample n in the window, upright `(K, height, width)`, on the CPU."""
        with self._autocast(batch.device):
            h = self._decode(laws, self._keys[n], inner, turn)
        h = h.float()
        if look is not None:
            look(_trimmed(orient(batch, turn), self.halo.whole - self.halo.decoder), laws, h)
        activity, scale = self.network.generative.expression(h)
        edge = self.halo.decoder
        return orient_back(_trimmed(activity, edge) * _trimmed(scale, edge), turn)[0].cpu()

    def _autocast(self, device: torch.device) -> torch.autocast:
        """Context in which convolutions run in bfloat16, if they are to."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    def _decode(self, laws: Laws, keys: Sequence[NDArray[np.uint64]], inner: Window, turn: int) -> Tensor:
        """Features of one draw of all latent variables in the inner window, oriented `(1, C_0, H, W)`."""
        latents = []
        for level, ((mean, sd), key) in enumerate(zip(laws, keys, strict=True)):
            shape = (mean.shape[1], inner.height >> level, inner.width >> level)
            place = {"row": inner.row >> level, "col": inner.col >> level, "level": level}
            noise = orient(torch.from_numpy(latent_noise(shape, key=key, **place)), turn).to(mean.device)
            latents.append(_kept(mean + sd * noise))
        return self.network.generative.decode(latents)


def orient(x: Tensor, turn: int) -> Tensor:
    """Turn maps `(..., H, W)` by `turn` quarters, and mirror them for turns 4 to 7: the 8 symmetries of a square."""
    turned = torch.rot90(x, turn, (-2, -1))
    return turned.flip(-1) if turn >= 4 else turned


def orient_back(x: Tensor, turn: int) -> Tensor:
    """Undo `orient`."""
    return torch.rot90(x.flip(-1) if turn >= 4 else x, -turn, (-2, -1))


def _trimmed(x: Tensor, by: int) -> Tensor:
    """Maps `(..., H, W)` without a margin on each side."""
    return x[..., by : x.shape[-2] - by, by : x.shape[-1] - by]


def _kept(x: Tensor) -> Tensor:
    """A part of a tensor without the rest, in the memory layout that convolves fastest."""
    return x.contiguous(memory_format=torch.channels_last)


def _stream_key(seed: int, sample: int, level: int) -> NDArray[np.uint64]:
    """Key `(2,)` of the noise of one level of one sample."""
    sequence = np.random.SeedSequence(seed, spawn_key=(sample, _LATENT_STREAM, level))
    return sequence.generate_state(2, np.uint64).astype(np.uint64)
