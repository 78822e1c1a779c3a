"""SimCLR on CIFAR-10 and SimCLRv2 on ImageNet (Chen et al. 2020a, b), whose folders, one a class, are the user's to bring.

Recipe and numbers: README, code and notebooks of google-research/simclr. Learning rates are those at the batch, after the code's scaling.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .preset import Preset, Published

V1 = "Chen et al. 2020, arXiv 2002.05709, results of the official code's README: around 91 %; recipe: its commands for CIFAR-10"
V2 = (
    "Chen et al. 2020, arXiv 2006.10029, results table: ResNet-50 distilled from ResNet-152 3x with selective kernels (fine-tuned alone it "
    "has 57.9 at 1 % of the labels and 68.4 at 10 %); recipe: the official code's README"
)
LARS = {"train.optimizer": "lars", "train.momentum": 0.9, "train.schedule": "cosine", "train.weight_decay": 1e-4, "train.ema": 0.0}
IMAGENET = 1_281_167  # training images


def cifar10() -> dict[str, Any]:
    """1,000 epochs of contrast, then 100 of a linear classifier on the encoder as it is, by all labels; 512 images a step."""
    first, last = (50_000 * epochs // 512 + 1 for epochs in (1000, 100))
    return {
        "method.name": "simclr",
        "method.temperature": 0.5,
        "method.tuned": "head",
        "method.classifier": "zero",
        "method.fine_tune_share": last / (first + last),
        "method.fine_tune_rate": 0.1,
        "model.name": "preact-resnet-18",
        "model.head": "linear",
        "data.name": "cifar10",
        "data.labels_total": 50_000,
        "train.steps": first + last,
        "train.batch_size": 512,
        "train.ratio": 1,
        "train.lr": 2.0,
        "train.warmup": 10 * 50_000 // 512,
        **LARS,
    }


def imagenet(labels: int, epochs: int) -> dict[str, Any]:
    """800 epochs of contrast and 400 of distillation at 4,096 images a step; between them `epochs` of fine-tuning at 1,024."""
    lengths = (800 * IMAGENET // 4096, epochs * labels // 1024, 400 * IMAGENET // 4096)
    return {
        "method.name": "simclrv2",
        "method.temperature": 0.1,
        "method.fine_tune_from": 1,
        "method.fine_tune_share": lengths[1] / sum(lengths),
        "method.fine_tune_rate": 1 / 30,
        "method.distil_share": lengths[2] / sum(lengths),
        "method.alpha": 1.0,
        "method.distil_temperature": 1.0,
        "method.teacher_model": "timm:wide_resnet101_2",
        "model.name": "timm:resnet50",
        "model.weights": "random",
        "model.head": "projected",
        "data.name": "imagenet/train",
        "data.labels_total": labels,
        "data.resize": 256,
        "train.steps": sum(lengths),
        "train.batch_size": 1024,
        "train.ratio": 4,
        "train.lr": 0.075 * 64,
        "train.warmup": 0,
        "train.amp": "bf16",
        **LARS,
    }


_V1 = (
    "a pre-activation ResNet-18 in place of the code's ResNet-18, and linear evaluation by all 50,000 labels",
    "10 epochs of warm-up begin both stages, the code's contrast alone; the classifier's momentum is not Nesterov's",
)
_V2 = (
    "give ImageNet's training images by --data and its validation images by --test; the code's 1 % and 10 % are lists of images, here they "
    "are drawn by the seed",
    "a wide ResNet-101 teaches in place of ResNet-152 3x with selective kernels, which timm does not have, and is not distilled into "
    "itself before",
    "no warm-up, for train.warmup would begin fine-tuning too, which has none; the rate of distillation is contrast's: our sources say "
    "neither",
    "weak views are cut out of 256 pixels, the code's are random parts of 8 to 100 %",
)

PRESETS = (
    Preset("simclr_cifar10", "simclr", cifar10, {"simclr": Published(91.0)}, V1, _V1),
    Preset("simclrv2_imagenet_1", "simclrv2", partial(imagenet, 12_811, 60), {"simclrv2": Published(73.9)}, V2, _V2),
    Preset("simclrv2_imagenet_10", "simclrv2", partial(imagenet, 128_116, 30), {"simclrv2": Published(77.5)}, V2, _V2),
)
