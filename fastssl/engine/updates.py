"""The updates of a stage in parts: one optimiser for each, in one step (Meta Pseudo Labels trains a student and then its teacher)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..config import TrainConfig
from ..methods.base import Method, Stage
from ..pipelines.errors import ConfigError
from .update import Update


class Updates:
    """As Update, of which it has one for each of the stage's parts.

    A step counts as a whole or not at all: where a later part is skipped, what earlier ones did is undone.

    Args:
        method, stage, config, scaled: as Update's.

    Raises:
        ConfigError: gradients are to be accumulated, which steps of several updates cannot do.
    """

    def __init__(self, method: Method, stage: Stage, config: TrainConfig, *, scaled: bool = False):
        if config.accumulate > 1:
            raise ConfigError(
                f"train.accumulate {config.accumulate}: {type(method).__name__} updates {len(stage.parts)} networks in turn within a step "
                "and cannot accumulate gradients; leave it at 1"
            )
        self.each = [Update(method, stage, config, scaled=scaled, part=part) for part in stage.parts]
        first = self.each[0]
        for update in self.each[1:]:
            update.ok = first.ok
        self.ok, self.lr, self.step, self.turn = first.ok, first.lr, first.step, 0
        self.parameters = [p for update in self.each for p in update.parameters]
        self._earlier = [tensor for update in self.each[:-1] for tensor in moved(update)]
        self._kept: list[Tensor] = []

    @property
    def watch(self) -> Callable[[str], None] | None:
        return self.each[0].watch

    @watch.setter
    def watch(self, take: Callable[[str], None] | None) -> None:
        for update in self.each:
            update.watch = take

    def restart(self, stage: Stage) -> None:
        for update in self.each:
            update.restart(stage)

    def begin(self, lr: Tensor, step: Tensor | None = None) -> None:
        for update in self.each:
            update.begin(lr, step)
        self._kept = [tensor.detach().clone() for tensor in self._earlier]

    def __call__(self, loss: Tensor, part: int = 0, rate: Tensor | None = None) -> None:
        self.each[part](loss, part, rate)

    @torch.no_grad()
    def settle(self) -> None:
        """Ends a step: undoes what was done of one that was skipped in part."""
        for tensor, kept in zip(self._earlier, self._kept, strict=True):
            tensor.copy_(torch.where(self.ok, tensor, kept))
        self._kept = []

    def state_dict(self) -> dict[str, object]:
        return {str(part): update.state_dict() for part, update in enumerate(self.each)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        for part, update in enumerate(self.each):
            update.load_state_dict(state[str(part)])


def moved(update: Update) -> list[Tensor]:
    """The tensors that an update moves besides its own counters: weights, what the optimiser remembers, averages.

    The averages' buffers are the method's, whose buffers the step puts back itself.
    """
    remembered = [v for state in update.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return [*update.parameters, *remembered, *(tensor for one in update.averages for tensor in one.average)]


def each_of(update: Update | Updates) -> list[Update]:
    """The updates of a stage."""
    return update.each if isinstance(update, Updates) else [update]


def made(method: Method, stage: Stage, config: TrainConfig, *, scaled: bool) -> Update | Updates:
    """What updates a stage; making it begins the stage."""
    return (Updates if stage.parts else Update)(method, stage, config, scaled=scaled)
