"""How many metagenes are in use when: fixed, drop and split, or extra ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from superst_monai.model.objective import FusionVAE


class Policy(Protocol):
    """How many metagenes there are, in a network with rows for `capacity` of them."""

    purges: bool
    """Whether those that do not contribute leave the weights that are kept at the end."""

    def first(self, capacity: int) -> int:
        """Metagenes in use at the start."""

    def spare(self, capacity: int, fraction: float) -> int:
        """Metagenes that may stay without contributing, after a share `fraction` of the budget."""

    def wanted(self, contributing: int, capacity: int, fraction: float) -> int:
        """Metagenes that an evaluation should end with; it splits contributing ones until then."""


class Fixed:
    """All of them from the start, each from the factorisation; only a collapse is countered."""

    purges = False

    def first(self, capacity: int) -> int:
        """All."""
        return capacity

    def spare(self, capacity: int, fraction: float) -> int:
        """All."""
        return capacity

    def wanted(self, contributing: int, capacity: int, fraction: float) -> int:
        """No more than there are."""
        return 0


class DropAndSplit:
    """A few at first; those that do not contribute are dropped and all others split, up to the capacity.

    Source: xfuse, `metagene_expansion_strategy.py::DropAndSplit` (doi:10.1038/s41587-021-01075-3).
    """

    purges = True

    def first(self, capacity: int) -> int:
        """A quarter, at least two."""
        return min(capacity, max(2, capacity // 4))

    def spare(self, capacity: int, fraction: float) -> int:
        """None."""
        return 0

    def wanted(self, contributing: int, capacity: int, fraction: float) -> int:
        """Twice those that contribute."""
        return 2 * contributing


class Extra:
    """All at first; beside those that contribute a number of spare ones, annealed from a quarter of all to none.

    Source: xfuse, `metagene_expansion_strategy.py::Extra`.
    """

    purges = True

    def first(self, capacity: int) -> int:
        """All."""
        return capacity

    def spare(self, capacity: int, fraction: float) -> int:
        """A quarter, at least one, times the share of the budget that is left."""
        return round((1.0 - fraction) * max(1, capacity // 4))

    def wanted(self, contributing: int, capacity: int, fraction: float) -> int:
        """Those that contribute and the spare ones."""
        return contributing + self.spare(capacity, fraction)


POLICIES: Mapping[str, Policy] = {"fixed": Fixed(), "drop_and_split": DropAndSplit(), "extra": Extra()}
"""What `metagene_schedule` of the training configuration may name."""


def start_metagenes(network: FusionVAE, policy: Policy) -> None:
    """Put the first metagenes of a policy in use, before the first values are written."""
    active = network.generative.active
    active.copy_(torch.arange(len(active)) < policy.first(len(active)))
