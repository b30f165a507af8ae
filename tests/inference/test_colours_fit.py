"""The second reading is fitted to what the training saw, and weighed by what it did not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from scipy.sparse import csr_matrix
from scipy.special import softmax

from superst_monai.data.section import Section
from superst_monai.data.store import write_section
from superst_monai.engines.holdout import withheld_spots
from superst_monai.errors import RunError
from superst_monai.inference.colour_basis import KERNEL_SD, LANDMARKS, WEIGHT_SD, Basis, likeness, standardised
from superst_monai.inference.colours import FILE, ColourReading, read_colours
from superst_monai.inference.colours_fit import (
    EQUAL,
    EQUAL_SD,
    PARTS,
    composition_share_of,
    depth_share_of,
    fit_colours,
    fit_composition,
    part_of,
    regress,
)
from superst_monai.inference.field_store import load_field, save_field
from superst_monai.inference.run import load_run
from superst_monai.inference.section_field import fit_field
from superst_monai.inference.spot_readings import SpotReadings, spot_readings
from superst_monai.transforms.stain_moments import N_FEATURES

K, G, F = 3, 40, 5
ACTIVE = np.array([True, True, True])


def spots(seed: int, n: int = 400, *, level: float = 0.0, network_error: float = 0.0) -> SpotReadings:
    """Spots whose log UMIs and logits of metagenes are linear in their features; a fifth of them withheld."""
    law, rng = np.random.default_rng(99), np.random.default_rng(seed)
    log_rate = law.normal(0.0, 1.0, (K, G)).astype(np.float32)
    logit = np.full(G, -1.0, np.float32)
    slopes, tilts = law.normal(0, 0.3, F), law.normal(0, 0.4, (F, K))
    features = rng.normal(size=(n, F))
    shares = np.exp(features @ tilts)
    shares /= shares.sum(1, keepdims=True)
    umis = np.exp(log_rate + logit).sum(1)
    total = np.exp(6.0 + level + features @ slopes)
    size = shares * (total / (shares @ umis))[:, None]
    counts = rng.poisson(rng.gamma(np.maximum(size @ np.exp(log_rate), 1e-9)) * np.exp(logit))
    said = size * np.exp(network_error * rng.normal(size=(n, 1)))
    block = np.where(np.arange(n) % 5 == 0, np.arange(n), -1)  # each withheld spot alone
    area = np.full(n, 100.0)
    return SpotReadings(csr_matrix(counts.astype(np.int32)), area, said, features, block, log_rate, logit, 12.0)


def said(reading: ColourReading, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log UMIs per um^2 of places `(S,)`, and the shares of the metagenes there `(S, K)`."""
    z = standardised(features, np.asarray(reading.mean), np.asarray(reading.sd))
    depth = z @ np.asarray(reading.weights) + reading.intercept
    scores = z @ np.asarray(reading.composition_weights).T + reading.composition_intercept
    scores = scores + likeness(z, np.asarray(reading.landmarks)) @ np.asarray(reading.composition_kernel).T
    return depth, softmax(scores, axis=1)


def test_the_basis_has_the_covariance_that_it_says() -> None:
    """Products of the functions at two places: linear part and likeness, in double precision, at all landmarks."""
    features = np.random.default_rng(0).normal(2.0, 3.0, (60, F))
    basis = Basis.of(features, seed=0)
    z = (features - features.mean(0)) / features.std(0)
    apart = ((z[:, None] - z) ** 2).sum(-1)
    expected = WEIGHT_SD**2 * z @ z.T + KERNEL_SD**2 * np.exp(-apart / (2 * F))
    np.testing.assert_allclose(basis(features) @ basis(features).T, expected, atol=2e-3 * KERNEL_SD**2)
    weights = np.random.default_rng(1).normal(size=(basis(features).shape[1], K))
    linear, kernel = basis.unfolded(weights)
    new = np.random.default_rng(2).normal(2.0, 3.0, (9, F))
    by_features = basis.scaled(new) @ linear + likeness(basis.scaled(new), basis.landmarks) @ kernel
    np.testing.assert_allclose(by_features, basis(new) @ weights, atol=1e-9)


