"""Held-out spots come in compact, disjoint blocks of the wanted total."""

from __future__ import annotations

import numpy as np
import pytest

from superst_monai.engines.holdout import held_out_blocks, withheld_spots


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 0), (0.1, 10), (0.25, 25)])
def test_blocks_are_disjoint_and_have_the_wanted_total(share, wanted):
    """No spot is held out twice, and the share is met exactly."""
    xy = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), axis=-1).reshape(-1, 2)
    blocks = held_out_blocks(xy, share, block=4, rng=np.random.default_rng(0))
    rows = np.concatenate(blocks) if blocks else np.empty(0)
    assert len(rows) == len(set(rows)) == wanted
    assert all(len(block) <= 4 for block in blocks)


def test_blocks_are_compact():
    """The spots of a block are the nearest ones to its first."""
    xy = np.random.default_rng(1).uniform(0, 100, (200, 2))
    first = held_out_blocks(xy, 0.02, block=4, rng=np.random.default_rng(0))[0]
    distance = np.linalg.norm(xy - xy[first[0]], axis=1)
    assert set(first) == set(np.argsort(distance)[:4])


def test_a_section_of_few_spots_is_legal():
    """A block larger than the section takes all but one spot, whatever the share; no spots give no blocks."""
    assert sum(map(len, held_out_blocks(np.zeros((2, 2)), 0.9, block=10, rng=np.random.default_rng(0)))) == 1
    assert held_out_blocks(np.zeros((1, 2)), 0.99, block=4, rng=np.random.default_rng(0)) == []
    assert held_out_blocks(np.zeros((0, 2)), 0.5, block=4, rng=np.random.default_rng(0)) == []


def test_the_withheld_spots_of_a_run_follow_from_its_seed():
    """Sections are drawn one after the other from one stream: the same seed withholds the same, another seed others."""
    xy = [np.random.default_rng(n).uniform(0, 100, (60, 2)) for n in range(2)]
    rng = np.random.default_rng(5)
    want = [held_out_blocks(part, 0.2, block=4, rng=rng) for part in xy]
    got = withheld_spots(xy, 0.2, seed=5)
    assert [[list(block) for block in blocks] for blocks in got] == [[list(b) for b in blocks] for blocks in want]
    other = withheld_spots(xy, 0.2, seed=6)
    assert set(np.concatenate(other[1])) != set(np.concatenate(got[1]))
