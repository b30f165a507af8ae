"""The guard tells a slide like the training from one that is not: truth tests with a network trained on a tissue."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from scipy import ndimage
from spatialdata import get_extent, read_zarr

from superst_monai.data.section import Section, join_section
from superst_monai.data.slide import Slide
from superst_monai.data.synthetic import make_tissue
from superst_monai.engines.domain import training_domain
from superst_monai.errors import RunError
from superst_monai.inference.canvas import canvas_of
from superst_monai.inference.colours import ColourReading
from superst_monai.inference.domain import TileGuard, in_words, read_domain, summarise
from superst_monai.inference.maps_store import open_store
from superst_monai.inference.posterior import TileSampler, Window
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.slide_map import predict
from superst_monai.inference.tiles import draw_part, read_part, tissue_tiles
from superst_monai.model.objective import FusionVAE
from superst_monai.transforms.stain_moments import N_FEATURES
from superst_monai.transforms.tissue import find_tissue

BLOCK = 4  # px, of a network of depth 3


def tissue_section(seed: int) -> Section:
    """A synthetic tissue of 200 x 200 px at 4 um."""
    image = make_tissue(seed=seed, size_px=800, n_genes=12).image
    return join_section(Slide.from_array(image, mpp=1.0, name="A"), None, name="A", find_tissue=find_tissue)


def learn_image(network: FusionVAE, section: Section, steps: int = 100) -> None:
    """Train the part of the objective that is about the image, on random patches."""
    torch.manual_seed(0)
    whole = canvas_of(section, section.mpp, find_tissue).image(Window(0, 0, 200, 200))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    network.train()
    for _ in range(steps):
        image = torch.stack([whole[:, r : r + 48, c : c + 48] for r, c in torch.randint(0, 152, (4, 2)).tolist()])
        laws = network.guide.encoder(image)
        h = network.generative.decode([mean + sd * torch.randn_like(mean) for mean, sd in laws])
        loss = -torch.distributions.Normal(*network.generative.image_decoder(h)).log_prob(image).sum()
        loss = loss + sum(((m**2 + s**2 - 1) / 2 - s.log()).sum() for m, s in laws)
        optimizer.zero_grad()
        (loss / image.numel()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()


@pytest.fixture(scope="module")
def known() -> Section:
    """What the run was trained on."""
    return tissue_section(1)


@pytest.fixture(scope="module")
def trained(known: Section, tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Path]) -> Run:
    """A run that has learnt the histology of one tissue, and knows its domain."""
    path = make_run(tmp_path_factory.mktemp("domain") / "run")
    network = FusionVAE(7, n_sections=2, n_metagenes=4, depth=3, width=4)
    learn_image(network, known)
    torch.save(network.state_dict(), path / "models" / "model.pt")
    domain = training_domain(network, [known])
    assert domain is not None
    digest = hashlib.sha256((path / "models" / "model.pt").read_bytes()).hexdigest()
    (path / "domain.json").write_text(domain.to_json(digest))
    return load_run(path)


def measure(run: Run, section: Section, tile_px: int = 64, colours: ColourReading | None = None) -> np.ndarray:
    """The layer `(3, 50, 50)` of a section, put together from tiles."""
    canvas = canvas_of(section, section.mpp, find_tissue)
    sampler, domain = TileSampler(run.network, samples=1, seed=0), read_domain(run)
    assert domain is not None
    layer = np.zeros((3, 50, 50), np.float32)
    for tile in tissue_tiles(canvas.covered, tile_px):
        part = read_part(canvas, sampler, tile, None if colours is None else colours.over(canvas.stains, section.mpp))
        guard = TileGuard(domain, sampler, part)
        list(draw_part(sampler, part, guard))
        row, col = tile.row // BLOCK, tile.col // BLOCK
        layer[:, row : row + guard.layer.shape[1], col : col + guard.layer.shape[2]] = guard.layer
    return layer


def test_a_second_reading_leaves_the_guard_alone(trained: Run, known: Section) -> None:
    """It has tiles drawn with a margin, which is not the tile's."""
    none = (0.0,) * N_FEATURES
    one = (1.0,) * N_FEATURES
    kernel = (none,), ((0.0,),) * 4
    reading = ColourReading(0.5, 0.5, 12.0, 0.0, none, (0.0,) * 4, (none,) * 4, *kernel, none, one, (1.0,) * 4, 9, 1)
    np.testing.assert_allclose(measure(trained, known, 64, reading), measure(trained, known), rtol=1e-3, atol=1e-3)


