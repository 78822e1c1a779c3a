"""The operations of a strong view, one drawn for each image of a batch, and the cutout."""

from __future__ import annotations

import torch
from torch import Tensor

from . import affine, image_ops
from .policies import GEOMETRIC, OPS

_POINTWISE = (
    image_ops.identity,
    image_ops.autocontrast,
    image_ops.equalize,
    image_ops.brightness,
    image_ops.color,
    image_ops.contrast,
    image_ops.sharpness,
    image_ops.posterize,
    image_ops.solarize,
)
_MATRICES = (affine.rotation, affine.shear_x, affine.shear_y, affine.translate_x, affine.translate_y)
LARGE = 1 << 15  # channel values of an image from which a CPU takes images one by one: 105 x 105 pixels


def warp(x: Tensor, op: Tensor, value: Tensor) -> Tensor:
    """Geometric operations, one an image: op [n] int64 positions in OPS; images of other operations come back as they are."""
    height, width = x.shape[2:]
    matrix = affine.upright(value)
    for k, made in enumerate(_MATRICES):
        matrix = torch.where((op == GEOMETRIC + k)[:, None], made(value, height, width), matrix)
    return affine.warped(x, matrix)


def operate(x: Tensor, op: Tensor, value: Tensor) -> Tensor:
    """Applies one operation to each image.

    Args:
        x: [n, 3, H, W] uint8, not written to.
        op: [n] int64, positions in OPS.
        value: [n] float64 magnitudes.

    Returns:
        [n, 3, H, W] uint8.
    """
    if x.is_cuda:
        # No host read here: every operation runs on all images and `where` keeps the drawn one.
        out = warp(x, op, value)
        for k, run in enumerate(_POINTWISE[1:], 1):
            at = (op == k).view(-1, 1, 1, 1)
            # Magnitudes of other operations are out of an operation's range; 1 is in everybody's.
            out = torch.where(at, run(x, torch.where(op == k, value, 1.0)), out)
        return out
    # Sorted by operation every group is a slice, and gathering back by the inverse is far cheaper than scattering group by group.
    order = op.argsort(stable=True)
    counts = torch.bincount(op, minlength=len(OPS)).tolist()
    sizes = [*counts[:GEOMETRIC], sum(counts[GEOMETRIC:])]
    images, ops, values = x.index_select(0, order).split(sizes), op[order].split(sizes), value[order].split(sizes)
    done = [run(x, v) if len(x) else x for run, x, v in zip(_POINTWISE, images[:-1], values[:-1], strict=True)]
    done.append(warp(images[-1], ops[-1], values[-1]) if len(images[-1]) else images[-1])
    return torch.cat(done).index_select(0, order.argsort())


def operate_(x: Tensor, op: Tensor, value: Tensor) -> Tensor:
    """`operate` written into x [n, 3, H, W] uint8, which is contiguous.

    On a CPU large images go one by one, so that all steps of an operation find the image in the cache.
    """
    if x.is_cuda or x[0].numel() < LARGE:
        return x.copy_(operate(x, op, value))
    matrices = len(_POINTWISE)
    for i, k in enumerate(op.tolist()):
        if k:
            image, v = x[i : i + 1], value[i : i + 1]
            made = _POINTWISE[k](image, v) if k < matrices else affine.warped(image, _MATRICES[k - GEOMETRIC](v, *x.shape[2:]))
            image.copy_(made)
    return x


def cut_out(x: Tensor, box: Tensor, fill: tuple[int, int, int]) -> Tensor:
    """Fills a rectangle of each image, in place: box [n, 4] as in Drawn, fill one grey level a channel."""
    if not x.is_cuda and x[0].numel() >= LARGE:
        levels = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1)
        for image, (left, right, top, bottom) in zip(x, box.tolist(), strict=True):
            image[:, top : bottom + 1, left : right + 1] = levels
        return x
    columns, rows = torch.arange(x.shape[3], device=x.device), torch.arange(x.shape[2], device=x.device)
    across = (columns >= box[:, 0, None]) & (columns <= box[:, 1, None])
    down = (rows >= box[:, 2, None]) & (rows <= box[:, 3, None])
    hole = (down[:, :, None] & across[:, None, :]).to(torch.uint8)
    x.mul_((1 - hole).unsqueeze(1))
    for channel, level in enumerate(fill):
        if level:
            x[:, channel].add_(hole, alpha=level)
    return x
