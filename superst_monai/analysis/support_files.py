"""Supports from files: spots of a section, outlines in GeoJSON, label images, and the `regions` of a section."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely

from superst_monai.analysis.geojson_files import Features, read_features
from superst_monai.analysis.label_files import LABEL_SUFFIXES, open_labels
from superst_monai.analysis.support_grid import Grid
from superst_monai.analysis.support_labels import Labels, Spots
from superst_monai.analysis.support_polygons import Polygons
from superst_monai.analysis.supports import SharedPixels, Supports
from superst_monai.data.store import read_section
from superst_monai.errors import RunError, StoreError
from superst_monai.inference.maps import Maps

_OUTLINES = (".geojson", ".json")
_OBJECTS = {
    "spots": ("a section", (".zarr",)),
    "cells": ("GeoJSON or a label image", (*_OUTLINES, *LABEL_SUFFIXES)),
    "regions": ("GeoJSON, a label image, or a section with shapes `regions`", (*_OUTLINES, *LABEL_SUFFIXES, ".zarr")),
}
_PROPERTIES = ("id", "name", "classification", "object_type")


def check_supports(to: str, objects: Path | None, bin_um: float | None) -> None:
    """Refuse what `open_supports` cannot open, before the work.

    Raises:
        RunError: all that is wrong.
    """
    if faults := support_faults(to, objects, bin_um):
        raise RunError(f"these options do not go together: {'; '.join(faults)}.")


def support_faults(to: str, objects: Path | None, bin_um: float | None) -> list[str]:
    """What `open_supports` cannot open, one sentence a fault."""
    what, suffixes = _OBJECTS.get(to, ("", ()))
    rules = {
        f"supports are pixels, bins, {', '.join(_OBJECTS)}, got {to}": to in ("pixels", "bins", *_OBJECTS),
        "bins need --bin-um, for example 50": to != "bins" or bin_um is not None,
        "--bin-um is for bins": to == "bins" or bin_um is None,
        f"{to} need --objects, {what}": to not in _OBJECTS or objects is not None,
        "--objects is for spots, cells and regions": to in _OBJECTS or objects is None,
        f"--objects must be {what}, got {objects}": objects is None or objects.suffix.lower() in suffixes,
    }
    return [rule for rule, holds in rules.items() if not holds]


@contextmanager
def open_supports(
    maps: Maps, to: str, objects: Path | str | None = None, *, bin_um: float | None = None
) -> Iterator[Supports]:
    """Open what a prediction is summed over.

    Args:
        maps: of the slide.
        to: "pixels", "bins", "spots", "cells" or "regions".
        objects: of spots the section; of cells and regions GeoJSON in level-0 pixels, as QuPath writes it, or a label
            image of the whole slide, of any resolution; of regions also a section with shapes `regions` [um].
        bin_um: side of a bin [um].

    Raises:
        RunError: these do not go together, or the section has no such shapes.
        SuperstError: a file cannot be read, or does not fit the slide.
    """
    path = None if objects is None else Path(objects)
    check_supports(to, path, bin_um)
    if path is None:
        yield Grid(maps, bin_um)
    elif to == "spots":
        yield Spots(maps, read_section(path))
    else:
        with open_shapes(maps, path, to) as shapes:
            yield shapes


@contextmanager
def open_shapes(maps: Maps, path: Path, kind: str) -> Iterator[SharedPixels]:
    """Open cells or regions of any form; see `open_supports`."""
    suffix = path.suffix.lower()
    if suffix in LABEL_SUFFIXES:
        with open_labels(path) as image:
            yield Labels(maps, image, _width_um(maps) / image.shape[1], kind=kind)
    else:
        features = _section_features(path, maps) if suffix == ".zarr" else read_features(path)
        yield Polygons(maps, features, kind=kind, apart=kind == "cells")


def _width_um(maps: Maps) -> float:
    """Width of the slide [um], as exactly as it is known."""
    slide = maps.record["slide"]
    return float(slide["width_px0"] * slide["mpp_x"]) if "width_px0" in slide else maps.shape[1] * maps.mpp


def _section_features(path: Path, maps: Maps) -> Features:
    """The shapes `regions` of a section, as if they came from GeoJSON."""
    from spatialdata import read_zarr, transform

    try:
        shapes: Any = read_zarr(path, selection=("shapes",)).shapes
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise StoreError(f"{path} cannot be read as a section ({exc}); pass the store of `superst prepare`.") from exc
    if "regions" not in shapes:
        raise RunError(
            f"section {path} must have shapes `regions`, got {', '.join(shapes) or 'none'}; add annotations under this "
            "name with spatialdata, or pass GeoJSON."
        )
    frame = transform(shapes["regions"], to_coordinate_system="global")  # [um]
    slide = maps.record["slide"]
    mpp = np.array([float(slide["mpp_x"]), float(slide["mpp_y"])])
    outlines = np.asarray(shapely.transform(np.asarray(frame.geometry), lambda xy: xy / mpp))
    columns = {c: frame[c].astype(str).to_numpy() if c in frame else np.full(len(frame), "") for c in _PROPERTIES}
    if "name" not in frame:
        columns["name"] = frame.index.astype(str).to_numpy()
    return Features(outlines, pd.DataFrame(columns))
