"""LayerMatch (arXiv 2406.14207): pseudo-labels train the encoder and spare the classifier, whose centres an average keeps still.

The paper's text was not at hand: its notes settle the idea, not which gradient Grad-ReLU drops nor what Avg-Clustering averages. Each
reading is an option, the best supported one the default; docs/methods.md says what is known.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import option
from ..kernels.reference import PseudoLabel
from ..models import Network, Output
from ..models.heads import demand_one_layer
from ..pipelines.batch import Batch, DataSpec
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Averaged, Terms
from .bricks.classifier_gradient import GRAD_RELU, gated, held_logits
from .bricks.options import ThresholdOptions
from .bricks.rows import PredictionBank
from .thresholded import Thresholded

AVERAGES = ("off", "classifier", "outputs", "teacher", "centres")


class LayerMatch(Thresholded):
    """L = mean CE(y, z_x) + lambda_u (1 / U) sum 1[max p_w >= tau] CE(argmax p_w, W' f_s + b').

    W', b' are W and b without gradient (Grad-ReLU); under averaging=classifier they are their running averages, the centres that features
    are drawn to. Label and confidence come of the live network.

    Known: the unlabelled term trains the encoder, and its harmful gradient is kept from the last linear layer; an exponential average holds
    the centres still that features gather around. Open in our sources: whether Grad-ReLU drops all of that gradient or what opposes the
    labelled one; what is averaged, by what momentum, with what ramp; the five hyper-parameters and their values; every table. Each reading
    is a value of grad_relu or averaging. averaging=classifier by itself keeps the gradient from the classifier, for the average does not
    train: what grad_relu lets through (off: all of it) goes straight through to the live one.
    """

    @dataclass(frozen=True)
    class Config(ThresholdOptions):
        threshold: float = option(
            0.95, "tau: confidence from which a pseudo-label is used", source="FixMatch; the paper's own is open", least=0, most=1
        )
        grad_relu: str = option(
            "full",
            "the unlabelled term's gradient at the classifier: none of it (full), none where it opposes the labelled one as a whole "
            "(conflict_global) or entry by entry (conflict_element), or all of it (off)",
            source="open in our sources; full is the best supported reading",
            choices=GRAD_RELU,
        )
        averaging: str = option(
            "classifier",
            "Avg-Clustering, what is averaged: the classifier, each sample's predictions (outputs), the whole network (teacher), class "
            "centres of the features that pull theirs (centres), or nothing (off)",
            source="open in our sources",
            choices=AVERAGES,
        )
        momentum: float = option(0.999, "decay of that average", source="open; USB's averages: 0.999", least=0, most=1)
        centre_weight: float = option(1.0, "weight of the pull to the centres (averaging=centres)", source="open", least=0)

    summary = "pseudo-labels train the encoder alone, towards averaged class centres"
    paper = "LayerMatch 2024, arXiv 2406.14207"

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        if config.grad_relu != "off" or config.averaging == "classifier":
            demand_one_layer(network.head, "layermatch, which holds its classifier still,")
        if config.grad_relu.startswith("conflict") and not isinstance(network.head, nn.Linear):
            raise ConfigError(f"method.grad_relu={config.grad_relu} needs a linear head; take --set model.head=linear, or grad_relu=full")
        self.average = self.teacher = self.bank = None
        if config.averaging == "classifier":
            self.average = copy.deepcopy(network.head).requires_grad_(False)
        elif config.averaging == "teacher":
            self.teacher = copy.deepcopy(network).requires_grad_(False)
        elif config.averaging == "outputs":
            self.bank = PredictionBank(spec.rows, spec.num_classes, config.momentum)
        centres = torch.zeros(spec.num_classes, network.encoder.num_features) if config.averaging == "centres" else None
        self.register_buffer("centres", centres)

    def averages(self) -> list[Averaged]:
        own = [(self.average, self.network.head), (self.teacher, self.network)]
        return super().averages() + [Averaged(average, source, self.config.momentum) for average, source in own if average is not None]

    def student(self, strong: list[Output]) -> Tensor:
        if self.config.grad_relu == "off" and self.average is None:
            return strong[0].logits
        flows = self.config.grad_relu == "off"
        return held_logits(self.network.head, strong[0].features, average=self.average, flows=flows)

    def standard(self, teacher: Tensor, known: Tensor, batch: Batch, clock: Clock) -> tuple[dict[str, Any], dict[str, Tensor]]:
        memory: dict[str, Tensor] = {}
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher(batch.unlabelled[0]).logits
        elif self.bank is not None:
            kind = torch.float64 if teacher.dtype == torch.float64 else torch.float32
            memory["outputs"] = self.bank.read(batch.unlabelled_index, teacher.to(kind).softmax(1))
            teacher = memory["outputs"].clamp(min=torch.finfo(kind).tiny).log()
        options, aligned = self.aligned(teacher, known)
        return {"threshold": self.config.threshold, "teacher": teacher, **options}, {**memory, **aligned}

    def extra(
        self, labelled: list[Output], unlabelled: list[Output], pseudo: PseudoLabel, memory: dict[str, Tensor], batch: Batch
    ) -> Tensor | None:
        pieces = []
        if self.config.grad_relu.startswith("conflict"):
            pieces.append(self._let_through(labelled[0], unlabelled[1], pseudo, batch))
        if self.config.averaging == "centres":
            pieces.append(self._pull(*unlabelled, pseudo, memory))
        return sum(pieces[1:], pieces[0]) if pieces else None

    def _let_through(self, known: Output, strong: Output, pseudo: PseudoLabel, batch: Batch) -> Tensor:
        """[] zero whose gradient is what Grad-ReLU lets through to the classifier of that of L_u, by that of the labelled term."""
        own = (pseudo.weight / len(pseudo.weight))[:, None] * self._residual(self.student([strong]), pseudo.label)
        adjusted = known.logits if self.prior is None else known.logits + self.prior
        other = (batch.weight / len(batch.weight))[:, None] * self._residual(adjusted, batch.label)
        return gated(self.network.head, self.config.grad_relu, (self.config.lambda_u * own, strong.features), (other, known.features))

    def _residual(self, logits: Tensor, label: Tensor) -> Tensor:
        """[N, C] gradient of the rows' cross-entropy at their logits."""
        kind = self.network.head.weight.dtype
        p = logits.detach().to(kind).softmax(1)
        return p - torch.nn.functional.one_hot(label, self.spec.num_classes).to(kind)

    def _pull(self, weak: Output, strong: Output, pseudo: PseudoLabel, memory: dict[str, Tensor]) -> Tensor:
        """[] weighted distance of strong features to the centre of their label, the centres first moved by this step's weak features."""
        kind = self.centres.dtype
        one = torch.nn.functional.one_hot(pseudo.label, self.spec.num_classes).to(kind) * (pseudo.weight > 0).to(kind)[:, None]
        count = one.sum(0)[:, None]
        with torch.autocast(one.device.type, enabled=False):  # which would take the product in bf16
            mean = one.T @ weak.features.detach().to(kind) / count.clamp(min=1)
        moved = self.config.momentum * self.centres + (1 - self.config.momentum) * mean
        unseen = (self.centres == 0).all(1, keepdim=True)
        memory["centres"] = torch.where(count > 0, torch.where(unseen, mean, moved), self.centres)
        centre = memory["centres"].index_select(0, pseudo.label)
        pull = 1 - torch.nn.functional.cosine_similarity(strong.features.to(kind), centre, dim=1)
        return self.config.centre_weight * (pseudo.weight * pull).mean()

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        super().remember(batch, terms, clock)
        if self.bank is not None:
            self.bank.write(batch.unlabelled_index, terms.memory["outputs"], clock.ok)
        if self.centres is not None:
            self.centres.copy_(terms.memory["centres"])

    def train(self, mode: bool = True) -> LayerMatch:
        super().train(mode)
        if getattr(self, "teacher", None) is not None:
            self.teacher.train(False)
        return self
