"""Decoders: expression at some pixels is that of the whole map."""

from __future__ import annotations

import pytest
import torch

from superst_monai.networks.decoders import ExpressionDecoder


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
