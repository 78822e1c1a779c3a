"""FlexMatch (Zhang et al. 2021): a threshold a class, lower where fewer unlabelled samples have ever passed it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..config import option
from ..models import Network
from ..pipelines.batch import Batch, DataSpec
from ..schedules import Clock
from .base import Terms
from .bricks.last_labels import LastLabels
from .bricks.options import ThresholdOptions
from .thresholded import Thresholded

MAPPINGS = ("convex", "linear", "concave")


class FlexMatch(Thresholded):
    """FixMatch with threshold_c = tau M(beta_c), beta_c = sigma_c / max(max sigma, unlabelled samples without a label) (eqs. 5 to 11).

    sigma_c counts the unlabelled samples whose last prediction of confidence tau or more was class c, up to the step before.
    """

    @dataclass(frozen=True)
    class Config(ThresholdOptions):
        threshold: float = option(
            0.95, "tau: the largest threshold, and what a sample must pass to count", source="FlexMatch", least=0, most=1
        )
        mapping: str = option(
            "convex", "M: x / (2 - x) (convex), x (linear), or ln(x + 1) / ln 2 (concave)", source="FlexMatch, eq. 10", choices=MAPPINGS
        )
        threshold_warmup: bool = option(
            True, "samples that have no label yet count as a class of their own in the maximum", source="eq. 11"
        )

    summary = "FixMatch with thresholds that are lower for classes learned slowly"
    paper = "Zhang et al. 2021, arXiv 2110.08263"

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        self.learned = LastLabels(spec.rows, spec.num_classes, samples=spec.unlabelled)

    def thresholds(self) -> Tensor:
        """[C] thresholds of the step under way."""
        status = self.learned.shares() if self.config.threshold_warmup else self.learned.shares_of_classes()
        if self.config.mapping == "convex":
            status = status / (2 - status)
        elif self.config.mapping == "concave":
            status = status.log1p() / math.log(2)
        return self.config.threshold * status

    def standard(self, teacher: Tensor, known: Tensor, batch: Batch, clock: Clock) -> tuple[dict[str, Any], dict[str, Tensor]]:
        options, memory = self.aligned(teacher, known)
        return {"threshold": self.thresholds(), **options}, memory

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        super().remember(batch, terms, clock)
        sure = terms.memory["confidence"] >= self.config.threshold  # the fixed tau, not the class's own
        self.learned.update(batch.unlabelled_index, terms.memory["label"], sure)
