"""The draw of a batch's rows, labels and view keys: one launch before the augmentation's. `augment.py` hands it out.

Triton is imported by the first launch.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ._launch import Launch

POSITIONS = 64  # of a program


class Order(NamedTuple):
    """What `order` reads: tensors on the device, made once, for B labelled and U unlabelled rows a draw."""

    step: Tensor  # [] int64: draws so far
    size: Tensor  # [2] int64, at least 1: rows of the labelled and of the unlabelled part
    key: Tensor  # [2] int64: keys of the two orders
    base: Tensor  # [views] int64: keys of the views, labelled ones first
    place: Tensor  # [views] int64: the view's first image in `rows` and `keys`
    labelled: Tensor  # [N] int64 rows
    unlabelled: Tensor  # [N] int64 rows
    label: Tensor  # [N] int64 by place in `labelled`
    weight: Tensor  # [N] float32 by place in `labelled`
    known: Tensor  # [N] int64 by row
    labelled_views: int


class Drawn(NamedTuple):
    """What `order` writes."""

    index: Tensor  # [B] int64 rows
    label: Tensor  # [B] int64
    weight: Tensor  # [B] float32
    unlabelled_index: Tensor  # [U] int64 rows
    hidden_label: Tensor  # [U] int64
    rows: Tensor  # [images] int64: the row of every image of every view
    keys: Tensor  # [images] int64


def order(given: Order, out: Drawn) -> None:
    """Fills `out` for the draw numbered `step`, which it leaves as it is: the augmentation that follows adds the one."""
    launch = order_launch(given, out)
    launch.run(given.step.device)


def order_launch(given: Order, out: Drawn) -> Launch:
    from ._augment_order_jit import order_kernel

    labelled, unlabelled, views = len(out.index), len(out.unlabelled_index), len(given.base)
    args = {
        "step_ptr": given.step,
        "size_ptr": given.size,
        "order_ptr": given.key,
        "base_ptr": given.base,
        "place_ptr": given.place,
        "labelled_ptr": given.labelled,
        "unlabelled_ptr": given.unlabelled,
        "label_ptr": given.label,
        "weight_ptr": given.weight,
        "known_ptr": given.known,
        "index_ptr": out.index,
        "out_label_ptr": out.label,
        "out_weight_ptr": out.weight,
        "unlabelled_index_ptr": out.unlabelled_index,
        "hidden_ptr": out.hidden_label,
        "rows_ptr": out.rows,
        "keys_ptr": out.keys,
        "labelled": labelled,
        "unlabelled": unlabelled,
        "labelled_views": given.labelled_views,
        "unlabelled_views": views - given.labelled_views,
        "BLOCK_N": POSITIONS,
        "BLOCK_C": max(1, 1 << (views - 1).bit_length()),
    }
    return Launch(order_kernel, (-(-labelled // POSITIONS) + -(-unlabelled // POSITIONS),), args, 2)
