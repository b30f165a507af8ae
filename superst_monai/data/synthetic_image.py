"""The picture of a synthetic tissue: where its cells lie, which shape each has, and how the stained slide looks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import qmc

Floats = NDArray[np.float32]

REACH_UM = 35.2  # half side of the window a cell is drawn in [um]; the largest corner lies 34.8 um from its centre
_APOTHEM_UM = (18.0, 22.0, 15.2)  # circle, square, triangle [um]: 36 um across, 44 um and 53 um a side
_CORNERS = (0, 4, 3)  # sides of each shape; 0 is a circle
_DISTANCE_UM = 46.4  # least distance of two cell centres [um]
_LENGTH_UM = 220.0  # correlation length of the regions [um]
_STAINS = np.array(
    [[0.65, 0.70, 0.29], [0.10, 0.93, 0.28]], dtype=np.float32
)  # haematoxylin, eosin; optical density RGB
# Haematoxylin as in Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 23 (2001) 291-299; eosin by eye, a warmer pink.


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a tissue, N of them; `kind` is 1 circle, 2 square, 3 triangle."""

    x_um: NDArray[np.float64]
    y_um: NDArray[np.float64]
    kind: NDArray[np.int64]
    angle: NDArray[np.float64]
    size: NDArray[np.float64]


def draw_tissue(rng: np.random.Generator, size_px: int) -> NDArray[np.bool_]:
    """Draw a blob that fills most of a square slide.

    Args:
        rng: source of the outline.
        size_px: side of the slide [px].

    Returns:
        Tissue mask `(H, W)`; its outline stays at least 1 % of the side away from the border.
    """
    axis = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px - 0.5
    angle = np.arctan2(axis[:, None], axis[None])  # (H, W)
    wave = np.arange(2, 6)
    height, phase = rng.uniform(0.0, 0.05, 4) / np.sqrt(wave), rng.uniform(0, 2 * np.pi, 4)
    grid = np.linspace(-np.pi, np.pi, 1441)
    outline = 1.0 + (height * np.cos(wave * grid[:, None] + phase)).sum(1)  # (1441,)
    radius = np.interp(angle, grid, 0.48 * outline / outline.max())
    return np.asarray(np.hypot(axis[:, None], axis[None]) < radius)


def place_cells(rng: np.random.Generator, tissue: NDArray[np.bool_], mpp: float) -> Cells:
    """Scatter cells over the tissue; the mixture of shapes and their density vary smoothly over it.

    Args:
        rng: source of every draw.
        tissue: where cells may lie `(H, W)`.
        mpp: um per pixel.

    Returns:
        Cells whose whole drawing window lies in the tissue, at least 46 um apart.
    """
    side_um = tissue.shape[0] * mpp
    points = qmc.PoissonDisk(d=2, radius=_DISTANCE_UM / side_um, rng=rng).fill_space() * side_um  # (N, 2)
    fields = [_field_at(rng, points, side_um) for _ in range(4)]
    present = rng.random(len(points)) < 1.0 / (1.0 + np.exp(-2.5 - 1.5 * fields[3]))
    score = 1.2 * np.stack(fields[:3], axis=1) + rng.gumbel(size=(len(points), 3))  # argmax ~ softmax of the fields
    angle, size = rng.uniform(0, 2 * np.pi, len(points)), rng.uniform(0.93, 1.12, len(points))
    corner = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * REACH_UM
    corner_px = np.floor((points[:, None] + corner) / mpp).astype(np.int64)  # (N, 4, 2)
    on_slide = ((corner_px >= 0) & (corner_px < tissue.shape[0])).all((1, 2))
    safe_px = corner_px.clip(0, tissue.shape[0] - 1)
    keep = present & on_slide & tissue[safe_px[..., 1], safe_px[..., 0]].all(1)
    return Cells(points[keep, 0], points[keep, 1], score.argmax(1)[keep].astype(np.int64) + 1, angle[keep], size[keep])


def draw_cells(cells: Cells, size_px: int, mpp: float) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64]]:
    """Rasterise the cells.

    Args:
        cells: what to draw.
        size_px: side of the slide [px].
        mpp: um per pixel.

    Returns:
        Shape of each pixel `(H, W)` (0 none), its distance inside the outline `(H, W)` [um; negative outside, -10 far
        from every cell], and the cell `(H, W)` it belongs to (-1 none).
    """
    row, col, dx_um, dy_um = window(cells.x_um / mpp, cells.y_um / mpp, REACH_UM / mpp, size_px)
    depth = _depth_um(cells, dx_um * mpp, dy_um * mpp)  # (N, w, w)
    deepest = np.full((size_px, size_px), -10.0, dtype=np.float32)
    np.maximum.at(deepest, (row, col), depth)
    owner = np.full((size_px, size_px), -1, dtype=np.int64)
    wins = (depth > 0) & (depth == deepest[row, col])
    owner[row[wins], col[wins]] = np.broadcast_to(np.arange(len(depth))[:, None, None], depth.shape)[wins]
    return np.append(cells.kind, 0)[owner], deepest, owner


