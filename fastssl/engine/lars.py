"""LARS with tensor learning rates: You, Gitman, Ginsburg 2017 (arXiv 1708.03888), in the form of SimCLR's code (arXiv 2002.05709)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """v <- m v + lr * trust * (g + wd * w);  w <- w - v, with trust = eta |w| / |g + wd w| for each parameter, 1 where either is 0.

    As in SimCLR's code the momentum lies after the learning rate, and parameters of groups with `adapt` False (norms and biases) have
    trust 1. Everything stays on the device: learning rates are [] tensors, and a step for which `found_inf` ([] tensor, as torch's fused
    optimisers take it) is not 0 changes nothing.

    Args:
        groups: parameter groups; each may set lr, weight_decay and adapt.
        lr: learning rate.
        momentum: m.
        eta: trust coefficient.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None

    def __init__(self, groups: list[dict], lr: float | Tensor, momentum: float = 0.9, eta: float = 0.001):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "eta": eta, "weight_decay": 0.0, "adapt": True})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update by the parameters' gradients."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            if self.grad_scale is not None:
                grads = torch._foreach_div(grads, self.grad_scale)
            grads = torch._foreach_add(grads, params, alpha=group["weight_decay"]) if group["weight_decay"] else grads
            rate = group["lr"]
            if group["adapt"]:
                sizes, slopes = torch._foreach_norm(params), torch._foreach_norm(grads)
                trust = [torch.where((w > 0) & (g > 0), group["eta"] * w / g, 1.0) for w, g in zip(sizes, slopes, strict=True)]
                moves = torch._foreach_mul(grads, [t * rate for t in trust])
            else:
                moves = torch._foreach_mul(grads, rate)
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            fresh = torch._foreach_mul(buffers, group["momentum"])
            torch._foreach_add_(fresh, moves)
            if self.found_inf is not None:
                # Chosen by `where`, not by a product: what is not finite must not reach weights even as 0 * inf.
                bad = self.found_inf != 0
                for p, buffer, value in zip(params, buffers, fresh, strict=True):
                    p.sub_(torch.where(bad, 0.0, value))
                    buffer.copy_(torch.where(bad, buffer, value))
            else:
                torch._foreach_sub_(params, fresh)
                torch._foreach_copy_(buffers, fresh)
