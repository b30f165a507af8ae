"""Posterior maps on disk: a SpatialData store with a group of posterior samples, written tile by tile."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from superst_monai.errors import StoreError
from superst_monai.inference.canvas import Plane
from superst_monai.inference.maps_writer import ATTRS, DOMAIN_CHANNELS, MULTIPLIER, MapsWriter, array_of, meta_of
from superst_monai.inference.rates import Effects, RateSamples
from superst_monai.inference.unfinished import Unfinished, begun_store, joined_store, unfinished_store

FORMAT_VERSION = 1
_META = ("mpp", "record", "multiplier", "tile_px")
_ARRAYS = ("activity", "log_rate", "logit", "computed")


@dataclass(frozen=True, eq=False)
class MapsLayout:
    """All of a store but its pixels.

    Attributes:
        mpp: um per pixel.
        tissue: `(H, W)` bool; read tile by tile.
        tile_px: side of a chunk [px].
        rates: N samples of the gene parameters.
        log_rate: mean and sd of the log rates, each `(K, G)`.
        active: metagenes in use `(K,)` bool.
        genes: G rows named by gene: gene_id, logit.
        record: where the maps come from, as JSON.
        block_px: side of a block of the image `domain`, which divides `tile_px` [px]; None for no such image.
    """

    mpp: float
    tissue: Plane
    tile_px: int
    rates: RateSamples
    log_rate: tuple[NDArray[np.float32], NDArray[np.float32]]
    active: NDArray[np.bool_]
    genes: pd.DataFrame
    record: Mapping[str, Any]
    block_px: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """All that the store follows from, as JSON."""
        return {**self.record, "mpp": self.mpp, "tile_px": self.tile_px, "block_px": self.block_px}


@contextmanager
def new_maps(
    path: Path, layout: MapsLayout, *, overwrite: bool = False, resume: bool = False, owner: str | None = None
) -> Iterator[MapsWriter]:
    """Lay out a store and yield its writer; the store takes its name when the block ends without an error.

    However else it ends, the finished tiles stay beside that name, see `unfinished_store`.

    Args:
        path: the `.zarr` folder to come.
        layout: everything but the pixels.
        overwrite: replace a store of that name.
        resume: go on with what an earlier process left of the same layout.
        owner: in whose name; see `Unfinished`.

    Raises:
        StoreError: the name is taken, the disk is full, or the folder cannot be written.
        RunError: what an earlier process left is of another layout.
    """
    with unfinished_store(path, layout.arguments, overwrite=overwrite, resume=resume, owner=owner) as under_way:
        _lay_out(under_way, layout)
        writer = _writer(under_way)
        yield writer
        writer.finish()
        with _known_notices():
            zarr.consolidate_metadata(under_way.store)


def lay_out_maps(path: Path, layout: MapsLayout, *, overwrite: bool, resume: bool, owner: str) -> MapsWriter:
    """Lay out a store and leave it unfinished: for `join_maps` to draw its tiles, and `new_maps` to finish it.

    Arguments and errors are those of `new_maps`.

    Returns:
        Its writer, which knows what tiles are left.
    """
    with begun_store(path, layout.arguments, overwrite=overwrite, resume=resume, owner=owner) as under_way:
        _lay_out(under_way, layout)
        return _writer(under_way)


@contextmanager
def join_maps(path: Path, layout: MapsLayout, *, owner: str) -> Iterator[MapsWriter]:
    """Yield a writer of some of the tiles of a store that is laid out, while other processes write others.

    Args:
        path: the `.zarr` folder to come.
        layout: that of the store.
        owner: in whose name the store was laid out.

    Raises:
        StoreError: the store belongs to another owner by now, the disk is full, or the folder cannot be written.
        RunError: the store is of another layout.
    """
    with joined_store(path, layout.arguments, owner=owner) as under_way:
        yield _writer(under_way)


def _lay_out(under_way: Unfinished, layout: MapsLayout) -> None:
    """Write all of a store but its pixels, unless it has some."""
    if under_way.done:
        return
    with _known_notices():
        _write_skeleton(under_way.store, layout)
        group = zarr.open_group(under_way.store, mode="r+", use_consolidated=False)
        _write_posterior(group.create_group("posterior"), layout)


def _writer(under_way: Unfinished) -> MapsWriter:
    """The writer of a store that is laid out."""
    return MapsWriter(zarr.open_group(under_way.store, mode="r+", use_consolidated=False), under_way)


def _write_skeleton(path: Path, layout: MapsLayout) -> None:
    """Write the SpatialData elements; images are empty, and empty chunks take no space."""
    import dask.array as da
    from anndata import AnnData
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel, TableModel
    from spatialdata.transformations import Scale

    (mean, sd), tile = layout.log_rate, layout.tile_px

    def to_um(px: int) -> dict[str, Scale]:
        return {"global": Scale([px * layout.mpp, px * layout.mpp], axes=("x", "y"))}

    def image(channels: Sequence[str], px: int) -> Any:
        """An empty image of pixels that are `px` pixels of the map wide."""
        shape = (len(channels), *(-(-side // px) for side in layout.tissue.shape))
        chunks = (len(channels), tile // px, tile // px)
        empty = da.zeros(shape, chunks=chunks, dtype=np.float32)
        return Image2DModel.parse(
            empty, dims=("c", "y", "x"), c_coords=channels, chunks=chunks, transformations=to_um(px)
        )

    names = [f"metagene_{k + 1}" for k in range(len(mean))]
    images = {"activity": image(names, 1), "scale": image(["scale"], 1)}
    if layout.block_px is not None:
        images["domain"] = image(DOMAIN_CHANNELS, layout.block_px)
    plane = da.from_array(layout.tissue, chunks=(tile, tile), name=False)  # type: ignore[no-untyped-call]
    tissue = Labels2DModel.parse(plane.astype(np.uint8), dims=("y", "x"), transformations=to_um(1))
    obs = pd.DataFrame({"active": layout.active}, index=names)
    table = TableModel.parse(AnnData(mean, obs=obs, var=layout.genes, layers={"sd": sd}))
    meta = {
        "kind": "maps",
        "format_version": FORMAT_VERSION,
        "mpp": layout.mpp,
        "tile_px": tile,
        "block_px": layout.block_px,
        "multiplier": MULTIPLIER,
        "record": dict(layout.record),
    }
    SpatialData(images=images, labels={"tissue": tissue}, tables={"metagenes": table}, attrs={ATTRS: meta}).write(path)


def _write_posterior(group: zarr.Group, layout: MapsLayout) -> None:
    """Create the sample arrays, filled with zeros but for the gene parameters."""
    n_samples, n_metagenes, _ = layout.rates.log_rate.shape
    tile = layout.tile_px
    group.create_array(
        "activity",
        shape=(n_samples, n_metagenes, *layout.tissue.shape),
        chunks=(1, n_metagenes, tile, tile),
        dtype="float16",
        attributes={"multiplier": MULTIPLIER},
    )
    group.create_array("computed", shape=[-(-side // tile) for side in layout.tissue.shape], dtype="bool")
    group.create_array("log_rate", data=layout.rates.log_rate)
    group.create_array("logit", data=layout.rates.logit)
    if (effects := layout.rates.effects) is not None:
        rows = [list(row) for row in effects.rows]
        group.create_array("effect_log_rate", data=effects.log_rate, attributes={"rows": rows})
        group.create_array("effect_logit", data=effects.logit, attributes={"rows": rows})


def open_store(path: str | Path) -> tuple[zarr.Group, dict[str, Any]]:
    """Open a maps store for reading.

    Returns:
        Root group, and the attributes: mpp, tile_px, multiplier, record.

    Raises:
        StoreError: there is no such store, it holds no maps, of another version, or it is incomplete.
    """
    path = Path(path)
    if not path.exists():
        raise StoreError(f"there are no posterior maps {path}; check the path.")
    try:
        group = zarr.open_group(path, mode="r", use_consolidated=False)  # what is there, not what was listed
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise StoreError(f"{path} is not a zarr store ({exc}); pass maps made by `superst predict`.") from exc
    meta = meta_of(group)
    if meta.get("kind") != "maps":
        kind = meta.get("kind", "no superst_monai store")
        raise StoreError(f"{path} must hold posterior maps, got {kind}; pass maps made by `superst predict`.")
    if meta.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"maps {path} must have format version {FORMAT_VERSION}, got {meta.get('format_version')}; "
            "read them with the version of superst_monai that wrote them, or predict again."
        )
    wanted = [*(f"posterior/{name}" for name in _ARRAYS), "labels/tissue/s0", "tables/metagenes"]
    missing = [f"attribute {key}" for key in _META if key not in meta] + [name for name in wanted if name not in group]
    if missing:
        raise StoreError(f"maps {path} are incomplete, missing {', '.join(missing)}; predict again.")
    return group, meta


def read_genes(group: zarr.Group) -> pd.DataFrame:
    """The genes of a store: rows named by gene, columns gene_id and logit."""
    from anndata.io import read_elem

    found: pd.DataFrame = read_elem(group["tables/metagenes/var"])
    return found


def read_effects(group: zarr.Group) -> Effects | None:
    """Effects of covariates on the genes; None in a store that holds none."""
    if "posterior/effect_log_rate" not in group:
        return None
    log_rate, logit = (array_of(group, f"posterior/effect_{name}") for name in ("log_rate", "logit"))
    rows = [(str(covariate), str(level)) for covariate, level in cast("list[list[str]]", log_rate.attrs["rows"])]
    return Effects(rows, np.asarray(log_rate), np.asarray(logit))


@contextmanager
def _known_notices() -> Iterator[None]:
    """Keep from the user what spatialdata 0.7 makes its own libraries say, and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Call to deprecated class Scaler", DeprecationWarning)
        warnings.filterwarnings("ignore", "zarr v3 autosharding will be the default", UserWarning)
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", UserWarning)
        yield
