"""Posterior maps on disk: a SpatialData store with a group of posterior samples, written tile by tile."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from superst_monai.data.atomic import new_store
from superst_monai.errors import RunError, StoreError
from superst_monai.inference.posterior import Window
from superst_monai.inference.rates import RateSamples

ATTRS = "superst_monai"
FORMAT_VERSION = 1
MULTIPLIER = 256.0
"""Samples are stored in float16 times this power of two: 11 bits down to 2.4e-7 / px, and up to 255 / px."""
_LARGEST = float(np.finfo(np.float16).max) / MULTIPLIER
_META = ("mpp", "record", "multiplier", "tile_px")
_ARRAYS = ("activity", "log_rate", "logit", "computed")


@dataclass(frozen=True, eq=False)
class MapsLayout:
    """All of a store but its pixels.

    Attributes:
        mpp: um per pixel.
        tissue: `(H, W)` bool.
        tile_px: side of a chunk [px].
        rates: N samples of the gene parameters.
        log_rate: mean and sd of the log rates, each `(K, G)`.
        active: metagenes in use `(K,)` bool.
        genes: G rows named by gene: gene_id, logit.
        record: where the maps come from.
    """

    mpp: float
    tissue: NDArray[np.bool_]
    tile_px: int
    rates: RateSamples
    log_rate: tuple[NDArray[np.float32], NDArray[np.float32]]
    active: NDArray[np.bool_]
    genes: pd.DataFrame
    record: Mapping[str, Any]


class MapsWriter:
    """Writes tiles into a store whose arrays exist already.

    Args:
        group: root of the store, writable.
    """

    def __init__(self, group: zarr.Group) -> None:
        """Look up the arrays."""
        self._samples = _array(group, "posterior/activity")
        self._activity = _array(group, "images/activity/s0")
        self._scale = _array(group, "images/scale/s0")
        self._computed = _array(group, "posterior/computed")
        self._tile_px = int(_meta(group)["tile_px"])

    def write(self, window: Window, samples: NDArray[np.float32]) -> None:
        """Write one tile: the samples in float16, their means and the mean scale in float32.

        Args:
            window: the whole tile, cut at the border of the map.
            samples: scaled activity `(N, K, h, w)` [1/px].

        Raises:
            RunError: a value is no finite number of at most 255 / px.
        """
        if not float(samples.max()) < _LARGEST:
            raise RunError(
                f"a pixel must have a finite size below that of {_LARGEST:.0f} mean spots, got {samples.max()} at row "
                f"{window.row}, column {window.col}; the training diverged, take an earlier checkpoint."
            )
        place = np.s_[window.row : window.row + window.height, window.col : window.col + window.width]
        mean = samples.mean(axis=0)  # (K, h, w)
        self._samples[(slice(None), slice(None), *place)] = (samples * np.float32(MULTIPLIER)).astype(np.float16)
        self._activity[(slice(None), *place)] = mean
        self._scale[(slice(None), *place)] = mean.sum(axis=0, keepdims=True)  # shares sum to 1 over K
        self._computed[window.row // self._tile_px, window.col // self._tile_px] = True


@contextmanager
def new_maps(path: Path, layout: MapsLayout, *, overwrite: bool = False) -> Iterator[MapsWriter]:
    """Lay out a store and yield its writer; the store takes its name when the block ends without an error.

    Args:
        path: the `.zarr` folder to come.
        layout: everything but the pixels.
        overwrite: replace a store of that name.

    Raises:
        StoreError: the name is taken, the disk is full, or the folder cannot be written.
    """
    with new_store(path, overwrite=overwrite) as partial, _known_notices():
        _write_skeleton(partial, layout)
        group = zarr.open_group(partial, mode="r+", use_consolidated=False)
        _write_posterior(group.create_group("posterior"), layout)
        yield MapsWriter(group)
        zarr.consolidate_metadata(partial)


def _write_skeleton(path: Path, layout: MapsLayout) -> None:
    """Write the SpatialData elements; images are empty, and empty chunks take no space."""
    import dask.array as da
    from anndata import AnnData
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel, TableModel
    from spatialdata.transformations import Scale

    (mean, sd), tile = layout.log_rate, layout.tile_px
    to_um = {"global": Scale([layout.mpp, layout.mpp], axes=("x", "y"))}
    names = [f"metagene_{k + 1}" for k in range(len(mean))]
    images = {
        name: Image2DModel.parse(
            da.zeros((len(channels), *layout.tissue.shape), chunks=(len(channels), tile, tile), dtype=np.float32),
            dims=("c", "y", "x"),
            c_coords=channels,
            chunks=(len(channels), tile, tile),
            transformations=dict(to_um),
        )
        for name, channels in {"activity": names, "scale": ["scale"]}.items()
    }
    tissue = Labels2DModel.parse(layout.tissue.astype(np.uint8), dims=("y", "x"), transformations=dict(to_um))
    obs = pd.DataFrame({"active": layout.active}, index=names)
    table = TableModel.parse(AnnData(mean, obs=obs, var=layout.genes, layers={"sd": sd}))
    meta = {
        "kind": "maps",
        "format_version": FORMAT_VERSION,
        "mpp": layout.mpp,
        "tile_px": tile,
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
    meta = _meta(group)
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


def _meta(group: zarr.Group) -> dict[str, Any]:
    """Attributes under the project's name, if there are any."""
    meta = group.attrs.get(ATTRS)
    return dict(meta) if isinstance(meta, Mapping) else {}


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of a group."""
    return cast("zarr.Array[Any]", group[name])


@contextmanager
def _known_notices() -> Iterator[None]:
    """Keep from the user what spatialdata 0.7 makes its own libraries say, and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Call to deprecated class Scaler", DeprecationWarning)
        warnings.filterwarnings("ignore", "zarr v3 autosharding will be the default", UserWarning)
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", UserWarning)
        yield
