"""The Pi-model (Sajjadi et al. 2016; Laine & Aila 2017): two predictions of one image under independent noise must agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import option
from ..kernels import consistency_loss, cross_entropy
from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec, Views
from ..schedules import Clock
from .base import Method, Terms
from .bricks.consistency import LABELLED, UNLABELLED, ConsistencyOptions, consistency_weight, noisy, reduced, share_of_labels
from .bricks.forward import forward_apart, forward_together


class PiModel(Method):
    """L = (1 / B) sum_labelled CE(y, z) + w(t) (1 / B) sum (1 / C) ||p - p'||^2, B all rows of the mixed batch (Laine & Aila, algorithm 1).

    p and p' are the network's predictions of two weak views. w(t) = lambda_u (M / N) exp(-5 (1 - u)^2). By default gradient flows through
    both predictions. reduction=streams is TorchSSL's and USB's: mean CE over labelled rows, the squared distance over unlabelled rows.
    """

    @dataclass(frozen=True)
    class Config(ConsistencyOptions):
        gradient: str = option(
            "both",
            "whether the consistency term's gradient flows through both predictions or through one, the other being its target",
            source="Laine & Aila 2017: both; TorchSSL, USB: one",
            choices=("both", "one"),
        )

    summary = "two predictions of an image under independent noise must agree"
    paper = "Laine & Aila 2017, arXiv 1610.02242; Sajjadi et al. 2016, arXiv 1606.04586"
    views = Views(labelled=("weak", "weak"), unlabelled=("weak", "weak"))

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        self.weak_pass = "separate"  # the target's pass is always its own
        self.labels_share = share_of_labels(config, spec)

    @classmethod
    def views_of(cls, config: Any) -> Views:
        labelled = ("weak",) if config.reduction == "streams" else ("weak", "weak")
        return Views(labelled, ("weak", "weak"), no_grad=int(config.gradient == "one"))

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        deviation = self.config.noise
        known = noisy(batch.labelled, batch.index, deviation, clock, use=LABELLED, network=self.network)
        target, student = noisy(batch.unlabelled, batch.unlabelled_index, deviation, clock, use=UNLABELLED, network=self.network)
        if self.config.reduction == "streams":
            labelled = forward_together(self.network, known)
            (predicted,) = forward_apart(self.network, [student])
            return labelled, [*self.targets([target]), predicted]
        first, other = known
        one, predicted = forward_together(self.network, [first, student])
        two, wanted = self.targets([other, target])
        return [one, two], [wanted, predicted]

    def targets(self, views: list[Tensor]) -> list[Output]:
        """The second branch, as one batch: it leaves running statistics alone."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.asked.no_grad):
            return forward_together(self.network, views, "batch")

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        target, predicted = (view.logits for view in unlabelled)
        if self.config.reduction == "batch":
            first, other = (view.logits for view in labelled)
            target, predicted = torch.cat([other, target]), torch.cat([first, predicted])
        rows = cross_entropy(labelled[0].logits, batch.label, sample_weight=batch.weight)
        distances = consistency_loss(predicted, target, teacher_grad=self.config.gradient == "both")
        supervised, unsupervised = reduced(rows, distances, self.config.reduction)
        total = supervised + self.labels_share * consistency_weight(self.config, clock) * unsupervised
        return Terms(total, {"loss_labelled": supervised.detach(), "loss_unlabelled": unsupervised.detach()})
