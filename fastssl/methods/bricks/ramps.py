"""Ramps of a term's weight over a run, computed on the device from the clock: a host's number would be frozen into a captured step."""

from __future__ import annotations

import torch
from torch import Tensor

from ...schedules import Clock

RAMPS = ("gauss", "linear", "none")


def ramp(clock: Clock, kind: str, share: float, *, start: float = 0.0) -> Tensor | float:
    """Factor in [0, 1] of the step under way.

    With u the part of the stretch that is over, in [0, 1]: "gauss" is exp(-5 (1 - u)^2) (Laine & Aila 2017), "linear" u, "none" 1.

    Args:
        share: length of the stretch, as a share of the stage's steps; 0 for none.
        start: where it begins, as a share of the stage's steps; before it, "linear" is 0.
    """
    if kind == "none" or share == 0:
        return 1.0
    u = ((clock.step.to(torch.float32) - start * clock.total) / (share * clock.total)).clamp(0, 1)
    return u if kind == "linear" else torch.exp(-5 * (1 - u) ** 2)


def warm_decay(step: Tensor, most: float) -> Tensor:
    """[] decay of an average that has not looked back far yet: min(1 - 1 / (k + 1), most), k steps done, this one included
    (Tarvainen & Valpola 2017, code)."""
    done = step.to(torch.float32) + 1
    return (1 - 1 / (done + 1)).clamp(max=most)