def test_of_many_spots_some_are_landmarks_spread_out() -> None:
    """Each a spot, none twice, the same for a seed; between them the covariance is nearly that of all."""
    features = np.random.default_rng(0).normal(size=(3 * LANDMARKS, F))
    basis = Basis.of(features, seed=4)
    z = basis.scaled(features)
    assert len(np.unique(basis.landmarks, axis=0)) == LANDMARKS
    assert (basis.landmarks[:, None] == z).all(-1).any(1).all()
    np.testing.assert_array_equal(basis.landmarks, Basis.of(features, seed=4).landmarks)
    variance = ((likeness(z, basis.landmarks) @ basis.root) ** 2).sum(1)
    assert 0.9 < variance.min() < variance.max() < 1 + 1e-9


def test_what_is_not_linear_is_found() -> None:
    """Shares that follow a distance from the mean: new spots are told, by a linear regression they are not."""
    rng = np.random.default_rng(5)
    parts = []
    for seed in (1, 2):
        part = spots(seed)
        tilt = np.abs(part.features[:, :1]) - 0.8
        shares = softmax(2 * tilt * np.array([1.0, 0.0, -1.0]), axis=1)
        size = shares * (part.total / (shares @ part.umis))[:, None]
        counts = rng.poisson(rng.gamma(np.maximum(size @ np.exp(part.log_rate), 1e-9)) * np.exp(part.logit))
        parts.append(replace(part, size=size, counts=csr_matrix(counts.astype(np.int32))))
    known, new = parts
    found = regress([known], active=ACTIVE, seed=0)
    truth = np.exp(new.shares())[:, 0]
    assert np.corrcoef(said(found, new.features)[1][:, 0], truth)[0, 1] > 0.9
    linear = replace(found, composition_kernel=((0.0,) * len(found.landmarks),) * K)
    assert abs(np.corrcoef(said(linear, new.features)[1][:, 0], truth)[0, 1]) < 0.3


def test_the_regressions_find_what_was_planted_whatever_the_level_of_a_section() -> None:
    """Depth and composition of new spots are said as they are; sections of other depth are the same regression."""
    found = regress([spots(1), spots(2)], active=ACTIVE, seed=0)
    new = spots(3)
    depth, shares = said(found, new.features)
    assert np.corrcoef(depth, new.network)[0, 1] > 0.995
    assert np.corrcoef(shares.ravel(), np.exp(new.shares()).ravel())[0, 1] > 0.99
    deeper = regress([spots(1), spots(2, level=1.0)], active=ACTIVE, seed=0)
    np.testing.assert_allclose(deeper.weights, found.weights, atol=0.01)
    assert (found.n_spots, found.n_withheld, found.sigma_um) == (640, 160, 12.0)


def test_both_readings_agree_on_average() -> None:
    """The regression takes its level from the network, not from the counts."""
    part = spots(1)
    louder = replace(part, size=part.size * np.e)
    low, high = (regress([each], active=ACTIVE, seed=0) for each in (part, louder))
    assert high.intercept - low.intercept == pytest.approx(1.0, abs=1e-6)
    depth = said(low, part.features[~part.withheld])[0]
    weight = part.weight[~part.withheld]
    assert np.average(depth, weights=weight) == pytest.approx(np.average(part.network[~part.withheld], weights=weight))


def test_withheld_spots_are_not_fitted_to() -> None:
    """Their counts move neither regression."""
    part = spots(1)
    counts = part.counts.toarray()
    counts[part.withheld] = counts[part.withheld][::-1]
    other = replace(part, counts=csr_matrix(counts))
    # UMIs are weighed by the mean of the section, which stays.
    one, two = (regress([each], active=ACTIVE, seed=0) for each in (part, other))
    np.testing.assert_array_equal(one.weights, two.weights)
    np.testing.assert_array_equal(one.composition_weights, two.composition_weights)
    np.testing.assert_array_equal(one.composition_kernel, two.composition_kernel)
    assert one.depth_share != two.depth_share


