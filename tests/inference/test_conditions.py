"""Maps under other conditions are what a prediction under them would have been."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from superst_monai.data.section import Section
from superst_monai.errors import RunError
from superst_monai.inference.conditions import under
from superst_monai.inference.maps import Maps, open_maps
from superst_monai.inference.rates import ANOTHER
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.slide_map import predict


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Path]) -> Run:
    """A run with two covariates, one of which has a level for each section."""
    levels = {"section": ["C2", "C6"], "donor": ["p1", "p2", "p3"]}
    run = load_run(make_run(tmp_path_factory.mktemp("two") / "run", covariates=levels))
    run.network.generative.set_conditions({"section": ["C2", "C6"], "donor": ["p1", "p1"]})
    return run


@pytest.fixture(scope="module")
def predicted(
    two: Run, tmp_path_factory: pytest.TempPathFactory, make_section: Callable[..., Section]
) -> Callable[..., Maps]:
    """Predicts a section that says nothing of its covariates under given conditions."""
    folder, section = tmp_path_factory.mktemp("maps"), make_section(name="new", height=64, width=64)

    def make(**conditions: str) -> Maps:
        path = folder / ("-".join(conditions.values()) + ".zarr")
        if not path.exists():
            predict(two, section, path, samples=5, seed=4, conditions=conditions)
        return open_maps(path)

    return make


def assert_same(found: Maps, wanted: Maps) -> None:
    """Rates and logits agree but for rounding."""
    np.testing.assert_allclose(found.log_rate, wanted.log_rate, atol=2e-6)
    np.testing.assert_allclose(found.logit, wanted.logit, atol=2e-6)


@pytest.mark.parametrize("start", [{"section": "C2", "donor": "p3"}, {"section": "C2"}, {}])
def test_a_set_condition_is_that_of_a_prediction(predicted: Callable[..., Maps], start: dict[str, str]) -> None:
    """From a known or an averaged condition, all at once or one by one, the way back included."""
    wanted = predicted(section="C6", donor="p1")
    found = under(predicted(**start), {"section": "C6", "donor": "p1"})
    assert_same(found, wanted)
    assert found.record["conditions"] == wanted.record["conditions"]
    assert found.record["drawn_conditions"] == {}
    one_by_one = under(under(predicted(**start), {"donor": "p2", "section": None}), {"section": "C6"})
    assert_same(under(one_by_one, {"donor": "p1"}), wanted)
    assert one_by_one.record["removed"] == []


def test_a_removed_effect_is_gone(two: Run, predicted: Callable[..., Maps]) -> None:
    """Without any effect rates are baseline and profile; from any condition that is the same (against the network)."""
    found = [under(predicted(**c), {"section": None, "donor": None}) for c in ({}, {"section": "C2", "donor": "p2"})]
    assert_same(*found)
    assert found[0].record["removed"] == ["donor", "section"]
    baseline = two.network.generative.logit.detach().numpy()
    np.testing.assert_allclose(found[0].logit, np.tile(baseline, (5, 1)), atol=1e-5)
    assert_same(under(found[0], {"section": None}), found[0])


def test_the_given_maps_stay(predicted: Callable[..., Maps]) -> None:
    """The maps that were changed are untouched, and pixels are shared."""
    maps = predicted(section="C2")
    before = maps.log_rate.copy()
    changed = under(maps, {"section": "C6"})
    np.testing.assert_array_equal(maps.log_rate, before)
    assert maps.record["conditions"]["section"] == "C2"
    label = np.ones(maps.shape, np.uint8)
    np.testing.assert_array_equal(changed.size_of(label), maps.size_of(label))
    assert not np.allclose(changed.gene("Mbp")[0], maps.gene("Mbp")[0])
    assert under(maps, {}) is maps


def test_effects_of_levels_are_independent_draws(predicted: Callable[..., Maps]) -> None:
    """Two levels of a covariate do not share their noise."""
    effects = predicted().effects
    assert effects is not None
    donors = [("donor", "p1"), ("donor", "p2"), ("donor", "p3")]
    assert effects.rows == [("section", "C2"), ("section", "C6"), ("section", ANOTHER), *donors]
    noise = effects.log_rate - effects.log_rate.mean(0)
    assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]) < 0.5


def test_what_the_maps_do_not_know_is_refused(
    predicted: Callable[..., Maps], tmp_path: Path, make_run: Callable[..., Path], make_section: Callable[..., Section]
) -> None:
    """Every wrong covariate and level is named; stores without effects and runs without covariates say so."""
    maps = predicted(section="C2")
    with pytest.raises(RunError, match="section=C9 is not among the levels C2, C6; sex names no covariate of the maps"):
        under(maps, {"section": "C9", "sex": None})
    plain = predict(load_run(make_run(tmp_path / "run")), make_section(height=64, width=64), tmp_path / "m", samples=1)
    with pytest.raises(RunError, match="section names no covariate of the maps: they have no covariates"):
        under(open_maps(plain), {"section": None})
    copy = shutil.copytree(predicted(section="C2")._group.store.root, tmp_path / "old.zarr")
    shutil.rmtree(copy / "posterior" / "effect_log_rate")
    with pytest.raises(RunError, match="did not store them; predict again"):
        under(open_maps(copy), {"section": None})
