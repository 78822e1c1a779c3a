"""Pseudo-Label (Lee 2013): the class that the network now holds likeliest is the label of the image that it was shown."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import option
from ..models import Output
from ..pipelines.batch import Batch, Views
from ..schedules import Clock
from .bricks.forward import forward_together
from .bricks.options import ThresholdOptions, but
from .bricks.ramps import ramp
from .thresholded import Thresholded


class PseudoLabel(Thresholded):
    """L = mean CE(y, z_x) + alpha(t) (1 / U) sum 1[max p_u >= tau] CE(argmax p_u, z_u), one view of u for both (Lee, equations 15 and 16).

    alpha(t) = lambda_u clip((t / T - ramp_start) / ramp_share, 0, 1): nothing before T1, all of it from T2 on. The label carries no
    gradient.
    """

    @dataclass(frozen=True)
    class Config(ThresholdOptions):
        lambda_u: float = but(ThresholdOptions, "lambda_u", 3.0, "Lee, section 3.1: 3; TorchSSL and USB: 1")
        threshold: float = option(
            0.0,
            "tau: confidence from which a pseudo-label is used; 0 uses all",
            source="Lee: none; TorchSSL and USB: 0.95",
            least=0,
            most=1,
        )
        ramp_start: float = option(
            1 / 6,
            "T1: share of the run before which pseudo-labels do not count",
            source="Lee: 100 of 600 epochs; TorchSSL, USB: 0",
            least=0,
            most=1,
        )
        ramp_share: float = option(
            5 / 6,
            "T2 - T1: share of the run over which their weight rises",
            source="Lee: 500 of 600 epochs; TorchSSL, USB: 0.4",
            least=0,
            most=1,
        )

    summary = "the likeliest class of an unlabelled image is its label for this step"
    paper = "Lee 2013, ICML workshop on challenges in representation learning"
    views = Views(labelled=("weak",), unlabelled=("weak",))
    whole = 2  # of `outputs`: an image that labels itself is not mixed

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        labelled = forward_together(self.network, list(batch.labelled))
        (seen,) = (forward_together(self.network, [view], "batch")[0] for view in batch.unlabelled)
        return labelled, [seen, seen]  # teacher and student

    def weight(self, clock: Clock) -> float | Tensor:
        start, share = self.config.ramp_start, self.config.ramp_share
        if share == 0:
            return self.config.lambda_u * (clock.step >= start * clock.total).to(torch.float32)
        return self.config.lambda_u * ramp(clock, "linear", share, start=start)
