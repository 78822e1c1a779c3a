"""Terms that no label enters."""

from __future__ import annotations

from torch import Tensor

from ...kernels import consistency_loss


def entropy(logits: Tensor) -> Tensor:
    """[N, C] logits -> [N] fp32 entropies of their softmax in nats, with gradient (Grandvalet & Bengio 2004)."""
    return consistency_loss(logits, logits, kind="ce", teacher_grad=True)
