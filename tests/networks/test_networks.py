"""The networks: shapes by law, locality, and arguments that reach the layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from superst_monai.errors import ShapeError
from superst_monai.networks.decoders import ExpressionDecoder, ImageDecoder
from superst_monai.networks.encoder import Encoder, latent_shapes
from superst_monai.networks.fusion import Fusion
from superst_monai.networks.statistics import StainStatistics
from superst_monai.transforms.stain import stain_concentrations


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_latents_have_the_shapes_of_the_prior(depth):
    """The encoder's laws have the shapes C_0 2^d, H / 2^d, W / 2^d of the prior, and the fusion network undoes them."""
    torch.manual_seed(0)
    laws = Encoder(depth, 4)(torch.rand(2, 3, 16, 24))
    assert [mean.shape[1:] for mean, _ in laws] == latent_shapes(depth, 4, 16, 24)
    assert all((sd > 0).all() for _, sd in laws)
    assert Fusion(depth, 4, n_context=3)([mean for mean, _ in laws]).shape == (2, 4 + 3, 16, 24)


def test_first_spread_is_the_first_standard_deviation():
    """With zero weights each sd is softplus(first_spread) and its floor of 1e-4, and each mean zero."""
    encoder = Encoder(2, 4, first_spread=-2.0)
    for head in encoder.heads:
        nn.init.zeros_(head.weight)
    for mean, sd in encoder(torch.rand(1, 3, 8, 8)):
        torch.testing.assert_close(sd, torch.full_like(sd, float(nn.functional.softplus(torch.tensor(-2.0))) + 1e-4))
        assert mean.eq(0).all()


def test_the_pyramid_sees_an_image_locally():
    """A changed pixel changes the finest latents only within the reach of two 3 x 3 convolutions and the head."""
    torch.manual_seed(0)
    encoder = Encoder(3, 4).eval()
    image = torch.rand(1, 3, 32, 32)
    other = image.clone()
    other[0, :, 16, 16] += 1
    changed = (encoder(image)[0][0] - encoder(other)[0][0]).abs().sum(1)[0] > 0
    rows, cols = torch.nonzero(changed, as_tuple=True)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (13, 19, 13, 19)


def test_without_spatial_statistics_a_shift_of_the_image_shifts_the_maps():
    """In evaluation, moving the image by the deepest stride moves the maps (away from the border)."""
    torch.manual_seed(0)
    encoder, fusion = Encoder(3, 4).eval(), Fusion(3, 4, n_context=2).eval()
    for layer in fusion.context:
        nn.init.normal_(layer.weight)
    image = torch.rand(1, 3, 96, 96)
    first = fusion([m for m, _ in encoder(image)])
    second = fusion([m for m, _ in encoder(image.roll((4, 8), (2, 3)))])
    torch.testing.assert_close(second[..., 40:60, 40:60], first[..., 36:56, 32:52], rtol=1e-4, atol=1e-5)


def test_decoders_keep_their_ranges():
    """Means of the image lie in (-1, 1), standard deviations are positive."""
    torch.manual_seed(0)
    h = 50 * torch.randn(2, 4 + 3 + 1, 6, 6)
    mean, sd = ImageDecoder(4)(h)
    assert mean.abs().max() <= 1
    assert sd.min() >= 1e-2
    logits, raw = ExpressionDecoder(4, 3)(h)
    assert (logits.shape, raw.shape) == ((2, 3, 6, 6), (2, 1, 6, 6))


def test_expression_at_pixels_is_that_of_the_whole_map():
    """Heads evaluated at some pixels give what the map holds there."""
    torch.manual_seed(0)
    decoder, h = ExpressionDecoder(4, 3).eval(), torch.randn(2, 4 + 3 + 1, 6, 5)
    pixels = torch.tensor([0, 7, 29, 30, 59])
    for whole, some in zip(decoder(h), decoder.at(h, pixels), strict=True):
        torch.testing.assert_close(some, whole.movedim(1, -1).flatten(0, 2)[pixels])


def test_the_context_is_linear_in_the_latents_and_starts_at_zero():
    """The context of a weighted sum of latents is the weighted sum of their contexts (without biases)."""
    torch.manual_seed(0)
    fusion = Fusion(3, 4, n_context=2).eval()
    first, second = ([torch.randn(1, *shape) for shape in latent_shapes(3, 4, 8, 8)] for _ in range(2))
    assert fusion(first)[:, 4:].eq(0).all()
    for layer in fusion.context:
        nn.init.normal_(layer.weight)
    both = fusion([2 * a - 3 * b for a, b in zip(first, second, strict=True)])[:, 4:]
    torch.testing.assert_close(both, 2 * fusion(first)[:, 4:] - 3 * fusion(second)[:, 4:], rtol=1e-4, atol=1e-4)


def test_stain_statistics_are_the_mean_and_sd_of_boxes():
    """At level d each value is the mean or sd of a stain over a box of 3 * 2^d pixels (against numpy)."""
    torch.manual_seed(0)
    statistics = StainStatistics(3).eval()  # in evaluation a fresh normalisation does nothing but divide by 1 + 1e-5
    rgb = torch.rand(1, 3, 24, 24).clamp_min(0.05)
    stains = statistics.stains((rgb - 0.5) * 1.8)
    plain = stain_concentrations(rgb[0])
    torch.testing.assert_close(stains[0], plain, rtol=1e-4, atol=1e-5)
    for level, found in enumerate(statistics(stains)):
        box = plain[:, : 3 * 2**level, 2**level : 4 * 2**level].flatten(1)
        expected = torch.cat([box.mean(1), box.std(1, correction=0)])
        torch.testing.assert_close(found[0, :, 1, 2], expected, rtol=1e-3, atol=1e-4)


def test_layer_factories_reach_the_layers():
    """Norm and activation are those that were named, with their arguments."""
    encoder = Encoder(2, 8, norm=("group", {"num_groups": 2}), act=("leakyrelu", {"negative_slope": 0.3}))
    groups = [m for m in encoder.modules() if isinstance(m, nn.GroupNorm)]
    slopes = {m.negative_slope for m in encoder.modules() if isinstance(m, nn.LeakyReLU)}
    assert len(groups) == 4
    assert {g.num_groups for g in groups} == {2}
    assert slopes == {0.3}


def test_sides_that_the_pyramid_cannot_halve_are_refused():
    """H and W must be multiples of 2^(D-1)."""
    with pytest.raises(ShapeError, match=r"multiples of 4 px, got \(10, 12\)"):
        Encoder(3, 4)(torch.rand(1, 3, 10, 12))
    with pytest.raises(ShapeError, match="at least 1"):
        Encoder(0, 4)
