"""Every format is read back by the library that owns it, and holds the numbers of the maps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from superst_monai.analysis.exports.export import export
from superst_monai.analysis.exports.pyramid import halve
from superst_monai.analysis.support_counts import LAYERS, predict_counts
from superst_monai.analysis.support_grid import Grid
from superst_monai.data.section import Section
from superst_monai.data.store import write_section
from superst_monai.errors import RunError, ShapeError, SlideError, StoreError
from superst_monai.inference.maps import Maps, open_maps

TRIANGLE = [[[10.0, 10.0], [30.0, 10.0], [10.0, 30.0], [10.0, 10.0]]]  # [level-0 px] of 5 um


@pytest.fixture
def maps(tiled_maps: Path) -> Maps:
    """Maps in several tiles."""
    return open_maps(tiled_maps)


@pytest.fixture
def regions(tmp_path: Path) -> Path:
    """Two overlapping regions as QuPath writes them."""
    square = [[[20.0, 10.0], [20.0, 40.0], [28.0, 40.0], [28.0, 10.0], [20.0, 10.0]]]
    features = [
        {
            "type": "Feature",
            "id": f"0000000{i}-0000-4000-8000-000000000000",
            "geometry": {"type": "Polygon", "coordinates": outline},
            "properties": {"objectType": "annotation", "name": name, "classification": {"name": class_}},
        }
        for i, (outline, name, class_) in enumerate([(TRIANGLE, "a", "Tumor"), (square, "b", "Stroma")])
    ]
    path = tmp_path / "regions.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_ome_tiff_is_the_map(maps: Maps, tiled_maps: Path, tmp_path: Path) -> None:
    """tifffile finds the numbers of each gene and layer, their names and the physical size of a pixel."""
    out = tmp_path / "genes.ome.tif"
    shown: list[float] = []
    export(tiled_maps, out, to="pixels", genes=["C", "A"], show=lambda share, _: shown.append(share))
    with tifffile.TiffFile(out) as tif:
        series = tif.series[0]
        assert (series.axes, series.dtype, series.keyframe.is_tiled) == ("CYX", np.float32, True)
        values = series.asarray()
        facts = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]
        resolution = series.keyframe.get_resolution("micrometer")
    for channel, gene in ((0, "C"), (2, "A")):
        mean, sd = maps.gene(gene)
        np.testing.assert_allclose(values[channel], mean, rtol=1e-5)
        np.testing.assert_allclose(values[channel + 1], sd, rtol=1e-4, atol=1e-7)
    pixels = facts["Pixels"]
    assert [pixels[f"PhysicalSize{axis}"] for axis in "XY"] == [10.0, 10.0]
    assert pixels["PhysicalSizeXUnit"] == "µm"
    assert [channel["Name"] for channel in pixels["Channel"]] == ["C", "C sd", "A", "A sd"]
    assert "mean: expected UMIs per support" in facts["Description"]
    assert resolution == pytest.approx((0.1, 0.1))
    assert shown == sorted(shown)
    assert shown[-1] == 1.0
    assert list(tmp_path.iterdir()) == [out]


def test_ome_zarr_is_the_map_of_bins(maps: Maps, tiled_maps: Path, tmp_path: Path) -> None:
    """The ome-zarr reader finds bins of 25 um with their quantiles, names and size; they are those of the table."""
    out = tmp_path / "bins.ome.zarr"
    layers = ["mean", "q05", "q95", "mean_q95"]
    export(tiled_maps, out, to="bins", bin_um=25.0, genes=["B"], layers=layers)
    (node,) = list(Reader(parse_url(out))())
    values = np.asarray(node.data[0])
    adata = predict_counts(maps, Grid(maps, 25.0), ["B"])
    row, col = adata.obs["array_row"], adata.obs["array_col"]
    for channel, layer in enumerate(layers):
        np.testing.assert_allclose(values[channel][row, col], adata.layers[layer][:, 0], rtol=1e-5)
        assert np.count_nonzero(values[channel]) == np.count_nonzero(adata.layers[layer])
    assert node.metadata["channel_names"] == ["B", "B q05", "B q95", "B mean_q95"]
    assert [axis["unit"] for axis in node.metadata["axes"][1:]] == ["micrometer"] * 2
    scale, shift = node.metadata["coordinateTransformations"][0]
    assert (scale["scale"], shift["translation"]) == ([1.0, 25.0, 25.0], [0.0, 0.0, 0.0])
    assert node.metadata["contrast_limits"][0] == [0.0, pytest.approx(values[0].max())]


@pytest.mark.parametrize("name", ["genes.ome.tif", "genes.ome.zarr"])
def test_levels_of_a_pyramid_are_averages(
    tiled_maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With squares of 16 pixels there are levels; each is the average of 2 x 2 pixels, the sum stays."""
    monkeypatch.setattr("superst_monai.analysis.support_grid.CHUNK", 16)
    monkeypatch.setattr("superst_monai.analysis.exports.pyramid.CHUNK", 16)
    monkeypatch.setattr("superst_monai.analysis.exports.ome_tiff._TILE", 16)
    out = tmp_path / name
    export(tiled_maps, out, to="pixels", genes=["A"], layers=["mean"])
    if name.endswith("tif"):
        with tifffile.TiffFile(out) as tif:
            levels = [level.asarray() for level in tif.series[0].levels]
            levels = [level.reshape(level.shape[-2:]) for level in levels]
            sizes = [1 / page.get_resolution("micrometer")[0] for page in (x.keyframe for x in tif.series[0].levels)]
    else:
        (node,) = list(Reader(parse_url(out))())
        levels = [np.asarray(level)[0] for level in node.data]
        sizes = [parts[0]["scale"][1] for parts in node.metadata["coordinateTransformations"]]
    mean, _ = open_maps(tiled_maps).gene("A")
    np.testing.assert_allclose(levels[0], mean, rtol=1e-5)
    assert [level.shape for level in levels] == [(24, 36), (12, 18), (6, 9)]
    assert sizes == pytest.approx([10, 20, 40])
    np.testing.assert_allclose(levels[1], mean.reshape(12, 2, 18, 2).mean((1, 3)), rtol=1e-5)
    assert levels[2].sum() * 16 == pytest.approx(mean.sum(), rel=1e-5)


