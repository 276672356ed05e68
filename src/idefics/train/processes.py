"""`Processes`: one training in several processes, a GPU each, as `accelerate launch` or `torchrun` starts them.

Each has the whole model and learns from a part of each step's rows; gradients are summed in one exchange.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a training; by default this one alone.

    Attributes:
        rank: number of this process, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def sum(self, *values: float) -> tuple[float, ...]:
        """The sums of numbers of all processes."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=_exchange_device())
        torch.distributed.all_reduce(total)
        return tuple(total.tolist())

    def sum_gradients(self, parameters: Iterable[nn.Parameter], *values: float) -> tuple[float, ...]:
        """Replaces the gradients of parameters by their sums over all processes, and returns the sums of numbers.

        A process in which a parameter has no gradient adds zero.
        """
        if self.count == 1:
            return values
        parameters = list(parameters)
        parts = [
            (torch.zeros_like(one) if one.grad is None else one.grad).flatten().float() for one in parameters
        ]
        joined = torch.cat([*parts, parts[0].new_tensor(values)])
        torch.distributed.all_reduce(joined)
        *sums, numbers = joined.split([*(one.numel() for one in parameters), len(values)])
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype)
        return tuple(numbers.tolist())


ALONE = Processes()


def _exchange_device() -> torch.device:
    """The device of tensors that processes exchange: NCCL takes those of GPUs alone."""
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")


def join_processes() -> Processes:
    """Joins the processes that were started together with this one; alone if the environment names no others."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)
