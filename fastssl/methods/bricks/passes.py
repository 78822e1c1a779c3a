"""Training that is interrupted once a pass over the unlabelled samples: how long a pass is, and the stages that it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...config import option
from ...pipelines.batch import DataSpec
from ...pipelines.errors import ConfigError
from .options import MethodOptions
from .words import Stage


@dataclass(frozen=True)
class PassOptions(MethodOptions):
    """Of every method that warms up on the labels and then goes in passes."""

    warmup_share: float = option(
        0.25, "share of the run's steps on the labels alone, before any pseudo-label", source="ours", above=0, most=0.99
    )
    every: int = option(
        0,
        "steps of a pass, before each of which pseudo-labels change; 0: as many as visit the unlabelled samples once",
        source="paper: an epoch",
        least=0,
    )


class Passes:
    """A warm-up, then passes that go on with each other.

    Args:
        name: of the method. config: has `every` (steps of a pass; 0: as many as visit the unlabelled rows once) and `warmup_share`.
        batch: U, unlabelled rows of a step.
    """

    def __init__(self, name: str, config: Any, spec: DataSpec, batch: int):
        self.name, self.share = name, config.warmup_share
        self.every = config.every or max(1, -(-spec.unlabelled // max(1, batch)))

    def warmup(self, steps: int) -> int:
        """Steps of the warm-up in a run of `steps`.

        Raises:
            ConfigError: the run is too short for two stages.
        """
        if steps < 2:
            raise ConfigError(f"{self.name} has a warm-up and then trains on, a step each at least; give --steps 2 or more")
        return min(max(1, round(self.share * steps)), steps - 1)

    def count(self, steps: int) -> int:
        """How many passes follow the warm-up; what is left of a pass by the end joins the last one where it is less than half of one."""
        return max(1, int((steps - self.warmup(steps)) / self.every + 0.5))

    def stage(self, k: int, steps: int) -> Stage | None:
        """The k-th pass, from 0; None after the last. All are one Step, and one schedule runs over them."""
        whole, count = steps - self.warmup(steps), self.count(steps)
        if k >= count:
            return None
        length = self.every if k < count - 1 else whole - self.every * (count - 1)
        return Stage(length, goes_on=k > 0, schedule=whole)
