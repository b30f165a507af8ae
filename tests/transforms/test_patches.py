"""The chains from a section to a patch for the network."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandAffined
from scipy.sparse import csr_matrix

from superst_monai.errors import RunError, ShapeError
from superst_monai.transforms.patches import PatchKey, PatchSource, training_chain, validation_chain, window_side
from superst_monai.types import Key

SIZE = 96
NO_COLOUR: dict[str, Any] = {"stain": 0.0, "stain_shift": 0.0, "tint": 0.0, "brightness": 0.0, "contrast": 0.0}
NO_WARP: dict[str, Any] = {"turn_prob": 0.0, "flip_prob": 0.0}
WARP: dict[str, Any] = {"rotate_deg": 180.0, "scale": 0.05, "shear_deg": 10.0}


def warp_of(chain: Compose) -> np.ndarray:
    """The matrix `(2, 2)` from patch to section pixels in the last call of the chain."""
    affine = next(step for step in chain.transforms if isinstance(step, RandAffined))
    return np.asarray(affine.rand_affine.rand_affine_grid.get_transformation_matrix())[:2, :2]


def warps(source: PatchSource, **amplitudes: float) -> np.ndarray:
    """The matrices `(40, 2, 2)` of 40 seeds of a chain with only the given amplitudes."""
    chain = training_chain([source], size=8, **{**NO_WARP, **amplitudes}, **NO_COLOUR)
    found = []
    for seed in range(40):
        chain.set_random_state(seed=seed)({Key.SECTION: 0})
        found.append(warp_of(chain))
    return np.stack(found)


def determinant(chain: Compose) -> float:
    """Area of the patch that one pixel of the section filled in the last call of the chain."""
    return 1 / abs(float(np.linalg.det(warp_of(chain))))


def full_areas(source: PatchSource) -> np.ndarray:
    """Area of each label of a section, 0 ... S + 1."""
    return np.bincount(source.label.numpy().ravel(), minlength=source.n_spots + 2)


@pytest.mark.parametrize("seed", range(8))
def test_counts_image_and_label_tell_the_same_spot(make_source, seed: int):
    """After any warp each label's counts, colour and listed id are those of one and the same spot."""
    source = make_source()
    patch = training_chain([source], size=SIZE, **WARP, **NO_COLOUR).set_random_state(seed=seed)({Key.SECTION: 0})
    label, ids = patch[Key.LABEL][0], patch[PatchKey.SPOT_IDS]
    spots = ids[ids < source.outside]
    assert len(spots) >= 2
    counts = patch[Key.COUNTS].to_dense()
    torch.testing.assert_close(counts[: len(spots)], spots[:, None] * torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert not counts[len(spots) :].any()
    colour = ((patch[Key.IMAGE] + 0.9) / 1.8 * 255).round()
    for index, spot in enumerate(spots.tolist(), start=1):
        red, green = (int(channel[label == index].median()) for channel in colour[:2])
        assert red + 128 * green == spot
    assert sorted(label.unique().tolist())[-1] == len(ids)


@pytest.mark.parametrize("seed", range(8))
def test_kept_spots_are_whole(make_source, seed: int):
    """Every kept spot has the area it has on the slide times the determinant of the warp, to 10 %."""
    source = make_source()
    chain = training_chain([source], size=SIZE, **WARP).set_random_state(seed=seed)
    patch = chain({Key.SECTION: 0})
    spots = patch[PatchKey.SPOT_IDS][patch[PatchKey.SPOT_IDS] < source.outside]
    areas = torch.bincount(patch[Key.LABEL].flatten(), minlength=len(spots) + 1)[1 : len(spots) + 1]
    expected = full_areas(source)[spots.numpy()] * determinant(chain)
    large = expected > 60  # the quarter discs in the corners of the slide are too small for 10 %
    assert large.sum() >= 2
    np.testing.assert_allclose(areas.numpy()[large], expected[large], rtol=0.1)


def test_spots_at_the_edge_of_the_slide_are_trained_on(make_source):
    """A disc that the slide cuts off is kept whole in patches that reach beyond the slide."""
    source = make_source(tissue="corner")
    patch = training_chain([source], size=SIZE).set_random_state(seed=0)({Key.SECTION: 0})
    assert int(patch[PatchKey.SPOT_IDS][0]) == 1  # the quarter disc in the corner of the slide
    area = int((patch[Key.LABEL] == 1).sum())
    assert abs(area / full_areas(source)[1] - 1) < 0.3


@pytest.mark.parametrize("seed", range(4))
def test_beyond_the_slide_lies_the_outside(make_source, seed: int):
    """White pixels of a patch that hangs over the edge of a dark slide all belong to the support without counts."""
    source = make_source(tissue="corner")
    patch = training_chain([source], size=SIZE, **NO_COLOUR).set_random_state(seed=seed)({Key.SECTION: 0})
    white = (patch[Key.IMAGE] > 0.899).all(0)
    outside = len(patch[PatchKey.SPOT_IDS])
    assert white.float().mean() > 0.5
    assert int(patch[PatchKey.SPOT_IDS][-1]) == source.outside
    assert (patch[Key.LABEL][0][white] == outside).all()
    assert not patch[Key.COUNTS].to_dense()[outside - 1].any()


@pytest.mark.parametrize("size", [1, 64, 97])
def test_a_warp_never_runs_out_of_pixels(size: int):
    """The corners of a patch stay in the window for extreme shears and scales (the rotation keeps their radius)."""
    window = window_side(size, scale=0.05, shear_deg=10.0)
    assert (window - size) % 2 == 0
    slope, reach = math.tan(math.radians(10)), 0.0
    for s, t, a, b, sign in itertools.product((-slope, slope), (-slope, slope), (0.95, 1.05), (0.95, 1.05), (-1, 1)):
        rows, cols = np.array([[1, s], [0, 1]]), np.array([[1, 0], [t, 1]])
        for shear in (rows @ cols, cols @ rows):
            moved = shear @ np.diag([a, b]) @ np.array([size / 2, sign * size / 2])
            reach = max(reach, float(np.linalg.norm(moved)))
    assert reach <= window / 2 < 1.02 * reach + 1.5  # large enough, and no larger than need be


def test_a_warped_section_has_no_holes():
    """Where every pixel of the section has a label, so has every pixel of a warped window, for 30 draws."""
    label, black = np.ones((9, 9), int), np.zeros((9, 9, 3), np.uint8)
    source = PatchSource.from_arrays(black, label, label == 1, csr_matrix((1, 1), dtype=np.int32))
    chain = training_chain([source], size=SIZE)
    cut_and_warp = Compose(chain.transforms[:2])
    for seed in range(30):
        assert (cut_and_warp.set_random_state(seed=seed)({Key.SECTION: 0})[Key.LABEL] > 0).all()


@pytest.mark.parametrize("size", [SIZE, 65])
def test_a_chain_without_amplitudes_is_the_validation_chain(make_source, size: int):
    """With everything switched off the patch is the plain crop round the drawn pixel, to 1e-4."""
    source = make_source()
    chain = training_chain([source], size=size, **NO_WARP, **NO_COLOUR).set_random_state(seed=1)
    patch = chain({Key.SECTION: 0})
    row, col = divmod(chain.transforms[0]._index, 200)
    plain = validation_chain([source], size=size)({Key.SECTION: 0, PatchKey.ROW: row, PatchKey.COL: col})
    torch.testing.assert_close(patch[Key.IMAGE], plain[Key.IMAGE], atol=1e-4, rtol=0)
    assert torch.equal(patch[Key.COUNTS].to_dense(), plain[Key.COUNTS].to_dense())
    for key in (Key.LABEL, PatchKey.SPOT_IDS, Key.OCCLUDED):
        assert torch.equal(patch[key], plain[key])


def test_each_amplitude_of_the_warp_does_what_it_says(make_source):
    """Rotation is orthogonal, scale diagonal, shear keeps areas; each fills its range and does not leave it."""
    source, eye = make_source(), np.eye(2)
    turned = warps(source, rotate_deg=180.0)
    angle = np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.broadcast_to(eye, turned.shape), atol=1e-6)
    assert angle.min() < -120
    assert angle.max() > 120
    scaled = warps(source, scale=0.05) - eye
    assert np.abs(scaled[:, [0, 1], [1, 0]]).max() < 1e-6
    assert 0.04 < np.abs(scaled[:, [0, 1], [0, 1]]).max() < 0.05
    sheared = warps(source, shear_deg=10.0) - eye
    np.testing.assert_allclose(np.linalg.det(sheared + eye), 1, atol=1e-6)
    assert 0.15 < np.abs(sheared[:, [0, 1], [1, 0]]).max() < math.tan(math.radians(10))


