"""Long-tailed splits: how many rows of each class a geometric profile asks for (USB's and DARP's form).

Class 0, first in the set's own order, is the head, the last class the tail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import ConfigError, DataError
from .source import Source

_SHOWN = 10

__all__ = ["Imbalance", "geometric"]


def geometric(head: int, gamma: float, classes: int) -> np.ndarray:
    """[C] int64 rows of each class: int(head * r ** c) with r = (1 / |gamma|) ** (1 / (C - 1)), the last class int(head / |gamma|).

    The last class is set by itself, as rounding errors of the power may otherwise cost it a row. A negative gamma turns the
    profile round: class 0 becomes the tail. (USB, Wang et al. 2022, code; DARP, Kim et al. 2020, code.)

    Args:
        head: rows of the largest class.
        gamma: largest class over smallest; |gamma| >= 1.
        classes: C.
    """
    size = abs(gamma)
    r = (1 / size) ** (1 / max(1, classes - 1))
    counts = [int(head * r**c) for c in range(classes - 1)] + [int(head / size) if classes > 1 else head]
    return np.array(counts if gamma > 0 else counts[::-1], np.int64)


@dataclass(frozen=True)
class Imbalance:
    """The profiles that a split follows. With all of them None it follows none.

    With any of them the labelled rows are not among the unlabelled ones, and rows that neither profile takes are left out.

    Attributes:
        labelled: gamma of the labelled rows, >= 1; the head class has as many as --labels-per-class says.
        unlabelled: gamma of the unlabelled rows; negative: turned round. Given together with `head_unlabelled`.
        head_unlabelled: unlabelled rows of the largest class; without it every training row that is not labelled is unlabelled.
    """

    labelled: float | None = None
    unlabelled: float | None = None
    head_unlabelled: int | None = None

    def __bool__(self) -> bool:
        return (self.labelled, self.unlabelled, self.head_unlabelled) != (None, None, None)

    def check(self, per_class: int | None, split_file: object) -> None:
        """Raises ConfigError where the profiles, or they and the way in which labels are chosen, do not fit each other."""
        if self and split_file is not None:
            asked = {"imbalance": self.labelled, "imbalance_unlabelled": self.unlabelled, "head_unlabelled": self.head_unlabelled}
            raise ConfigError(f"--split says who takes part; leave out {', '.join(f'data.{k}' for k, v in asked.items() if v is not None)}")
        if self.labelled is not None:
            if not 1 <= self.labelled < np.inf:
                raise ConfigError(f"data.imbalance {self.labelled:g}: the head class over the tail class is at least 1")
            if per_class is None:
                raise ConfigError(
                    f"data.imbalance {self.labelled:g} needs --labels-per-class N, the labels of the head class; "
                    "give it, or --set data.imbalance=none"
                )
        if self.unlabelled is not None and not 1 <= abs(self.unlabelled) < np.inf:
            raise ConfigError(
                f"data.imbalance_unlabelled {self.unlabelled:g}: give a number from 1, or its negative for the order turned round"
            )
        if (self.unlabelled is None) != (self.head_unlabelled is None):
            if self.unlabelled is None:
                mend = "add --set data.imbalance_unlabelled=G, 1 for as many of each class"
                raise ConfigError(f"data.head_unlabelled {self.head_unlabelled} says nothing of the other classes; {mend}")
            mend = "add --set data.head_unlabelled=M"
            raise ConfigError(f"data.imbalance_unlabelled {self.unlabelled:g} needs the unlabelled samples of the largest class; {mend}")
        if self.head_unlabelled is not None and self.head_unlabelled < 1:
            raise ConfigError(f"data.head_unlabelled {self.head_unlabelled}: ask for at least one sample")

    def of_labelled(self, per_class: int, classes: tuple[str, ...]) -> np.ndarray:
        """[C] labels to take of each class. ConfigError where the tail would be left without."""
        return _full(per_class, self.labelled, classes, "data.imbalance", "labels")

    def of_unlabelled(self, source: Source, rest: np.ndarray, labelled: np.ndarray) -> np.ndarray:
        """[C] rows to take of each class from `rest`, the training rows that are not among `labelled`.

        Raises:
            ConfigError: the tail would be left without. DataError: a row of unknown class, or a class with fewer rows.
        """
        unknown = rest[source.label[rest] < 0]
        if len(unknown):
            named = ", ".join(source.ids[r] for r in unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
            raise DataError(
                f"data.imbalance_unlabelled picks unlabelled samples by their class, and {len(unknown)} of {source.name} have none that "
                f"is known ({named}); leave out data.imbalance_unlabelled and data.head_unlabelled"
            )
        wanted = _full(self.head_unlabelled, self.unlabelled, source.classes, "data.imbalance_unlabelled", "unlabelled samples")
        have, taken = (np.bincount(source.label[rows], minlength=len(wanted)) for rows in (rest, labelled))
        short = np.flatnonzero(wanted > have)
        if len(short):
            problems = [
                (source.classes[c], f"{taken[c]} labelled and {wanted[c]} unlabelled asked for, {taken[c] + have[c]} there") for c in short
            ]
            raise DataError(
                f"{source.name} has too few training samples for data.head_unlabelled {self.head_unlabelled} beside "
                f"{taken.sum()} labelled ones; ask for fewer of either:",
                problems,
            )
        return wanted


def _full(head: int, gamma: float, classes: tuple[str, ...], option: str, what: str) -> np.ndarray:
    counts = geometric(head, gamma, len(classes))
    if counts.min() < 1:
        raise ConfigError(
            f"{option} {gamma:g} leaves {(counts < 1).sum()} of {len(classes)} classes without {what}, as the largest has {head}; "
            f"give a gamma of at most {head}, or more {what}"
        )
    return counts
