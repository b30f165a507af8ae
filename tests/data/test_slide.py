"""Laws of reading a slide, against images whose value is known at every place and resolution."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from superst_monai.data import slide as module
from superst_monai.data.slide import Slide
from superst_monai.errors import ResolutionError, SlideError
from superst_monai.types import Region

WIDTH, HEIGHT = 1282, 898


def truth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean colour `(H, W, 3)` of the known image between the edges x `(W + 1,)` and y `(H + 1,)` [px0]."""

    def wave(edges: np.ndarray, period: float) -> np.ndarray:
        omega = 2 * np.pi / period
        return -np.diff(np.cos(omega * edges)) / (omega * np.diff(edges))

    def ramp(edges: np.ndarray) -> np.ndarray:
        return (edges[:-1] + edges[1:]) / 2

    rows = (np.ones(len(y) - 1), wave(y, 260.0), ramp(y) / HEIGHT)
    columns = (wave(x, 330.0), np.ones(len(x) - 1), ramp(x) / WIDTH)
    return np.stack([120 + 70 * r[:, None] * c for r, c in zip(rows, columns, strict=True)], axis=-1)


def known(width: int, height: int, down_x: float, down_y: float) -> np.ndarray:
    """The known image at a level, uint8."""
    return np.rint(truth(np.arange(width + 1) * down_x, np.arange(height + 1) * down_y)).astype(np.uint8)


def expected(region: Region, slide: Slide, mpp: float) -> np.ndarray:
    """What a read of the known image must give inside the slide."""
    step_x, step_y = mpp / slide.mpp_x, mpp / slide.mpp_y
    width, height = round(region.width_px0 / step_x), round(region.height_px0 / step_y)
    return truth(region.x_px0 + np.arange(width + 1) * step_x, region.y_px0 + np.arange(height + 1) * step_y)


def write(path: Path, levels: list[np.ndarray], *, mpp: tuple[float, float] | None = (0.5, 0.5), **options) -> Path:
    """Write a tiled pyramid that OpenSlide opens."""
    per_cm = None if mpp is None else (1e4 / mpp[0], 1e4 / mpp[1])
    with tifffile.TiffWriter(path) as file:
        for i, level in enumerate(levels):
            unit = {"resolution": per_cm, "resolutionunit": "CENTIMETER"} if per_cm and i == 0 else {}
            file.write(
                level, tile=(128, 128), photometric="rgb", subfiletype=int(i > 0), metadata=None, **unit, **options
            )
    return path


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory) -> Path:
    """The known image with levels at 1, 500 / 195 = 2.564 and 64 (rounded down: OpenSlide says 64.12)."""
    levels = [known(WIDTH, HEIGHT, 1, 1), known(500, 350, WIDTH / 500, HEIGHT / 350), known(20, 14, 64, 64)]
    return write(tmp_path_factory.mktemp("slide") / "known.tif", levels)


@pytest.fixture
def noise() -> np.ndarray:
    """White noise `(200, 300, 3)`: the hardest image for placement and edges."""
    return np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)


@pytest.mark.parametrize("mpp", [0.5, 0.7, 1.0, 1.28205, 2.0, 5.3, 30.0, 32.0, 64.0])
def test_every_resolution_shows_the_known_image(pyramid, mpp):
    """At and between levels, also at a downsample of 2.564 and 64, pixels are the means of the image they cover."""
    region = Region(64.0, 64.0, 1088.0, 704.0)
    with Slide.open(pyramid) as slide:
        got = slide.read(region, mpp)
        want = expected(region, slide, mpp)
    assert got.shape == want.shape == (round(704 * 0.5 / mpp), round(1088 * 0.5 / mpp), 3)
    assert np.abs(got - want).max() < 1.5


@pytest.mark.parametrize(("x", "y"), [(100.25, 60.5), (333.333, 12.9), (7.0, 401.01)])
def test_fractional_corners_are_placed_exactly(pyramid, x, y):
    """A region may begin anywhere between pixels (translation law), at the slide's resolution, coarser and finer."""
    with Slide.open(pyramid, mpp=0.5) as slide:
        for mpp in (0.2, 0.5, 3.1):
            region = Region(x, y, 160.0, 120.0)
            assert np.abs(slide.read(region, mpp) - expected(region, slide, mpp)).max() < 1.5


