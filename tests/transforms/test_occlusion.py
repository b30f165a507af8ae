"""Occluded tiles and their mask."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from superst_monai.errors import RunError
from superst_monai.transforms.occlusion import RandTissueOcclusiond, paint_tiles
from superst_monai.types import Key


def random_image(height: int, width: int) -> torch.Tensor:
    """A random image `(3, height, width)`."""
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def test_tiles_are_painted_where_chosen():
    """Pixel (r, c) is hidden just when tile (r // t, c // t) is chosen (plain loop), cut tiles included."""
    chosen = torch.tensor([[True, False, True], [False, True, False]])
    mask = paint_tiles(chosen, tile_px=4, height=7, width=10)
    assert mask.tolist() == [[[bool(chosen[r // 4, c // 4]) for c in range(10)] for r in range(7)]]


@pytest.mark.parametrize(("share", "tiles"), [(0.0, 0), (0.25, 4), (0.3, 5), (1.0, 16)])
def test_the_share_of_tiles_is_hidden(share: float, tiles: int):
    """The mask holds the rounded share of the 16 tiles and marks exactly the pixels that changed."""
    image = random_image(32, 32)
    got = RandTissueOcclusiond(Key.IMAGE, tile_px=8, share=share, prob=1.0).set_random_state(seed=3)({Key.IMAGE: image})
    mask = got[Key.OCCLUDED]
    assert mask.shape == (1, 32, 32)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == tiles * 64
    assert torch.equal((got[Key.IMAGE] != image).any(0, keepdim=True), mask)
    mean = image.mean((1, 2), keepdim=True).expand_as(image)
    assert torch.equal(got[Key.IMAGE], torch.where(mask, mean, image))


def test_off_means_an_empty_mask():
    """With probability 0 the very same image comes back with a mask that is all False."""
    image = random_image(9, 7)
    got = RandTissueOcclusiond(Key.IMAGE, tile_px=4, share=1.0, prob=0.0)({Key.IMAGE: image})
    assert got[Key.IMAGE] is image
    assert torch.equal(got[Key.OCCLUDED], torch.zeros(1, 9, 7, dtype=torch.bool))


def test_inputs_stay_and_keys_share_their_tiles():
    """Two keys lose the same tiles, a MetaTensor stays one, no input is written to; the seed repeats the draw."""
    image = random_image(16, 16)
    sample = {"a": image.clone(), "b": MetaTensor(image.clone())}
    transform = RandTissueOcclusiond(("a", "b"), tile_px=4, share=0.5, prob=1.0)
    first, second, third = (transform.set_random_state(seed=seed)(sample) for seed in (1, 1, 2))
    assert torch.equal(first["a"], first["b"].as_tensor())
    assert isinstance(first["b"], MetaTensor)
    assert torch.equal(sample["a"], image)
    assert torch.equal(sample["b"].as_tensor(), image)
    assert torch.equal(first[Key.OCCLUDED], second[Key.OCCLUDED])
    assert not torch.equal(first[Key.OCCLUDED], third[Key.OCCLUDED])


@pytest.mark.parametrize("bad", [{"share": 1.1}, {"share": -0.1}, {"tile_px": 0}])
def test_impossible_tiles_are_refused(bad: dict[str, float]):
    """A share lies in [0, 1] and a tile has at least one pixel."""
    options: dict[str, float] = {"tile_px": 8, "share": 0.5, **bad}
    with pytest.raises(RunError, match=r"share in .* tiles of at least 1 px, got share="):
        RandTissueOcclusiond(Key.IMAGE, tile_px=int(options["tile_px"]), share=options["share"], prob=1.0)
