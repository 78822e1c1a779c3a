"""What every autograd.Function of these losses shares: what it may save, and what its backward refuses."""

from __future__ import annotations

import torch
from torch import Tensor


def savable(value: Tensor | None) -> Tensor | None:
    """A constant as torch saves it for a backward pass: no tensor that was made in inference mode, as a teacher's logits may be."""
    return value.clone() if value is not None and value.is_inference() else value


def once(name: str) -> None:
    """Called by a backward: refuses create_graph=True, which would otherwise take the gradient for a constant in silence."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name} by Triton is differentiable once; for a second derivative call fastssl.kernels.reference.{name}")
