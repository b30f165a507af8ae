"""Several processes are one training: the same losses and weights, one decision to stop, one error, nothing left.

What needs two processes runs in them once, see `scenes`; the tests look at what they leave behind.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial, partialmethod
from itertools import count
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException

from superst_monai.engines import processes
from superst_monai.errors import RunError, TrainingError

SMALL: dict[str, Any] = {"n_metagenes": 3, "depth": 3, "width": 4, "patch_px": 32, "batch_size": 4, "min_counts": 1}
QUICK = SMALL | {"val_every_steps": 10}
SHORT = SMALL | {"val_every_steps": 5}
EXACT = SMALL | {"val_share": 0.0, "val_umis": 0.0, "mixed_precision": False}
EXACT |= {"metagene_schedule": "drop_and_split", "metagene_every_steps": 5}
SCRIPT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("scenes_of_processes", {file!r})
sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
if __name__ == "__main__":
    module.processes.launch(2, module.partial(module.scenes, sys.argv[1], sys.argv[2:]))
"""
QUICK_CLI = """
from superst_monai.engines import workflow
train = workflow.train
workflow.train = lambda *args, options, **more: train(*args, options=options | {"val_every_steps": 10}, **more)
from superst_monai.cli import main
main()
"""


def place() -> tuple[int, int]:
    """Rank and number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def noise_of_patches() -> Callable[..., torch.Tensor]:
    """Standard normal draws that depend on the step and on the patch in the global batch, not on the process."""
    calls = count()

    def draw(shape: torch.Size, **_: Any) -> torch.Tensor:
        rank, n = place()
        generator = torch.Generator().manual_seed(next(calls))
        if len(shape) < 4:  # not of a patch, but of all of them
            return torch.randn(shape, generator=generator)
        return torch.randn(shape[0] * n, *shape[1:], generator=generator)[rank::n]

    return lambda shape, dtype, device: draw(shape)


def some_without_spots(get: Callable[[Any, int], dict[str, Any]]) -> Callable[[Any, int], dict[str, Any]]:
    """Patches of which the second process's have no spots in the second step, and nobody's in the third."""

    def item(self: Any, index: int) -> dict[str, Any]:
        patch = get(self, index)
        if index in (5, 7, 8, 9, 10, 11):
            patch |= {"counts": patch["counts"].to_dense()[:0].to_sparse(), "share": patch["share"][:0]}
            patch["label"] = torch.zeros_like(patch["label"])
        return patch

    return item


def make_exact(patch: Callable[[Any, str, Any], None]) -> None:
    """Fix the noise and take spots away."""
    from superst_monai.model import guide
    from superst_monai.transforms.sampling import PatchDataset

    noise = noise_of_patches()
    patch(torch.distributions.normal, "_standard_normal", noise)
    patch(guide, "_standard_normal", noise)
    patch(PatchDataset, "__getitem__", some_without_spots(PatchDataset.__getitem__))


def make_short(patch: Callable[[Any, str, Any], None]) -> None:
    """Let an epoch have no more steps than its patches need, which are five."""
    from superst_monai.engines.training_data import TrainingData

    patch(TrainingData, "training_set", partialmethod(TrainingData.training_set, min_steps=1))


def norm_case(patches: slice) -> dict[str, torch.Tensor]:
    """Output, gradients and statistics of a normalisation after one batch of 6 patches, or of a part of them."""
    from superst_monai.networks.shared_norm import share_norms

    torch.manual_seed(0)
    x = (3.0 * torch.randn(6, 5, 4, 4) + torch.arange(5.0)[:, None, None])[patches].requires_grad_()
    norm: nn.Module = nn.Sequential(nn.BatchNorm2d(5))
    with torch.no_grad():
        norm[0].weight.copy_(torch.rand(5))
    if dist.is_initialized():
        share_norms(norm)
    y = norm(x)
    (y**3).mean().backward()  # differs from patch to patch
    found = {"y": y, "x": x.grad, "weight": norm[0].weight.grad, "bias": norm[0].bias.grad} | norm.state_dict()
    return {name: value.detach() for name, value in found.items()}


def scenes(folder: str, stores: list[str], _: Any) -> None:
    """What both processes do; each saves what it saw."""
    from superst_monai.engines import prepare, run_folder, trainer, workflow

    out, (rank, n) = Path(folder), place()
    processes.leave = lambda: None  # they stay together for the next scene
    configs = [run_folder.bundle_folder() / "configs" / f"{name}.yaml" for name in ("train", "multi_gpu_train")]

    def run(name: str, **options: Any) -> dict[str, Any]:
        given = {"sections": stores, "run_dir": str(out / name), "nproc": n, "seed": 3} | options
        done = workflow.run_config("train", configs, configs[0].with_name("metadata.json"), given)
        engine = done.parser.get_parsed_content("train#trainer")
        weights = done.parser.get_parsed_content("network").state_dict()
        return {"steps": engine.state.iteration, "weights": weights}

    told = {"order": processes.of_all(torch.arange(3) * n + rank), "norm": norm_case(slice(rank, None, n))}
    told |= {"threads": torch.get_num_threads(), "plain": run("plain", epochs=2, **QUICK)["steps"]}
    make_short(setattr)
    told["minutes"] = run("minutes", minutes=0.01, **SHORT)

    scores = count(0, -1)
    kept, trainer.score_of = trainer.score_of, lambda engine: float(next(scores))
    told["patience"] = run("patience", epochs=50, patience=1, **SHORT)
    trainer.score_of = kept

    steps, objective = count(1), prepare.objective
    prepare.objective = lambda *a: objective(*a) * (float("nan") if rank and next(steps) == 6 else 1.0)
    try:
        run("nan", epochs=3, **SHORT)
    except TrainingError as exc:
        told["nan"] = str(exc)
    prepare.objective = objective

    make_exact(setattr)
    told["law"] = run("law", epochs=2, covariates={"section": "section"}, **EXACT)
    torch.save(told, out / f"told{rank}.pt")


@pytest.fixture(scope="module")
def together(stores: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that two processes leave behind."""
    out = tmp_path_factory.mktemp("together")
    script = out / "script.py"
    script.write_text(SCRIPT.format(file=__file__))
    subprocess.run([sys.executable, script, out, *stores], check=True, timeout=600)
    return out


