"""Decoders: expression at some pixels is that of the whole map."""

from __future__ import annotations

import pytest
import torch

from superst_monai.networks.decoders import SCALE_GRADIENT, ExpressionDecoder


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_expression_at_pixels_is_that_of_the_whole_map_with_its_gradient(layout):
    """Logits and scale of chosen pixels, and the gradient of the features, in whatever layout these lie."""
    torch.manual_seed(0)
    decoder = ExpressionDecoder(4, 3).eval()
    given = torch.randn(2, 8, 6, 10).contiguous(memory_format=layout)
    pixels = torch.tensor([3, 17, 59, 60, 119])
    found = []
    for way in ("whole", "at"):
        h = given.clone(memory_format=torch.preserve_format).requires_grad_()
        if way == "at":
            parts = decoder.at(h, pixels)
        else:
            parts = tuple(part.movedim(1, -1).flatten(0, 2)[pixels] for part in decoder(h))
        (torch.sin(parts[0]).sum() + parts[1].square().sum()).backward()
        found.append((*(part.detach() for part in parts), h.grad))
    for whole, at in zip(*found, strict=True):
        torch.testing.assert_close(at, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["whole", "at"])
def test_a_share_of_the_scales_gradient_reaches_the_features(way):
    """The heads learn from the whole gradient, and so does all that the activity needs; the features feel a tenth."""
    torch.manual_seed(1)
    decoder = ExpressionDecoder(4, 3).eval()
    given, pixels = torch.randn(1, 8, 6, 10), torch.arange(60)

    def gradients(read):
        decoder.zero_grad()
        h = given.clone().requires_grad_()
        read(h).backward()
        return h.grad, decoder.scale.weight.grad, decoder.hidden[0].conv.weight.grad

    def plain(h):  # the same scale without the decoder's own way
        return (decoder.scale(decoder.hidden(h[:, :4])) + h[:, -1:]).sin().sum()

    def own(h, part=1):
        return (decoder(h) if way == "whole" else decoder.at(h, pixels))[part].sin().sum()

    features, head, hidden = gradients(own)
    wanted = gradients(plain)
    torch.testing.assert_close(features, SCALE_GRADIENT * wanted[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(head, wanted[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(hidden, SCALE_GRADIENT * wanted[2], rtol=1e-4, atol=1e-6)
    activity = gradients(lambda h: own(h, 0))
    wanted = gradients(lambda h: (decoder.activity(decoder.hidden(h[:, :4])) + h[:, 4:-1]).sin().sum())
    torch.testing.assert_close(activity[0], wanted[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(activity[2], wanted[2], rtol=1e-4, atol=1e-6)
