"""Memory with one row a sample: written so that a sample that comes twice in a batch takes its last row, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def last_of(index: Tensor, rows: int) -> Tensor:
    """[n] int64 samples of `rows` -> [n] int64: for each place of the batch the last place that holds the same sample."""
    places = torch.arange(len(index), device=index.device)
    last = torch.zeros(rows, dtype=torch.int64, device=index.device).scatter_reduce_(0, index, places, "amax")
    return last.index_select(0, index)


class PredictionBank(nn.Module):
    """An average of each sample's predicted probabilities over its visits: q <- m q + (1 - m) p; the first visit's p as it is.

    Only the rows of a batch are read and written. A step that came to nothing must leave no trace, and copying the whole bank before each
    step would cost more than the step: so the bank looks at `ok` itself, and `guards_itself` tells the engine.

    Args:
        rows: of the data set. classes: C. momentum: m.
    """

    guards_itself = True
    mean: Tensor

    def __init__(self, rows: int, classes: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(rows, classes))

    def read(self, index: Tensor, p: Tensor) -> Tensor:
        """[n, C] averages with this visit's `p` in them. Writes nothing."""
        before = self.mean.index_select(0, index)
        fresh = before.sum(1, keepdim=True) == 0
        return torch.where(fresh, p.to(before.dtype), self.momentum * before + (1 - self.momentum) * p.to(before.dtype))

    def write(self, index: Tensor, mean: Tensor, ok: Tensor) -> None:
        """Keeps what `read` gave, where `ok` ([] bool); never a row that is not finite.

        Under train.accumulate a piece is written before the step's verdict is known, and a NaN would stay with its sample for good.
        """
        sound = ok & mean.isfinite().all(1, keepdim=True)
        mean = torch.where(sound, mean, self.mean.index_select(0, index))
        # All rows of one sample write the same values, so that their order does not matter.
        self.mean.index_copy_(0, index, mean.index_select(0, last_of(index, len(self.mean))))


class VisitBank(nn.Module):
    """Each sample's ensemble of predictions, by its visits (Laine & Aila 2017, algorithm 2): Z <- a Z + (1 - a) p, n <- n + 1.

    The recursion is on Z as it stands; Z / (1 - a^n), which takes its start from zeros out of it, is made for reading alone. A sample that
    comes twice in a batch takes its last row and counts one visit. Like PredictionBank it looks at `ok` itself.

    Args:
        rows: of the data set. classes: C. momentum: a, below 1.
    """

    guards_itself = True
    ensemble: Tensor
    visits: Tensor

    def __init__(self, rows: int, classes: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("ensemble", torch.zeros(rows, classes))
        self.register_buffer("visits", torch.zeros(rows, dtype=torch.int64))

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """[n] rows -> [n, C] corrected ensembles, which sum to one, and [n] bool: whether there is one. Zeros where there is none."""
        visits = self.visits.index_select(0, index)
        seen = visits > 0
        weight = torch.where(seen, 1 - self.momentum ** visits.to(torch.float64), 1.0)
        return self.ensemble.index_select(0, index) / weight.to(self.ensemble.dtype)[:, None], seen

    def write(self, index: Tensor, p: Tensor, ok: Tensor) -> None:
        """Takes [n, C] predictions in where `ok` ([] bool); never a row that is not finite.

        Under train.accumulate a piece is written before the step's verdict is known.
        """
        sound = ok & p.isfinite().all(1, keepdim=True)
        before, visits = self.ensemble.index_select(0, index), self.visits.index_select(0, index)
        after = torch.where(sound, self.momentum * before + (1 - self.momentum) * p.to(before.dtype), before)
        last = last_of(index, len(self.visits))
        self.ensemble.index_copy_(0, index, after.index_select(0, last))
        self.visits.index_copy_(0, index, (visits + sound[:, 0]).index_select(0, last))
