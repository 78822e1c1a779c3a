"""Which part of the unsupervised gradient reaches the classifier: LayerMatch's Grad-ReLU (arXiv 2406.14207), in its four readings.

The features' gradient is never touched: d L_u / d f = W^T (p_s - e_label).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

GRAD_RELU = ("full", "conflict_global", "conflict_element", "off")


def held_logits(head: nn.Module, features: Tensor, *, average: nn.Module | None, flows: bool) -> Tensor:
    """[N, d] features -> [N, C] logits by a head whose parameters are held still, or by its averaged copy's.

    Args:
        average: a frozen copy of `head` whose values are taken, or None for the head's own.
        flows: let the gradient by these logits reach the live head all the same (straight through, where values are the average's).
    """
    values = dict((average or head).named_parameters())
    live = dict(head.named_parameters())
    parameters = {}
    for name, value in values.items():
        value = value.detach()
        parameters[name] = value + (live[name] - live[name].detach()) if flows else value
    return functional_call(head, parameters, (features,))


def gated(head: nn.Linear, rule: str, unlabelled: tuple[Tensor, Tensor], labelled: tuple[Tensor, Tensor]) -> Tensor:
    """[] zero whose gradient at a linear head is the part of the unsupervised gradient that the rule lets through.

    Args:
        rule: "conflict_global": all of it where its inner product with the labelled gradient is not negative, else nothing;
            "conflict_element": the entries whose sign is not opposed to the labelled gradient's.
        unlabelled, labelled: (residual [N, C], features [N, d]) without grad; the residual is the gradient of the term at the logits.
    """
    kind = head.weight.dtype
    gradients = []
    for residual, features in (unlabelled, labelled):
        residual, features = residual.detach().to(kind), features.detach().to(kind)
        with torch.autocast(residual.device.type, enabled=False):  # signs decide: no product in bf16
            gradients.append((residual.T @ features, residual.sum(0)))
    agree = [own * other for own, other in zip(*gradients, strict=True)]
    if rule == "conflict_global":
        through = (agree[0].sum() + agree[1].sum() >= 0).to(kind)
        kept = [own * through for own in gradients[0]]
    else:
        kept = [torch.where(product >= 0, own, 0.0) for own, product in zip(gradients[0], agree, strict=True)]
    total = (kept[0] * head.weight).sum() + (kept[1] * head.bias).sum()
    return total - total.detach()
