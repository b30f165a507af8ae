"""Laws of the readers behind a slide."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tifffile
from PIL import Image

from superst_monai.data.slide_backends import OpenSlidePyramid, dicom_instance, open_picture
from superst_monai.data.slide_backends import _anchor as anchor
from superst_monai.data.slide_backends import _number as number
from superst_monai.errors import SlideError

RGB = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size but holds no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + head + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def dicom(uid: bytes) -> bytes:
    """The head of a DICOM file of a series."""
    return bytes(128) + b"DICM" + b"\x20\x00\x0e\x00UI" + len(uid).to_bytes(2, "little") + uid


@pytest.mark.parametrize(("width", "level_width"), [(900, 351), (1000, 273), (777, 555)])
def test_levels_are_read_as_stored_at_any_downsample(tmp_path, width, level_width):
    """At downsamples of 2.56, 3.66 and 1.4 a box of a level is the stored pixels, not OpenSlide's interpolation."""
    rng, path = np.random.default_rng(1), tmp_path / "a.tif"
    full, small = (rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (width, level_width))
    with tifffile.TiffWriter(path) as file:
        file.write(full, tile=(64, 64), photometric="rgb")
        file.write(small, tile=(64, 64), photometric="rgb", subfiletype=1)
    pyramid = OpenSlidePyramid(path)
    for x, y in [(0, 0), (1, 3), (130, 57), (201, 190), (level_width - 33, level_width - 21)]:
        np.testing.assert_array_equal(pyramid.read(1, x, y, 33, 21), small[y : y + 21, x : x + 33])
    pyramid.close()


def test_anchor_is_a_pixel_on_a_whole_position():
    """The anchor lies at most 127 px before, and its level-0 position is whole to 1/512 px where that exists."""
    assert anchor(5, 4.0) == (5, 20)
    assert anchor(3, np.pi) == (0, 0)
    start, px0 = anchor(1000, 64.1026)
    assert 872 < start <= 1000
    assert abs(px0 / 64.1026 - start) < 1 / 512
    start, px0 = anchor(100_000, 1.0 + 1e-5 * np.sqrt(2))
    assert 99_872 < start <= 100_000


@pytest.mark.parametrize(("text", "want"), [("0.25", 0.25), (None, None), ("unknown", None)])
def test_properties_are_numbers_or_nothing(text, want):
    """A property that is no number counts as absent."""
    assert number(text) == want


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_plain_pictures_are_read_in_boxes(tmp_path, form):
    """A box of a picture is that part of it, as Pillow decodes it."""
    path = tmp_path / "a.img"
    Image.fromarray(RGB).save(path, form)
    pyramid = open_picture(path, path.read_bytes()[:8])
    assert pyramid is not None
    assert (pyramid.facts.reader, pyramid.facts.sizes, pyramid.facts.mpp) == ("pillow", ((60, 40),), None)
    np.testing.assert_array_equal(pyramid.read(0, 10, 5, 20, 30), np.asarray(Image.open(path))[5:35, 10:30])
    pyramid.close()


def test_a_cmyk_jpeg_has_its_colours(tmp_path):
    """A CMYK JPEG of one colour is that colour."""
    Image.new("RGB", (32, 32), (200, 60, 120)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    pyramid = open_picture(tmp_path / "a.jpg", b"\xff\xd8\xff\xe0")
    assert pyramid is not None
    assert np.abs(pyramid.read(0, 0, 0, 32, 32).astype(int) - (200, 60, 120)).max() <= 3


def test_pillows_limit_is_neither_met_nor_moved(tmp_path, monkeypatch):
    """A picture far beyond Pillow's limit opens without a warning, and the limit stays as it was."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    pyramid = open_picture(tmp_path / "a.png", b"\x89PNG\r\n\x1a\n")
    assert pyramid is not None
    np.testing.assert_array_equal(pyramid.read(0, 0, 0, 60, 40), RGB)
    assert PIL.Image.MAX_IMAGE_PIXELS == 100


def test_a_picture_larger_than_memory_is_refused(tmp_path):
    """A picture of 2^40 pixels is refused at open, with the way to a pyramid."""
    (tmp_path / "a.png").write_bytes(png_of(1 << 20, 1 << 20))
    with pytest.raises(SlideError, match=r"a.png is 1048576 x 1048576 px; a PNG .* memory .*vips tiffsave"):
        open_picture(tmp_path / "a.png", b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_cut_off_picture_is_refused(tmp_path, form):
    """A picture cut in its head is refused at open, one cut in its pixels at read, both by name."""
    path = tmp_path / "a.img"
    Image.fromarray(RGB).save(path, form)
    data = path.read_bytes()
    path.write_bytes(data[:14])
    with pytest.raises(SlideError, match=r"a.img must be a complete image.*copy it again"):
        open_picture(path, data[:8])
    path.write_bytes(data[: len(data) * 2 // 3])
    pyramid = open_picture(path, data[:8])
    assert pyramid is not None
    with pytest.raises(SlideError, match=r"a.img must be a complete image.*copy it again"):
        pyramid.read(0, 0, 0, 5, 5)


def test_a_dicom_folder_stands_for_its_one_series(tmp_path):
    """The first file of the only series is chosen; other files and folders do not matter."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "0.txt").write_bytes(b"notes")
    for name in ("b.dcm", "a.dcm"):
        (tmp_path / name).write_bytes(dicom(b"1.2.3"))
    assert dicom_instance(tmp_path).name == "a.dcm"


@pytest.mark.parametrize("uids", [[], [b"1.2.3", b"1.2.4"]])
def test_a_folder_of_no_or_two_series_is_refused(tmp_path, uids):
    """Which slide is meant is never guessed."""
    for i, uid in enumerate(uids):
        (tmp_path / f"{i}.dcm").write_bytes(dicom(uid))
    with pytest.raises(SlideError, match=rf"holds {len(uids)} series; pass one file of the slide itself \(for MRXS"):
        dicom_instance(tmp_path)
