"""Which of many predictions are taken for labels: the surest of each class, and classes that have few by copies."""

from __future__ import annotations

import numpy as np
import torch

from ...pipelines import keyed
from . import noise

_COPIES = 0x436F70  # keeps these random numbers apart from everybody else's


def surest(label: np.ndarray, confidence: np.ndarray, quota: np.ndarray) -> np.ndarray:
    """Positions of the quota[c] surest rows of each class c, all where it has fewer; earlier ones first among equals, NaN never."""
    order = np.argsort(-confidence, kind="stable")
    order = order[np.isfinite(confidence[order])]
    return np.sort(np.concatenate([order[label[order] == c][:n] for c, n in enumerate(quota)]))


def balanced(rows: np.ndarray, label: np.ndarray, confidence: np.ndarray, per_class: int, classes: int, key: tuple[int, ...]) -> np.ndarray:
    """[n] int64 how often each of n rows is drawn, so that every class that has a row is drawn `per_class` times (Noisy Student).

    Of a class with more rows the surest are taken, once each. One with fewer repeats them per_class / count times: as often as that is
    whole, and the rest falls on rows by lot, so that a row's mean number of copies is that ratio. (The official code draws the rest for
    each row apart, so that a class has `per_class` rows in the mean.)

    Args:
        rows: [n] int64 rows of the data set, by which lots are keyed. confidence: NaN is never taken.
        key: of the lots: seed and round.
    """
    copies = np.zeros(len(rows), np.int64)
    lots = noise.uniform(torch.tensor(keyed.key(_COPIES, *key)), torch.from_numpy(rows), 1)[:, 0].numpy()
    copies[surest(label, confidence, np.full(classes, per_class))] = 1
    for c in range(classes):
        mine = np.flatnonzero((label == c) & (copies > 0))
        if 0 < len(mine) < per_class:
            whole, rest = divmod(per_class, len(mine))
            copies[mine] = whole
            copies[mine[np.argsort(lots[mine], kind="stable")[:rest]]] += 1
    return copies
