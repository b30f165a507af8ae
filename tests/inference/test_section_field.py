"""The field of a measured section: laws of its action, recovery of a known field, and its file in the run."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from superst_monai.errors import RunError
from superst_monai.inference import section_field
from superst_monai.inference.canvas import canvas_of
from superst_monai.inference.field_store import field_path, load_field, save_field
from superst_monai.inference.maps import open_maps
from superst_monai.inference.posterior import ORIENTATIONS
from superst_monai.inference.rates import mean_rates
from superst_monai.inference.section_field import SectionField, fit_field, modulate, spot_pixels
from superst_monai.inference.slide_map import predict
from superst_monai.model.field import FieldGrid
from superst_monai.transforms.labels import spot_labels
from superst_monai.transforms.tissue import find_tissue


def test_a_field_tilts_the_shares_and_scales_the_size() -> None:
    """A field of zero changes nothing; else log-shares move by u, up to a constant, and the size by exp(u_last)."""
    torch.manual_seed(0)
    scaled, field = torch.rand(20, 4), torch.randn(20, 5)
    torch.testing.assert_close(modulate(scaled, torch.zeros(20, 5)), scaled)
    changed = modulate(scaled, field)
    torch.testing.assert_close(changed.sum(1), scaled.sum(1) * field[:, -1].exp())
    share = (scaled / scaled.sum(1, keepdim=True)).log()
    expected = (share + field[:, :-1]).softmax(1)
    torch.testing.assert_close(changed / changed.sum(1, keepdim=True), expected)


def test_a_metagene_without_activity_stays_without() -> None:
    """Zero activity, of an inactive metagene or off the tissue, is zero under any field, without NaN."""
    scaled = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    changed = modulate(scaled, torch.tensor([[5.0, -5.0, 0.0], [1.0, 2.0, 3.0]]))
    torch.testing.assert_close(changed, torch.tensor([[0.0, 2.0], [0.0, 0.0]]))


def test_a_field_changes_the_size_twentyfold_at_most() -> None:
    """What the network takes for glass stays small under whatever field."""
    scaled = torch.tensor([[2e-6, 1e-6]])
    sizes = [float(modulate(scaled, torch.tensor([[0.0, 0.0, u]])).sum()) for u in (-50.0, -2.0, 2.0, 50.0)]
    np.testing.assert_allclose(sizes, 3e-6 * np.exp([-3.0, -2.0, 2.0, 3.0]), rtol=1e-5)


def test_spot_pixels_are_the_mean_of_what_predict_draws(run, section, tmp_path) -> None:
    """Tile by tile or whole, a pixel holds the mean of the samples of a map, one an orientation."""
    canvas = canvas_of(section, section.mpp, find_tissue)
    found = spot_pixels(run.network, section, canvas, tile_px=64, seed=3)
    label = spot_labels(section)
    label[label > section.n_spots] = 0
    row, col = ((found.y_um / section.mpp - 0.5).astype(int), (found.x_um / section.mpp - 0.5).astype(int))
    np.testing.assert_array_equal(found.spot.numpy(), label[row, col])
    assert len(row) == (label > 0).sum()
    store = tmp_path / "maps.zarr"
    predict(run, section, store, samples=ORIENTATIONS, seed=3, use_field=False, find_tissue=find_tissue)
    drawn = np.zeros((run.network.arch.n_metagenes, *canvas.shape), np.float32)
    for place, part in open_maps(store).tiles():
        drawn[(slice(None), *place)] = part.mean(0)
    np.testing.assert_allclose(found.scaled.numpy(), drawn[:, row, col].T, rtol=5e-3, atol=1e-7)  # float16 in the store


@pytest.fixture(scope="module")
def even(run):
    """The run with a network whose activities are even enough for a field to tilt them."""
    network = copy.deepcopy(run.network)
    with torch.no_grad():
        network.generative.expression_decoder.activity.weight.mul_(0.005)
        for layer in network.generative.fusion.context:
            layer.weight.zero_()
    return replace(run, network=network)


@pytest.fixture(scope="module")
def pixels(even, section):
    """What its network says of the section's spots."""
    return spot_pixels(even.network, section, canvas_of(section, section.mpp, find_tissue))


