"""Several processes that train one network: where each sits, how they meet, and how one command starts them."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, start_processes

from superst_monai.errors import RunError, SuperstError, TrainingError

Show = Callable[[float, float, float], None]
"""Receives the share of the budget spent, the seconds and the loss [nat/patch]."""

_PLACE = {"rank": "RANK", "n": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "n_local": "LOCAL_WORLD_SIZE"}
_LOOK_S = 0.1


@dataclass(frozen=True)
class Seat:
    """Place of a process among those that train together.

    Args:
        rank: number of this process; the first, 0, writes what is written.
        n: processes.
        local_rank: number among those of this machine.
        n_local: processes of this machine.
    """

    rank: int
    n: int
    local_rank: int
    n_local: int


def seat() -> Seat:
    """The place of this process, from the variables that `torch.distributed.run` and `launch` set.

    Raises:
        RunError: nobody set them.
    """
    try:
        return Seat(**{field: int(os.environ[variable]) for field, variable in _PLACE.items()})
    except KeyError as exc:
        raise RunError(
            f"training in several processes needs {', '.join(_PLACE.values())} in the environment, but there is no "
            f"{exc.args[0]}; start it with superst train --nproc, or with python -m torch.distributed.run."
        ) from exc


def own_device() -> torch.device:
    """The GPU of this process alone, or the CPU where there is no GPU.

    Raises:
        RunError: there are fewer GPUs than processes.
    """
    here, gpus = seat(), torch.cuda.device_count()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if here.n_local > gpus:
        raise RunError(
            f"each process needs a GPU of its own, got {here.n_local} processes and {gpus} GPU; "
            f"pass --nproc {gpus}, or set CUDA_VISIBLE_DEVICES to nothing to train on the CPU."
        )
    return torch.device("cuda", here.local_rank)


def join(device: torch.device, meet: str = "env://") -> None:
    """Meet the other processes, unless that has happened: by gloo, GPUs by nccl.

    Args:
        device: of this process.
        meet: where, as `torch.distributed.init_process_group` takes it.
    """
    if dist.is_initialized():
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    here = seat()
    dist.init_process_group(backend, init_method=meet, rank=here.rank, world_size=here.n)
    idist.sync()  # all processes at once: later the first alone would ask, and wait for the others


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process among those that it has joined, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def of_all(values: Tensor) -> Tensor:
    """The values of all processes, item by item: those of the global batch from those of its shares.

    Args:
        values: `(b, ...)` on the CPU, as many in each process.

    Returns:
        `(b * n, ...)`; item i of process r is item i * n + r.
    """
    if not dist.is_initialized():
        return values
    found = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(found, values)
    return torch.stack(found, dim=1).flatten(0, 1)


def launch(nproc: int, work: Callable[[Show | None], object], show: Show | None = None) -> None:
    """Run `work` in several processes of this machine, which share its cores, and wait for all of them.

    Args:
        nproc: number of processes.
        work: function that can be imported by name, or a partial of one; called in each process with what shows
            progress, None in all but the first.
        show: progress of the first process; None shows none.

    Raises:
        SuperstError: what the first process that raised one raised.
        TrainingError: a process was killed or interrupted.
        RuntimeError: anything else went wrong; says what each process raised.
    """
    ends = [get_context("spawn").Pipe(duplex=False) for _ in range(nproc)]
    hear, speak = [end[0] for end in ends], [end[1] for end in ends]
    threads = max(1, torch.get_num_threads() // nproc)
    with tempfile.TemporaryDirectory() as folder:
        options = (work, speak, Path(folder) / "store", threads, logging.root.manager.disable, show is not None)
        processes = start_processes(  # type: ignore[no-untyped-call]
            _take_seat, options, nprocs=nproc, join=False, start_method="spawn"
        )
        try:
            _follow(processes, hear, show)
        finally:
            for process in processes.processes:
                process.kill()
                process.join()


def _take_seat(
    rank: int,
    work: Callable[[Show | None], object],
    speak: Sequence[Connection],
    store: Path,
    threads: int,
    silence: int,
    shows: bool,
) -> None:
    """Body of a process of `launch`; says in the end, or when it fails, how it went."""
    place = {"rank": rank, "n": len(speak), "local_rank": rank, "n_local": len(speak)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # comes when the launcher dies, and counts in any shell
    os.environ.update({_PLACE[field]: str(value) for field, value in place.items()})
    torch.set_num_threads(threads)
    if rank or silence:  # the others would repeat the first
        warnings.simplefilter("ignore")
        logging.disable(max(silence, logging.ERROR))
    say = speak[rank].send
    try:
        join(own_device(), f"file://{store}")
        work((lambda *progress: say(progress)) if shows and rank == 0 else None)
    except Exception as exc:
        ours = isinstance(exc, SuperstError)
        say((type(exc), str(exc)) if ours else (RuntimeError, f"process {rank}: {traceback.format_exc()}"))
        raise SystemExit(1) from exc
    say(None)


def _follow(processes: ProcessContext, hear: Sequence[Connection], show: Show | None) -> None:
    """Wait for the processes, pass progress on, and raise what went wrong."""
    heard: dict[int, Exception | None] = {}
    first = None
    try:
        while not processes.join(timeout=_LOOK_S):
            _listen(hear, heard, show)
    except ProcessExitedException as exc:
        first = exc.error_index
    _listen(hear, heard, show)
    faults = [fault for _, fault in sorted(heard.items()) if fault is not None]
    for fault in faults:
        if isinstance(fault, SuperstError):
            raise fault
    codes = [process.exitcode or 0 for process in processes.processes]
    killed = [
        f"process {number} by {signal.Signals(-code).name}"
        for number, code in enumerate(codes)
        if code < 0 and (number == first or -code != signal.SIGTERM)  # SIGTERM ends the others
    ]
    if killed:
        raise TrainingError(
            f"all {len(hear)} processes must live until the training ends, but killed were {', '.join(killed)} "
            "(SIGKILL often means that memory ran out); the others were stopped. Go on with --resume."
        )
    if faults:
        raise RuntimeError("\n".join(map(str, faults)))
    if len(heard) < len(hear):
        raise TrainingError(f"{len(hear) - len(heard)} of {len(hear)} processes were interrupted; go on with --resume.")


def _listen(hear: Sequence[Connection], heard: dict[int, Exception | None], show: Show | None) -> None:
    """Take in what the processes said: progress to show, None when they are done, or what they raised."""
    for number, end in enumerate(hear):
        while end.poll():
            said = end.recv()
            if said is None:
                heard[number] = None
            elif isinstance(said[0], type):
                heard[number] = said[0](said[1])
            elif show is not None:
                show(*said)
