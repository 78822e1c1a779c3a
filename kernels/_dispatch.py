"""Who serves a call: the public functions, each under the name and signature of its reference.

| tensors | served by |
|---|---|
| on CUDA, float32, bfloat16 or float16, with triton installed | the Triton kernels |
| on the CPU with `TRITON_INTERPRET=1` | the same kernels, in Triton's interpreter |
| on the CPU, called eagerly | `_closed_form.py`, which takes the reference where it has nothing faster |
| all else (float64 on CUDA, other devices, CPU code that something traces, functorch transforms, forward mode) | the reference |

`FASTSSL_KERNELS=triton|reference` asks for one by name and raises RuntimeError where it cannot serve: another implementation than the one
asked for must never answer in silence. Code compiled by `torch.compile` keeps what the variable said when it was traced.
Triton is imported by the first call that it serves, not before.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _closed_form, reference
from ._check import traced


def _installed() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ImportError:
        return False


TRITON = _installed()


def triton_kernels(name: str) -> Callable:
    """The Triton form of a public function. Imports triton."""
    if name == "cross_entropy":
        from .triton_cross_entropy import cross_entropy

        return cross_entropy
    if name == "consistency_loss":
        from .consistency import consistency_loss

        return consistency_loss
    if name == "class_statistics":
        from .triton_class_statistics import class_statistics

        return class_statistics
    from . import pseudo_label

    return getattr(pseudo_label, name)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on CPU tensors. Imports triton."""
    from ._rows import row_weight

    return type(row_weight).__name__ == "InterpretedFunction"


def asked_to_interpret() -> bool:
    return os.environ.get("TRITON_INTERPRET", "") == "1"


def refusal(device: str, double: bool) -> str | None:
    """Why Triton cannot serve tensors of a device type, `double` where one is float64; None where it can."""
    if not TRITON:
        return "triton is not installed (pip install triton; Linux only)"
    if double:
        return "its kernels take float32, bfloat16 and float16, and a tensor is float64"
    if device == "cuda":
        return None
    if device != "cpu":
        return f"its kernels serve CUDA, and the tensors lie on {device}"
    if not asked_to_interpret():
        return "its kernels serve CUDA, and the tensors lie on the CPU (TRITON_INTERPRET=1 would interpret them there)"
    return None if interpreted() else "triton was imported before TRITON_INTERPRET=1 was set"


def server(device: str, double: bool = False, eager: bool = True) -> str:
    """Who serves tensors of a device type: "triton", "closed form" or "reference".

    Raises RuntimeError where FASTSSL_KERNELS asks for what cannot serve.
    """
    asked = os.environ.get("FASTSSL_KERNELS", "")
    if asked == "reference":
        return "reference"
    if asked == "triton":
        why = refusal(device, double)
        if why is not None:
            raise RuntimeError(f"FASTSSL_KERNELS=triton, but {why}; unset it or set it to reference")
        return "triton"
    if asked:
        raise RuntimeError(f"FASTSSL_KERNELS must be triton or reference; got {asked!r}")
    if device == "cuda":
        return "triton" if TRITON and not double else "reference"
    if device != "cpu":
        return "reference"
    if TRITON and not double and asked_to_interpret() and interpreted():
        return "triton"
    return "closed form" if eager else "reference"


PREDICTIONS = ("student", "teacher", "judge", "logits", "target")  # one of these in float64, and the work is done in float64


def _served(function: Callable) -> Callable:
    name = function.__name__
    closed = getattr(_closed_form, name, function)
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def public(*args, **kwargs):
        logits = args[0] if args else kwargs.get(first)
        if not isinstance(logits, Tensor):
            server("cpu")
            return function(*args, **kwargs)
        # No transform can look into a kernel, and jvp would drop tangents in silence. torch.compile itself refuses dual tensors.
        if torch._C._are_functorch_transforms_active() or (forward_ad._current_level >= 0 and not torch.compiler.is_compiling()):
            return function(*args, **kwargs)
        double = False
        for value in (*args[:2], *[kwargs[name] for name in PREDICTIONS if name in kwargs]) if kwargs else args[:2]:
            value = getattr(value, "confidence", value)
            if isinstance(value, Tensor) and value.dtype == torch.float64:
                double = True
        by = server(logits.device.type, double, not traced(logits))
        if by == "triton":
            return triton_kernels(name)(*args, **kwargs)
        return closed(*args, **kwargs) if by == "closed form" else function(*args, **kwargs)

    return public


pseudo_label_loss = _served(reference.pseudo_label_loss)
pseudo_label_loss_and_grad = _served(reference.pseudo_label_loss_and_grad)
cross_entropy = _served(reference.cross_entropy)
consistency_loss = _served(reference.consistency_loss)
class_statistics = _served(reference.class_statistics)

__all__ = ["class_statistics", "consistency_loss", "cross_entropy", "pseudo_label_loss", "pseudo_label_loss_and_grad"]
