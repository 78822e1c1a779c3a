"""FixMatch's successors on CIFAR with wide residual networks: FlexMatch, FreeMatch, SoftMatch, AdaMatch, Smooth Pseudo-Labeling.

All train FixMatch's setting (presets/fixmatch.py) with other pseudo-labels, and all but the last with the strong views of USB and TorchSSL.
The numbers of a preset are of one table and never mixed: tables differ in checkpoint, seeds and, USB's CIFAR-100, in the network.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from . import fixmatch
from .preset import Preset, Published, error

USB = "USB, Wang et al. 2022, arXiv 2208.07204, results/classic_cv.csv: best checkpoint, 3 seeds; recipe: config/classic_cv"
TORCHSSL = "Zhang et al. 2021, arXiv 2110.08263, results table: best checkpoint, 3 seeds; recipe: TorchSSL"
FREEMATCH = "Wang et al. 2023, arXiv 2205.07246, results table: checkpoint not stated in our sources; recipe: TorchSSL"
SOFTMATCH = "Chen et al. 2023, arXiv 2301.10921, results table: checkpoint not stated in our sources; recipe: TorchSSL"
SMOOTH = (
    "Smooth Pseudo-Labeling 2024, arXiv 2405.14313, results with 40 labels (quoted second-hand, deviations not found); recipe: a "
    "re-implementation that cites the paper's table 14"
)
BEST = "accuracy here is the last step's; the table has the best of all evaluations on the test set"
LAST = "accuracy here is the last step's; which checkpoint the paper reports is not stated in our sources"
_OWN = "these are USB's numbers and options: the paper's own CIFAR-10 rows could not be checked"
_NARROW = "USB trains CIFAR-100 with WRN-28-2; errors are 5 to 13 points above those with the papers' WRN-28-8"
_RAW = (
    "alignment to uniform, as the paper has it; its released code aligns to the labelled images' running marginal (method.align=predicted)"
)
_FAIRNESS = "the fairness term weighs 0.01, as in TorchSSL's files"

# Options of each method in the setting whose numbers are given.
OPTIONS: dict[str, dict[str, Any]] = {
    "flexmatch": {"threshold": 0.95, "mapping": "convex", "threshold_warmup": True},
    "freematch": {"momentum": 0.999, "fairness_weight": 0.01},
    "freematch of usb": {"momentum": 0.999, "fairness_weight": 0.001},
    "softmatch": {"momentum": 0.999, "sigmas": 2.0, "align": "uniform", "align_start": "uniform", "statistics": "raw"},
    "softmatch of usb": {"momentum": 0.999, "sigmas": 2.0, "align": "uniform", "align_start": "batch", "statistics": "aligned"},
    "adamatch of usb": {
        "threshold": 0.95,
        "align": "predicted",
        "align_memory": "ema",
        "strong_labelled": False,
        "interpolate": False,
        "ramp": False,
    },
    "spl": {"threshold": 0.95, "weighting": "smooth", "power": 1.0, "lambda_u": 1.1},
}
WIDE = {"network": "wrn-28-8", "weight_decay": 1e-3}
NARROW = {"network": "wrn-28-2", "weight_decay": 1e-3}


def recipe(form: str, data: str, labels: int, *, policy: str = "usb", **network: Any) -> dict[str, Any]:
    """The published setting with `labels` labels in all. `form`: one of OPTIONS; `network`: as of `fixmatch.recipe`."""
    setting = {key: value for key, value in fixmatch.recipe(data, labels, **network).items() if not key.startswith("method.")}
    options = {"lambda_u": 1.0, **OPTIONS[form]}
    own = {"method.name": form.split()[0], **{f"method.{key}": value for key, value in options.items()}}
    return {**own, **setting, "data.policy": policy}


def _preset(form: str, data: str, labels: int, source: str, errors: dict[str, tuple[float, float]], *notes: str, **options: Any) -> Preset:
    method = form.split()[0]
    published = {name: error(*pair) for name, pair in errors.items()}
    return Preset(f"{method}_{data}_{labels}", method, partial(recipe, form, data, labels, **options), published, source, notes)


def _usb(form: str, data: str, labels: int, *notes: str) -> Preset:
    network = NARROW if data == "cifar100" else {}
    return _preset(form, data, labels, USB, USB_ERRORS[data, labels], *notes, *((_NARROW,) if network else ()), BEST, **network)


def _row(*pairs: tuple[float, float]) -> dict[str, tuple[float, float]]:
    return dict(zip(("fixmatch", "flexmatch", "freematch", "softmatch", "adamatch"), pairs, strict=True))


USB_ERRORS = {
    ("cifar10", 40): _row((8.33, 1.41), (5.21, 0.36), (4.97, 0.09), (5.06, 0.02), (5.05, 0.04)),
    ("cifar10", 250): _row((4.97, 0.05), (5.00, 0.05), (4.85, 0.10), (4.84, 0.10), (5.01, 0.11)),
    ("cifar10", 4000): _row((4.29, 0.10), (4.28, 0.05), (4.14, 0.19), (4.27, 0.12), (4.29, 0.06)),
    ("cifar100", 400): _row((53.37, 2.15), (50.15, 1.51), (49.24, 2.16), (49.64, 1.46), (47.82, 1.48)),
    ("cifar100", 2500): _row((34.29, 0.43), (33.35, 0.33), (32.79, 0.21), (33.05, 0.05), (33.26, 0.55)),
    ("cifar100", 10000): _row((28.28, 0.18), (27.12, 0.04), (27.17, 0.11), (27.26, 0.03), (27.53, 0.12)),
}
# FlexMatch's table: FixMatch, FlexMatch.
TORCHSSL_ERRORS = {
    ("cifar10", 40): ((7.47, 0.28), (4.97, 0.06)),
    ("cifar10", 250): ((4.86, 0.05), (4.98, 0.09)),
    ("cifar10", 4000): ((4.21, 0.08), (4.19, 0.01)),
    ("cifar100", 400): ((46.42, 0.82), (39.94, 1.62)),
    ("cifar100", 2500): ((28.03, 0.16), (26.49, 0.20)),
    ("cifar100", 10000): ((22.20, 0.12), (21.90, 0.15)),
}
FREEMATCH_ERRORS = {400: (37.98, 0.42), 2500: (26.47, 0.20), 10000: (21.68, 0.03)}
SOFTMATCH_ERRORS = {400: (37.10, 0.77), 2500: (26.66, 0.25), 10000: (22.03, 0.03)}
_SPL_NOTES = (
    "lambda_u is 1.1, as the re-implementation has it of the paper's section C.1; the paper was not at hand",
    "labels are drawn by the seed, 4 a class; the re-implementation has one draw",
    "with 250 and 4,000 labels the paper finds no difference from FixMatch and our sources have no number: --preset fixmatch_cifar10_250 "
    "--method spl --set method.lambda_u=1.1",
    "checkpoint and number of runs are not stated in our sources",
)

PRESETS = (
    *(
        _preset(
            "flexmatch",
            *where,
            TORCHSSL,
            dict(zip(("fixmatch", "flexmatch"), pairs, strict=True)),
            BEST,
            **(WIDE if where[0] == "cifar100" else {}),
        )
        for where, pairs in TORCHSSL_ERRORS.items()
    ),
    *(_usb("freematch of usb", "cifar10", n, _OWN) for n in (40, 250, 4000)),
    *(_preset("freematch", "cifar100", n, FREEMATCH, {"freematch": pair}, _FAIRNESS, LAST, **WIDE) for n, pair in FREEMATCH_ERRORS.items()),
    *(_usb("softmatch of usb", "cifar10", n, _OWN) for n in (40, 250, 4000)),
    *(_preset("softmatch", "cifar100", n, SOFTMATCH, {"softmatch": pair}, _RAW, LAST, **WIDE) for n, pair in SOFTMATCH_ERRORS.items()),
    *(_usb("adamatch of usb", *where) for where in USB_ERRORS),
    Preset(
        "spl_cifar10_40",
        "spl",
        partial(recipe, "spl", "cifar10", 40, policy="fixmatch"),
        {"spl": Published(92.76), "fixmatch": Published(90.72)},
        SMOOTH,
        _SPL_NOTES,
    ),
)
