"""`consistency_loss` by Triton kernels. Signature, rules and sources: `_predictions.py`, which `reference.py` hands out.

Forward: one launch reads student and teacher once (for mse of rows that no register file holds, twice) and keeps two to six numbers a row.
Gradient: a second launch reads both again and writes the student's gradient, the teacher's, or both. Derivations: `_consistency_rows.py`.

Where something traces, autograd and the launches are custom operators. Elsewhere an autograd.Function runs the same launches without the
operators' dispatch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _check
from ._autograd import once, savable
from ._consistency_jit import consistency_gradient_kernel, consistency_kernel
from ._launch import Blocks, Launch, alignment, blocks, dense, sharpness, vector
from ._predictions import check_consistency


class Call(NamedTuple):
    """One call's options in the form that a custom operator can take."""

    sample_weight: Tensor | None
    temperature: float
    kind: str  # "mse", "kl", "ce"
    teacher: str  # "logits", "probabilities" as they stand, "powers": probabilities at another temperature than 1
    both: bool  # the teacher's gradient is wanted


def empty_rows(student: Tensor, call: Call, stats: bool) -> tuple[Tensor, Tensor]:
    """Memory for loss [N] and, where `stats`, the row statistics [K, N] that the gradient takes; float32, unwritten."""
    rows = student.shape[0]
    soft = call.teacher != "probabilities"
    kept = 2 + 2 * soft + (call.kind == "mse" or not soft) + (call.both and soft)
    return student.new_empty(rows, dtype=torch.float32), student.new_empty((kept, rows) if stats else (0,), dtype=torch.float32)


def _tiles(student: Tensor, teacher: Tensor) -> tuple[int, int, Blocks]:
    """ALIGN, VECTOR and the tile of both sides: granules of two tensors are the same slots only where both have them of one size."""
    classes = student.shape[1]
    align = alignment(classes, student, teacher)
    wide = vector(student, classes, align)
    if wide != vector(teacher, classes, align):
        wide = 1
    block = blocks(classes + wide - 1)
    if block.looped:
        # Two tensors and six running numbers a lane: of 16 warps with the usual tile one program alone would fill a multiprocessor.
        block = block._replace(classes=min(block.classes, 1024), warps=min(block.warps, 4))
    return align, wide, block


def _shared_args(student: Tensor, teacher: Tensor, call: Call, align: int, wide: int, block: Blocks) -> dict:
    """Arguments that both kernels take under the same names."""
    rows, classes = student.shape
    return {
        "student_ptr": student,
        "teacher_ptr": teacher,
        "sample_weight_ptr": dense(call.sample_weight),
        "rows": rows,
        "classes_over": classes // align,
        "student_row_over": student.stride(0) // align,
        "student_column": student.stride(1),
        "teacher_row_over": teacher.stride(0) // align,
        "teacher_column": teacher.stride(1),
        "sharpness": sharpness(call.temperature),
        "KIND": call.kind,
        "TEACHER": call.teacher,
        "ALIGN": align,
        "VECTOR": wide,
        "BLOCK_N": block.rows,
        "BLOCK_C": block.classes,
        "LOOPED": block.looped,
    }


