"""The losses on the CPU in closed form: forward and gradient at once, faster there than autograd through `reference.py`.

Same names, signatures, checks and rules as `reference.py`, which is the specification. The functions ask for values (which rows count,
whether a number came out finite), so they are for eager calls on plain tensors in host memory; `_dispatch.py` sees to that.
"""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor
from torch.nn import functional

from . import reference
from ._closed_form_graph import row_losses, small_hard_losses
from ._closed_form_rows import NARROW, Rows, clear_dead, hard_gradient_, hard_softmax, is_small, losses_and_gradient, predictions
from ._predictions import ClassStatistics, check_class_statistics
from ._pseudo_labels import PseudoLabel, check_options, check_teacher, pseudo_labels
from ._row_losses import shifted
from ._weighting import row_threshold, row_weight, working_dtype

# torch passes over rows of one label, -100 unless told otherwise. Here every label out of range is an error, so that label is one that no
# data hold: neither a small number nor what a NaN becomes as an integer.
_NOBODYS = -0x5A5A_A5A5_3C3C_C3C3


def pseudo_label_loss(
    student: Tensor,
    teacher: Tensor | PseudoLabel,
    *,
    threshold: float | Tensor = 0.95,
    weighting: str = "step",
    power: float = 1.0,
    variance: float | Tensor | None = None,
    judge: Tensor | None = None,
    temperature: float | None = None,
    align: Tensor | None = None,
    align_for: str = "both",
    margin: Tensor | None = None,
    adjust: Tensor | None = None,
    smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
) -> PseudoLabel:
    """`reference.pseudo_label_loss`."""
    if weighting == "step" and judge is temperature is align is margin is adjust is sample_weight is variance is None:
        if _is_plain(student, teacher, threshold, power, align_for, smoothing):
            label, confidence, weight = _fixmatch(teacher, threshold)
            losses = _torch_losses if student.shape[1] >= NARROW else small_hard_losses
            return PseudoLabel(losses(student, label, weight), label, confidence, weight)
    reference.check_student(student, margin, adjust, smoothing, temperature)
    options = (threshold, weighting, power, variance, judge, temperature, align, align_for, sample_weight)
    label, confidence, weight, ratio = _weighted(student, teacher, *options)
    rows = _rows(student, teacher, label, weight, ratio, temperature, margin, adjust, smoothing)
    return PseudoLabel(row_losses(student, rows), label, confidence, rows.weight)


