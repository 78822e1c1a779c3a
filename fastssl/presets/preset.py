"""What a named preset is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Published(NamedTuple):
    """A published test accuracy and its standard deviation over runs, in per cent; None where none was printed."""

    accuracy: float
    deviation: float | None = None

    def __str__(self) -> str:
        return f"{self.accuracy:.2f}" + ("" if self.deviation is None else f" +- {self.deviation:.2f}")


@dataclass(frozen=True)
class Preset:
    """A published setting by name.

    Attributes:
        name: what `--preset` takes.
        method: the method whose recipe it is; `--method` may name another of `published`.
        values: returns the dotted keys that it sets.
        published: method -> its published result in this setting. Errors are written as accuracies.
        source: paper and table of the numbers, and where the recipe was read.
        notes: what differs here, and what the user must bring.
    """

    name: str
    method: str
    values: Callable[[], dict[str, Any]]
    published: dict[str, Published]
    source: str
    notes: tuple[str, ...] = ()


def error(percent: float, deviation: float | None = None) -> Published:
    """A published error rate in per cent as the accuracy that it leaves."""
    return Published(round(100 - percent, 2), deviation)
