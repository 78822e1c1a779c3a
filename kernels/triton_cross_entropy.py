"""`cross_entropy` by a Triton kernel: rows of logits against labels or soft targets. Signature, rules and sources: `reference.py`.

Forward: one launch, one read of the logits (and of a soft target). Gradient: a second launch reads them again and writes, from three
numbers a row kept by the first. The derivation stands in `_student_rows.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _check, reference
from ._autograd import once, savable
from ._launch import Launch, alignment, blocks, dense, vector
from ._pseudo_label_jit import gradient_kernel
from ._rows import sampled
from ._student_rows import student_rows


@triton.jit(do_not_specialize=["rows"])
def cross_entropy_kernel(
    logits_ptr,  # [N, C]
    label_ptr,  # [N] integer; or None, and then
    target_ptr,  # [N, C] probabilities
    class_weight_ptr,  # [C] or None
    margin_ptr,  # [C] or None
    adjust_ptr,  # [C] or None
    sample_weight_ptr,  # [N] or None
    loss_ptr,  # [N] float32, written
    weight_ptr,  # [N] float32, written
    stats_ptr,  # [3, N] float32, written; or None
    rows,
    classes_over,
    logits_row_over,
    logits_column,
    target_row_over,
    target_column,
    keep,
    spread,
    SPREAD: tl.constexpr,
    ALIGN: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOOPED: tl.constexpr,
):
    classes = classes_over * ALIGN
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = n < rows
    weight = sampled(tl.full([BLOCK_N], 1.0, tl.float32), sample_weight_ptr, n, valid)
    label = n.to(tl.int32)
    if label_ptr is not None:
        wide = tl.load(label_ptr + n, mask=valid, other=0).to(tl.int64)
        weight = tl.where(((wide < 0) | (wide >= classes)) & (weight != 0.0), float("nan"), weight)
        label = tl.maximum(tl.minimum(wide, classes - 1), 0).to(tl.int32)
        if class_weight_ptr is not None and not SPREAD:
            weight *= tl.load(class_weight_ptr + label, mask=valid, other=0.0).to(tl.float32)
    tl.store(weight_ptr + n, weight, mask=valid)
    student_rows(
        logits_ptr, loss_ptr, stats_ptr, None, target_ptr, class_weight_ptr if SPREAD or label_ptr is None else None, None,
        adjust_ptr, margin_ptr, label, weight, weight, n * target_row_over * ALIGN, weight, weight, n * logits_row_over * ALIGN, n, n,
        valid, tl.cast(rows, tl.int64), classes, logits_column, target_column, 1.0, keep, spread,
        "hard" if target_ptr is None else "probabilities", SPREAD, VECTOR, BLOCK_C, LOOPED,
    )  # fmt: skip


class Call(NamedTuple):
    """One call's arguments in the form that a custom operator can take."""

    label: Tensor | None  # [N] integer, or
    target: Tensor | None  # [N, C]
    margin: Tensor | None
    class_weight: Tensor | None
    adjust: Tensor | None
    sample_weight: Tensor | None
    smoothing: float


def empty_rows(logits: Tensor, stats: bool) -> tuple[Tensor, Tensor, Tensor]:
    """loss [N], weight [N], stats [3, N] or empty, all float32 and unwritten."""
    rows = logits.shape[0]
    new = logits.new_empty
    return new(rows, dtype=torch.float32), new(rows, dtype=torch.float32), new((3, rows) if stats else (0,), dtype=torch.float32)


def _per_class(call: Call) -> Tensor | None:
    """The class weight, where it multiplies the target class by class; without smoothing a label's is a weight of the row."""
    return dense(call.class_weight) if call.label is None or call.smoothing else None


