"""FixMatch (Sohn et al. 2020): the confident prediction on a weak view is the label of the strong view."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import option
from ..kernels import cross_entropy, pseudo_label_loss
from ..pipelines.batch import Batch, Views
from ..schedules import Clock
from .base import Method, Terms
from .bricks.forward import forward_views
from .bricks.quality import pseudo_label_quality


class FixMatch(Method):
    """L = mean CE(y, z_x) + lambda_u (1 / U) sum 1[max p_w >= tau] CE(argmax p_w, z_s) (equations 3 and 4)."""

    @dataclass(frozen=True)
    class Config:
        threshold: float = option(
            0.95, "tau: confidence from which a pseudo-label is used", source="FixMatch, section 2.4", least=0, most=1
        )
        lambda_u: float = option(1.0, "weight of the unlabelled term", source="FixMatch, section 2.4", least=0)

    summary = "hard pseudo-labels of confident weak views train the strong views"
    paper = "Sohn et al. 2020, arXiv 2001.07685"
    views = Views(labelled=("weak",), unlabelled=("weak", "strong"), no_grad=1)

    def loss(self, batch: Batch, clock: Clock) -> Terms:
        (labelled,), (weak, strong) = forward_views(self.network, batch, self.views.no_grad, self.weak_pass)
        supervised = cross_entropy(labelled.logits, batch.label, sample_weight=batch.weight).mean()
        pseudo = pseudo_label_loss(strong.logits, weak.logits.detach(), threshold=self.config.threshold)
        unsupervised = pseudo.loss.mean()
        metrics = {
            "loss_labelled": supervised.detach(),
            "loss_unlabelled": unsupervised.detach(),
            **pseudo_label_quality(pseudo.label, pseudo.weight, batch.hidden_label),
        }
        return Terms(supervised + self.config.lambda_u * unsupervised, metrics)
