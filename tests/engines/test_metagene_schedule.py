"""The metagene schedule: its moves, its tree on disk, collapse and its counter, and the same moves after a kill."""

from __future__ import annotations

import copy
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from ignite.handlers import EMAHandler

from superst_monai.engines.budget import Budget
from superst_monai.engines.handlers import MetricsLog
from superst_monai.engines.metagene_evaluation import MetageneEvaluation
from superst_monai.engines.metagene_policies import POLICIES, start_metagenes
from superst_monai.engines.metagene_schedule import MetageneSchedule
from superst_monai.engines.run_folder import RunFolder
from superst_monai.engines.training_data import TrainingData
from superst_monai.engines.workflow import train
from superst_monai.model.objective import FusionVAE

CAPACITY = 8
NONE, ALL = float("inf"), float("-inf")
"""Least gains with which no metagene contributes, or every one."""


@pytest.fixture(scope="module")
def data(make_section) -> TrainingData:
    """One section with patches of 32 px."""
    return TrainingData([make_section("A")], min_counts=1, patch_px=32, val_share=0.0)


@pytest.fixture
def make_schedule(data, tmp_path):
    """Build the schedule of a network that has not been trained, of 100 steps in 10 epochs."""
    dataset = data.training_set(batch_size=2)

    def make(policy: str, least_gain: float = 1.0, *, capacity: int = CAPACITY, seed: int = 0) -> MetageneSchedule:
        torch.manual_seed(0)
        network = FusionVAE(data.n_genes, n_metagenes=capacity, depth=3, width=4, n_patches=data.n_patches)
        start_metagenes(network, POLICIES[policy])
        data.set_first_values(network)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return MetageneSchedule(
            POLICIES[policy],
            MetageneEvaluation(dataset, batch_size=2, n_batches=2),
            network=network,
            optimizer=torch.optim.Adam(network.parameters(), lr=1e-3),
            average=EMAHandler(network, momentum=0.1),
            budget=Budget(10, epochs=10),
            folder=RunFolder(folder),
            seed=seed,
            every_epochs=1,
            least_gain=least_gain,
        )

    return make


def evaluate(schedule: MetageneSchedule, step: int) -> Engine:
    """Let the schedule act after a step of the training."""
    engine = Engine(lambda *_: None)
    engine.state.iteration = step
    schedule(engine)
    return engine


def in_use(schedule: MetageneSchedule) -> list[int]:
    """Rows in use, which the moving average shares."""
    network, average = schedule.networks
    assert torch.equal(network.generative.active, average.generative.active)
    return network.generative.active.nonzero().flatten().tolist()


def replayed(moves: list[dict[str, Any]], *, purged: bool = True) -> list[int]:
    """Rows in use after all moves; refuses a move that cannot be."""
    found: set[int] = set()
    for move in moves:
        if move["action"] in ("drop", "purge"):
            if move["action"] == "drop" or purged:
                found.remove(move["metagene"])
            continue
        assert move["metagene"] not in found
        assert (move["parent"] is None) == (move["action"] == "start")
        assert move["parent"] is None or move["parent"] in found
        found.add(move["metagene"])
    return sorted(found)


def weights(schedule: MetageneSchedule) -> dict[str, torch.Tensor]:
    """Copies of all tensors of the trained network."""
    return {name: value.clone() for name, value in schedule.networks[0].state_dict().items()}


def test_what_contributes_is_split_up_to_the_capacity(make_schedule):
    """Two become four, then eight, and then stay; each once, the most missed first; not in the last fifth."""
    schedule = make_schedule("drop_and_split", ALL)
    assert in_use(schedule) == [0, 1]
    late = copy.deepcopy(schedule)
    evaluate(late, 80)
    assert in_use(late) == [0, 1]
    for step, n in ((10, 4), (20, 8), (30, 8)):
        engine = evaluate(schedule, step)
        assert in_use(schedule) == list(range(n))
        assert engine.state.metrics["metagenes_in_use"] == n
    record = json.loads((schedule.folder.path / "metagenes.json").read_text())
    assert [e["step"] for e in record["evaluations"]] == [10, 20, 30]
    first, second = ([m for m in record["moves"] if m["step"] == step] for step in (10, 20))
    assert [m["metagene"] for m in first + second] == [2, 3, 4, 5, 6, 7]
    assert {m["action"] for m in first + second} == {"split"}
    for moves, evaluation, n in ((first, record["evaluations"][0], 2), (second, record["evaluations"][1], 4)):
        assert [m["parent"] for m in moves] == sorted(range(n), key=lambda k: -evaluation["loss"][k])
        assert [m["loss"] for m in moves] == sorted(evaluation["loss"][:n], reverse=True)
    assert replayed(record["moves"]) == list(range(8))


