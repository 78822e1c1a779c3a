"""USB's vision-transformer settings (Wang et al., NeurIPS 2022, arXiv 2208.07204): pretrained transformers, 204,800 steps of 8 + 8 images.

Recipe: the configuration files of microsoft/Semi-supervised-learning. Numbers: its results table, as error rates over three seeds. The
settings are the same for every method; FixMatch is the one that a preset names.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .preset import Preset, error

SOURCE = "USB, Wang et al. 2022, arXiv 2208.07204, results/usb_cv.csv: best checkpoint, 3 seeds; recipe: config/usb_cv"
NOTES = (
    "accuracy here is the last step's; USB reports the best of all evaluations on the test set",
    "USB's released files for SimMatch average three projection heads (EPASS), not built here; if its table was made so is not stated",
)
SMALL_NOTE = (
    "USB starts from its own ImageNet-1k weights for patches of 2 pixels; without --weights these are timm's, resampled from 16 pixels"
)
_EUROSAT = "USB also mirrors EuroSAT top to bottom"
METHODS = ("supervised", "fixmatch", "flexmatch", "adamatch", "freematch", "softmatch", "simmatch")


def recipe(data: str, labels: int, network: dict[str, Any], lr: float, layer_decay: float) -> dict[str, Any]:
    """The published setting with `labels` labels in all; `network` holds dotted keys."""
    return {
        "method.name": "fixmatch",
        "method.threshold": 0.95,
        "method.lambda_u": 1.0,
        **network,
        # USB's ViT-S/2 and ViT-B/16 (semilearn/nets/vit); its ViT-Ti/2, which no set here takes, has 0.1.
        "model.drop_path": 0.2,
        "model.normalise": "data",
        "model.tune": "full",
        "model.head": "linear",
        "data.name": data,
        "data.labels_total": labels,
        "data.sampling": "balanced",
        "data.interpolation": "bilinear",
        "data.policy": "usb",
        "train.steps": 204_800,
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


SMALL = {"model.name": "timm:vit_small_patch16_224", "model.img_size": 32, "model.patch_size": 2}
BASE = {"model.name": "timm:vit_base_patch16_224.mae", "model.img_size": 96}  # USB's: MAE's weights, brought to 96 pixels
# set -> network, learning rate, its factor from a block to the one before, notes
SETTINGS: dict[str, tuple[dict[str, Any], float, float, tuple[str, ...]]] = {
    "cifar100": (SMALL, 5e-4, 0.5, (SMALL_NOTE,)),
    "stl10": (BASE, 1e-4, 0.65, ()),
    "eurosat": (SMALL, 5e-5, 1.0, (SMALL_NOTE, _EUROSAT)),
}


def _preset(data: str, labels: int, *errors: tuple[float, float]) -> Preset:
    network, lr, decay, notes = SETTINGS[data]
    published = {method: error(*pair) for method, pair in zip(METHODS, errors, strict=True)}
    values = partial(recipe, data, labels, network, lr, decay)
    return Preset(f"usb_{data}_{labels}", "fixmatch", values, published, SOURCE, (*notes, *NOTES))


# Errors in the order of METHODS.
PRESETS = (
    _preset("cifar100", 200, (35.88, 0.36), (29.60, 0.90), (26.76, 1.12), (22.32, 1.73), (21.40, 0.30), (22.67, 1.32), (23.78, 1.08)),
    _preset("cifar100", 400, (26.76, 0.83), (19.56, 0.52), (18.24, 0.36), (16.66, 0.62), (15.65, 0.26), (16.84, 0.66), (17.06, 0.78)),
    _preset("stl10", 40, (19.00, 2.90), (16.15, 1.89), (14.40, 3.11), (13.64, 2.49), (12.73, 3.22), (13.55, 3.16), (11.77, 3.20)),
    _preset("stl10", 100, (10.87, 0.49), (8.11, 0.68), (8.17, 0.78), (7.62, 1.90), (8.52, 0.53), (7.84, 1.72), (7.55, 1.86)),
    _preset("eurosat", 20, (26.49, 1.60), (13.44, 3.53), (5.17, 0.57), (7.02, 0.79), (6.50, 0.78), (5.75, 0.62), (7.66, 0.60)),
    _preset("eurosat", 40, (16.12, 1.35), (5.91, 2.02), (5.58, 0.81), (4.75, 1.10), (5.78, 0.51), (5.90, 1.42), (5.27, 0.89)),
)
