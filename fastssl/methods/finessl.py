"""FineSSL (Gan & Wei, ICML 2024, arXiv 2405.11756): fine-tuning a foundation model without its aggregated bias and overconfidence.

Symbols: z main logits, a auxiliary logits on detached features, y label, hat y = argmax z_weak, sigma = max softmax(z_weak),
omega = max softmax(a_weak), beta learning pace, m margins. Where paper and official code differ, the code is the default and
the paper a switch (docs/methods.md lists each).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import option
from ..kernels import consistency_loss, cross_entropy, pseudo_label_loss
from ..models import Network, Output
from ..models.heads import demand_one_layer
from ..pipelines.batch import Batch, DataSpec, Views
from ..schedules import Clock
from .base import Method, Terms
from .bricks.options import MethodOptions, UnlabelledOptions, but
from .bricks.pace import LearningPace
from .bricks.quality import pseudo_label_quality
from .bricks.shares import adjustment

CODE_OR_PAPER = ("code", "paper")


class FineSSLTerms(NamedTuple):
    """The four terms of the loss, [] each."""

    labelled: Tensor  # L_x
    auxiliary_labelled: Tensor  # L_x1
    unlabelled: Tensor  # L_u
    auxiliary_unlabelled: Tensor  # L_u1


class FineSSL(Method):
    """L = L_x + L_x1 + gamma L_u + L_u1: balanced margin softmax on the main head, decoupled label smoothing on the auxiliary.

    | term | formula | mean over |
    |---|---|---|
    | L_x | CE(y, z_x + margin) | labelled rows |
    | L_x1 | CE(y, a_x) | labelled rows |
    | L_u | omega 1[omega >= least_weight] CE(hat y, z_s + margin) | all strong rows |
    | L_u1 | smoothed CE(hat y, a_s) | strong rows with sigma >= threshold; 0 if there is none |

    A margin m_y is added to every other class's logit, m_k = margin_scale (max beta - min beta) (1 - beta_k) / (1 + beta_k).
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        margin_scale: float = option(8.0, "alpha_0: scale of the margins", source="official code; paper alike", least=0)
        smoothing: float = option(
            0.5, "epsilon: label smoothing of the auxiliary head's pseudo-labels", source="paper's lambda", least=0, most=1
        )
        gamma: float = option(3.0, "weight of the main head's unlabelled term", source="code w_con; 1.0 for CIFAR-10 N1", least=0)
        threshold: float = option(
            0.7, "main confidence from which a strong view trains the auxiliary head", source="code th", least=0, most=1
        )
        least_weight: float = option(0.0, "omega below this becomes 0; 0 keeps every sample", source="code th_min", least=0, most=1)
        pace_threshold: float = option(
            0.7, "zeta: confidence from which a pseudo-label counts in the learning pace", source="code", least=0, most=1
        )
        pace_reset: int = option(500, "steps after which the learning pace starts anew; 0 never (paper)", source="code: an epoch", least=0)
        pace_form: str = option(
            "auto",
            "learning pace from a bank of every sample's last label, or from a counter (equal where no sample repeats)",
            choices=("auto", "bank", "counter"),
        )
        logit_adjustment: float = but(UnlabelledOptions, "logit_adjustment", 0.0)
        margin: str = option("code", "(1 - beta) / (1 + beta), or the paper's 1 - beta", choices=CODE_OR_PAPER)
        margin_spread: str = option(
            "dynamic",
            "the margins' scale: alpha_0 (max beta - min beta), or alpha_0 alone (fixed, the paper's ablation)",
            choices=("dynamic", "fixed"),
        )
        margin_labelled: bool = option(True, "margins in the labelled term too; off is the paper's ablation")
        smoothed_label: str = option("code", "off-classes get eps / (C - 1), or the paper's eps / C on every class", choices=CODE_OR_PAPER)
        auxiliary_labelled: str = option("code", "plain cross-entropy, or the paper's smoothed one", choices=CODE_OR_PAPER)
        auxiliary_target: str = option(
            "code", "hard smoothed label of the main head, or the paper's soft consistency with it", choices=CODE_OR_PAPER
        )
        strong_views: int = option(2, "strong views a sample: 2 in the code, 1 in the paper", least=1)
        detach_auxiliary: bool = option(True, "the auxiliary head never moves the features; off is the paper's ablation")

    summary = "foundation-model tuning with learning-pace margins and confidence reweighting by a detached, smoothed head"
    paper = "Gan & Wei, ICML 2024, arXiv 2405.11756"
    views = Views(labelled=("weak",), unlabelled=("weak", "strong", "strong"), no_grad=1)

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        demand_one_layer(network.head, "a method with FineSSL's second head")
        super().__init__(config, network, spec, **options)
        # Both heads start equal: the auxiliary takes the main head's weight and goes its own way.
        self.auxiliary = copy.deepcopy(network.head)
        self.register_buffer("prior", adjustment(spec, config.logit_adjustment), persistent=False)
        self.pace = LearningPace(
            spec,
            threshold=config.pace_threshold,
            reset=config.pace_reset,
            form=config.pace_form,
            batch=self.unlabelled_batch,
        )

    @classmethod
    def views_of(cls, config: Any) -> Views:
        return Views(("weak",), ("weak",) + ("strong",) * config.strong_views, no_grad=1)

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        c, classes = self.config, self.spec.num_classes
        (known,), (weak, *strong) = labelled, unlabelled
        pace = self.pace.read(clock)
        margin = self.margins(pace)
        student = torch.stack([s.logits for s in strong])  # [V, U, C]
        auxiliary_labelled = self._auxiliary(known)
        auxiliary_strong = torch.stack([self._auxiliary(s) for s in strong])
        with torch.no_grad():
            auxiliary_weak = self._auxiliary(weak)
        smoothing = c.smoothing if c.smoothed_label == "code" else c.smoothing * (classes - 1) / classes

        loss_x = cross_entropy(
            known.logits, batch.label, margin=margin if c.margin_labelled else None, adjust=self.prior, sample_weight=batch.weight
        ).mean()
        loss_x1 = cross_entropy(
            auxiliary_labelled,
            batch.label,
            smoothing=0.0 if c.auxiliary_labelled == "code" else smoothing,
            adjust=self.prior,
            sample_weight=batch.weight,
        ).mean()
        main = pseudo_label_loss(
            student,
            weak.logits.detach(),
            judge=auxiliary_weak.detach(),
            weighting="confidence",
            threshold=c.least_weight,
            margin=margin,
        )
        loss_u = main.loss.mean()
        if c.auxiliary_target == "code":
            # The main call's labels and confidences serve again: no logit of the teacher is read twice.
            second = pseudo_label_loss(auxiliary_strong, main, threshold=c.threshold, smoothing=smoothing)
            rows, kept = second.loss, second.weight
        else:
            kept = (main.confidence >= c.threshold).to(main.loss.dtype).repeat(len(strong))
            teacher = weak.logits.detach().repeat(len(strong), 1)
            rows = consistency_loss(auxiliary_strong.flatten(0, 1), teacher, kind="ce", sample_weight=kept)
        loss_u1 = rows.sum() / kept.sum().clamp(min=1)

        users = main.confidence.shape[0]
        metrics = {
            "loss_labelled": loss_x.detach(),
            "loss_unlabelled": loss_u.detach(),
            "loss_auxiliary": (loss_x1 + loss_u1).detach(),
            "weight": main.weight.detach().mean(),
            "margin": margin.detach().max(),
            **pseudo_label_quality(main.label, kept[:users], batch.hidden_label, classes),
        }
        memory = {"label": main.label, "confidence": main.confidence, "pace": pace}
        total = self.total(FineSSLTerms(loss_x, loss_x1, loss_u, loss_u1), unlabelled, batch, memory)
        return Terms(total, metrics, memory)

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        memory = terms.memory
        self.pace.write(batch.unlabelled_index, memory["label"], memory["confidence"], memory["pace"], clock)

    def margins(self, pace: Tensor) -> Tensor:
        """[C] learning pace in [0, 1] -> [C] margins. No class seen yet: no margin."""
        spread = self.margin_scale() * (
            pace.max() - pace.min() if self.config.margin_spread == "dynamic" else (pace.max() > 0).to(pace.dtype)
        )
        return spread * ((1 - pace) / (1 + pace) if self.config.margin == "code" else 1 - pace)

    def margin_scale(self) -> float | Tensor:
        """alpha of the step under way."""
        return self.config.margin_scale

    def total(self, terms: FineSSLTerms, unlabelled: list[Output], batch: Batch, memory: dict[str, Tensor]) -> Tensor:
        """[] the loss, from its four terms."""
        return terms.labelled + terms.auxiliary_labelled + self.config.gamma * terms.unlabelled + terms.auxiliary_unlabelled

    def _auxiliary(self, output: Output) -> Tensor:
        return self.auxiliary(output.features.detach() if self.config.detach_auxiliary else output.features)
