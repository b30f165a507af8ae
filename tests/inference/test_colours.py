"""The second reading over a map: its formula against a plain version, its laws, its file, and tiles without seams."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from superst_monai.data.section import Section
from superst_monai.errors import RunError
from superst_monai.inference import colours
from superst_monai.inference.canvas import canvas_of
from superst_monai.inference.colours import (
    FILE,
    MOST,
    ColourPlane,
    ColourReading,
    colours_over,
    in_words,
    read_colours,
)
from superst_monai.inference.maps import open_maps
from superst_monai.inference.posterior import ORIENTATIONS, TileSampler
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.section_field import spot_pixels
from superst_monai.inference.slide_map import predict
from superst_monai.inference.tiles import draw_part, read_part, tissue_tiles
from superst_monai.transforms.labels import spot_labels
from superst_monai.transforms.stain_moments import N_FEATURES, StainMoments
from superst_monai.transforms.tissue import find_tissue

K, MPP = 4, 4.0
N_LANDMARKS = 6


def reading(seed: int = 0, *, depth: float = 0.5, composition: float = 0.3, **change: Any) -> ColourReading:
    """Regressions with random weights, of the size that standardised features have."""
    rng = np.random.default_rng(seed)
    made = ColourReading(
        depth_share=depth,
        composition_share=composition,
        sigma_um=9.0,
        intercept=-7.0,
        weights=tuple(rng.normal(0, 0.1, N_FEATURES)),
        composition_intercept=tuple(rng.normal(0, 0.5, K)),
        composition_weights=tuple(tuple(rng.normal(0, 0.05, N_FEATURES)) for _ in range(K)),
        landmarks=tuple(tuple(rng.normal(0, 1, N_FEATURES)) for _ in range(N_LANDMARKS)),
        composition_kernel=tuple(tuple(rng.normal(0, 0.5, N_LANDMARKS)) for _ in range(K)),
        mean=tuple(rng.normal(0.3, 0.1, N_FEATURES)),
        sd=tuple(rng.uniform(0.2, 0.4, N_FEATURES)),
        umis=tuple(rng.uniform(50, 200, K)),
        n_spots=90,
        n_withheld=10,
    )
    return replace(made, **change)


def stains(seed: int = 0) -> StainMoments:
    """A slide of 5 x 6 cells."""
    planes = np.random.default_rng(seed).uniform(0.2, 0.5, (7, 5, 6)).astype(np.float32)
    planes[4:] = planes[1:4] ** 2 + 0.05
    return StainMoments(planes, 32.0)


def scaled(seed: int = 0, side: int = 30) -> np.ndarray:
    """Scaled activity of a box whose corner is at row 4, column 6, with a margin of 8 px."""
    return np.random.default_rng(seed).gamma(2.0, 1e-4, (K, side + 16, side + 16)).astype(np.float32)


def plain(plane_of: ColourReading, moments: StainMoments, values: np.ndarray, row: int, col: int) -> np.ndarray:
    """`ColourPlane.over` with a margin of 8, pixel by pixel in double precision."""
    said, sigma = plane_of.said(moments).astype(float), plane_of.sigma_um / MPP
    reach = int(3 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    umis, out = np.asarray(plane_of.umis), np.zeros((K, values.shape[1] - 16, values.shape[2] - 16))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            box = values[:, i + 8 - reach : i + 9 + reach, j + 8 - reach : j + 9 + reach].astype(float)
            around = (box * kernel).sum((1, 2))
            y, x = ((n + 0.5) * MPP / moments.cell_um - 0.5 for n in (i + row, j + col))
            y, x = (float(np.clip(v, 0, n - 1)) for v, n in zip((y, x), said.shape[1:], strict=True))
            top, left = min(int(y), said.shape[1] - 2), min(int(x), said.shape[2] - 2)
            down, across = y - top, x - left
            upper = said[:, top, left] * (1 - across) + said[:, top, left + 1] * across
            lower = said[:, top + 1, left] * (1 - across) + said[:, top + 1, left + 1] * across
            here = upper * (1 - down) + lower * down
            change = np.clip(plane_of.depth_share * (here[0] - np.log((umis @ around) / MPP**2)), -MOST, MOST)
            tilt = np.clip(plane_of.composition_share * (here[1:] - np.log(around / around.sum())), -MOST, MOST)
            pixel = values[:, i + 8, j + 8] * np.exp(tilt)
            out[:, i, j] = pixel * np.exp(change) * (umis @ values[:, i + 8, j + 8]) / (umis @ pixel)
    return out


def test_what_the_regression_says_is_its_formula_cell_by_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear in the standardised features, and their likeness to the landmarks; the same in blocks of any size."""
    law, moments = reading(), stains()
    features = np.stack(list(moments.features())).reshape(N_FEATURES, -1).T.astype(float)
    expected = np.empty((len(features), 1 + K))
    for cell, values in enumerate(features):
        z = np.clip((values - law.mean) / np.asarray(law.sd), -4, 4)
        alike = [np.exp(-((z - mark) ** 2).sum() / (2 * N_FEATURES)) for mark in np.asarray(law.landmarks)]
        assert 0.01 < max(alike) < 1
        expected[cell, 0] = law.intercept + z @ law.weights
        scores = np.asarray(law.composition_intercept) + np.asarray(law.composition_weights) @ z
        scores += np.asarray(law.composition_kernel) @ alike
        expected[cell, 1:] = scores - np.log(np.exp(scores).sum())
    for at_once in (16_384, 7):
        monkeypatch.setattr(colours, "_CELLS_AT_ONCE", at_once)
        np.testing.assert_allclose(law.said(moments), expected.T.reshape(-1, 5, 6), atol=2e-5)


