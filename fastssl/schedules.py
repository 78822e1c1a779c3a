"""Schedules: pure functions of the clock, on the device. Nothing here keeps state or asks the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Clock:
    """What time it is, in device tensors, so that a captured step reads the present and not the moment of capture.

    `step` [] int64 counts from 0 and is the number of the step under way; `total` is the number of steps of the stage;
    `seed` [] int64 keys every random draw of the step; `ok` [] bool says, once the weights have been updated, whether they were.
    """

    def __init__(self, total: int, seed: int, device: torch.device | str = "cpu"):
        self.step = torch.full((), -1, dtype=torch.int64, device=device)
        self.seed = torch.full((), seed, dtype=torch.int64, device=device)
        self.ok = torch.ones((), dtype=torch.bool, device=device)
        self.total = total

    def advance(self) -> None:
        self.step.add_(1)


def learning_rate(step: Tensor, *, peak: float, total: int, schedule: str = "cosine", warmup: int = 0, period: int = 1) -> Tensor:
    """[] fp32 learning rate of `step` [] int64.

    With w warm-up steps the rate first rises linearly from peak/w to peak; then, at progress r in [0, 1) of the rest:
    `cosine` is peak (1 + cos(pi r)) / 2, `fixmatch` is peak cos(7 pi r / 16) (FixMatch, Sohn et al. 2020, section 2.4),
    `constant` is peak. `period` holds r for that many steps (FineSSL's code moves its cosine once an epoch).
    """
    t = step.to(torch.float32)
    rest = t - warmup
    if period > 1:
        rest = torch.div(rest, period, rounding_mode="floor") * period
    r = (rest / max(1, total - warmup)).clamp(0, 1)
    if schedule == "cosine":
        factor = (1 + torch.cos(math.pi * r)) / 2
    elif schedule == "fixmatch":
        factor = torch.cos(7 * math.pi / 16 * r)
    elif schedule == "constant":
        factor = torch.ones_like(r)
    else:
        raise ValueError(f"schedule must be cosine, fixmatch or constant, got {schedule!r}")
    if warmup > 0:
        factor = torch.where(t < warmup, (t + 1) / warmup, factor)
    return peak * factor