def test_odd_borders_are_averaged_over_what_there_is() -> None:
    """The last row and column of an odd image have fewer pixels to average."""
    values = np.arange(15, dtype=np.float32).reshape(3, 5)
    np.testing.assert_allclose(halve(values), [[3, 5, 6.5], [10.5, 12.5, 14]])


def test_tables_come_back(tiled_maps: Path, regions: Path, tmp_path: Path) -> None:
    """AnnData, CSV and Parquet hold the same numbers, names, classes and units."""
    for name in ("r.h5ad", "r.csv", "r.parquet"):
        assert export(tiled_maps, tmp_path / name, to="regions", objects=regions, genes=["B", "A"], command="c") == []
    adata = anndata.read_h5ad(tmp_path / "r.h5ad")
    assert list(adata.obs_names) == ["a", "b"]
    assert list(adata.obs["classification"]) == ["Tumor", "Stroma"]
    assert set(adata.layers) == set(LAYERS)
    assert adata.uns["superst_monai"]["units"]["q05"].startswith("5 % quantile of the predicted count")
    assert adata.uns["superst_monai"]["command"] == "c"
    np.testing.assert_allclose(adata.obs["area_um2"], [200 * 25, 240 * 25])
    for table in (pd.read_csv(tmp_path / "r.csv", index_col=0), pd.read_parquet(tmp_path / "r.parquet")):
        assert list(table.index) == ["a", "b"]
        for g, gene in enumerate(("B", "A")):
            for layer in LAYERS:
                np.testing.assert_allclose(table[f"{gene} {layer}"], adata.layers[layer][:, g], rtol=1e-5)


