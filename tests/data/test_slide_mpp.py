"""Laws of the choice of a slide's resolution."""

from __future__ import annotations

import math

import pytest

from superst_monai.data.slide_backends import Facts
from superst_monai.data.slide_mpp import choose_mpp
from superst_monai.errors import ResolutionError


def facts(mpp: tuple[float, float] | None, *, tags: bool = False) -> Facts:
    """A file of 10 x 10 px that states `mpp`."""
    return Facts("A1.tif", "tifffile", ((10, 10),), mpp=mpp, mpp_from_tags=tags)


def test_the_caller_wins_then_the_file_then_the_assay():
    """The order is caller, file, assay."""
    assert choose_mpp(facts((0.5, 0.4)), 0.3, 0.7) == (0.3, 0.3, "caller")
    assert choose_mpp(facts((0.5, 0.4)), None, 0.7) == (0.5, 0.4, "file")
    assert choose_mpp(facts(None), None, 0.7) == (0.7, 0.7, "assay")


@pytest.mark.parametrize("mpp", [(1000.0, 1000.0), (0.5, 0.001), (math.nan, 0.5), (math.inf, math.inf), (-0.5, 0.5)])
def test_implausible_values_of_a_file_are_ignored(mpp):
    """What no microscope has is silence, and the refusal says what the file stated."""
    assert choose_mpp(facts(mpp), None, 0.7) == (0.7, 0.7, "assay")
    with pytest.raises(
        ResolutionError, match=r"A1.tif .* the file states .* outside 0.01..100 .* pass --slide-mpp \(CLI\) / mpp="
    ):
        choose_mpp(facts(mpp), None, None)


@pytest.mark.parametrize("dpi", [300, 600, 1200])
def test_print_settings_in_tags_are_ignored(dpi):
    """Print resolutions in TIFF tags are no mpp, but the same number in a scanner's own field is."""
    mpp = (25400 / dpi, 25400 / dpi)
    with pytest.raises(ResolutionError, match=f"print setting of {dpi} dpi"):
        choose_mpp(facts(mpp, tags=True), None, None)
    assert choose_mpp(facts(mpp), None, None) == (*mpp, "file")
    assert choose_mpp(facts((0.25, 0.25), tags=True), None, None) == (0.25, 0.25, "file")


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 250.0])
def test_impossible_arguments_are_refused(bad):
    """A caller or assay must give a plausible resolution too."""
    with pytest.raises(ResolutionError, match=r"mpp= for A1.tif must lie in 0.01..100 um"):
        choose_mpp(facts(None), bad, None)
    with pytest.raises(ResolutionError, match=r"assay implies for A1.tif must lie in 0.01..100 um"):
        choose_mpp(facts(None), None, bad)


def test_silence_everywhere_is_refused():
    """Without any source the message names file, command-line option and argument."""
    with pytest.raises(ResolutionError, match=r"A1.tif .* states none .* pass --slide-mpp \(CLI\) / mpp= \(Python\)"):
        choose_mpp(facts(None), None, None)
