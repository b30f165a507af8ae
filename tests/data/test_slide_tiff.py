"""Laws of the TIFF fallback reader."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import tifffile
from PIL import Image

from superst_monai.data.slide_backends import Facts
from superst_monai.data.slide_tiff import TiffPyramid
from superst_monai.errors import SlideError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (90, 110, 3), dtype=np.uint8)
GRAY = np.repeat(RGB[..., :1], 3, axis=2)
OPACITY = RNG.integers(0, 256, (90, 110), dtype=np.uint8)
SHARE = OPACITY[..., None] / 255
RGBA = np.dstack([RGB, OPACITY])
TABLE = RNG.integers(0, 256, (3, 256)).astype(np.uint16) * 257
PREMULTIPLIED = np.dstack([np.rint(RGB * SHARE).astype(np.uint8), OPACITY])


def read_all(path) -> np.ndarray:
    """The whole level 0 of a TIFF."""
    with closing(TiffPyramid(path)) as pyramid:
        return pyramid.read(0, 0, 0, *pyramid.facts.sizes[0])


def facts_of(path) -> Facts:
    """What a TIFF says of itself."""
    with closing(TiffPyramid(path)) as pyramid:
        return pyramid.facts


@pytest.mark.parametrize("tile", [None, (32, 48)], ids=["strips", "tiles"])
@pytest.mark.parametrize(
    ("stored", "options", "want"),
    [
        (RGB, {"photometric": "rgb"}, RGB),
        (RGB.astype(np.uint16) * 257, {"photometric": "rgb"}, RGB),
        (RGB[..., 0], {"photometric": "minisblack"}, GRAY),
        (RGB[..., 0].astype(np.uint16) * 257, {"photometric": "minisblack"}, GRAY),
        (RGB[..., 0], {"photometric": "miniswhite"}, 255 - GRAY),
        (RGB[..., 0], {"photometric": "palette", "colormap": TABLE}, (TABLE[:, RGB[..., 0]] // 257).transpose(1, 2, 0)),
        (np.moveaxis(RGB, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}, RGB),
        (RGBA, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, RGB * SHARE + 255 * (1 - SHARE)),
        (PREMULTIPLIED, {"photometric": "rgb", "extrasamples": ["assocalpha"]}, RGB * SHARE + 255 * (1 - SHARE)),
        (RGBA, {"photometric": "rgb", "extrasamples": ["unspecified"]}, RGB),
        (RGB, {"photometric": "rgb", "compression": "lzw", "predictor": True}, RGB),
    ],
    ids=["rgb", "rgb16", "gray", "gray16", "white0", "palette", "planar", "alpha", "premultiplied", "extra", "lzw"],
)
def test_every_colour_layout_becomes_rgb_on_white(tmp_path, tile, stored, options, want):
    """Colours of any layout are those that were meant, to the rounding, tiled or not."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ascontiguousarray(stored), tile=tile, **options)
    assert np.abs(read_all(path) - want.astype(float)).max() <= 1


@pytest.mark.parametrize(("mode", "tolerance"), [("1", 0), ("CMYK", 0), ("YCbCr", 0), ("P", 0), ("LA", 0), ("L", 0)])
def test_what_pillow_writes_reads_the_same(tmp_path, mode, tolerance):
    """TIFFs of Pillow's modes agree with Pillow's own conversion (transparency on white)."""
    picture = Image.fromarray(RGB).convert(mode)
    picture.save(tmp_path / "a.tif")
    white = Image.new("RGBA", picture.size, "white")
    want = Image.alpha_composite(white, picture.convert("RGBA")) if mode == "LA" else picture
    assert np.abs(read_all(tmp_path / "a.tif") - np.asarray(want.convert("RGB")).astype(int)).max() <= tolerance


def test_jpeg_tiles_in_ycbcr_keep_their_colours(tmp_path):
    """A JPEG-compressed YCbCr TIFF (most scanners) is not converted twice."""
    tifffile.imwrite(
        tmp_path / "a.tif", np.full((64, 64, 3), (200, 60, 120), np.uint8), tile=(32, 32), compression="jpeg"
    )
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].photometric.name == "YCBCR"
    assert np.abs(read_all(tmp_path / "a.tif").astype(int) - (200, 60, 120)).max() <= 3


