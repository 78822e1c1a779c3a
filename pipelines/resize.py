"""Resizing of batches of square uint8 images: bilinear or bicubic with antialiasing, equal to Pillow's to the last bit on any device.

Pillow makes one row of weights an output pixel, rounds them to 22 binary places, and runs a horizontal and then a vertical pass
with whole numbers, rounding to 8 bits after each. All sums stay far below 2**53, so products of float64 matrices give the same.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .errors import ConfigError, unknown

_LARGE = 105  # side in pixels from which a CPU takes images one by one
_PLACES = 22  # binary places of Pillow's weights: 32 bits less 8 of the pixel and 2 to spare


def _bilinear(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _bicubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


FILTERS = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0)}  # name -> filter, reach in input pixels


def check_interpolation(name: str) -> str:
    """The name itself. Raises ConfigError naming the nearest ones."""
    if name not in FILTERS:
        raise ConfigError(unknown("interpolation", name, FILTERS))
    return name


def weights(source: int, target: int, interpolation: str) -> np.ndarray:
    """[target, source] float64 whole numbers: the weight of each input pixel in each output pixel, times 2**22."""
    function, reach = FILTERS[check_interpolation(interpolation)]
    scale = source / target
    stretch = max(scale, 1.0)
    reach *= stretch
    table = np.zeros((target, source))
    for out in range(target):
        centre = (out + 0.5) * scale
        first, last = max(0, int(centre - reach + 0.5)), min(source, int(centre + reach + 0.5))
        # The order of Pillow's own operations, so that rounding meets the same doubles.
        row = [function((x - centre + 0.5) * (1.0 / stretch)) for x in range(first, last)]
        total = 0.0
        for weight in row:
            total += weight
        fixed = [weight / total * (1 << _PLACES) for weight in row]
        table[out, first:last] = [math.trunc(value + math.copysign(0.5, value)) for value in fixed]
    return table


def _taps(table: Tensor) -> tuple[Tensor, Tensor] | None:
    """[target, source] weights -> ([target, k] int64 input pixels, [target, k] int32 weights), or None where k would exceed 4.

    Enlarging takes two neighbours an axis, or four (bicubic): sums of so few are cheaper than a matrix product full of zeros.
    """
    used = (table != 0).to(torch.uint8)
    first = used.argmax(1)
    count = int((table.shape[1] - used.flip(1).argmax(1) - first).max())
    if count > 4:
        return None
    at = first.clamp(max=table.shape[1] - count)[:, None] + torch.arange(count)
    return at, table.gather(1, at).to(torch.int32)


def _rounded(sums: Tensor) -> Tensor:
    """Sums of pixels times weights -> pixels as float64 whole numbers in 0..255, in place."""
    return sums.add_(1 << (_PLACES - 1)).mul_(2.0**-_PLACES).floor_().clamp_(0, 255)


class Resizer:
    """Brings images of one side to another side, whole or cut out of a mirrored and padded picture.

    Args:
        source: side of the images that come in, in pixels.
        target: side to which they are brought.
        interpolation: "bilinear" or "bicubic".
    """

    def __init__(self, source: int, target: int, interpolation: str = "bicubic", device: torch.device | str = "cpu"):
        self.source, self.target = source, target
        self.table = torch.from_numpy(weights(source, target, interpolation)).to(device)
        # A few images at a time stay in a CPU's cache; float64 intermediates of 224 pixels take about 4 MB an image.
        self.block = 256 if torch.device(device).type == "cuda" else 4
        one_by_one = torch.device(device).type == "cpu" and target >= _LARGE
        self.taps = _taps(self.table) if one_by_one else None

    def whole(self, x: Tensor) -> Tensor:
        """[n, 3, source, source] uint8 -> [n, 3, target, target] uint8; x itself where there is nothing to do."""
        if self.source == self.target:
            return x
        if self.taps is not None:
            every = torch.arange(self.target).expand(len(x), -1)
            return self._summed(x, every, every)
        return weighted(x, self.table[None], self.table[None], self.block)

    def cut(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Output pixels by name: rows and columns [n, s] int64 in [0, target) -> [n, 3, s, s] uint8.

        Equal to `whole` followed by that gather, but pixels that nobody asks for are never made.
        """
        if self.taps is not None:
            return self._summed(x, rows, columns)
        return weighted(x, self.table[rows], self.table[columns], self.block)

    def _summed(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """`cut` in int32, image by image: a pixel times 2**22, bicubic's overshoot included, stays below 2**31."""
        at, weight = self.taps
        out = torch.empty((*x.shape[:2], rows.shape[1], columns.shape[1]), dtype=torch.uint8)
        half = 1 << (_PLACES - 1)
        down, across = (at[rows].unbind(2), weight[rows].unsqueeze(3).unbind(2)), (at[columns].unbind(2), weight[columns].unbind(2))

        def summed(pixels: Tensor, axis: int, taps: tuple, i: int) -> Tensor:
            (first, *others), (heavy, *weights) = taps
            total = pixels.index_select(axis, first[i]).mul_(heavy[i]).add_(half)
            for where, much in zip(others, weights, strict=True):
                total.add_(pixels.index_select(axis, where[i]).mul_(much[i]))
            return total.bitwise_right_shift_(_PLACES).clamp_(0, 255)

        for i, image in enumerate(x.to(torch.int32)):
            out[i] = summed(summed(image, 2, across, i), 1, down, i)
        return out


def weighted(x: Tensor, down: Tensor, across: Tensor, block: int = 4) -> Tensor:
    """Two passes of weights over images.

    Args:
        x: [n, 3, side, side] uint8.
        down, across: [n or 1, s, side] float64 whole numbers, the weights of rows and of columns times 2**22.
        block: images at a time.

    Returns:
        [n, 3, s, s] uint8.
    """
    n, channels, side, _ = x.shape
    size = down.shape[1]
    out = torch.empty((n, channels, size, size), dtype=torch.uint8, device=x.device)
    for at in range(0, n, block):
        part = slice(at, at + block)
        pick = lambda table, part=part: table if len(table) == 1 else table[part]  # noqa: E731
        pixels = x[part].to(torch.float64)
        wide = _rounded(pixels.reshape(len(pixels), channels * side, side) @ pick(across).transpose(1, 2))
        tall = pick(down)[:, None] @ wide.view(len(pixels), channels, side, size)
        out[part] = _rounded(tall).to(torch.uint8)
    return out


def resized(images: np.ndarray, size: int, interpolation: str = "bicubic") -> np.ndarray:
    """[n, 3, S, S] uint8 -> [n, 3, size, size] uint8, as `Resizer.whole` on the CPU."""
    return Resizer(images.shape[-1], size, interpolation).whole(torch.from_numpy(images)).numpy()