def test_the_plane_is_the_formula_pixel_by_pixel() -> None:
    """Gaussian, interpolation, both parts and the UMIs that composition leaves alone."""
    law, moments, values = reading(), stains(), scaled(side=12)
    found = ColourPlane(law, moments, MPP).over(values, row=4, col=6, margin=8)
    np.testing.assert_allclose(found, plain(law, moments, values, 4, 6), rtol=2e-4)


def test_no_part_changes_nothing_and_the_whole_gives_what_the_regression_says() -> None:
    """On an even map: with parts 0 the map itself, with parts 1 what the regression says, halfway their mean."""
    moments, values = stains(), np.tile(scaled()[:, :1, :1], (1, 46, 46))
    umis = np.asarray(reading().umis)
    level = float(np.log(umis @ values[:, 0, 0] / MPP**2))

    def over(depth: float, composition: float) -> np.ndarray:
        law = reading(depth=depth, composition=composition, intercept=level)
        return np.log(ColourPlane(law, moments, MPP).over(values, row=4, col=6, margin=8))

    none, half, deep, whole = over(0.0, 0.0), over(0.5, 0.0), over(1.0, 0.0), over(1.0, 1.0)
    np.testing.assert_allclose(none, np.log(values[:, 8:-8, 8:-8]), rtol=1e-5)
    np.testing.assert_allclose(half, (none + deep) / 2, atol=1e-4)
    y, x = ((np.arange(30) + first + 0.5) * MPP / 32.0 - 0.5 for first in (4, 6))
    said = reading(intercept=level).said(moments)
    expected = np.stack([map_coordinates(plane, np.meshgrid(y, x, indexing="ij"), order=1) for plane in said])
    np.testing.assert_allclose(np.log(np.tensordot(umis, np.exp(whole), axes=1) / MPP**2), expected[0], rtol=1e-4)
    np.testing.assert_allclose(whole - whole[:1], expected[1:] - expected[1:2], atol=1e-3)


def test_composition_leaves_every_pixel_its_umis_and_depth_every_pixel_its_composition() -> None:
    """Each part changes what it is of, and nothing else."""
    moments, values = stains(), scaled()
    inner, umis = values[:, 8:-8, 8:-8], np.asarray(reading().umis)
    tilted = ColourPlane(reading(depth=0.0, composition=0.7), moments, MPP).over(values, row=0, col=0, margin=8)
    assert np.abs(tilted / inner - 1).max() > 0.05
    np.testing.assert_allclose(np.tensordot(umis, tilted, axes=1), np.tensordot(umis, inner, axes=1), rtol=1e-4)
    scaled_up = ColourPlane(reading(depth=0.7, composition=0.0), moments, MPP).over(values, row=0, col=0, margin=8)
    ratio = scaled_up / inner
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-4)


def test_a_change_is_bounded_and_nothing_stays_nothing() -> None:
    """However far the readings are apart, a pixel's UMIs change by e^2 at most; zero has no factor."""
    values = scaled()
    values[:, 20:30, 20:30] = 0
    for intercept, bound in ((60.0, MOST), (-60.0, -MOST)):
        law = reading(depth=1.0, composition=0.0, intercept=intercept)
        found = ColourPlane(law, stains(), MPP).over(values, row=0, col=0, margin=8)
        assert (found[:, 12:22, 12:22] == 0).all()
        np.testing.assert_allclose(found[:, :10], values[:, 8:18, 8:-8] * np.exp(bound), rtol=1e-4)


def whole_map(run: Run, section: Section, tile_px: int, law: ColourReading) -> np.ndarray:
    """All samples put together from tiles, `(N, K, H, W)`."""
    canvas = canvas_of(section, section.mpp, find_tissue)
    sampler, colours = TileSampler(run.network, samples=2, seed=5), law.over(canvas.stains, section.mpp)
    out = np.zeros((2, K, *canvas.shape), np.float32)
    for tile in tissue_tiles(canvas.covered, tile_px):
        part = read_part(canvas, sampler, tile, colours)
        for n, values in draw_part(sampler, part):
            view = out[n, :, tile.row : tile.row + tile.height, tile.col : tile.col + tile.width]
            view[(slice(None), *part.place)] = values
    return out