def test_what_does_not_contribute_is_dropped_but_for_two(make_schedule):
    """The two most missed stay while training lasts, since one alone would be a collapse."""
    schedule = make_schedule("drop_and_split", NONE)
    schedule.networks[0].generative.active[:] = True
    schedule.networks[1].generative.active[:] = True
    loss = schedule.evaluation.score(schedule.networks[0]).loss
    evaluate(schedule, 80)
    assert in_use(schedule) == sorted(np.argsort(loss)[-2:].tolist())
    evaluate(schedule, 90)
    assert len(in_use(schedule)) == 2


def test_spare_metagenes_leave_one_by_one(make_schedule):
    """Of metagenes that do not contribute the quarter that is spare stays, then less, the most missed ones last."""
    schedule = make_schedule("extra", NONE, capacity=12)
    found = []
    for step in (0, 40, 60):
        loss = schedule.evaluation.score(schedule.networks[0]).loss
        before = in_use(schedule)
        evaluate(schedule, step)
        found.append(len(in_use(schedule)))
        assert in_use(schedule) == sorted(sorted(before, key=lambda k: loss[k])[-found[-1] :])
    assert found == [3, 2, 2]


def test_spare_metagenes_are_split_off_contributing_ones(make_schedule):
    """While all contribute, as many more come into use as the policy spares, from the most missed ones."""
    schedule = make_schedule("extra", ALL, capacity=12)
    for network in schedule.networks:
        network.generative.active[4:] = False
    loss = schedule.evaluation.score(schedule.networks[0]).loss
    evaluate(schedule, 40)
    assert in_use(schedule) == [0, 1, 2, 3, 4, 5]
    parents = [m["parent"] for m in schedule.state_dict()["moves"] if m["action"] == "split"]
    assert parents == sorted(range(4), key=lambda k: -loss[k])[:2]


@pytest.mark.parametrize("least_gain", [NONE, ALL])
def test_fixed_metagenes_are_scored_and_left_alone(make_schedule, least_gain):
    """Whatever the scores, no weight changes; they are written down."""
    schedule = make_schedule("fixed", least_gain)
    before = weights(schedule)
    evaluate(schedule, 10)
    assert all(torch.equal(value, before[name]) for name, value in weights(schedule).items())
    (evaluation,) = json.loads((schedule.folder.path / "metagenes.json").read_text())["evaluations"]
    assert len(evaluation["loss"]) == len(evaluation["share"]) == CAPACITY
    assert sum(evaluation["share"]) == pytest.approx(1.0)


def collapse(schedule: MetageneSchedule, row: int) -> None:
    """Give one metagene nearly all of the activity."""
    for network in schedule.networks:
        with torch.no_grad():
            network.generative.expression_decoder.activity.bias[row] += 7.0


@pytest.mark.parametrize("policy", list(POLICIES))
def test_a_collapse_is_said_in_words_and_countered(make_schedule, caplog, policy):
    """Every schedule warns with the shares and splits the survivor into equal parts, so that it is one no more."""
    schedule = make_schedule(policy, capacity=4)
    before = in_use(schedule)
    collapse(schedule, 1)
    with caplog.at_level(logging.WARNING):
        engine = evaluate(schedule, 10)
    found = schedule.state_dict()["evaluations"][-1]
    assert found["collapsed"]
    assert found["share"][1] > 0.98
    assert "step 10: the metagenes have collapsed, one is all that is used" in caplog.text
    assert all(f"{k}: {found['share'][k]:.2%}" in caplog.text for k in before)
    assert f"{len(before) - 1} split off it again" in caplog.text
    assert engine.state.metrics["metagenes_collapsed"] == 1
    assert in_use(schedule) == before
    after = schedule.evaluation.score(schedule.networks[0])
    assert not after.collapsed
    np.testing.assert_allclose(after.share[before], 1 / len(before), rtol=0.2)
    assert replayed(schedule.state_dict()["moves"]) == before
    assert {m["action"] for m in schedule.state_dict()["moves"]} == {"start", "drop", "split_again"}


def test_a_lone_metagene_is_split(make_schedule, caplog):
    """All but one out of use is a collapse too; the survivor gets a copy."""
    schedule = make_schedule("drop_and_split")
    for network in schedule.networks:
        network.generative.active[1:] = False
    evaluate(schedule, 10)
    assert "0: 100.00%" in caplog.text
    assert in_use(schedule) == [0, 1]
    (move,) = (m for m in schedule.state_dict()["moves"] if m["action"] == "split_again")
    assert (move["metagene"], move["parent"], move["loss"]) == (1, 0, None)


def test_a_late_collapse_is_only_said(make_schedule, caplog):
    """In the last fifth nothing is split."""
    schedule = make_schedule("fixed")
    collapse(schedule, 1)
    before = weights(schedule)
    evaluate(schedule, 85)
    assert "too late in the training to split it" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in weights(schedule).items())


