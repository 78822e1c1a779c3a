"""The consistency methods on CIFAR and SVHN: Pi-model, Temporal Ensembling, Mean Teacher, ICT.

Two kinds of setting. TorchSSL's are FixMatch's (presets/fixmatch.py) with as many unlabelled images as labelled ones, for the Pi-model and
Mean Teacher alike. The papers' own train networks that are not here; a wide residual network stands in for them, so that their numbers say
what was reached, not what to expect of it. Only numbers that were read in a paper's abstract, an official repository or a result file are
listed: the Pi-model's own paper has none among them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from . import fixmatch
from .preset import Preset, Published, error

TORCHSSL = "TorchSSL, Zhang et al. 2021, arXiv 2110.08263, results table of its code: best checkpoint; recipe: its configuration files"
LAINE = "Laine & Aila 2017, arXiv 1610.02242, results tables; recipe: the paper and its code"
TARVAINEN = "Tarvainen & Valpola 2017, arXiv 1703.01780, table of the residual network; recipe: the official code"
VERMA = "Verma et al. 2019, arXiv 1903.03825, results tables; recipe: the official code"
BEST = "accuracy here is the last step's; the table has the best of all evaluations on the test set"
_SEEDS = "deviations are not in our sources"
_CNN = "WRN-28-2 in place of the 13-layer network, and no ZCA whitening"
_HALVES = "U images of a step are all unlabelled ones in turn, the labelled ones among them"

CIFAR, SVHN = 50_000, 73_257  # training images
STREAMS = {"reduction": "streams", "labels_share": False, "ramp": "linear", "ramp_share": 0.4}
TORCHSSL_OPTIONS: dict[str, dict[str, Any]] = {
    "pi_model": {**STREAMS, "lambda_u": 10.0, "gradient": "one"},
    "mean_teacher": {**STREAMS, "lambda_u": 50.0},
}


def torchssl(method: str, labels: int) -> dict[str, Any]:
    """TorchSSL's CIFAR-10 setting: 2**20 steps of 64 + 64 images, decay 0.999. `method`: one of TORCHSSL_OPTIONS."""
    setting = {key: value for key, value in fixmatch.recipe("cifar10", labels).items() if not key.startswith("method.")}
    options = {f"method.{key}": value for key, value in TORCHSSL_OPTIONS[method].items()}
    return {**setting, "method.name": method, **options, "data.policy": "usb", "train.ratio": 1}


