"""`pseudo_label_loss` and `pseudo_label_loss_and_grad` by Triton kernels. Signatures, rules and sources: `reference.py`.

Forward: one launch reads the teacher once and the student once (rows of weight 0 not at all). Gradient at once: the same launch writes it.
Gradient by autograd: a second launch reads the student again and writes, from three numbers a row kept by the first; soft targets
read the teacher again as well. Derivations and byte counts: docs/kernels.md.

Where something traces, autograd and the launches are one custom operator. Elsewhere an autograd.Function runs the same launches without
the operator's dispatch, which a loss of a few hundred rows would feel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _check, reference
from ._autograd import once, savable
from ._pseudo_label_launch import Call, Rows, empty_rows, run_backward, run_forward
from ._pseudo_labels import PseudoLabel, check_options, check_teacher


class PseudoLabelRows(torch.autograd.Function):
    """(student, call) -> loss, label, confidence, weight."""

    @staticmethod
    def forward(ctx, student: Tensor, call: Call):
        out = run_forward(student, call, stats=True, gradient=False)
        ctx.plain = call._replace(**{name: None for name, value in call._asdict().items() if isinstance(value, Tensor)})
        ctx.save_for_backward(student, *_kept(call), out.label, out.weight, out.stats, out.target_stats)
        ctx.mark_non_differentiable(out.label, out.confidence, out.weight)
        return out.loss, out.label, out.confidence, out.weight

    @staticmethod
    def backward(ctx, upstream: Tensor, *_: Tensor | None):
        once("pseudo_label_loss")
        student, teacher, align, margin, adjust, label, weight, stats, target_stats = ctx.saved_tensors
        call = ctx.plain._replace(teacher=teacher, align=align, margin=margin, adjust=adjust)
        return run_backward(student, call, _known(label, weight, stats, target_stats), upstream), None


def _kept(call: Call) -> tuple[Tensor | None, ...]:
    """What of a call its gradient reads again: teacher, align, margin, adjust."""
    both = (call.teacher, call.align) if call.temperature else (None, None)
    return tuple(map(savable, (*both, call.margin, call.adjust)))


def _known(label: Tensor, weight: Tensor, stats: Tensor, target_stats: Tensor) -> Rows:
    return Rows(weight, label, weight, weight, stats, target_stats, weight)


def _whole(student: Tensor, rows: Rows) -> tuple[Tensor, ...]:
    """Rows as an operator must return them: always seven tensors, what is absent as an empty one."""
    return tuple(student.new_empty(0) if t is None else t for t in rows)


@torch.library.custom_op("fastssl::pseudo_label_forward", mutates_args=())
def forward_op(
    student: Tensor,
    teacher: Tensor | None,
    ready_label: Tensor | None,
    ready_confidence: Tensor | None,
    judge: Tensor | None,
    threshold_tensor: Tensor | None,
    variance_tensor: Tensor | None,
    align: Tensor | None,
    margin: Tensor | None,
    adjust: Tensor | None,
    sample_weight: Tensor | None,
    scale_tensor: Tensor | None,
    threshold: float,
    variance: float,
    power: float,
    temperature: float,
    smoothing: float,
    scale: float,
    weighting: str,
    align_for: str,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `Call`, and whether the gradient is wanted at once -> the fields of `Rows`, statistics always among them."""
    tensors = (teacher, ready_label, ready_confidence, judge, threshold_tensor, variance_tensor, align, margin, adjust, sample_weight)
    numbers = (threshold, variance, power, temperature, smoothing, scale, weighting, align_for)
    return _whole(student, run_forward(student, Call(*tensors, scale_tensor, *numbers), True, gradient))


@forward_op.register_fake
def _(student, *arguments):
    *call, gradient = arguments
    return _whole(student, empty_rows(student, Call(*call), True, gradient))


@torch.library.custom_op("fastssl::pseudo_label_backward", mutates_args=())
def backward_op(
    student: Tensor,
    teacher: Tensor | None,
    align: Tensor | None,
    margin: Tensor | None,
    adjust: Tensor | None,
    label: Tensor,
    weight: Tensor,
    stats: Tensor,
    target_stats: Tensor,
    upstream: Tensor,
    temperature: float,
    smoothing: float,
    align_for: str,
) -> Tensor:
    tensors = (teacher, None, None, None, None, None, align, margin, adjust, None, None)
    call = Call(*tensors, 0.0, 1.0, 1.0, temperature, smoothing, 1.0, "none", align_for)
    return run_backward(student, call, _known(label, weight, stats, target_stats), upstream)


