"""The end of a training and its learning-rate schedule."""

from __future__ import annotations

import math

import pytest
import torch

from superst_monai.engines import budget as module
from superst_monai.engines.budget import Budget, schedule
from superst_monai.errors import RunError


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns by hand [s]."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_epochs_are_spent_by_steps(clock):
    """Half of the steps spend half of the budget, whatever the clock says."""
    budget = Budget(10, epochs=4)
    budget.start()
    clock[0] += 1e6
    assert budget.fraction(20) == 0.5
    assert budget.fraction(40) == budget.fraction(90) == 1.0
    assert budget.max_epochs == 4


def test_minutes_are_spent_by_the_clock(clock):
    """Thirty seconds spend half a minute's budget; a stopped clock spends nothing."""
    budget = Budget(10, minutes=1)
    budget.start()
    clock[0] += 30
    assert budget.fraction(0) == 0.5
    budget.stop()
    clock[0] += 500
    assert budget.fraction(0) == 0.5
    assert budget.max_epochs > 10**6


def test_the_earlier_limit_ends_training(clock):
    """With both limits the larger share counts."""
    budget = Budget(10, epochs=10, minutes=1)
    budget.start()
    clock[0] += 15
    assert budget.fraction(10) == 0.25
    assert budget.fraction(70) == 0.7


def test_a_resumed_budget_goes_on_where_it_stopped(clock):
    """The state carries the seconds spent."""
    first = Budget(10, minutes=1)
    first.start()
    clock[0] += 45
    second = Budget(10, minutes=1)
    second.load_state_dict(first.state_dict())
    second.start()
    assert second.fraction(0) == 0.75


def test_the_schedule_rises_and_falls_as_stated(clock):
    """Linear warm-up times half a cosine, applied to every group of the optimiser."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr": 1.0}, {"params": weights[1:], "lr": 5.0}])
    budget = Budget(100, epochs=1, warmup_steps=10)
    scheduler = schedule(optimizer, budget)
    for step in range(100):
        expected = min(1, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / 100))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        assert optimizer.param_groups[1]["lr"] == pytest.approx(5 * expected)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "needs an end, got neither"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"minutes": -1.0}, "minutes positive"),
        ({"minutes": math.inf}, "minutes positive"),
    ],
)
def test_impossible_limits_are_refused(limits, message):
    """A budget needs an end that can come."""
    with pytest.raises(RunError, match=message):
        Budget(10, **limits)