def test_geojson_goes_back_to_qupath(tiled_maps: Path, regions: Path, tmp_path: Path) -> None:
    """Outlines, ids, names and classes are those that came, with a measurement for each gene and layer."""
    out = tmp_path / "out.geojson"
    export(tiled_maps, out, to="regions", objects=regions, genes=["B"], layers=["mean", "q95"])
    export(tiled_maps, tmp_path / "r.h5ad", to="regions", objects=regions, genes=["B"])
    adata = anndata.read_h5ad(tmp_path / "r.h5ad")
    before, after = (json.loads(path.read_text())["features"] for path in (regions, out))
    for i, (came, went) in enumerate(zip(before, after, strict=True)):
        assert went["id"] == came["id"]
        assert {key: went["properties"][key] for key in came["properties"]} == came["properties"]
        assert shapely.equals_exact(*(shapely.geometry.shape(of["geometry"]) for of in (came, went)), 1e-6)
        measured = went["properties"]["measurements"]
        assert measured["B mean"] == pytest.approx(float(adata.X[i, 0]))
        assert measured["B q95"] == adata.layers["q95"][i, 0]
        assert measured["area_um2"] == pytest.approx(adata.obs["area_um2"].iloc[i])
        assert all(isinstance(value, float) for value in measured.values())
    assert list(geopandas.read_file(out)["name"]) == ["a", "b"]


def test_spots_and_bins_become_objects(tiled_maps: Path, make_section: Callable[..., Section], tmp_path: Path) -> None:
    """Spots are detections of their diameter, bins tiles of their size, in level-0 pixels."""
    section = tmp_path / "s.zarr"
    write_section(make_section(), section)
    export(tiled_maps, tmp_path / "spots.geojson", to="spots", objects=section, genes=["A"])
    export(tiled_maps, tmp_path / "bins.geojson", to="bins", bin_um=60.0, genes=["A"])
    spots, bins = (geopandas.read_file(tmp_path / f"{name}.geojson") for name in ("spots", "bins"))
    assert set(spots["objectType"]) == {"detection"}
    assert set(bins["objectType"]) == {"tile"}
    left, top, right, bottom = spots.geometry.iloc[1].bounds
    assert (left, top, right, bottom) == pytest.approx((30, 6, 42, 18))
    assert (shapely.area(bins.geometry.array) == 144).all()


def label_file(path: Path) -> Path:
    """A label image of 5 um per pixel, 48 x 72, in the format of the suffix."""
    label = np.zeros((48, 72), np.uint16)
    label[10:20, 10:24] = 7
    label[30:33, 20:24] = 300
    if path.suffix == ".npy":
        np.save(path, label)
    elif path.suffix == ".png":
        from PIL import Image

        Image.fromarray(label).save(path)
    else:
        tifffile.imwrite(path, label, **({"tile": (16, 16)} if "tiled" in path.name else {}))
    return path


@pytest.mark.parametrize("name", ["l.npy", "l.png", "l.tif", "tiled.tif"])
def test_label_images_of_all_formats_are_the_same_cells(
    maps: Maps, tiled_maps: Path, tmp_path: Path, name: str
) -> None:
    """Cells of a label image have the sums of their pixels, a quarter of a map pixel each."""
    path, out = label_file(tmp_path / name), tmp_path / "cells.h5ad"
    export(tiled_maps, out, to="cells", objects=path, genes=["B"])
    adata = anndata.read_h5ad(out)
    assert list(adata.obs_names) == ["7", "300"]
    mean, _ = maps.gene("B")
    fine = mean.repeat(2, 0).repeat(2, 1) / 4
    np.testing.assert_allclose(adata.X[:, 0], [fine[10:20, 10:24].sum(), fine[30:33, 20:24].sum()], rtol=1e-5)


