"""How many metagenes each policy wants, in numbers."""

from __future__ import annotations

import pytest

from superst_monai.engines.metagene_policies import POLICIES, start_metagenes
from superst_monai.engines.settings import check_settings
from superst_monai.errors import RunError
from superst_monai.model.objective import FusionVAE


@pytest.mark.parametrize(
    ("name", "first"), [("fixed", [1, 2, 7, 12]), ("drop_and_split", [1, 2, 2, 3]), ("extra", [1, 2, 7, 12])]
)
def test_a_policy_starts_with_its_first_metagenes(name, first):
    """Capacities of 1, 2, 7 and 12: all rows, or a quarter of them but two at least; they are the first rows."""
    for capacity, n in zip((1, 2, 7, 12), first, strict=True):
        network = FusionVAE(3, n_metagenes=capacity, depth=2, width=4)
        start_metagenes(network, POLICIES[name])
        assert network.generative.active.tolist() == [True] * n + [False] * (capacity - n)


def test_drop_and_split_keeps_no_spare_and_doubles():
    """Whatever does not contribute goes at once, at any time; what contributes is wanted twice."""
    policy = POLICIES["drop_and_split"]
    assert [policy.spare(12, fraction) for fraction in (0.0, 0.5, 1.0)] == [0, 0, 0]
    assert [policy.wanted(n, 12, 0.5) for n in (0, 3, 8)] == [0, 6, 16]
    assert policy.purges


def test_spare_metagenes_are_annealed_to_none():
    """A quarter of the capacity at the start, none at the end; as many are wanted beyond those that contribute."""
    policy = POLICIES["extra"]
    assert [policy.spare(12, fraction) for fraction in (0.0, 0.4, 0.6, 0.9, 1.0)] == [3, 2, 1, 0, 0]
    assert policy.spare(3, 0.0) == 1
    assert [policy.wanted(5, 12, fraction) for fraction in (0.0, 1.0)] == [8, 5]
    assert policy.purges


def test_fixed_metagenes_stay():
    """None is dropped, none split, and the kept weights are what training left."""
    policy = POLICIES["fixed"]
    assert policy.spare(12, 0.9) == 12
    assert policy.wanted(4, 12, 0.1) == 0
    assert not policy.purges


@pytest.mark.parametrize("name", ["grow", 3, ["fixed"]])
def test_a_schedule_has_one_of_three_names(name):
    """The message lists them."""
    with pytest.raises(RunError, match="metagene_schedule must be one of fixed, drop_and_split, extra, got "):
        check_settings({"metagene_schedule": name})
