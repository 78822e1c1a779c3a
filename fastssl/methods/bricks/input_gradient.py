"""The gradient of a loss with respect to a network's input: the search direction of VAT and of adversarial training.

By torch.func, with the network's weights and buffers as constants: nothing is accumulated on a parameter, no gradient with respect to a
weight is computed, and the search goes through torch.compile(fullgraph=True), which refuses torch.autograd.grad.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .batchnorm import batchnorm

PRECISIONS = ("fp32", "amp")


def input_gradient(network: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient at `x` of `loss` of the network's logits there, without a graph.

    Batch-norm is in mode "batch" (layers in evaluation mode stay so), so that the pass writes no buffer; dropout draws a mask of its own.

    Args:
        network: answers with an Output.
        x: [N, ...] floating-point inputs.
        loss: [N, C] logits -> [] scalar, of functions of kernels/reference.py. A sum over rows keeps a row's gradient apart from the size
            of the batch.

    Returns:
        [N, ...] in x's dtype.
    """
    constants = {name: value.detach() for name, value in (*network.named_parameters(), *network.named_buffers())}

    def value(at: Tensor) -> Tensor:
        return loss(torch.func.functional_call(network, constants, (at,)).logits)

    with batchnorm(network, "batch"):
        return torch.func.grad(value)(x.detach()).detach()


def precision(x: Tensor, kind: str) -> contextlib.AbstractContextManager:
    """Where a search runs: outside autocast ("fp32"), or in the run's own mixed precision ("amp").

    Under fp16 it is always the first: no scale keeps the search's small gradients from becoming zeros.
    """
    half = torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type) == torch.float16
    return torch.autocast(x.device.type, enabled=False) if kind == "fp32" or half else contextlib.nullcontext()


def unit(x: Tensor) -> Tensor:
    """[N, ...] -> each row over its L2 norm over all of its numbers, in fp32 (float64 of float64); a row of zeros stays as it is.

    A row is first divided by its largest entry: squares of a confident network's gradients would underflow.
    """
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.to(kind).flatten(1)
    least = torch.finfo(kind).tiny
    rows = rows / rows.abs().amax(1, keepdim=True).clamp(min=least)
    return (rows / rows.square().sum(1, keepdim=True).sqrt().clamp(min=least)).view(x.shape)
