"""The overlay: what is drawn lies where the section says, in micrometres, and files are whole."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.figure import Figure
from PIL import Image
from scipy import sparse

from superst_monai.analysis.overlay import overlay_figure, save_figure, scale_bar_um
from superst_monai.data.section import Section
from superst_monai.errors import StoreError


@pytest.fixture
def section() -> Section:
    """Two spots on a dark tissue square of 200 um on white, 600 x 400 um."""
    tissue = np.zeros((100, 150), bool)
    tissue[20:70, 30:80] = True
    return Section(
        name="A1",
        mpp=4.0,
        image=np.where(tissue[..., None], 90, 255).repeat(3, axis=2).astype(np.uint8),
        tissue=tissue,
        counts=sparse.csr_matrix(np.ones((2, 1), np.int32)),
        spots=pd.DataFrame({"x_um": [150.0, 250.0], "y_um": [120.0, 220.0], "radius_um": 27.5}, index=["a", "b"]),
        genes=pd.DataFrame({"gene_id": ["g"]}, index=["g"]),
        slide={"mpp_x": 0.5, "mpp_y": 0.5},
    )


def test_axes_are_micrometres_with_the_origin_at_the_top(section: Section) -> None:
    """The image spans its micrometres, and the title says name, spots and resolution."""
    (axes,) = overlay_figure(section).axes
    assert axes.get_xlim() == (0.0, 600.0)
    assert axes.get_ylim() == (400.0, 0.0)
    assert axes.get_images()[0].get_extent() == [0.0, 600.0, 400.0, 0.0]
    assert axes.get_title() == "A1: 2 spots, tissue outlined, 4 um per pixel"


def test_circles_have_their_place_and_width(section: Section) -> None:
    """Spots are one collection in data units, as wide as they are."""
    (axes,) = overlay_figure(section).axes
    (circles,) = (c for c in axes.collections if isinstance(c, EllipseCollection))
    np.testing.assert_array_equal(circles.get_offsets(), [[150, 120], [250, 220]])
    np.testing.assert_array_equal(circles.get_widths(), [55, 55])


def test_squares_are_drawn_as_squares(section: Section) -> None:
    """Bins are outlined from corner to corner."""
    (axes,) = overlay_figure(replace(section, shape="square")).axes
    (squares,) = (c for c in axes.collections if isinstance(c, PolyCollection))
    first = squares.get_paths()[0].vertices
    np.testing.assert_array_equal(first.min(axis=0), [122.5, 92.5])
    np.testing.assert_array_equal(first.max(axis=0), [177.5, 147.5])


def test_the_outline_follows_the_tissue(section: Section) -> None:
    """The contour runs between the last tissue pixel's centre and the next one's."""
    (axes,) = overlay_figure(section).axes
    outline = next(c for c in axes.collections if not isinstance(c, EllipseCollection)).get_paths()[0].vertices
    np.testing.assert_array_equal(outline.min(axis=0), [120.0, 80.0])
    np.testing.assert_array_equal(outline.max(axis=0), [320.0, 280.0])


def test_a_slide_alone_shows_image_and_bar(section: Section) -> None:
    """Without spots, and with tissue everywhere, neither spots nor outline are drawn."""
    alone = replace(section, tissue=np.ones_like(section.tissue), counts=section.counts[:0], spots=section.spots[:0])
    (axes,) = overlay_figure(alone).axes
    assert not axes.collections
    assert axes.get_title().startswith("A1: no spots")


@pytest.mark.parametrize(("width", "bar"), [(600.0, 100.0), (6400.0, 1000.0), (1e-3, 0.01), (49.0, 5.0), (50.0, 10.0)])
def test_the_bar_is_a_round_length(width: float, bar: float) -> None:
    """The longest of 1, 2, 5 x 10^n um within a fifth of the width."""
    np.testing.assert_allclose(scale_bar_um(width), bar)


def test_the_bar_is_as_long_as_its_label_says(section: Section) -> None:
    """100 um here, one millimetre on a section of 6 mm."""
    (axes,) = overlay_figure(section).axes
    (bar,) = axes.patches
    assert bar.get_width() == 100
    assert [text.get_text() for text in axes.texts] == ["100 um"]
    big = replace(section, mpp=40.0)
    (axes,) = overlay_figure(big).axes
    assert axes.patches[0].get_width() == 1000
    assert [text.get_text() for text in axes.texts] == ["1 mm"]


def test_large_sections_are_drawn_reduced(section: Section) -> None:
    """The picture has at most the asked pixels; the title keeps the section's resolution."""
    (axes,) = overlay_figure(section, longest_px=75).axes
    assert axes.get_images()[0].get_size() == (50, 75)
    assert axes.get_xlim() == (0.0, 600.0)
    assert "4 um per pixel" in axes.get_title()


def test_pyplot_is_not_needed(section: Section) -> None:
    """No figure is registered, so nothing has to be closed."""
    figure = overlay_figure(section)
    assert isinstance(figure, Figure)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_the_picture_shows_the_section(section: Section, tmp_path: Path) -> None:
    """The file, a PNG that replaces an old one, shows grey tissue and coloured spots and outline."""
    path = tmp_path / "overlay.png"
    path.write_text("old")
    save_figure(overlay_figure(section), path)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert (abs(pixels - 90).max(axis=2) < 3).mean() > 0.1
    assert (np.ptp(pixels, axis=2) > 100).sum() > 500
    assert os.listdir(tmp_path) == ["overlay.png"]


def test_a_figure_that_cannot_be_written_leaves_nothing(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing folder and a full disk are errors with a next step, and the old file stays."""
    figure = overlay_figure(section)
    with pytest.raises(StoreError, match=r"cannot write .*none/a\.png \(No such file"):
        save_figure(figure, tmp_path / "none" / "a.png")
    path = tmp_path / "a.png"
    path.write_text("old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(StoreError, match="No space left"):
        save_figure(figure, str(path))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.png"]