@pytest.fixture(scope="module")
def told(together: Path) -> list[dict[str, Any]]:
    """What each of the two saw."""
    return [torch.load(together / f"told{rank}.pt", weights_only=True) for rank in range(2)]


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Of any two weights of the same name."""
    assert first.keys() == second.keys()
    return max(float((first[k].double() - second[k].double()).abs().max()) for k in first if first[k].numel())


def rows(run: Path) -> list[dict[str, str]]:
    """Rows of the metrics of a run."""
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_processes_are_one(
    told: list[dict[str, Any]], together: Path, stores: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with batches of 2 take the steps of one with batches of 4, and split the same metagenes.

    Some patches are without spots, in one process or in both. In ten steps the weights move by some 1e-3; what is
    allowed is rounding, which Adam magnifies.
    """
    from superst_monai.engines.run_folder import bundle_folder
    from superst_monai.engines.workflow import run_config

    make_short(monkeypatch.setattr)
    make_exact(monkeypatch.setattr)
    configs = bundle_folder() / "configs"
    given = {"sections": list(map(str, stores)), "run_dir": str(tmp_path / "one"), "seed": 3, "epochs": 2}
    given |= {"covariates": {"section": "section"}} | EXACT
    one = run_config("train", [configs / "train.yaml"], configs / "metadata.json", given)
    weights = one.parser.get_parsed_content("network").state_dict()
    assert largest_difference(told[0]["law"]["weights"], told[1]["law"]["weights"]) == 0
    assert largest_difference(told[0]["law"]["weights"], weights) < 3e-4
    for alone, both in zip(rows(tmp_path / "one"), rows(together / "law"), strict=True):
        assert alone["step"] == both["step"]
        for name in ("loss", "image", "expression", "kl_local", "kl_global", "learning_rate"):
            assert float(both[name]) == pytest.approx(float(alone[name]), rel=1e-4), name
    trees = [json.loads((run / "metagenes.json").read_text())["moves"] for run in (tmp_path / "one", together / "law")]
    alone, both = ([(move["step"], move["action"], move["metagene"]) for move in tree] for tree in trees)
    assert alone == both
    assert (5, "split", 2) in alone


def test_statistics_of_normalisation_are_those_of_the_whole_batch(told: list[dict[str, Any]]) -> None:
    """Outputs, gradients (their mean, as the loss is a mean) and running statistics against one plain batch norm."""
    whole = norm_case(slice(None))
    for rank, found in enumerate(case["norm"] for case in told):
        torch.testing.assert_close(found["y"], whole["y"][rank::2])
        torch.testing.assert_close(found["x"] / 2, whole["x"][rank::2], rtol=1e-4, atol=1e-6)
        for name in ("0.weight", "0.bias", "0.running_mean", "0.running_var", "0.num_batches_tracked"):
            torch.testing.assert_close(found[name], whole[name])
    for name in ("weight", "bias"):
        torch.testing.assert_close((told[0]["norm"][name] + told[1]["norm"][name]) / 2, whole[name])


