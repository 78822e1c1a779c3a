"""Evaluation: one ordered pass of a part of the data through a network, and the figures read off it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models import fp8
from ..pipelines.batch import Pipeline


@dataclass(frozen=True)
class Judgement:
    """What a network did on labelled rows. Shares are in [0, 1]; a class without rows has None."""

    accuracy: float
    per_class: list[float | None]  # recall of each class
    ece: float  # expected calibration error, 15 equal bins of confidence (Guo et al. 2017)
    mean_confidence: float
    rows: int


def logits_of(
    network: nn.Module, pipeline: Pipeline, part: str, *, amp: torch.dtype | None = None, batch_size: int = 512
) -> tuple[Tensor, Tensor, Tensor]:
    """([n, C] fp32 logits, [n] labels, [n] rows) of a part in order, on the host. The network's mode is put back."""
    mode = network.training
    network.eval()
    pieces: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        with torch.inference_mode(), fp8.plain(network):  # judged as the exported network will be
            for piece in pipeline.sweep(part, batch_size):
                with torch.autocast(piece.inputs.device.type, dtype=amp, enabled=amp is not None, cache_enabled=False):
                    logits = network(piece.inputs).logits
                pieces.append((logits.float(), piece.label, piece.index))
    finally:
        network.train(mode)
    logits, label, index = (torch.cat(column).cpu() for column in zip(*pieces, strict=True))
    return logits, label, index


def judge(logits: Tensor, label: Tensor, classes: int) -> Judgement | None:
    """Figures over the rows whose label is known ([n, C] logits, [n] labels, -1 unknown). None if there is none."""
    known = label >= 0
    logits, label = logits[known], label[known]
    if len(label) == 0:
        return None
    confidence, guess = logits.double().softmax(dim=1).max(dim=1)
    # Logits that are not finite decide nothing: such a row counts as wrong, and as sure of it.
    broken = ~torch.isfinite(logits).all(dim=1)
    confidence = torch.where(broken, 1.0, confidence)
    right = (guess == label) & ~broken
    per_class = [float(right[label == c].double().mean()) if bool((label == c).any()) else None for c in range(classes)]
    return Judgement(
        accuracy=float(right.double().mean()),
        per_class=per_class,
        ece=expected_calibration_error(confidence, right),
        mean_confidence=float(confidence.mean()),
        rows=len(label),
    )


def expected_calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Sum over bins of (share of rows) |accuracy - mean confidence| (Guo et al. 2017, equation 3). Bins are (lo, hi]."""
    which = (confidence * bins).ceil().clamp(1, bins).long() - 1
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, right.double() - confidence.double())
    return float(gap.abs().sum() / len(confidence))


def reached(curve: Iterable[tuple[int, float, float]], share: float = 0.9) -> tuple[int, float] | None:
    """(steps, seconds) of the first evaluation at `share` of the last one's accuracy. `curve`: (step, seconds, accuracy)."""
    points = list(curve)
    if not points:
        return None
    goal = share * points[-1][2]
    return next((step, seconds) for step, seconds, accuracy in points if accuracy >= goal)
