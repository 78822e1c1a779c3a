"""FineSSL's unlabelled loss as one module: both heads' terms, each logit read once."""

from __future__ import annotations

import math

from torch import Tensor, nn

from . import _check
from ._dispatch import pseudo_label_loss
from .modules import REDUCTIONS, _reduce
from .reference import PseudoLabel


class FineSSLLoss(nn.Module):
    """FineSSL's unlabelled loss (Gan and Wei 2024, arXiv 2405.11756; as the official code has it): gamma * L_u + L_u1.

    N rows, C classes, V strong views. No parameters, no state dict, no memory.

    | term | formula | mean over |
    |---|---|---|
    | L_u | omega 1[omega >= least_weight] CE(label, student + margin) | all V*N strong rows |
    | L_u1 | CE(label smoothed by `smoothing`, auxiliary_student) | the rows with sigma >= threshold; 0 where there is none |

    label = argmax teacher and sigma = max softmax(teacher) come from the main head, omega = max softmax(auxiliary_teacher) from the
    auxiliary one; every logit but the label's gets margin[label]. The caller keeps counts [C] of the labels whose sigma was >= 0.7, up
    to the step before (the official code starts anew every 500 steps), beta = counts / counts.max().clamp(min=1), and passes

        margin = 8 * (beta.max() - beta.min()) * (1 - beta) / (1 + beta)

    The labelled terms are `BalancedMarginCrossEntropy()(logits, y, margin)` and a plain cross-entropy of the auxiliary logits.

    Args:
        gamma: weight of L_u, at least 0.
        threshold, least_weight: in [0, 1].
        smoothing: eps in [0, 1); the label keeps 1 - eps, every other class gets eps / (C - 1).
        reduction: "mean" is the loss; "none" gives rows [V*N] of which it is the mean; "sum" their sum.

    Raises:
        ValueError: a number out of its range, unknown reduction; at the call, as `pseudo_label_loss`.
    """

    def __init__(
        self, gamma: float = 3.0, threshold: float = 0.7, least_weight: float = 0.0, smoothing: float = 0.5, *, reduction: str = "mean"
    ):
        super().__init__()
        _check.number("gamma", gamma, "from 0", 0, low_allowed=True)
        for name, value in (("threshold", threshold), ("least_weight", least_weight)):
            _check.number(name, value, "from 0 to 1", 0, math.nextafter(1, 2), low_allowed=True)
        _check.number("smoothing", smoothing, "from 0 to below 1", 0, 1, low_allowed=True)
        _check.choice("reduction", reduction, REDUCTIONS)
        self.gamma, self.threshold, self.least_weight, self.smoothing = gamma, threshold, least_weight, smoothing
        self.reduction = reduction

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        auxiliary_student: Tensor,
        auxiliary_teacher: Tensor,
        margin: Tensor,
        *,
        return_pseudo_label: bool = False,
    ) -> Tensor | tuple[Tensor, PseudoLabel]:
        """Logits of the main and the auxiliary head: students [N, C] or [V, N, C], teachers [N, C] without grad; margin [C].

        The PseudoLabel is that of L_u: its label and confidence (sigma) are what the learning pace counts.
        """
        _check.logits("student", student, views=True)
        _check.logits("auxiliary_student", auxiliary_student, views=True)
        if auxiliary_student.shape != student.shape:
            raise ValueError(f"auxiliary_student must be {list(student.shape)} like student; got {list(auxiliary_student.shape)}")
        main = pseudo_label_loss(
            student, teacher, judge=auxiliary_teacher, weighting="confidence", threshold=self.least_weight, margin=margin
        )
        # Label and sigma of the first call are the second's teacher, so that no teacher logit is read twice.
        second = pseudo_label_loss(auxiliary_student, main, threshold=self.threshold, smoothing=self.smoothing)
        # mean(all / kept * rows) = sum(rows) / kept.
        share = second.weight.shape[0] / second.weight.sum().clamp(min=1)
        loss = _reduce(self.gamma * main.loss + share * second.loss, self.reduction)
        return (loss, main) if return_pseudo_label else loss

    def extra_repr(self) -> str:
        names = ("gamma", "threshold", "least_weight", "smoothing", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
