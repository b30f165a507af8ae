"""Batch normalisation over the patches of all processes, so that each sees the statistics of the whole batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the mean and variance over all processes; torch has its like on GPUs alone.

    Every process must have as many pixels. In evaluation mode it is plain `BatchNorm2d`, whose `state_dict` it has.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(B, C, H, W)`; in training by the statistics of the patches of all processes."""
        if not self.training:
            return super().forward(input)
        var, mean = (m.double() for m in torch.var_mean(input.float(), dim=(0, 2, 3), correction=0))  # (C,)
        mean, square = _Mean.apply(torch.stack((mean, var + mean**2)))  # type: ignore[no-untyped-call]
        var = square - mean**2
        self._track(mean.detach(), var.detach(), dist.get_world_size() * input.numel() // input.shape[1])
        factor = (var + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * factor
        found: Tensor = input * factor.float()[:, None, None] + shift.float()[:, None, None]
        return found.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, pixels: int) -> None:
        """Move the running statistics, which are those of `BatchNorm2d` on the whole batch."""
        for running, value in ((self.running_mean, mean), (self.running_var, var * pixels / (pixels - 1))):
            if running is not None and self.momentum is not None:
                running.lerp_(value.to(running.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class _Mean(torch.autograd.Function):
    """Mean over the processes; the gradient of each is the mean of the gradients of all."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _mean(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _mean(gradients[0])


def _mean(value: Tensor) -> Tensor:
    total = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def share_norms(network: nn.Module) -> nn.Module:
    """Let the batch normalisations of a network share their statistics; the same network, changed in place."""
    if next(network.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call, no-any-return]
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                module.add_module(name, _shared(child))
    return network


def _shared(norm: nn.BatchNorm2d) -> SharedBatchNorm:
    """The same normalisation, parameters and statistics included, with shared statistics."""
    shared = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    shared.weight, shared.bias = norm.weight, norm.bias
    shared.load_state_dict(norm.state_dict())
    return shared.train(norm.training)
