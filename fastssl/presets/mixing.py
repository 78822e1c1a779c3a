"""MixMatch (Berthelot et al., NeurIPS 2019, arXiv 1905.02249) and ReMixMatch (ICLR 2020, arXiv 1911.09785): wide networks from scratch.

Recipe: the official codes and their run scripts. Numbers: the papers' results tables, as error rates; our sources quote no deviation.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .preset import Preset, Published, error

MIXMATCH = "Berthelot et al. 2019, arXiv 1905.02249, results table (quoted second-hand, deviations not found); recipe: the official code"
REMIXMATCH = "Berthelot et al. 2020, arXiv 1911.09785, results table (quoted second-hand, deviations not found); recipe: the official code"
BY_FIXMATCH = (
    "Sohn et al. 2020, arXiv 2001.07685, table 2, ReMixMatch: median of the last 20 checkpoints, 5 folds; recipe: ReMixMatch's code"
)
NOTES = (
    "accuracy here is the last step's; the papers report the median of the last 20 checkpoints",
    "images are normalised by the set's constants; the code scales them to [-1, 1]",
    "the code shrinks kernels by 1 - 0.02 lr after Adam's step; AdamW, by the same factor before it",
)
_MIXMATCH = ("the code's unlabelled images are those that are not labelled; here labelled ones are among them too, without their labels",)
_RATES = ("the code's strong views come from rates some batches old; here each batch's from the last step's",)


def recipe(method: str, data: str, labels: int, options: dict[str, Any]) -> dict[str, Any]:
    """The published setting with `labels` labels in all, as many of each class, B = 64, as many unlabelled images."""
    return {
        "method.name": method,
        **{f"method.{key}": value for key, value in options.items()},
        "model.name": "wrn-28-2",
        "model.tune": "full",
        "model.head": "linear",
        "model.batchnorm_momentum": 0.001,
        "data.name": data,
        "data.labels_total": labels,
        "data.sampling": "balanced",
        "data.policy": "ctaugment" if method == "remixmatch" else "fixmatch",
        "train.steps": 2**20,
        "train.batch_size": 64,
        "train.ratio": 1,
        "train.optimizer": "adamw",
        "train.lr": 2e-3,
        "train.weight_decay": 0.02,
        "train.decay_all": False,
        "train.schedule": "constant",
        "train.warmup": 0,
        "train.ema": 0.999,
        "train.amp": "off",
    }


MIX = {"temperature": 0.5, "mixup": 0.75, "share_by": "sample", "forward": "interleaved", "ramp_share": 1 / 64}
GUESSED = {**MIX, "guesses": 2, "lambda_u": 75.0}
ANCHORED = {
    **MIX,
    "ctaugment": True,
    "strong_labelled": True,
    "strong_views": 8,
    "align": "labelled",
    "align_memory": "queue",
    "lambda_u": 1.5,
    "lambda_strong": 0.5,
    "lambda_rotation": 0.5,
    "rotation": "quarters",
}
FEW = {**ANCHORED, "strong_views": 1, "lambda_rotation": 2.0, "ramp_share": 1 / 8}  # of the run scripts with 40 labels


def _preset(method: str, data: str, labels: int, result: Published, source: str, notes: tuple[str, ...], options: dict[str, Any]) -> Preset:
    values = partial(recipe, method, data, labels, options)
    return Preset(f"{method}_{data}_{labels}", method, values, {method: result}, source, (*notes, *NOTES))


PRESETS = (
    _preset("mixmatch", "cifar10", 250, error(11.08), MIXMATCH, _MIXMATCH, GUESSED),
    _preset("mixmatch", "cifar10", 4000, error(6.24), MIXMATCH, _MIXMATCH, GUESSED),
    _preset("remixmatch", "cifar10", 40, error(19.10, 9.64), BY_FIXMATCH, _RATES, FEW),
    _preset("remixmatch", "cifar10", 250, error(6.27), REMIXMATCH, _RATES, ANCHORED),
    _preset("remixmatch", "cifar10", 4000, error(5.14), REMIXMATCH, _RATES, ANCHORED),
    _preset("remixmatch", "svhn", 1000, Published(97.17), REMIXMATCH, _RATES, ANCHORED),
)
