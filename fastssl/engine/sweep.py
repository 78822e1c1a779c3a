"""Evaluation: one ordered pass of a part of the data through a network, and the figures read off it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ..models import fp8
from ..pipelines.batch import Pipeline


@dataclass(frozen=True)
class Judgement:
    """What a network did on labelled rows. Shares are in [0, 1]; a class without rows has None."""

    accuracy: float
    balanced_accuracy: float  # mean recall of the classes that have rows
    geometric_mean: float  # of their recalls, each at least 1 / (100 C) (DARP, Kim et al. 2020, code)
    thirds: dict[str, float | None] | None  # many, medium, few: see `thirds`
    per_class: list[float | None]  # recall of each class
    ece: float  # expected calibration error, 15 equal bins of confidence (Guo et al. 2017)
    mean_confidence: float
    rows: int


def logits_of(
    network: nn.Module, pipeline: Pipeline, part: str, *, amp: torch.dtype | None = None, batch_size: int = 512
) -> tuple[Tensor, Tensor, Tensor]:
    """([n, C] fp32 logits, [n] labels, [n] rows) of a part, on the host, in an order that suits the pipeline.

    The network's mode is put back.
    """
    mode = network.training
    network.eval()
    pieces: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        with torch.inference_mode(), fp8.plain(network):  # judged as the exported network will be
            for piece in pipeline.sweep(part, batch_size, ordered=False):
                with torch.autocast(piece.inputs.device.type, dtype=amp, enabled=amp is not None, cache_enabled=False):
                    logits = network(piece.inputs).logits
                pieces.append((logits.float(), piece.label, piece.index))
    finally:
        network.train(mode)
    logits, label, index = (torch.cat(column).cpu() for column in zip(*pieces, strict=True))
    return logits, label, index


def judge(logits: Tensor, label: Tensor, classes: int, trained_on: ArrayLike | None = None) -> Judgement | None:
    """Figures over the rows whose label is known ([n, C] logits, [n] labels, -1 unknown). None if there is none.

    Args:
        trained_on: the labels of the split's labelled rows, for the figures by thirds; without them there are none.
    """
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
    recalls = torch.tensor([share for share in per_class if share is not None], dtype=torch.float64)
    return Judgement(
        accuracy=float(right.double().mean()),
        balanced_accuracy=float(recalls.mean()),
        geometric_mean=float(recalls.clamp(min=1 / (100 * classes)).log().mean().exp()),
        thirds=None if trained_on is None else thirds(per_class, np.bincount(trained_on, minlength=classes)),
        per_class=per_class,
        ece=expected_calibration_error(confidence, right),
        mean_confidence=float(confidence.mean()),
        rows=len(label),
    )


def thirds(per_class: Sequence[float | None], labels: ArrayLike) -> dict[str, float | None] | None:
    """Mean recall of the classes with many, medium and few labels; None where no class has twice the labels of another.

    Classes are ranked by their `labels` ([C] counts), equal ones in their order. The first C // 3 are "many", the last C // 3 "few",
    as in DARP's code (Kim et al. 2020); fewer than three classes have no thirds. Classes without rows are left out of a mean.
    """
    labels = np.asarray(labels)
    third = len(labels) // 3
    if not third or labels.max() < 2 * labels.min():
        return None
    order = np.argsort(-labels, kind="stable")
    groups = {"many": order[:third], "medium": order[third:-third], "few": order[-third:]}
    known = {name: [per_class[c] for c in group if per_class[c] is not None] for name, group in groups.items()}
    return {name: sum(shares) / len(shares) if shares else None for name, shares in known.items()}


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
