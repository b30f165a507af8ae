"""Scale factors of images and um per px from the pitch of an array."""

from __future__ import annotations

import numpy as np
import pytest

from superst_monai.data.platforms.frames import check_factors, fit_faults, fit_grid, fit_note, scale_of_image
from superst_monai.errors import AssayError

FACTORS = {"tissue_hires_scalef": 0.2, "tissue_lowres_scalef": 0.05}
GRID = np.stack(np.meshgrid(np.arange(6.0), np.arange(5.0)), axis=-1).reshape(-1, 2) * 100.0


@pytest.mark.parametrize(
    ("name", "given", "scale", "said"),
    [
        ("A1_tissue_hires_image.png", None, 0.2, "tissue_hires_scalef"),
        ("tissue_lowres_image.png", None, 0.05, "tissue_lowres_scalef"),
        ("tissue_lowres_image.png", 0.7, 0.7, "given"),
        ("slide.svs", None, 1.0, "full-resolution"),
        ("cytassist_image.tiff", 0.3, 0.3, "given"),
    ],
)
def test_the_factor_follows_the_name_unless_given(name, given, scale, said):
    """hires and lowres bring theirs, the caller's wins, any other image is full resolution; the note says which."""
    got, note = scale_of_image(name, FACTORS, given)
    assert got == scale
    assert said in note
    assert name in note


def test_an_unknown_factor_is_refused():
    """A hires image whose factor is missing is not guessed."""
    with pytest.raises(
        AssayError, match=r"needs the scale factor tissue_hires_scalef, known are: none; pass --image-scale"
    ):
        scale_of_image("tissue_hires_image.png", {}, None)


@pytest.mark.parametrize("name", ["cytassist_image.tiff", "aligned_fiducials.jpg", "detected_tissue_image.jpg"])
def test_other_pictures_of_space_ranger_are_refused(name):
    """A picture in an unknown frame needs its factor."""
    with pytest.raises(AssayError, match="is that of another picture of Space Ranger"):
        scale_of_image(name, FACTORS, None)


@pytest.mark.parametrize("angle", [0.0, 0.5, 2.0, -1.3])
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_the_fit_finds_the_scale_of_any_similarity(angle, mirror):
    """Turning, mirroring and shifting an array leaves its px per um, without residual."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * (mirror, 1.0)
    fit = fit_grid(GRID, GRID @ turn * 0.25 + (1000.0, -50.0))
    assert fit is not None
    assert fit.px_per_um == pytest.approx(0.25)
    assert fit.stretch == pytest.approx(1.0)
    assert fit.residual_um == pytest.approx(0.0, abs=1e-6)
    assert fit_faults(fit, 100.0) == []
    assert "axes" not in fit_note(fit, 100.0)


def test_the_fit_takes_the_geometric_mean_of_two_axes():
    """Unequal axes give the root of the area, and their ratio is noted."""
    fit = fit_grid(GRID, GRID * (0.5, 0.55))
    assert fit is not None
    assert fit.px_per_um == pytest.approx(np.sqrt(0.5 * 0.55))
    assert fit.stretch == pytest.approx(1.1)
    assert "mpp 1.907 um/px from the array's pitch of 100 um" in fit_note(fit, 100.0)
    assert "axes differ by 10.0% (mean used)" in fit_note(fit, 100.0)


def test_the_residual_is_the_root_mean_square_in_um():
    """Noise of a known size that no affine map explains is found, against the plain formula."""
    noise = np.random.default_rng(0).normal(0, 3.0, GRID.shape)
    fit = fit_grid(GRID, GRID * 0.5 + noise)
    design = np.column_stack([GRID, np.ones(len(GRID))])
    rest = noise - design @ np.linalg.pinv(design) @ noise
    assert fit is not None
    assert fit.residual_um == pytest.approx(np.sqrt((rest**2).sum(axis=1).mean()) / fit.px_per_um)


def test_shuffled_positions_and_swapped_axes_are_faults():
    """Positions of another array, and rows taken for columns, do not tell the um per px."""
    shuffled = fit_grid(GRID, np.random.default_rng(0).permutation(GRID))
    assert shuffled is not None
    assert "positions miss the array of 100 um pitch" in fit_faults(shuffled, 100.0)[0]
    hexagonal = GRID * (0.5, np.sqrt(3) / 2)
    swapped = fit_grid(GRID[:, ::-1] * (0.5, np.sqrt(3) / 2), hexagonal)
    assert swapped is not None
    assert fit_faults(swapped, 100.0) == ["the axes of the array differ 3.00-fold in the image, must be 1.25 at most"]


@pytest.mark.parametrize(
    ("grid", "position"),
    [(GRID[:2], GRID[:2]), (GRID[:6], GRID[:6]), (GRID, GRID * (1.0, 0.0)), (GRID, GRID * 0.0)],
)
def test_positions_on_one_line_tell_nothing(grid, position):
    """Two spots, one row of the array, or one line in the image have no scale."""
    assert fit_grid(grid, position) is None


def test_factors_are_numbers_of_any_library():
    """Numbers, numpy scalars and arrays of one are taken; other entries are ignored."""
    content = {"tissue_hires_scalef": np.float32(0.5), "a_scalef": np.array([2]), "name": "x", "flag": True}
    assert check_factors(content, "f") == {"tissue_hires_scalef": 0.5, "a_scalef": 2.0}


def test_impossible_factors_are_all_reported():
    """Every known factor that is no positive number is named."""
    content = {"tissue_hires_scalef": 0, "spot_diameter_fullres": "a", "bin_size_um": None, "microns_per_pixel": np.inf}
    with pytest.raises(AssayError) as caught:
        check_factors(content, "f.json")
    assert str(caught.value).count("must be a positive number") == 4
