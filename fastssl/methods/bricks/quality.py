"""How good the pseudo-labels are, measured by hidden labels where they are known."""

from __future__ import annotations

import torch
from torch import Tensor


def pseudo_label_quality(label: Tensor, weight: Tensor, hidden: Tensor, classes: int) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
    """Metrics of one batch of pseudo-labels.

    Args:
        label: [U] int64 pseudo-labels, -1 where a row has none; such rows are not judged.
        weight: [U] fp32 weights; a row counts as kept where its weight is above 0.
        hidden: [U] int64 true labels, -1 where unknown.
        classes: C.

    Returns:
        `kept`: share of rows with weight above 0. `pseudo_accuracy`: (right, judged) among kept rows with a known label;
        `pseudo_accuracy_all` the same over all rows with a known label and a pseudo-label. `pseudo_bias`: the share of these rows, kept or
        not, that would have to change class for the pseudo-labels to be spread over the classes as the true labels of the same rows are: 0
        is no aggregated bias. A batch's own chance imbalance is in both and cancels.
    """
    kept = weight.detach() > 0
    known = (hidden >= 0) & (label >= 0)
    right = (label == hidden) & known
    one = known.to(torch.float32)
    spread = torch.zeros(classes, device=label.device).index_add_(0, label.clamp(min=0), one).index_add_(0, hidden.clamp(min=0), -one)
    return {
        "kept": kept.float().mean(),
        "pseudo_accuracy": ((right & kept).float().sum(), (known & kept).float().sum()),
        "pseudo_accuracy_all": (right.float().sum(), known.float().sum()),
        "pseudo_bias": (spread.abs().sum() / 2, known.float().sum()),
    }
