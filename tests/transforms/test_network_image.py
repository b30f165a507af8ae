"""Laws of images in memory: what the network gets is what a prediction of the same pixels hands to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from superst_monai.errors import ShapeError
from superst_monai.transforms.balance import GLASS_LEVEL
from superst_monai.transforms.network_image import NetworkImaged, network_image


@pytest.fixture
def image() -> np.ndarray:
    """Stained tissue on yellowish glass `(3, 90, 122)`."""
    rng = np.random.default_rng(0)
    row, col = np.mgrid[:90, :122]
    tissue = (row - 45) ** 2 + (col - 60) ** 2 < 35**2
    stain = np.array([150, 80, 140]) + rng.integers(-40, 40, (90, 122, 3))
    return np.moveaxis(np.where(tissue[..., None], stain, [244, 240, 220]), -1, 0).astype(np.uint8)


def test_glass_and_padding_have_their_level(image: np.ndarray) -> None:
    """Glass is GLASS_LEVEL in all channels, tissue is scaled by the same factors, padding is white."""
    found = network_image(image, 8.0, multiple=16)
    assert found.shape == (3, 96, 128)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, 0, 0], torch.full((3,), GLASS_LEVEL / 255 * 1.8 - 0.9))
    factors = GLASS_LEVEL / np.array([244, 240, 220])
    pixel = np.minimum(np.rint(image[:, 45, 60] * factors), 255) / 255 * 1.8 - 0.9
    np.testing.assert_allclose(found[:, 45, 60].numpy(), pixel, atol=1e-6)
    assert (found[:, 90:] == 0.9).all()
    assert (found[:, :, 122:] == 0.9).all()


def test_a_sample_keeps_its_paths(image: np.ndarray) -> None:
    """Arrays and tensors are prepared; a path and other keys pass."""
    prepare = NetworkImaged("image", mpp=8.0, multiple=2)
    expected = network_image(image, 8.0, multiple=2)
    torch.testing.assert_close(prepare({"image": image, "n": 1})["image"], expected, rtol=0, atol=0)
    torch.testing.assert_close(prepare({"image": torch.from_numpy(image)})["image"], expected, rtol=0, atol=0)
    assert prepare({"image": "a.svs", "n": 1}) == {"image": "a.svs", "n": 1}


@pytest.mark.parametrize("bad", [np.zeros((8, 8, 3), np.uint8), np.zeros((3, 8, 8)), np.zeros((1, 8, 8), np.uint8)])
def test_other_images_are_refused(bad: np.ndarray) -> None:
    """Channels first, three of them, eight bits."""
    with pytest.raises(ShapeError, match=r"must be \(3, H, W\) uint8, got"):
        network_image(bad, 8.0, multiple=2)
