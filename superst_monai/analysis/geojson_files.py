"""GeoJSON as QuPath reads and writes it: outlines in level-0 pixels, with name, class and measurements."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import geopandas
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from superst_monai.errors import StoreError

_COLUMNS = ("id", "name", "classification", "objectType")


class Features(NamedTuple):
    """F features of a file, whatever their geometry."""

    outlines_px0: NDArray[Any]  # (F,), shapely geometries or None
    table: pd.DataFrame  # F rows: id, name, classification, object_type; "" where not given


def read_features(path: Path) -> Features:
    """Read a FeatureCollection, a feature, a geometry, or a list of features.

    Raises:
        StoreError: the file is no GeoJSON.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            is_list = file.read(64).lstrip().startswith("[")
            file.seek(0)
            source: Any = f"GeoJSON:{path.resolve()}"  # this driver and no other
            if is_list:
                source = f'{{"type": "FeatureCollection", "features": {file.read()}}}'.encode()
        with warnings.catch_warnings():  # of rings that are not closed, whose features come without a geometry
            warnings.simplefilter("ignore")
            found = geopandas.read_file(source, columns=_COLUMNS, force_2d=True, on_invalid="ignore")
    except (OSError, RuntimeError, ValueError) as exc:
        raise StoreError(
            f"{path} must be GeoJSON, but it cannot be read ({exc}); export it from QuPath as a FeatureCollection."
        ) from exc
    columns = {name: [_text(value) for value in found[name]] if name in found else "" for name in _COLUMNS}
    table = pd.DataFrame(columns, index=range(len(found))).rename(columns={"objectType": "object_type"})
    table["classification"] = [_class_name(text) for text in table["classification"]]
    return Features(np.asarray(found.geometry.array, dtype=object), table)


def _text(value: Any) -> str:
    """A property as text, "" if it is missing; objects stay JSON."""
    if isinstance(value, Mapping | list):
        return json.dumps(value)
    return "" if value is None or value != value else str(value)


def _class_name(text: str) -> str:
    """Name of a QuPath class, which is written as an object with `name` or `names`, formerly as text."""
    if not text.startswith("{"):
        return text
    found = json.loads(text)
    return str(found.get("name") or ": ".join(map(str, found.get("names") or ())))


def write_features(
    path: Path, outlines_px0: NDArray[Any], properties: Iterable[Mapping[str, Any]], ids: Sequence[str]
) -> None:
    """Write a FeatureCollection that QuPath opens, feature by feature.

    Args:
        path: file to write.
        outlines_px0: shapely polygons [level-0 px].
        properties: of each feature: objectType, name, classification, measurements.
        ids: of each feature; "" leaves it to QuPath.
    """
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for i, (outline, of_it, id_) in enumerate(zip(outlines_px0, properties, ids, strict=True)):
            feature = {"type": "Feature", **({"id": id_} if id_ else {}), "properties": of_it}
            body = json.dumps(feature, allow_nan=False, ensure_ascii=False)
            file.write(f'{"," if i else ""}\n{body[:-1]}, "geometry": {shapely.to_geojson(outline)}}}')
        file.write("\n]}\n")
