"""Laws of the posterior samples of tiles: one draw of z for the whole slide, and no seams."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import norm

from superst_monai.data.section import Section
from superst_monai.errors import RunError
from superst_monai.inference.canvas import canvas_of
from superst_monai.inference.posterior import (
    ORIENTATIONS,
    TileSampler,
    Window,
    halo_of,
    latent_noise,
    orient,
    orient_back,
)
from superst_monai.inference.run import load_run
from superst_monai.inference.tiles import draw_part, read_part, tissue_tiles
from superst_monai.model.objective import FusionVAE
from superst_monai.transforms.tissue import find_tissue

KEY = np.array([7, 11], np.uint64)


def whole_map(network: FusionVAE, section: Section, tile_px: int, n_samples: int = 2) -> np.ndarray:
    """All samples of a section put together from tiles, `(N, K, H, W)`."""
    canvas = canvas_of(section, section.mpp, find_tissue)
    sampler = TileSampler(network, samples=n_samples, seed=5)
    out = np.zeros((n_samples, network.arch.n_metagenes, *canvas.shape), np.float32)
    for tile in tissue_tiles(canvas.covered, tile_px):
        part = read_part(canvas, sampler, tile)
        for n, values in draw_part(sampler, part):
            view = out[n, :, tile.row : tile.row + tile.height, tile.col : tile.col + tile.width]
            view[(slice(None), *part.place)] = values
    return out


@pytest.mark.parametrize("depth", [3, 4])
def test_tiles_have_no_seams(
    depth: int, tmp_path_factory: pytest.TempPathFactory, make_run: Callable, section: Section
) -> None:
    """The same sample drawn with small tiles, large tiles or in one piece is the same map, in each orientation."""
    network = load_run(make_run(tmp_path_factory.mktemp("depth") / "run", depth=depth)).network
    whole = whole_map(network, section, 256, ORIENTATIONS)
    assert whole.max() > 0
    assert not np.allclose(whole[0], whole[1], rtol=0.01)
    for tile_px in (32, 128):
        tiled = whole_map(network, section, tile_px, ORIENTATIONS)
        assert (np.abs(tiled - whole) / np.maximum(whole, 1e-30)).max() < 1e-4


def test_the_map_is_zero_off_the_tissue_and_the_spots_only(run, section: Section) -> None:
    """A pixel has a size exactly when it is tissue or in a spot."""
    canvas = canvas_of(section, section.mpp, find_tissue)
    size = whole_map(run.network, section, 64).sum(axis=1)
    assert canvas.covered.sum() > section.tissue.sum()
    np.testing.assert_array_equal(size > 0, np.broadcast_to(canvas.covered, size.shape))


def test_noise_depends_on_the_place_alone() -> None:
    """A box of noise is the cut-out of any larger box, also across blocks and at negative positions."""
    for level in (0, 2, 7):
        large = latent_noise((3, 150, 170), row=-70, col=-130, level=level, key=KEY)
        small = latent_noise((3, 40, 31), row=-5, col=-67, level=level, key=KEY)
        np.testing.assert_array_equal(small, large[:, 65:105, 63:94])


def test_noise_is_standard_normal_and_independent_between_blocks_and_keys() -> None:
    """Noise has mean 0 and variance 1; neighbouring blocks, channels and other keys share none of it."""
    noise = latent_noise((2, 128, 128), row=-64, col=-64, level=0, key=KEY)
    assert abs(noise.mean()) < 0.02
    assert noise.var() == pytest.approx(1, abs=0.03)
    other = latent_noise((2, 128, 128), row=-64, col=-64, level=0, key=KEY + np.uint64(1))
    parts = [noise[0, :64, :64], noise[0, 64:, :64], noise[0, :64, 64:], noise[0, 64:, 64:], noise[1, :64, :64]]
    parts += [other[0, :64, :64]]
    correlation = np.corrcoef([part.ravel() for part in parts])
    assert np.abs(correlation - np.eye(len(parts))).max() < 0.06


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_halo_is_the_reach_of_the_network(depth: int) -> None:
    """The gradient of a tile is zero beyond the halo, and not zero if the halo were one step of the grid smaller."""
    torch.manual_seed(1)
    network = FusionVAE(5, n_metagenes=3, depth=depth, width=4).eval()
    multiple, halo = 2 ** (depth - 1), halo_of(depth)
    margin = halo.whole + multiple
    image = torch.rand(1, 3, multiple + 2 * margin, multiple + 2 * margin, requires_grad=True)
    means = [mean for mean, _ in network.guide.encoder(image)]
    activity, scale = network.generative.expression(network.generative.decode(means))
    tile = (activity * scale)[..., margin : margin + multiple, margin : margin + multiple]
    gradients = torch.autograd.grad(tile.square().sum(), [image, *means])
    reach = []
    for level, gradient in enumerate([gradients[0], *gradients[1:]]):
        step = 2 ** max(level - 1, 0)  # image px per px
        used = torch.nonzero(gradient.abs().sum(dim=(0, 1)))
        near, far = (int(used.min()) * step, (int(used.max()) + 1) * step)
        reach.append(max(margin - near, far - margin - multiple))
    assert halo.whole - multiple < reach[0] <= halo.whole
    assert halo.decoder - multiple < max(reach[1:]) <= halo.decoder


def test_samples_do_not_depend_on_their_number(run, section: Section) -> None:
    """Sample n of ten is sample n of two."""
    canvas = canvas_of(section, section.mpp, find_tissue)
    tile = Window(32, 32, 32, 32)
    few, more = (
        [values for _, values in draw_part(sampler, read_part(canvas, sampler, tile))]
        for sampler in (TileSampler(run.network, samples=n, seed=0) for n in (1, 3))
    )
    np.testing.assert_array_equal(few[0], more[0])


def test_shares_of_a_sample_are_the_networks_own(run, section: Section) -> None:
    """With noise of no spread a sample is the deterministic network on the same window."""
    canvas = canvas_of(section, section.mpp, find_tissue)
    sampler = TileSampler(run.network, samples=1, seed=0)
    window = Window(40, 48, 24, 32)
    image = canvas.image(window.grown(sampler.halo.whole))
    heads, saved = (
        run.network.guide.encoder.heads,
        [head.bias.detach().clone() for head in run.network.guide.encoder.heads],
    )
    with torch.no_grad():
        for head in heads:
            head.bias[head.out_channels // 2 :] = -100.0  # sd becomes 1e-4
        [(_, drawn)] = sampler.draw(image, window)
        edge = sampler.halo.whole
        expected = run.network(image[None])[0, :, edge : edge + 24, edge : edge + 32]
        for head, bias in zip(heads, saved, strict=True):
            head.bias.copy_(bias)
    torch.testing.assert_close(drawn, expected, rtol=1e-2, atol=1e-6)


def test_noise_has_the_moments_and_tails_of_a_normal() -> None:
    """Fourth moment 3, no value twice as often as it should be, and the law of a normal up to four deviations."""
    noise = np.sort(latent_noise((16, 256, 256), row=0, col=0, level=0, key=KEY).ravel().astype(np.float64))
    assert (noise**4).mean() == pytest.approx(3, abs=0.05)
    assert np.abs(norm.cdf(noise) - (np.arange(len(noise)) + 0.5) / len(noise)).max() < 2 / np.sqrt(len(noise))
    assert len(np.unique(noise)) > 0.99 * 2**16
    for far in (2.0, 3.0, 4.0):
        expected = 2 * norm.sf(far) * len(noise)
        assert abs((np.abs(noise) > far).sum() - expected) < 4 * np.sqrt(expected)


def test_bfloat16_agrees_to_its_precision(run, section: Section) -> None:
    """In bfloat16 a sample is that of float32 to a few hundredths, and its seams are no wider."""
    canvas = canvas_of(section, section.mpp, find_tissue)
    drawn = []
    for bfloat16, tile in (
        (False, Window(32, 32, 64, 64)),
        (True, Window(32, 32, 64, 64)),
        (True, Window(32, 32, 32, 64)),
    ):
        sampler = TileSampler(run.network, samples=1, seed=0, bfloat16=bfloat16)
        [(_, values)] = draw_part(sampler, read_part(canvas, sampler, tile))
        drawn.append(values.sum(axis=0))
    exact, rounded, half = drawn
    inside = exact > 0
    assert np.abs(rounded[inside] / exact[inside] - 1).mean() < 0.03
    np.testing.assert_allclose(half, rounded[:32], rtol=0.03)
    assert not np.array_equal(rounded, exact)


def test_orientations_are_the_eight_symmetries_of_a_square() -> None:
    """No two turns of an uneven image agree, and each is undone."""
    image = torch.arange(2 * 12.0).reshape(2, 3, 4)
    turned = [orient(image, turn) for turn in range(ORIENTATIONS)]
    assert len({(t.shape, tuple(t.flatten().tolist())) for t in turned}) == ORIENTATIONS
    for turn, each in enumerate(turned):
        torch.testing.assert_close(orient_back(each, turn), image, rtol=0, atol=0)


@pytest.mark.parametrize("turn", range(ORIENTATIONS))
def test_the_mean_map_turns_with_the_slide(run, turn: int) -> None:
    """Without noise the mean over the orientations of a turned image is the turned mean."""
    torch.manual_seed(3)
    sampler = TileSampler(run.network, samples=ORIENTATIONS, seed=0)
    heads = run.network.guide.encoder.heads
    saved = [head.bias.detach().clone() for head in heads]
    edge = 2 * sampler.halo.whole
    image = torch.rand(3, 16 + edge, 24 + edge) * 1.8 - 0.9

    def mean_map(seen: torch.Tensor) -> torch.Tensor:
        window = Window(0, 0, seen.shape[-2] - edge, seen.shape[-1] - edge)
        return torch.stack([drawn for _, drawn in sampler.draw(seen, window)]).mean(dim=0)

    with torch.no_grad():
        for head in heads:
            head.bias[head.out_channels // 2 :] = -100.0  # sd becomes 1e-4
        upright, turned = mean_map(image), mean_map(orient(image, turn))
        for head, bias in zip(heads, saved, strict=True):
            head.bias.copy_(bias)
    torch.testing.assert_close(turned, orient(upright, turn), rtol=5e-3, atol=1e-6)


def test_impossible_numbers_are_refused_together(run) -> None:
    """Too few samples and a negative seed are reported at once."""
    with pytest.raises(RunError, match="samples must be at least 1, got 0; seed must not be negative, got -1"):
        TileSampler(run.network, samples=0, seed=-1)
