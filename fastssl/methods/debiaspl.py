"""DebiasPL (Wang et al. 2022): the running marginal of predictions is taken out of pseudo-labels, and put into the loss as a margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import option
from ..kernels import class_statistics
from ..models import Network
from ..pipelines.batch import Batch, DataSpec
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Terms
from .bricks.options import ThresholdOptions
from .thresholded import Thresholded


class DebiasPL(Thresholded):
    """FixMatch with pseudo-labels from z_w - tau_d log q and the loss CE(label, z_s + tau_d log q') (Algorithm 1).

    q averages the mean raw weak prediction, from 1 / C on. Labels are made with q as the step before left it, the loss with q' as this
    step's batch has moved it; labelled term and evaluation take plain logits. Step 0 is therefore FixMatch, but for q'.
    """

    @dataclass(frozen=True)
    class Config(ThresholdOptions):
        threshold: float = option(
            0.8, "confidence, of the debiased prediction, from which a pseudo-label is used", source="code", least=0, most=1
        )
        debias: float = option(0.4, "tau_d: how much of log q is taken out and put in", source="code's scripts; parser default 1", least=0)
        momentum: float = option(0.999, "decay of q", source="code: 0.999 for 1 % of labels, 0.99 for 0.2 %", least=0, most=1)

    summary = "pseudo-labels freed from the network's own bias towards some classes"
    paper = "Wang et al. 2022, arXiv 2201.01490"

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        if config.align != "none":
            raise ConfigError(
                "method.align of debiaspl: its debiasing is an alignment already; leave it at none, or take --method fixmatch"
            )
        super().__init__(config, network, spec, **options)
        self.register_buffer("marginal", torch.full((spec.num_classes,), 1 / spec.num_classes))

    def standard(self, teacher: Tensor, known: Tensor, batch: Batch, clock: Clock) -> tuple[dict[str, Any], dict[str, Tensor]]:
        m, strength = self.config.momentum, self.config.debias
        marginal = m * self.marginal + (1 - m) * class_statistics(teacher).mean_probability.to(self.marginal.dtype)
        debiased = teacher - strength * _log(self.marginal)
        return {"threshold": self.config.threshold, "teacher": debiased, "adjust": strength * _log(marginal)}, {"marginal": marginal}

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        self.marginal.copy_(terms.memory["marginal"])


def _log(marginal: Tensor) -> Tensor:
    """[C] logarithms, finite: the share of a class that is never predicted may come down to a plain 0."""
    return marginal.clamp(min=torch.finfo(marginal.dtype).tiny).log()
