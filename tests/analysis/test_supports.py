"""Sums over supports: against loops over pixels, conserved, additive, and the same whatever the tiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from superst_monai.analysis.geojson_files import Features, read_features
from superst_monai.analysis.support_counts import LAYERS, predict_counts
from superst_monai.analysis.support_grid import Grid
from superst_monai.analysis.support_labels import Labels, Spots
from superst_monai.analysis.support_polygons import Polygons
from superst_monai.analysis.supports import Supports
from superst_monai.data.section import Section
from superst_monai.errors import AlignmentError, ResolutionError, RunError, ShapeError
from superst_monai.inference.maps import Maps, open_maps
from superst_monai.model.predictive import nb_quantiles

SHAPE = (24, 36)


@pytest.fixture
def maps(tiled_maps: Path) -> Maps:
    """Maps in several tiles."""
    return open_maps(tiled_maps)


def plain_sizes(maps: Maps, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Metagene sizes `(N, K)` of one support by a loop over its pixels, each with a weight `(H, W)`."""
    activity = np.zeros((maps.n_samples, maps.n_metagenes, *SHAPE))
    for place, tile in maps.tiles():
        activity[(..., *place)] = tile
    total = np.zeros((maps.n_samples, maps.n_metagenes))
    for row in range(SHAPE[0]):
        for col in range(SHAPE[1]):
            total += weight[row, col] * activity[:, :, row, col]
    return total


def all_sizes(maps: Maps, supports: Supports) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sizes `(N, S, K)` and predicted area [px] of all supports; no support comes twice."""
    sizes = np.zeros((maps.n_samples, len(supports), maps.n_metagenes))
    covered, seen = np.zeros(len(supports)), np.zeros(len(supports), int)
    for piece in supports.pieces(maps):
        sizes[:, piece.rows] = piece.sizes
        covered[piece.rows] = piece.covered_px
        seen[piece.rows] += 1
    assert seen.max() == 1
    return sizes, covered


def squares(*boxes: tuple[float, float, float, float], **columns: Any) -> Features:
    """Features of boxes (left, top, right, bottom) [level-0 px]."""
    import pandas as pd

    table = pd.DataFrame({"id": "", "name": "", "classification": "", "object_type": ""} | columns, range(len(boxes)))
    return Features(np.array([shapely.box(*box) for box in boxes], dtype=object), table)


@pytest.mark.parametrize("size_um", [None, 10.0, 20.0, 25.0, 7.3, 2.0, 4.0, 130.0, 360.0])
def test_bins_share_out_the_pixels(maps: Maps, size_um: float | None) -> None:
    """The sum over bins of any size is the sum over all pixels, in each sample and metagene; so is the area."""
    sizes, covered = all_sizes(maps, Grid(maps, size_um))
    np.testing.assert_allclose(sizes.sum(1), plain_sizes(maps, np.ones(SHAPE)), rtol=2e-6)
    assert covered.sum() == pytest.approx(maps.covered.sum(), rel=1e-6)
    assert (covered > 0).all()


def test_a_bin_is_the_sum_of_its_shares_of_pixels(maps: Maps) -> None:
    """Bins of 2.5 pixels, some across tiles, agree with a loop over pixels weighted by the overlap of squares."""
    grid = Grid(maps, 25.0)
    sizes, covered = all_sizes(maps, grid)
    table = grid.table()
    row, col = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for bin_ in (0, 7, len(grid) - 1):
        i, j = table["array_row"].iloc[bin_], table["array_col"].iloc[bin_]
        square = shapely.box(2.5 * j, 2.5 * i, 2.5 * (j + 1), 2.5 * (i + 1))
        weight = shapely.area(shapely.intersection(shapely.box(col, row, col + 1, row + 1), square))
        np.testing.assert_allclose(sizes[:, bin_], plain_sizes(maps, weight), rtol=1e-6)
        assert covered[bin_] == pytest.approx((weight * maps.covered).sum())
        assert table["x_um"].iloc[bin_] == 25 * (j + 0.5)
        assert table["area_um2"].iloc[bin_] == pytest.approx(weight.sum() * 100)


def test_bins_add_to_larger_bins(maps: Maps) -> None:
    """Four bins of 20 um have together the law of one of 40 um: total counts add, the logit is the same."""
    small, large = (predict_counts(maps, Grid(maps, size)) for size in (20.0, 40.0))
    group = small.obs["array_row"] // 2 * 9 + small.obs["array_col"] // 2
    for g in range(3):
        summed = np.bincount(group, small.X[:, g])[large.obs["array_row"] * 9 + large.obs["array_col"]]
        np.testing.assert_allclose(summed, large.X[:, g], rtol=1e-5)
    sizes, _ = all_sizes(maps, Grid(maps, 40.0))
    law = maps.law(sizes.astype(np.float32))
    low, high = nb_quantiles(law.total_count, law.logits[:, None], [0.05, 0.95])
    np.testing.assert_array_equal(large.layers["q05"], low)
    np.testing.assert_array_equal(large.layers["q95"], high)


def test_pixels_are_the_map(maps: Maps) -> None:
    """Pixels as supports hold the values of the gene's map, where it was predicted."""
    adata = predict_counts(maps, Grid(maps), ["B"], layers=["mean", "sd"])
    mean, sd = maps.gene("B")
    row, col = adata.obs["array_row"], adata.obs["array_col"]
    assert len(adata) == maps.covered.sum()
    np.testing.assert_allclose(adata.X[:, 0], mean[row, col], rtol=1e-5)
    np.testing.assert_allclose(adata.layers["sd"][:, 0], sd[row, col], rtol=1e-4)
    np.testing.assert_allclose(adata.obsm["spatial"], np.stack([col + 0.5, row + 0.5], axis=1) * 10)


