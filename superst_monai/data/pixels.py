"""Any pixel layout becomes 8-bit RGB on white, within the memory of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from superst_monai.errors import SlideError

Pixels = NDArray[np.uint8]


def on_white(rgb: Pixels, alpha: Pixels) -> Pixels:
    """Lay straight (not premultiplied) colour `(H, W, 3)` with opacity `(H, W)` on white."""
    if alpha.size == 0 or alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    opacity = alpha.astype(np.uint16)[..., None]
    mixed: Pixels = ((rgb * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    return mixed


def premultiplied_on_white(rgb: Pixels, alpha: Pixels) -> Pixels:
    """Lay premultiplied colour `(H, W, 3)` with opacity `(H, W)` on white."""
    mixed: Pixels = np.minimum(rgb + (255 - alpha.astype(np.uint16))[..., None], 255).astype(np.uint8)
    return mixed


def to_8bit(values: NDArray[Any], bits: int) -> Pixels:
    """Scale unsigned integers of 1..16 bits to 0..255, rounded."""
    if bits == 8:
        return values.astype(np.uint8, copy=False)
    top = (1 << bits) - 1
    scaled: Pixels = ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
    return scaled


def picture_to_rgb(picture: Image.Image) -> Pixels:
    """Decode a Pillow image of any 1- to 16-bit mode to `(H, W, 3)` on white.

    Raises:
        SlideError: the pixels are 32-bit or float, so their range is unknown.
    """
    if picture.mode.startswith("I;16"):
        gray = to_8bit(np.asarray(picture), 16)
        return np.repeat(gray[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise SlideError(
            f"pixels must be integers of 1..16 bits, got Pillow mode {picture.mode}; save it as 8-bit RGB."
        )
    if picture.has_transparency_data:
        rgba = np.asarray(picture.convert("RGBA"))
        return on_white(rgba[..., :3], rgba[..., 3])
    return np.array(picture.convert("RGB"))


def require_memory(n_bytes: int, what: str, advice: str) -> None:
    """Refuse work that does not fit in half of the machine's memory, before it starts.

    Raises:
        SlideError: `what` needs more; the message ends with `advice`.
    """
    memory = machine_memory()
    if n_bytes > memory // 2:
        raise SlideError(
            f"{what} needs {n_bytes / 2**30:.3g} GiB, which must fit in half of this machine's memory "
            f"({memory / 2**30:.3g} GiB); {advice}."
        )


def machine_memory() -> int:
    """Physical memory [bytes]; where the system does not tell (Windows) 16 GiB are assumed."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 16 << 30


@contextmanager
def decoding(file: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn a decoder's own `errors` into a SlideError that names the file and the next step."""
    try:
        yield
    except SlideError:
        raise
    except errors as exc:
        raise SlideError(
            f"{file} must be a complete image, but decoding it failed ({exc or type(exc).__name__}); the file is "
            "damaged, cut off or in an encoding this reader lacks: copy it again from its source (compare the "
            "sizes) or re-export it."
        ) from exc
