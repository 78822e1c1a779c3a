"""`class_statistics` by Triton kernels. Signature, rules and sources: `_predictions.py`, which `reference.py` hands out.

The logits are read once, and a second launch adds up what the programs of the first one found. Rows that no register file holds are read
twice, in three launches: their softmax must be known before any column of it can be summed.

The file bears another name than the function, which as an attribute of the package it would hide.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _check
from ._class_statistics_jit import columns_kernel, rows_kernel, totals_kernel
from ._launch import Launch, alignment, blocks, vector
from ._predictions import ClassStatistics, check_class_statistics

# Elements of a tile, a thread's share of them, and the most programs that share the rows, by whether a tile is summed over rows as it is
# read (`columns_kernel`): few enough programs that what they write is little beside the logits, enough to fill a GPU.
# Chosen by counting registers and bytes, not yet measured.
TILE = {False: 1024, True: 4096}
SHARE = {False: 8, True: 16}
GROUPS = {False: 768, True: 384}
FOLD_FROM = 257  # classes
COLUMNS = 1024  # a block of columns of rows that are not held whole
MOST_GROUPS = 1024  # a power of two, not below any of GROUPS


class Plan(NamedTuple):
    """How a matrix of logits is shared out."""

    fold: bool
    looped: bool
    align: int
    wide: int
    rows: int  # BLOCK_N
    classes: int  # BLOCK_C
    groups: int
    column_blocks: int
    steps: int
    warps: int


class Parts(NamedTuple):
    """What the launches write: the result, then what they tell each other."""

    mean_probability: Tensor  # [C] float32
    histogram: Tensor  # [C] int64
    confidence_mean: Tensor  # [] float32
    confidence_var: Tensor  # [] float32
    sums: Tensor  # [G, C] float32
    counts: Tensor  # [G, C] int32
    moments: Tensor  # [3, G] float32
    stats: Tensor | None  # [2, N] float32
    counted: Tensor | None  # [N] int32


def plan(teacher: Tensor) -> Plan:
    rows, classes = teacher.shape
    align = alignment(classes, teacher)
    wide = vector(teacher, classes, align)
    looped = blocks(classes + wide - 1).looped
    fold = looped or classes >= FOLD_FROM
    block_c = COLUMNS if looped else max(16, 1 << (classes + wide - 2).bit_length())
    block_n = max(1, TILE[fold] // block_c)
    column_blocks = -(-(classes + wide - 1) // block_c) if looped else 1
    # Every program has the same number of steps, but for the last rows, and a multiple of 8 programs lets the rows of each start alike.
    most = max(8, GROUPS[fold] // column_blocks)
    steps = -(-rows // (most * block_n))
    groups = -(-rows // (steps * block_n * 8)) * 8
    warps = max(1, block_n * block_c // SHARE[fold] // 32)
    return Plan(fold, looped, align, wide, block_n, block_c, groups, column_blocks, steps, warps)


def empty_statistics(teacher: Tensor) -> ClassStatistics:
    """Memory for the result, unwritten."""
    new, classes = teacher.new_empty, teacher.shape[1]
    numbers = (new((), dtype=torch.float32) for _ in range(2))
    return ClassStatistics(new(classes, dtype=torch.float32), new(classes, dtype=torch.int64), *numbers)


def empty_parts(teacher: Tensor, how: Plan) -> Parts:
    new, (rows, classes) = teacher.new_empty, teacher.shape
    return Parts(
        *empty_statistics(teacher),
        new((how.groups, classes), dtype=torch.float32),
        new((how.groups, classes), dtype=torch.int32),
        new((3, how.groups), dtype=torch.float32),
        new((2, rows), dtype=torch.float32) if how.looped else None,
        new(rows, dtype=torch.int32) if how.looped else None,
    )


def launches(teacher: Tensor, threshold_tensor: Tensor | None, threshold: float, how: Plan, out: Parts) -> list[Launch]:
    """The two launches, or for long rows three, that fill `out` one after the other."""
    rows, classes = teacher.shape
    if threshold_tensor is not None and threshold_tensor.device != teacher.device:
        # A [] tensor of the host: no kernel can read it there, and reading it here makes nobody wait.
        threshold_tensor, threshold = None, float(threshold_tensor)
    shared = {
        "teacher_ptr": teacher,
        "threshold_ptr": None if threshold_tensor is None else threshold_tensor.contiguous(),
        "stats_ptr": out.stats,
        "counted_ptr": out.counted,
        "rows": rows,
        "classes_over": classes // how.align,
        "row_over": teacher.stride(0) // how.align,
        "column": teacher.stride(1),
        "threshold": threshold,
        "THRESHOLD": "number" if threshold_tensor is None else ("scalar", "class", "row")[threshold_tensor.dim()],
        "ALIGN": how.align,
        "VECTOR": how.wide,
    }
    found = []
    if how.looped:
        block = blocks(classes + how.wide - 1)
        args = shared | {"BLOCK_N": block.rows, "BLOCK_C": block.classes}
        found.append(Launch(rows_kernel, (-(-rows // block.rows),), args, block.warps))
    args = shared | {
        "sums_ptr": out.sums,
        "counts_ptr": out.counts,
        "moments_ptr": out.moments,
        "steps": how.steps,
        "FOLD": how.fold,
        "BLOCK_N": how.rows,
        "BLOCK_C": how.classes,
    }
    found.append(Launch(columns_kernel, (how.groups, how.column_blocks), args, how.warps))
    args = {
        "sums_ptr": out.sums,
        "counts_ptr": out.counts,
        "moments_ptr": out.moments,
        "mean_probability_ptr": out.mean_probability,
        "histogram_ptr": out.histogram,
        "confidence_mean_ptr": out.confidence_mean,
        "confidence_var_ptr": out.confidence_var,
        "rows": rows,
        "groups": how.groups,
        "classes": classes,
        "MOST_GROUPS": MOST_GROUPS,
        "BLOCK_G": 128,
        "BLOCK_C": 16,
    }
    return [*found, Launch(totals_kernel, (-(-classes // 16),), args, 4)]


def run(teacher: Tensor, threshold_tensor: Tensor | None, threshold: float) -> ClassStatistics:
    how = plan(teacher)
    out = empty_parts(teacher, how)
    for launch in launches(teacher, threshold_tensor, threshold, how, out):
        launch.run(teacher.device)
    return ClassStatistics(*out[:4])


@torch.library.custom_op("fastssl::class_statistics", mutates_args=())
def statistics_op(teacher: Tensor, threshold_tensor: Tensor | None, threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, the threshold as a tensor or else as a number -> the fields of `ClassStatistics`."""
    return tuple(run(teacher, threshold_tensor, threshold))


@statistics_op.register_fake
def _(teacher, threshold_tensor, threshold):
    return tuple(empty_statistics(teacher))


def class_statistics(teacher: Tensor, *, threshold: float | Tensor | None = None) -> ClassStatistics:
    """`reference.class_statistics`."""
    check_class_statistics(teacher, threshold)
    teacher = teacher.detach()
    tensor = threshold if isinstance(threshold, Tensor) else None
    # None counts every row that has a confidence: all of them are above -1.
    number = -1.0 if threshold is None or tensor is not None else float(threshold)
    if _check.traced(teacher):
        return ClassStatistics(*statistics_op(teacher, tensor, number))
    return run(teacher, tensor, number)
