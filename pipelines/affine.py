"""Rotation, shear and translation of batches of uint8 images: nearest neighbour, black outside, equal to Pillow's to the last bit.

A matrix row (a, b, c, d, e, f) maps an output pixel to its input: xin = a (x + .5) + b (y + .5) + c, yin = d (x + .5) + e (y + .5) + f,
and the input pixel is the floor of both. Pillow steps through that map in 16.16 fixed point, and so does this file.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotation(degrees: Tensor, height: int, width: int) -> Tensor:
    """[n] float64 degrees, positive counter-clockwise on screen -> [n, 6] float64 matrix about the image's centre."""
    angle = torch.remainder(degrees, 360.0) * (-math.pi / 180)
    cos = torch.round(torch.cos(angle), decimals=15)
    sin = torch.round(torch.sin(angle), decimals=15)
    x, y = width / 2, height / 2
    # The order of Pillow's own sums, so that fixed point rounds the same doubles.
    return torch.stack([cos, sin, (cos * -x + sin * -y) + x, -sin, cos, (-sin * -x + cos * -y) + y], 1)


def upright(v: Tensor, **entries: Tensor) -> Tensor:
    """[n, 6] float64 identity matrices, one for each entry of v [n], with some columns replaced."""
    zero, one = torch.zeros_like(v), torch.ones_like(v)
    matrix = {"a": one, "b": zero, "c": zero, "d": zero, "e": one, "f": zero} | entries
    return torch.stack([matrix[name] for name in "abcdef"], 1)


def shear_x(v: Tensor, height: int, width: int) -> Tensor:
    """Row y samples v * (y + .5) pixels further right: about the top-left corner."""
    return upright(v, b=v)


def shear_y(v: Tensor, height: int, width: int) -> Tensor:
    """Column x samples v * (x + .5) pixels further down: about the top-left corner."""
    return upright(v, d=v)


def translate_x(v: Tensor, height: int, width: int) -> Tensor:
    """Moves the content left by v pixels; a real v shifts by floor(v + .5), as nearest sampling of pixel centres does."""
    return upright(v, c=torch.floor(v + 0.5))


def translate_y(v: Tensor, height: int, width: int) -> Tensor:
    """Moves the content up by v pixels, rounded as in translate_x."""
    return upright(v, f=torch.floor(v + 0.5))


def _fixed(value: Tensor) -> Tensor:
    return torch.floor(value * 65536.0 + 0.5).to(torch.int32)


def warped(x: Tensor, matrix: Tensor) -> Tensor:
    """Samples x [n, 3, H, W] uint8 through matrix [n, 6] float64; pixels from outside are 0. Sides below 16,384 pixels."""
    n, channels, height, width = x.shape
    a, b, c, d, e, f = matrix.unbind(1)
    columns = torch.arange(width, dtype=torch.int32, device=x.device)
    rows = torch.arange(height, dtype=torch.int32, device=x.device)[:, None]

    def axis(start: Tensor, across: Tensor, down: Tensor) -> Tensor:
        first = _fixed(start + across * 0.5 + down * 0.5).view(n, 1, 1)
        return (first + _fixed(down).view(n, 1, 1) * rows + _fixed(across).view(n, 1, 1) * columns) >> 16

    xin, yin = axis(c, a, b), axis(f, d, e)
    inside = (xin >= 0) & (xin < width) & (yin >= 0) & (yin < height)
    index = torch.where(inside, yin * width + xin, 0).long().view(n, 1, height * width)
    sampled = x.reshape(n, channels, height * width).gather(2, index.expand(n, channels, height * width))
    return sampled.mul_(inside.view(n, 1, height * width)).view_as(x)


def crop_index(flip: Tensor, top: Tensor, left: Tensor, pad: int, picture: tuple[int, int], crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The pixels that crops show, of pictures some of which are mirrored left to right, and all then padded by reflection.

    Args:
        flip: [n] bool.
        top, left: [n] int64, corner of the crop in the padded picture, from 0 to side + 2 pad - crop.
        pad: pixels a side, smaller than the picture's sides. The edge pixel is not repeated.
        picture, crop: (height, width) in pixels.

    Returns:
        ([n, crop height] rows, [n, crop width] columns), int64.
    """

    def reflected(offset: Tensor, side: int, size: int) -> Tensor:
        at = torch.arange(size, device=offset.device) + (offset[:, None] - pad)
        return (side - 1) - ((side - 1) - at.abs()).abs()

    across = reflected(left, picture[1], crop[1])
    return reflected(top, picture[0], crop[0]), torch.where(flip[:, None], (picture[1] - 1) - across, across)


def gathered(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels by name: x [n, 3, H, W] uint8, rows [n, h] and columns [n, w] int64 -> [n, 3, h, w] uint8."""
    n, channels, height, width = x.shape
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None]
    taken = x.reshape(n, channels, height * width).gather(2, index.expand(n, channels, index.shape[2]))
    return taken.view(n, channels, rows.shape[1], columns.shape[1])


def slid(x: Tensor, rows: Tensor, left: int, pad: int, flip: bool, out: Tensor) -> None:
    """One crop by slices, equal to `gathered` of `crop_index`, for images too large for a cache.

    Args:
        x: [3, H, W] uint8, the picture.
        rows: [h] int64, the rows that the crop shows.
        left: corner of the crop in the padded picture.
        pad: pixels of reflection a side, smaller than W and at most w.
        flip: whether the picture is mirrored before it is padded.
        out: [3, h, w] uint8, written to.
    """
    picture, width = x.shape[2], out.shape[2]
    taken = x.index_select(1, rows)
    taken = taken.flip(2) if flip else taken
    start, stop = left - pad, left - pad + width
    first, last = max(start, 0), min(stop, picture)
    out[:, :, first - start : last - start] = taken[:, :, first:last]
    if start < 0:
        out[:, :, :-start] = taken[:, :, 1 : 1 - start].flip(2)
    if stop > picture:
        out[:, :, picture - start :] = taken[:, :, 2 * picture - 1 - stop : picture - 1].flip(2)
