"""Laws of the gene parameters: their moments, their joint draws, and the conditions that they are drawn under."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from superst_monai.data.section import Section
from superst_monai.errors import RunError
from superst_monai.inference.rates import ANOTHER, another_level, choose_conditions, draw_rates, rate_moments
from superst_monai.inference.run import Run, load_run


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, make_run: Callable) -> Run:
    """A run with two covariates, one of them read from a column of another name."""
    levels = {"section": ["C2", "C6"], "donor": ["p1", "p2", "p3"]}
    path: Path = tmp_path_factory.mktemp("two") / "run"
    return load_run(make_run(path, covariates=levels, columns={"section": "section", "donor": "patient"}))


@pytest.mark.parametrize("donor", ["p3", None])
def test_moments_are_those_of_the_draws(two: Run, donor: str | None) -> None:
    """The exact mean and sd are what many draws have, with a known condition and averaged over levels."""
    conditions = {"section": "C6", "donor": donor}
    mean, sd = rate_moments(two.network, conditions)
    drawn = draw_rates(two.network, conditions, samples=4000, seed=1)
    np.testing.assert_allclose(drawn.log_rate.mean(0), mean, atol=0.08)
    np.testing.assert_allclose(drawn.log_rate.std(0), sd, rtol=0.08)


def test_a_known_condition_adds_its_effects(two: Run) -> None:
    """Log rate and logit are baseline plus effect of the level, and the profile for the rate."""
    guide, model = two.network.guide, two.network.generative
    drawn = draw_rates(two.network, {"section": "C6", "donor": "p1"}, samples=2000, seed=0)
    rate = model.log_rate + guide.rate_effect["section"].mean[1] + guide.rate_effect["donor"].mean[0]
    logit = model.logit + guide.logit_effect["section"].mean[1] + guide.logit_effect["donor"].mean[0]
    np.testing.assert_allclose(drawn.log_rate.mean(0), (rate + guide.profile.mean).detach(), atol=0.03)
    np.testing.assert_allclose(drawn.logit.mean(0), logit.detach(), atol=0.03)
    assert drawn.levels == {"section": ["C6"] * 2000, "donor": ["p1"] * 2000}


def test_an_unknown_condition_is_uniform_and_shared_by_all_genes(two: Run) -> None:
    """Each sample draws one level, as often one as another."""
    drawn = draw_rates(two.network, {"section": None, "donor": None}, samples=900, seed=2)
    assert [drawn.levels["donor"].count(level) for level in ("p1", "p2", "p3")] == pytest.approx([300] * 3, abs=60)
    known = draw_rates(two.network, {"section": "C2", "donor": "p1"}, samples=900, seed=2)
    mixed = draw_rates(two.network, {"section": "C2", "donor": None}, samples=900, seed=2)
    assert mixed.effects is not None
    row = [mixed.effects.rows.index(("donor", level)) for level in mixed.levels["donor"]]
    drawn_effect = mixed.effects.logit
    jump = drawn_effect[np.arange(900), row] - drawn_effect[:, mixed.effects.rows.index(("donor", "p1"))]
    np.testing.assert_allclose(mixed.logit - known.logit, jump, atol=1e-5)
    effect = two.network.guide.logit_effect["donor"]
    np.testing.assert_allclose(drawn_effect[:, 2:].mean(0), effect.mean.detach(), atol=0.03)
    np.testing.assert_allclose(drawn_effect[:, 2:].std(0), effect.log_sd.exp().detach(), rtol=0.1)


def test_a_slide_of_another_section_lies_as_far_as_sections_do(two: Run) -> None:
    """Levels of one section each: a new one has their mean, and 3 times the variance of 2; its effect is kept."""
    network = copy.deepcopy(two.network)
    assert another_level(network) == {}
    network.generative.set_conditions({"section": ["C2", "C6"], "donor": ["p1", "p1"]})
    assert another_level(network) == {"section": pytest.approx(3**0.5)}
    unknown = {"section": None, "donor": "p1"}
    drawn = draw_rates(network, unknown, samples=4000, seed=1)
    mean, sd = rate_moments(network, unknown)
    np.testing.assert_allclose(drawn.log_rate.mean(0), mean, atol=0.08)
    np.testing.assert_allclose(drawn.log_rate.std(0), sd, rtol=0.08)
    assert drawn.levels["section"] == [ANOTHER] * 4000
    assert drawn.effects is not None
    assert drawn.effects.rows[:3] == [("section", "C2"), ("section", "C6"), ("section", ANOTHER)]
    known = draw_rates(network, {"section": "C2", "donor": "p1"}, samples=4000, seed=1)
    jump = drawn.effects.log_rate[:, 2] - drawn.effects.log_rate[:, 0]
    np.testing.assert_allclose(drawn.log_rate - known.log_rate, np.repeat(jump[:, None], len(mean), 1), atol=1e-5)
    levels = network.guide.rate_effect["section"]
    with torch.no_grad():
        levels.log_sd.fill_(-9.0)
    effects = draw_rates(network, unknown, samples=900, seed=1).effects
    assert effects is not None
    np.testing.assert_allclose(
        effects.log_rate[:, 2].var(0), 3 * levels.mean.detach().var(0, correction=0), rtol=0.1, atol=1e-6
    )


def test_sample_n_does_not_depend_on_the_number_of_samples(two: Run) -> None:
    """More samples are the same ones and further ones; another seed gives others."""
    unknown = {"section": None, "donor": None}
    few, more = (draw_rates(two.network, unknown, samples=n, seed=3) for n in (2, 5))
    np.testing.assert_array_equal(few.log_rate, more.log_rate[:2])
    np.testing.assert_array_equal(few.logit, more.logit[:2])
    assert not np.allclose(few.log_rate, draw_rates(two.network, unknown, samples=2, seed=4).log_rate)


def test_a_condition_is_given_or_read_or_unknown(two: Run, make_section: Callable[..., Section]) -> None:
    """The user's level wins; then the section's column; a level the run never saw is unknown."""
    assert choose_conditions(two, make_section(), None) == {"section": "C2", "donor": "p1"}
    assert choose_conditions(two, make_section(), {"section": "C6"}) == {"section": "C6", "donor": "p1"}
    assert choose_conditions(two, make_section(name="C9"), {}) == {"section": None, "donor": "p1"}
    assert choose_conditions(two, "a slide", {"donor": "p2"}) == {"section": None, "donor": "p2"}
    section = make_section()
    mixed = section.spots.assign(patient=["p1", "p2"] * (section.n_spots // 2)).drop(columns="section")
    assert choose_conditions(two, replace(section, spots=mixed), None) == {"section": None, "donor": None}


def test_conditions_that_the_run_does_not_know_are_refused_together(two: Run, tmp_path: Path, make_run) -> None:
    """A wrong level names the levels, a wrong covariate names the covariates."""
    with pytest.raises(
        RunError,
        match="section=C9 is not among the levels C2, C6 of this run; leave --condition out to average over them; "
        "sex=f names no covariate of this run: its covariates are section, donor",
    ):
        choose_conditions(two, None, {"section": "C9", "sex": "f"})
    with pytest.raises(RunError, match="sex=f names no covariate of this run: it has no covariates"):
        choose_conditions(load_run(make_run(tmp_path / "run")), None, {"sex": "f"})
