"""What a teacher said of samples, kept from one stage to the next: which rows were chosen, their labels, their probabilities."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Targets(nn.Module):
    """Which rows were taken, and what a teacher said of them; a table of as many rows as can be kept.

    Args:
        rows: of the data set. most: that can be kept. classes: C.
    """

    guards_itself = True  # a step never writes it
    place: Tensor
    q: Tensor

    def __init__(self, rows: int, most: int, classes: int):
        super().__init__()
        self.register_buffer("place", torch.full((rows,), -1))  # of each row in the table, -1 of one that is not taken
        self.register_buffer("q", torch.zeros(most, classes))

    def rows(self) -> np.ndarray:
        """[n] int64 rows that were taken, in order."""
        return np.flatnonzero(self.place.cpu().numpy() >= 0)

    def mark(self, rows: np.ndarray) -> None:
        """Takes [n] rows, of which nothing is said yet; more than the table has places for may be taken so."""
        self.place.fill_(-1)
        self.place[torch.from_numpy(rows).to(self.place.device)] = 0
        self.q.zero_()

    def write(self, rows: Tensor, p: Tensor) -> None:
        """Takes [n] rows and no others, with [n, C] probabilities."""
        self.mark(np.zeros(0, np.int64))
        self.place[rows] = torch.arange(len(rows), device=rows.device)
        self.q[: len(rows)] = p.to(self.q.dtype)

    def of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """[n] rows -> [n, C] probabilities and [n] fp32 weights: 1, or 0 of a row that was not taken or of which nothing is said."""
        place = self.place.index_select(0, index)
        q = self.q.index_select(0, place.clamp(min=0))
        return q, ((place >= 0) & (q.sum(1) > 0)).to(torch.float32)


class Chosen(nn.Module):
    """The rows that a round chose, their hard labels, and how often each is drawn in one pass.

    Args:
        rows: of the data set.
    """

    guards_itself = True  # a step never writes it
    label: Tensor
    copies: Tensor
    told: Tensor

    def __init__(self, rows: int):
        super().__init__()
        self.register_buffer("label", torch.full((rows,), -1))  # of each row, -1 of one that is not chosen
        self.register_buffer("copies", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("told", torch.zeros((), dtype=torch.bool))  # whether a round that chose nothing was warned of

    def write(self, rows: np.ndarray, label: np.ndarray, copies: np.ndarray | None = None) -> None:
        """Chooses [n] rows and no others, with [n] labels; `copies`: [n] times that each is drawn, once if None."""
        at = torch.from_numpy(rows).to(self.label.device)
        self.label.fill_(-1)
        self.copies.zero_()
        self.label[at] = torch.from_numpy(label).to(self.label.device)
        self.copies[at] = 1 if copies is None else torch.from_numpy(copies).to(self.copies.device)

    def rows(self) -> np.ndarray:
        """[n] int64 rows that were chosen, in order."""
        return np.flatnonzero(self.label.cpu().numpy() >= 0)

    def drawn(self) -> np.ndarray:
        """[m] int64 the same rows, each as often as it is drawn."""
        rows = self.rows()
        return np.repeat(rows, self.copies.cpu().numpy()[rows])

    def of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """[n] rows -> [n] int64 labels, 0 of a row that was not chosen, and [n] fp32 weights: 1, or 0 of such a row."""
        label = self.label.index_select(0, index)
        return label.clamp(min=0), (label >= 0).to(torch.float32)