def test_ome_pyramid_states_levels_and_pixel_size(tmp_path):
    """OME-TIFF: levels in sub-IFDs, physical pixel size with its unit on each axis, planes of RGB joined."""
    path = tmp_path / "a.ome.tif"
    meta = {"axes": "YXS", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25}
    with tifffile.TiffWriter(path) as file:
        file.write(RGB, tile=(32, 32), photometric="rgb", subifds=1, metadata=meta)
        file.write(np.ascontiguousarray(RGB[::2, ::2]), tile=(32, 32), photometric="rgb", subfiletype=1)
    pyramid = TiffPyramid(path)
    assert (pyramid.facts.mpp, pyramid.facts.mpp_from_tags) == ((0.5, 0.25), False)
    assert pyramid.facts.sizes == ((110, 90), (55, 45))
    np.testing.assert_array_equal(pyramid.read(1, 5, 7, 20, 10), RGB[::2, ::2][7:17, 5:25])
    pyramid.close()
    label = {"axes": "YXS", "PhysicalSizeX": 9, "PhysicalSizeY": 9}
    with tifffile.TiffWriter(tmp_path / "b.ome.tif", ome=True) as file:
        file.write(np.ascontiguousarray(RGB[:32, :32]), photometric="rgb", metadata=label)
        file.write(RGB, photometric="rgb", metadata=meta)
    assert facts_of(tmp_path / "b.ome.tif").mpp == (0.5, 0.25)
    planes = np.ascontiguousarray(np.moveaxis(RGB, 2, 0))
    tifffile.imwrite(tmp_path / "c.ome.tif", planes, photometric="minisblack", metadata={"axes": "CYX"})
    np.testing.assert_array_equal(read_all(tmp_path / "c.ome.tif"), RGB)


@pytest.mark.parametrize(
    "meta", [{}, {"PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel", "PhysicalSizeY": 1, "PhysicalSizeYUnit": "pixel"}]
)
def test_ome_without_a_length_leaves_the_tags(tmp_path, meta):
    """OME-XML without a size, or in pixels, is silent, and the resolution tags count."""
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path, RGB, photometric="rgb", metadata={"axes": "YXS", **meta}, resolution=(20000, 40000), resolutionunit=3
    )
    facts = facts_of(path)
    assert facts.mpp == pytest.approx((0.5, 0.25))
    assert facts.mpp_from_tags


@pytest.mark.parametrize(("unit", "resolution", "want"), [(2, 50800.0, 0.5), (3, 20000.0, 0.5), (1, 1.0, None)])
def test_resolution_tags_follow_their_unit(tmp_path, unit, resolution, want):
    """Pixels per inch or centimetre become um per pixel; without a unit the file is silent."""
    tifffile.imwrite(
        tmp_path / "a.tif", RGB, photometric="rgb", resolution=(resolution, resolution), resolutionunit=unit
    )
    assert facts_of(tmp_path / "a.tif").mpp == (None if want is None else pytest.approx((want, want)))


def test_the_first_of_plain_pages_is_the_image(tmp_path):
    """Of pages without a meaning the first is read; a smaller page is no rival."""
    pages = [Image.fromarray(255 - RGB), Image.fromarray(RGB[:20, :20])]
    Image.fromarray(RGB).save(tmp_path / "a.tif", save_all=True, append_images=pages)
    np.testing.assert_array_equal(read_all(tmp_path / "a.tif"), RGB)


@pytest.mark.parametrize(
    ("stored", "options", "fault"),
    [
        (RGB.astype(np.float32), {"photometric": "rgb"}, "unsigned integers of 1..16 bits, but they are float32"),
        (RGB.astype(np.int16), {"photometric": "rgb"}, "unsigned integers of 1..16 bits, but they are int16"),
        (RGB, {"photometric": "cielab"}, "colours must be one of .* but they are CIELAB"),
        (
            np.stack([RGB] * 4),
            {"photometric": "rgb", "metadata": {"axes": "ZYXS"}, "ome": True},
            r"a stack of \{'Z': 4\}",
        ),
        (np.stack([RGB[..., 0]] * 5), {"metadata": {"axes": "CYX"}, "ome": True}, r"a stack of \{'C': 5\}"),
        (
            np.stack([RGB.astype(np.int32)] * 4),
            {"metadata": {"axes": "ZYXS"}, "ome": True, "photometric": "rgb"},
            "Z.*int32",
        ),
    ],
    ids=["float", "signed", "lab", "z", "channels", "two faults"],
)
def test_what_is_no_histology_is_refused(tmp_path, stored, options, fault):
    """Stacks, unknown ranges and unknown colours are refused, all faults in one message."""
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    with pytest.raises(SlideError, match=f"a.tif cannot be read: .*{fault}.*Re-export it as 8-bit RGB"):
        TiffPyramid(tmp_path / "a.tif")


@pytest.mark.parametrize("keep", [6, 20, 20_000])
def test_a_cut_off_tiff_is_refused(tmp_path, keep):
    """A file that ends before its directory or its pixels do is refused at open, by name."""
    tifffile.imwrite(tmp_path / "whole.tif", RGB, photometric="rgb", tile=(32, 32))
    (tmp_path / "a.tif").write_bytes((tmp_path / "whole.tif").read_bytes()[:keep])
    with pytest.raises(SlideError, match=r"a.tif .*copy it again"):
        TiffPyramid(tmp_path / "a.tif")


@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_damaged_pixels_are_reported_at_read(tmp_path, tile):
    """Pixels that do not decode raise at read, naming the file."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=tile, compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\xff" * count
    path.write_bytes(data)
    with pytest.raises(SlideError, match=r"a.tif must be a complete image, but decoding it failed .*copy it again"):
        read_all(path)
