"""What methods that go in rounds share: a teacher's and the rounds' lengths, who may be chosen, and what a round changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...models import Network, Report
from ...models.peft import probe_share
from ...pipelines.batch import DataSpec, Split
from ...pipelines.errors import ConfigError

SHOWN = 20  # classes whose numbers are listed one by one


def refuse_probe(name: str, network: Network) -> None:
    """Raises ConfigError where the network is tuned by lp_ft, whose two stages a method of several stages has no place for."""
    if probe_share(network.encoder):
        raise ConfigError(f"{name} has stages of its own and cannot be tuned by lp_ft; take another --tune")


def lengths(name: str, steps: int, rounds: int, share: float) -> tuple[int, int]:
    """(steps of the teacher, steps of each of the rounds). All rounds are equally long; what is left over is the teacher's.

    Args:
        share: of the run's steps, for the teacher; 0: as long as a round.

    Raises:
        ConfigError: fewer steps than stages.
    """
    if steps < rounds + 1:
        raise ConfigError(f"{name} of {rounds} rounds trains {rounds + 1} times, a step each at least; give --steps {rounds + 1} or more")
    if not rounds:
        return steps, 0
    first = steps // (rounds + 1) if share == 0 else min(max(1, round(share * steps)), steps - rounds)
    each = (steps - first) // rounds
    return steps - rounds * each, each


def pool(split: Split) -> np.ndarray:
    """[n] int64 the unlabelled rows of a split that it does not show a label of, each once, in order."""
    return np.setdiff1d(split.unlabelled, split.labelled)


def apart(split: Split) -> Split:
    """The split whose unlabelled rows are the pool alone; itself where they are, or where the pool is empty."""
    rows = pool(split)
    return split if len(rows) in (0, len(split.unlabelled)) else dataclasses.replace(split, unlabelled=rows, hash="")


def listed(names: Sequence[str]) -> str:
    """The first ten of some names, in one sentence."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


class Change(NamedTuple):
    """What a round made of the rows that the round before had chosen."""

    chosen: int
    entered: int
    left: int
    changed: int  # chosen before and now, with another label

    @property
    def moved(self) -> int:
        return self.entered + self.left + self.changed

    def __str__(self) -> str:
        return f"{self.changed:,} changed their label, {self.entered:,} new, {self.left:,} left out"


def change(before: np.ndarray, after: np.ndarray) -> Change:
    """[rows] labels, -1 of a row that is not chosen, before and after."""
    was, now = before >= 0, after >= 0
    return Change(int(now.sum()), int((now & ~was).sum()), int((was & ~now).sum()), int((was & now & (before != after)).sum()))


def by_class(spec: DataSpec, counts: np.ndarray) -> str:
    """The class histogram of what was chosen, in words."""
    if spec.num_classes > SHOWN:
        return f"{counts.min():,} to {counts.max():,} of a class, {np.median(counts):,.0f} in the middle"
    return "of each class: " + ", ".join(f"{name} {count:,}" for name, count in zip(spec.classes, counts, strict=True))


def told_vanished(report: Report, name: str, spec: DataSpec, before: np.ndarray, counts: np.ndarray) -> None:
    """Adds one warning where classes that had rows `before` ([C]) have none now. None where all of them have none: that is another
    matter."""
    gone = [spec.classes[c] for c in np.flatnonzero((before > 0) & (counts == 0))]
    if gone and counts.sum():
        report.warnings.append(
            f"{name}: no {spec.kind} is taken for {'class' if len(gone) == 1 else 'classes'} {listed(gone)}; the labels alone teach "
            f"{'it' if len(gone) == 1 else 'them'} in this round"
        )
