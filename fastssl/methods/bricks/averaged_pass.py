"""The averaged network as a teacher that keeps no running statistics of its own (CoMatch's and SimMatch's ImageNet codes).

bricks/teaching.py has the other kind, whose pass moves them.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from ...models import Network, Output
from .batchnorm import no_dropout
from .forward import forward_together
from .teaching import modes_of

STATISTICS = ("batch", "eval")


def averaged_pass(average: Network, student: Network, views: list[Tensor], statistics: str) -> list[Output]:
    """The averaged network's outputs of views as one batch, without a graph and without dropout.

    Args:
        statistics: batch-norm by the batch (where the student's layers do so: a frozen encoder's do not) or by the running statistics
            ("eval"), which are left alone in both.
    """
    modes = modes_of(student, average) if statistics == "batch" else contextlib.nullcontext()
    with torch.no_grad(), modes, no_dropout(average):
        return forward_together(average, views, statistics)
