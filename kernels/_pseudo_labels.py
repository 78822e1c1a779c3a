"""The teacher's side of the pseudo-label losses: label, confidence, weight and soft target of each row, options checked.

N rows, C classes. Nothing here carries gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from . import _check
from ._row_losses import inside
from ._weighting import WEIGHTINGS, aligned, label_and_confidence, row_threshold, row_weight, working_dtype


class PseudoLabel(NamedTuple):
    """What `pseudo_label_loss` returns; rows of V views follow each other view after view. All but `loss` are without gradient."""

    loss: Tensor  # [N] or [V*N] float32 (float64 for float64 inputs), weight already applied
    label: Tensor  # [N] int64
    confidence: Tensor  # [N] float32, the teacher's, aligned where `align` was given
    weight: Tensor  # [N] or [V*N] float32


def pseudo_labels(
    student: Tensor,
    teacher: Tensor | PseudoLabel,
    threshold: float | Tensor,
    weighting: str,
    power: float,
    variance: float | Tensor | None,
    judge: Tensor | None,
    temperature: float | None,
    align: Tensor | None,
    align_for: str,
    sample_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """label [N] int64, confidence [N], weight [N], soft target [N, C] or None; arguments as in `reference.pseudo_label_loss`."""
    rows, classes = student.shape[-2:]
    check_options(student, threshold, weighting, power, variance, temperature, align, align_for, sample_weight)
    check_teacher(student, teacher, judge, temperature, align)

    soft = None
    if isinstance(teacher, PseudoLabel):
        _check.labels_in_range("teacher.label", teacher.label, classes, sample_weight)
        dtype = working_dtype(student, teacher.confidence, judge)
        label, outside = inside(teacher.label, classes)
        confidence = teacher.confidence.to(dtype).masked_fill(outside, math.nan)
    else:
        dtype = working_dtype(student, teacher, judge)
        raw = teacher.to(dtype)
        weighed = aligned(raw, align)
        label, confidence = label_and_confidence(weighed)
        named = weighed if align_for == "both" else raw
        if named is not weighed:
            label, _ = label_and_confidence(named)
        if temperature is not None:
            soft = (named / temperature).softmax(dim=1)
    judged = confidence if judge is None else label_and_confidence(aligned(judge.to(dtype), align))[1]

    variance = variance.to(dtype) if isinstance(variance, Tensor) else variance
    weight = row_weight(weighting, judged, row_threshold(threshold, label, dtype), power, variance)
    if judge is not None:
        weight = weight.masked_fill(confidence.isnan(), math.nan)
    if sample_weight is not None:
        sample_weight = sample_weight.to(dtype)
        weight = (weight * sample_weight).masked_fill(sample_weight == 0, 0.0)
    return label, confidence, weight, soft


def check_options(student, threshold, weighting, power, variance, temperature, align, align_for, sample_weight) -> None:
    rows, classes = student.shape[-2:]
    _check.choice("weighting", weighting, WEIGHTINGS)
    _check.choice("align_for", align_for, ("both", "weight"))
    _check.threshold(threshold, rows, classes, student.device)
    _check.number("power", power, "above 0", 0)
    if variance is None:
        if weighting == "gaussian":
            raise ValueError("weighting gaussian needs variance, a number above 0 or a tensor []; got None")
    elif isinstance(variance, Tensor):
        _check.constant("variance", variance, {"[]": ()}, student.device)
    else:
        _check.number("variance", variance, "above 0 or a floating-point tensor []", 0)
    if temperature is not None:
        _check.number("temperature", temperature, "above 0, or None for hard labels", 0)
    for name, value, shape in (("align", align, {"[C]": (classes,)}), ("sample_weight", sample_weight, {"[N]": (rows,)})):
        if value is not None:
            _check.constant(name, value, shape, student.device)


def check_teacher(student, teacher, judge, temperature, align) -> None:
    rows, classes = student.shape[-2:]
    shape = {"[N, C], rows and classes of student": (rows, classes)}
    if isinstance(teacher, PseudoLabel):
        for name, value in (("align", align), ("temperature", temperature)):
            if value is not None:
                raise ValueError(f"{name} needs the teacher's logits, but teacher is a PseudoLabel; give {name} to the call that made it")
        _check.labels("teacher.label", teacher.label, rows, student.device)
        _check.constant("teacher.confidence", teacher.confidence, {"[N]": (rows,)}, student.device)
    else:
        _check.constant("teacher", teacher, shape, student.device)
    if judge is not None:
        _check.constant("judge", judge, shape, student.device)
