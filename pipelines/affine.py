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


def flipped_crop(x: Tensor, flip: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """Mirrors some images, pads all sides by reflection (the edge pixel is not repeated), and crops back to the size of x.

    Args:
        x: [n, 3, H, W] uint8.
        flip: [n] bool, mirror left to right before padding.
        top, left: [n] int64 in [0, 2 pad], corner of the crop in the padded image.
        pad: pixels a side, smaller than H and W.
    """
    n, channels, height, width = x.shape

    def reflected(offset: Tensor, size: int) -> Tensor:
        at = torch.arange(size, device=x.device) + (offset[:, None] - pad)
        return (size - 1) - ((size - 1) - at.abs()).abs()

    across = reflected(left, width)
    across = torch.where(flip[:, None], (width - 1) - across, across)
    index = (reflected(top, height)[:, :, None] * width + across[:, None, :]).view(n, 1, height * width)
    return x.reshape(n, channels, height * width).gather(2, index.expand(n, channels, height * width)).view_as(x)
