"""How good the pseudo-labels are, measured by hidden labels where they are known."""

from __future__ import annotations

from torch import Tensor


def pseudo_label_quality(label: Tensor, weight: Tensor, hidden: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
    """Metrics of one batch of pseudo-labels.

    Args:
        label: [U] int64 pseudo-labels.
        weight: [U] fp32 weights; a row counts as kept where its weight is above 0.
        hidden: [U] int64 true labels, -1 where unknown.

    Returns:
        `kept`: share of rows with weight above 0. `pseudo_accuracy`: (right, judged) among kept rows with a known label;
        `pseudo_accuracy_all` the same over all rows with a known label.
    """
    kept = weight.detach() > 0
    known = hidden >= 0
    right = (label == hidden) & known
    return {
        "kept": kept.float().mean(),
        "pseudo_accuracy": ((right & kept).float().sum(), (known & kept).float().sum()),
        "pseudo_accuracy_all": (right.float().sum(), known.float().sum()),
    }
