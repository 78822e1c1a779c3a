"""Alignment to the uniform marginal by the mean of the last batches' predictions, as CoMatch and SimMatch do it (arXiv 2011.11183).

Unlike alignment.py's queue, which starts uniform (AdaMatch), the mean is over the batches that are there: at step 0 it is the batch's own.
Nothing is added to numerator or denominator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MarginalQueue(nn.Module):
    """The mean predictions of the last batches, this step's included: moved first, used then.

    Args:
        classes: C.
        batches: that are remembered; 0 leaves predictions as they are.
    """

    queue: Tensor
    place: Tensor

    def __init__(self, classes: int, batches: int):
        super().__init__()
        self.batches = batches
        self.register_buffer("queue", torch.zeros(batches, classes))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def read(self, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """[U, C] logits without grad -> [U, C] logs of normalise(p / marginal) in fp32 (float64 of float64), and what `write` will want.

        Writes nothing. In logs, so that a class of which nothing is left in fp32 stays a small number and becomes no 0 / 0.
        """
        log_p = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(1)
        if not self.batches:
            return log_p, {}
        mean = log_p.exp().mean(0).to(self.queue.dtype)
        queue = self.queue.index_copy(0, self.place.view(1), mean[None])
        there = (queue.sum(1) > 0).sum()
        marginal = (queue.sum(0) / there).clamp(min=torch.finfo(queue.dtype).tiny)
        return (log_p - marginal.log().to(log_p.dtype)).log_softmax(1), {"marginal_queue": queue}

    def write(self, memory: dict[str, Tensor]) -> None:
        """Keeps what `read` found."""
        if self.batches:
            self.queue.copy_(memory["marginal_queue"])
            self.place.copy_((self.place + 1) % self.batches)
