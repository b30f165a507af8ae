"""Tables of supports: AnnData, CSV, Parquet, and GeoJSON whose objects carry their numbers as measurements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely

from superst_monai.analysis.geojson_files import write_features
from superst_monai.analysis.supports import Supports
from superst_monai.inference.maps import Maps

if TYPE_CHECKING:
    from anndata import AnnData

_OBJECT_TYPES = {"regions": "annotation", "bins": "tile", "pixels": "tile"}
_DRAWN = ("cells", "regions")  # by a program that has said what each is
_ROWS = 1000  # supports whose measurements are in memory at once


def wide_table(adata: AnnData) -> pd.DataFrame:
    """One row a support: the columns of obs, then `GENE layer` for each gene and layer [UMI]."""
    numbers = {
        f"{gene} {layer}": adata.layers[layer][:, g] for g, gene in enumerate(adata.var_names) for layer in adata.layers
    }
    obs: pd.DataFrame = adata.obs
    return pd.concat([obs, pd.DataFrame(numbers, index=obs.index)], axis=1)


def write_geojson(path: Path, adata: AnnData, supports: Supports, maps: Maps) -> None:
    """Write the supports' outlines and numbers as QuPath opens them, in level-0 pixels.

    Args:
        path: file to write.
        adata: of `predict_counts` on `supports`.
        supports: with outlines.
        maps: of the slide.

    Raises:
        RunError: the supports have no outlines.
    """
    outlines = shapely.transform(supports.outlines_um(), lambda xy: _to_px0(maps, xy))
    ids = adata.obs["id"].tolist() if supports.kind in _DRAWN else [""] * len(adata)
    write_features(path, outlines, _properties(adata, supports.kind), ids)


def _to_px0(maps: Maps, xy_um: Any) -> Any:
    """Places on the slide [level-0 px]."""
    x, y = xy_um.T / maps.mpp - 0.5
    return np.stack(maps.to_px0(y, x), axis=1)


def _properties(adata: AnnData, kind: str) -> Iterator[dict[str, Any]]:
    """Yield type, name, class and measurements of each object."""
    drawn = kind in _DRAWN
    for start in range(0, len(adata), _ROWS):
        part = wide_table(adata[start : start + _ROWS])
        measured = part.select_dtypes("number").astype(float).to_dict("records")
        said = {column: part[column] if drawn else repeat("") for column in ("object_type", "classification")}
        names = part["name"] if drawn else part.index
        for name, type_, class_, numbers in zip(names, *said.values(), measured, strict=False):
            yield {
                "objectType": type_ or _OBJECT_TYPES.get(kind, "detection"),
                **({"name": str(name)} if name else {}),
                **({"classification": {"name": class_}} if class_ else {}),
                "measurements": {key: value for key, value in numbers.items() if math.isfinite(value)},
            }