def test_moves_are_a_function_of_seed_and_step(make_schedule):
    """Equal seeds and steps give equal bits, whatever was drawn before; another seed or step gives others."""
    found = []
    for seed, step, waste in ((0, 10, 0), (0, 10, 9), (1, 10, 0), (0, 20, 0)):
        schedule = make_schedule("drop_and_split", ALL, seed=seed)
        torch.rand(waste)
        evaluate(schedule, step)
        found.append(schedule.networks[0].guide.profile.mean[2].detach().clone())
    assert torch.equal(found[0], found[1])
    assert not any(torch.equal(found[0], other) for other in found[2:])


def test_the_tree_passes_through_a_checkpoint(make_schedule):
    """What happened is stored without pickled objects and taken over as it was."""
    schedule = make_schedule("drop_and_split", ALL)
    evaluate(schedule, 10)
    file = io.BytesIO()
    torch.save(schedule.state_dict(), file)
    file.seek(0)
    other = make_schedule("drop_and_split")
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.state_dict() == schedule.state_dict()
    evaluate(other, 20)
    assert len(schedule.state_dict()["evaluations"]) == 1


def test_without_spots_in_the_patches_nothing_happens(make_schedule, make_section):
    """No evidence, no move."""
    schedule = make_schedule("drop_and_split", NONE)
    tiny = TrainingData([make_section("A")], min_counts=1, patch_px=4, val_share=0.0)
    schedule.evaluation = MetageneEvaluation(tiny.training_set(batch_size=2), batch_size=2, n_batches=1)
    evaluate(schedule, 10)
    assert in_use(schedule) == [0, 1]
    assert not (schedule.folder.path / "metagenes.json").exists()


SMALL: dict[str, Any] = {
    "n_metagenes": 6,
    "depth": 3,
    "width": 4,
    "patch_px": 32,
    "batch_size": 2,
    "min_counts": 1,
    "val_every_steps": 10,
    "metagene_every_steps": 10,
}


def stored(run: Path) -> dict[str, torch.Tensor]:
    """Weights that a run kept."""
    found: dict[str, torch.Tensor] = torch.load(run / "models/model.pt", weights_only=True)
    return found


def test_an_interrupted_run_makes_the_same_moves(stores, tmp_path, monkeypatch):
    """Weights, moments and tree of a run stopped after a split and resumed are those of a whole run, bit for bit."""
    options = {"epochs": 3, "seed": 3, "options": SMALL | {"metagene_schedule": "drop_and_split"}}
    whole = train(stores, tmp_path / "whole", **options)
    add = MetricsLog._add

    def stop(self, engine):
        add(self, engine)
        if engine.state.iteration == 15:
            raise KeyboardInterrupt

    monkeypatch.setattr(MetricsLog, "_add", stop)
    with pytest.raises(KeyboardInterrupt):
        train(stores, tmp_path / "part", **options)
    monkeypatch.setattr(MetricsLog, "_add", add)
    part = train([], tmp_path / "part", resume=True)
    assert all(torch.equal(value, stored(part)[name]) for name, value in stored(whole).items())
    record = (whole / "metagenes.json").read_text()
    assert record == (part / "metagenes.json").read_text()
    moves = json.loads(record)["moves"]
    assert any(m["action"] in ("split", "drop") for m in moves)
    last = torch.load(whole / "checkpoints/checkpoint_epoch=3.pt", weights_only=True)
    assert last["network"]["generative.active"].nonzero().flatten().tolist() == replayed(moves, purged=False)


def test_the_kept_weights_are_purged(stores, tmp_path, monkeypatch):
    """At the end what does not contribute leaves the kept weights, one metagene stays; the purge is in the tree."""
    monkeypatch.setattr(
        MetageneSchedule.__init__, "__kwdefaults__", MetageneSchedule.__init__.__kwdefaults__ | {"least_gain": NONE}
    )
    out = train(stores[:1], tmp_path / "run", epochs=1, options=SMALL | {"metagene_schedule": "drop_and_split"})
    moves = json.loads((out / "metagenes.json").read_text())["moves"]
    assert stored(out)["generative.active"].nonzero().flatten().tolist() == replayed(moves)
    assert len(replayed(moves)) == 1
    assert [m["action"] for m in moves].count("purge") == 1


def test_scoring_does_not_touch_the_training(stores, tmp_path):
    """With the fixed schedule the weights are the same bits however often metagenes are scored."""
    runs = [
        train(stores[:1], tmp_path / f"{every}", epochs=1, options=SMALL | {"metagene_every_steps": every})
        for every in (10, 1000)
    ]
    assert all(torch.equal(value, stored(runs[1])[name]) for name, value in stored(runs[0]).items())
    assert (runs[0] / "metagenes.json").exists()
    assert not (runs[1] / "metagenes.json").exists()
