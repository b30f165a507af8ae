"""What training takes from sections: genes, resolution, conditions, held-out spots and the length of an epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from superst_monai.engines import training_data
from superst_monai.engines.genes import select_genes
from superst_monai.engines.training_data import PATCHES_WITHOUT_BLOCKS, TrainingData, choose_mpp, section_levels
from superst_monai.errors import ResolutionError, RunError
from superst_monai.model.objective import FusionVAE
from superst_monai.types import Key


def with_genes(section, names):
    """The section with other gene names."""
    genes = section.genes.set_axis(names, axis=0).rename_axis("gene")
    return replace(section, genes=genes)


def test_genes_are_shared_counted_and_not_excluded(make_section):
    """A gene stays if all sections have it, its total reaches the bound and no pattern matches it (plain version)."""
    a, b = make_section("A"), make_section("B", seed=1)
    a = with_genes(a, ["MT-CO1", "RPS4", "ACTB", *[f"G{i}" for i in range(9)]])
    b = with_genes(b, [f"G{i}" for i in range(8, -1, -1)] + ["ACTB", "RPS4", "MT-CO1"])
    totals = {
        name: sum(int(s.counts[:, list(s.genes.index).index(name)].sum()) for s in (a, b)) for name in a.genes.index
    }
    bound = int(np.median(list(totals.values())))
    got = select_genes([a, b], min_counts=bound, exclude="(?i)(mt-|rp[ls])")
    expected = [n for n in a.genes.index if totals[n] >= bound and n not in ("MT-CO1", "RPS4")]
    assert list(got.index) == expected


def test_genes_that_cannot_be_chosen_are_refused(make_section):
    """No shared name, no gene left and a broken pattern are told apart."""
    a = make_section("A")
    other = with_genes(make_section("B"), [f"ENSG{i}" for i in range(12)])
    with pytest.raises(
        RunError, match=r"must share genes.*A has 12 genes such as G0, G1, G2; B has 12 genes such as ENSG0"
    ):
        select_genes([a, other], min_counts=1, exclude="")
    with pytest.raises(RunError, match="no gene is left of 12"):
        select_genes([a], min_counts=10**6, exclude="")
    with pytest.raises(RunError, match="must be a regular expression"):
        select_genes([a], min_counts=1, exclude="(")


def test_counts_follow_the_chosen_genes(make_section):
    """Column g of each section's counts is the gene g of the run, whatever the section's own order."""
    a, b = make_section("A"), make_section("B", seed=1)
    shuffled = with_genes(b, list(b.genes.index[::-1]))
    data = TrainingData([a, shuffled], min_counts=1, exclude_genes="")
    np.testing.assert_array_equal(data.counts[1].toarray(), b.counts.toarray()[:, ::-1])


def test_the_resolution_makes_the_smallest_spot_a_few_pixels_wide(make_section):
    """60 um spots at 6.4 px need 9.375 um, but no finer than the sections' 10 um; coarser spots decide otherwise."""
    assert choose_mpp([make_section("A")], 6.4) == 10.0
    assert choose_mpp([make_section("A")], 3.0) == 20.0
    data = TrainingData([make_section("A")], spot_px=3.0, min_counts=1, patch_px=16)
    assert data.sections[0].image.shape == (48, 40, 3)


def test_the_spots_of_all_sections_decide_how_many_metagenes_there_are(make_section, monkeypatch):
    """One for so many spots, withheld or not, within a least and a most."""
    sections = [make_section("A"), make_section("B")]
    spots = sum(section.n_spots for section in sections)
    for each, expected in ((spots / 2, 12), (spots / 17.4, 17), (spots / 17.6, 18), (spots / 50, 24)):
        monkeypatch.setattr(training_data, "SPOTS_A_METAGENE", each)
        assert TrainingData(sections, min_counts=1, patch_px=16).n_metagenes == expected


def test_sections_coarser_than_asked_are_refused(make_section):
    """A section of another mpp is resampled if it is finer, and refused with both numbers if it is coarser."""
    fine, coarse = make_section("A"), make_section("B", mpp=12.0)
    assert {s.mpp for s in TrainingData([fine, coarse], mpp=12.0, min_counts=1).sections} == {12.0}
    with pytest.raises(ResolutionError, match=r"training at 10 um/px needs.*B has 12.*smaller --mpp"):
        TrainingData([fine, coarse], mpp=10.0, min_counts=1)


