"""Laws of block statistics and of the law that is fitted to them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from superst_monai.errors import RunError
from superst_monai.model.domain import Domain, block_statistics
from superst_monai.model.objective import FusionVAE

SHA = "0" * 64


def normal_blocks(n: int, *, seed: int, shift: float = 0.0) -> np.ndarray:
    """Statistics `(3, n)` that are normal, and correlated, on the scales of the law."""
    rng = np.random.default_rng(seed)
    mixed = np.array([[1.0, 0, 0], [0.7, 0.5, 0], [-0.3, 0.2, 0.4]]) @ rng.standard_normal((3, n)) + shift
    return np.concatenate([np.sinh(mixed[:1]), np.exp(mixed[1:]) - 1e-3])


def test_statistics_are_the_means_of_the_pixels_terms() -> None:
    """Against plain loops over pixels and levels, block by block."""
    torch.manual_seed(0)
    network = FusionVAE(5, n_metagenes=2, depth=3, width=4).eval()
    image = torch.rand(1, 3, 16, 24) * 1.8 - 0.9
    with torch.no_grad():
        laws = network.guide.encoder(image)
        h = network.generative.decode([mean for mean, _ in laws])
        found = block_statistics(network.generative, image, laws, h)
        mean, sd = network.generative.image_decoder(h)
    assert found.shape == (4, 4, 6)
    for row, col in ((0, 0), (3, 5), (1, 2)):
        loglik = 0.0
        for r in range(4 * row, 4 * row + 4):
            for c in range(4 * col, 4 * col + 4):
                for channel in range(3):
                    m, s = (float(part[0, channel, r, c]) for part in (mean, sd))
                    z = (float(image[0, channel, r, c]) - m) / s
                    loglik += -z * z / 2 - math.log(s) - math.log(2 * math.pi) / 2
        assert float(found[0, row, col]) == pytest.approx(loglik / 16, rel=1e-4)
        for level, law in enumerate(laws):
            side = 4 >> level
            box = (0, slice(None), slice(side * row, side * (row + 1)), slice(side * col, side * (col + 1)))
            q = torch.distributions.Normal(*(part[box] for part in law))
            p = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
            total = float(torch.distributions.kl_divergence(q, p).sum())
            assert float(found[1 + level, row, col]) == pytest.approx(total / 16, rel=1e-4)


def test_a_hundredth_of_the_same_law_is_beyond() -> None:
    """Fresh blocks of the law exceed 1 one time in a hundred; blocks of another law do so all the time."""
    domain = Domain.fit([normal_blocks(3000, seed=s) for s in (0, 1)])
    assert domain is not None
    assert domain.n_blocks == 6000
    assert (domain.distance(normal_blocks(20000, seed=2)) > 1).mean() == pytest.approx(0.01, abs=0.004)
    assert (domain.distance(normal_blocks(2000, seed=3, shift=4.0)) > 1).mean() > 0.9


def test_the_distance_is_two_sided_and_keeps_the_shape() -> None:
    """Too well explained is as far as too badly; maps of statistics give maps of distances."""
    domain = Domain.fit([normal_blocks(2000, seed=0)])
    assert domain is not None
    centre = np.array(domain.mean)
    maps = np.empty((3, 2, 2))
    for at, away in np.ndenumerate(np.array([[0.0, 5.0], [-5.0, 1.0]])):
        maps[(slice(None), *at)] = [np.sinh(centre[0] + away), *np.exp(centre[1:]) - 1e-3]
    far = domain.distance(maps)
    assert far[0, 0] == pytest.approx(0, abs=1e-3)
    assert far[0, 1] == pytest.approx(far[1, 0], rel=1e-4)
    assert far[0, 1] > 1 > far[1, 1]


def test_what_differs_between_sections_belongs_to_the_domain() -> None:
    """Sections are judged by each other: where they differ, more is needed to be far."""
    same = Domain.fit([normal_blocks(1000, seed=s) for s in range(3)])
    differ = Domain.fit([normal_blocks(1000, seed=s, shift=0.8 * s) for s in range(3)])
    assert same is not None
    assert differ is not None
    new = normal_blocks(1000, seed=9, shift=2.4)
    assert (same.distance(new) > 1).mean() > 0.5
    assert (differ.distance(new) > 1).mean() < 0.1


def test_too_few_blocks_tell_nothing() -> None:
    """Ten blocks for each number of the law are the least; a small section counts with the others."""
    assert Domain.fit([normal_blocks(29, seed=0)]) is None
    assert Domain.fit([normal_blocks(0, seed=0)]) is None
    found = Domain.fit([normal_blocks(25, seed=0), normal_blocks(25, seed=1), normal_blocks(0, seed=2)])
    assert found is not None
    assert found.n_blocks == 50


def test_a_law_survives_its_file() -> None:
    """Written and read it gives the same distances; it is of one set of weights."""
    domain = Domain.fit([normal_blocks(500, seed=0)])
    assert domain is not None
    text = domain.to_json(SHA)
    assert Domain.from_json(text, SHA, depth=2) == domain
    assert Domain.from_json(text, "1" * 64, depth=2) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean": [0.0]}, "must hold 3 finite means"),
        ({"mean": ["a", "b", "c"]}, "is damaged"),
        ({"precision": [[1.0], [2.0, 3.0], [4.0]]}, "is damaged"),
        ({"percentile_99": float("nan")}, "must hold 3 finite means"),
        ({"percentile_99": 0.0}, "must hold 3 finite means"),
        ({"more": 1}, "is damaged"),
        ({"weights_sha256": None}, ""),
    ],
)
def test_a_damaged_file_is_refused(change: dict, says: str) -> None:
    """Every fault of the file is an error that says what to do, but for other weights, whose law it may be."""
    domain = Domain.fit([normal_blocks(500, seed=0)])
    assert domain is not None
    text = json.dumps(json.loads(domain.to_json(SHA)) | change)
    if not says:
        assert Domain.from_json(text, SHA, depth=2) is None
        return
    with pytest.raises(RunError, match=f"domain.json {says}.*delete it"):
        Domain.from_json(text, SHA, depth=2)
