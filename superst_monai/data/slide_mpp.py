"""The resolution of a slide: the caller's, else the file's if it makes sense, else the assay's; never a guess."""

from __future__ import annotations

import math

from superst_monai.data.slide_backends import Facts
from superst_monai.errors import ResolutionError

MPP_RANGE = (0.01, 100.0)  # [um per level-0 px] what a light-microscopy image can have
_PRINT_DPI = (72, 96, 100, 150, 200, 240, 300, 350, 400, 600, 1200)
_UM_PER_INCH = 25400.0


def check_mpp(mpp: float, who: str) -> float:
    """Return a level-0 resolution [um/px] if it is plausible.

    Raises:
        ResolutionError: outside 0.01..100 um per pixel, or not finite.
    """
    if not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise ResolutionError(
            f"{who} must lie in {MPP_RANGE[0]:g}..{MPP_RANGE[1]:g} um per level-0 pixel, got {mpp:g}; "
            "give micrometres per pixel of the full-resolution image (0.25 for a usual 40x scan, 0.5 for 20x)."
        )
    return float(mpp)


def choose_mpp(facts: Facts, mpp: float | None, fallback_mpp: float | None) -> tuple[float, float, str]:
    """Choose (mpp_x, mpp_y, source) [um per level-0 px]; source is "caller", "file" or "assay".

    Raises:
        ResolutionError: nobody gives a plausible resolution.
    """
    if mpp is not None:
        given = check_mpp(mpp, f"mpp= for {facts.file}")
        return given, given, "caller"
    doubt = _doubt(facts)
    if facts.mpp is not None and doubt is None:
        return *facts.mpp, "file"
    if fallback_mpp is not None:
        implied = check_mpp(fallback_mpp, f"the resolution that the assay implies for {facts.file}")
        return implied, implied, "assay"
    raise ResolutionError(
        f"{facts.file} must come with its resolution [um per level-0 pixel], but {doubt}; "
        "pass --slide-mpp (CLI) / mpp= (Python)."
    )


def _doubt(facts: Facts) -> str | None:
    """Say why the file's own resolution cannot be used; None where it can."""
    if facts.mpp is None:
        return "the file states none that can be trusted"
    x, y = facts.mpp
    stated = f"the file states {x:.6g} x {y:.6g} um"
    if not all(math.isfinite(side) and MPP_RANGE[0] <= side <= MPP_RANGE[1] for side in (x, y)):
        return f"{stated}, outside {MPP_RANGE[0]:g}..{MPP_RANGE[1]:g} and therefore ignored"
    dpi = _UM_PER_INCH / x
    if facts.mpp_from_tags and any(abs(dpi - setting) < 0.01 * setting for setting in _PRINT_DPI):
        return f"{stated}, which is the print setting of {dpi:.0f} dpi and therefore ignored"
    return None
