"""Settings on texts: USB's BERT (arXiv 2208.07204) and ZeroMatch's (arXiv 2502.12584). The tables are the user's to bring.

Recipe: the configuration files of microsoft/Semi-supervised-learning and ZeroMatch's official code. Numbers: their tables, USB's as error
rates. Strong views are back-translations, columns text_aug_0 and text_aug_1 of the table.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .preset import Preset, Published, error

USB = "USB, Wang et al. 2022, arXiv 2208.07204, results table of its texts: 3 seeds; recipe: config/usb_nlp"
ZEROMATCH = (
    "ZeroMatch 2025, arXiv 2502.12584, results table, labels of GPT-4o (second-hand, deviations not found); recipe: the official code"
)
METHODS = ("supervised", "fixmatch", "flexmatch", "softmatch", "adamatch", "freematch", "comatch", "simmatch")
NOTES = (
    "give the table by --data, with two back-translations of each text in its columns text_aug_0 and text_aug_1, or take --policy tfidf",
    "the authors' head has a hidden layer of 768 and GELU; this one is linear, behind a dropout of 0.1",
    "accuracy here is the last step's; USB tests the checkpoint that was best on a development set",
)
NETWORK = {
    "model.name": "transformers:google-bert/bert-base-uncased",
    "model.tune": "full",
    "model.head": "linear",
    "model.dropout": 0.1,
}


def recipe(data: str, labels: int, lr: float, layer_decay: float) -> dict[str, Any]:
    """USB's setting with `labels` labels in all."""
    return {
        "method.name": "fixmatch",
        "method.threshold": 0.95,
        "method.lambda_u": 1.0,
        **NETWORK,
        "data.name": data,
        "data.labels_total": labels,
        "data.sampling": "balanced",
        "data.policy": "back_translation",
        "data.max_length": 512,
        "train.steps": 102_400,
        "train.batch_size": 8,
        "train.ratio": 1,
        "train.optimizer": "adamw",
        "train.lr": lr,
        "train.layer_decay": layer_decay,
        "train.weight_decay": 5e-4,
        "train.decay_all": False,
        "train.schedule": "fixmatch",
        "train.warmup": 5120,
        "train.ema": 0.0,
        "train.amp": "off",
    }


def zeromatch(data: str, labels: int, lr: float, layer_decay: float) -> dict[str, Any]:
    """ZeroMatch's setting: USB's with batches of 4 and another weight decay, 102,400 steps a stage."""
    setting = {key: value for key, value in recipe(data, labels, lr, layer_decay).items() if not key.startswith("method.")}
    own = {"method.inner": "adamatch", "method.distil_share": 0.5, "method.auxiliary": "mlp", "method.annealing": "linear"}
    return {
        "method.name": "zeromatch",
        **own,
        "method.lambda_p": 1.0,
        **setting,
        "train.steps": 204_800,
        "train.batch_size": 4,
        "train.weight_decay": 1e-4,
    }


def _usb(data: str, labels: int, lr: float, layer_decay: float, *errors: float) -> Preset:
    published = {method: error(percent) for method, percent in zip(METHODS, errors, strict=True)}
    return Preset(f"usb_{data}_{labels}", "fixmatch", partial(recipe, f"{data}.csv", labels, lr, layer_decay), published, USB, NOTES)


def _zeromatch(data: str, labels: int, lr: float, layer_decay: float, *accuracies: float) -> Preset:
    methods = ("zeromatch", "adamatch", "zero_shot", "pseudo_supervision")
    published = {method: Published(value) for method, value in zip(methods, accuracies, strict=True)}
    notes = (
        "give the foundation model's labels by --foundation-labels FILE; without one they are zero-shot by the run's own encoder",
        *NOTES,
    )
    return Preset(
        f"zeromatch_{data}_{labels}", "zeromatch", partial(zeromatch, f"{data}.csv", labels, lr, layer_decay), published, ZEROMATCH, notes
    )


# Errors in the order of METHODS.
PRESETS = (
    _usb("ag_news", 40, 5e-5, 0.65, 15.06, 30.17, 16.38, 11.90, 11.73, 12.98, 11.95, 14.26),
    _usb("imdb", 20, 5e-5, 0.75, 20.31, 7.72, 7.82, 7.76, 8.09, 8.94, 7.44, 7.93),
    _usb("yahoo", 500, 1e-4, 0.65, 37.43, 33.03, 35.61, 33.07, 32.75, 32.77, 33.48, 33.06),
    _zeromatch("ag_news", 40, 5e-5, 0.65, 88.70, 85.21, 86.25, 86.33),
    _zeromatch("amazon", 250, 1e-5, 0.75, 59.82, 52.39, 59.14, 56.65),
)
