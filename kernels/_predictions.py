"""Plain-torch `consistency_loss` and `class_statistics`: the part of `reference.py` that takes predictions whole. Its rules hold here too.

N rows, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _check
from ._row_losses import lost
from ._weighting import label_and_confidence, row_threshold, working_dtype


class ClassStatistics(NamedTuple):
    """What `class_statistics` returns: moments of one batch of predictions, without gradient."""

    mean_probability: Tensor  # [C] float32
    histogram: Tensor  # [C] int64
    confidence_mean: Tensor  # [] float32
    confidence_var: Tensor  # [] float32, unbiased; 0 for one row


def check_consistency(student, teacher, kind, temperature, sample_weight, teacher_is) -> None:
    """Raises ValueError for what `consistency_loss` does not take."""
    _check.choice("kind", kind, ("mse", "kl", "ce"))
    _check.choice("teacher_is", teacher_is, ("logits", "probabilities"))
    _check.number("temperature", temperature, "above 0", 0)
    _check.logits("student", student)
    _check.logits("teacher", teacher)
    if teacher.shape != student.shape:
        raise ValueError(f"teacher must be [N, C] = {list(student.shape)} like student; got {list(teacher.shape)}")
    _check.on_device("teacher", teacher, student.device)
    if sample_weight is not None:
        _check.constant("sample_weight", sample_weight, {"[N]": (student.shape[0],)}, student.device)


def consistency_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    kind: str = "mse",
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    teacher_grad: bool = False,
    teacher_is: str = "logits",
) -> Tensor:
    """Rows of distance between two predictions, p = softmax(student / T) and q = softmax(teacher / T).

    | kind | row | as in |
    |---|---|---|
    | mse | mean over classes of (p - q)**2 | Pi-model, arXiv 1610.02242; Mean Teacher, arXiv 1703.01780 |
    | kl | sum_c q_c * (log q_c - log p_c) = KL(teacher, student) | VAT, arXiv 1704.03976; UDA, arXiv 1904.12848 |
    | ce | -sum_c q_c * log p_c | soft cross-entropy, knowledge distillation, arXiv 1503.02531 |

    Args:
        student: [N, C] logits.
        teacher: [N, C] logits, or probabilities with `teacher_is="probabilities"`; those are taken as they are at T = 1, and as
            normalise(q ** (1 / T)) otherwise, where one below 0 makes its row NaN.
        kind: one of the table.
        temperature: T > 0, divides the logits of both sides. No factor T**2 is applied.
        sample_weight: [N].
        teacher_grad: let the gradient through the teacher too (Laine and Aila's Pi-model); else the teacher is a constant.
        teacher_is: "logits" or "probabilities".

    Returns:
        [N] float32 (float64 if one input is float64).

    Raises:
        ValueError: wrong shape, dtype, device or name; a `sample_weight` that requires grad.
    """
    check_consistency(student, teacher, kind, temperature, sample_weight, teacher_is)
    dtype = working_dtype(student, teacher)
    teacher = (teacher if teacher_grad else teacher.detach()).to(dtype)
    student = student.to(dtype)
    dead = None
    if sample_weight is not None:
        sample_weight = sample_weight.to(dtype)
        dead = sample_weight == 0
        student = student.masked_fill(dead[:, None], 0.0)
        teacher = teacher.masked_fill(dead[:, None], 1.0)

    if teacher_is == "logits":
        q = (teacher / temperature).softmax(dim=1)
    elif temperature == 1:
        q = teacher
    else:
        q = teacher ** (1 / temperature)
        q = q / q.sum(dim=1, keepdim=True)

    if kind == "mse":
        loss = ((student / temperature).softmax(dim=1) - q).square().mean(dim=1)
    else:
        # 0 * log 0 = 0, in the backward pass too: what meets q = 0 is replaced before the product, not only after it.
        nothing = q == 0
        student_log_p = (student / temperature).log_softmax(dim=1)
        log_p = student_log_p.masked_fill(nothing, 0.0)
        if kind == "kl":
            log_q = (teacher / temperature).log_softmax(dim=1) if teacher_is == "logits" else q.masked_fill(nothing, 1.0).log()
            log_p = log_p - log_q.masked_fill(nothing, 0.0)
        loss = -(q * log_p).sum(dim=1)
        loss = loss + lost(loss, student_log_p)
    return loss if dead is None else (sample_weight * loss).masked_fill(dead, 0.0)


def check_class_statistics(teacher, threshold) -> None:
    """Raises ValueError for what `class_statistics` does not take."""
    _check.logits("teacher", teacher)
    rows, classes = teacher.shape
    if rows == 0:
        raise ValueError("teacher needs at least one row to have statistics; got [0, C]")
    if threshold is not None:
        _check.threshold(threshold, rows, classes, teacher.device)


@torch.no_grad()
def class_statistics(teacher: Tensor, *, threshold: float | Tensor | None = None) -> ClassStatistics:
    """Statistics of a batch of predictions: what adaptive thresholds and distribution alignment are made of.

    They serve FlexMatch (arXiv 2110.08263), FreeMatch (arXiv 2205.07246, eqs. 5 and 6), SoftMatch (arXiv 2301.10921) and alignment.

    Args:
        teacher: [N, C] logits, N >= 1; read without gradient.
        threshold: the histogram counts rows whose confidence is at least this: a number, or a tensor [], [C] (by the row's label) or
            [N, 1]; None counts all rows. A row whose confidence is NaN has no label and is not counted.

    Returns:
        ClassStatistics(mean_probability [C], histogram [C] int64, confidence_mean [], confidence_var []). NaN in a row makes the means NaN.

    Raises:
        ValueError: wrong shape, dtype or device; no row at all.
    """
    check_class_statistics(teacher, threshold)
    rows, classes = teacher.shape
    logits = teacher.to(working_dtype(teacher))
    label, confidence = label_and_confidence(logits)
    if threshold is None:
        counted = ~confidence.isnan()
    else:
        counted = confidence >= row_threshold(threshold, label, confidence.dtype)
    # Integer sums are exact in any order; bincount would stop the host to learn the largest label.
    histogram = torch.zeros(classes, dtype=torch.int64, device=logits.device).scatter_add(0, label, counted.to(torch.int64))
    var = confidence.var(correction=1) if rows > 1 else torch.zeros_like(confidence[0])
    return ClassStatistics(logits.softmax(dim=1).mean(dim=0), histogram, confidence.mean(), var)
