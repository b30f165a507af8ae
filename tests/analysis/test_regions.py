"""Regions from files are where their outlines are, whatever the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from superst_monai.analysis.regions import read_regions
from superst_monai.analysis.several_maps import Named, open_several
from superst_monai.analysis.support_files import check_supports, open_supports
from superst_monai.data.section import Section
from superst_monai.data.store import write_section
from superst_monai.errors import RunError, StoreError

StoreMaps = Callable[..., Path]
SHAPE, MPP = (20, 30), 10.0


def box(left: float, top: float, right: float, bottom: float, name: str = "", kind: str = "") -> dict[str, object]:
    """A rectangle as QuPath writes an annotation, in level-0 pixels of 10 um."""
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    properties: dict[str, object] = {"objectType": "annotation"}
    properties |= {"name": name} if name else {}
    properties |= {"classification": {"name": kind}} if kind else {}
    return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": [ring]}}


def write_geojson(path: Path, *features: dict[str, object]) -> Path:
    """Write a collection."""
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture(scope="module")
def several(store_maps: StoreMaps) -> list[Named]:
    """Two sections with tissue everywhere."""
    samples = np.random.default_rng(0).integers(1, 64, (2, 2, *SHAPE)) / 256
    return open_several([store_maps(samples, np.zeros((2, 3)), name=name) for name in "AB"])


def mask(rows: slice, cols: slice) -> np.ndarray:
    """A rectangle of pixels."""
    found = np.zeros(SHAPE, bool)
    found[rows, cols] = True
    return found


def test_a_class_is_all_outlines_of_it(several: list[Named], tmp_path: Path) -> None:
    """Pixels at least half within any outline of the class; a single one by its name; the rest is the other tissue."""
    features = [
        box(2.4, 3, 8.4, 9, "left", "Tumor"),
        box(10, 3, 12.5, 9, "right", "Tumor"),
        box(20, 0, 30, 20, "", "Stroma"),
    ]
    file = write_geojson(tmp_path / "a.geojson", *features)
    one = several[:1]
    tumor = mask(slice(3, 9), slice(2, 8)) | mask(slice(3, 9), slice(10, 13))
    ((found, rest),) = read_regions(one, [file], "Tumor")
    np.testing.assert_array_equal(found, tumor)
    np.testing.assert_array_equal(rest, ~tumor)
    ((single, stroma),) = read_regions(one, [file], "right", "Stroma")
    np.testing.assert_array_equal(single, mask(slice(3, 9), slice(10, 13)))
    np.testing.assert_array_equal(stroma, mask(slice(0, 20), slice(20, 30)))


def test_parts_of_a_pixel_add_up_to_half(several: list[Named], tmp_path: Path) -> None:
    """Two outlines of a class that share a pixel cover it together."""
    file = write_geojson(tmp_path / "a.geojson", box(5, 5, 5.3, 6, "", "T"), box(5.7, 5, 6, 6, "", "T"))
    ((found, _),) = read_regions(several[:1], [file], "T")
    np.testing.assert_array_equal(found, mask(slice(5, 6), slice(5, 6)))


def test_label_images_name_regions_by_number(several: list[Named], tmp_path: Path) -> None:
    """A label image of the whole slide at twice the resolution."""
    label = np.zeros((40, 60), np.uint8)
    label[4:10, 6:20], label[20:, :] = 3, 7
    tifffile.imwrite(tmp_path / "label.tif", label)
    ((found, other),) = read_regions(several[:1], [tmp_path / "label.tif"], "3", "7")
    np.testing.assert_array_equal(found, mask(slice(2, 5), slice(3, 10)))
    np.testing.assert_array_equal(other, mask(slice(10, 20), slice(0, 30)))


def test_shapes_of_a_section_are_regions(
    several: list[Named], make_section: Callable[..., Section], tmp_path: Path
) -> None:
    """Shapes `regions` in micrometres, added with spatialdata; a section without them is refused."""
    import geopandas
    import spatialdata
    from shapely.geometry import box as rectangle
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    write_section(make_section(), tmp_path / "S.zarr")
    with pytest.raises(RunError, match="must have shapes `regions`, got spots; add annotations"):
        read_regions(several[:1], [tmp_path / "S.zarr"], "Tumor")
    shapes = geopandas.GeoDataFrame({"classification": ["Tumor", "Stroma"]}, geometry=[rectangle(20, 30, 80, 90)] * 2)
    sdata = spatialdata.read_zarr(tmp_path / "S.zarr")
    sdata["regions"] = ShapesModel.parse(shapes, transformations={"global": Identity()})
    sdata.write_element("regions")
    ((found, _),) = read_regions(several[:1], [tmp_path / "S.zarr"], "Tumor")
    np.testing.assert_array_equal(found, mask(slice(3, 9), slice(2, 8)))
    with pytest.raises(StoreError, match="cannot be read as a section"):
        read_regions(several[:1], [tmp_path / "none.zarr"], "Tumor")


def test_a_section_may_lack_a_region_that_another_has(several: list[Named], tmp_path: Path) -> None:
    """Its mask is empty; a name that none has, and a wrong number of files, are refused."""
    files = [
        write_geojson(tmp_path / "a.geojson", box(0, 0, 5, 5, "", "Tumor")),
        write_geojson(tmp_path / "b.geojson", box(-2, 0, 5, 5, "", "Stroma")),
    ]
    notes: list[str] = []
    (first, _), (second, _) = read_regions(several, files, "Tumor", "Stroma", say=notes.append)
    assert notes == ["B: regions: 1 of 1 reach beyond the slide and are cut there (first: region_1)"]
    assert (first.sum(), second.sum()) == (25, 0)
    with pytest.raises(
        RunError, match=r"the regions must hold Fat, but are Tumor, .*Stroma.*; pass one of these names"
    ):
        read_regions(several, files, "Tumor", "Fat")
    with pytest.raises(RunError, match="one file of regions for each section, in their order, got 1 for 2"):
        read_regions(several, files[:1], "Tumor")


def test_supports_that_cannot_be_are_refused(several: list[Named], tmp_path: Path) -> None:
    """All faults at once; files of the wrong kind by their suffix."""
    with pytest.raises(RunError, match="bins need --bin-um, for example 50; --objects is for spots, cells and regions"):
        check_supports("bins", Path("a.geojson"), None)
    with pytest.raises(RunError, match="--bin-um is for bins; spots need --objects, a section"):
        check_supports("spots", None, 5.0)
    with pytest.raises(RunError, match=r"--objects must be GeoJSON or a label image, got .*x.svs"):
        check_supports("cells", tmp_path / "x.svs", None)
    with (
        pytest.raises(RunError, match="supports are pixels, bins, spots, cells, regions, got worms"),
        open_supports(several[0].maps, "worms"),
    ):
        pass
