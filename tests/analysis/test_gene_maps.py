"""Pictures of genes: right values in the panels and the table, white glass, and every unknown gene named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from superst_monai.analysis.gene_maps import file_names, gene_figure, source_image, write_gene_maps
from superst_monai.analysis.panels import draw_numbers, reduce_map
from superst_monai.data.section import Section
from superst_monai.data.slide import Slide
from superst_monai.data.store import write_section
from superst_monai.data.synthetic import make_tissue, write_slide
from superst_monai.errors import RunError
from superst_monai.inference.maps import Maps, open_maps

Maker = Callable[..., Path]
SectionMaker = Callable[..., Section]


def raster(figure: Figure, panel: int) -> AxesImage:
    """The picture of a panel; colour bars are not counted."""
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    return panels[panel].images[0]


def test_table_and_files(make_maps: Maker, tmp_path: Path) -> None:
    """A picture a gene in the order asked for, and a table whose total is the sum over the tissue."""
    path = make_maps()
    written = write_gene_maps(path, ["C", "A"], tmp_path / "new" / "out")
    assert [file.name for file in written] == ["C.png", "A.png", "GENES.csv"]
    assert all(file.stat().st_size > 0 for file in written)
    table = pd.read_csv(written[-1], index_col="gene")
    maps = open_maps(path)
    mean, sd = maps.gene("C")
    assert table.loc["C", "total"] == pytest.approx(mean[maps.tissue].sum(), rel=1e-5)
    assert table.loc["C", "mean"] == pytest.approx(table.loc["C", "total"] / maps.tissue.sum(), rel=1e-5)
    assert table.loc["C", "max"] == pytest.approx(mean.max())
    assert table.loc["A", "tissue_px"] == maps.tissue.sum()
    assert table.loc["C", "mean_sd"] == pytest.approx(sd[maps.tissue].mean(), rel=1e-5)
    assert set(table["mpp"]) == {10.0}


def test_panels_show_the_maps(opened: Maps, make_section: SectionMaker) -> None:
    """Histology, mean and sd are drawn on one frame in um, white outside the tissue, with units and a scale bar."""
    mean, sd = opened.gene("B")
    image = make_section().image
    figure = gene_figure("B", mean, sd, opened.tissue, opened.mpp, image)
    np.testing.assert_array_equal(raster(figure, 0).get_array(), image)
    for panel, values in ((1, mean), (2, sd)):
        shown = raster(figure, panel).get_array()
        np.testing.assert_array_equal(np.ma.getmaskarray(shown), ~opened.tissue)
        np.testing.assert_allclose(shown.compressed(), values[opened.tissue], rtol=1e-6)
        assert raster(figure, panel).get_extent() == [0.0, 360.0, 240.0, 0.0]
    assert [axes.get_ylabel() for axes in figure.axes[3:]] == ["UMIs per pixel (10 x 10 um)"] * 2
    bars = [patch for axes in figure.axes[:3] for patch in axes.patches if patch.get_gid() == "scale bar"]
    assert [bar.get_width() for bar in bars] == [50.0] * 3


def test_without_histology_the_figure_says_so(opened: Maps) -> None:
    """Two panels remain, and the title says what is missing; large maps are averaged and that is said too."""
    mean, sd = opened.gene("B")
    figure = gene_figure("B", mean, sd, opened.tissue, opened.mpp, None, longest_px=18)
    assert len(figure.axes) == 4  # two panels, two colour bars
    title = figure.get_suptitle()
    assert "averaged over 2 x 2 pixels" in title
    assert "no histology" in title
    shown = raster(figure, 0).get_array()
    assert shown.shape == (12, 18)
    want = mean[2:4, 4:6].mean()  # wholly in tissue
    assert shown[1, 2] == pytest.approx(want, rel=1e-5)


def test_reducing_averages_over_tissue_alone() -> None:
    """A pixel half in tissue keeps the mean of that half; one with less is outside (against plain blocks)."""
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    mask = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]], dtype=bool)
    shown, kept = reduce_map(values, mask, 2.0)
    np.testing.assert_array_equal(kept, [[True, False], [True, False]])
    np.testing.assert_allclose(shown, [[2.5, 0.0], [10.0, 0.0]])


def test_empty_maps_are_drawn() -> None:
    """A gene of which nothing is expected, or no tissue at all, gives colours from 0 to 1 and no error."""
    for mask in (np.ones((3, 4), bool), np.zeros((3, 4), bool)):
        figure = Figure()
        draw_numbers(figure, figure.subplots(), np.zeros((3, 4)), mask, 1.0, "t", "u")
        assert raster(figure, 0).get_clim() == (0.0, 1.0)


def test_colours_end_where_told() -> None:
    """With a common end values beyond it are clipped, and the colour bar shows it by an arrow."""
    figure = Figure()
    draw_numbers(figure, figure.subplots(), np.eye(4), np.ones((4, 4), bool), 2000.0, "t", "u", top=0.5)
    assert raster(figure, 0).get_clim() == (0.0, 0.5)
    assert raster(figure, 0).colorbar.extend == "max"
    assert figure.axes[0].texts[0].get_text() == "1 mm"


def test_unknown_genes_are_all_named(make_maps: Maker, tmp_path: Path) -> None:
    """Every unknown gene is named, with a similar one; no folder is made."""
    path = make_maps(genes=("ERBB2", "CD3E"))
    with pytest.raises(RunError, match=r"hold 2 genes, but not erbb2 \(similar: ERBB2\), QQQ; pass names"):
        write_gene_maps(path, ["erbb2", "CD3E", "QQQ"], tmp_path / "out")
    with pytest.raises(RunError, match=r"G9 \.\.\.; pass names"):
        write_gene_maps(path, [f"G{i}" for i in range(12)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_file_names_are_safe_and_unique() -> None:
    """Slashes, leading dots, case twins and the name of the table cannot make files collide or escape."""
    names = file_names(["HLA-A/B", "HLA-A_B", "..", "abc", "ABC", "a.b"])
    assert names == ["HLA-A_B.png", "HLA-A_B_2.png", "_.png", "abc.png", "ABC_2.png", "a.b.png"]


def test_histology_comes_from_the_training_section_of_the_same_slide(
    make_maps: Maker, make_section: SectionMaker, make_run: Maker
) -> None:
    """The run's section of the slide that was predicted on gives the image; another slide's does not."""
    section, other = make_section(), make_section(name="T", sha256="other", seed=1)
    run = make_run(other, section)
    image = source_image(open_maps(make_maps(record={"run": str(run)})))
    np.testing.assert_array_equal(image, section.image)


def test_histology_comes_from_the_recorded_slide(make_maps: Maker, tmp_path: Path) -> None:
    """A slide that the record names is read at the maps' resolution, with the mpp it was predicted at."""
    tissue = make_tissue(seed=0, size_px=360)
    slide = tmp_path / "slide.tif"
    write_slide(tissue, slide)
    record = {"source_path": str(slide), "slide": {"mpp_x": 1.0, "mpp_y": 1.0, "mpp_source": "file"}}
    assert source_image(open_maps(make_maps(record=record))) is None  # 36 x 36 px, not 24 x 36
    section = tmp_path / "S.zarr"
    assert source_image(open_maps(make_maps(record={"source_path": str(section)}))) is None
    section.mkdir()
    assert source_image(open_maps(make_maps(record={"source_path": str(section)}))) is None


def test_a_slide_without_resolution_is_read_at_the_recorded_one(
    make_maps: Maker, make_section: SectionMaker, tmp_path: Path
) -> None:
    """An image file that states no mpp is read with the one that was given for the prediction."""
    from PIL import Image

    image = make_section().image
    Image.fromarray(image).save(tmp_path / "slide.png")
    record = {"source_path": str(tmp_path / "slide.png"), "slide": {"mpp_x": 10.0, "mpp_y": 10.0}}
    np.testing.assert_array_equal(source_image(open_maps(make_maps(record=record))), image)
    with Slide.open(tmp_path / "slide.png", mpp=5.0) as slide:
        assert slide.width_px0 == 36


def test_a_stored_section_is_read_where_recorded(make_maps: Maker, make_section: SectionMaker, tmp_path: Path) -> None:
    """A section store that the record names gives its image at the maps' resolution."""
    write_section(make_section(), tmp_path / "here.zarr")
    found = source_image(open_maps(make_maps(record={"source_path": str(tmp_path / "here.zarr")})))
    np.testing.assert_array_equal(found, make_section().image)
