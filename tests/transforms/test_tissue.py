"""The tissue finder against images whose tissue is known, and against spots known to lie on tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from superst_monai.errors import ResolutionError, ShapeError
from superst_monai.transforms.tissue import find_tissue, glass_colour

PURPLE = np.array([0.5, 0.8, 0.25])  # optical density of strong H&E stain in red, green and blue
WHITE = (244, 243, 242)


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    """A filled circle, all numbers in pixels."""
    row, column = np.ogrid[: shape[0], : shape[1]]
    return (row + 0.5 - centre[0]) ** 2 + (column + 0.5 - centre[1]) ** 2 <= radius**2


def stained(
    tissue: NDArray[np.bool_], glass: tuple[int, int, int] = WHITE, seed: int = 0, strength: float = 0.6
) -> NDArray[np.uint8]:
    """Paint textured stain on tissue, and noise of the camera everywhere."""
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=tissue.shape), 1.0)
    amount = strength * tissue * np.clip(1 + texture / texture.std() * 0.6, 0.1, None)
    light = np.array(glass) * np.exp(-amount[..., None] * PURPLE)
    return np.clip(np.rint(light + rng.normal(0, 1.5, (*tissue.shape, 3))), 0, 255).astype(np.uint8)


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((one & other).sum() / (one | other).sum())


TINTS = pytest.mark.parametrize(
    "glass", [WHITE, (240, 235, 190), (236, 219, 235), (200, 204, 200), (255, 255, 255)], ids=str
)


@TINTS
@pytest.mark.parametrize("strength", [0.3, 0.9])
def test_tissue_is_found_on_glass_of_any_tint(glass: tuple[int, int, int], strength: float) -> None:
    """Pale and strong tissue is outlined within a few um on white, yellow, pink and grey glass."""
    tissue = disc((160, 200), (80, 90), 50)
    found = find_tissue(stained(tissue, glass, strength=strength), 8.0)
    assert overlap(found, tissue) > 0.93


@pytest.mark.parametrize("mpp", [2.0, 4.0, 8.0, 16.0])
def test_the_mask_does_not_depend_on_the_resolution(mpp: float) -> None:
    """The same disc of 800 um radius is found at 2 to 16 um per pixel."""
    side = round(2400 / mpp)
    tissue = disc((side, side), (side / 2, side / 2), 800 / mpp)
    found = find_tissue(stained(tissue), mpp)
    assert found.shape == tissue.shape
    assert found.dtype == np.bool_
    assert overlap(found, tissue) > 0.92


@TINTS
def test_glass_alone_holds_no_tissue(glass: tuple[int, int, int]) -> None:
    """Noise on empty glass is not split in two by the threshold."""
    assert not find_tissue(stained(np.zeros((120, 120), bool), glass), 8.0).any()


@pytest.mark.parametrize("side", [1, 30, 61])
def test_empty_glass_smaller_than_a_hole_is_no_tissue(side: int) -> None:
    """Glass without tissue is no hole in tissue, however small the slide (61 px of 4 um are below the largest hole)."""
    assert not find_tissue(np.full((side, side, 3), 240, np.uint8), 4.0).any()


@pytest.mark.parametrize("level", [255, 0])
def test_a_blank_image_holds_no_tissue(level: int) -> None:
    """All white and all black images give an empty mask."""
    assert not find_tissue(np.full((60, 50, 3), level, np.uint8), 8.0).any()


def test_tissue_without_glass_is_all_tissue() -> None:
    """A window within the tissue is not split into darker and paler tissue."""
    assert find_tissue(stained(np.ones((120, 120), bool)), 8.0).mean() > 0.99


@pytest.mark.parametrize("level", [0, 20, 255])
def test_padding_is_not_tissue(level: int) -> None:
    """Black or white padding round a tinted slide is left out, and the tissue is still found."""
    tissue = disc((160, 160), (80, 80), 45)
    image = stained(tissue, (236, 219, 235))
    image[:40], image[:, 140:] = level, level
    kept = tissue.copy()
    kept[:40], kept[:, 140:] = False, False
    found = find_tissue(image, 8.0)
    assert overlap(found, kept) > 0.9
    assert not found[:38].any()


def test_grey_shadows_and_dust_are_not_tissue() -> None:
    """Blurred fiducials absorb all colours alike, and specks are smaller than the smallest piece of tissue."""
    tissue = disc((200, 200), (120, 120), 50)
    image = stained(tissue | disc((200, 200), (20, 180), 3)).astype(float)
    shadow = ndimage.gaussian_filter(disc((200, 200), (40, 40), 25).astype(float), 4)
    found = find_tissue((image * (1 - 0.4 * shadow[..., None])).astype(np.uint8), 8.0)
    assert overlap(found, tissue) > 0.93
    assert not found[:65, :65].any()
    assert not found[:30, 170:].any()


def test_a_smooth_veil_of_eosin_is_not_tissue() -> None:
    """Stain that leaked beside the tissue absorbs like tissue but is smooth."""
    tissue = disc((200, 200), (100, 70), 50)
    veil = ndimage.gaussian_filter(disc((200, 200), (100, 140), 40).astype(float), 12)
    image = stained(tissue) * np.exp(-0.12 * veil[..., None] * [0.1, 1.0, 0.2])
    assert overlap(find_tissue(image.astype(np.uint8), 8.0), tissue) > 0.93


def test_small_holes_are_filled_and_large_ones_kept() -> None:
    """A fat cell belongs to the tissue, a lumen of 0.4 mm2 does not."""
    shape = (240, 240)
    cell, lumen = disc(shape, (80, 120), 8), disc(shape, (150, 120), 45)
    found = find_tissue(stained(disc(shape, (120, 120), 110) & ~cell & ~lumen), 8.0)
    assert found[cell].all()
    assert found[disc(shape, (150, 120), 38)].mean() < 0.01


def test_glass_is_white_where_nothing_is_bright() -> None:
    """A dark image cannot tell its glass."""
    np.testing.assert_array_equal(glass_colour(np.full((9, 9, 3), 90.0), np.ones((9, 9), bool)), [255, 255, 255])


def test_other_layouts_are_refused() -> None:
    """The image must be 8-bit RGB and the resolution a positive number."""
    image = np.full((8, 8, 3), 255, np.uint8)
    with pytest.raises(ShapeError, match=r"\(H, W, 3\) uint8, got \(3, 8, 8\)"):
        find_tissue(image.transpose(2, 0, 1), 4.0)
    with pytest.raises(ShapeError, match="float32"):
        find_tissue(image.astype(np.float32), 4.0)  # type: ignore[arg-type]
    with pytest.raises(ResolutionError, match="got nan"):
        find_tissue(image, float("nan"))


@pytest.mark.parametrize("name", ["C2", "C3", "C6"])
def test_spots_under_tissue_lie_on_the_mask(name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On real sections of different tints 95 % of the spots under tissue are on the mask, a sixth of the slide."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    picture = Image.open(shared_data / "her2st" / f"{name}.jpg")
    full = picture.width
    picture.draft("RGB", (picture.width // 8, picture.height // 8))
    found = find_tissue(np.asarray(picture), 0.69 * full / picture.width)
    spots = pd.read_csv(shared_data / "her2st" / f"{name}_selection.tsv", sep="\t")
    column, row = (spots[["pixel_x", "pixel_y"]].to_numpy() * picture.width / full).astype(int).T
    inside = found[np.clip(row, 0, found.shape[0] - 1), np.clip(column, 0, found.shape[1] - 1)]
    assert inside.mean() > 0.95
    assert 0.14 < found.mean() < 0.2
