"""Options that methods share, so that one command composes them: weighting, alignment, logit adjustment."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ...config import option

WEIGHTINGS = ("step", "smooth", "sigmoid", "confidence", "none")


@dataclass(frozen=True)
class MethodOptions:
    """Of every method that trains."""

    entropy_min: float = option(
        0.0,
        "weight of the mean entropy of predictions on the unlabelled images (their first view), which training then makes small; 0 is off",
        source="Grandvalet & Bengio 2004; VAT's code: 1",
        least=0,
    )
    ctaugment: bool = option(
        False,
        "learn the rates of CTAugment, by which strong views are drawn, from a probe view of each labelled image; needs --policy ctaugment",
        source="ReMixMatch, section 3.2.2; FixMatch, appendix D",
    )
    mixup: float = option(
        0.0,
        "alpha of MixUp: labelled images are mixed with each other by a share from Beta(alpha, alpha), and so are the unlabelled views "
        "that train; 0 is off",
        source="Zhang et al. 2018, arXiv 1710.09412",
        least=0,
    )


@dataclass(frozen=True)
class UnlabelledOptions(MethodOptions):
    """Of every method that trains strong views by hard pseudo-labels of weak ones."""

    lambda_u: float = option(1.0, "weight of the unlabelled term", source="FixMatch, section 2.4", least=0)
    align: str = option(
        "none",
        "distribution alignment: predictions times target marginal over their own running marginal; the target is uniform, the shares of "
        "the labelled classes (labelled), or the running marginal of predictions on labelled images (predicted)",
        source="ReMixMatch; AdaMatch",
        choices=("none", "uniform", "labelled", "predicted"),
    )
    align_memory: str = option(
        "ema", "running marginal of predictions: an average by align_decay (USB), or of the last 128 batches", choices=("ema", "queue")
    )
    align_decay: float = option(
        0.999,
        "decay of alignment's running averages; a run of some hundred steps wants less",
        source="AdaMatch, USB: 0.999",
        least=0,
        most=1,
    )
    logit_adjustment: float = option(
        0.0,
        "tau: in the labelled term logits get tau times the log share of each labelled class, for long-tailed labels; 0 is off",
        source="Menon et al. 2021, eq. 10; consistent at 1",
        least=0,
    )


@dataclass(frozen=True)
class ThresholdOptions(UnlabelledOptions):
    """Of every method whose pseudo-labels pass a threshold t: how a row of confidence c weighs."""

    weighting: str = option(
        "step",
        "weight of a pseudo-label: 1 from t on (step), ((c - t) / (1 - t)) ** power (smooth), an S from 0 at t to 1 at 1 (sigmoid), c from "
        "t on (confidence), or 1 (none)",
        source="step: FixMatch; smooth: arXiv 2405.14313, eq. 21",
        choices=WEIGHTINGS,
    )
    power: float = option(1.0, "exponent of the smooth weighting", source="arXiv 2405.14313: 1 best, 2 and 1/2 tried", above=0)


def but(kind: type, name: str, default: Any, source: str = "") -> Any:
    """The option `name` of another options class with another default, for a method that sets it otherwise."""
    about = {f.name: f for f in dataclasses.fields(kind)}[name].metadata
    return dataclasses.field(default=default, metadata={**about, "source": source or about["source"]})