def test_unequal_axes_are_brought_to_square_pixels(tmp_path):
    """Where mpp differs per axis the output has one mpp, and shows the known image."""
    path = write(tmp_path / "a.tif", [known(WIDTH, HEIGHT, 1, 1), known(641, 449, 2, 2)], mpp=(0.25, 0.5))
    with Slide.open(path) as slide:
        region = Region(20.0, 30.0, 800.0, 600.0)
        got = slide.read(region, 1.0)
        assert got.shape == (300, 200, 3)
        assert np.abs(got - expected(region, slide, 1.0)).max() < 1.5


def test_level_zero_is_the_stored_pixels(tmp_path, noise):
    """At level-0 resolution a read is the file, bit for bit, by every reader."""
    Image.fromarray(noise).save(tmp_path / "b.png")
    tifffile.imwrite(tmp_path / "c.tif", noise, photometric="rgb")
    for path, reader in [
        (write(tmp_path / "a.tif", [noise]), "openslide"),
        (tmp_path / "b.png", "pillow"),
        (tmp_path / "c.tif", "tifffile"),
    ]:
        with Slide.open(path, mpp=0.25) as slide:
            assert slide.properties["reader"] == reader
            np.testing.assert_array_equal(slide.read(slide.whole(), 0.25), noise)
            np.testing.assert_array_equal(slide.read(Region(31, 17, 90, 40), 0.25), noise[17:57, 31:121])