def window(
    x_px: NDArray[np.float64], y_px: NDArray[np.float64], reach_px: float, size_px: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """List the pixels around points, each a square window; pixels beyond the slide repeat its border.

    Args:
        x_px: points `(N,)` [px, corner convention].
        y_px: points `(N,)` [px, corner convention].
        reach_px: half side of the window [px].
        size_px: side of the slide [px].

    Returns:
        Row, column and offsets x and y from point to pixel centre [px], each `(N, w, w)`. Border repeats keep the
        offset they have off the slide.
    """
    step = np.arange(-int(np.ceil(reach_px)) - 1, int(np.ceil(reach_px)) + 2)
    row, col = np.broadcast_arrays(
        np.floor(y_px).astype(np.int64)[:, None, None] + step[None, :, None],
        np.floor(x_px).astype(np.int64)[:, None, None] + step[None, None, :],
    )  # (N, w, w)
    dx = (col + 0.5 - x_px[:, None, None]).astype(np.float32)
    dy = (row + 0.5 - y_px[:, None, None]).astype(np.float32)
    return row.clip(0, size_px - 1), col.clip(0, size_px - 1), dx, dy


def stain(
    rng: np.random.Generator, tissue: NDArray[np.bool_], depth_um: Floats, owner: NDArray[np.int64], mpp: float
) -> NDArray[np.uint8]:
    """Stain the tissue: pink fibrous stroma, purple cells of one colour whatever their shape, white glass.

    Args:
        rng: source of texture and noise.
        tissue: tissue mask `(H, W)`.
        depth_um: distance inside the nearest cell's outline `(H, W)` [um].
        owner: cell of each pixel `(H, W)`, -1 none.
        mpp: um per pixel.

    Returns:
        RGB image `(H, W, 3)`; transmitted light falls exponentially with stain (Beer-Lambert).
    """
    shape = tissue.shape
    cell = (depth_um / mpp + 0.5).clip(0, 1)  # share of the pixel inside a cell
    chromatin = _unit(gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 1.6 / mpp))
    tint = np.append(rng.normal(1.0, 0.12, int(owner.max(initial=-1)) + 1).clip(0.7, 1.3), 1.0).astype(np.float32)
    rim = np.exp(-(((depth_um - 1.0) / 1.2) ** 2))
    haematoxylin = 0.06 + cell * tint[owner] * (0.95 + 0.16 * chromatin + 0.25 * rim)
    patchy = _field(rng, shape, 300.0 / mpp)
    eosin = (0.34 + 0.07 * patchy + 0.06 * _fibres(rng, shape, mpp)).clip(0.05, None) * (1 - 0.3 * cell)
    inside = tissue * gaussian_filter(tissue.astype(np.float32), 2.0 / mpp)
    density = np.stack([haematoxylin, eosin], axis=-1) * inside[..., None] @ _STAINS  # (H, W, 3)
    light = 243.0 * np.exp(-density) + rng.normal(0, 2.5, (*shape, 3)).astype(np.float32)
    return np.asarray(light.clip(0, 255).round().astype(np.uint8))


def _fibres(rng: np.random.Generator, shape: tuple[int, ...], mpp: float) -> Floats:
    """Texture `(H, W)` of fibres that run along x or y, turning smoothly from one to the other."""
    grain = rng.standard_normal(shape, dtype=np.float32)
    along_x = _unit(gaussian_filter(grain, (1.5 / mpp, 9.0 / mpp)))
    along_y = _unit(gaussian_filter(grain, (9.0 / mpp, 1.5 / mpp)))
    turn = 1 / (1 + np.exp(-4 * _field(rng, shape, 150.0 / mpp)))
    return np.asarray(turn * along_x + (1 - turn) * along_y, dtype=np.float32)


def _depth_um(cells: Cells, dx_um: Floats, dy_um: Floats) -> Floats:
    """Distance of pixels inside the outline of their cell `(N, w, w)` [um], negative outside.

    A regular polygon is where the distance along each side's normal is below the apothem.
    """
    depth = np.empty_like(dx_um)
    for kind, (apothem, corners) in enumerate(zip(_APOTHEM_UM, _CORNERS, strict=True), start=1):
        mine = cells.kind == kind
        dx, dy = dx_um[mine], dy_um[mine]
        far = np.hypot(dx, dy) if corners == 0 else np.full_like(dx, -np.inf)
        for side in range(corners):
            normal = (cells.angle[mine] + 2 * np.pi * side / corners)[:, None, None].astype(np.float32)
            far = np.maximum(far, dx * np.cos(normal) + dy * np.sin(normal))
        depth[mine] = (apothem * cells.size[mine])[:, None, None] - far
    return depth


def _field_at(rng: np.random.Generator, points_um: NDArray[np.float64], side_um: float) -> NDArray[np.float64]:
    """Values at points `(N, 2)` of a smooth random field of about unit variance `(N,)`."""
    knots = rng.standard_normal((int(np.ceil(side_um / _LENGTH_UM)) + 4,) * 2)
    return np.asarray(map_coordinates(knots, points_um.T / _LENGTH_UM + 1.5, order=3) * 1.3)


def _field(rng: np.random.Generator, shape: tuple[int, ...], length_px: float) -> Floats:
    """A smooth random field `(H, W)` of about unit variance."""
    knots = rng.standard_normal([int(np.ceil(n / length_px)) + 2 for n in shape], dtype=np.float32)
    return _unit(np.asarray(Image.fromarray(knots).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)))


def _unit(values: Floats) -> Floats:
    """Scale a field to zero mean and unit variance."""
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-6), dtype=np.float32)
