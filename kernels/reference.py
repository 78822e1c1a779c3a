"""Every loss of fastssl.kernels in plain torch: the specification, the CPU path and the oracle of faster kernels.

N rows, C classes, V strong views. Each function returns one value per row ("rows out"); the caller divides. Logits may be float32,
bfloat16, float16 (computed in float32) or float64 (computed in float64; one float64 input is enough). Inputs are never overwritten.
Nothing here asks the device for a value, so all of it passes through `torch.compile(fullgraph=True)` and CUDA-graph capture, and all of
it but `pseudo_label_loss_and_grad` can be differentiated twice. Wrong shapes, dtypes, devices, names: ValueError before any work.

Rules that hold for all losses:
* A row of weight 0 has exactly zero loss and gradient, whatever its student logits hold (NaN and inf included).
* A row of another weight whose student logits hold NaN or +inf, or nothing but -inf, is NaN in loss and gradient, whatever its target:
  one that sums to 0 too.
* NaN or +inf in a row of a teacher or judge makes that row's loss and gradient NaN, so that divergence shows; a sample weight of 0 wins.
* -inf is the logit of an impossible class; 0 * log 0 counts as 0.
* A label outside [0, C): ValueError on the CPU, NaN loss elsewhere and in compiled code; a sample weight of 0 wins.
* Gradient reaches the student's logits (and the teacher of `consistency_loss` with `teacher_grad`) and no other argument.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _check
from ._predictions import ClassStatistics, class_statistics, consistency_loss
from ._pseudo_labels import PseudoLabel, pseudo_labels
from ._row_losses import check_shift, hard_rows, inside, shifted, smoothed, soft_rows
from ._weighting import working_dtype

__all__ = [
    "ClassStatistics",
    "PseudoLabel",
    "class_statistics",
    "consistency_loss",
    "cross_entropy",
    "pseudo_label_loss",
    "pseudo_label_loss_and_grad",
]


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
    """Weighted cross-entropy of a student's rows against labels that a teacher's rows suggest.

    loss_i = w_i * CE(q_i, softmax(student_i)), q_i the one-hot argmax of the teacher (soft with `temperature`), w_i by `weighting`
    from the judged confidence c_i = max softmax(judge or teacher) and its threshold t_i:

    | weighting | w | as in |
    |---|---|---|
    | step | 1 if c >= t else 0 | FixMatch, arXiv 2001.07685, eq. 4 |
    | smooth | (max(0, c - t) / (1 - t)) ** power; for t = 1 its limit, the step | Smooth FixMatch, arXiv 2405.14313, eq. 21 for power 1 |
    | gaussian | exp(-2 * min(c - t, 0)**2 / variance), 1 for c >= t | SoftMatch, arXiv 2301.10921, two sigmas |
    | confidence | c if c >= t else 0 | FineSSL, arXiv 2405.11756 |
    | none | 1, the threshold is not looked at | Pseudo-Label, Lee 2013 |

    Args:
        student: [N, C] logits, or [V, N, C] for V views that share one teacher row.
        teacher: [N, C] logits that do not require grad, or the `PseudoLabel` of an earlier call: then its label and confidence are
            taken as they are, its confidence meets this call's threshold, and `align` and `temperature` are refused.
        threshold: a number, or a tensor [], [C] (looked up by the row's label) or [N, 1] (row by row). A [] tensor of the host beside
            tensors of a device is read when the call is made: a captured CUDA graph keeps the value that it had then.
        weighting: one of the table.
        power: exponent of `smooth`, above 0.
        variance: number above 0 or tensor [], for `gaussian`.
        judge: [N, C] logits whose confidence is judged in place of the teacher's; aligned like the teacher's where `align` is given.
        temperature: None for hard labels; T > 0 for soft ones, softmax(teacher / T) after alignment. Confidence is always at T = 1.
        align: [C] ratio of target to model marginal (distribution alignment, ReMixMatch, arXiv 1911.09785, section 3.1): probabilities
            become normalise(p * align).
        align_for: "both": label, soft target, confidence and weight use aligned probabilities (AdaMatch, arXiv 2106.04732);
            "weight": confidence and weight do, the label and the soft target stay unaligned (SoftMatch).
        margin: [C]; a row with label c gets margin[c] added to every other logit (FineSSL's balanced margin softmax).
        adjust: [C], added to all student logits before the softmax (logit adjustment, arXiv 2007.07314, eq. 10).
        smoothing: eps in [0, 1); the hard label keeps 1 - eps, every other class gets eps / (C - 1).
        sample_weight: [N], multiplies the row's weight, in each view.

    Returns:
        PseudoLabel(loss, label, confidence, weight); gradient flows through `loss` alone, to `student`.

    Raises:
        ValueError: wrong shape, dtype, device or name; a tensor other than `student` that requires grad; `margin` or `smoothing` together
            with `temperature`; `gaussian` without `variance`; `align` or `temperature` with a PseudoLabel as teacher.
    """
    check_student(student, margin, adjust, smoothing, temperature)
    options = (threshold, weighting, power, variance, judge, temperature, align, align_for, sample_weight)
    label, confidence, weight, soft = pseudo_labels(student, teacher, *options)
    views = student.shape[0] if student.dim() == 3 else 1
    label_v, weight_v, soft_v = _in_each_view(views, label, weight, soft)
    dead = weight_v == 0
    logits = shifted(student.flatten(0, -2), label_v, margin, adjust, confidence.dtype)
    # The mask lies on the logits, not only on the loss: 0 * NaN in the backward pass of the softmax would be NaN.
    log_p = logits.masked_fill(dead[:, None], 0.0).log_softmax(dim=1)
    rows = hard_rows(log_p, label_v, smoothing) if soft is None else soft_rows(log_p, soft_v)
    return PseudoLabel((weight_v * rows).masked_fill(dead, 0.0), label, confidence, weight_v)


@torch.no_grad()
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
    """`pseudo_label_loss` and its gradient at once, in closed form: no autograd graph, so `student.backward(gradient)` ends the job.

    Args:
        scale: number, or tensor [] or [N]: the gradient is that of sum(scale * loss), a row's scale serving all its views.
        others: as in `pseudo_label_loss`.

    Returns:
        (PseudoLabel, gradient): `loss` here carries no graph; gradient has the shape and dtype of `student`.

    Raises:
        ValueError: as `pseudo_label_loss`.
    """
    check_student(student, margin, adjust, smoothing, temperature)
    check_scale(scale, student)
    options = (threshold, weighting, power, variance, judge, temperature, align, align_for, sample_weight)
    label, confidence, weight, soft = pseudo_labels(student, teacher, *options)
    views = student.shape[0] if student.dim() == 3 else 1
    factor = weight * (scale.to(weight.dtype) if isinstance(scale, Tensor) else scale)
    label_v, weight_v, soft_v, factor_v = _in_each_view(views, label, weight, soft, factor)
    dead = weight_v == 0
    log_p = shifted(student.flatten(0, -2), label_v, margin, adjust, confidence.dtype).log_softmax(dim=1)
    rows = hard_rows(log_p, label_v, smoothing) if soft is None else soft_rows(log_p, soft_v)
    loss = (weight_v * rows).masked_fill(dead, 0.0)

    # row = -sum_c q_c log p_c with p = softmax(z'), so d row / d z'_k = p_k * sum_c q_c - q_k = p_k - q_k, for q sums to 1.
    # adjust and margin only add constants to z, so d z'_j / d z_k is the identity and the same holds for z itself.
    gradient = log_p.exp_()
    if soft is not None:
        gradient.sub_(soft_v)
    else:
        other = smoothing / (student.shape[-1] - 1)
        if smoothing:
            gradient.sub_(other)
        gradient.scatter_add_(1, label_v[:, None], torch.full_like(factor_v, smoothing + other - 1)[:, None])
    gradient.mul_(factor_v[:, None])
    # Dead rows to 0 by their bits: 0 & NaN is 0 where 0 * NaN is NaN, and on a CPU it takes a tenth of masked_fill's time.
    bits = torch.int64 if gradient.dtype == torch.float64 else torch.int32
    if torch.jit.is_tracing():  # which cannot write down a view by another dtype
        gradient.masked_fill_(dead[:, None], 0.0)
    else:
        gradient.view(bits).bitwise_and_(-(~dead)[:, None].to(bits))
    return PseudoLabel(loss, label, confidence, weight_v), gradient.to(student.dtype).reshape(student.shape)


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
    """Rows of cross-entropy, loss_i = -sample_weight_i * sum_c class_weight_c * q_ic * log softmax(logits_i)_c.

    Args:
        logits: [N, C].
        target: [N] integer labels (q one-hot, smoothed by `smoothing`), or [N, C] floating-point q, used as it is.
        margin: [C]; a row with label c gets margin[c] added to every other logit (balanced margin softmax, FineSSL, arXiv 2405.11756).
        smoothing: eps in [0, 1); the label keeps 1 - eps, every other class gets eps / (C - 1).
        class_weight: [C]. A label whose class weight is 0, without smoothing, is a row of weight 0.
        adjust: [C], added to all logits before the softmax (logit adjustment, arXiv 2007.07314, eq. 10).
        sample_weight: [N].

    Returns:
        [N] float32 (float64 for float64 logits); gradient flows to `logits`.

    Raises:
        ValueError: wrong shape, dtype, device; a tensor other than `logits` that requires grad; `margin` or `smoothing` with a soft target;
            on the CPU a label outside [0, C) in a row whose sample weight is not 0.
    """
    soft = check_cross_entropy(logits, target, margin, smoothing, class_weight, adjust, sample_weight)
    rows, classes = logits.shape
    dtype = working_dtype(logits, target if soft else None)
    weight = logits.new_ones(rows, dtype=dtype) if sample_weight is None else sample_weight.to(dtype)
    if soft:
        label, q = None, target.to(dtype)
    else:
        label, outside = inside(target, classes)
        weight = weight.masked_fill(outside & (weight != 0), math.nan)
        q = smoothed(label, classes, smoothing, dtype) if smoothing and class_weight is not None else None
    if class_weight is not None:
        if q is None:
            weight = weight * class_weight.to(dtype)[label]
        else:
            q = q * class_weight.to(dtype)

    logits = shifted(logits, label, margin, adjust, dtype)
    dead = weight == 0
    if sample_weight is not None or class_weight is not None:
        logits = logits.masked_fill(dead[:, None], 0.0)
    log_p = logits.log_softmax(dim=1)
    loss = hard_rows(log_p, label, smoothing) if q is None else soft_rows(log_p, q)
    return (weight * loss).masked_fill(dead, 0.0)


def check_cross_entropy(logits, target, margin, smoothing, class_weight, adjust, sample_weight) -> bool:
    """Whether the target is soft; raises what `cross_entropy` raises."""
    _check.logits("logits", logits)
    rows, classes = logits.shape
    soft = isinstance(target, Tensor) and target.dim() == 2
    check_shift(classes, logits.device, margin, adjust, smoothing, "a target [N, C]" if soft else None)
    for name, value, shape in (("class_weight", class_weight, {"[C]": (classes,)}), ("sample_weight", sample_weight, {"[N]": (rows,)})):
        if value is not None:
            _check.constant(name, value, shape, logits.device)
    if soft:
        _check.constant("target", target, {"[N, C]": (rows, classes)}, logits.device)
    else:
        _check.labels("target", target, rows, logits.device)
        _check.labels_in_range("target", target, classes, sample_weight)
    return soft


def check_scale(scale: float | Tensor, student: Tensor) -> None:
    """Scale is a number, or a tensor [] or [N]."""
    if isinstance(scale, Tensor):
        _check.constant("scale", scale, {"[]": (), "[N]": (student.shape[-2],)}, student.device)
    else:
        _check.number("scale", scale, "or a floating-point tensor [] or [N]", -math.inf)


def check_student(student, margin, adjust, smoothing, temperature) -> None:
    _check.logits("student", student, views=True)
    soft = None if temperature is None else "temperature, which makes soft targets"
    check_shift(student.shape[-1], student.device, margin, adjust, smoothing, soft)


def _in_each_view(views: int, *tensors: Tensor | None) -> list[Tensor | None]:
    """Rows [N, ...] repeated for every view -> [V*N, ...], view after view."""
    if views == 1:
        return list(tensors)
    return [None if t is None else t.repeat(views, *([1] * (t.dim() - 1))) for t in tensors]