@pytest.mark.parametrize("mpp", [1.0, 1.25, 2.5, 5.0])
def test_the_mean_is_kept(noise, mpp):
    """Reducing a slide that is a whole number of pixels keeps its mean colour."""
    with Slide.from_array(noise // 2 + 60, mpp=0.25, name="a") as slide:
        got = slide.read(slide.whole(), mpp)
    np.testing.assert_allclose(got.mean((0, 1)), (noise // 2 + 60).mean((0, 1)), atol=0.1)


@pytest.mark.parametrize("mpp", [0.13, 0.25, 0.7, 2.9])
def test_tiles_agree_with_one_big_read(noise, mpp):
    """Regions on the pixel grid, reaching off the slide on all sides, tile without seams (to the rounding)."""
    with Slide.from_array(noise, mpp=0.25, name="a") as slide:
        step, side = mpp / 0.25, 16
        n_rows, n_cols = (int(size / step / side) + 3 for size in (200, 300))
        corner = -side * step
        big = slide.read(Region(corner, corner, n_cols * side * step, n_rows * side * step), mpp)
        for row in range(n_rows):
            for col in range(n_cols):
                x, y = corner + col * side * step, corner + row * side * step
                tile = slide.read(Region(x, y, side * step, side * step), mpp)
                want = big[row * side : (row + 1) * side, col * side : (col + 1) * side]
                assert np.abs(tile.astype(int) - want).max() <= 1


def test_blocks_do_not_show(pyramid, monkeypatch):
    """A read in many small blocks is the read in one, so that memory can be bounded."""
    region = Region(-50.0, -20.0, 1400.0, 1000.0)
    with Slide.open(pyramid) as slide:
        whole = slide.read(region, 1.7)
        monkeypatch.setattr(module, "_BLOCK_PX", 100)
        assert np.abs(slide.read(region, 1.7).astype(int) - whole).max() <= 1


def test_off_the_slide_is_white(noise):
    """Pixels beyond the slide, at negative or large places, are white; a pixel half on it is half white."""
    with Slide.from_array(np.zeros_like(noise), mpp=0.5, name="a") as slide:
        got = slide.read(Region(-4.0, -2.0, 310.0, 204.0), 0.5)
        np.testing.assert_array_equal(got[2:202, 4:304], 0)
        got[2:202, 4:304] = 255
        assert got.min() == 255
        assert slide.read(Region(5000.0, -9000.0, 40.0, 30.0), 1.0).min() == 255
        half = slide.read(Region(-10.0, 20.0, 40.0, 40.0), 2.0)  # the third column covers px0 -2..2
        np.testing.assert_array_equal(half[0, :, 0], [255, 255, 128, 0, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(("sides", "down"), [((205, 411), 2), ((1001, 997), 4)])
def test_the_last_cut_pixel_of_a_rounded_level_is_not_a_white_seam(tmp_path, sides, down):
    """Where level sizes were rounded down, the slide's rim keeps the tissue's colour, and beyond it is white."""
    width, height = sides
    full = np.full((height, width, 3), 90, np.uint8)
    path = write(tmp_path / "a.tif", [full, np.full((height // down, width // down, 3), 90, np.uint8)])
    with Slide.open(path) as slide:
        got = slide.read(Region(0, 0, width + 20 * down, height + 20 * down), 0.5 * down)
    cover = np.clip(height / down - np.arange(got.shape[0]), 0, 1)[:, None] * np.clip(
        width / down - np.arange(got.shape[1]), 0, 1
    )
    assert np.abs(got - (255 - cover * 165)[..., None]).max() <= 1


def test_transparent_parts_are_white_without_a_fringe(tmp_path):
    """A red disc on transparent black reduces to red on white: no darker rim anywhere."""
    y, x = np.mgrid[:256, :256] - 127.5
    disc = (x**2 + y**2 < 80**2).astype(np.uint8)
    rgba = np.stack([200 * disc, 30 * disc, 30 * disc, 255 * disc], axis=-1)
    with Slide.open(write(tmp_path / "a.tif", [rgba], extrasamples=["unassalpha"])) as slide:
        assert slide.properties["reader"] == "openslide"
        got = slide.read(slide.whole(), 2.0)
    share = disc.reshape(64, 4, 64, 4).mean((1, 3))[..., None]
    want = share * (200, 30, 30) + (1 - share) * 255
    assert np.abs(got - want).max() <= 1


@pytest.mark.parametrize("mpp", [0.5, 0.51, 0.999, 1.0, 31.0, 32.0, 1.279, 1.282])
def test_the_nearest_finer_level_is_read(pyramid, mpp, monkeypatch):
    """The coarsest level that is not coarser than asked is read (half a percent is rounding)."""
    used = []
    with Slide.open(pyramid, mpp=0.5) as slide:
        monkeypatch.setattr(
            slide, "_source", lambda level, x, y, w, h: used.append(level) or np.zeros((h, w, 3), np.uint8)
        )
        slide.read(Region(0, 0, 200, 200), mpp)
    assert used == [0 if mpp < 1.275 else 1 if mpp < 32 else 2]


def test_a_region_smaller_than_a_pixel_is_one_pixel(pyramid):
    """At least one pixel comes back, of the full pixel size."""
    with Slide.open(pyramid, mpp=0.5) as slide:
        got = slide.read(Region(640.0, 448.0, 0.3, 0.2), 4.0)
        assert np.abs(got - expected(Region(640.0, 448.0, 8.0, 8.0), slide, 4.0)).max() < 1.5


@pytest.mark.parametrize("form", ["tiled", "strips", "png"])
def test_threads_share_a_slide(tmp_path, noise, form):
    """Eight threads that read one slide at once get what one thread gets, by every reader."""
    path = tmp_path / ("a.png" if form == "png" else "a.tif")
    if form == "png":
        Image.fromarray(noise).save(path)
    else:
        tifffile.imwrite(path, noise, photometric="rgb", tile=(32, 32) if form == "tiled" else None, compression="zlib")
    regions = [Region(7.0 * i, 3.0 * i, 60.0, 50.0) for i in range(32)]
    with Slide.open(path, mpp=0.5) as slide, ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda region: slide.read(region, 0.8), regions))
        for one, region in zip(got, regions, strict=True):
            np.testing.assert_array_equal(one, slide.read(region, 0.8))


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_resolution_cannot_be_read(noise, mpp):
    """A read needs a positive, finite pixel size."""
    with (
        Slide.from_array(noise, mpp=0.5, name="a") as slide,
        pytest.raises(ResolutionError, match=r"a can be read at a positive mpp"),
    ):
        slide.read(slide.whole(), mpp)


def test_a_pixel_of_many_slides_is_refused() -> None:
    """Output pixels that average more source than fits in memory are refused before it is read."""
    slide = Slide.from_array(np.zeros((50, 40, 3), np.uint8), mpp=1.0, name="A")
    with pytest.raises(SlideError, match=r"a pixel of 1e\+07 um of A needs .* GiB.*; ask for a finer mpp"):
        slide.read(slide.whole(), 1e7)
    assert slide.read(slide.whole(), 500.0).shape == (1, 1, 3)