def beyond(layer: np.ndarray) -> float:
    """Share of the blocks beyond the 99th percentile of the training, as the summary has it."""
    share = summarise(zarr.array(layer, chunks=(3, 16, 16)))["beyond_99"]
    assert share == pytest.approx((layer[0] > 1).sum() / (layer[0] > 0).sum(), abs=1e-6)
    return float(share)


def test_slides_like_the_training_are_in_domain(trained: Run, known: Section) -> None:
    """The training section, and another tissue of the same stain and scanner."""
    for section in (known, tissue_section(2)):
        share = beyond(measure(trained, section))
        assert share < 0.05
        assert in_words({"beyond_99": share}).endswith(": in domain")


@pytest.mark.parametrize(
    "change",
    [
        lambda image: 255 - image,
        lambda image: image[..., ::-1],
        lambda image: np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2),
        lambda image: ndimage.gaussian_filter(image, (6, 6, 0)),
    ],
    ids=["inverted", "blue", "grey", "blurred"],
)
def test_other_images_are_out_of_domain(trained: Run, known: Section, change: Callable) -> None:
    """The training section inverted, blue, grey or out of focus is none that the network has learnt."""
    share = beyond(measure(trained, replace(known, image=change(known.image).astype(np.uint8).copy())))
    assert share > 0.3
    assert "out of domain" in in_words({"beyond_99": share})


def test_only_what_is_strange_is_far(trained: Run, known: Section) -> None:
    """A blue fold in a known tissue is far, the tissue away from it is as near as before."""
    image = known.image.copy()
    image[80:120, 80:120] = image[80:120, 80:120, ::-1]
    before, after = measure(trained, known)[0], measure(trained, replace(known, image=image))[0]
    assert np.median(after[20:30, 20:30]) > 3 * np.median(before[20:30, 20:30])
    np.testing.assert_allclose(after[:11], before[:11], rtol=1e-3)


def test_the_layer_has_no_seams_and_covers_the_tissue(trained: Run, known: Section) -> None:
    """Any tiling gives the same layer; it is zero exactly where a block is not tissue by half."""
    small, large = measure(trained, known, 32), measure(trained, known, 256)
    np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-4)
    half = known.tissue.reshape(50, BLOCK, 50, BLOCK).mean(axis=(1, 3)) >= 0.5
    np.testing.assert_array_equal(large[0] > 0, half)
    np.testing.assert_array_equal(large[:, ~half], 0)


def test_the_store_holds_the_layer_and_the_verdict(trained: Run, known: Section, tmp_path: Path) -> None:
    """The image `domain` lies where the tissue does, in micrometres; record and words tell its share."""
    said: list[str] = []
    out = predict(trained, known, tmp_path / "a.zarr", samples=1, tile_px=64, tell=said.append)
    sdata = read_zarr(out)
    extent = get_extent(sdata["domain"], coordinate_system="global")
    assert (extent["x"], extent["y"]) == ((0.0, 800.0), (0.0, 800.0))
    assert list(sdata["domain"].coords["c"].values) == ["distance", "loglik", "kl"]
    np.testing.assert_allclose(sdata["domain"].values, measure(trained, known), rtol=1e-3, atol=1e-4)
    group, meta = open_store(out)
    assert meta["record"]["domain"] == summarise(group["images/domain/s0"])
    assert said[-1] == in_words(meta["record"]["domain"])
    assert meta["block_px"] == BLOCK


def test_a_run_without_its_domain_has_no_guard_and_says_so(
    trained: Run, known: Section, tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    """An old run, or a law of other weights, predicts without a layer; a damaged law is refused."""
    said: list[str] = []
    path = make_run(tmp_path / "run")
    out = predict(load_run(path), known, tmp_path / "a.zarr", samples=1, tell=said.append)
    guard = "the run does not know the domain of its training, so this prediction has no guard; train again for one"
    assert said[0] == guard
    group, meta = open_store(out)
    assert "domain" not in group["images"]
    assert (meta["record"]["domain"], meta["block_px"]) == (None, None)
    shutil.copy(trained.path / "domain.json", path)
    assert read_domain(load_run(path)) is None
    (path / "domain.json").write_text("{")
    with pytest.raises(RunError, match=r"domain\.json is damaged .*; restore it .*, or delete it"):
        read_domain(load_run(path))


def test_a_map_without_a_block_of_tissue_is_not_judged() -> None:
    """Nothing is said of a slide whose tissue is all crumbs."""
    summary = summarise(zarr.zeros((3, 5, 5), chunks=(3, 2, 2)))
    assert summary == {"blocks": 0, "beyond_99": None}
    assert "not known" in in_words(summary)
