"""FreeMatch (Wang et al. 2023): thresholds learned from the network's own confidence, and a term for fairness between classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import option
from ..kernels import class_statistics
from ..kernels.reference import PseudoLabel
from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Terms
from .bricks.options import ThresholdOptions
from .thresholded import Thresholded


class FreeMatch(Thresholded):
    """FixMatch with threshold_c = tau p_c / max p (eqs. 5 to 8), plus fairness_weight L_f (eqs. 9 to 12).

    tau, p and h average, with decay 0.999 from 1 / C on, the mean confidence, the mean prediction and the shares of the labels of each weak
    batch; they are updated before they are used. L_f = sum_c a_c log b_c, a = normalise(p / h), b = normalise(mean prediction over the
    shares of the labels, on the kept strong rows): negative by itself, as its authors mean it.
    """

    @dataclass(frozen=True)
    class Config(ThresholdOptions):
        momentum: float = option(0.999, "decay of the running statistics", source="FreeMatch", least=0, most=1)
        fairness_weight: float = option(
            0.01,
            "w_f: weight of the fairness term; 0 turns it off",
            source="FreeMatch: 0.01 with few labels, else 0.05; USB: 0.001",
            least=0,
        )
        least_threshold: float = option(0.0, "thresholds are at least this", source="FreeMatch on SVHN: 0.9", least=0, most=1)
        most_threshold: float = option(1.0, "thresholds are at most this", source="FreeMatch on SVHN: 0.95", least=0, most=1)

    summary = "thresholds that follow the network's confidence, globally and class by class, and a fairness term"
    paper = "Wang et al. 2023, arXiv 2205.07246"

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        if config.least_threshold > config.most_threshold:
            raise ConfigError(
                f"method.least_threshold {config.least_threshold:g} is above method.most_threshold {config.most_threshold:g}; swap them"
            )
        super().__init__(config, network, spec, **options)
        classes = spec.num_classes
        self.register_buffer("confidence", torch.full((), 1 / classes))
        self.register_buffer("marginal", torch.full((classes,), 1 / classes))
        self.register_buffer("histogram", torch.full((classes,), 1 / classes))

    def standard(self, teacher: Tensor, known: Tensor, batch: Batch, clock: Clock) -> tuple[dict[str, Any], dict[str, Tensor]]:
        m, seen = self.config.momentum, class_statistics(teacher)
        confidence = m * self.confidence + (1 - m) * seen.confidence_mean.to(self.confidence.dtype)
        marginal = m * self.marginal + (1 - m) * seen.mean_probability.to(self.marginal.dtype)
        histogram = m * self.histogram + (1 - m) * seen.histogram.to(self.histogram.dtype) / len(teacher)
        threshold = (confidence * marginal / marginal.max()).clamp(self.config.least_threshold, self.config.most_threshold)
        options, memory = self.aligned(teacher, known)
        memory |= {"mean_confidence": confidence, "marginal": marginal, "histogram": histogram}
        return {"threshold": threshold, **options}, memory

    def extra(
        self, labelled: list[Output], unlabelled: list[Output], pseudo: PseudoLabel, memory: dict[str, Tensor], batch: Batch
    ) -> Tensor | None:
        if not self.config.fairness_weight:
            return None
        return self.config.fairness_weight * fairness(unlabelled[1].logits, pseudo.weight > 0, memory["marginal"], memory["histogram"])

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        super().remember(batch, terms, clock)
        self.confidence.copy_(terms.memory["mean_confidence"])
        self.marginal.copy_(terms.memory["marginal"])
        self.histogram.copy_(terms.memory["histogram"])


def fairness(strong: Tensor, kept: Tensor, marginal: Tensor, histogram: Tensor) -> Tensor:
    """[] self-adaptive fairness, 0 where no row is kept.

    Args:
        strong: [U, C] logits of the strong view. kept: [U] bool. marginal, histogram: [C] running statistics of the weak view.
    """
    kind = torch.float64 if strong.dtype == torch.float64 else torch.float32
    p, kept = strong.to(kind).softmax(1), kept.to(kind)
    count = kept.sum()
    mean = (p * kept[:, None]).sum(0) / count.clamp(min=1)
    shares = torch.zeros_like(mean).index_add_(0, p.detach().argmax(1), kept) / count.clamp(min=1)  # sums of ones: any order, one result
    scaled = torch.where(shares > 0, mean / shares.clamp(min=1e-12), 0.0)
    own = scaled / scaled.sum().clamp(min=1e-12)
    running = torch.where(histogram > 0, marginal / histogram.clamp(min=1e-12), 0.0)
    running = (running / running.sum()).to(kind)
    return torch.where(count > 0, (running * (own + 1e-12).log()).sum(), 0.0)
