"""What a method and the engine say to each other: a loss and its metrics, a stage of training, a network that follows another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ...pipelines.batch import Views


@dataclass
class Terms:
    """What a loss returns.

    Attributes:
        total: [] loss whose gradient trains the stage's networks.
        metrics: name -> [] tensor averaged over steps, or (numerator [], denominator []) summed apart and divided when read.
        memory: what `remember` will want; detached tensors.
    """

    total: Tensor
    metrics: dict[str, Tensor | tuple[Tensor, Tensor]] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A stretch of training with constant computation.

    Stages that differ in nothing but `steps` and `goes_on` are one Step, compiled and captured once: give them a common `schedule`.
    """

    steps: int  # optimiser steps
    networks: tuple[str, ...] | None = None  # names of the submodules that train; None: all that is trainable
    name: str = "train"
    frozen: tuple[str, ...] = ()  # places of submodules ("network.encoder") that are held still meanwhile
    views: Views | None = None  # None: all that the method's configuration asks for
    goes_on: bool = False  # optimiser, clock and schedule go on from where the last stage of this kind was left; else they start afresh
    schedule: int | None = None  # steps over which the learning rate's schedule runs, the clock's total; None: `steps`
    rate: float = 1.0  # factor on train.lr
    weight_decay: float | None = None  # in place of train.weight_decay
    parts: tuple[tuple[str, ...], ...] = ()  # submodules by groups, each updated apart by an optimiser of its own; (): one update

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal of stages that are one Step."""
        span = self.schedule or self.steps
        return (self.name, self.networks, self.frozen, self.views, span, self.rate, self.weight_decay, self.parts)


class Averaged(NamedTuple):
    """A network that follows another one: average <- decay average + (1 - decay) source, after each optimiser step."""

    average: nn.Module
    source: nn.Module
    decay: float | Callable[[Tensor], Tensor]  # or a function of the number of the step that is done, [] int64 from 0 on
    buffers: str = "source"  # batch-norm statistics: the source's (copied), or filled by the average's "own" passes


class Updater(Protocol):
    """Trains by a [] loss: `part` of the stage's parts, at `rate` ([] factor on the learning rate; 1 if None)."""

    def __call__(self, loss: Tensor, part: int = 0, rate: Tensor | None = None) -> None: ...