@pytest.mark.parametrize("name", ["brightness", "contrast", "stain", "stain_shift", "tint"])
def test_each_amplitude_of_colour_does_what_it_says(name: str):
    """Brightness adds a constant, contrast keeps the mean, both within range; every amplitude changes the image."""
    image = np.random.default_rng(0).integers(70, 180, (64, 64, 3), dtype=np.uint8)
    source = PatchSource.from_arrays(image, np.zeros((64, 64), int), image[..., 0] > 0, csr_matrix((0, 1)))
    still = {**NO_WARP, **NO_COLOUR}
    plain, changed = (
        training_chain([source], size=16, **{**still, name: amplitude}).set_random_state(seed=2)({Key.SECTION: 0})
        for amplitude in (0.0, 0.2)
    )
    before, after = ((patch[Key.IMAGE] + 0.9) / 1.8 for patch in (plain, changed))
    kept = (after > 0) & (after < 1)  # white glass beyond the slide is clipped
    change = (after - before)[kept]
    assert float(change.abs().max()) > 0.005
    if name == "brightness":
        assert 0 < float(change.abs().max()) < 0.2
        assert float(change.std()) < 1e-3
    if name == "contrast":
        factor = change / (before[kept] - before.mean())
        assert 0 < float(factor.median().abs()) < 0.2
        torch.testing.assert_close(before.mean() + (1 + factor.median()) * (before[kept] - before.mean()), after[kept])


