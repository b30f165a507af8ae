"""Sections on disk: a SpatialData store that appears whole or not at all, and is checked when read."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from superst_monai.data.atomic import new_store
from superst_monai.data.preflight import Report, preflight
from superst_monai.data.section import Section, empty_tables
from superst_monai.errors import StoreError

if TYPE_CHECKING:  # spatialdata takes seconds to import, so functions import it when they need it
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

ATTRS = "superst_monai"
FORMAT_VERSION = 1
_META = ("name", "mpp", "slide", "platform", "shape")
_REGION, _INSTANCE = "annotated_element", "instance_id"  # columns by which the table names its shapes
_SMALLEST_PX = 256  # shorter side of the last level of the image pyramid
_CHUNK_PX = 1024


def write_section(section: Section, path: Path | str, *, report: Report | None = None, overwrite: bool = False) -> None:
    """Write a section as a SpatialData `.zarr` store.

    Image and tissue carry a scale from pixels to micrometres, the "global" coordinate system, in which the shapes are.

    Args:
        section: the section.
        path: folder to write.
        report: preflight whose table is stored; made here when not given. Its faults are the caller's to raise.
        overwrite: replace an existing store.
    Raises:
        StoreError: the name is taken, names are not unique, the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    _check_names(section, path)
    meta = {
        "kind": "section",
        "format_version": FORMAT_VERSION,
        "name": section.name,
        "mpp": section.mpp,
        "slide": {key: _plain(value) for key, value in section.slide.items()},
        "platform": section.platform,
        "shape": section.shape,
        "preflight": (report or preflight(section)).table,
    }
    with new_store(path, overwrite=overwrite) as partial, _known_notices():
        to_spatialdata(section, meta).write(partial)


def to_spatialdata(section: Section, meta: Mapping[str, Any]) -> SpatialData:
    """Build the SpatialData object of a section, in memory.

    Args:
        section: the section.
        meta: attributes stored under "superst_monai".
    """
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    to_um = {"global": Scale([section.mpp, section.mpp], axes=("x", "y"))}
    halvings = max(1, int(np.log2(min(section.tissue.shape) / _SMALLEST_PX)))  # one at least: always a pyramid
    histology = Image2DModel.parse(
        section.image.transpose(2, 0, 1),  # (3, H, W)
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2] * halvings,
        chunks=(3, _CHUNK_PX, _CHUNK_PX),
        transformations=dict(to_um),
    )
    tissue = Labels2DModel.parse(section.tissue.astype(np.uint8), dims=("y", "x"), transformations=dict(to_um))
    sdata = SpatialData(images={"histology": histology}, labels={"tissue": tissue}, attrs={ATTRS: dict(meta)})
    if section.has_counts:
        sdata.shapes["spots"] = ShapesModel.parse(_outlines(section), transformations={"global": Identity()})
        sdata.tables["counts"] = TableModel.parse(
            _table(section), region="spots", region_key=_REGION, instance_key=_INSTANCE
        )
    return sdata


def _outlines(section: Section) -> GeoDataFrame:
    """Spots in um, numbered as the rows of counts: points with a radius, or squares."""
    import shapely
    from geopandas import GeoDataFrame

    x, y, radius = section.spots[["x_um", "y_um", "radius_um"]].to_numpy(np.float64).T
    if section.shape == "square":
        return GeoDataFrame(geometry=shapely.box(x - radius, y - radius, x + radius, y + radius))
    return GeoDataFrame({"radius": radius}, geometry=shapely.points(x, y))


def _table(section: Section) -> AnnData:
    """Counts with spots as observations and genes as variables."""
    from anndata import AnnData

    obs = section.spots.copy()
    obs[_REGION], obs[_INSTANCE] = pd.Categorical(["spots"] * section.n_spots), np.arange(section.n_spots)
    return AnnData(
        section.counts.copy(),
        obs=obs,
        var=section.genes.copy(),
        obsm={"spatial": section.spots[["x_um", "y_um"]].to_numpy(np.float64)},
    )