def test_every_umi_is_trained_on_or_scored(make_section):
    """Withheld spots are not labelled for training and scored whole; of the others the parts sum to the counts."""
    section = make_section("A")
    data = TrainingData([section], min_counts=1, val_share=0.2, val_umis=0.3, patch_px=32)
    hidden = np.concatenate(data.held_out[0])
    training, scoring = (data._sources(training=t)[0] for t in (True, False))
    assert len(hidden) == 6
    assert set(training.label.unique().tolist()) == set(range(32)) - {*(hidden + 1)}
    assert set(scoring.label.unique().tolist()) == set(range(31))
    assert (training.counts + scoring.counts != data.counts[0]).nnz == 0
    assert training.counts[hidden].nnz == 0
    taken = scoring.counts.sum() - scoring.counts[hidden].sum()
    assert taken / (training.counts.sum() + taken) == pytest.approx(0.3, abs=0.04)
    kept, aside = torch.full((31,), 0.7), torch.full((31,), 0.3)
    kept[-1], aside[hidden], aside[-1] = 1, 1, 0  # of the support outside the tissue nothing is set aside
    torch.testing.assert_close(training.share, kept)
    torch.testing.assert_close(scoring.share, aside)


def test_set_aside_umis_depend_on_the_seed_alone(make_section):
    """Two data sets of one seed have the same split, those of another a different one."""
    first, again, other = (TrainingData([make_section("A")], min_counts=1, val_share=0, seed=s) for s in (1, 1, 2))
    assert (first._split[1][0] != again._split[1][0]).nnz == 0
    assert (first._split[1][0] != other._split[1][0]).nnz > 0


def test_validation_scores_both_kinds_in_one_pass(make_section):
    """The patches round the withheld blocks hold them whole, with share 1, and their neighbours' UMIs set aside."""
    data = TrainingData([make_section("A")], min_counts=1, val_share=0.2, patch_px=48)
    samples = list(data.validation_set())
    assert len(samples) == len(data.held_out[0])
    hidden = {tuple(row) for row in data.counts[0][np.concatenate(data.held_out[0])].toarray()}
    seen = torch.cat([sample[Key.COUNTS] for sample in samples]).to_dense()
    shares = torch.cat([sample[Key.SHARE] for sample in samples])
    assert {tuple(row) for row in seen[shares == 1].tolist()} == hidden
    aside = {tuple(row) for row in data._split[1][0][data.training_spots[0]].toarray()}
    assert {tuple(row) for row in seen[shares == torch.tensor(0.05)].tolist()} <= aside
    assert set(shares.tolist()) <= {1.0, float(torch.tensor(0.05)), 0.0}
    assert not seen[shares == 0].any()


def test_without_withheld_spots_a_handful_of_patches_is_scored(make_section):
    """Eight at most, each round a spot of its own, by seed; without anything to score there is none."""
    sections = [make_section("A"), make_section("B", seed=1)]
    data, again = (TrainingData(sections, min_counts=1, val_share=0, patch_px=16) for _ in range(2))
    items, same = data.validation_set(), again.validation_set()
    assert len(items) == PATCHES_WITHOUT_BLOCKS
    assert items.data == same.data
    assert len({tuple(item.values()) for item in items.data}) == len(items)
    assert {item[Key.SECTION] for item in items.data} == {0, 1}
    for sample in items:
        assert set(sample[Key.SHARE].tolist()) - {0.0} == {float(torch.tensor(0.05))}
    assert len(TrainingData(sections, min_counts=1, val_share=0, val_umis=0).validation_set()) == 0


def test_a_section_of_one_spot_is_trained_on(make_section):
    """Its spot is never withheld; its UMIs are what is scored."""
    whole = make_section("A")
    one = replace(whole, counts=whole.counts[:1], spots=whole.spots.iloc[:1])
    data = TrainingData([one], min_counts=0, val_share=0.9, patch_px=32)
    assert data.held_out == [[]]
    (sample,) = data.validation_set()
    assert sample[Key.SHARE][sample[Key.SHARE] > 0].tolist() == [float(torch.tensor(0.05))]


def test_genes_and_spots_without_counts_stay_without(make_section):
    """All-zero genes and spots are split into nothing, and first values are finite."""
    whole = make_section("A")
    dense = whole.counts.toarray()
    dense[3] = dense[:, 5] = 0
    data = TrainingData([replace(whole, counts=sparse.csr_matrix(dense))], min_counts=0, patch_px=32)
    for part in data._split:
        assert part[0][3].nnz == part[0][:, 5].nnz == 0
    network = first_network(data)
    assert all(torch.isfinite(p).all() for p in network.parameters())


def test_training_spots_without_a_umi_are_refused(make_section):
    """The message tells the spots that are left from those that are withheld."""
    whole = make_section("A")
    data = TrainingData([whole], min_counts=1, val_share=0.5, patch_px=32)
    dense = whole.counts.toarray()
    dense[data.training_spots[0]] = 0
    empty = TrainingData([replace(whole, counts=sparse.csr_matrix(dense))], min_counts=1, val_share=0.5, patch_px=32)
    with pytest.raises(RunError, match=r"15 spots hold no UMI of the 12 genes \(15 more are withheld\)"):
        empty.training_set(batch_size=2)


