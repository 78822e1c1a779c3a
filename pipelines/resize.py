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

    def whole(self, x: Tensor) -> Tensor:
        """[n, 3, source, source] uint8 -> [n, 3, target, target] uint8; x itself where there is nothing to do."""
        if self.source == self.target:
            return x
        return self._run(x, self.table[None], self.table[None])

    def cut(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Output pixels by name: rows and columns [n, s] int64 in [0, target) -> [n, 3, s, s] uint8.

        Equal to `whole` followed by that gather, but pixels that nobody asks for are never made.
        """
        return self._run(x, self.table[rows], self.table[columns])

    def _run(self, x: Tensor, down: Tensor, across: Tensor) -> Tensor:
        """down, across: [n or 1, s, source] weights."""
        n, channels, side, _ = x.shape
        size = down.shape[1]
        out = torch.empty((n, channels, size, size), dtype=torch.uint8, device=x.device)
        for at in range(0, n, self.block):
            part = slice(at, at + self.block)
            pick = lambda table, part=part: table if len(table) == 1 else table[part]  # noqa: E731
            pixels = x[part].to(torch.float64)
            wide = _rounded(pixels.reshape(len(pixels), channels * side, side) @ pick(across).transpose(1, 2))
            tall = pick(down)[:, None] @ wide.view(len(pixels), channels, side, size)
            out[part] = _rounded(tall).to(torch.uint8)
        return out


def resized(images: np.ndarray, size: int, interpolation: str = "bicubic") -> np.ndarray:
    """[n, 3, S, S] uint8 -> [n, 3, size, size] uint8, as `Resizer.whole` on the CPU."""
    return Resizer(images.shape[-1], size, interpolation).whole(torch.from_numpy(images)).numpy()