def _check_names(section: Section, path: Path) -> None:
    """Refuse what a table cannot hold."""
    faults = [
        f"{what} must be unique"
        for what, t in (("barcodes", section.spots), ("genes", section.genes))
        if not t.index.is_unique
    ]
    faults += [f"the spot column {name} is reserved" for name in (_REGION, _INSTANCE) if name in section.spots]
    if faults:
        raise StoreError(f"section {section.name} cannot be written to {path}: {'; '.join(faults)}; rename them.")


def _plain(value: Any) -> Any:
    """A value that JSON can hold: numpy scalars become Python's, other objects their text."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def read_section(path: Path | str) -> Section:
    """Read a section that `write_section` wrote.

    Args:
        path: the `.zarr` folder.
    Raises:
        StoreError: there is no such store, it is not a section, of another version, incomplete or damaged.
    """
    path = Path(path)
    meta = _read_meta(path)
    from spatialdata import read_zarr

    try:
        with _known_notices():
            return _to_section(read_zarr(path), meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise StoreError(f"section {path} is damaged ({exc}); build it again from slide and assay.") from exc


def _read_meta(path: Path) -> dict[str, Any]:
    """Attributes of the store, once it is known to be a complete section of this version."""
    import zarr

    if not path.exists():
        raise StoreError(f"there is no section {path}; check the path.")
    try:
        group = zarr.open_group(path, mode="r", use_consolidated=False)  # what is there, not what was listed
        attrs: dict[str, Any] = dict(group.attrs)
        present = {f"{kind}/{name}" for kind, members in group.groups() for name in members.group_keys()}
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise StoreError(f"{path} is not a zarr store ({exc}); pass a section made by `superst prepare`.") from exc
    meta = attrs.get(ATTRS)
    if not isinstance(meta, dict) or meta.get("kind") != "section":
        kind = meta.get("kind") if isinstance(meta, dict) else "no superst_monai store"
        raise StoreError(f"{path} must be a section, got {kind}; pass a section made by `superst prepare`.")
    if meta.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"section {path} must have format version {FORMAT_VERSION}, got {meta.get('format_version')}; "
            "read it with the version of superst_monai that wrote it, or build it again."
        )
    wanted = ["images/histology", "labels/tissue"]
    wanted += [] if meta.get("platform") == "slide" else ["shapes/spots", "tables/counts"]
    missing = [f"attribute {key}" for key in _META if key not in meta] + [e for e in wanted if e not in present]
    if missing:
        raise StoreError(f"section {path} is incomplete, missing {', '.join(missing)}; build it again.")
    return meta


def _to_section(sdata: SpatialData, meta: Mapping[str, Any]) -> Section:
    """Load everything into memory."""
    from spatialdata import get_pyramid_levels

    histology = get_pyramid_levels(sdata.images["histology"], n=0).transpose("y", "x", "c")
    if meta["platform"] == "slide":
        spots, counts, genes = empty_tables(meta["name"])
    else:
        table = sdata.tables["counts"]
        spots, genes = table.obs.drop(columns=[_REGION, _INSTANCE]), table.var
        counts = sparse.csr_matrix(table.X)
    return Section(
        name=meta["name"],
        mpp=float(meta["mpp"]),
        image=np.ascontiguousarray(histology.to_numpy()),
        tissue=sdata.labels["tissue"].to_numpy().astype(np.bool_),
        counts=counts,
        spots=spots,
        genes=genes,
        slide=meta["slide"],
        platform=meta["platform"],
        shape=meta["shape"],
    )


@contextmanager
def _known_notices() -> Iterator[None]:
    """Keep from the user what spatialdata 0.7 makes its own libraries say, and nothing else."""
    reader = logging.getLogger("ome_zarr.reader")

    def keep(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("no parent found for")  # labels are not stored within the image

    reader.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Call to deprecated class Scaler", DeprecationWarning)
            warnings.filterwarnings("ignore", "zarr v3 autosharding will be the default", UserWarning)
            yield
    finally:
        reader.removeFilter(keep)