def test_an_epoch_sees_each_spot_about_once(make_section):
    """N is the number of spots over the mean number of whole spots round a tissue pixel (against a plain count)."""
    section = make_section("A")
    data = TrainingData([section], min_counts=1, patch_px=32)
    reach = int(32 / 2 - 3)
    xy = np.clip(np.round(section.spots[["x_um", "y_um"]].to_numpy() / 10).astype(int), 0, 95)
    near = [
        ((xy[:, 0] >= x - reach) & (xy[:, 0] < x + reach) & (xy[:, 1] >= y - reach) & (xy[:, 1] < y + reach)).sum()
        for y, x in np.argwhere(section.tissue)
    ]
    assert data.n_patches == round(section.n_spots / np.mean(near))


def test_an_epoch_of_the_trainer_is_whole_batches(make_section):
    """The loader gets at least the asked steps and never a part of a batch."""
    data = TrainingData([make_section("A"), make_section("B")], min_counts=1, patch_px=32)
    whole = 4 * -(-data.n_patches // 4)
    assert len(data.training_set(batch_size=4, min_steps=1)) == whole
    assert len(data.training_set(batch_size=4, min_steps=50)) == 200 > whole


def test_conditions_are_one_level_a_section(make_section):
    """Levels come from the column; a section that does not say is unknown."""
    a, b = make_section("A", columns={"patient": "p1"}), make_section("B")
    assert section_levels([a, b], {"patient": "patient", "section": "section"}) == {
        "patient": ["p1", None],
        "section": ["A", "B"],
    }
    data = TrainingData([a, b], covariates={"patient": "patient"}, min_counts=1)
    assert data.covariates == {"patient": ["p1"]}


def test_conditions_that_do_not_fit_are_refused_together(make_section):
    """A column that nobody has and one with several levels are reported at once."""
    a = make_section("A")
    mixed = a.spots.assign(half=np.where(np.arange(a.n_spots) % 2, "x", "y"))
    with pytest.raises(
        RunError, match=r"h: column half of A holds 2 levels, not one; d: no section has a column donor"
    ):
        section_levels([replace(a, spots=mixed)], {"h": "half", "d": "donor"})


def test_sections_without_counts_are_refused(make_section):
    """A slide alone, or nothing at all, cannot be trained on."""
    a = make_section("A")
    alone = replace(
        a,
        counts=sparse.csr_matrix((0, 0), dtype=np.int32),
        spots=a.spots.iloc[:0],
        genes=a.genes.iloc[:0],
        platform="slide",
    )
    with pytest.raises(RunError, match="A hold a slide alone"):
        TrainingData([alone])
    with pytest.raises(RunError, match="at least one section"):
        TrainingData([])


def first_network(data: TrainingData) -> FusionVAE:
    """A network with its first values."""
    torch.manual_seed(0)
    network = FusionVAE(data.n_genes, n_metagenes=2, depth=2, width=4, covariates=data.covariates)
    data.set_first_values(network)
    return network


@pytest.mark.parametrize("val_umis", [0.0, 0.4])
def test_first_values_reproduce_the_mean_counts(make_section, val_umis):
    """Before any step, a spot of mean area with flat activity expects the mean of each gene over the training spots,
    whole: what is left of them over the share that is left."""
    data = TrainingData([make_section("A")], min_counts=1, covariates={"section": "section"}, val_umis=val_umis)
    model = first_network(data).generative
    mean = (model.log_rate + model.logit).exp().detach().numpy()
    left = data._split[0][0][data.training_spots[0]].toarray()
    np.testing.assert_allclose(mean, left.mean(0) / (1 - val_umis), rtol=1e-5)
    np.testing.assert_allclose(mean.sum(), data.counts[0].sum() / 30, rtol=0.1)
    assert model.condition.tolist() == [[0]]
    y, x = np.mgrid[:96, :80] + 0.5
    disc = [((x - s.x_um / 10) ** 2 + (y - s.y_um / 10) ** 2 <= 9).sum() for s in data.sections[0].spots.itertuples()]
    assert data.spot_area_px == np.mean(disc)


def test_first_values_do_not_know_what_is_held_out(make_section):
    """Other counts of the withheld spots change nothing; nor does what was set aside, which is not in the fit."""
    whole = make_section("A")
    data = TrainingData([whole], min_counts=1, val_share=0.3)
    dense = whole.counts.toarray()
    dense[np.concatenate(data.held_out[0])] = 77
    other = TrainingData([replace(whole, counts=sparse.csr_matrix(dense))], min_counts=1, val_share=0.3)
    first, second = (first_network(d).state_dict() for d in (data, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    left = data._split[0][0]
    alone = TrainingData([replace(whole, counts=left)], min_counts=1, val_share=0.3, val_umis=0)
    third = first_network(alone).state_dict()
    third["generative.log_rate"] -= np.log(0.95)
    for name in first:
        torch.testing.assert_close(first[name], third[name])
