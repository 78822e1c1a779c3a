"""The class last chosen for each sample, and how many samples each class holds: FlexMatch's learning status (arXiv 2110.08263, eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LastLabels(nn.Module):
    """Counts of the classes last chosen for each of many samples, kept up to date with the few that change.

    The published codes count all samples anew each step, on the host. Here a step's cost does not depend on the number of samples, and the
    host asks the device for nothing. Sums are of integers, so their order does not matter.

    Args:
        rows: of the data set.
        classes: C.
        samples: how many of the rows take part (FlexMatch: the unlabelled ones); all if None.

    Attributes:
        last: [rows] int64, the class last chosen for a sample, -1 before there was one.
        counts: [C + 1] int64, how many samples hold each class; the last place counts those that hold none.
    """

    last: Tensor
    counts: Tensor
    _place: Tensor

    def __init__(self, rows: int, classes: int, *, samples: int | None = None):
        super().__init__()
        self.register_buffer("last", torch.full((rows,), -1, dtype=torch.int64))
        counts = torch.zeros(classes + 1, dtype=torch.int64)
        counts[classes] = rows if samples is None else samples
        self.register_buffer("counts", counts)
        # Of each sample the batch row that wrote it last: read only where this step wrote, so it is no state.
        self.register_buffer("_place", torch.zeros(rows, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def update(self, index: Tensor, label: Tensor, chosen: Tensor | None = None) -> None:
        """Takes the classes of a batch. A sample that comes several times takes the class of its last row that is chosen.

        Args:
            index: [n] int64 samples.
            label: [n] int64 in [0, C).
            chosen: [n] bool, the rows that count (FlexMatch: confidence at least the threshold); all if None.
        """
        last, place = self.last, self._place
        places = torch.arange(1, len(index) + 1, device=index.device)
        if chosen is not None:
            places = torch.where(chosen, places, 0)
        place.index_fill_(0, index, 0).scatter_reduce_(0, index, places, "amax")
        winner = place.index_select(0, index)
        # Every row of a sample writes the same class; the one row that won moves the counts.
        before, moves = last.index_select(0, index), winner == places
        if chosen is None:
            after = label.index_select(0, winner - 1)
        else:
            after = torch.where(winner > 0, label.index_select(0, (winner - 1).clamp_(min=0)), before)
        # No class, -1, is counted in the last place. A sample of which no row is chosen moves from where it is to there.
        one = moves.to(torch.int64)
        self.counts.scatter_add_(0, torch.cat([before, after]).remainder_(len(self.counts)), torch.cat([-one, one]))
        last.index_copy_(0, index, after)

    def shares(self) -> Tensor:
        """[C] float32: each class's count over the largest of all, the samples without a class counted as one (FlexMatch, eq. 11)."""
        return self.counts[:-1] / self.counts.amax()

    def shares_of_classes(self) -> Tensor:
        """[C] float32: each class's count over the largest of a class (FlexMatch without threshold warm-up); 0 before there is one."""
        return self.counts[:-1] / self.counts[:-1].amax().clamp(min=1)
