"""Zero-shot: nothing is trained. The accuracy that a foundation model has before any label is seen; a baseline of ZeroMatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec, Views
from ..schedules import Clock
from .base import Method, Stage, Terms
from .bricks.foundation import GivenLabels

SURE = 30.0  # logit of a given label: probability 1 to fp32's rounding


class ZeroShot(Method):
    """The network's head from its class names, as it is; or, where foundation labels are given, these labels themselves.

    A row without a given label is left to the network.
    """

    @dataclass(frozen=True)
    class Config:
        pass

    summary = "no training: class names as classifier, or a foundation model's labels as they are"
    paper = "baseline of arXiv 2502.12584"
    views = Views(labelled=(), unlabelled=())
    trains_nothing = True
    judges_rows = True

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **{**options, "ema": 0.0})
        self.given = GivenLabels(spec)

    def stage(self, k: int, steps: int) -> Stage | None:
        return None

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        raise NotImplementedError("zero_shot trains nothing")

    def finish(self, logits: Tensor, index: Tensor) -> Tensor:
        label, weight = (t.to(logits.device) for t in self.given.of(index.to(self.given.label.device)))
        own = SURE * torch.nn.functional.one_hot(label, logits.shape[1]).to(logits.dtype)
        return torch.where((weight > 0)[:, None], own, logits)
