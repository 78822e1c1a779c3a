"""The kernels of `consistency.py`: distance between two predictions row by row, and its gradients by both.

Legend, formulas and the order of the row statistics: `_consistency_rows.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._consistency_rows import log_ratio, looped_rows, probabilities_in, whole_rows
from ._rows import exp, load_tile, sampled, store_tile


@triton.jit(do_not_specialize=["rows"])
def consistency_kernel(
    student_ptr,  # [N, C]
    teacher_ptr,  # [N, C]
    sample_weight_ptr,  # [N] or None
    loss_ptr,  # [N] float32, written
    stats_ptr,  # [K, N] float32, written, in the order of the module's legend; or None
    rows,
    classes_over,
    student_row_over,
    student_column,
    teacher_row_over,
    teacher_column,
    sharpness,
    KIND: tl.constexpr,
    TEACHER: tl.constexpr,
    BOTH: tl.constexpr,
    ALIGN: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOOPED: tl.constexpr,
):
    """Rows of weight 0 are not read: their loss is 0 whatever they hold."""
    classes = classes_over * ALIGN
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = n < rows
    weight = sampled(tl.full([BLOCK_N], 1.0, tl.float32), sample_weight_ptr, n, valid)
    live = valid & (weight != 0.0)
    student_start = n * student_row_over * ALIGN
    # Granules are for two contiguous tensors: one place in both, and the compiler may know it.
    teacher_start = student_start if VECTOR > 1 else n * teacher_row_over * ALIGN
    if LOOPED:
        row, top, total, target_top, target_total, balance, teacher_balance = looped_rows(
            student_ptr, teacher_ptr, student_start, teacher_start, live, classes, student_column, teacher_column, sharpness,
            KIND, TEACHER, VECTOR, BLOCK_C,
        )  # fmt: skip
    else:
        row, top, total, target_top, target_total, balance, teacher_balance = whole_rows(
            student_ptr, teacher_ptr, student_start, teacher_start, live, classes, student_column, teacher_column, sharpness,
            KIND, TEACHER, VECTOR, BLOCK_C,
        )  # fmt: skip
    tl.store(loss_ptr + n, tl.where(live, weight * row, 0.0), mask=valid)
    if stats_ptr is not None:
        SOFT: tl.constexpr = TEACHER != "probabilities"
        count = tl.cast(rows, tl.int64)
        at = stats_ptr + n
        tl.store(at, top, mask=valid)
        at += count
        tl.store(at, total, mask=valid)
        if SOFT:
            at += count
            tl.store(at, target_top, mask=valid)
            at += count
            tl.store(at, target_total, mask=valid)
        if KIND == "mse" or not SOFT:
            at += count
            tl.store(at, balance, mask=valid)
        if BOTH and SOFT:
            at += count
            tl.store(at, teacher_balance, mask=valid)


@triton.jit(do_not_specialize=["rows"])
def consistency_gradient_kernel(
    student_ptr,  # [N, C]
    teacher_ptr,  # [N, C]
    sample_weight_ptr,  # [N] or None
    upstream_ptr,  # [N]: gradient by the rows of the loss
    stats_ptr,  # [K, N] float32
    student_gradient_ptr,  # [N, C] contiguous, written; or None
    teacher_gradient_ptr,  # [N, C] contiguous, written; or None
    rows,
    classes_over,
    student_row_over,
    student_column,
    teacher_row_over,
    teacher_column,
    upstream_stride,
    sharpness,
    at_zero,  # x ** (sharpness - 1) at x = 0: 0 or infinity, for "powers"
    KIND: tl.constexpr,
    TEACHER: tl.constexpr,
    ALIGN: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOOPED: tl.constexpr,
):
    """d(sum upstream * loss) by student, teacher or both: one read of either, one write of each gradient."""
    SOFT: tl.constexpr = TEACHER != "probabilities"
    classes = classes_over * ALIGN
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = n < rows
    weight = sampled(tl.full([BLOCK_N], 1.0, tl.float32), sample_weight_ptr, n, valid)
    live = valid & (weight != 0.0)
    factor = weight * tl.load(upstream_ptr + n * upstream_stride, mask=valid, other=0.0).to(tl.float32) * sharpness
    if KIND == "mse":
        factor = factor * 2.0 / classes

    count = tl.cast(rows, tl.int64)
    at = stats_ptr + n
    top = tl.load(at, mask=live, other=0.0)
    at += count
    total = tl.load(at, mask=live, other=1.0)
    target_top = top
    target_total = total
    if SOFT:
        at += count
        target_top = tl.load(at, mask=live, other=0.0)
        at += count
        target_total = tl.load(at, mask=live, other=1.0)
    balance = tl.full([BLOCK_N], 1.0, tl.float32)
    if KIND == "mse" or not SOFT:
        at += count
        balance = tl.load(at, mask=live, other=0.0)
    teacher_balance = balance
    if teacher_gradient_ptr is not None and SOFT:
        at += count
        teacher_balance = tl.load(at, mask=live, other=0.0)

    student_start = n * student_row_over * ALIGN
    teacher_start = student_start if VECTOR > 1 else n * teacher_row_over * ALIGN
    end = classes + (VECTOR - 1) if LOOPED else 1
    for first in range(0, end, BLOCK_C):
        slot = first + tl.arange(0, BLOCK_C)[None, :]
        s, _, inside = load_tile(student_ptr, student_start, live, slot, classes, student_column, True, VECTOR)
        t, _, _ = load_tile(teacher_ptr, teacher_start, live, slot, classes, teacher_column, True, VECTOR)
        z = (s - top[:, None]) * sharpness
        p = exp(z) * (1.0 / total)[:, None]
        q = probabilities_in(t, inside, TEACHER)
        y = q
        if SOFT:
            y = (q - target_top[:, None]) * sharpness
            q = exp(y) * (1.0 / target_total)[:, None]
        if student_gradient_ptr is not None:
            if KIND == "mse":
                slope = p * (p - q - balance[:, None])
            else:
                slope = p * balance[:, None] - q
            slope = tl.where(live[:, None], slope * factor[:, None], 0.0)
            store_tile(student_gradient_ptr, n * classes_over * ALIGN, valid, slot, classes, slope, True, VECTOR)
        if teacher_gradient_ptr is not None:
            if KIND == "mse":
                slope = q - p
            else:
                slope = -log_ratio(z, tl.log(total), y, tl.log(target_total), q, KIND, TEACHER)
                if KIND == "kl" and TEACHER != "logits":
                    slope += tl.where(q == 0.0, 0.0, 1.0)
            if SOFT:
                mean = teacher_balance
                if KIND == "mse":
                    mean = -mean
                elif KIND == "kl" and TEACHER == "powers":
                    mean = mean + 1.0
                if TEACHER == "powers":
                    q = tl.where(t == 0.0, at_zero, q / t)
                slope = q * (slope - mean[:, None])
            slope = tl.where(live[:, None], slope * factor[:, None], 0.0)
            store_tile(teacher_gradient_ptr, n * classes_over * ALIGN, valid, slot, classes, slope, True, VECTOR)
