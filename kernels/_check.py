"""Checks of what a caller passes, made before any work: every fault is one ValueError saying what came and what was wanted.

Only types, shapes, dtypes, devices and names are looked at. Values stay where they are (the one exception, `labels_in_range`,
looks at labels that already lie in host memory), so nothing here makes the host wait for a device.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _came(value) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"{type(value).__name__} {value!r}"


def choice(name: str, value, known: tuple[str, ...]) -> None:
    """`value` must be one of the names in `known`."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def number(name: str, value, wanted: str, low: float, high: float = math.inf, *, low_allowed: bool = False) -> None:
    """`value` must be a plain finite number between `low` and `high`, both excluded unless `low_allowed`."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and value < high
    if not fits or not (value > low or (low_allowed and value == low)):
        raise ValueError(f"{name} must be a number {wanted}; got {_came(value)}")


def logits(name: str, value, *, views: bool = False) -> None:
    """`value` must be floating-point [N, C], or [V, N, C] where `views` are allowed, with C >= 2."""
    wanted = "[N, C] or [V, N, C]" if views else "[N, C]"
    if not isinstance(value, Tensor) or value.dtype not in FLOATS or value.dim() not in ((2, 3) if views else (2,)):
        raise ValueError(f"{name} must be a floating-point tensor {wanted}; got {_came(value)}")
    if value.shape[-1] < 2:
        raise ValueError(f"{name} needs at least 2 classes in its last dimension; got {_came(value)}")


def constant(name: str, value, shapes: dict[str, tuple[int, ...]], device: torch.device) -> None:
    """`value` must be a floating-point tensor of one of `shapes` (keyed by how they are written), on `device`, without gradient."""
    if not isinstance(value, Tensor) or value.dtype not in FLOATS or tuple(value.shape) not in shapes.values():
        wanted = " or ".join(f"{text} = {list(shape)}" if shape else text for text, shape in shapes.items())
        raise ValueError(f"{name} must be a floating-point tensor {wanted}; got {_came(value)}")
    on_device(name, value, device)
    no_gradient(name, value)


def on_device(name: str, value: Tensor, device: torch.device) -> None:
    """Tensors of one call lie on one device; a scalar tensor of the host may go with any, as in torch."""
    if value.device != device and not (value.dim() == 0 and value.device.type == "cpu"):
        raise ValueError(f"{name} must lie on {device} as the other tensors of this call do; got {value.device}")


def no_gradient(name: str, value: Tensor) -> None:
    """A gradient that would silently be dropped is refused."""
    if value.requires_grad:
        raise ValueError(f"{name} must not require grad, because no gradient reaches it; pass {name}.detach()")


def threshold(value, rows: int, classes: int, device: torch.device) -> None:
    """A number, or a tensor [], [C] or [N, 1]."""
    if isinstance(value, Tensor):
        constant("threshold", value, {"[]": (), "[C]": (classes,), "[N, 1]": (rows, 1)}, device)
    elif not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
        raise ValueError(f"threshold must be a number or a floating-point tensor [], [C] or [N, 1]; got {_came(value)}")


def labels(name: str, value, rows: int, device: torch.device) -> None:
    """`value` must be integer [N]."""
    if not isinstance(value, Tensor) or value.dtype not in INTEGERS or tuple(value.shape) != (rows,):
        raise ValueError(f"{name} must be an integer tensor [N] = [{rows}]; got {_came(value)}")
    on_device(name, value, device)


def labels_in_range(name: str, value: Tensor, classes: int, sample_weight: Tensor | None = None) -> None:
    """On the CPU a label outside [0, C) is an error at once, unless its row has weight 0.

    On other devices reading it would stop the host, and while compiling there is nothing to read: there such a row becomes NaN.
    With FASTSSL_KERNELS_DEBUG=1 a device checks it too, in eager calls: its next synchronisation then fails with this message.
    """
    host = value.device.type == "cpu"
    if torch.compiler.is_compiling() or not (host or os.environ.get("FASTSSL_KERNELS_DEBUG", "") == "1"):
        return
    outside = (value < 0) | (value >= classes)
    if sample_weight is not None:
        outside = outside & (sample_weight != 0)
    if not host:
        torch._assert_async(~outside.any(), f"{name} must hold labels from 0 to {classes - 1}")
        return
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(f"{name} must hold labels from 0 to {classes - 1}; got {int(value[row])} in row {row}")


def traced(tensor: Tensor) -> bool:
    """Whether something (torch.compile, export, jit.trace, fake tensors, a dispatch mode) must see an operator rather than a launch."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return True
    return type(tensor) not in (Tensor, torch.nn.Parameter) or torch._C._len_torch_dispatch_stack() > 0
