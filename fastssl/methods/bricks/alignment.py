"""Distribution alignment: predictions are rescaled so that their running marginal becomes a target marginal.

ReMixMatch (arXiv 1911.09785), AdaMatch (arXiv 2106.04732), USB's DistAlignEMA. q = normalise(p * ratio), ratio = target / model marginal,
1e-6 added to both. The marginals are updated before they are used, or, in ReMixMatch's own code, after the step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPSILON = 1e-6
BATCHES = 128  # that a queue remembers
MOMENTUM = 0.999


class Alignment(nn.Module):
    """Running marginals of predictions, and the ratio that aligns with them.

    Args:
        classes: C.
        target: "uniform", "labelled" (`shares`), or "predicted": the running marginal of predictions on labelled images.
        memory: "ema", or "queue": the mean of the last 128 batches (official AdaMatch), places not yet filled being uniform.
        shares: [C] shares of the labelled classes, for "labelled".
        from_batch: an ema starts from the first batch's mean (USB), else from the uniform marginal (TorchSSL).
        decay: of the averages.
        lagging: the marginals of a step are those of the steps before it (ReMixMatch's code), uniform at first.
    """

    shares: Tensor
    target_marginal: Tensor
    marginal: Tensor
    queue: Tensor
    place: Tensor
    begun: Tensor

    def __init__(
        self,
        classes: int,
        *,
        target: str,
        memory: str = "ema",
        shares: Tensor | None = None,
        from_batch: bool = True,
        lagging: bool = False,
        decay: float = MOMENTUM,
    ):
        super().__init__()
        self.target, self.memory, self.from_batch, self.lagging, self.decay = target, memory, from_batch, lagging, decay
        uniform = torch.full((classes,), 1 / classes)
        self.register_buffer("shares", uniform.clone() if shares is None else shares.to(torch.float32), persistent=False)
        self.register_buffer("target_marginal", uniform.clone())
        self.register_buffer("marginal", uniform.clone())
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self.register_buffer("queue", uniform.repeat(BATCHES if memory == "queue" else 0, 1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def read(self, mean: Tensor, labelled_mean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The ratio of the step under way, and what `write` will want. Writes nothing.

        Args:
            mean: [C] mean prediction of this step's weak unlabelled images, unaligned.
            labelled_mean: [C] the same of its labelled images.

        Returns:
            [C] ratio; memory.
        """
        mean, labelled_mean = mean.to(self.marginal.dtype), labelled_mean.to(self.marginal.dtype)
        if self.memory == "queue":
            oldest = self.queue.index_select(0, self.place.view(1))[0]
            marginal = (self.queue.sum(0) - oldest + mean) / BATCHES
        else:
            marginal = self.decay * self.marginal + (1 - self.decay) * mean
            if self.from_batch:
                marginal = torch.where(self.begun, marginal, mean)
        if self.target == "predicted":
            target = self.decay * self.target_marginal + (1 - self.decay) * labelled_mean
        else:
            target = self.target_marginal
        used, goal = (self.marginal, self.target_marginal) if self.lagging else (marginal, target)
        wanted = self.shares if self.target == "labelled" else goal
        ratio = (wanted + EPSILON) / (used + EPSILON)
        return ratio, {"align_mean": mean, "align_marginal": marginal, "align_target": target}

    def write(self, memory: dict[str, Tensor]) -> None:
        """Keeps what `read` found."""
        if self.memory == "queue":
            self.queue.index_copy_(0, self.place.view(1), memory["align_mean"][None])
            self.place.copy_((self.place + 1) % BATCHES)
        self.marginal.copy_(memory["align_marginal"])
        self.target_marginal.copy_(memory["align_target"])
        self.begun.fill_(True)