@pytest.fixture(scope="module")
def known(even, section, pixels):
    """The section with counts that were drawn under a known, smooth field, and their expectation `(S, G)`."""
    rng = np.random.default_rng(0)
    x, y = (section.spots[c].to_numpy() for c in ("x_um", "y_um"))
    k = even.network.arch.n_metagenes
    truth = np.zeros((section.n_spots, k + 1), np.float32)
    truth[:, 0], truth[:, 1] = 1.5 * np.sin(x / 60), 1.5 * np.cos(y / 50)
    truth[:, -1] = 0.7 * np.sin((x + y) / 90)
    scaled = modulate(pixels.scaled, torch.from_numpy(truth)[pixels.spot - 1])
    size = torch.zeros(section.n_spots + 1, k).index_add(0, pixels.spot, scaled)[1:].numpy()
    log_rate, _ = mean_rates(even.network, {"section": "C2"})
    with torch.no_grad():
        even.network.generative.log_rate.add_(float(np.log(3000 / (size @ np.exp(log_rate)).mean())))
    log_rate, logit = mean_rates(even.network, {"section": "C2"})
    total = size @ np.exp(log_rate)
    counts = rng.poisson(rng.gamma(total, np.exp(logit)))
    return replace(section, counts=csr_matrix(counts.astype(np.int32))), total * np.exp(logit)


def expected_counts(run, pixels, n_spots: int, field: SectionField | None) -> np.ndarray:
    """Expected counts of the spots `(S, G)` under the posterior mean of a field, or without one."""
    scaled, beta, gamma = pixels.scaled, 0.0, 0.0
    if field is not None:
        nodes = torch.from_numpy(field.mean).flatten(1).T
        scaled = modulate(scaled, field.grid.weights(pixels.x_um, pixels.y_um) @ nodes)
        beta, gamma = field.rate_effect, field.logit_effect
    size = torch.zeros(n_spots + 1, scaled.shape[1]).index_add(0, pixels.spot, scaled)[1:].numpy()
    log_rate, logit = mean_rates(run.network, {"section": "C2"})
    return (size @ np.exp(log_rate + beta)) * np.exp(logit + gamma)


def test_a_known_field_is_recovered_also_where_spots_were_withheld(even, pixels, known) -> None:
    """Shares of withheld spots follow the truth far better with the field than with the network alone."""
    section, truth = known
    keep = np.arange(section.n_spots) % 4 > 0
    field = fit_field(even, section, keep=keep)
    means = [expected_counts(even, pixels, section.n_spots, f) for f in (None, field)]

    def error(mean: np.ndarray) -> float:
        share, true = (m / m.sum(1, keepdims=True) for m in (mean[~keep], truth[~keep]))
        return float(np.abs(share - true).mean())

    without, with_field = (error(mean) for mean in means)
    assert with_field < 0.5 * without
    totals = means[1][~keep].sum(1)
    assert np.corrcoef(np.log(totals), np.log(truth[~keep].sum(1)))[0, 1] > 0.8


def test_a_gene_that_one_metagene_has_more_of_here_is_found(even, pixels, known) -> None:
    """A gene whose rate differs in one metagene of this section alone is told right, in spots withheld too."""
    section, _ = known
    keep = np.arange(section.n_spots) % 4 > 0
    field = fit_field(even, section, keep=keep)
    nodes = torch.from_numpy(field.mean).flatten(1).T
    scaled = modulate(pixels.scaled, field.grid.weights(pixels.x_um, pixels.y_um) @ nodes)
    size = torch.zeros(section.n_spots + 1, scaled.shape[1]).index_add(0, pixels.spot, scaled)[1:].numpy()
    log_rate, logit = mean_rates(even.network, {"section": "C2"})
    gene, metagene = 3, int((size.std(0) / size.mean(0) * (size.mean(0) > 0.1 * size.mean())).argmax())
    changed = np.zeros_like(log_rate)
    changed[metagene, gene] = 1.5
    truth = (size @ np.exp(log_rate + changed)) * np.exp(logit)
    rng = np.random.default_rng(1)
    counts = section.counts.toarray()
    counts[:, gene] = rng.poisson(rng.gamma(truth[:, gene] / np.exp(logit[gene]), np.exp(logit[gene])))
    found = fit_field(even, replace(section, counts=csr_matrix(counts)), keep=keep)
    own = found.rate_effect[:, gene] - found.rate_effect[:, gene].mean()
    assert own.argmax() == metagene
    said = expected_counts(even, pixels, section.n_spots, found)[~keep, gene]
    shared = replace(found, rate_effect=np.broadcast_to(found.rate_effect.mean(0), found.rate_effect.shape))
    plain = expected_counts(even, pixels, section.n_spots, shared)[~keep, gene]
    assert np.abs(said - truth[~keep, gene]).mean() < 0.7 * np.abs(plain - truth[~keep, gene]).mean()