@backward_op.register_fake
def _(student, *_):
    return torch.empty(student.shape, dtype=student.dtype, device=student.device)


def _setup_context(ctx, inputs, output) -> None:
    student, *arguments = inputs
    call = Call(*arguments[:-1])
    out = Rows(*output)
    ctx.numbers = (call.temperature, call.smoothing, call.align_for)
    ctx.save_for_backward(student, *_kept(call), out.label, out.weight, out.stats, out.target_stats)


def _backward(ctx, upstream, *_):
    gradient = backward_op(*ctx.saved_tensors, upstream, *ctx.numbers)
    return (gradient, *(None,) * (len(Call._fields) + 1))


forward_op.register_autograd(_backward, setup_context=_setup_context)


def bind(student: Tensor, teacher: Tensor | PseudoLabel, scale: float | Tensor, options: dict) -> Call:
    """Checked arguments of the public functions as a `Call`. Raises what `reference.pseudo_label_loss` raises."""
    o = options
    reference.check_student(student, o["margin"], o["adjust"], o["smoothing"], o["temperature"])
    reference.check_scale(scale, student)
    names = ("threshold", "weighting", "power", "variance", "temperature", "align", "align_for", "sample_weight")
    check_options(student, *(o[name] for name in names))
    check_teacher(student, teacher, o["judge"], o["temperature"], o["align"])
    ready = isinstance(teacher, PseudoLabel)
    if ready:
        _check.labels_in_range("teacher.label", teacher.label, student.shape[-1], o["sample_weight"])
    threshold, variance = o["threshold"], o["variance"]
    return Call(
        teacher=None if ready else teacher,
        ready_label=teacher.label if ready else None,
        ready_confidence=teacher.confidence if ready else None,
        judge=o["judge"],
        threshold_tensor=threshold if isinstance(threshold, Tensor) else None,
        variance_tensor=variance if isinstance(variance, Tensor) else None,
        align=o["align"],
        margin=o["margin"],
        adjust=o["adjust"],
        sample_weight=o["sample_weight"],
        scale_tensor=scale if isinstance(scale, Tensor) else None,
        threshold=0.0 if isinstance(threshold, Tensor) else float(threshold),
        variance=1.0 if isinstance(variance, Tensor) or variance is None else float(variance),
        power=float(o["power"]),
        temperature=0.0 if o["temperature"] is None else float(o["temperature"]),
        smoothing=float(o["smoothing"]),
        scale=1.0 if isinstance(scale, Tensor) else float(scale),
        weighting=o["weighting"],
        align_for=o["align_for"],
    )


def _loss(student: Tensor, teacher: Tensor | PseudoLabel, options: dict) -> PseudoLabel:
    call = bind(student, teacher, 1.0, options)
    wanted = student.requires_grad and torch.is_grad_enabled()
    if _check.traced(student):
        found = forward_op(student, *call, False)[:4]
    elif wanted:
        return PseudoLabel(*PseudoLabelRows.apply(student, call))
    else:
        found = run_forward(student, call, False, False)[:4]
    return PseudoLabel(found[0], *(t.detach() for t in found[1:]))


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
    """`reference.pseudo_label_loss`, once differentiable."""
    options = {
        "threshold": threshold,
        "weighting": weighting,
        "power": power,
        "variance": variance,
        "judge": judge,
        "temperature": temperature,
        "align": align,
        "align_for": align_for,
        "margin": margin,
        "adjust": adjust,
        "smoothing": smoothing,
        "sample_weight": sample_weight,
    }
    return _loss(student, teacher, options)


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
    """`reference.pseudo_label_loss_and_grad` in one launch."""
    options = {
        "threshold": threshold,
        "weighting": weighting,
        "power": power,
        "variance": variance,
        "judge": judge,
        "temperature": temperature,
        "align": align,
        "align_for": align_for,
        "margin": margin,
        "adjust": adjust,
        "smoothing": smoothing,
        "sample_weight": sample_weight,
    }
    call = bind(student, teacher, scale, options)
    found = forward_op(student, *call, True) if _check.traced(student) else run_forward(student, call, False, True)
    return PseudoLabel(*found[:4]), found[-1]