def test_tiles_have_no_seams(run: Run, section: Section) -> None:
    """Small tiles, large ones or one piece give the same map, zero off the tissue and the spots."""
    law = reading(sigma_um=20.0)
    whole = whole_map(run, section, 256, law)
    assert ((whole > 0).any((0, 1)) == canvas_of(section, section.mpp, find_tissue).covered).all()
    for tile_px in (32, 128):
        tiled = whole_map(run, section, tile_px, law)
        assert (np.abs(tiled - whole) / np.maximum(whole, 1e-30)).max() < 1e-4


@pytest.fixture
def told(make_run: Callable[..., Path], tmp_path: Path) -> Run:
    """A run with a second reading."""
    run = load_run(make_run(tmp_path / "run"))
    (run.path / FILE).write_text(reading(7).to_json(run.weights_sha256))
    return run


def test_predict_lays_the_reading_over_each_sample(told: Run, section: Section, tmp_path: Path) -> None:
    """The stored samples are those without it, changed as the whole map is; spots and guard follow."""
    law, canvas = read_colours(told), canvas_of(section, section.mpp, find_tissue)
    assert law == reading(7)
    plane = colours_over(told, canvas)
    assert plane is not None
    with_it = open_maps(predict(told, section, tmp_path / "with.zarr", samples=ORIENTATIONS, tile_px=64, seed=3))
    assert with_it.record["colours"] == {"depth": 0.5, "composition": 0.3}
    (told.path / FILE).unlink()
    without = open_maps(predict(told, section, tmp_path / "without.zarr", samples=ORIENTATIONS, seed=3))
    assert without.record["colours"] is None
    samples = {}
    for name, maps in (("with", with_it), ("without", without)):
        samples[name] = np.zeros((ORIENTATIONS, K, *canvas.shape), np.float32)
        for place, part in maps.tiles():
            samples[name][(slice(None), slice(None), *place)] = part
    covered = np.asarray(canvas.covered)
    for before, after in zip(samples["without"], samples["with"], strict=True):
        padded = np.pad(before, ((0, 0), (8, 8), (8, 8)))
        np.testing.assert_allclose(
            (plane.over(padded, row=0, col=0, margin=8) * covered)[:, covered], after[:, covered], rtol=0.02, atol=1e-7
        )
    pixels = spot_pixels(told.network, section, canvas, tile_px=64, seed=3, colours=plane)
    label = spot_labels(section)
    row, col = ((pixels.y_um / section.mpp).astype(int), (pixels.x_um / section.mpp).astype(int))
    assert (label[row, col] == pixels.spot.numpy()).all()
    np.testing.assert_allclose(pixels.scaled.numpy(), samples["with"].mean(0)[:, row, col].T, rtol=5e-3, atol=1e-7)


def test_a_reading_of_other_weights_is_not_used(told: Run) -> None:
    """Only the weights that it was fitted beside."""
    assert read_colours(replace(told, weights_sha256="0" * 64)) is None
    (told.path / FILE).unlink()
    assert read_colours(told) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth_share": 1.5}, "parts in \\[0, 1\\]"),
        ({"composition_share": float("nan")}, "parts in \\[0, 1\\]"),
        ({"sigma_um": 0.0}, "must hold finite numbers"),
        ({"sd": [0.0] * N_FEATURES}, "positive deviations"),
        ({"mean": [float("inf")] * N_FEATURES}, "must hold finite numbers"),
        ({"umis": [1.0] * 3}, r"lists of the sizes .* got .*\(3,\)"),
        ({"composition_weights": [[0.0]] * K}, r"lists of the sizes .* got .*\(4, 1\)"),
        ({"composition_kernel": [[0.0]] * K}, r"lists of the sizes .* got .*\(4, 1\)"),
        ({"landmarks": [[0.0] * 3] * N_LANDMARKS}, r"lists of the sizes .* got .*\(6, 3\)"),
        ({"landmarks": [[float("nan")] * N_FEATURES] * N_LANDMARKS}, "must hold finite numbers"),
        ({"weights": None}, "is damaged"),
        ({"mean": "abc"}, "is damaged"),
    ],
)
def test_a_damaged_file_is_refused(told: Run, change: dict[str, Any], words: str) -> None:
    """The error says what must hold and what came."""
    file = told.path / FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(RunError, match=words):
        read_colours(told)


def test_a_file_that_is_no_json_is_refused(told: Run) -> None:
    """A cut file names itself and the way out."""
    (told.path / FILE).write_text('{"weights_sha256":')
    with pytest.raises(RunError, match=r"colours\.json is damaged .* restore it from a copy of the run, or delete it"):
        read_colours(told)


def test_in_words() -> None:
    """One sentence with both parts."""
    assert in_words(reading()) == (
        "a regression on colours has a part of 50 % in depths and of 30 % in compositions, the network the rest; "
        "10 withheld spots decided that"
    )
