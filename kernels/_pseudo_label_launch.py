"""What `pseudo_label.py` launches: the arguments of a call, the memory of its results, and the two launches that fill it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._launch import Launch, alignment, beside, blocks, dense, logarithm, sharpness, vector
from ._pseudo_label_jit import gradient_kernel, pseudo_label_kernel


class Call(NamedTuple):
    """One call's arguments in the form that a custom operator can take: tensors, or None, and plain numbers and names."""

    teacher: Tensor | None
    ready_label: Tensor | None
    ready_confidence: Tensor | None
    judge: Tensor | None
    threshold_tensor: Tensor | None
    variance_tensor: Tensor | None
    align: Tensor | None
    margin: Tensor | None
    adjust: Tensor | None
    sample_weight: Tensor | None
    scale_tensor: Tensor | None
    threshold: float
    variance: float
    power: float
    temperature: float  # 0: hard labels
    smoothing: float
    scale: float
    weighting: str
    align_for: str


class Rows(NamedTuple):
    """What the forward launch writes; N rows, V views, M = V * N."""

    loss: Tensor  # [M] float32
    label: Tensor  # [N] int64
    confidence: Tensor  # [N] float32
    weight: Tensor  # [M] float32
    stats: Tensor | None  # [3, M] float32 for the backward launch
    target_stats: Tensor | None  # [2, N] float32, the same for soft targets
    gradient: Tensor | None  # as the student, contiguous


def empty_rows(student: Tensor, call: Call, stats: bool, gradient: bool) -> Rows:
    """Memory for the results, unwritten."""
    views, rows = (1, *student.shape[:-1])[-2:]
    float32, device = torch.float32, student.device
    return Rows(
        torch.empty(views * rows, dtype=float32, device=device),
        torch.empty(rows, dtype=torch.int64, device=device),
        torch.empty(rows, dtype=float32, device=device),
        torch.empty(views * rows, dtype=float32, device=device),
        torch.empty(3, views * rows, dtype=float32, device=device) if stats else None,
        torch.empty(2, rows, dtype=float32, device=device) if stats and call.temperature else None,
        torch.empty(student.shape, dtype=student.dtype, device=device) if gradient else None,
    )


def _host_scalars_read(call: Call, device: torch.device) -> Call:
    """A [] tensor of the host may go with tensors of any device: no kernel can read it there, and reading it here makes nobody wait."""
    for name, number in (("threshold_tensor", "threshold"), ("variance_tensor", "variance"), ("scale_tensor", "scale")):
        tensor = getattr(call, name)
        if tensor is not None and tensor.device != device:
            call = call._replace(**{name: None, number: float(tensor)})
    return call


def _kind(tensor: Tensor | None) -> str:
    return "number" if tensor is None else ("scalar", "class", "row")[tensor.dim()]


def _strides(student: Tensor) -> tuple[int, int, int]:
    return (0, *student.stride())[-3:]


