"""Methods that go in rounds or passes: Label Propagation (Iscen et al.) and pseudo-labels with MixUp (Arazo et al.) on CIFAR; Meta Pseudo
Labels (Pham et al.) on CIFAR-10 and SVHN.

The papers train a 13-layer network that is not here; a wide residual network stands in for it, so that the numbers say what was reached,
not what to expect of it. Our sources quote no deviations but those that are listed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .consistency import own
from .preset import Preset, Published, error

ISCEN = "Iscen et al. 2019, arXiv 1904.04717, results tables; recipe: the official code"
ARAZO = "Arazo et al. 2020, arXiv 1908.02983, results tables; recipe: the official code"
_CNN = "WRN-28-2 in place of the 13-layer network"
_SEEDS = "deviations are not in our sources"
CIFAR = 50_000  # training images
SGD = {"optimizer": "sgd", "momentum": 0.9, "schedule": "cosine", "warmup": 0}


def propagation(data: str, labels: int, half: int, lr: float, teacher: bool) -> dict[str, Any]:
    """Iscen et al.'s: two stages of 180 epochs, `half` labelled and `half` unlabelled images a step; `teacher`: with Mean Teacher's term.

    An epoch of the second stage, and of the first where unlabelled images take part in it, visits the unlabelled ones once; else an epoch
    of the first stage visits the labelled ones.
    """
    epoch = -(-(CIFAR - labels) // half)
    first = epoch if teacher else -(-labels // half)
    options = {"warmup_share": first / (first + epoch), "every": epoch, "neighbours": 50, "power": 3.0, "alpha": 0.99, "seeds": "share"}
    options |= {"iterations": 20, "tolerance": 1e-6, "graph_view": "weak", "consistency": 100.0 if teacher else 0.0, "ramp_share": 5 / 180}
    train = {"steps": 180 * (first + epoch), "batch_size": half, "ratio": 1, **SGD, "lr": lr, "nesterov": True, "weight_decay": 2e-4}
    return own("label_propagation", data, labels, options, {**train, "ema": 0.97 if teacher else 0.0})


def pseudo_labels(data: str, labels: int) -> dict[str, Any]:
    """Arazo et al.'s: 10 epochs of warm-up and 400 more, 16 labelled images a step."""
    epoch = -(-(CIFAR - labels) // 80)
    options = {"warmup_share": 10 / 410, "every": epoch, "mixup": 1.0, "lambda_prior": 0.8, "lambda_entropy": 0.4}
    train = {"steps": 410 * epoch, "batch_size": 16, "ratio": 5, **SGD, "lr": 0.1, "weight_decay": 1e-4, "ema": 0.0}
    return own("pl_mixup", data, labels, options, train, **{"model.dropout": 0.1})


_PROPAGATED = (
    _CNN,
    "each stage's cosine ends with it, at 0; the code's would end after 210 of 180 epochs",
    "the second stage's optimiser starts afresh; the code's goes on with the first one's momentum",
    _SEEDS,
)
_HALF = "the first stage has 50 labelled images a step, where the code fills its batch of 100 with them"
_GUESSED = "half of a batch of 128 is taken to be labelled: our sources do not say"
_AGAINST_BIAS = (
    _CNN,
    "16 + 80 images a step in place of 16 + 84, and passes as much longer",
    "the rate falls by a cosine, where the paper divides it by 10 after 250 and 350 of 400 epochs, and weights are not averaged",
    "momentum 0.9 and a warm-up whose epochs are as long as the others are taken for granted: our sources do not say",
    "dropout is before the head alone, and colours are not jittered",
    _SEEDS,
)


def meta(data: str, labels: int) -> dict[str, Any]:
    """Pham et al.'s: 300,000 steps of both networks, then 1,000 of the student on the labels."""
    joint, last, peak = 300_000, 1000, 0.1 * 128 / 256
    options = {"feedback": "difference", "targets": "sampled", "lambda_m": 1.0, "lambda_u": 8.0, "ramp_share": 5000 / joint}
    options |= {"threshold": 0.6, "temperature": 0.7, "smoothing": 0.15, "wait_share": 3000 / joint, "warmup_share": 5000 / joint}
    options |= {"finetune_share": last / (joint + last), "finetune_rate": 1e-5 / peak}
    train = {"steps": joint + last, "batch_size": 128, "ratio": 7, **SGD, "lr": peak, "nesterov": True, "weight_decay": 5e-4, "ema": 0.995}
    return own("meta_pseudo_labels", data, labels, options, train, **{"model.dropout": 0.2})


PHAM = "Pham et al. 2021, arXiv 2003.10580, results table; recipe: the official code"
_META = (
    "the paper samples labels, and the sign is the paper's; the released code's term has no gradient (method.targets=soft is its form)",
    "the last 1,000 steps take 128 labelled images and a cosine from 1e-5; the paper has 512, and no schedule in our sources",
    "the strong view is FixMatch's RandAugment with cutout, the code's has magnitude 16; batch-norm's momentum, 0.1, is not in our sources",
    "for the baseline of UDA in the same setting add --method uda --set method.lambda_u=8 --set method.temperature=0.7; its threshold "
    "judges predictions that are not sharpened",
)
_SVHN = "the options are CIFAR-10's: SVHN's own are not in our sources"


def noisy(data: str, labels: int, per_class: int) -> dict[str, Any]:
    """Noisy Student's script for SVHN: one round, as many steps for the teacher, 128 labelled and 640 extra images a step."""
    student = 109_474
    options = {"rounds": 1, "targets": "soft", "temperature": 1.0, "threshold": 0.3, "per_class": per_class, "smoothing": 0.1}
    train = {"steps": 2 * student, "batch_size": 128, "ratio": 5, **SGD, "lr": 0.03, "nesterov": True, "weight_decay": 1e-4, "ema": 0.9999}
    network = {"model.dropout": 0.2}
    split = {"data.sampling": "uniform", "data.extra": True}
    return own("noisy_student", data, labels, {**options, "teacher_share": 0.5}, train, **network, **split)


def divided(data: str, warm: int, clean: float) -> dict[str, Any]:
    """DivideMix's at 20 % symmetric noise: `warm` of 300 epochs are the warm-up, in the others each network visits its `clean` labels."""
    first, epoch = warm * (CIFAR // 64), int(clean * CIFAR) // 64
    steps = 2 * (first + (300 - warm) * epoch)
    options = {"warmup_share": 2 * first / steps, "threshold": 0.5, "temperature": 0.5, "mixup": 4.0, "lambda_u": 25.0, "ramp_epochs": 16.0}
    train = {"steps": steps, "batch_size": 64, "ratio": 1, **SGD, "lr": 0.02, "nesterov": False, "weight_decay": 5e-4, "ema": 0.0}
    noise = {"data.label_noise": 0.2, "data.label_noise_kind": "symmetric"}
    return own("dividemix", data, CIFAR, options, train, **noise, **{"model.name": "preact-resnet-18"})


LI = "Li et al. 2020, arXiv 2002.07394, results table at 20 % symmetric noise; recipe: the official code"
_DIVIDED = (
    "the rate falls by a cosine, where the code divides it by 10 after 150 of 300 epochs",
    "lambda_u is the code's default; the paper picks one of 0, 25, 50 and 150 by set and noise, our sources do not say which",
    "the warm-up takes 64 images a step, as many epochs of them as the code's of 128",
    "the run has as many steps as 300 epochs if four fifths of the labels are found clean; epochs are as long as what is found",
    "accuracy here is the last step's; the table has the best of all epochs on the test set",
    _SEEDS,
)


XIE = "Xie et al. 2020, arXiv 1911.04252, results of the official code's README (its teacher alone: 97.9); recipe: its script for SVHN"
_NOISY = (
    "WRN-28-2 in place of EfficientNet-B0, whose stochastic depth it has not (timm's takes images of 224 pixels here)",
    "SGD at FixMatch's rate with a cosine in place of RMSProp at 0.008, which is not among the optimisers: no run has tried it",
    "the strong view is FixMatch's RandAugment; the script's has magnitude 5",
    "labels are drawn by the seed; the 4,000 training images that the code keeps for validation are unlabelled here",
    "the script takes a teacher that was trained before; here its training is the first half of the run",
)


def _meta(data: str, labels: int, percent: float, deviation: float, *notes: str) -> Preset:
    published = {"meta_pseudo_labels": Published(percent, deviation)}
    name = f"meta_pseudo_labels_{data}_{labels}"
    return Preset(name, "meta_pseudo_labels", partial(meta, data, labels), published, PHAM, (*notes, *_META))


def _propagation(data: str, labels: int, percent: float, *, teacher: bool) -> Preset:
    half, lr = (50, 0.05) if data == "cifar10" else (64, 0.2)
    kind = "label_propagation_mean_teacher" if teacher else "label_propagation"
    notes = (*_PROPAGATED, *([] if teacher else [_HALF]), *([] if data == "cifar10" else [_GUESSED]))
    values = partial(propagation, data, labels, half, lr, teacher)
    return Preset(f"{kind}_{data}_{labels}", "label_propagation", values, {"label_propagation": error(percent)}, ISCEN, notes)


def _pseudo_labels(data: str, labels: int, percent: float) -> Preset:
    values = partial(pseudo_labels, data, labels)
    return Preset(f"pl_mixup_{data}_{labels}", "pl_mixup", values, {"pl_mixup": error(percent)}, ARAZO, _AGAINST_BIAS)


PRESETS = (
    _propagation("cifar10", 4000, 12.69, teacher=False),
    _propagation("cifar10", 1000, 16.93, teacher=True),
    _propagation("cifar10", 4000, 10.61, teacher=True),
    _propagation("cifar100", 4000, 43.73, teacher=True),
    _propagation("cifar100", 10000, 35.92, teacher=True),
    _pseudo_labels("cifar10", 500, 8.80),
    _pseudo_labels("cifar10", 1000, 6.85),
    _pseudo_labels("cifar10", 4000, 5.97),
    _pseudo_labels("cifar100", 4000, 37.55),
    _pseudo_labels("cifar100", 10000, 32.15),
    _meta("cifar10", 4000, 96.11, 0.07),
    _meta("svhn", 1000, 98.01, 0.07, _SVHN),
    Preset("dividemix_cifar10_noise20", "dividemix", partial(divided, "cifar10", 10, 0.82), {"dividemix": Published(96.1)}, LI, _DIVIDED),
    Preset("dividemix_cifar100_noise20", "dividemix", partial(divided, "cifar100", 30, 0.8), {"dividemix": Published(77.3)}, LI, _DIVIDED),
    Preset(
        "noisy_student_svhn",
        "noisy_student",
        partial(noisy, "svhn", 73_257 - 4000, 53_113),
        {"noisy_student": Published(98.6, 0.1)},
        XIE,
        _NOISY,
    ),
)
