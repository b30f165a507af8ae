"""Laws of opening a slide: what is taken, what is refused, and what the refusal says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from superst_monai.data import pixels
from superst_monai.data import slide as module
from superst_monai.data.slide import Slide
from superst_monai.errors import ResolutionError, ShapeError, SlideError
from superst_monai.types import Region


def write(path: Path, image: np.ndarray, *, mpp: float | None = 0.5, compression: str | None = None) -> Path:
    """Write a tiled pyramid of two levels that OpenSlide opens."""
    unit = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    options = {"tile": (128, 128), "photometric": "rgb", "metadata": None, "compression": compression}
    with tifffile.TiffWriter(path) as file:
        file.write(image, **unit, **options)
        file.write(np.ascontiguousarray(image[::2, ::2]), subfiletype=1, **options)
    return path


@pytest.fixture
def noise() -> np.ndarray:
    """White noise `(200, 300, 3)`."""
    return np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)


def test_a_slide_says_what_it_is(tmp_path, noise):
    """Properties hold resolution and its source, size, levels, reader, file name and the hash of its bytes."""
    path = write(tmp_path / "known.tif", noise)
    with Slide.open(path) as slide:
        got = slide.properties
        assert (slide.name, slide.width_px0, slide.height_px0) == ("known", 300, 200)
        assert slide.whole() == Region(0, 0, 300, 200)
        assert slide.properties == got
    assert (got.pop("mpp_x"), got.pop("mpp_y")) == pytest.approx((0.5, 0.5))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert got == {
        "vendor": "generic-tiff", "objective": None, "mpp_source": "file", "width_px0": 300, "height_px0": 200,
        "levels": 2, "reader": "openslide", "file": "known.tif", "sha256": sha256,
    }  # fmt: skip


def test_the_file_is_hashed_once_and_not_at_open(tmp_path, noise, monkeypatch):
    """Opening reads no whole file; properties hash it at the first access only."""
    calls = []
    monkeypatch.setattr(module.hashlib, "file_digest", lambda file, name: calls.append(name) or hashlib.sha256(b""))
    with Slide.open(write(tmp_path / "known.tif", noise)) as slide:
        assert calls == []
        assert slide.properties["sha256"] == slide.properties["sha256"]
    assert calls == ["sha256"]


def test_the_resolution_is_never_guessed(tmp_path, noise):
    """A silent file needs the caller's or the assay's mpp; the dpi of a picture is silence."""
    Image.fromarray(noise).save(tmp_path / "a.jpg", dpi=(72, 72))
    write(tmp_path / "a.tif", noise, mpp=None)
    for name in ("a.jpg", "a.tif"):
        with pytest.raises(
            ResolutionError, match=rf"{name} must come with its resolution .* --slide-mpp \(CLI\) / mpp="
        ):
            Slide.open(tmp_path / name)
        with Slide.open(tmp_path / name, fallback_mpp=0.7) as slide:
            assert (slide.mpp_x, slide.mpp_y, slide.properties["mpp_source"]) == (0.7, 0.7, "assay")
        with Slide.open(tmp_path / name, mpp=0.3, fallback_mpp=0.7) as slide:
            assert (slide.mpp_x, slide.mpp_y, slide.properties["mpp_source"]) == (0.3, 0.3, "caller")


def test_an_ome_tiff_is_read_with_its_levels(tmp_path, noise):
    """OME-TIFF, which OpenSlide opens without levels and pixel size, goes to the reader that knows both."""
    path = tmp_path / "a.ome.tif"
    meta = {"axes": "YXS", "PhysicalSizeX": 0.4, "PhysicalSizeY": 0.4}
    with tifffile.TiffWriter(path) as file:
        file.write(noise, tile=(64, 64), photometric="rgb", subifds=1, metadata=meta)
        file.write(np.ascontiguousarray(noise[::2, ::2]), tile=(64, 64), photometric="rgb", subfiletype=1)
    with Slide.open(path) as slide:
        assert (slide.mpp_x, slide.properties["reader"], slide.properties["levels"]) == (0.4, "tifffile", 2)
        np.testing.assert_array_equal(slide.read(slide.whole(), 0.8), noise[::2, ::2])


@pytest.mark.parametrize(
    ("image", "came"),
    [
        (np.zeros((4, 4), np.uint8), r"\(4, 4\) uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), r"\(4, 4, 3\) float32"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
    ],
)
def test_an_array_must_be_rgb(image, came):
    """Only a non-empty 8-bit RGB array can be a slide."""
    with pytest.raises(ShapeError, match=rf"image a must be a non-empty \(H, W, 3\) uint8 array, got {came}"):
        Slide.from_array(image, mpp=1.0, name="a")


def test_an_array_is_a_slide_too(noise):
    """An array states reader and resolution, no file, and the hash of its bytes."""
    with Slide.from_array(noise, mpp=0.5, name="a") as slide:
        got = slide.properties
    assert (got["reader"], got["file"], got["mpp_source"], got["levels"]) == ("array", None, "caller", 1)
    assert got["sha256"] == hashlib.sha256(noise.tobytes()).hexdigest()


def test_a_closed_slide_says_so(noise):
    """Reading after close names the slide; closing twice is harmless."""
    slide = Slide.from_array(noise, mpp=0.5, name="a")
    slide.close()
    slide.close()
    with pytest.raises(SlideError, match="a must be open to be read, but it is closed"):
        slide.read(slide.whole(), 1.0)


def test_an_output_larger_than_memory_is_refused(noise, monkeypatch):
    """A read whose output cannot fit is refused before it starts."""
    monkeypatch.setattr(pixels, "machine_memory", lambda: 1000)
    with (
        Slide.from_array(noise, mpp=0.5, name="a") as slide,
        pytest.raises(SlideError, match=r"a read of 300 x 200 px of a needs .* smaller regions"),
    ):
        slide.read(slide.whole(), 0.5)


def test_what_is_no_image_is_refused(tmp_path):
    """Missing files, folders, text, empty files and an MRXS without its folder are refused, each with the next step."""
    with pytest.raises(SlideError, match=r"the slide must exist, but there is no .*a.svs; check the path"):
        Slide.open(tmp_path / "a.svs")
    with pytest.raises(SlideError, match="pass one file of the slide itself"):
        Slide.open(tmp_path)
    for name, data in [("a.txt", b"spots"), ("b.png", b"")]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(
            SlideError, match=rf"{name} must be a slide that OpenSlide opens, or a JPEG, PNG or TIFF.*vips"
        ):
            Slide.open(tmp_path / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "c.mrxs", "JPEG")
    with pytest.raises(SlideError, match=r"c.mrxs needs its folder c/ beside it"):
        Slide.open(tmp_path / "c.mrxs", mpp=0.5)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.95])
def test_a_cut_off_slide_is_refused_at_open(tmp_path, noise, keep):
    """A pyramid that lost its end is refused by name."""
    data = write(tmp_path / "whole.tif", noise).read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(SlideError, match=r"a.tif .*copy it again"):
        Slide.open(tmp_path / "a.tif", mpp=0.5)


def test_damaged_tiles_are_reported_at_read(tmp_path, noise):
    """A tile that does not decode raises at read, naming the file; the rest of the slide can be opened again."""
    path = write(tmp_path / "a.tif", noise, compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[3], file.pages[0].databytecounts[3]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\xff" * count
    path.write_bytes(data)
    with Slide.open(path) as slide:
        np.testing.assert_array_equal(slide.read(Region(0, 0, 100, 100), slide.mpp_x), noise[:100, :100])
        with pytest.raises(SlideError, match=r"a.tif must be a complete image, but decoding it failed .*copy it again"):
            slide.read(slide.whole(), 0.5)


@pytest.mark.parametrize(
    ("name", "reader", "stated"),
    [
        ("CMU-1-Small-Region.svs", "openslide", 0.499),
        ("boxes.tiff", "openslide", "352.778 x 352.778 um, outside"),
        ("panimg_valid_tiff.tif", "openslide", "1000 x 1000 um, outside"),
        ("kidney-48-5.tif", "tifffile", "states none"),
    ],
)
def test_real_files_open_or_say_why(shared_data, name, reader, stated):
    """Each real file gives its resolution or the reason why not, and reads the same tissue at two resolutions."""
    path = shared_data / "wsi" / name
    if isinstance(stated, str):
        with pytest.raises(ResolutionError, match=rf"{name} .*{stated}.*--slide-mpp"):
            Slide.open(path)
    with Slide.open(path, mpp=None if isinstance(stated, float) else 0.5) as slide:
        assert slide.properties["reader"] == reader
        assert slide.mpp_x == (stated if isinstance(stated, float) else 0.5)
        side = min(slide.width_px0, slide.height_px0) // 16 * 16
        fine, coarse = (slide.read(Region(0, 0, side, side), k * slide.mpp_x) for k in (1, 8))
    want = fine.reshape(side // 8, 8, side // 8, 8, 3).mean((1, 3))
    assert np.abs(coarse - want).mean() < 1


@pytest.mark.slow
def test_a_large_jpeg_reads_at_working_resolution(shared_data):
    """A JPEG of 92 million px is read at 4 um as the means of its pixels, in spite of Pillow's limit."""
    with Slide.open(shared_data / "her2st" / "C3.jpg", mpp=0.5) as slide:
        got, fine = slide.read(slide.whole(), 4.0), slide.read(Region(4000, 4000, 800, 800), 0.5)
    assert got.shape == (1242, 1159, 3)
    assert np.abs(got[500:600, 500:600] - fine.reshape(100, 8, 100, 8, 3).mean((1, 3))).max() <= 1
