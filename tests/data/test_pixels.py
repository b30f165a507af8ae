"""Laws of the conversion to 8-bit RGB on white."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from superst_monai.data import pixels
from superst_monai.errors import SlideError

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (6, 5), dtype=np.uint8)


def test_transparency_shows_white():
    """Colour on white is a * colour + (1 - a) * 255, straight or premultiplied."""
    share = ALPHA[..., None] / 255
    want = share * RGB + (1 - share) * 255
    assert np.abs(pixels.on_white(RGB, ALPHA) - want).max() <= 0.5
    premultiplied = np.rint(share * RGB).astype(np.uint8)
    assert np.abs(pixels.premultiplied_on_white(premultiplied, ALPHA) - want).max() <= 0.5 + 1e-9


def test_opaque_pixels_are_unchanged():
    """Where everything is opaque the colours pass bit for bit."""
    np.testing.assert_array_equal(pixels.on_white(RGB, np.full((6, 5), 255, np.uint8)), RGB)


@pytest.mark.parametrize("bits", [1, 4, 8, 12, 16])
def test_bit_depths_scale_to_the_full_range(bits):
    """Integers of n bits map linearly from 0..2^n - 1 to 0..255, rounded."""
    values = np.unique(np.linspace(0, 2**bits - 1, 999).astype(np.uint16))
    got = pixels.to_8bit(values, bits)
    assert np.abs(got - values / (2**bits - 1) * 255).max() <= 0.5
    assert (got[0], got[-1]) == (0, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_picture_mode_becomes_rgb(mode):
    """A mid-gray picture of any Pillow mode is the same gray in RGB (palette, CMYK and alpha included)."""
    value = 255 if mode == "1" else 120
    gray = np.full((4, 7), value, np.uint8)
    picture = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    assert picture.mode == mode
    got = pixels.picture_to_rgb(picture)
    assert got.shape == (4, 7, 3)
    assert np.abs(got.astype(int) - value).max() <= 1


def test_picture_transparency_is_laid_on_white():
    """A palette entry declared transparent is white, the others keep their colour."""
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    picture.info["transparency"] = 0
    np.testing.assert_array_equal(pixels.picture_to_rgb(picture), [[[255, 255, 255], [40, 50, 60]]])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(mode):
    """32-bit and float pictures have no known white, and are refused."""
    with pytest.raises(SlideError, match=f"1..16 bits, got Pillow mode {mode}; save it as 8-bit RGB"):
        pixels.picture_to_rgb(Image.new(mode, (2, 2)))


def test_work_beyond_half_the_memory_is_refused(monkeypatch):
    """The limit is half of the machine's memory, and the message says what to do."""
    monkeypatch.setattr(pixels, "machine_memory", lambda: 2 << 30)
    pixels.require_memory(1 << 30, "it", "cut it")
    with pytest.raises(SlideError, match=r"it needs 3 GiB, which must fit in half .* \(2 GiB\); cut it\."):
        pixels.require_memory(3 << 30, "it", "cut it")


def test_memory_is_assumed_where_the_system_is_silent(monkeypatch):
    """A system without sysconf counts as 16 GiB; this one has at least 1 GiB."""
    assert pixels.machine_memory() > 1 << 30
    monkeypatch.delattr(pixels.os, "sysconf")
    assert pixels.machine_memory() == 16 << 30


def test_decoder_errors_name_the_file():
    """A named decoder error becomes a SlideError; a SlideError and other errors pass as they are."""
    with (
        pytest.raises(SlideError, match=r"a.png must be a complete image.*\(bad\).*copy it again"),
        pixels.decoding("a.png", (ValueError,)),
    ):
        raise ValueError("bad")
    with pytest.raises(SlideError, match=r"^mine$"), pixels.decoding("a.png", (OSError,)):
        raise SlideError("mine")
    with pytest.raises(KeyError, match="other"), pixels.decoding("a.png", (ValueError,)):
        raise KeyError("other")
