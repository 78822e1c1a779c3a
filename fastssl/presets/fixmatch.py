"""FixMatch (Sohn et al., NeurIPS 2020, arXiv 2001.07685): wide residual networks from scratch, 2**20 steps, RandAugment.

Recipe: the paper's section 2.4 and appendix, and the official code. Numbers: the paper's table 2, FixMatch (RA), as error rates.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .preset import Preset, error

SOURCE = "Sohn et al. 2020, arXiv 2001.07685, table 2, FixMatch (RA): median of the last 20 checkpoints, 5 folds"
NOTES = (
    "accuracy here is the last step's; the paper reports the median of the last 20 checkpoints",
    "the strong view is the PyTorch port's RandAugment (docs/methods.md), whose levels differ from the TensorFlow code's",
    "images are normalised by the set's constants; the code scales them to [-1, 1]",
)


def recipe(data: str, labels: int, *, network: str = "wrn-28-2", weight_decay: float = 5e-4) -> dict[str, Any]:
    """The published setting with `labels` labels in all, as many of each class, B = 64, mu = 7."""
    return {
        "method.name": "fixmatch",
        "method.threshold": 0.95,
        "method.lambda_u": 1.0,
        "model.name": network,
        "model.tune": "full",
        "model.head": "linear",
        "model.batchnorm_momentum": 0.001,
        "data.name": data,
        "data.labels_total": labels,
        "data.sampling": "balanced",
        "data.policy": "fixmatch",
        "train.steps": 2**20,
        "train.batch_size": 64,
        "train.ratio": 7,
        "train.optimizer": "sgd",
        "train.lr": 0.03,
        "train.momentum": 0.9,
        "train.nesterov": True,
        "train.weight_decay": weight_decay,
        "train.decay_all": False,
        "train.schedule": "fixmatch",
        "train.warmup": 0,
        "train.ema": 0.999,
        "train.amp": "off",
    }


def _preset(data: str, labels: int, percent: float, deviation: float, *notes: str, **options: Any) -> Preset:
    published = {"fixmatch": error(percent, deviation)}
    return Preset(f"fixmatch_{data}_{labels}", "fixmatch", partial(recipe, data, labels, **options), published, SOURCE, (*notes, *NOTES))


_WIDE = {"network": "wrn-28-8", "weight_decay": 1e-3}
_SVHN = "svhn's training part alone; --set data.extra=true adds the extra part (the official code has both, our sources do not say which)"
_STL10 = "labels are drawn by the seed, 100 a class; the paper takes the set's own folds of 1,000"

PRESETS = (
    _preset("cifar10", 40, 13.81, 3.37),
    _preset("cifar10", 250, 5.07, 0.65),
    _preset("cifar10", 4000, 4.26, 0.05),
    _preset("cifar100", 400, 48.85, 1.75, **_WIDE),
    _preset("cifar100", 2500, 28.29, 0.11, **_WIDE),
    _preset("cifar100", 10000, 22.60, 0.12, **_WIDE),
    _preset("svhn", 40, 3.96, 2.17, _SVHN),
    _preset("svhn", 250, 2.48, 0.38, _SVHN),
    _preset("svhn", 1000, 2.28, 0.11, _SVHN),
    _preset("stl10", 1000, 7.98, 1.50, _STL10, network="wrn-37-2"),
)