def own(method: str, data: str, labels: int, options: dict[str, Any], train: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A paper's own setting, its method options and its training options without their sections' names; `more`: dotted keys."""
    return {
        "method.name": method,
        **{f"method.{key}": value for key, value in options.items()},
        "model.name": "wrn-28-2",
        "model.tune": "full",
        "model.head": "linear",
        "model.batchnorm_momentum": 0.1,
        "data.name": data,
        "data.labels_total": labels,
        "data.sampling": "balanced",
        "data.policy": "fixmatch",
        **{f"train.{key}": value for key, value in train.items()},
        "train.decay_all": False,
        "train.amp": "off",
        **more,
    }


def ensembling(data: str, labels: int, batch: tuple[int, int], images: int, rate: float) -> dict[str, Any]:
    """Laine and Aila's: 300 epochs of batches of 100, Adam without decay. `batch`: labelled images a step, unlabelled ones for each."""
    options = {"lambda_u": 30.0, "labels_share": True, "momentum": 0.6, "ramp": "gauss", "ramp_share": 80 / 300, "noise": 0.15}
    epoch = -(-images // 100)
    train = {"steps": 300 * epoch, "batch_size": batch[0], "ratio": batch[1], "optimizer": "adamw", "lr": rate, "weight_decay": 0.0}
    train |= {"schedule": "cosine", "warmup": 80 * epoch, "ema": 0.0}
    return own("temporal_ensembling", data, labels, options, train, **{"model.dropout": 0.5})


def two_heads() -> dict[str, Any]:
    """Tarvainen and Valpola's residual recipe: four times 31 + 97 images a step, 180 epochs of the 46,000 images without labels."""
    options = {"lambda_u": 100.0, "labels_share": False, "ramp": "gauss", "ramp_share": 5 / 180, "cost": "mse"}
    options |= {"two_heads": True, "logit_distance": 0.01}
    train = {"steps": 180 * (46_000 // 388), "batch_size": 124, "ratio": 3, "optimizer": "sgd", "lr": 0.2, "momentum": 0.9}
    train |= {"nesterov": True, "weight_decay": 2e-4, "schedule": "cosine", "warmup": 0, "ema": 0.97}
    return own("mean_teacher", "cifar10", 4000, options, train)


def interpolation(data: str, labels: int, alpha: float, images: int) -> dict[str, Any]:
    """Verma et al.'s: 400 epochs of 100 + 100 images."""
    options = {"lambda_u": 100.0, "ramp": "gauss", "ramp_share": 0.25, "mixup": alpha, "target": "logits", "mix_labelled": True}
    train = {"steps": 400 * (images // 100), "batch_size": 100, "ratio": 1, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9}
    train |= {"nesterov": True, "weight_decay": 1e-4, "schedule": "cosine", "warmup": 0, "ema": 0.999}
    return own("ict", data, labels, options, train)


def _torchssl(method: str, labels: int, accuracy: float) -> Preset:
    values = partial(torchssl, method, labels)
    return Preset(f"{method}_cifar10_{labels}", method, values, {method: Published(accuracy)}, TORCHSSL, (BEST, _SEEDS))


_RATES = (
    "Adam's first moment is 0.9 throughout, where the paper lowers it to 0.5; the rate rises in a line and falls by a cosine, where it has "
    "exp(-5 (1 - u)^2) over 80 epochs and exp(-12.5 t^2) over the last 50"
)
_BATCH = "{} labelled and {} unlabelled images a step, near the share that a mixed batch of 100 has of them"
_MIRROR = "both streams draw images by themselves, where the paper draws one batch from everything"


def _ensembling(data: str, labels: int, percent: float, batch: tuple[int, int], images: int, rate: float) -> Preset:
    notes = (_CNN, _BATCH.format(batch[0], batch[0] * batch[1]), _MIRROR, _RATES, "weight normalisation is not here")
    values = partial(ensembling, data, labels, batch, images, rate)
    name = f"temporal_ensembling_{data}_{labels}"
    return Preset(name, "temporal_ensembling", values, {"temporal_ensembling": error(percent)}, LAINE, notes)


_GUESSED = "an epoch is taken to be all training images once, momentum to be 0.9 with Nesterov: our sources do not say"
_ICT = "the cosine ends with the run, at 0; the code's would end after 450 of 400 epochs"


def _interpolation(data: str, labels: int, percent: float, alpha: float, images: int, network: str) -> Preset:
    notes = (network, _ICT, _HALVES, _GUESSED)
    values = partial(interpolation, data, labels, alpha, images)
    return Preset(f"ict_{data}_{labels}", "ict", values, {"ict": error(percent)}, VERMA, notes)


_SAME = "the number is WRN-28-2's; no ZCA whitening here"
_TWO_HEADS = (
    "WRN-28-2 in place of the shake-shake network of 26 layers",
    "124 + 372 images on one device in place of four times 31 + 97, so that batch statistics are of all of them",
    "the cosine ends with the run, at 0; the code's would end after 210 of 180 epochs",
    _HALVES,
)

PRESETS = (
    *(_torchssl("pi_model", n, accuracy) for n, accuracy in ((40, 25.66), (250, 53.76), (4000, 86.87))),
    *(_torchssl("mean_teacher", n, accuracy) for n, accuracy in ((40, 29.91), (250, 62.54), (4000, 91.90))),
    Preset("mean_teacher_two_heads_cifar10_4000", "mean_teacher", two_heads, {"mean_teacher": error(6.28, 0.15)}, TARVAINEN, _TWO_HEADS),
    _ensembling("cifar10", 4000, 12.16, (8, 12), CIFAR, 3e-3),
    _ensembling("cifar100", 10000, 38.65, (20, 4), CIFAR, 3e-3),
    _ensembling("svhn", 500, 5.12, (1, 99), SVHN, 1e-3),
    _interpolation("cifar10", 1000, 15.48, 1.0, CIFAR, _CNN),
    _interpolation("cifar10", 2000, 9.26, 1.0, CIFAR, _CNN),
    _interpolation("cifar10", 4000, 7.66, 1.0, CIFAR, _SAME),
    _interpolation("svhn", 1000, 3.53, 0.1, SVHN, "the number is WRN-28-2's"),
)