@pytest.mark.parametrize("turns", [2, 14])
def test_spots_that_take_turns_find_the_same_field(even, pixels, known, monkeypatch, turns) -> None:
    """With a part of the spots a step the fit finds what it finds with all of them, in as many rounds as that takes."""
    section, _ = known
    whole = fit_field(even, section)
    monkeypatch.setattr(section_field, "SPOTS_A_STEP", -(-section.n_spots // turns))
    told: list[float] = []
    part = fit_field(even, section, show=lambda share, _: told.append(share))
    assert (len(told), told[-1]) == (max(300, 30 * turns), 1.0)
    assert not np.array_equal(part.mean, whole.mean)
    means = [expected_counts(even, pixels, section.n_spots, field) for field in (whole, part)]
    np.testing.assert_allclose(means[1].sum(1), means[0].sum(1), rtol=0.1)
    share = [mean / mean.sum(1, keepdims=True) for mean in means]
    assert np.abs(share[1] - share[0]).mean() < 0.018 * share[0].mean()  # 0.021 at the rate of a fit to all at once
    if turns == 2:
        np.testing.assert_array_equal(fit_field(even, section).mean, part.mean)


def test_withheld_counts_say_nothing_and_the_seed_fixes_the_rest(even, known) -> None:
    """Other counts in withheld spots give the same field, bit for bit; another seed does not."""
    section, _ = known
    keep = np.arange(section.n_spots) % 4 > 0
    other = section.counts.toarray()
    other[~keep] += 7
    first = fit_field(even, section, keep=keep, steps=5)
    same = fit_field(even, replace(section, counts=csr_matrix(other)), keep=keep, steps=5)
    np.testing.assert_array_equal(first.mean, same.mean)
    np.testing.assert_array_equal(first.rate_effect, same.rate_effect)
    assert not np.array_equal(first.mean, fit_field(even, section, keep=keep, steps=5, seed=1).mean)


def test_spots_without_umis_count_as_measured(even, known) -> None:
    """Leaving `keep` out takes all spots, those in which nothing was counted too: the same field, bit for bit."""
    section, _ = known
    counts = section.counts.toarray()
    counts[::5] = 0
    section = replace(section, counts=csr_matrix(counts))
    everything = np.ones(section.n_spots, bool)
    found, expected = (fit_field(even, section, keep=keep, steps=5) for keep in (None, everything))
    np.testing.assert_array_equal(found.mean, expected.mean)


def test_a_field_comes_back_from_its_file_and_is_known_by_counts_and_weights(run, known, tmp_path) -> None:
    """What is saved is loaded; other counts or other weights are refused, a slide alone has none."""
    section, _ = known
    run = replace(run, path=tmp_path)
    assert load_field(run, section) is None
    field = SectionField(
        FieldGrid(1.5, 2.5, 40.0, 3, 4),
        *(np.random.default_rng(i).random((5, 3, 4), np.float32) for i in range(2)),
        np.arange(5, dtype=np.float32),
        np.arange(28, dtype=np.float32).reshape(4, 7),
        np.arange(7, dtype=np.float32),
    )
    path = save_field(run, section, field)
    assert path == field_path(run, section)
    assert [p.name for p in path.parent.iterdir()] == ["C2.pt"]
    back = load_field(run, section)
    assert back.grid == field.grid
    for name in ("mean", "sd", "log_precision", "rate_effect", "logit_effect"):
        np.testing.assert_array_equal(getattr(back, name), getattr(field, name))
    for changed_run, changed in (
        (run, replace(section, counts=section.counts * 2)),
        (replace(run, weights_sha256="other"), section),
    ):
        with pytest.raises(RunError, match="fitted to other counts of a section named C2, or under other weights"):
            load_field(changed_run, changed)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match=r"cannot be read .*fit it again with superst fit-section"):
        load_field(run, section)


def test_sections_that_cannot_have_a_field_are_refused(run, section) -> None:
    """No counts, no common gene, no spot kept, no UMI: each is said."""
    with pytest.raises(RunError, match="must share genes with the run, but none of its 7"):
        fit_field(run, replace(section, genes=section.genes.rename(index=lambda g: "x" + g)), steps=1)
    with pytest.raises(RunError, match="keep must choose among"):
        fit_field(run, section, keep=np.zeros(section.n_spots, bool), steps=1)
    with pytest.raises(RunError, match="the spots of C2 hold none"):
        fit_field(run, replace(section, counts=section.counts * 0), steps=1)
