"""What methods share that make predictions agree: the term's weight over the run, by what sums are divided, noise on images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config import option
from ...models import Network
from ...pipelines import keyed
from ...pipelines.batch import DataSpec
from ...schedules import Clock
from . import noise
from .mixing import continuous
from .options import MethodOptions
from .ramps import RAMPS, ramp

_NOISE = 0x4E6F69  # keeps this noise's random numbers apart from everybody else's
LABELLED, UNLABELLED = 0, 1  # whose noise it is


@dataclass(frozen=True)
class RampOptions(MethodOptions):
    """Of every method whose unlabelled term rises over the run."""

    lambda_u: float = option(100.0, "w_max: weight of the consistency term at the ramp's end", source="Laine & Aila 2017", least=0)
    ramp: str = option(
        "gauss",
        "the weight's way up, u being the part of the ramp that is over: exp(-5 (1 - u)^2) (gauss), u (linear), or at once (none)",
        source="Laine & Aila 2017: gauss; TorchSSL, USB: linear",
        choices=RAMPS,
    )
    ramp_share: float = option(
        80 / 300, "length of the ramp, as a share of the run", source="Laine & Aila 2017: 80 of 300 epochs", least=0, most=1
    )


@dataclass(frozen=True)
class ConsistencyOptions(RampOptions):
    """Of the methods that compare two predictions of the same image."""

    labels_share: bool = option(
        True,
        "multiply that weight by M / N, labelled images over all training images",
        source="Laine & Aila 2017; Mean Teacher's CIFAR network; USB: false",
    )
    reduction: str = option(
        "batch",
        "both sums over the whole batch, labelled rows in the consistency term too (batch); or cross-entropy over labelled rows and "
        "consistency over unlabelled ones, in passes of their own (streams)",
        source="batch: Laine & Aila 2017, Mean Teacher; streams: TorchSSL, USB",
        choices=("batch", "streams"),
    )
    noise: float = option(
        0.0, "standard deviation of Gaussian noise on normalised images, or on word embeddings", source="Laine & Aila 2017: 0.15", least=0
    )


def consistency_weight(config: RampOptions, clock: Clock) -> Tensor | float:
    """Weight of the consistency term in the step under way, `labels_share` apart."""
    return config.lambda_u * ramp(clock, config.ramp, config.ramp_share)


def share_of_labels(config: Any, spec: DataSpec) -> float:
    """M / N where it is asked for, else 1: labelled rows over those that the unlabelled stream draws from, the labelled ones among them."""
    return min(1.0, sum(spec.labelled_counts) / max(1, spec.unlabelled)) if config.labels_share else 1.0


def reduced(supervised: Tensor, unsupervised: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """The two terms of rows [B] of cross-entropy and rows of consistency: [B + U] under "batch", whose sums are both divided by B + U;
    [U] under "streams", means of their own."""
    if reduction == "streams":
        return supervised.mean(), unsupervised.mean()
    return supervised.sum() / len(unsupervised), unsupervised.mean()


def noisy(
    views: tuple[Tensor, ...], index: Tensor, deviation: float, clock: Clock, *, use: int, network: Network | None = None
) -> list[Tensor]:
    """Views [n, ...] with Gaussian noise, keyed by (seed, step, use, view, row); as they are where `deviation` is 0.

    Args:
        index: [n] int64 rows of the data set.
        use: LABELLED or UNLABELLED.
        network: embeds texts, whose word embeddings get the noise.
    """
    if deviation == 0:
        return list(views)
    streams = [noise.stream(keyed.key(_NOISE, use, number), clock) for number in range(len(views))]
    moved = []
    for view, key in zip(views, streams, strict=True):
        view = continuous(network, view)
        r = deviation * noise.normal(key, index, tuple(view.shape[1:]), view.dtype)
        moved.append(view + r if network is None else network.moved(view, r))
    return moved


def probabilities(logits: Tensor) -> Tensor:
    """[n, C] logits -> [n, C] softmax in float32, or float64 of float64."""
    return logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32).softmax(1)
