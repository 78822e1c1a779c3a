"""FineSSL (Gan & Wei, ICML 2024, arXiv 2405.11756): CLIP ViT-B/16 with 50 deep visual prompts, 30 epochs of 500 steps.

Recipe: the official code and its YAML files. Numbers: the paper's table 1 as quoted by a secondary source, which prints no deviation.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .preset import Preset, Published

SOURCE = "Gan & Wei, ICML 2024, arXiv 2405.11756, table 1 (quoted second-hand, deviations not found); recipe: the official code"
NOTES = (
    "the code trains in pure fp16; here fp32 weights under bf16 autocast",
    "labelled images are augmented anew each time they come; the code replays the first pass of each epoch",
    "photographs that are not square are cut to their centre; the code keeps their shorter side at 256 and squashes test images",
    "OpenAI's CLIP weights come from the hub, once, unless --offline; --weights FILE.safetensors takes them from a file",
)


def recipe(data: str, per_class: int, *, batch: int = 32, gamma: float = 3.0) -> dict[str, Any]:
    """The published setting with `per_class` labels of each class, B = `batch`, mu = 1."""
    return {
        "method.name": "finessl",
        "method.margin_scale": 8.0,
        "method.smoothing": 0.5,
        "method.gamma": gamma,
        "method.threshold": 0.7,
        "method.pace_threshold": 0.7,
        "method.pace_reset": 500,
        "method.strong_views": 2,
        # open_clip's plain ViT-B-16 has another activation than the weights that OpenAI trained.
        "model.name": "open_clip:ViT-B-16-quickgelu/openai",
        "model.normalise": "data",
        "model.tune": "vpt_deep",
        "model.prompts": 50,
        "model.head": "cosine",
        "model.head_init": "random",
        "data.name": data,
        "data.labels_per_class": per_class,
        "data.sampling": "first",
        "data.resize": 256,
        "data.interpolation": "bilinear",
        "data.policy": "finessl",
        "train.steps": 15_000,
        "train.batch_size": batch,
        "train.ratio": 1,
        "train.optimizer": "sgd",
        "train.lr": 0.03,
        "train.momentum": 0.9,
        "train.nesterov": False,
        "train.weight_decay": 5e-4,
        "train.decay_all": True,
        "train.schedule": "cosine",
        "train.schedule_period": 500,
        "train.warmup": 0,
        "train.ema": 0.0,
        "train.amp": "bf16",
    }


def _preset(data: str, per_class: int, accuracy: float, *notes: str, **options: Any) -> Preset:
    name = f"finessl_{data}_n{per_class}"
    return Preset(name, "finessl", partial(recipe, data, per_class, **options), {"finessl": Published(accuracy)}, SOURCE, (*notes, *NOTES))


_FOOD = "the code's YAML for Food-101 has 5 labels a class; all else is from it"

PRESETS = (
    _preset("cifar10", 1, 96.15, batch=8, gamma=1.0),
    _preset("cifar10", 2, 96.87, batch=16),
    _preset("cifar10", 4, 97.39),
    _preset("cifar100", 4, 80.44),
    _preset("cifar100", 25, 84.51),
    _preset("cifar100", 100, 86.66),
    _preset("food101", 2, 87.04, _FOOD),
    _preset("food101", 4, 89.28, _FOOD),
    _preset("food101", 10, 89.69, _FOOD),
)