@pytest.mark.parametrize("scene", ["minutes", "patience"])
def test_all_stop_at_the_same_step(told: list[dict[str, Any]], together: Path, scene: str) -> None:
    """By the clock, which also sets the learning rate, and by the score that one process alone computes."""
    first, second = (case[scene] for case in told)
    assert first["steps"] == second["steps"]
    assert largest_difference(first["weights"], second["weights"]) == 0
    assert json.loads((together / scene / "run.json").read_text())["state"] == "done"
    if scene == "patience":
        assert first["steps"] == 10


def test_nan_in_one_process_stops_all(told: list[dict[str, Any]], together: Path) -> None:
    """The same error everywhere, with the sections of the whole batch; the last good checkpoint is kept."""
    assert told[0]["nan"] == told[1]["nan"]
    assert "the loss must stay finite, but became nan at step 6 (epoch 2, patches of" in told[0]["nan"]
    assert "sections [0, 1, 0, 1]" in told[0]["nan"]
    assert [path.name for path in (together / "nan" / "checkpoints").iterdir()] == ["checkpoint_epoch=1.pt"]


def test_batches_are_put_together_item_by_item(told: list[dict[str, Any]]) -> None:
    """What all have is in the order of the whole batch; each has half of the caller's threads."""
    for case in told:
        assert case["order"].tolist() == [0, 1, 2, 3, 4, 5]
        assert case["threads"] == 1


def test_the_run_folder_knows_its_processes(told: list[dict[str, Any]], together: Path) -> None:
    """It says how many there were and holds the overlay, so that it can be trained on."""
    assert [case["plain"] for case in told] == [20, 20]
    configs = together / "plain" / "configs"
    assert "nproc: 2" in (configs / "train.yaml").read_text().splitlines()
    assert (configs / "multi_gpu_train.yaml").exists()