def forward_launch(student: Tensor, call: Call, out: Rows) -> Launch:
    """The launch that fills `out`."""
    views, rows = (1, *student.shape[:-1])[-2:]
    classes = student.shape[-1]
    call = _host_scalars_read(call, student.device)
    soft = call.temperature != 0
    align = alignment(classes, student, call.teacher, call.judge)
    wide = [1 if t is None else vector(t, classes, align) for t in (student, call.teacher, call.judge)]
    block = blocks(classes + max(wide) - 1)
    view_stride, row_stride, column_stride = _strides(student)
    teacher_strides, judge_strides = ((0, 1) if t is None else t.stride() for t in (call.teacher, call.judge))
    args = {
        "student_ptr": student,
        "teacher_ptr": call.teacher,
        "ready_label_ptr": dense(call.ready_label),
        "ready_confidence_ptr": dense(call.ready_confidence),
        "judge_ptr": call.judge,
        "threshold_ptr": None if call.threshold_tensor is None else call.threshold_tensor.contiguous(),
        "variance_ptr": call.variance_tensor,
        "log_align_ptr": logarithm(call.align),
        "margin_ptr": dense(call.margin),
        "adjust_ptr": dense(call.adjust),
        "sample_weight_ptr": dense(call.sample_weight),
        "scale_ptr": dense(call.scale_tensor),
        "loss_ptr": out.loss,
        "label_ptr": out.label,
        "confidence_ptr": out.confidence,
        "weight_ptr": out.weight,
        "stats_ptr": out.stats,
        "target_stats_ptr": out.target_stats,
        "gradient_ptr": out.gradient,
        "rows": rows,
        "views": views,
        "classes_over": classes // align,
        "student_view_over": view_stride // align,
        "student_row_over": row_stride // align,
        "student_column": column_stride,
        "teacher_row_over": teacher_strides[0] // align,
        "teacher_column": teacher_strides[1],
        "judge_row_over": judge_strides[0] // align,
        "judge_column": judge_strides[1],
        "threshold": call.threshold,
        "power": call.power,
        "variance": call.variance,
        "sharpness": sharpness(call.temperature),
        "keep": 1 - call.smoothing,
        "spread": call.smoothing / (classes - 1),
        "scale": call.scale,
        "WEIGHTING": call.weighting,
        "THRESHOLD": _kind(call.threshold_tensor),
        "SCALE": "number" if call.scale_tensor is None else ("scalar", "row")[call.scale_tensor.dim()],
        "ALIGN_FOR": call.align_for,
        "SOFT": soft,
        "SPREAD": call.smoothing != 0,
        "ALIGN": align,
        "STUDENT_VECTOR": wide[0],
        "TEACHER_VECTOR": wide[1],
        "JUDGE_VECTOR": wide[2],
        "BLOCK_N": block.rows,
        "BLOCK_C": block.classes,
        "LOOPED": block.looped,
    }
    return Launch(pseudo_label_kernel, (-(-rows // block.rows),), args, block.warps)


def backward_launch(student: Tensor, call: Call, out: Rows, upstream: Tensor, gradient: Tensor) -> Launch:
    """The launch that fills `gradient` with d(sum upstream * loss) / d student."""
    views, rows = (1, *student.shape[:-1])[-2:]
    classes = student.shape[-1]
    soft = call.temperature != 0
    target = call.teacher if soft else None
    align = alignment(classes, student, target)
    wide = vector(student, classes, align)
    block = blocks(classes + wide - 1)
    view_stride, row_stride, column_stride = _strides(student)
    target_strides = (0, 1) if target is None else target.stride()
    args = {
        "student_ptr": student,
        "target_ptr": target,
        "class_weight_ptr": None,
        "log_align_ptr": logarithm(call.align) if soft and call.align_for == "both" else None,
        "margin_ptr": dense(call.margin),
        "adjust_ptr": dense(call.adjust),
        "label_ptr": out.label,
        "weight_ptr": out.weight,
        "upstream_ptr": upstream,
        "stats_ptr": out.stats,
        "target_stats_ptr": out.target_stats if soft else None,
        "gradient_ptr": gradient,
        "rows": rows,
        "views": views,
        "classes_over": classes // align,
        "student_view_over": view_stride // align,
        "student_row_over": row_stride // align,
        "student_column": column_stride,
        "target_row_over": target_strides[0] // align,
        "target_column": target_strides[1],
        "upstream_stride": upstream.stride(0),
        "sharpness": sharpness(call.temperature),
        "keep": 1 - call.smoothing,
        "spread": call.smoothing / (classes - 1),
        "TARGET": "logits" if soft else "hard",
        "ALIGN": align,
        "VECTOR": wide,
        "BLOCK_N": block.rows,
        "BLOCK_C": block.classes,
        "LOOPED": block.looped,
    }
    return Launch(gradient_kernel, (-(-rows // block.rows), *beside(views)), args, block.warps)


def run_forward(student: Tensor, call: Call, stats: bool, gradient: bool) -> Rows:
    out = empty_rows(student, call, stats, gradient)
    forward_launch(student, call, out).run(student.device)
    return out


def run_backward(student: Tensor, call: Call, out: Rows, upstream: Tensor) -> Tensor:
    gradient = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    backward_launch(student, call, out, upstream, gradient).run(student.device)
    return gradient