def pseudo_label_loss_and_grad(
    student: Tensor,
    teacher: Tensor | PseudoLabel,
    *,
    scale: float | Tensor,
    threshold: float | Tensor = 0.95,
    weighting: str = "step",
    power: float = 1.0,
    variance: float | Tensor | None = None,
    judge: Tensor | None = None,
    temperature: float | None = None,
    align: Tensor | None = None,
    align_for: str = "both",
    margin: Tensor | None = None,
    adjust: Tensor | None = None,
    smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
) -> tuple[PseudoLabel, Tensor]:
    """`reference.pseudo_label_loss_and_grad`."""
    if weighting == "step" and judge is temperature is align is margin is adjust is sample_weight is variance is None:
        if type(scale) is float and 0 <= scale <= 1 and _is_plain(student, teacher, threshold, power, align_for, smoothing):
            label, confidence, weight = _fixmatch(teacher, threshold)
            loss, e, total, sound = hard_softmax(student.detach(), label)
            # Weights are 0, 1 or NaN, so that clamping them is multiplying them by the scale, without making a tensor of it.
            loss, gradient = loss.mul_(weight), hard_gradient_(e, total, label, weight.clamp(max=scale))
            if not sound:
                clear_dead(weight, loss, gradient)
            return PseudoLabel(loss, label, confidence, weight), gradient
    reference.check_student(student, margin, adjust, smoothing, temperature)
    reference.check_scale(scale, student)
    options = (threshold, weighting, power, variance, judge, temperature, align, align_for, sample_weight)
    label, confidence, weight, ratio = _weighted(student, teacher, *options)
    factor = weight * (scale.to(weight.dtype) if isinstance(scale, Tensor) else scale)
    if isinstance(scale, Tensor):
        factor.masked_fill_(weight == 0, 0.0)  # whatever the scale of such a row
    rows = _rows(student, teacher, label, weight, ratio, temperature, margin, adjust, smoothing)
    loss, gradient = losses_and_gradient(rows, _in_each_view(student, factor))
    return PseudoLabel(loss, label, confidence, rows.weight), gradient.reshape(student.shape)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    margin: Tensor | None = None,
    smoothing: float = 0.0,
    class_weight: Tensor | None = None,
    adjust: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """`reference.cross_entropy`, which itself takes class weights together with a soft or smoothed target.

    Rows that all weigh 1 leave nothing to save, so torch's own fused cross-entropy takes them where it is good at them.
    """
    if margin is adjust is class_weight is sample_weight is None and _is_plain_target(logits, target, smoothing):
        try:
            return functional.cross_entropy(logits, target, ignore_index=_NOBODYS, reduction="none")
        except IndexError:  # a label out of range, which the checks below tell of
            pass
    if class_weight is not None and (smoothing or (isinstance(target, Tensor) and target.dim() == 2)):
        options = {"margin": margin, "smoothing": smoothing, "class_weight": class_weight, "adjust": adjust}
        return reference.cross_entropy(logits, target, sample_weight=sample_weight, **options)
    soft = reference.check_cross_entropy(logits, target, margin, smoothing, class_weight, adjust, sample_weight)
    dtype = working_dtype(logits, target if soft else None)
    weight = None if sample_weight is None else sample_weight.to(dtype)
    label = None if soft else target.to(torch.int64, copy=target.is_inference())
    if label is not None and weight is not None:
        # A label out of range has come this far only in a row of weight 0.
        label = label.clamp(0, logits.shape[1] - 1)
    if class_weight is not None:
        by_class = class_weight.to(dtype)[label]
        weight = by_class if weight is None else weight * by_class
    if weight is None and label is not None and not smoothing and _torch_is_fast(logits):
        return functional.cross_entropy(shifted(logits, label, margin, adjust, dtype), label, reduction="none")
    rows = Rows(logits.detach(), weight, label, target if soft else None, None, margin, adjust, None, smoothing, dtype)
    return row_losses(logits, rows)


@torch.no_grad()
def class_statistics(teacher: Tensor, *, threshold: float | Tensor | None = None) -> ClassStatistics:
    """`reference.class_statistics`."""
    check_class_statistics(teacher, threshold)
    rows, classes = teacher.shape
    dtype = working_dtype(teacher)
    class_sum = torch.zeros(classes, dtype=dtype)
    label, confidence = predictions(teacher, dtype, class_sum=class_sum)
    counted = ~confidence.isnan() if threshold is None else confidence >= row_threshold(threshold, label, dtype)
    histogram = torch.zeros(classes, dtype=torch.int64).scatter_add_(0, label, counted.to(torch.int64))
    var = confidence.var(correction=1) if rows > 1 else torch.zeros_like(confidence[0])
    return ClassStatistics(class_sum / rows, histogram, confidence.mean(), var)


def _weighted(student, teacher, threshold, weighting, power, variance, judge, temperature, align, align_for, sample_weight):
    """label [N], confidence [N], weight [N] and the logarithm of `align` [C], options checked: `pseudo_labels` without the soft target."""
    if isinstance(teacher, PseudoLabel):
        options = (threshold, weighting, power, variance, judge, temperature, align, align_for, sample_weight)
        return *pseudo_labels(student, teacher, *options)[:3], None
    check_options(student, threshold, weighting, power, variance, temperature, align, align_for, sample_weight)
    check_teacher(student, teacher, judge, temperature, align)
    dtype = working_dtype(student, teacher, judge)
    ratio = None if align is None else align.to(dtype).log()
    label, confidence = predictions(teacher, dtype, ratio)
    if ratio is not None and align_for == "weight":
        label, _ = predictions(teacher, dtype, None)
    judged = confidence if judge is None else predictions(judge, dtype, ratio)[1]
    if weighting == "step" and not isinstance(threshold, Tensor):
        # 0 * NaN keeps the NaN that a comparison would lose.
        weight = judged.ge(threshold).to(dtype).add_(judged, alpha=0)
    else:
        variance = variance.to(dtype) if isinstance(variance, Tensor) else variance
        weight = row_weight(weighting, judged, row_threshold(threshold, label, dtype), power, variance)
    if judge is not None:
        weight = weight.masked_fill(confidence.isnan(), math.nan)
    if sample_weight is not None:
        sample_weight = sample_weight.to(dtype)
        weight = (weight * sample_weight).masked_fill(sample_weight == 0, 0.0)
    return label, confidence, weight, ratio if align_for == "both" else None