def test_the_part_in_depth_is_that_of_its_posterior() -> None:
    """Against a fine grid: squared errors of blocks that agree, and Student's law of their slopes where they do not."""
    rng = np.random.default_rng(0)
    for scale, block in ((0.2, np.arange(30)), (1.0, np.arange(30) // 3), (3.0, np.arange(30) // 3)):
        network, other, weight = rng.normal(0, scale, 30), rng.normal(0, 1, 30), rng.uniform(0.5, 2, 30)
        noise = (weight * ((1 - EQUAL) * network + EQUAL * other) ** 2).sum() / weight.sum()
        apart = (network - other) * (weight / noise) ** 0.5
        bend, slope = np.zeros(block[-1] + 1), np.zeros(block[-1] + 1)
        np.add.at(bend, block, apart**2)
        np.add.at(slope, block, apart * network * (weight / noise) ** 0.5)
        best = slope.sum() / bend.sum()
        scatter = len(bend) * (slope - bend * np.clip(round(best / 0.025) * 0.025, 0.025, 0.975)).var(ddof=1)
        sd = (max(scatter, bend.sum()) / bend.sum() ** 2) ** 0.5
        found = depth_share_of(network, other, weight, block)
        assert found == pytest.approx(most_likely(best, sd, len(bend)), abs=0.0126)


def test_the_part_in_depth_follows_who_is_right() -> None:
    """Many spots leave no doubt, none leave it at a half; in two blocks they are two witnesses."""
    wrong, right, weight = np.random.default_rng(0).normal(size=5000), np.zeros(5000), np.ones(5000)
    assert depth_share_of(right, wrong, weight, np.arange(5000)) < 0.03
    assert depth_share_of(wrong, right, weight, np.arange(5000)) > 0.97
    assert 0.35 < depth_share_of(right, wrong, weight, np.arange(5000) % 2) < EQUAL
    assert depth_share_of(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, np.int64)) == EQUAL


def test_the_part_in_composition_follows_who_is_right() -> None:
    """A network that says the truth keeps it; one that says another spot's composition leaves it to the regression."""
    part = spots(1)
    truth = part.shares()
    noise = np.random.default_rng(0).normal(0, 1.0, truth.shape)
    assert composition_share_of([part], [truth + noise]) <= 0.1
    astray = replace(part, size=np.exp(truth + noise))
    assert composition_share_of([astray], [truth]) >= 0.9
    nothing = replace(part, block=np.full(400, -1))
    assert composition_share_of([nothing], [truth]) == EQUAL


def quadratic(best: np.ndarray, curvature: float) -> np.ndarray:
    """Log likelihoods of spots, each largest at a part of its own `(S, len(PARTS))`."""
    return -curvature / 2 * (PARTS - best[:, None]) ** 2


def most_likely(best: float, sd: float, n: int) -> float:
    """Part of the largest posterior, for Student's law of n - 1 degrees of freedom and the normal law before."""
    part = np.linspace(0, 1, 10_001)
    return float(part[np.argmax(stats.t.logpdf((part - best) / sd, n - 1) + stats.norm.logpdf(part, EQUAL, EQUAL_SD))])


def test_a_part_is_as_sure_as_the_spots_agree() -> None:
    """Spots whose best parts scatter weigh as that many draws, however sharp each is."""
    best = np.random.default_rng(0).normal(0.2, 0.4, 40)
    sd = best.std(ddof=1) / len(best) ** 0.5  # of their mean, which is the maximum of the sum
    for curvature in (50.0, 5000.0):
        found = part_of(quadratic(best, curvature))
        assert found == pytest.approx(most_likely(best.mean(), sd, len(best)), abs=0.0126)


def test_a_part_is_no_surer_than_the_likelihood() -> None:
    """Spots that agree weigh as their curvature; a likelihood that does not bend down says nothing."""
    agreed = quadratic(np.full(4, 0.1), 5.0)
    assert part_of(agreed) == pytest.approx(most_likely(0.1, 20.0**-0.5, 4), abs=0.0126)
    assert part_of(-agreed) == EQUAL
    assert part_of(quadratic(np.array([0.1]), 1e4)) == EQUAL


def test_two_blocks_that_agree_by_chance_decide_little() -> None:
    """However sharply both say so: their scatter is one number; thirty do decide."""
    assert part_of(quadratic(np.array([0.10, 0.12]), 1e4)) == pytest.approx(EQUAL, abs=0.06)
    assert part_of(quadratic(np.linspace(0.0, 0.22, 30), 1e4)) == pytest.approx(0.11, abs=0.03)


def test_a_block_is_one_witness() -> None:
    """Withheld spots told four times over, each four a block, say what they say alone; as blocks of their own, more."""
    part, noise = spots(1), np.random.default_rng(0).normal(0, 1.0, (2, 400, K))
    said, part = part.shares() + noise[0], replace(part, size=part.size * np.exp(0.7 * noise[1]))
    rows = np.repeat(np.arange(400), np.where(part.withheld, 4, 1))
    names = ("counts", "area_um2", "size", "features", "block")
    told = replace(part, **{name: getattr(part, name)[rows] for name in names})
    alone = composition_share_of([part], [said])
    assert 0 < alone < EQUAL
    assert composition_share_of([told], [said[rows]]) == alone
    apart = np.where(told.withheld, np.arange(len(rows)), -1)
    assert composition_share_of([replace(told, block=apart)], [said[rows]]) < alone


def test_a_metagene_that_is_not_in_use_gets_nothing() -> None:
    """Its share is zero wherever it is asked for."""
    part = spots(1)
    basis = Basis.of(part.features, seed=0)
    bias, weights = fit_composition([part], basis, np.array([True, False, True]), seed=0)
    scores = bias + basis(part.features) @ weights
    assert (np.exp(scores[:, 1] - scores[:, [0, 2]].max(1)) < 1e-9).all()


def record_training(path: Path, store: Path, section: Section, share: float = 0.3) -> None:
    """Say in a run folder what it was trained on."""
    config = yaml.safe_load((path / "configs" / "train.yaml").read_text()) | {"val_share": share}
    (path / "configs" / "train.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    [blocks] = withheld_spots([section.spots[["x_um", "y_um"]].to_numpy()], share, seed=3)
    record = json.loads((path / "run.json").read_text()) | {
        "seed": 3,
        "sections": [{"name": section.name, "path": str(store), "spots": section.n_spots}],
        "held_out_spots": [sum(map(len, blocks))],
    }
    (path / "run.json").write_text(json.dumps(record))


@pytest.fixture
def trained(make_run: Callable[..., Path], section: Section, tmp_path: Path) -> Path:
    """A run whose training section is there."""
    path = make_run(tmp_path / "run")
    write_section(section, tmp_path / "C2.zarr")
    record_training(path, tmp_path / "C2.zarr", section)
    return path


def test_what_is_written_is_read_back_and_the_same_each_time(trained: Path, section: Section) -> None:
    """Same run, same bytes; progress ends at the whole; nothing else is left in the folder."""
    shown: list[float] = []
    found = fit_colours(trained, show=lambda share, _: shown.append(share))
    assert found is not None
    assert shown == [0.5, 1.0]
    assert read_colours(load_run(trained)) == found
    assert found.n_spots + found.n_withheld == section.n_spots
    before = (trained / FILE).read_bytes()
    fit_colours(trained)
    assert (trained / FILE).read_bytes() == before
    assert not list(trained.glob(".*"))


def test_spots_are_read_as_they_lie(trained: Path, section: Section) -> None:
    """Sizes of the network, areas and colours of each spot; those of a doubled section are the same."""
    run = load_run(trained)
    found = spot_readings(run, section, [np.array([4]), np.array([0])])
    assert found.features.shape == (section.n_spots, N_FEATURES)
    np.testing.assert_array_equal(found.block[:6], [1, -1, -1, -1, 0, -1])
    assert found.withheld.sum() == 2
    np.testing.assert_array_equal(found.counts.toarray(), section.counts.toarray())
    np.testing.assert_allclose(found.area_um2, np.pi * 16.0**2, rtol=0.1)
    np.testing.assert_allclose(np.exp(found.shares()).sum(1), 1, rtol=1e-9)
    np.testing.assert_allclose(np.exp(found.network) * found.area_um2, found.size @ found.umis, rtol=1e-9)


def test_a_field_under_another_reading_is_refused(trained: Path, section: Section) -> None:
    """A field says what is left over from the map that it was fitted to."""
    run = load_run(trained)
    field = fit_field(run, section, steps=2)
    save_field(run, section, field)
    np.testing.assert_array_equal(load_field(run, section).mean, field.mean)
    fit_colours(trained)
    with pytest.raises(RunError, match=r"another colours\.json of the run; fit it again with superst fit-section"):
        load_field(run, section)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"share": 0.0}, "the training withheld no spots (--val-share)"),
        ({"gone": True}, "C2 of the training cannot be found"),
    ],
)
def test_where_no_spots_were_withheld_there_is_no_reading(
    trained: Path, section: Section, change: dict[str, Any], reason: str
) -> None:
    """An older file does not stay, and the user is told why."""
    (trained / FILE).write_text("{}")
    store = trained.parent / "C2.zarr"
    record_training(
        trained, trained.parent / "no.zarr" if "gone" in change else store, section, change.get("share", 0.3)
    )
    said: list[str] = []
    assert fit_colours(trained, tell=said.append) is None
    assert said == [f"expression is as the network reads it, without a regression on colours: {reason}"]
    assert not (trained / FILE).exists()