def test_noise_differs_from_process_to_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process draws what a process alone draws, the others something else."""
    from ignite.engine import Engine

    from superst_monai.engines import handlers

    class Patches:
        def set_epoch(self, epoch: int) -> None:
            pass

    def draw(rank: int) -> float:
        monkeypatch.setattr(handlers, "rank", lambda: rank)
        engine = Engine(lambda *_: float(torch.rand(())))
        handlers.EpochSeed(Patches(), 5).attach(engine)
        return engine.run([0], max_epochs=1).output

    assert len({draw(0), draw(1), draw(2)}) == 3
    assert draw(1) == draw(1)


def test_a_place_must_have_been_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The overlay alone starts nothing; more processes than GPUs are refused."""
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(RunError, match=r"there is no RANK; start it with superst train --nproc"):
        processes.seat()
    for variable, value in (("RANK", 5), ("WORLD_SIZE", 6), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(variable, str(value))
    assert processes.seat() == processes.Seat(rank=5, n=6, local_rank=1, n_local=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RunError, match="got 2 processes and 1 GPU; pass --nproc 1"):
        processes.own_device()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes.own_device() == torch.device("cuda", 1)


def test_impossible_numbers_of_processes_are_refused(stores: list[Path], tmp_path: Path) -> None:
    """Before any process is started: none, more than patches, and shares that are not equal."""
    from superst_monai.engines.workflow import train

    refused = partial(train, stores, tmp_path / "run", epochs=1)
    with pytest.raises(RunError, match=r"nproc must be a whole number >= 1, got 0"):
        refused(nproc=0)
    with pytest.raises(RunError, match=r"multiple of nproc, got 4 for 8 processes, for example 8"):
        refused(nproc=8, options=SMALL)
    with pytest.raises(RunError, match=r"multiple of nproc, got 4 for 3 processes, for example 3"):
        refused(nproc=3, options=SMALL)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_as_many_processes(together: Path) -> None:
    """Noise and order of summation are those of the number of processes, so another number is refused."""
    from superst_monai.engines.workflow import train

    with pytest.raises(RunError, match=r"settings of the run, but nproc was 2, got 1"):
        train([], together / "plain", resume=True, nproc=1)


LOST = (RuntimeError, "process 0: connection closed by peer")


@pytest.mark.parametrize(
    ("codes", "first", "said", "kind", "message"),
    [
        ([1, -9], 0, [LOST, ...], TrainingError, "but killed were process 1 by SIGKILL"),
        ([-15, -15], 1, [..., ...], TrainingError, "but killed were process 1 by SIGTERM "),
        ([1, 1], 1, [LOST, (RunError, "no sections")], RunError, "no sections"),
        ([1, 1], 0, [LOST, (RuntimeError, "process 1: a bug")], RuntimeError, "closed by peer\nprocess 1: a bug"),
        ([0, 0], None, [None, ...], TrainingError, "1 of 2 processes were interrupted"),
    ],
)
def test_what_ended_the_processes_is_told(
    codes: list[int], first: int | None, said: list[Any], kind: type[Exception], message: str
) -> None:
    """The cause, not what it brought about in the others; an ellipsis is a process that said nothing."""

    def join(timeout: float) -> bool:
        if first is not None:
            raise ProcessExitedException("", error_index=first, error_pid=1, exit_code=codes[first])
        return True

    ended = SimpleNamespace(join=join, processes=[SimpleNamespace(exitcode=code) for code in codes])
    ends = [Pipe(duplex=False) for _ in codes]
    shown = []
    ends[0][1].send((0.5, 1.0, 2.0))
    for (_, speak), word in zip(ends, said, strict=True):
        if word is not ...:
            speak.send(word)
    with pytest.raises(kind, match=message):
        processes._follow(ended, [hear for hear, _ in ends], lambda *progress: shown.append(progress))
    assert shown == [(0.5, 1.0, 2.0)]


@pytest.mark.slow
def test_a_killed_process_ends_all_and_the_run_resumes(together: Path, stores: list[Path], tmp_path: Path) -> None:
    """`superst train --nproc 2`: kill -9 of one ends the other with an error; --resume ends at the same bits."""
    run, options = tmp_path / "run", ("metagenes", "depth", "width", "patch", "batch", "min-counts")
    words = [f"--{name}={value}" for name, value in zip(options, SMALL.values(), strict=True)]
    command = [
        sys.executable,
        "-c",
        QUICK_CLI,
        "train",
        *map(str, stores),
        "--out",
        str(run),
        "--nproc=2",
        "--epochs=2",
        "--seed=3",
        *words,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as training:
        while not (run / "checkpoints" / "checkpoint_epoch=1.pt").exists():
            assert training.poll() is None, training.stderr.read()
            time.sleep(0.01)
        seats = seats_of(training.pid)
        assert len(seats) == 2
        os.kill(seats[1], signal.SIGKILL)
        _, said = training.communicate(timeout=300)
    assert training.returncode == 2
    assert "all 2 processes must live until the training ends, but killed were process 1 by SIGKILL" in said
    assert "Traceback" not in said
    assert not any(Path(f"/proc/{seat}").exists() for seat in seats)
    resume = [sys.executable, "-m", "superst_monai.cli", "train", "--resume", "--out", run]
    done = subprocess.run(resume, capture_output=True, text=True, check=True)
    assert "training: 100 %" in done.stderr
    first, second = (torch.load(p / "models/model.pt", weights_only=True) for p in (run, together / "plain"))
    assert largest_difference(first, second) == 0


def seats_of(launcher: int) -> list[int]:
    """Process ids of the children of a launcher that train, in the order in which they were started."""
    pids = [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]
    return sorted(pid for pid in pids if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text())


@pytest.mark.slow
def test_torchrun_is_another_door_to_the_same_weights(together: Path, stores: list[Path], tmp_path: Path) -> None:
    """`torch.distributed.run -m monai.bundle run` with the overlay ends at the bits of the other launcher."""
    from superst_monai.engines.run_folder import bundle_folder
    from superst_monai.inference.run import load_run

    configs = bundle_folder() / "configs"
    files = str([str(configs / f"{name}.yaml") for name in ("train", "multi_gpu_train")])
    given = QUICK | {"sections": [str(s) for s in stores], "run_dir": str(tmp_path / "run"), "seed": 3, "epochs": 2}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "monai.bundle", "run", "--config_file", files, "--meta_file", str(configs / "metadata.json")]
    command += [part for key, value in given.items() for part in (f"--{key}", str(value))]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    first, second = (
        torch.load(p / "models/model.pt", weights_only=True) for p in (tmp_path / "run", together / "plain")
    )
    assert largest_difference(first, second) == 0
    assert load_run(tmp_path / "run").network.training is False
