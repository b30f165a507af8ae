"""What training takes from sections: genes, resolution, conditions, held-out spots and the length of an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from superst_monai.engines.genes import select_genes
from superst_monai.engines.training_data import TrainingData, choose_mpp, section_levels
from superst_monai.errors import ResolutionError, RunError
from superst_monai.types import Key


def with_genes(section, names):
    """The section with other gene names."""
    from dataclasses import replace

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


def test_sections_coarser_than_asked_are_refused(make_section):
    """A section of another mpp is resampled if it is finer, and refused with both numbers if it is coarser."""
    fine, coarse = make_section("A"), make_section("B", mpp=12.0)
    assert {s.mpp for s in TrainingData([fine, coarse], mpp=12.0, min_counts=1).sections} == {12.0}
    with pytest.raises(ResolutionError, match=r"training at 10 um/px needs.*B has 12.*smaller --mpp"):
        TrainingData([fine, coarse], mpp=10.0, min_counts=1)


def test_held_out_spots_are_seen_by_validation_alone(make_section):
    """Training labels hold the other spots, validation labels the held-out ones, together all."""
    data = TrainingData([make_section("A")], min_counts=1, val_share=0.2, patch_px=32)
    hidden = set(np.concatenate(data.held_out[0]) + 1)
    assert len(hidden) == 6
    training, validation = (data._sources(training=t)[0].label.unique().tolist() for t in (True, False))
    assert set(training) == set(range(32)) - hidden
    assert set(validation) == hidden | {0}
    seen = torch.cat([sample[Key.COUNTS] for sample in data.validation_set()])
    expected = data.counts[0][np.concatenate(data.held_out[0])].toarray()
    assert {tuple(row) for row in expected} <= {tuple(row) for row in seen.tolist()}


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
    from dataclasses import replace

    with pytest.raises(
        RunError, match=r"h: column half of A holds 2 levels, not one; d: no section has a column donor"
    ):
        section_levels([replace(a, spots=mixed)], {"h": "half", "d": "donor"})


def test_sections_without_counts_are_refused(make_section):
    """A slide alone, or nothing at all, cannot be trained on."""
    from dataclasses import replace

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


def test_first_values_reproduce_the_mean_counts(make_section):
    """Before any step, a spot of mean area with flat activity expects the mean count of each gene."""
    from superst_monai.model.objective import FusionVAE

    torch.manual_seed(0)
    data = TrainingData([make_section("A")], min_counts=1, covariates={"section": "section"})
    network = FusionVAE(data.n_genes, n_metagenes=2, depth=2, width=4, covariates=data.covariates)
    data.set_first_values(network)
    model = network.generative
    mean = (model.log_rate + model.logit).exp().detach().numpy()
    np.testing.assert_allclose(mean, data.counts[0].toarray().mean(0), rtol=1e-5)
    assert model.condition.tolist() == [[0]]
    y, x = np.mgrid[:96, :80] + 0.5
    disc = [((x - s.x_um / 10) ** 2 + (y - s.y_um / 10) ** 2 <= 9).sum() for s in data.sections[0].spots.itertuples()]
    assert data.spot_area_px == np.mean(disc)