def forward_launch(logits: Tensor, call: Call, loss: Tensor, weight: Tensor, stats: Tensor) -> Launch:
    """The launch that fills `loss`, `weight` and, unless empty, `stats`."""
    rows, classes = logits.shape
    align = alignment(classes, logits, call.target)
    wide = vector(logits, classes, align)
    block = blocks(classes + wide - 1)
    target_strides = (0, 1) if call.target is None else call.target.stride()
    args = {
        "logits_ptr": logits,
        "label_ptr": dense(call.label),
        "target_ptr": call.target,
        "class_weight_ptr": dense(call.class_weight),
        "margin_ptr": dense(call.margin),
        "adjust_ptr": dense(call.adjust),
        "sample_weight_ptr": dense(call.sample_weight),
        "loss_ptr": loss,
        "weight_ptr": weight,
        "stats_ptr": stats if stats.dim() == 2 else None,
        "rows": rows,
        "classes_over": classes // align,
        "logits_row_over": logits.stride(0) // align,
        "logits_column": logits.stride(1),
        "target_row_over": target_strides[0] // align,
        "target_column": target_strides[1],
        "keep": 1 - call.smoothing,
        "spread": call.smoothing / (classes - 1),
        "SPREAD": call.smoothing != 0,
        "ALIGN": align,
        "VECTOR": wide,
        "BLOCK_N": block.rows,
        "BLOCK_C": block.classes,
        "LOOPED": block.looped,
    }
    return Launch(cross_entropy_kernel, (-(-rows // block.rows),), args, block.warps)


def backward_launch(logits: Tensor, call: Call, weight: Tensor, stats: Tensor, upstream: Tensor, gradient: Tensor) -> Launch:
    """The launch that fills `gradient` with d(sum upstream * loss) / d logits."""
    rows, classes = logits.shape
    align = alignment(classes, logits, call.target)
    wide = vector(logits, classes, align)
    block = blocks(classes + wide - 1)
    target_strides = (0, 1) if call.target is None else call.target.stride()
    args = {
        "student_ptr": logits,
        "target_ptr": call.target,
        "class_weight_ptr": _per_class(call),
        "log_align_ptr": None,
        "margin_ptr": dense(call.margin),
        "adjust_ptr": dense(call.adjust),
        "label_ptr": dense(call.label),
        "weight_ptr": weight,
        "upstream_ptr": upstream,
        "stats_ptr": stats,
        "target_stats_ptr": None,
        "gradient_ptr": gradient,
        "rows": rows,
        "views": 1,
        "classes_over": classes // align,
        "student_view_over": 0,
        "student_row_over": logits.stride(0) // align,
        "student_column": logits.stride(1),
        "target_row_over": target_strides[0] // align,
        "target_column": target_strides[1],
        "upstream_stride": upstream.stride(0),
        "sharpness": 1.0,
        "keep": 1 - call.smoothing,
        "spread": call.smoothing / (classes - 1),
        "TARGET": "hard" if call.target is None else "probabilities",
        "ALIGN": align,
        "VECTOR": wide,
        "BLOCK_N": block.rows,
        "BLOCK_C": block.classes,
        "LOOPED": block.looped,
    }
    return Launch(gradient_kernel, (-(-rows // block.rows), 1), args, block.warps)


def run_forward(logits: Tensor, call: Call, stats: bool) -> tuple[Tensor, Tensor, Tensor]:
    out = empty_rows(logits, stats)
    forward_launch(logits, call, *out).run(logits.device)
    return out


def run_backward(logits: Tensor, call: Call, weight: Tensor, stats: Tensor, upstream: Tensor) -> Tensor:
    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    backward_launch(logits, call, weight, stats, upstream, gradient).run(logits.device)
    return gradient


class CrossEntropyRows(torch.autograd.Function):
    """(logits, call) -> loss."""

    @staticmethod
    def forward(ctx, logits: Tensor, call: Call) -> Tensor:
        loss, weight, stats = run_forward(logits, call, stats=True)
        ctx.save_for_backward(logits, *map(savable, call[:5]), weight, stats)
        ctx.smoothing = call.smoothing
        return loss

    @staticmethod
    def backward(ctx, upstream: Tensor):
        once("cross_entropy")
        logits, *tensors, weight, stats = ctx.saved_tensors
        return run_backward(logits, Call(*tensors, None, ctx.smoothing), weight, stats, upstream), None


@torch.library.custom_op("fastssl::cross_entropy_forward", mutates_args=())
def forward_op(
    logits: Tensor,
    label: Tensor | None,
    target: Tensor | None,
    margin: Tensor | None,
    class_weight: Tensor | None,
    adjust: Tensor | None,
    sample_weight: Tensor | None,
    smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return run_forward(logits, Call(label, target, margin, class_weight, adjust, sample_weight, smoothing), True)


@forward_op.register_fake
def _(logits, *_):
    return empty_rows(logits, True)


@torch.library.custom_op("fastssl::cross_entropy_backward", mutates_args=())
def backward_op(
    logits: Tensor,
    label: Tensor | None,
    target: Tensor | None,
    margin: Tensor | None,
    class_weight: Tensor | None,
    adjust: Tensor | None,
    weight: Tensor,
    stats: Tensor,
    upstream: Tensor,
    smoothing: float,
) -> Tensor:
    return run_backward(logits, Call(label, target, margin, class_weight, adjust, None, smoothing), weight, stats, upstream)


@backward_op.register_fake
def _(logits, *_):
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _setup_context(ctx, inputs, output) -> None:
    logits, *tensors, _, smoothing = inputs
    ctx.save_for_backward(logits, *map(savable, tensors), *output[1:])
    ctx.smoothing = smoothing


def _backward(ctx, upstream, *_):
    return (backward_op(*ctx.saved_tensors, upstream, ctx.smoothing), *(None,) * 7)


forward_op.register_autograd(_backward, setup_context=_setup_context)


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
    """`reference.cross_entropy`, once differentiable."""
    soft = reference.check_cross_entropy(logits, target, margin, smoothing, class_weight, adjust, sample_weight)
    call = Call(None if soft else target, target if soft else None, margin, class_weight, adjust, sample_weight, float(smoothing))
    wanted = logits.requires_grad and torch.is_grad_enabled()
    if _check.traced(logits):
        return forward_op(logits, *call)[0]
    return CrossEntropyRows.apply(logits, call) if wanted else run_forward(logits, call, False)[0]