def test_bad_label_files_are_refused(tiled_maps: Path, tmp_path: Path) -> None:
    """Colours and damaged files name what was expected."""

    def cells(path: Path) -> Any:
        return export(tiled_maps, tmp_path / "o.h5ad", to="cells", objects=path)

    np.save(tmp_path / "rgb.npy", np.zeros((48, 72, 3), np.uint8))
    with pytest.raises(ShapeError, match=r"rgb.npy must hold one integer a pixel, .* got \(48, 72, 3\) uint8"):
        cells(tmp_path / "rgb.npy")
    for name in ("a.png", "a.tif", "a.npy"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(SlideError, match=f"{name} must be a complete image"):
            cells(tmp_path / name)
    assert not (tmp_path / "o.h5ad").exists()


def test_bad_geojson_is_refused(tiled_maps: Path, tmp_path: Path) -> None:
    """What is no GeoJSON is refused, and only the GeoJSON reader ever sees the file."""
    path = tmp_path / "a.geojson"
    for content in ("{broken", '{"a": 1}', "<OGRVRTDataSource></OGRVRTDataSource>", ""):
        path.write_text(content)
        with pytest.raises(StoreError, match=r"a.geojson must be GeoJSON, but it cannot be read"):
            export(tiled_maps, tmp_path / "o.h5ad", to="cells", objects=path)


def test_options_that_do_not_go_together_are_all_named(tiled_maps: Path, tmp_path: Path) -> None:
    """One message holds every fault of the options, before anything is read."""
    with pytest.raises(
        RunError,
        match=r"--bin-um is for bins; spots need --objects, a section; \.ome\.tif holds pixels or bins, not spots; .* "
        r"\.ome\.tif needs --genes\.",
    ):
        export(tiled_maps, tmp_path / "o.ome.tif", to="spots", bin_um=8.0)
    with pytest.raises(RunError, match=r"supports are .* got nuclei; --out must end in .* got o\.xlsx"):
        export(tiled_maps, tmp_path / "o.xlsx", to="nuclei")
    with pytest.raises(RunError, match=r"bins need --bin-um.*; --objects is for spots"):
        export(tiled_maps, tmp_path / "o.h5ad", to="bins", objects="c.tif")
    with pytest.raises(RunError, match=r"a label image has no outlines for .geojson; write"):
        export(tiled_maps, tmp_path / "o.geojson", to="cells", objects="c.tif")
    with pytest.raises(RunError, match=r"--objects must be a section, got c\.geojson"):
        export(tiled_maps, tmp_path / "o.h5ad", to="spots", objects="c.geojson")


@pytest.mark.parametrize("name", ["o.h5ad", "o.ome.tif", "o.ome.zarr"])
def test_what_is_there_stays_unless_told(tiled_maps: Path, tmp_path: Path, name: str) -> None:
    """A taken name is refused; with overwrite the new file takes its place; a failed export leaves the old one."""
    out = tmp_path / name

    def write(gene: str, **more: Any) -> None:
        export(tiled_maps, out, to="bins", bin_um=120.0, genes=[gene], **more)

    write("A")
    with pytest.raises(StoreError, match="must not exist yet"):
        write("B")
    first = out.stat().st_ctime_ns
    with pytest.raises(RunError, match="but not 'D'"):
        write("D", overwrite=True)
    assert out.stat().st_ctime_ns == first
    write("B", overwrite=True)
    assert out.stat().st_ctime_ns != first
    assert list(tmp_path.iterdir()) == [out]


def test_images_need_genes_that_fit(tiled_maps: Path, tmp_path: Path) -> None:
    """No gene at all is refused in words."""
    with pytest.raises(RunError, match=r"an image holds 1 \.\.\. 1000 channels, got 0 genes x 2 layers"):
        export(tiled_maps, tmp_path / "o.ome.tif", to="pixels", genes=[])
