"""How a kernel is launched: tile and warps from (classes, element size), how wide memory may be touched, and the launch itself.

A launch is a value (`Launch`), so that it can be run, counted, or compiled for a GPU that is not here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

SERVED = (torch.float32, torch.bfloat16, torch.float16)


class Blocks(NamedTuple):
    """The tile of one program."""

    rows: int  # BLOCK_N
    classes: int  # BLOCK_C, a power of two
    looped: bool  # the tile walks along the row in several steps
    warps: int


# (classes up to, rows, warps) of tiles that hold whole rows. Chosen by counting instructions and registers, not yet measured on a GPU.
# Up to 128 classes programs are short, for there a launch's latency is all. From 129 to 1,024 classes a row lies in one warp, which then
# waits for no other: no barrier. Beyond, 32 elements a thread.
WHOLE = (
    (16, 64, 4),
    (32, 32, 4),
    (64, 16, 4),
    (128, 8, 4),
    (256, 2, 1),
    (512, 1, 1),
    (1024, 1, 1),
    (2048, 1, 2),
    (4096, 1, 4),
    (8192, 1, 8),
)
# Beyond: 2,048 elements a step by 8 warps, 8 a thread: 16 bytes of bfloat16, twice that of float32. Programs of 16 warps spill on sm_80
# with every option on.
STEP = Blocks(1, 2048, True, 8)
# Programs that a grid may hold along its second axis and its third, on every NVIDIA GPU. The first holds 2**31 - 1.
GRID = 65535


def blocks(classes: int) -> Blocks:
    """The tile for rows of `classes` elements (what alignment adds included)."""
    for limit, rows, warps in WHOLE:
        if classes <= limit:
            return Blocks(rows, max(16, 1 << (classes - 1).bit_length()), False, warps)
    return STEP


def alignment(classes: int, *rows: Tensor | None) -> int:
    """The largest power of two up to 8 that divides the class count and every row's offset: what lets a compiler widen its loads."""
    bits = classes | 8
    for tensor in rows:
        if tensor is not None:
            for stride in tensor.stride()[:-1]:
                bits |= stride
    return bits & -bits


def vector(tensor: Tensor, classes: int, align: int) -> int:
    """Elements in 16 bytes where `tensor` is best read by granules (long rows that start at no 16-byte border), else 1."""
    wide = 16 // tensor.element_size()
    if align >= wide or classes < 256 or not tensor.is_contiguous() or tensor.data_ptr() % 16:
        return 1
    return wide


def dense(vector: Tensor | None) -> Tensor | None:
    """A vector whose elements lie side by side: itself, but for strided ones."""
    return vector if vector is None else vector.contiguous()


def logarithm(align: Tensor | None) -> Tensor | None:
    """log(align) [C] float32, dense: taken once here, not by every row of a kernel."""
    return None if align is None else align.to(torch.float32).log().contiguous()


def sharpness(temperature: float) -> float:
    """1 / temperature, by which kernels multiply; finite in float32 for temperatures near 0, and 0 for none."""
    return min(1 / temperature, 1e38) if temperature > 1e-38 else 1e38 * (temperature != 0)


def beside(count: int) -> tuple[int, int]:
    """The second and third extent of a grid that holds `count` programs there, and at the end some to spare."""
    return min(count, GRID), -(-count // GRID)


class Launch(NamedTuple):
    """A kernel with all its arguments. `run` does nothing for an empty grid, and never waits."""

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    warps: int

    def run(self, device: torch.device) -> None:
        if 0 in self.grid:
            return
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self.run(device)
        # Fusing a multiplication and an addition into one rounding is wanted, whatever Triton's default is at the time.
        self.kernel[self.grid](**self.args, num_warps=self.warps, enable_fp_fusion=True)
