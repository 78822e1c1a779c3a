"""Which rows a sweep goes over, and the labels that it tells of them."""

from __future__ import annotations

import numpy as np

from .batch import Split
from .errors import ConfigError, unknown

PARTS = ("labelled", "unlabelled", "test", "train")


def swept(part: str | np.ndarray, split: Split, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([n] int64 rows, [N] int64 labels of all rows) of one ordered pass.

    Args:
        part: one of PARTS ("train" is labelled and unlabelled rows, each once), or [n] rows of the set in the order that is wanted.
        split: who is labelled.
        known: [N] labels of the set, -1 where unknown. The split's own stand in their place for "labelled", "train" and given rows.

    Raises:
        ConfigError: an unknown part. ValueError: rows that the set does not have.
    """
    label = known.copy()
    if not isinstance(part, str):
        rows = np.asarray(part, np.int64)
        if rows.ndim != 1 or (len(rows) and not 0 <= rows.min() <= rows.max() < len(known)):
            raise ValueError(f"rows to sweep are [n] numbers from 0 to {len(known) - 1}, got shape {list(rows.shape)} of {part!r}")
    elif part not in PARTS:
        raise ConfigError(unknown("part", part, PARTS))
    else:
        rows = np.union1d(split.labelled, split.unlabelled) if part == "train" else getattr(split, part)
    if not isinstance(part, str) or part in ("labelled", "train"):
        label[split.labelled] = split.label
    return rows, label
