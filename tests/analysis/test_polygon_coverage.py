"""Exact areas of polygons on pixels, against shapely's intersections one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from superst_monai.analysis.polygon_coverage import polygon_shares

SHAPE = (20, 30)


def star(rng: np.random.Generator, x: float, y: float, radius: float, n: int) -> Any:
    """A random polygon round a place."""
    angle, reach = np.sort(rng.uniform(0, 2 * np.pi, n)), radius * rng.uniform(0.4, 1, n)
    return shapely.make_valid(shapely.Polygon(np.stack([x + reach * np.cos(angle), y + reach * np.sin(angle)], 1)))


def plain_shares(polygon: Any) -> NDArray[np.float64]:
    """Share of each pixel `(H, W)`, pixel by pixel."""
    height, width = SHAPE
    areas = [polygon.intersection(shapely.box(c, r, c + 1, r + 1)).area for r in range(height) for c in range(width)]
    return np.array(areas)


def polygons() -> list[Any]:
    """Stars of many sizes, with holes, in parts, off the box, along the grid lines, and nothing."""
    rng = np.random.default_rng(0)
    stars = [
        star(rng, *place, n) for place, n in [((10, 8, 6), 12), ((29, 19, 8), 30), ((0, 0, 9), 20), ((15, 10, 0.3), 7)]
    ]
    return [
        *stars,
        stars[0].difference(star(rng, 10, 8, 2, 9)),
        stars[0].union(shapely.box(20, 3, 24.5, 4)),
        shapely.box(2, 3, 5, 7),
        shapely.box(2.5, 3.25, 20.75, 3.5),
        shapely.box(4.2, 4.5, 9.5, 8.125),
        shapely.box(-5, -5, 100, 100),
        shapely.box(50, 50, 60, 60),
        shapely.box(30, 0, 40, 20),
        shapely.Polygon([(1, 1), (1, 18), (28, 18), (28, 1)], holes=[[(2, 2), (27, 2), (27, 17), (2, 17)]]),
        shapely.Polygon(),
    ]


def test_shares_are_the_areas_of_intersections() -> None:
    """Each pixel's share is the area of its intersection; each pair comes once and has an area."""
    shapes = polygons()
    found = polygon_shares(np.array(shapes, object), SHAPE)
    dense = np.zeros((len(shapes), SHAPE[0] * SHAPE[1]))
    np.add.at(dense, (found.support, found.pixel), found.share)
    assert len(set(zip(found.support.tolist(), found.pixel.tolist(), strict=True))) == len(found.pixel)
    assert (found.share > 0).all()
    for got, shape in zip(dense, shapes, strict=True):
        np.testing.assert_allclose(got, plain_shares(shape), atol=1e-6)


@pytest.mark.parametrize("shapes", [[], [shapely.Polygon()], [shapely.box(50, 50, 60, 60)]])
def test_nothing_covers_nothing(shapes: list[Any]) -> None:
    """No polygon, an empty one and one off the box have no pixel."""
    assert len(polygon_shares(np.array(shapes, object), SHAPE).pixel) == 0


def test_neighbours_share_out_their_pixels() -> None:
    """Polygons that tile the box cover each pixel exactly once, whatever runs through it."""
    rng = np.random.default_rng(1)
    points = shapely.MultiPoint(rng.uniform((0, 0), SHAPE[::-1], (60, 2)))
    box = shapely.box(0, 0, SHAPE[1], SHAPE[0])
    cells = shapely.intersection(shapely.get_parts(shapely.voronoi_polygons(points, extend_to=box)), box)
    found = polygon_shares(cells, SHAPE)
    np.testing.assert_allclose(np.bincount(found.pixel, found.share, SHAPE[0] * SHAPE[1]), 1, atol=1e-5)
    np.testing.assert_allclose(np.bincount(found.support, found.share), shapely.area(cells), rtol=1e-5)
