"""A network that teaches by being the average of the one that learns: its forward pass, and how fast it follows.

The reference codes run such a teacher in training mode, dropout on, with batch statistics, from which it fills running statistics of its
own (Tarvainen & Valpola 2017; Verma et al. 2019). The engine keeps averaged networks in evaluation mode; so the modes are the student's
for the length of the pass alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...models import Network, Output
from ...pipelines.errors import ConfigError
from .batchnorm import no_dropout
from .forward import forward_together
from .ramps import warm_decay


def check_average(name: str, ema: float) -> None:
    """Raises ConfigError where there is no averaged network to teach."""
    if not ema:
        raise ConfigError(f"method {name} is taught by the averaged network, and train.ema=0 keeps none; give --ema 0.999")


@contextlib.contextmanager
def modes_of(source: Network, average: Network) -> Iterator[None]:
    """Holds each module of `average` in the mode of its counterpart: a frozen encoder's stay in evaluation mode."""
    modules = list(average.modules())
    kept = [module.training for module in modules]
    try:
        for module, other in zip(modules, source.modules(), strict=True):
            module.training = other.training
        yield
    finally:
        for module, training in zip(modules, kept, strict=True):
            module.training = training


def taught(teacher: Network, student: Network, views: list[Tensor], *, dropout: bool = True) -> list[Output]:
    """The teacher's outputs of views as one batch, in the student's mode and without a graph; it moves its own running statistics.

    Args:
        dropout: false holds the teacher's dropout still.
    """
    with torch.no_grad(), modes_of(student, teacher), contextlib.nullcontext() if dropout else no_dropout(teacher):
        return forward_together(teacher, views, "update")


def following(decay: float, *, early: float = 0.0, until: float = 0.0) -> Callable[[Tensor], Tensor]:
    """The teacher's decay after a step of that number ([] int64 from 0 on): `ramps.warm_decay` up to `decay`.

    Args:
        early: up to this one instead in the steps before number `until`; 0 for none.
    """

    def at(step: Tensor) -> Tensor:
        late = warm_decay(step, decay)
        return torch.where(step < until, warm_decay(step, early), late) if early else late

    return at