def _torch_losses(student: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Losses [N] of rows that weigh 0 or 1 by torch's own cross-entropy, whose nodes of a graph cost less than one made in Python.

    `where` and not a product: rows of weight 0 stay exactly 0 under any upstream gradient too. That holds while every row's softmax is
    finite; where one is not, or a weight is NaN, the rows are done again by the rules.
    """
    loss = functional.cross_entropy(student, label, reduction="none")
    if math.isfinite(torch.dot(loss.detach(), weight).item()):
        return torch.where(weight > 0, loss, 0.0)
    return small_hard_losses(student, label, weight)


def _torch_is_fast(logits: Tensor) -> bool:
    """Not over large inputs, where it keeps two buffers, nor over many rows shorter than a vector register, which it takes by elements."""
    return is_small(logits) and (logits.shape[1] >= 16 or logits.shape[0] < 256)


def _is_plain(student, teacher, threshold, power, align_for, smoothing) -> bool:
    """Whether two small float32 inputs and plain numbers are all that came, so that no check of theirs can fail.

    For such calls every line of Python and every call into torch shows: the checks alone are a tenth of the time at (448, 10).
    """
    return (
        type(threshold) is type(power) is type(smoothing) is float
        and threshold == threshold
        and power == 1
        and align_for == "both"
        and smoothing == 0
        and isinstance(student, Tensor)
        and isinstance(teacher, Tensor)
        and student.dtype == teacher.dtype == torch.float32
        and student.dim() == 2
        and student.shape == teacher.shape
        and student.shape[1] > 1
        and is_small(student)
        and student.device == teacher.device
        and not teacher.requires_grad
    )


def _is_plain_target(logits, target, smoothing) -> bool:
    """Whether torch's own cross-entropy is all that is asked for, and no check but that of the labels' values can fail."""
    if not (isinstance(logits, Tensor) and isinstance(target, Tensor) and logits.dim() == 2 and target.shape == logits.shape[:1]):
        return False
    plain = logits.dtype in (torch.float32, torch.float64) and target.dtype == torch.int64 and target.device == logits.device
    plain = plain and not target.is_inference()  # torch would not save it for the backward pass
    return plain and type(smoothing) is float and smoothing == 0 and logits.shape[1] > 1 and _torch_is_fast(logits)


def _fixmatch(teacher: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """label [N], confidence [N] and weight [N], which is 1 where the confidence is at least the threshold, 0 below it, NaN for NaN."""
    label, confidence = predictions(teacher, torch.float32)
    # torch.threshold keeps NaN and what lies above its number; a confidence lies in (0, 1]. Comparing and converting takes thrice the time.
    return label, confidence, torch.threshold(confidence, _float32_below(threshold), 0.0).ceil_()


def _float32_below(threshold: float) -> float:
    """The largest float32 that is less than the threshold rounded to float32, within [0, 2]."""
    (bits,) = struct.unpack("<i", struct.pack("<f", min(threshold, 2.0)))
    return struct.unpack("<f", struct.pack("<i", max(bits - 1, 0)))[0]


def _rows(student, teacher, label, weight, ratio, temperature, margin, adjust, smoothing) -> Rows:
    target = teacher if temperature is not None else None
    ratio = ratio if temperature is not None else None
    logits = student.detach().flatten(0, -2)
    label, weight = _in_each_view(student, label), _in_each_view(student, weight)
    return Rows(logits, weight, label, target, ratio, margin, adjust, temperature, smoothing, weight.dtype)


def _in_each_view(student: Tensor, rows: Tensor) -> Tensor:
    return rows.repeat(student.shape[0]) if student.dim() == 3 and student.shape[0] != 1 else rows
