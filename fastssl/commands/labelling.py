"""Labels of a set that a model gave: what `fastssl pseudolabel` does with them, whoever gave them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..pipelines.source import AnySource


class Labels(NamedTuple):
    """What was labelled, and how."""

    source: AnySource
    rows: np.ndarray  # [n] of the set
    classes: tuple[str, ...]  # in the order of their numbers in `label`
    label: torch.Tensor  # [n] int64
    confidence: torch.Tensor  # [n] float64, the largest probability


def wanted(test: np.ndarray, args: argparse.Namespace, samples: str = "images") -> np.ndarray:
    """[n] rows to label, in the set's order."""
    import numpy as np

    from ..pipelines.errors import DataError

    rows = np.flatnonzero(~test | args.test_rows)
    if not len(rows):
        raise DataError(f"all {samples} of the set are test {samples}; --test-rows labels them")
    return rows


def same_classes(source: AnySource, classes: tuple[str, ...], name: str) -> None:
    """Raises DataError where a set has other classes than the run that is to label it."""
    from ..pipelines.errors import DataError

    strange = sorted(set(source.classes) ^ set(classes))
    if strange:
        ours, theirs = ", ".join(source.classes[:5]), ", ".join(classes[:5])
        raise DataError(
            f"{name} and the run differ in their classes, {', '.join(strange[:5])} among them: the set has {len(source.classes)} "
            f"({ours}, ...), the run {len(classes)} ({theirs}, ...); take a run that was trained on these classes"
        )


def finite(confidence: torch.Tensor, source: AnySource, rows: np.ndarray) -> None:
    """Raises DivergedError where an answer is not finite."""
    from ..pipelines.errors import DivergedError

    broken = confidence.isnan().nonzero().flatten()
    if len(broken):
        name = source.ids[rows[int(broken[0])]]
        raise DivergedError(
            f"the network's answers to {len(broken)} of {len(rows)} {source.samples} are not finite, '{name}' among them; try --amp off"
        )
