"""What keeps the steps of several processes one training: one loss, one clock, one decision to stop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from superst_monai.engines.budget import Budget
from superst_monai.engines.processes import rank
from superst_monai.model.generative import Batch
from superst_monai.model.objective import PARTS, FusionVAE


class Replica(nn.Module):
    """The network as `DistributedDataParallel` sees it: in every process the same layers take part in a step.

    A batch without spots would leave the expression decoder out of the backward pass, and the other processes waiting
    for its share of the statistics of batch normalisation. It gets a spot without pixels and counts, which has
    likelihood 1 and no gradient.
    """

    def __init__(self, network: FusionVAE) -> None:
        super().__init__()
        self.network = network
        self.idle = nn.Parameter(torch.zeros(()))  # never used: told to look for such, DDP warns if there is none

    def forward(self, image: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Objective of a batch, see `FusionVAE.forward`."""
        if not len(batch.counts):
            batch = replace(
                batch,
                counts=batch.share.new_zeros(1, batch.counts.shape[1]).to_sparse(),
                spot_section=batch.spot_section.new_zeros(1),
                share=batch.share.new_ones(1),
            )
        found: dict[str, Tensor] = self.network(image, batch)
        return found


def replicate(network: FusionVAE) -> DistributedDataParallel:
    """The network with gradients averaged over the processes.

    With loss / b in each of n processes and b = B / n, the mean over the processes is loss / B: local terms are summed
    over the batch, and global terms, of weight b / N in each, come out as those of one process, 1 / N a patch.
    Parameters that no process uses, such as the logits of conditions that are all known, get no gradient. Looking for
    them also fixes the order of summation from the first step on, so that a resumed run has the bits of a whole one.
    """
    return DistributedDataParallel(Replica(network).to(next(network.parameters()).device), find_unused_parameters=True)


class SharedBudget(Budget):
    """A budget by the clock of the first process, read once a step.

    The learning rate follows the clock and the clock ends the training; two clocks would let the weights drift apart
    and leave one process waiting for a step that the other does not make.
    """

    _agreed_s = 0.0

    @property
    def spent_s(self) -> float:
        """Wall-clock spent up to this step, on the first process's clock [s]."""
        return self._agreed_s

    @property
    def own_s(self) -> float:
        """Wall-clock spent by this process's clock [s]."""
        return super().spent_s

    def agree(self, seconds: float) -> None:
        """Set the wall-clock spent [s]."""
        self._agreed_s = seconds

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over the wall-clock of an interrupted run."""
        super().load_state_dict(state)
        self.agree(self._spent_s)


class Together:
    """Shows every process the loss and its parts over all of them, and the first one's clock.

    The loss keeps its own gradient, and what is not finite in one process is so in all: they stop at the same step.
    """

    def __init__(self, budget: SharedBudget) -> None:
        self.budget = budget

    def attach(self, engine: Engine) -> None:
        """Hook in between the loss and what looks at it."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Average over the processes."""
        output = cast(dict[str, Any], engine.state.output)
        loss, pred = output["loss"], output["pred"]
        own = torch.stack([loss.detach(), *(pred[name] for name in PARTS)]).double().cpu() / dist.get_world_size()
        seconds = self.budget.own_s if rank() == 0 else 0.0
        told = torch.cat((own, torch.tensor([seconds], dtype=own.dtype)))
        dist.all_reduce(told)
        mean = dict(zip(("loss", *PARTS), told, strict=False))
        output["pred"] = pred | mean
        output["loss"] = loss + (mean["loss"].to(loss) - loss.detach())
        self.budget.agree(float(told[-1]))


class StopTogether:
    """Ends the training in every process when the first has decided so at the end of an epoch."""

    def attach(self, engine: Engine) -> None:
        """Hook in after what decides."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Follow the first process."""
        stop = torch.tensor(bool(engine.should_terminate))
        dist.broadcast(stop, src=0)
        if stop and not engine.should_terminate:
            engine.terminate()
