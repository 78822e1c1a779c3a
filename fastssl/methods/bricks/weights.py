"""Weights of pseudo-labels that the kernels do not have: an S-shaped rise from the threshold to certainty."""

from __future__ import annotations

import math

import torch
from torch import Tensor

STEEPNESS = 10.0  # of the logistic curve over [0, 1]


def sigmoid_weight(teacher: Tensor, threshold: float | Tensor, align: Tensor | None = None) -> Tensor:
    """Weight of each row by an S from 0 at its threshold to 1 at confidence 1; 0 below the threshold.

    With x = (c - t) / (1 - t): (s(k (x - 1/2)) - s(-k/2)) / (s(k/2) - s(-k/2)), s the logistic function and k = 10. Continuous at t, like
    the powers of arXiv 2405.14313, with a small slope at both ends. The shape is ours: no source says which sigmoid was tried. Every such S
    reaches 1 at confidence 1, so that a threshold of 1 leaves the step; above 1 nothing is kept.

    Args:
        teacher: [N, C] logits without grad.
        threshold: a number, or a tensor [], or [C] by the row's label.
        align: [C] ratio that predictions are multiplied by, or None.

    Returns:
        [N] float32 (float64 of float64 logits).
    """
    logits = teacher if teacher.dtype == torch.float64 else teacher.float()
    if align is not None:
        logits = logits + align.to(logits.dtype).log()
    confidence, label = logits.softmax(1).max(1)
    if isinstance(threshold, Tensor):
        threshold = threshold.to(logits.dtype)
        threshold = threshold[label] if threshold.dim() == 1 else threshold
    threshold = torch.zeros_like(confidence) + threshold
    share = (confidence - threshold) / torch.where(threshold < 1, 1 - threshold, 1.0) + (threshold >= 1)
    low = 1 / (1 + math.exp(STEEPNESS / 2))
    rise = ((STEEPNESS * (share.clamp(max=1) - 0.5)).sigmoid() - low) / (1 - 2 * low)
    return torch.where(confidence < threshold, torch.zeros_like(rise), rise.clamp(0, 1))  # NaN stays NaN
