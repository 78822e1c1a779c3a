"""UDA on CIFAR with wide residual networks: the official code's image setting, and TorchSSL's.

Both train FixMatch's setting (presets/fixmatch.py) by sharpened targets, T = 0.4, tau = 0.8, and release all labels at once. Where the
official README has a number its recipe is the preset's; the others are TorchSSL's, and no preset mixes the two.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from . import classic, fixmatch
from .preset import Preset, error

OFFICIAL = "Xie et al. 2020, arXiv 1904.12848, results table of the official README; recipe: its script for images"
OPTIONS = {"threshold": 0.8, "temperature": 0.4, "tsa": "none", "lambda_u": 1.0}
_POLICY = (
    "the strong view is FixMatch's RandAugment with cutout, drawn anew for each batch; the official code draws from AutoAugment-style "
    "policies and makes 100 copies of each image beforehand"
)
_LAST = "accuracy here is the last step's; which checkpoint the README's numbers are of is not stated in our sources"
_TEMPERATURE = "T is TorchSSL's file's, 0.4; the FlexMatch paper's appendix prints 0.5"


def recipe(data: str, labels: int, **changed: Any) -> dict[str, Any]:
    """FixMatch's setting with UDA's options. `changed`: `network`, `weight_decay` as of `fixmatch.recipe`, and dotted keys over it."""
    about = {key: changed.pop(key) for key in ("network", "weight_decay") if key in changed}
    setting = {key: value for key, value in fixmatch.recipe(data, labels, **about).items() if not key.startswith("method.")}
    return {"method.name": "uda", **{f"method.{key}": value for key, value in OPTIONS.items()}, **setting, **changed}


def _official(labels: int, percent: float, deviation: float) -> Preset:
    own = {"train.steps": 500_000, "train.ema": 0.9999, "train.decay_all": True}
    values = partial(recipe, "cifar10", labels, **own)
    return Preset(f"uda_cifar10_{labels}", "uda", values, {"uda": error(percent, deviation)}, OFFICIAL, (_POLICY, _LAST))


def _torchssl(data: str, labels: int, percent: float, deviation: float) -> Preset:
    network = classic.WIDE if data == "cifar100" else {}
    values = partial(recipe, data, labels, **network, **{"data.policy": "usb"})
    notes = (_TEMPERATURE, classic.BEST)
    return Preset(f"uda_{data}_{labels}", "uda", values, {"uda": error(percent, deviation)}, classic.TORCHSSL, notes)


PRESETS = (
    _official(250, 5.43, 0.96),
    _official(4000, 4.32, 0.08),
    _torchssl("cifar10", 40, 10.62, 3.75),
    _torchssl("cifar100", 400, 46.39, 1.59),
    _torchssl("cifar100", 2500, 27.73, 0.21),
    _torchssl("cifar100", 10000, 22.49, 0.23),
)
