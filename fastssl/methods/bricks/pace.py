"""Learning pace: how often each class has been pseudo-labelled with confidence, relative to the class seen most.

FineSSL (arXiv 2405.11756), official code: a bank of every unlabelled sample's last confident label; beta_k = n_k / max_j n_j.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...pipelines.batch import DataSpec
from ...schedules import Clock


class LearningPace(nn.Module):
    """The bank (or its counter), read before a step's losses and written after them, so that pace lags by one step.

    Args:
        spec: rows, unlabelled rows and classes of the data.
        threshold: confidence (compared with >=) from which a pseudo-label is written.
        reset: steps after which bank and pace start anew; 0 never.
        form: "bank" keeps [rows] labels and counts them; "counter" keeps the [C] counts alone, which is the same as long
            as no sample comes twice between resets; "auto" takes the counter where that holds.
        batch: U, unlabelled samples a step.
    """

    def __init__(self, spec: DataSpec, *, threshold: float, reset: int, form: str = "auto", batch: int = 0):
        super().__init__()
        self.threshold = threshold
        self.reset = reset
        if form == "auto":
            # Samples come without replacement within a pass, so a reset period no longer than a pass can still straddle
            # two passes: only a period that divides the pass, or a pass that is never completed twice, repeats none.
            form = "counter" if reset and spec.unlabelled % (reset * batch or 1) == 0 and reset * batch else "bank"
        self.form = form
        self.unlabelled = spec.unlabelled
        self.register_buffer("pace", torch.zeros(spec.num_classes))
        self.register_buffer("counts", torch.zeros(spec.num_classes))
        self.register_buffer("bank", torch.full((spec.rows if self.form == "bank" else 0,), -1, dtype=torch.int64))

    def read(self, clock: Clock) -> Tensor:
        """[C] pace in [0, 1] for the step under way. Writes nothing.

        While every entry of the bank holds one and the same value (none seen, or all of one class) the pace stays as it
        was, as in the official code.
        """
        fresh = self._fresh(clock)
        counts = torch.where(fresh, 0.0, self.counts)
        before = torch.where(fresh, 0.0, self.pace)
        most = counts.max()
        uniform = (most == 0) | (most >= self.unlabelled)
        return torch.where(uniform, before, counts / most.clamp(min=1))

    def write(self, index: Tensor, label: Tensor, confidence: Tensor, pace: Tensor, clock: Clock) -> None:
        """Puts the confident labels of a batch away.

        Args:
            index: [U] int64 rows of the data set; a row that comes twice takes the last label in batch order.
            label: [U] int64. confidence: [U] fp32. pace: [C] fp32 as read in this step.
        """
        fresh = self._fresh(clock)
        sure = confidence >= self.threshold
        self.pace.copy_(pace)
        if self.form == "counter":
            ones = torch.zeros_like(self.counts).index_add_(0, label, sure.to(self.counts.dtype))
            self.counts.copy_(torch.where(fresh, 0.0, self.counts) + ones)
            return
        bank = torch.where(fresh, -1, self.bank)
        position = torch.where(sure, torch.arange(len(index), device=index.device), -1)
        last = torch.full_like(bank, -1).scatter_reduce_(0, index, position, "amax")
        bank = torch.where(last >= 0, label[last.clamp(min=0)], bank)
        self.bank.copy_(bank)
        seen = (bank >= 0).to(self.counts.dtype)
        self.counts.copy_(torch.zeros_like(self.counts).index_add_(0, bank.clamp(min=0), seen))

    def _fresh(self, clock: Clock) -> Tensor:
        if self.reset == 0:
            return clock.step < 0
        return clock.step % self.reset == 0
