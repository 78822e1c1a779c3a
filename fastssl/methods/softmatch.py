"""SoftMatch (Chen et al. 2023): no cut-off; a pseudo-label weighs by a one-sided Gaussian of its confidence."""

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
from .bricks.options import UnlabelledOptions, but
from .thresholded import Thresholded


class SoftMatch(Thresholded):
    """L = mean CE(y, z_x) + lambda_u (1 / U) sum exp(-2 min(c - mu, 0)^2 / v) CE(argmax p_w, z_s) (eqs. 7 to 10).

    mu and v average mean and variance of the confidence with decay 0.999, from 1 / C and 1 on, updated before they are used. c is the
    confidence after uniform alignment, the label that of the unaligned prediction. A batch of one row has no variance and leaves v alone.
    """

    align_for = "weight"

    @dataclass(frozen=True)
    class Config(UnlabelledOptions):
        align: str = but(UnlabelledOptions, "align", "uniform", "SoftMatch, section 3.3; its released code: predicted")
        align_start: str = option(
            "uniform",
            "first value of alignment's running marginal: uniform, or the first batch's mean",
            source="TorchSSL: uniform; USB: batch",
            choices=("uniform", "batch"),
        )
        statistics: str = option(
            "raw",
            "confidence whose mean and variance are kept: before alignment, or after it",
            source="paper and TorchSSL: raw; USB: aligned",
            choices=("raw", "aligned"),
        )
        momentum: float = option(0.999, "decay of mean and variance", source="SoftMatch", least=0, most=1)
        sigmas: float = option(2.0, "n: the Gaussian's standard deviation is sqrt(v) / n", source="USB: 2", above=0)

    summary = "every pseudo-label counts, by a Gaussian of how far its confidence lies below the mean"
    paper = "Chen et al. 2023, arXiv 2301.10921"

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        if config.align_start == "batch" and config.align_memory == "queue":
            raise ConfigError(
                "method.align_start=batch is how align_memory=ema may start, and a queue starts uniform; leave one of them out"
            )
        super().__init__(config, network, spec, **options)
        self.register_buffer("mean", torch.full((), 1 / spec.num_classes))
        self.register_buffer("variance", torch.ones(()))

    def standard(self, teacher: Tensor, known: Tensor, batch: Batch, clock: Clock) -> tuple[dict[str, Any], dict[str, Tensor]]:
        m = self.config.momentum
        options, memory = self.aligned(teacher, known)
        if self.config.statistics == "aligned" and "align" in options:
            # normalise(p * ratio) = softmax(z + log ratio)
            seen = class_statistics(teacher + options["align"].log())
        else:
            seen = class_statistics(teacher)
        mean = m * self.mean + (1 - m) * seen.confidence_mean.to(self.mean.dtype)
        variance = self.variance
        if len(teacher) > 1:
            variance = m * self.variance + (1 - m) * seen.confidence_var.to(self.variance.dtype)
        memory |= {"mean": mean, "variance": variance}
        # The kernel's Gaussian is exp(-2 d^2 / v), two sigmas.
        scaled = variance * (4 / self.config.sigmas**2)
        return {"weighting": "gaussian", "threshold": mean, "variance": scaled, **options}, memory

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        super().remember(batch, terms, clock)
        self.mean.copy_(terms.memory["mean"])
        self.variance.copy_(terms.memory["variance"])
