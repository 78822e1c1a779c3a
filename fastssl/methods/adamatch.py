"""AdaMatch (Berthelot et al. 2021): alignment to the labelled marginal, and a threshold relative to how sure the network is of labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import option
from ..kernels import class_statistics
from ..models import Output
from ..pipelines import keyed
from ..pipelines.batch import Batch, Views
from ..schedules import Clock
from .bricks import noise
from .bricks.forward import forward_together
from .bricks.options import ThresholdOptions, but
from .thresholded import Thresholded

_NOISE = 0x4164614D  # keeps the interpolation's random numbers apart from everybody else's


class AdaMatch(Thresholded):
    """L = mean CE(y, z_x) + mu(t) lambda_u (1 / U) sum 1[max q >= tau c] CE(argmax q, z_s), q aligned, c = mean max p_x (weak view).

    mu(t) = 1/2 - cos(min(pi, 2 pi t / T)) / 2. Where the network has batch-norm, labelled logits are drawn between those of the joint
    forward and those of a forward of the labelled images alone, element by element (random logit interpolation). The defaults are the
    paper's; docs/methods.md lists those that make USB's.
    """

    @dataclass(frozen=True)
    class Config(ThresholdOptions):
        align: str = but(ThresholdOptions, "align", "predicted", "AdaMatch, section 3.2")
        align_memory: str = but(ThresholdOptions, "align_memory", "queue", "official code; USB: ema")
        threshold: float = option(
            0.9, "tau: threshold over the mean confidence of labelled images", source="paper 0.9; USB 0.95", least=0, most=1
        )
        strong_labelled: bool = option(True, "labelled images in a strong view too", source="paper; USB: false")
        interpolate: bool = option(True, "random logit interpolation (networks with batch-norm)", source="paper; USB: false")
        ramp: bool = option(True, "the unlabelled term's weight rises over the first half of the run", source="paper; USB: false")

    summary = "aligned pseudo-labels against a threshold relative to the confidence on labelled images"
    paper = "Berthelot et al. 2021, arXiv 2106.04732"
    views = Views(labelled=("weak", "strong"), unlabelled=("weak", "strong"), no_grad=1)

    @classmethod
    def views_of(cls, config: Any) -> Views:
        return Views(("weak", "strong") if config.strong_labelled else ("weak",), ("weak", "strong"), no_grad=1)

    @property
    def interpolates(self) -> bool:
        return self.config.interpolate and self.network.has_batchnorm

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        labelled, unlabelled = super().outputs(batch, clock)
        if not self.interpolates:
            return labelled, unlabelled
        alone = forward_together(self.network, list(batch.labelled), "batch")
        mixed = []
        for number, (joint, single) in enumerate(zip(labelled, alone, strict=True)):
            share = self.noise(joint.logits, number, batch.index, clock)
            mixed.append(Output(joint.logits + (single.logits - joint.logits) * share, joint.features))
        return mixed, unlabelled

    def noise(self, logits: Tensor, view: int, index: Tensor, clock: Clock) -> Tensor:
        """Uniform numbers in [0, 1) of the shape of `logits`, keyed by (seed, step, view, sample, class)."""
        return noise.uniform(noise.stream(keyed.key(_NOISE, view), clock), index, logits.shape[1]).to(logits.dtype)

    def standard(self, teacher: Tensor, known: Tensor, batch: Batch, clock: Clock) -> tuple[dict[str, Any], dict[str, Tensor]]:
        options, memory = self.aligned(teacher, known)
        threshold = self.config.threshold * class_statistics(known).confidence_mean
        return {"threshold": threshold, **options}, memory

    def weight(self, clock: Clock) -> float | Tensor:
        if not self.config.ramp:
            return self.config.lambda_u
        angle = (2 * math.pi / clock.total * clock.step.to(torch.float32)).clamp(max=math.pi)
        return self.config.lambda_u * (0.5 - 0.5 * torch.cos(angle))