def test_flips_mirror_image_and_label_alike(make_source):
    """A chain that always flips both ways gives the plain crop turned by half a circle."""
    source = make_source()
    plain, flipped = (
        training_chain([source], size=64, **{**NO_WARP, "flip_prob": prob}, **NO_COLOUR)
        .set_random_state(seed=1)({Key.SECTION: 0})
        for prob in (0.0, 1.0)
    )  # fmt: skip
    torch.testing.assert_close(flipped[Key.IMAGE], plain[Key.IMAGE].flip(-1, -2), atol=1e-4, rtol=0)
    assert torch.equal(flipped[Key.LABEL], plain[Key.LABEL].flip(-1, -2))
    assert torch.equal(flipped[Key.COUNTS].to_dense(), plain[Key.COUNTS].to_dense())


def test_the_default_warp_moves_pixels_and_changes_none(make_source):
    """Over some seeds each of the eight turns of the plain crop occurs, in colours and labels alike."""
    source, seen = make_source(), set()
    for seed in range(60):
        turned, plain = (
            training_chain([source], size=64, **amplitudes, **NO_COLOUR).set_random_state(seed=seed)
            for amplitudes in ({}, NO_WARP)
        )
        patch, crop = turned({Key.SECTION: 0}), plain({Key.SECTION: 0})
        found = [
            (turn, mirrored)
            for turn in range(4)
            for mirrored in (False, True)
            if torch.allclose(_turned(crop[Key.IMAGE], turn, mirrored), patch[Key.IMAGE], atol=1e-5)
            and torch.equal(_turned(crop[Key.LABEL], turn, mirrored) > 0, patch[Key.LABEL] > 0)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 8


def _turned(x: torch.Tensor, turn: int, mirrored: bool) -> torch.Tensor:
    turned = torch.rot90(x, turn, (1, 2))
    return turned.flip(2) if mirrored else turned


def test_a_validation_patch_is_a_crop(make_source):
    """The patch starts at (row - size // 2, col - size // 2) and is scaled to [-0.9, 0.9]."""
    source = make_source()
    patch = validation_chain([source], size=32)({Key.SECTION: 0, PatchKey.ROW: 100, PatchKey.COL: 90})
    expected = source.image[:, 84:116, 74:106] / 255 * 1.8 - 0.9
    torch.testing.assert_close(patch[Key.IMAGE], expected, atol=1e-6, rtol=0)
    kept = source.label[84:116, 74:106].long()
    listed = torch.cat([torch.zeros(1, dtype=torch.int64), patch[PatchKey.SPOT_IDS]])[patch[Key.LABEL][0]]
    assert torch.equal(listed[listed > 0], kept[listed > 0])


@pytest.mark.parametrize("seed", range(3))
def test_patches_have_the_types_the_network_takes(make_source, seed: int):
    """Plain tensors of the stated shapes and types; the image in [-0.9, 0.9] under full augmentation."""
    chain = training_chain([make_source()], size=SIZE, brightness=0.5, contrast=0.9, occlusion_prob=1.0)
    patch = chain.set_random_state(seed=seed)({Key.SECTION: 0})
    n_spots = len(patch[PatchKey.SPOT_IDS])
    kinds = {
        Key.IMAGE: ((3, SIZE, SIZE), torch.float32),
        Key.LABEL: ((1, SIZE, SIZE), torch.int64),
        Key.OCCLUDED: ((1, SIZE, SIZE), torch.bool),
        Key.COUNTS: ((n_spots, 4), torch.float32),
        Key.SHARE: ((n_spots,), torch.float32),
        PatchKey.SPOT_IDS: ((n_spots,), torch.int64),
    }
    for key, (shape, dtype) in kinds.items():
        assert type(patch[key]) is torch.Tensor
        assert (tuple(patch[key].shape), patch[key].dtype) == (shape, dtype)
    assert float(patch[Key.IMAGE].abs().max()) <= 0.9
    assert float(patch[Key.OCCLUDED].float().mean()) == pytest.approx(0.25)
    assert patch[Key.SECTION] == 0


def test_a_slide_alone_makes_patches_without_spots():
    """S = G = 0: label 1 is the outside, the counts are (1, 0) or (0, 0)."""
    label = np.zeros((80, 80), int)
    label[:, 60:] = 1
    image = np.full((80, 80, 3), 100, np.uint8)
    source = PatchSource.from_arrays(image, label, label == 0, csr_matrix((0, 0)))
    chain = validation_chain([source], size=16)
    assert chain({Key.SECTION: 0, PatchKey.ROW: 20, PatchKey.COL: 20})[Key.COUNTS].shape == (0, 0)
    patch = chain({Key.SECTION: 0, PatchKey.ROW: 20, PatchKey.COL: 60})
    assert patch[Key.COUNTS].shape == (1, 0)
    assert patch[Key.LABEL][0, 0].tolist() == [0] * 8 + [1] * 8


def test_impossible_options_are_refused(make_source):
    """A patch has pixels; amplitudes of colour and occlusion are checked when the chain is built."""
    with pytest.raises(ShapeError, match="size of at least 1 px, got 0"):
        validation_chain([make_source()], size=0)
    with pytest.raises(RunError, match=r"must lie in \[0, 1\), got {'sigma': 2.0}"):
        training_chain([make_source()], size=8, stain=2.0)
    with pytest.raises(ShapeError, match="at least one section"):
        training_chain([], size=8)