def test_layers_are_those_of_the_samples(maps: Maps) -> None:
    """Every layer of a table agrees with the plain formula from the samples; units stand beside them."""
    adata = predict_counts(maps, Grid(maps, 60.0), ["C", "A"], command="superst export ...")
    sizes, covered = all_sizes(maps, Grid(maps, 60.0))
    columns = [2, 0]
    expected = sizes @ np.exp(maps.log_rate[:, :, columns] + maps.logit[:, None, columns])  # (N, S, G)
    wanted = {
        "mean": expected.mean(0),
        "sd": expected.std(0),
        "mean_q05": np.quantile(expected, 0.05, axis=0),
        "mean_q95": np.quantile(expected, 0.95, axis=0),
    }
    for layer, values in wanted.items():
        np.testing.assert_allclose(adata.layers[layer], values, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(adata.X, adata.layers["mean"])
    assert (adata.layers["q05"] <= adata.layers["q95"]).all()
    assert list(adata.var_names) == ["C", "A"]
    assert list(adata.var["gene_id"]) == ["ID-C", "ID-A"]
    np.testing.assert_allclose(adata.obs["covered_um2"], covered * 100)
    facts = adata.uns["superst_monai"]
    assert facts["units"] == dict(LAYERS)
    assert (facts["mpp"], facts["size_um"], facts["source"]) == (10.0, 60.0, "S")
    assert facts["command"] == "superst export ..."


def test_genes_and_supports_come_in_parts(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few numbers are worked on at once, the table is the same."""
    at_once = predict_counts(maps, Grid(maps, 20.0))
    monkeypatch.setattr("superst_monai.analysis.support_counts._NUMBERS", 9)
    parts = predict_counts(maps, Grid(maps, 20.0))
    for layer in LAYERS:
        np.testing.assert_allclose(parts.layers[layer], at_once.layers[layer], rtol=1e-6)


def test_spots_are_those_of_the_training(maps: Maps, make_section: Callable[..., Section]) -> None:
    """A spot is the sum of the pixels that training counts to it, as `sum_over` has it, in the section's order."""
    section = make_section()
    spots = Spots(maps, section)
    adata = predict_counts(maps, spots)
    sums = maps.sum_over(maps.spot_label(section), n_supports=6)
    np.testing.assert_allclose(adata.X, sums.mean, rtol=1e-5)
    np.testing.assert_array_equal(adata.layers["q95"], sums.interval(0.9)[1])
    assert list(adata.obs_names) == list(section.spots.index)
    inside = (maps.spot_label(section) == 4).sum() * 100
    assert adata.obs["area_um2"].iloc[3] == inside
    assert spots.outlines_um()[3].area == pytest.approx(np.pi * 30**2, rel=0.01)


def test_cells_have_their_shares_of_pixels(maps: Maps) -> None:
    """A cell smaller than a pixel, one across tiles and one over the border agree with loops over shares of pixels."""
    boxes = [(9.0, 13.0, 10.0, 14.5), (10.5, 9.0, 40.0, 30.25), (60.0, 40.0, 90.0, 60.0)]
    cells = Polygons(maps, squares(*boxes), kind="cells", apart=True)
    sizes, covered = all_sizes(maps, cells)
    row, col = np.mgrid[: SHAPE[0], : SHAPE[1]]
    pixels = shapely.box(col, row, col + 1, row + 1)
    for i, box in enumerate(boxes):
        weight = shapely.area(shapely.intersection(pixels, shapely.box(*np.array(box) / 2)))  # 2 level-0 px a px
        np.testing.assert_allclose(sizes[:, i], plain_sizes(maps, weight), rtol=1e-5, atol=1e-7)
        assert covered[i] == pytest.approx((weight * maps.covered).sum(), rel=1e-5)
    table = cells.table()
    assert list(table.index) == ["cell_1", "cell_2", "cell_3"]
    np.testing.assert_allclose(table["area_um2"], [1.5 * 25, 29.5 * 21.25 * 25, 12 * 8 * 25])
    np.testing.assert_allclose(table.loc["cell_1", ["x_um", "y_um"]].astype(float), [9.5 * 5, 13.75 * 5])
    assert cells.notes == ("cells: 1 of 3 reach beyond the slide and are cut there (first: cell_3)",)


def test_cells_share_no_pixel_and_regions_may(maps: Maps) -> None:
    """What two outlines share belongs to the first cell alone, but to both regions."""
    boxes = [(8.0, 8.0, 20.0, 20.0), (14.0, 8.0, 26.0, 20.0), (10.0, 10.0, 12.0, 12.0), (18.0, 14.0, 22.0, 40.0)]
    cells = Polygons(maps, squares(*boxes), kind="cells", apart=True)
    regions = Polygons(maps, squares(*boxes), kind="regions", apart=False)
    np.testing.assert_allclose(regions.table()["area_um2"] / 25, [144, 144, 4, 104])
    np.testing.assert_allclose(cells.table()["area_um2"] / 25, [144, 72, 80])
    assert cells.notes == (
        "cells: 2 of 4 overlap earlier ones, which keep what they share (first: cell_2)",
        "cells: 1 of 4 lie wholly within earlier ones and are left out (first: cell_3)",
    )
    one = Features(np.array([shapely.union_all([shapely.box(*box) for box in boxes])], object), squares(boxes[0]).table)
    whole, _ = all_sizes(maps, Polygons(maps, one, kind="cells", apart=True))
    np.testing.assert_allclose(all_sizes(maps, cells)[0].sum(1), whole[:, 0], rtol=1e-5)


def test_a_share_of_a_pixel_has_its_share_of_the_law(maps: Maps) -> None:
    """A cell of a quarter pixel expects a quarter of its UMIs; four of them add up to the pixel."""
    quarters = [(20.0 + i, 30.0 + j, 21.0 + i, 31.0 + j) for i in range(2) for j in range(2)]
    adata = predict_counts(maps, Polygons(maps, squares(*quarters), kind="cells", apart=True), ["A"])
    mean, _ = maps.gene("A")
    np.testing.assert_allclose(adata.X[:, 0], mean[15, 10] / 4, rtol=1e-5)


def test_faults_of_outlines_are_said_all_at_once(maps: Maps) -> None:
    """Empty, crossing, lone-line and far-off outlines are each counted and the first is named; the rest is used."""
    names = ["fine", "empty", "line", "bow", "off", "none"]
    features = squares(*[(20.0, 20.0, 30.0, 30.0)] * 6, name=names, classification="Tumor")
    bow = shapely.Polygon([(10, 10), (20, 20), (20, 10), (10, 20)])
    shapes = [features.outlines_px0[0], shapely.Polygon(), shapely.LineString([(10, 10), (20, 20)]), bow]
    shapes += [shapely.box(900, 900, 950, 950), None]
    regions = Polygons(maps, features._replace(outlines_px0=np.array(shapes, object)), kind="regions", apart=False)
    assert regions.notes == (
        "regions: 2 of 6 are empty or broken and are left out (first: empty)",
        "regions: 1 of 6 cross themselves and were repaired (first: bow)",
        "regions: 1 of 6 are points or lines and are left out (first: line)",
        "regions: 1 of 6 lie off the slide and are left out (first: off)",
    )
    assert list(regions.table().index) == ["fine", "bow"]
    assert list(regions.table()["classification"]) == ["Tumor", "Tumor"]
    np.testing.assert_allclose(regions.table()["area_um2"], [100 * 25, 50 * 25])  # both lobes of the bow


def test_outlines_of_another_frame_are_refused(maps: Maps) -> None:
    """If all lie off the slide, or on glass, the frame is wrong; the message shows both frames."""
    off = squares((1000.0, 2000.0, 1010.0, 2030.0))
    with pytest.raises(
        AlignmentError,
        match=r"x_px0 0 \.\.\. 72, y_px0 0 \.\.\. 48, but none does: 1 of 1 lie off .* "
        r"x 1000 \.\.\. 1010, y 2000 \.\.\. 2030\. Export outlines in pixels",
    ):
        Polygons(maps, off, kind="cells", apart=True)
    with pytest.raises(AlignmentError, match=r"must hold cells, but it has no feature"):
        Polygons(maps, squares(), kind="cells", apart=True)
    glass = Polygons(maps, squares((50.0, 5.0, 60.0, 10.0)), kind="cells", apart=True)
    with pytest.raises(AlignmentError, match=r"at least one of the 1 cells must lie on tissue of S, but none does"):
        predict_counts(maps, glass)


def test_supports_on_glass_count_nothing(maps: Maps) -> None:
    """A region without tissue keeps its row, with zeros and a note."""
    adata = predict_counts(
        maps, Polygons(maps, squares((50, 5, 60, 10), (10, 10, 20, 20)), kind="regions", apart=False)
    )
    assert (adata.X[0] == 0).all()
    assert (adata.X[1] > 0).all()
    assert list(adata.obs["covered_um2"]) == [0, 2500]
    assert list(adata.uns["superst_monai"]["notes"]) == ["1 of 2 regions hold no predicted pixel; their counts are 0."]


@pytest.mark.parametrize(("mpp", "times"), [(10.0, 1), (2.5, 4), (20.0, 1)])
def test_labels_are_the_areas_of_their_pixels(maps: Maps, mpp: float, times: int) -> None:
    """Label pixels finer than, as large as, or larger than the maps' give sums of exact shares of pixels."""
    rng = np.random.default_rng(0)
    shape = [round(side * 10 / mpp) for side in SHAPE]
    label = np.where(rng.random(shape) < 0.5, rng.integers(1, 9, shape) * 7, 0).astype(np.uint16)
    cells = Labels(maps, label, mpp)
    sizes, covered = all_sizes(maps, cells)
    np.testing.assert_array_equal(cells.ids, np.arange(1, 9) * 7)
    table = cells.table()
    for i, id_ in enumerate(cells.ids):
        inside = (label == id_).astype(float)
        if times > 1:
            weight = inside.reshape(SHAPE[0], times, SHAPE[1], times).mean((1, 3))
        else:
            weight = inside.repeat(round(mpp / 10), 0).repeat(round(mpp / 10), 1)
        np.testing.assert_allclose(sizes[:, i], plain_sizes(maps, weight), rtol=1e-5)
        assert covered[i] == pytest.approx((weight * maps.covered).sum(), rel=1e-6)
        assert table["area_um2"].iloc[i] == pytest.approx(inside.sum() * mpp**2)
        for axis, column in ((0, "x_um"), (1, "y_um")):
            along = weight.sum(axis)
            centre = (along * (np.arange(len(along)) + 0.5)).sum() / along.sum() * 10
            assert table[column].iloc[i] == pytest.approx(centre)


def test_labels_of_any_resolution_conserve_the_sum(maps: Maps) -> None:
    """Labels that fill the slide at an odd resolution share out every pixel wholly."""
    label = np.arange(1, 33 * 49 + 1, dtype=np.int32).reshape(33, 49)  # 7.3 um, of 240 x 360 um
    sizes, _ = all_sizes(maps, Labels(maps, label, 7.3))
    np.testing.assert_allclose(sizes.sum(1), plain_sizes(maps, np.ones(SHAPE)), rtol=1e-5)


def test_label_images_that_do_not_fit_are_refused(maps: Maps) -> None:
    """Another extent, no object, negative labels and an impossible resolution raise."""
    label = np.ones((48, 72), np.int32)
    with pytest.raises(AlignmentError, match=r"360 x 240 um, but its 72 x 48 px of 2 um measure 144 x 96 um; export"):
        Labels(maps, label, 2.0)
    with pytest.raises(ResolutionError, match="must be a positive number"):
        Labels(maps, label, float("nan"))
    with pytest.raises(ShapeError, match="all its pixels are 0"):
        Labels(maps, label * 0, 5.0)
    with pytest.raises(ShapeError, match="positive, got -1"):
        Labels(maps, -label, 5.0)
    with pytest.raises(RunError, match="cells of a label image have no outlines"):
        Labels(maps, label, 5.0).outlines_um()


def test_spots_need_a_section_of_the_slide(maps: Maps, make_section: Callable[..., Section]) -> None:
    """A section of another extent is refused."""
    with pytest.raises(AlignmentError, match="must be of the slide of the maps"):
        Spots(maps, make_section(shape=(50, 50)))


def test_large_tables_are_refused_with_their_size(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit in memory is refused in words before the work; bins must have a possible size."""
    monkeypatch.setattr("superst_monai.analysis.support_counts.machine_memory", lambda: 2**18)
    with pytest.raises(RunError, match=r"390 pixels x 3 genes x 7 layers takes .* GiB, which must fit .*--genes"):
        predict_counts(maps, Grid(maps))
    monkeypatch.setattr("superst_monai.analysis.support_grid._MOST", 20)
    with pytest.raises(RunError, match=r"bins of 30 um are 8 x 12 on this slide, but a table holds at most 0 million"):
        predict_counts(maps, Grid(maps, 30.0), ["A"])
    for size in (0.0, -1.0, 361.0, float("nan")):
        with pytest.raises(RunError, match="bins must be larger than 0 and at most as long as the slide, 360 um"):
            Grid(maps, size)
    with pytest.raises(RunError, match=r"layers are mean, sd, .* got variance; pass"):
        predict_counts(maps, Grid(maps, 30.0), layers=["mean", "variance"])
    with pytest.raises(RunError, match="but not 'D'"):
        predict_counts(maps, Grid(maps, 30.0), ["D"])


def test_bins_finer_than_pixels_say_so(maps: Maps) -> None:
    """The note tells that such bins know no more than the pixels."""
    assert Grid(maps, 2.0).notes == ("bins of 2 um are smaller than the pixels of 10 um: each is a share of one.",)
    assert Grid(maps, 10.0).notes == ()


def test_features_of_qupath_are_read(tmp_path: Path) -> None:
    """A FeatureCollection, a list of features and a class in any of its spellings give the same table."""
    import json

    box = {"type": "Polygon", "coordinates": [[[0, 0], [0, 10], [10, 10], [10, 0], [0, 0]]]}
    classes = [{"name": "Tumor", "color": [200, 0, 0]}, {"names": ["Tumor", "CD3"]}, "Stroma", None]
    features = [
        {
            "type": "Feature",
            "id": f"uuid-{i}",
            "geometry": box,
            "properties": {"objectType": "annotation", "classification": found, "measurements": {"Area": 2.5}},
        }
        for i, found in enumerate(classes)
    ]
    features[0]["properties"]["name"] = "Region Ä"
    for content in ({"type": "FeatureCollection", "features": features}, features):
        path = tmp_path / "regions.geojson"
        path.write_text(json.dumps(content), encoding="utf-8")
        found = read_features(path)
        assert list(found.table["classification"]) == ["Tumor", "Tumor: CD3", "Stroma", ""]
        assert list(found.table["name"]) == ["Region Ä", "", "", ""]
        assert list(found.table["id"]) == [f"uuid-{i}" for i in range(4)]
        assert set(found.table["object_type"]) == {"annotation"}
        assert [outline.area for outline in found.outlines_px0] == [100] * 4