def forward_launch(student: Tensor, teacher: Tensor, call: Call, loss: Tensor, stats: Tensor) -> Launch:
    """The launch that fills `loss` and, unless empty, `stats`."""
    align, wide, block = _tiles(student, teacher)
    args = _shared_args(student, teacher, call, align, wide, block) | {
        "loss_ptr": loss,
        "stats_ptr": stats if stats.dim() == 2 else None,
        "BOTH": call.both,
    }
    return Launch(consistency_kernel, (-(-student.shape[0] // block.rows),), args, block.warps)


def backward_launch(
    student: Tensor, teacher: Tensor, call: Call, stats: Tensor, upstream: Tensor, gradient: Tensor, teacher_gradient: Tensor
) -> Launch:
    """The launch that fills those of the two gradients that are not empty with d(sum upstream * loss)."""
    align, wide, block = _tiles(student, teacher)
    args = _shared_args(student, teacher, call, align, wide, block) | {
        "upstream_ptr": upstream,
        "stats_ptr": stats,
        "student_gradient_ptr": gradient if gradient.dim() == 2 else None,
        "teacher_gradient_ptr": teacher_gradient if teacher_gradient.dim() == 2 else None,
        "upstream_stride": upstream.stride(0),
        "at_zero": float("inf") if call.temperature > 1 else 0.0,
    }
    return Launch(consistency_gradient_kernel, (-(-student.shape[0] // block.rows),), args, block.warps)


def run_forward(student: Tensor, teacher: Tensor, call: Call, stats: bool) -> tuple[Tensor, Tensor]:
    out = empty_rows(student, call, stats)
    forward_launch(student, teacher, call, *out).run(student.device)
    return out


def empty_gradients(student: Tensor, teacher: Tensor, call: Call, of_student: bool) -> tuple[Tensor, Tensor]:
    """Contiguous memory for the gradients that are wanted, an empty tensor [0] for one that is not."""
    wanted = ((student, of_student), (teacher, call.both))
    return tuple(torch.empty(t.shape if want else (0,), dtype=t.dtype, device=t.device) for t, want in wanted)


def run_backward(student: Tensor, teacher: Tensor, call: Call, stats: Tensor, upstream: Tensor, of_student: bool) -> tuple[Tensor, Tensor]:
    out = empty_gradients(student, teacher, call, of_student)
    backward_launch(student, teacher, call, stats, upstream, *out).run(student.device)
    return out


class ConsistencyRows(torch.autograd.Function):
    """(student, teacher, call) -> loss."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, call: Call) -> Tensor:
        loss, stats = run_forward(student, teacher, call, stats=True)
        ctx.call = call._replace(sample_weight=None)
        ctx.save_for_backward(savable(student), savable(teacher), savable(call.sample_weight), stats)
        return loss

    @staticmethod
    def backward(ctx, upstream: Tensor):
        once("consistency_loss")
        student, teacher, sample_weight, stats = ctx.saved_tensors
        call = ctx.call._replace(sample_weight=sample_weight)
        return *_wanted(ctx, run_backward(student, teacher, call, stats, upstream, ctx.needs_input_grad[0])), None


def _wanted(ctx, gradients: tuple[Tensor, Tensor]) -> list[Tensor | None]:
    return [gradient if needed else None for gradient, needed in zip(gradients, ctx.needs_input_grad[:2], strict=True)]


@torch.library.custom_op("fastssl::consistency_forward", mutates_args=())
def forward_op(
    student: Tensor,
    teacher: Tensor,
    sample_weight: Tensor | None,
    temperature: float,
    kind: str,
    teacher_is: str,
    both: bool,
    stats: bool,
) -> tuple[Tensor, Tensor]:
    """Both sides, the fields of `Call`, whether statistics are wanted -> loss, stats."""
    return run_forward(student, teacher, Call(sample_weight, temperature, kind, teacher_is, both), stats)


@forward_op.register_fake
def _(student, teacher, *arguments):
    return empty_rows(student, Call(*arguments[:-1]), arguments[-1])


@torch.library.custom_op("fastssl::consistency_backward", mutates_args=())
def backward_op(
    student: Tensor,
    teacher: Tensor,
    stats: Tensor,
    upstream: Tensor,
    sample_weight: Tensor | None,
    temperature: float,
    kind: str,
    teacher_is: str,
    both: bool,
    of_student: bool,
) -> tuple[Tensor, Tensor]:
    return run_backward(student, teacher, Call(sample_weight, temperature, kind, teacher_is, both), stats, upstream, of_student)


@backward_op.register_fake
def _(student, teacher, stats, upstream, *arguments):
    return empty_gradients(student, teacher, Call(*arguments[:-1]), arguments[-1])


def _setup_context(ctx, inputs, output) -> None:
    student, teacher, sample_weight, *ctx.options, _ = inputs
    ctx.save_for_backward(savable(student), savable(teacher), output[1], savable(sample_weight))


def _backward(ctx, upstream, _):
    student, teacher, stats, sample_weight = ctx.saved_tensors
    found = backward_op(student, teacher, stats, upstream, sample_weight, *ctx.options, ctx.needs_input_grad[0])
    return (*_wanted(ctx, found), *(None,) * 6)


forward_op.register_autograd(_backward, setup_context=_setup_context)


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
    """`reference.consistency_loss`, once differentiable."""
    check_consistency(student, teacher, kind, temperature, sample_weight, teacher_is)
    if not teacher_grad:
        teacher = teacher.detach()
    both = teacher.requires_grad and torch.is_grad_enabled()
    wanted = both or (student.requires_grad and torch.is_grad_enabled())
    powers = teacher_is == "probabilities" and temperature != 1
    call = Call(sample_weight, float(temperature), kind, "powers" if powers else teacher_is, both)
    if _check.traced(student):
        return forward_op(student, teacher, *call, wanted)[0]
    return ConsistencyRows.apply(student, teacher, call) if wanted else run_forward(student, teacher, call, False)[0]
