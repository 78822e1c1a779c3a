"""From teacher logits to a row's label, confidence, threshold and weight: the parts that every pseudo-label loss shares.

N rows, C classes. Everything here is computed in float32 (float64 for float64 inputs) and carries no gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WEIGHTINGS = ("step", "smooth", "gaussian", "confidence", "none")


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 as soon as one input is float64, else float32: half precision would move a confidence near 0.95 by up to 1e-2."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def label_and_confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """argmax [N] int64 and max softmax [N] of logits [N, C].

    The confidence is 1 / sum(exp(z - max z)) rather than exp(max z - logsumexp z), whose rounding grows with the size of the logits.
    A NaN, a +inf, or nothing but -inf in a row makes its confidence NaN; -inf beside a finite logit is a class of probability 0.
    """
    top, label = logits.max(dim=1, keepdim=True)
    return label.squeeze(1), (logits - top).exp_().sum(dim=1).reciprocal()


def aligned(logits: Tensor, align: Tensor | None) -> Tensor:
    """Logits [N, C] whose softmax is normalise(softmax(logits) * align): one softmax instead of two, and no underflow between them."""
    return logits if align is None else logits + align.to(logits.dtype).log()


def row_threshold(threshold: float | Tensor, label: Tensor, dtype: torch.dtype) -> float | Tensor:
    """The threshold that meets each row: [] or a number for all, [C] looked up by label [N], [N, 1] row by row -> number, [] or [N]."""
    if not isinstance(threshold, Tensor):
        return threshold
    threshold = threshold.to(dtype)
    if threshold.dim() == 1:
        return threshold[label]
    return threshold.squeeze(1) if threshold.dim() == 2 else threshold


def row_weight(weighting: str, judged: Tensor, threshold: float | Tensor, power: float, variance: float | Tensor | None) -> Tensor:
    """Weight [N] of rows with judged confidence [N]; formulas and sources are in `reference.pseudo_label_loss`.

    NaN in the confidence, the threshold or the variance gives NaN: a comparison alone would turn it into a silent 0.
    """
    if weighting == "none":
        return torch.where(judged.isnan(), math.nan, torch.ones_like(judged))
    kept = judged >= threshold
    if weighting == "step":
        weight = kept.to(judged.dtype)
    elif weighting == "confidence":
        weight = torch.where(kept, judged, 0.0)
    elif weighting == "smooth":
        threshold = torch.zeros_like(judged) + threshold
        # Every curve reaches 1 at confidence 1, so the curve for a threshold of 1 is the step; above 1 nothing is kept.
        room = torch.where(threshold < 1, 1 - threshold, 1.0)
        weight = torch.where(threshold < 1, ((judged - threshold).clamp(min=0) / room) ** power, kept.to(judged.dtype))
    else:
        below = (judged - threshold).clamp(max=0)
        # A row at or above the threshold has weight 1 even where the variance has shrunk to 0.
        weight = torch.where(below == 0, 1.0, torch.exp(-2 * below.square() / variance))
    lost = judged.isnan()
    for term in (threshold, variance if weighting == "gaussian" else None):
        if isinstance(term, Tensor):
            lost = lost | term.isnan()
    return torch.where(lost, math.nan, weight)
