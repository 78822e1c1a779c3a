"""The launch before the augmentation: which rows a batch shows, with their labels, and the key of each view of each row.

The same numbers as `pipelines/order.py` and `pipelines/keyed.py`, each position by itself: no launch waits for another position's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._augment_random_jit import ROUNDS, below, joined, mixed, word


@triton.jit
def shuffled(position, n, key):
    """`order.shuffled`: int64 positions in [0, n) under uint64 keys."""
    for r in range(1, ROUNDS + 1):
        partner = below(word(key, r), n) - position
        partner = tl.where(partner < 0, partner + n, partner)
        coin = mixed(word(key + 1, r) + tl.maximum(position, partner).to(tl.uint64)) & 1
        position = tl.where(coin == 1, partner, position)
    return position


@triton.jit
def stream(
    program, count, views, step_ptr, size_ptr, order_ptr, base_ptr, place_ptr, member_ptr, index_ptr, rows_ptr, keys_ptr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One block of positions of one stream: writes rows and keys, returns (lane, which lanes are positions, place in the role, row)."""
    lane = program * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = lane < count
    n = tl.load(size_ptr)
    position = tl.load(step_ptr) * count + lane
    epoch = position // n
    at = shuffled(position - epoch * n, n, joined(tl.load(order_ptr).to(tl.uint64), epoch))
    # Lanes beyond the batch are positions of the next one, so this is a place of the role for them too.
    row = tl.load(member_ptr + at)
    tl.store(index_ptr + lane, row, mask=inside)
    view = tl.arange(0, BLOCK_C)[None, :]
    is_view = view < views
    base = tl.load(base_ptr + view, mask=is_view, other=0).to(tl.uint64)
    key = joined(joined(base, row[:, None]), epoch[:, None])
    out = tl.load(place_ptr + view, mask=is_view, other=0) + lane[:, None]
    both = inside[:, None] & is_view
    tl.store(keys_ptr + out, key.to(tl.int64), mask=both)
    tl.store(rows_ptr + out, tl.broadcast_to(row[:, None], [BLOCK_N, BLOCK_C]), mask=both)
    return lane, inside, at, row


@triton.jit(do_not_specialize=["labelled", "unlabelled", "labelled_views", "unlabelled_views"])
def order_kernel(
    step_ptr,  # [] int64
    size_ptr,  # [2] int64: rows of the labelled part, of the unlabelled one; at least 1
    order_ptr,  # [2] int64: keys of the two orders
    base_ptr,  # [views] int64: keys of the views, labelled ones first
    place_ptr,  # [views] int64: where a view's first image lies in `rows` and `keys`
    labelled_ptr,  # [N] int64: rows of the labelled part
    unlabelled_ptr,  # [N] int64
    label_ptr,  # [N] int64, by place in the labelled part
    weight_ptr,  # [N] float32, by place in the labelled part
    known_ptr,  # [N] int64, by row
    index_ptr,  # [B] int64, written; and all below
    out_label_ptr,  # [B] int64
    out_weight_ptr,  # [B] float32
    unlabelled_index_ptr,  # [U] int64
    hidden_ptr,  # [U] int64
    rows_ptr,  # [images] int64
    keys_ptr,  # [images] int64
    labelled,  # B
    unlabelled,  # U
    labelled_views,
    unlabelled_views,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,  # at least as many as either part has views
):
    """The first programs draw the labelled rows, the rest the unlabelled ones."""
    program = tl.program_id(0)
    first = tl.cdiv(labelled, BLOCK_N)
    if program < first:
        lane, inside, at, row = stream(
            program, labelled, labelled_views, step_ptr, size_ptr, order_ptr, base_ptr, place_ptr,
            labelled_ptr, index_ptr, rows_ptr, keys_ptr, BLOCK_N, BLOCK_C,
        )  # fmt: skip
        tl.store(out_label_ptr + lane, tl.load(label_ptr + at), mask=inside)
        tl.store(out_weight_ptr + lane, tl.load(weight_ptr + at), mask=inside)
    else:
        lane, inside, at, row = stream(
            program - first, unlabelled, unlabelled_views, step_ptr, size_ptr + 1, order_ptr + 1, base_ptr + labelled_views,
            place_ptr + labelled_views, unlabelled_ptr, unlabelled_index_ptr, rows_ptr, keys_ptr, BLOCK_N, BLOCK_C,
        )  # fmt: skip
        tl.store(hidden_ptr + lane, tl.load(known_ptr + row), mask=inside)
