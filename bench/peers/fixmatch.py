"""FixMatch's step as its usual PyTorch port takes it, on a network of ours."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastssl.pipelines.batch import Batch

DECAY, EMA, MOMENTUM, TEMPERATURE = 5e-4, 0.999, 0.9, 1.0


def interleave(views: Tensor, groups: int) -> Tensor:
    """[groups * n, ...] -> the same rows in turns: every run of `groups` rows has one of each group."""
    return views.unflatten(0, (-1, groups)).transpose(0, 1).flatten(0, 1)


def deinterleave(rows: Tensor, groups: int) -> Tensor:
    return rows.unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 1)


class Published:
    """One step a call: forward of all views as one batch, backward, SGD, learning rate, averaged weights, four values for the meters.

    Args:
        network: copied; answers with an Output.
        batch: one labelled view, a weak and a strong unlabelled one.
        threshold: confidence from which a pseudo-label counts.
        lr, total: peak learning rate, steps of cos(7 pi t / 16 T).
        amp: autocast's dtype; None for none.
        channels_last: memory format of the weights and the views.
    """

    foreach: bool | None = False  # SGD's form; None is torch's choice

    def __init__(
        self,
        network: nn.Module,
        batch: Batch,
        *,
        threshold: float,
        lr: float,
        total: int = 1000,
        amp: torch.dtype | None = None,
        channels_last: bool = False,
    ):
        format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = copy.deepcopy(network).to(memory_format=format).train()
        self.batch, self.threshold, self.amp, self.format = batch, threshold, amp, format
        self.device = batch.label.device
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True, foreach=self.foreach)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda t: math.cos(7 * math.pi / 16 * t / total))
        self.ema = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.parameter_names = [name for name, _ in self.network.named_parameters()]
        self.buffer_names = [name for name, _ in self.network.named_buffers()]
        self.meters: tuple[float, ...] = ()

    def __call__(self) -> None:
        with torch.autocast(self.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None):
            labelled, weak, strong = self.logits(self.batch)
            loss_x = functional.cross_entropy(labelled, self.batch.label)
            guess = (weak.detach() / TEMPERATURE).softmax(dim=-1)
            confidence, target = guess.max(dim=-1)
            mask = confidence.ge(self.threshold).float()
            loss_u = (functional.cross_entropy(strong, target, reduction="none") * mask).mean()
            loss = loss_x + loss_u
        loss.backward()
        self.meters = (loss.item(), loss_x.item(), loss_u.item(), mask.mean().item())
        self.update()

    def logits(self, batch: Batch) -> tuple[Tensor, ...]:
        (labelled,), (weak, strong) = batch.labelled, batch.unlabelled
        groups = (len(labelled) + 2 * len(weak)) // len(labelled)
        views = interleave(torch.cat([labelled, weak, strong]), groups).contiguous(memory_format=self.format)
        rows = deinterleave(self.network(views).logits, groups)
        return tuple(rows.split([len(labelled), len(weak), len(weak)]))

    def update(self) -> None:
        """Everything after the backward pass."""
        self.optimizer.step()
        self.schedule.step()
        self.average()
        self.network.zero_grad()

    @torch.no_grad()
    def average(self) -> None:
        """Over both state_dicts, name by name, buffers copied."""
        source, target = self.network.state_dict(), self.ema.state_dict()
        for name in self.parameter_names:
            target[name].copy_(target[name] * EMA + (1.0 - EMA) * source[name].detach())
        for name in self.buffer_names:
            target[name].copy_(source[name])

    def loss(self) -> float:
        """Of the last step."""
        return self.meters[0]

    def trained(self) -> list[Tensor]:
        return list(self.network.parameters())


class Apart(Published):
    """The same with the weak views forwarded first, without gradient, running statistics left alone: what our separate weak pass computes.

    No published practice; it is here to hold one step of ours against.
    """

    def logits(self, batch: Batch) -> tuple[Tensor, ...]:
        (labelled,), (weak, strong) = batch.labelled, batch.unlabelled
        with torch.no_grad():
            taught = copy.deepcopy(self.network)(weak).logits
        rows = self.network(torch.cat([labelled, strong])).logits
        return rows[: len(labelled)], taught, rows[len(labelled) :]
