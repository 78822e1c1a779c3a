"""What FixMatch and its successors share: hard pseudo-labels of the weak view, weighed, train the strong view.

A successor says how a pseudo-label is judged (`standard`) and what it remembers; everything else is here, options included, so that
`fixmatch` with smooth weights, distribution alignment and LoRA is one command and no class of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import class_statistics, cross_entropy, pseudo_label_loss
from ..kernels.reference import PseudoLabel
from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec, Views
from ..schedules import Clock
from .base import Method, Terms
from .bricks.alignment import Alignment
from .bricks.quality import pseudo_label_quality
from .bricks.shares import adjustment, class_shares
from .bricks.weights import sigmoid_weight


class Thresholded(Method):
    """L = mean CE(y, z_x) + lambda_u (1 / U) sum w CE(argmax q, z_s); q is the weak view's prediction, aligned where that is asked for."""

    views = Views(labelled=("weak",), unlabelled=("weak", "strong"), no_grad=1)
    align_for = "both"  # what alignment serves: label and weight, or the weight alone

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        shares = class_shares(spec) if config.align == "labelled" else None
        self.alignment = None
        if config.align != "none":
            self.alignment = Alignment(
                spec.num_classes,
                target=config.align,
                memory=config.align_memory,
                decay=config.align_decay,
                shares=shares,
                from_batch=getattr(config, "align_start", "batch") == "batch",
            )
        self.register_buffer("prior", adjustment(spec, config.logit_adjustment), persistent=False)

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        known = [view.logits for view in labelled]
        weak, *strong = (view.logits for view in unlabelled)
        teacher = weak.detach()
        supervised = self.supervised(known, batch)
        options, memory = self.standard(teacher, known[0].detach(), batch, clock)
        pseudo = self.pseudo_labels(self.student(unlabelled[1:]), options.pop("teacher", teacher), options)
        unsupervised = pseudo.loss.mean()
        total = supervised + self.weight(clock) * unsupervised
        extra = self.extra(labelled, unlabelled, pseudo, memory, batch)
        users = len(teacher)
        metrics = {
            "loss_labelled": supervised.detach(),
            "loss_unlabelled": unsupervised.detach(),
            **pseudo_label_quality(pseudo.label, pseudo.weight[:users], batch.hidden_label, self.spec.num_classes),
        }
        if extra is not None:
            metrics["loss_extra"] = extra.detach()
            total = total + extra
        memory |= {"label": pseudo.label, "confidence": pseudo.confidence}
        return Terms(total, metrics, memory)

    def supervised(self, known: list[Tensor], batch: Batch) -> Tensor:
        """[] mean cross-entropy of the labelled views."""
        rows = [cross_entropy(logits, batch.label, adjust=self.prior, sample_weight=batch.weight).mean() for logits in known]
        return sum(rows[1:], rows[0]) / len(rows)

    def student(self, strong: list[Output]) -> Tensor:
        """[U, C], or [V, U, C] where there are several strong views: the logits that pseudo-labels train."""
        logits = [view.logits for view in strong]
        return logits[0] if len(logits) == 1 else torch.stack(logits)

    def standard(self, teacher: Tensor, known: Tensor, batch: Batch, clock: Clock) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """How this step's pseudo-labels are judged: options of `pseudo_label_loss` (and `teacher`, where not the weak logits themselves),
        and what `remember` will want.

        Args:
            teacher: [U, C] weak logits, known: [B, C] labelled logits, both without grad.
        """
        options, memory = self.aligned(teacher, known)
        return {"threshold": self.config.threshold, **options}, memory

    def aligned(self, teacher: Tensor, known: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The alignment's part of `standard`: nothing where none is asked for."""
        if self.alignment is None:
            return {}, {}
        mean = class_statistics(teacher).mean_probability
        ratio, memory = self.alignment.read(mean, class_statistics(known).mean_probability)
        return {"align": ratio, "align_for": self.align_for}, memory

    def pseudo_labels(self, student: Tensor, teacher: Tensor, options: dict[str, Any]) -> PseudoLabel:
        """Rows [V * U] of the unlabelled term."""
        options.setdefault("weighting", getattr(self.config, "weighting", "step"))
        if options["weighting"] == "smooth":
            options["power"] = self.config.power
        elif options["weighting"] == "sigmoid":
            options |= {"weighting": "none", "sample_weight": sigmoid_weight(teacher, options["threshold"], options.get("align"))}
        return pseudo_label_loss(student, teacher, **options)

    def weight(self, clock: Clock) -> float | Tensor:
        """Weight of the unlabelled term at this step."""
        return self.config.lambda_u

    def extra(
        self, labelled: list[Output], unlabelled: list[Output], pseudo: PseudoLabel, memory: dict[str, Tensor], batch: Batch
    ) -> Tensor | None:
        """[] a further term of the loss, or None. It may add to `memory`."""
        return None

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        if self.alignment is not None:
            self.alignment.write(terms.memory)
