"""Trial steps that leave no trace: everything that a step writes is copied before them and copied back after, in place.

Compilers, autotuners and captures want a step run before the first one counts. Addresses stay what they are, so what was captured in
between goes on to serve.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .updates import each_of


def written(step: Any) -> list[Tensor]:
    """Every tensor that a Step writes, each once: weights, memory, optimiser, averages, counters, clock. Not the pipeline's."""
    update = step.update
    tensors = [*step.method.parameters(), *step.method.buffers()]
    for one in each_of(update):
        for state in one.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        tensors += [one.lr, one.rates, one.step, one.ok, one.losses_ok, one.growth]
        if one.scale is not None:
            tensors.append(one.scale)
    tensors += [step.streak, step.worst_streak, step.clock.step, *step.sums.values()]
    return list({id(tensor): tensor for tensor in tensors}.values())


@contextlib.contextmanager
def put_back(step: Any) -> Iterator[None]:
    """Undoes what steps within it do, also where they end in an error: training goes on as if they had not been.

    The copies lie in host memory, so that a network that just fits on its device still does. Sums that come up within it (a first step
    makes them) stay, as zeros.
    """
    tensors = written(step)
    kept = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    drawn = {name: value.clone() for name, value in step.pipeline.state_dict().items()}
    known = set(step.sums)
    host = torch.get_rng_state()
    device = torch.cuda.get_rng_state(step.device) if step.device.type == "cuda" else None
    try:
        yield
    finally:
        for one in each_of(step.update):
            one.turn = 0
        for parameter in step.update.parameters:
            parameter.grad = None
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
            for name, total in step.sums.items():
                if name not in known:
                    total.zero_()
        step.pipeline.load_state_dict(drawn)
        torch.set_rng_state(host)
        if device is not None:
            torch.cuda.set_rng_state(device, step.device)
