"""Laws of the plane that is predicted on: one grid and one colour for sections and slides, white beyond."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import torch
from PIL import Image

from superst_monai.data.section import Section, join_section
from superst_monai.data.slide import Slide
from superst_monai.data.store import write_section
from superst_monai.errors import AlignmentError, ResolutionError, SlideError, StoreError
from superst_monai.inference import canvas
from superst_monai.inference.canvas import CoarseMask, canvas_of, open_source
from superst_monai.inference.posterior import Window


def dark(image: np.ndarray, mpp: float) -> np.ndarray:
    """Call dark pixels tissue."""
    return image.mean(axis=2) < 200


@pytest.fixture
def slide() -> Slide:
    """A slide of 1 um per pixel: glass with a dark square, 403 x 302 px."""
    image = np.full((302, 403, 3), (244, 240, 236), np.uint8)
    image[80:200, 160:320] = np.random.default_rng(0).integers(60, 180, (120, 160, 3))
    return Slide.from_array(image, mpp=1.0, name="square")


def test_a_slide_and_its_section_are_one_plane(slide: Slide) -> None:
    """A slide read window by window shows what a section of it holds, to the rounding of a grey level."""
    section = join_section(slide, None, mpp=4.0, name="square", find_tissue=dark)
    read, held = (canvas_of(source, 4.0, dark) for source in (slide, section))
    assert read.shape == held.shape == (76, 101)
    whole = Window(0, 0, *read.shape)
    for window in (whole, Window(-20, 30, 50, 100), Window(13, 17, 1, 1), Window(-9, -9, 4, 4)):
        difference = (read.image(window) - held.image(window)).abs().max()
        assert difference <= 1.01 * 1.8 / 255


def test_beyond_the_plane_it_is_white(section: Section) -> None:
    """Off the section the network sees 0.9 in every channel, at every side."""
    canvas = canvas_of(section, 4.0, dark)
    image = canvas.image(Window(-3, -2, 156, 214))
    assert image.shape == (3, 156, 214)
    inside = torch.zeros(156, 214, dtype=torch.bool)
    inside[3:153, 2:212] = True
    assert (image[:, ~inside] == torch.tensor(0.9)).all()
    torch.testing.assert_close(image[:, inside].reshape(3, 150, 210), canvas.image(Window(0, 0, 150, 210)))


def test_the_image_is_scaled_and_balanced_as_in_training(section: Section) -> None:
    """Glass of any tint comes out at grey level 245 of 255, on a scale from -0.9 to 0.9."""
    tinted = replace(section, image=(section.image * np.array([1.0, 0.9, 0.8])).astype(np.uint8))
    glass = canvas_of(tinted, 4.0, dark).image(Window(140, 200, 5, 5))
    np.testing.assert_allclose(glass, 245 / 255 * 1.8 - 0.9, atol=1.8 / 255)


def test_a_finer_section_is_resampled(section: Section) -> None:
    """A section at half the run's resolution has half the pixels."""
    canvas = canvas_of(section, 8.0, dark)
    assert canvas.shape == (75, 105)
    assert canvas.mpp == 8.0


def test_a_slide_is_covered_where_its_overview_shows_tissue(slide: Slide) -> None:
    """Tissue found at 8 um is that at the run's 1 um, enlarged; nothing lies beyond the map."""
    canvas = canvas_of(slide, 1.0, dark)
    expected = np.zeros((302, 403), bool)
    expected[80:200, 160:320] = True
    np.testing.assert_array_equal(canvas.tissue, expected)
    np.testing.assert_array_equal(canvas.covered, canvas.tissue)


def test_a_coarse_mask_is_the_mask_that_it_stands_for() -> None:
    """Any box of it, as an array or through dask, is the box of the plane with every entry repeated."""
    coarse = np.random.default_rng(0).random((5, 4)) < 0.5
    mask = CoarseMask(coarse, 3, (13, 11))
    plain = coarse.repeat(3, 0).repeat(3, 1)[:13, :11]
    np.testing.assert_array_equal(np.asarray(mask), plain)
    for rows, cols in ((slice(2, 9), slice(0, 11)), (slice(12, 20), slice(5, 6)), (slice(None), slice(-4, None))):
        np.testing.assert_array_equal(mask[rows, cols], plain[rows, cols])
    np.testing.assert_array_equal(da.from_array(mask, chunks=(4, 4), name=False).compute(), plain)
    assert mask.any()
    assert not CoarseMask(np.zeros((2, 2), bool), 3, (5, 5)).any()


def test_the_overview_of_a_large_slide_is_coarser(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the slide, the tissue is looked for in so many pixels at most, and found where it is."""
    seen = []

    def find(image: np.ndarray, mpp: float) -> np.ndarray:
        seen.append((image.shape[0] * image.shape[1], mpp))
        return dark(image, mpp)

    monkeypatch.setattr(canvas, "_OVERVIEW_PX", 302 * 403 // 380)
    tissue = np.asarray(canvas_of(slide, 1.0, find).tissue)
    assert seen == [(16 * 21, 20.0)]
    assert tissue.shape == (302, 403)
    expected = np.zeros((302, 403), bool)
    expected[80:200, 160:320] = True
    np.testing.assert_array_equal(tissue, expected)


def test_the_hash_is_of_what_is_predicted_on(section: Section) -> None:
    """Another tissue or another image has another hash, the same arrays have the same."""
    first = canvas_of(section, 4.0, dark).sha256
    assert canvas_of(replace(section, name="again"), 4.0, dark).sha256 == first
    others = [replace(section, image=section.image + np.uint8(1)), replace(section, tissue=~section.tissue)]
    assert len({first, *(canvas_of(other, 4.0, dark).sha256 for other in others)}) == 3


def test_sources_coarser_than_the_run_are_refused(section: Section, slide: Slide) -> None:
    """Both resolutions are told, and what to do."""
    with pytest.raises(ResolutionError, match=r"works at 2 um .* section C2 holds 4; prepare it again with --mpp 2"):
        canvas_of(section, 2.0, dark)
    with pytest.raises(ResolutionError, match=r"works at 0.5 um per pixel, but slide square has 1;"):
        canvas_of(slide, 0.5, dark)


def test_a_slide_without_tissue_is_refused() -> None:
    """Empty glass has nothing to predict."""
    empty = Slide.from_array(np.full((100, 100, 3), 240, np.uint8), mpp=1.0, name="glass")
    with pytest.raises(AlignmentError, match=r"no tissue found on glass \(25 x 25 px at 4 um\)"):
        canvas_of(empty, 4.0, dark)


def test_a_path_is_opened_as_what_it_is(tmp_path: Path, make_section: Callable[..., Section]) -> None:
    """A store becomes a section, an image a slide that is closed at the end."""
    write_section(make_section(), tmp_path / "a.zarr")
    with open_source(tmp_path / "a.zarr") as found:
        assert isinstance(found, Section)
        assert found.name == "C2"
    Image.new("RGB", (40, 30), (250, 240, 240)).save(tmp_path / "a.png")
    with open_source(str(tmp_path / "a.png"), slide_mpp=2.0) as slide:
        assert isinstance(slide, Slide)
        assert (slide.width_px0, slide.mpp_x) == (40, 2.0)
    with pytest.raises(SlideError, match="closed"):
        slide.read(slide.whole(), 2.0)
    with pytest.raises(StoreError, match="there is no section"), open_source(tmp_path / "b.zarr"):
        pass
