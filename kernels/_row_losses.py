"""The student's side of the cross-entropies: logits shifted by margin and adjustment, and the loss of each row.

N rows, C classes; `log_p` is [N, C] log softmax in float32 or float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _check


def check_shift(
    classes: int,
    device: torch.device,
    margin: Tensor | None,
    adjust: Tensor | None,
    smoothing: float,
    soft: str | None,
) -> None:
    """Margin and adjustment are [C], smoothing lies in [0, 1); with soft targets (`soft` says whose) there is neither."""
    for name, value in (("margin", margin), ("adjust", adjust)):
        if value is not None:
            _check.constant(name, value, {"[C]": (classes,)}, device)
    _check.number("smoothing", smoothing, "from 0 to below 1", 0, 1, low_allowed=True)
    if soft is not None and margin is not None:
        raise ValueError(f"margin needs hard labels, because it depends on the row's label; got it with {soft}")
    if soft is not None and smoothing:
        raise ValueError(f"smoothing needs hard labels; got smoothing={smoothing} with {soft}")


def inside(label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Labels as int64, clamped so that nothing outside is ever read, and the rows [N] bool in which that changed one."""
    label = label.to(torch.int64)
    return label.clamp(0, classes - 1), (label < 0) | (label >= classes)


def shifted(logits: Tensor, label: Tensor | None, margin: Tensor | None, adjust: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Logits [N, C] in `dtype`, plus `adjust` [C], minus margin[label] at the label.

    The balanced margin softmax adds margin[label] to every other logit. A softmax does not see a constant added to a whole row,
    so taking it off the label's logit is the same and touches one element instead of C - 1.
    """
    logits = logits.to(dtype)
    if adjust is not None:
        logits = logits + adjust.to(dtype)
    if margin is not None:
        logits = logits.scatter_add(1, label[:, None], -margin.to(dtype)[label][:, None])
    return logits


def hard_rows(log_p: Tensor, label: Tensor, smoothing: float) -> Tensor:
    """-(1 - eps) log p_label - eps / (C - 1) * sum of the other log p, [N].

    Gathered rather than multiplied by a one-hot row, so that another class at -inf does not make 0 * inf.
    """
    chosen = log_p.gather(1, label[:, None]).squeeze(1)
    if not smoothing:
        return -chosen
    others = log_p.scatter(1, label[:, None], 0.0).sum(dim=1)
    return -(1 - smoothing) * chosen - smoothing / (log_p.shape[1] - 1) * others


def soft_rows(log_p: Tensor, q: Tensor) -> Tensor:
    """-sum_c q_c log p_c, [N], with 0 * log 0 = 0; NaN for a row without a softmax, though q be 0 everywhere."""
    rows = -torch.where(q == 0, 0.0, q * log_p).sum(dim=1)
    return rows + lost(rows, log_p)


def lost(rows: Tensor, log_p: Tensor) -> Tensor:
    """0 [N], but NaN where the softmax is: then all of its row is. Added to a loss, so that no gradient is taken away."""
    return torch.zeros_like(rows).masked_fill(log_p[:, 0].isnan(), math.nan)


def smoothed(label: Tensor, classes: int, smoothing: float, dtype: torch.dtype) -> Tensor:
    """The dense target [N, C] of labels [N]: 1 - eps at the label, eps / (C - 1) elsewhere."""
    q = torch.full((label.shape[0], classes), smoothing / (classes - 1), dtype=dtype, device=label.device)
    return q.scatter(1, label[:, None], 1 - smoothing)
