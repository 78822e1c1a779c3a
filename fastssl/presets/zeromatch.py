"""ZeroMatch (arXiv 2502.12584): USB's transformers, first distilled on a foundation model's labels, then trained with an auxiliary head.

Recipe: the official code. Numbers: the paper's, with GPT-4.1's labels, quoted second-hand. The labels are the user's to bring.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from . import usb
from .preset import Preset, Published

SOURCE = "ZeroMatch 2025, arXiv 2502.12584, results table, labels of GPT-4.1 (second-hand, deviations not found); recipe: the official code"
METHODS = ("zeromatch", "adamatch", "zero_shot", "pseudo_supervision", "pl_feature")
NOTES = (
    "give the foundation model's labels by --foundation-labels FILE (fastssl pseudolabel writes CLIP's); the numbers are with GPT-4.1's",
    "half of the steps are stage 1's: give a baseline by --method half of them (--steps); the table's adamatch is USB's (docs/methods.md)",
    "stage 1 takes all of its steps; the code keeps the weights that agree best with the labels, and stops early above 99.99 %",
    "accuracy here is the last step's; the code reports the best of all evaluations on the test set",
)
_LARGE_NOTE = "the code starts from USB's own ImageNet-1k weights; without --weights these are timm's"


def recipe(data: str, labels: int, network: dict[str, Any], *, steps: int, lr: float, layer_decay: float, warmup: int) -> dict[str, Any]:
    """The published setting with `labels` labels in all and `steps` steps a stage, B = 16, mu = 1; `network` holds dotted keys."""
    setting = {key: value for key, value in usb.recipe(data, labels, {}, lr, layer_decay).items() if not key.startswith("method.")}
    return {
        "method.name": "zeromatch",
        "method.inner": "adamatch",
        "method.distil_share": 0.5,
        "method.auxiliary": "linear",
        "method.annealing": "linear",
        "method.lambda_p": 1.0,
        **setting,
        **network,
        "train.steps": 2 * steps,
        "train.batch_size": 16,
        "train.warmup": warmup,
    }


# ViT-S/16 on photographs: weak views are cut out of 256 pixels, strong ones are random parts of the picture.
LARGE = {"model.name": "timm:vit_small_patch16_224", "data.resize": 256, "data.policy": "usb_224"}


def _preset(data: str, labels: int, network: dict[str, Any], note: str, *accuracies: float | None, **options: Any) -> Preset:
    published = {name: Published(value) for name, value in zip(METHODS, accuracies, strict=True) if value is not None}
    values = partial(recipe, data, labels, network, **options)
    return Preset(f"zeromatch_{data}_{labels}", "zeromatch", values, published, SOURCE, (note, *NOTES))


_CIFAR = {"steps": 204_800, "lr": 5e-4, "layer_decay": 0.5, "warmup": 5120}
_FLOWERS = {"steps": 102_400, "lr": 1e-4, "layer_decay": 0.65, "warmup": 2560}

# Accuracies in the order of METHODS; None where our sources have none.
PRESETS = (
    _preset("cifar100", 100, usb.SMALL, usb.SMALL_NOTE, 88.01, 71.43, 83.25, 84.84, 72.81, **_CIFAR),
    _preset("flowers102", 204, LARGE, _LARGE_NOTE, 95.17, 86.71, 88.37, 85.40, None, **_FLOWERS),
)
