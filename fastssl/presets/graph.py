"""CoMatch, SimMatch and Dash on CIFAR with wide residual networks.

All train FixMatch's setting (presets/fixmatch.py) with other pseudo-labels. The numbers of a preset are of one table and never mixed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from . import fixmatch
from .classic import BEST, NARROW, USB, USB_ERRORS, WIDE
from .preset import Preset, Published, error

COMATCH = "Li et al. 2021, arXiv 2011.11183, results of the released code: mean of 5 seeds; recipe: salesforce/CoMatch"
DASH = (
    "Xu et al. 2021, arXiv 2109.00650, results table with RandAugment, as ConMatch's repository quotes it; recipe: idstcv/Dash for the "
    "method's own numbers, FixMatch's for the rest"
)
# CIFAR's values of each code.
OPTIONS: dict[str, dict[str, Any]] = {
    "comatch": {
        "threshold": 0.95,
        "temperature": 0.2,
        "width": 64,
        "alpha": 0.9,
        "graph_threshold": 0.8,
        "lambda_c": 1.0,
        "queue_batch": 5,
        "align_batches": 32,
    },
    "simmatch": {
        "teacher_by": "ensemble",
        "threshold": 0.95,
        "temperature": 0.1,
        "width": 128,
        "alpha": 0.9,
        "lambda_in": 1.0,
        "momentum": 0.7,
        "align_batches": 32,
    },
    "dash": {
        "gamma": 1.27,
        "excess": 1.0001,
        "rho_min": 0.05,
        "temperature": 0.5,
        "warmup_share": 10 / 1024,
        "measured_share": 0.1,
        "drop_share": 9 / 1024,
        "first_drops": 1,
        "selection": "weak",
        "reduction": "kept",
    },
}
# USB's table, beside FixMatch's row of it.
COMATCH_ERRORS = {
    ("cifar10", 250): (5.33, 0.12),
    ("cifar10", 4000): (4.29, 0.04),
    ("cifar100", 400): (60.98, 0.77),
    ("cifar100", 2500): (37.24, 0.24),
    ("cifar100", 10000): (28.15, 0.16),
}
SIMMATCH_ERRORS = {
    ("cifar10", 40): (5.18, 0.15),
    ("cifar10", 250): (4.99, 0.12),
    ("cifar10", 4000): (4.51, 0.08),
    ("cifar100", 400): (48.82, 1.07),
    ("cifar100", 2500): (32.54, 0.27),
    ("cifar100", 10000): (26.42, 0.18),
}
DASH_ERRORS = {
    ("cifar10", 40): (13.22, 3.75),
    ("cifar10", 250): (4.56, 0.13),
    ("cifar10", 4000): (4.08, 0.06),
    ("cifar100", 400): (44.76, 0.96),
    ("cifar100", 2500): (27.18, 0.21),
}
_EPASS = (
    "USB's released files average three projection heads (EPASS), which is not built; whether its table was made so is not stated in our "
    "sources"
)
_NARROW = "USB trains CIFAR-100 with WRN-28-2"
_SIM = "USB starts its memory from random vectors and normalises it across the batch; here each row starts from its first visit"
_CO = (
    "test errors by seed: 6.29, 5.90, 7.07, 9.27, 6.03",
    "smoothing begins when the memory is full, one step before the code's",
    "accuracy here is the last step's; which checkpoint the code reports is not stated in our sources",
)
_DASH = (
    "the shares of the run are the official code's 10, 1 and 9 of 1,024 epochs; its scripts for CIFAR were not at hand (SVHN's was)",
    "C0 is the paper's 1.0001; the code has none",
    "the table is quoted second-hand, and which checkpoint it reports is not stated in our sources",
)


def recipe(method: str, data: str, labels: int, *, policy: str = "usb", steps: int = 2**20, **network: Any) -> dict[str, Any]:
    """The published setting with `labels` labels in all. `method`: one of OPTIONS; `network`: as of `fixmatch.recipe`."""
    setting = {key: value for key, value in fixmatch.recipe(data, labels, **network).items() if not key.startswith("method.")}
    own = {"method.name": method, **{f"method.{key}": value for key, value in {"lambda_u": 1.0, **OPTIONS[method]}.items()}}
    return {**own, **setting, "data.policy": policy, "train.steps": steps}


def _usb(method: str, data: str, labels: int, pair: tuple[float, float], *notes: str) -> Preset:
    network = NARROW if data == "cifar100" else {}
    published = {method: error(*pair), "fixmatch": error(*USB_ERRORS[data, labels]["fixmatch"])}
    more = (*notes, *((_NARROW,) if network else ()), _EPASS, BEST)
    return Preset(f"{method}_{data}_{labels}", method, partial(recipe, method, data, labels, **network), published, USB, more)


def _dash(data: str, labels: int, pair: tuple[float, float]) -> Preset:
    network = WIDE if data == "cifar100" else {}
    values = partial(recipe, "dash", data, labels, policy="fixmatch", **network)
    return Preset(f"dash_{data}_{labels}", "dash", values, {"dash": error(*pair)}, DASH, _DASH)


PRESETS = (
    *(_dash(*where, pair) for where, pair in DASH_ERRORS.items()),
    Preset(
        "comatch_cifar10_40",
        "comatch",
        partial(recipe, "comatch", "cifar10", 40, policy="fixmatch", steps=512 * 1024),
        {"comatch": Published(93.09)},
        COMATCH,
        _CO,
    ),
    *(_usb("comatch", *where, pair) for where, pair in COMATCH_ERRORS.items()),
    *(_usb("simmatch", *where, pair, _SIM) for where, pair in SIMMATCH_ERRORS.items()),
)
