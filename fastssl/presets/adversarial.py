"""VAT and Pseudo-Label on CIFAR-10 with wide residual networks, as TorchSSL has them, and VAT with the options of its paper's code.

TorchSSL trains both in FixMatch's setting (presets/fixmatch.py) on weak views alone, with as many unlabelled as labelled images a step.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from . import fixmatch
from .classic import BEST, TORCHSSL
from .preset import Preset, Published, error

MIYATO = "Miyato et al. 2018, arXiv 1704.03976, results on CIFAR-10 with augmentation (deviation not found); recipe: the official code"
# Options of each method in the setting whose numbers are given.
OPTIONS: dict[str, dict[str, Any]] = {
    "pseudo_label": {"lambda_u": 1.0, "threshold": 0.95, "ramp_start": 0.0, "ramp_share": 0.4},
    "vat": {"lambda_u": 0.3, "entropy_min": 0.06, "epsilon": 6.0, "ramp": "linear", "ramp_share": 0.4},
    "vat of the paper": {"lambda_u": 1.0, "entropy_min": 1.0, "epsilon": 8.0, "ramp": "none"},
}
_SEARCH = "the search steps by 0.1 in fp32; the code by 1e-6, which is below the resolution of fp32"
_WHITENED = (
    "the paper whitens its images (ZCA), and epsilon is measured in these; here they are normalised by the set's constants",
    "the network here is WRN-28-2 in the place of the paper's own, which is not built: the number is not this network's",
    "the code lowers the rate linearly to 0, and Adam's first decay to 0.5, over the last 40 of 500 epochs; here both stay",
    "without entropy minimisation (--set method.entropy_min=0) the paper's error is 11.36 %",
)


def recipe(form: str, labels: int) -> dict[str, Any]:
    """The published setting on CIFAR-10 with `labels` labels in all. `form`: one of OPTIONS."""
    setting = {key: value for key, value in fixmatch.recipe("cifar10", labels).items() if not key.startswith("method.")}
    own = {"method.name": form.split()[0], **{f"method.{key}": value for key, value in OPTIONS[form].items()}}
    return {**own, **setting, "train.ratio": 1}


def paper(labels: int) -> dict[str, Any]:
    """VAT by its own code: Adam, 500 epochs of 400 steps, 32 labelled and 128 unlabelled images."""
    return {
        **recipe("vat of the paper", labels),
        "train.steps": 200_000,
        "train.batch_size": 32,
        "train.ratio": 4,
        "train.optimizer": "adamw",
        "train.lr": 1e-3,
        "train.weight_decay": 0.0,
        "train.schedule": "constant",
        "train.ema": 0.0,
    }


def _torchssl(method: str, labels: int, accuracy: float, *notes: str) -> Preset:
    published = {method: Published(accuracy)}
    return Preset(f"{method}_cifar10_{labels}", method, partial(recipe, method, labels), published, TORCHSSL, (*notes, BEST))


PRESETS = (
    _torchssl("pseudo_label", 40, 25.39),
    _torchssl("pseudo_label", 250, 53.51),
    _torchssl("pseudo_label", 4000, 84.92),
    _torchssl("vat", 4000, 89.49, _SEARCH),
    Preset("vat_paper_cifar10_4000", "vat", partial(paper, 4000), {"vat": error(10.55)}, MIYATO, (_SEARCH, *_WHITENED)),
)
