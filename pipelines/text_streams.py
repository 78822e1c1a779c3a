"""Streams of texts in groups of like length: a batch holds texts of one group, so that it is padded to that group's length alone.

Which group a step draws from is a pure function of (seed, step), known to the host without asking the device; each group has as many
steps as it has rows, evenly spread. Within a group rows come in the order of order.py.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import keyed
from .order import visited

_TURN = 0x5475726E
GROUPS = 8  # at most: what data.lengths may ask for
_GOLDEN = (5**0.5 - 1) / 2  # multiples of it modulo 1 fill the unit interval evenly from any start (Weyl)


def grouped(size: np.ndarray, lengths: tuple[int, ...], least: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """([n] group of each row, length of each group): a row is in the shortest length that holds it; a group of fewer than `least` rows
    goes into the next longer one, the last into the one before it.

    Args:
        size: [n] tokens of each row. lengths: ascending, the last holds every row.
    """
    group = np.searchsorted(np.asarray(lengths), size, side="left")
    counts = np.bincount(group, minlength=len(lengths))
    kept, carried = [], 0
    for k in range(len(lengths)):
        carried += counts[k]
        if carried >= least:
            kept.append(k)
            carried = 0
    # Rows longer than the last kept group's length are few: all of that group is padded to theirs.
    longest = int(group.max()) if len(group) else len(lengths) - 1
    if not kept:
        kept = [longest]
    elif carried:
        kept[-1] = longest
    into = np.searchsorted(kept, np.arange(len(lengths)), side="left").clip(max=len(kept) - 1)
    return into[group], tuple(lengths[k] for k in kept)


class Stream:
    """One role's rows (labelled or unlabelled), in groups.

    Args:
        room: rows that the role may ever have.
        base: key of the stream.

    Attributes:
        lengths: of the groups, in tokens.
        rows: [room] int64 rows of the data set, group after group.
        start, count: [GROUPS] int64, where a group's rows begin, and how many they are.
        drawn: [GROUPS] int64 draws from each group so far.
    """

    def __init__(self, room: int, base: int, device: torch.device):
        self.base, self.device = base, device
        self.rows = torch.zeros(room, dtype=torch.int64, device=device)
        self.start = torch.zeros(GROUPS, dtype=torch.int64, device=device)
        self.count = torch.ones(GROUPS, dtype=torch.int64, device=device)
        self.drawn = torch.zeros(GROUPS, dtype=torch.int64, device=device)
        self.lengths: tuple[int, ...] = ()
        self.shares = np.zeros(0)
        self.order = np.zeros(0, np.int64)

    def use(self, rows: np.ndarray, size: np.ndarray, lengths: tuple[int, ...], batch: int, *, single: bool) -> None:
        """Takes these rows, in place. `order` is then the place in the given rows of each row of the stream.

        Args:
            rows: [n] int64 of the data set. size: [n] int64 their tokens.
            lengths: fixed lengths to choose from, ascending, the last holds every row.
            batch: rows a draw.
            single: one group alone, of the multiple of 8 that holds all.
        """
        group, self.lengths = grouped(size, lengths, batch)
        if single and len(rows):
            group, self.lengths = np.zeros_like(group), (min(self.lengths[-1], -(-int(size.max()) // 8) * 8),)
        self.order = np.argsort(group, kind="stable")
        counts = np.bincount(group, minlength=len(self.lengths))
        self.shares = np.cumsum(counts / max(1, len(rows)))
        self.rows[: len(rows)].copy_(torch.from_numpy(rows[self.order]))
        self.start[: len(counts)].copy_(torch.from_numpy(np.cumsum(counts) - counts))
        self.count[: len(counts)].copy_(torch.from_numpy(np.maximum(1, counts)))

    def turn(self, step: int) -> int:
        """The group that step `step` draws from."""
        if len(self.lengths) <= 1:
            return 0
        offset = (keyed.key(self.base, _TURN) >> 11) % (1 << 53) / (1 << 53)
        return int(min(np.searchsorted(self.shares, (offset + step * _GOLDEN) % 1.0, side="right"), len(self.lengths) - 1))

    def next(self, group: int, batch: int) -> tuple[Tensor, Tensor]:
        """([batch] places in `rows`, [batch] visits) of the next draw from a group."""
        at, visit = visited(self.drawn[group] * batch, batch, self.count[group], keyed.key(self.base, group))
        self.drawn[group].add_(1)
        return at + self.start[group], visit
