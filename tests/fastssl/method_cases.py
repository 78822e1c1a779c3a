"""The methods as the tests run them: by what options a made-up batch has pseudo-labels that count, and further forms of some."""

import pytest

from fastssl.methods import METHODS

# Options under which the unlabelled term is active on an untrained network.
FOUNDATION = ("zeromatch", "pseudo_supervision", "pl_feature")  # which learn from foundation labels
TRAINED = [name for name in METHODS if name != "zero_shot"]  # which has no loss
CORE = (
    "supervised",
    "fixmatch",
    "finessl",
)  # whose every combination with optimisers and precisions runs always; the others' by -m exhaustive
ACTIVE = {
    "zeromatch": {"distil_share": 0.0, "inner_options": "threshold=0"},
    "pl_feature": {"inner_options": "threshold=0"},
    "fixmatch": {"threshold": 0.0},
    "spl": {"threshold": 0.0},
    "flexmatch": {"threshold": 0.3},
    "adamatch": {"threshold": 0.0},
    "debiaspl": {"threshold": 0.0},
    "layermatch": {"threshold": 0.0},
    "finessl": {"threshold": 0.0},
    "semikd": {"threshold": 0.0},
}
_LOW = {"threshold": 0.0}
# name -> method, options: what a method's file holds besides its default
FORMS = {
    "fixmatch, sigmoid, aligned by a queue": (
        "fixmatch",
        {"threshold": 0.1, "weighting": "sigmoid", "align": "uniform", "align_memory": "queue"},
    ),
    "fixmatch, smooth, long-tailed labels": ("fixmatch", {**_LOW, "weighting": "smooth", "align": "labelled", "logit_adjustment": 1.0}),
    "flexmatch, smooth, concave, no warm-up": (
        "flexmatch",
        {"threshold": 0.3, "weighting": "smooth", "mapping": "concave", "threshold_warmup": False},
    ),
    "freematch, smooth, clamped": ("freematch", {"weighting": "smooth", "most_threshold": 0.3}),
    "softmatch of usb": ("softmatch", {"statistics": "aligned", "align_start": "batch"}),
    "adamatch of usb": (
        "adamatch",
        {**_LOW, "strong_labelled": False, "interpolate": False, "ramp": False, "align_memory": "ema"},
    ),
    "layermatch, gradient by conflict": ("layermatch", {**_LOW, "grad_relu": "conflict_global", "averaging": "off", "head": "linear"}),
    "layermatch, gradient by entries": ("layermatch", {**_LOW, "grad_relu": "conflict_element", "averaging": "off", "head": "linear"}),
    "layermatch, averaged classifier alone": ("layermatch", {**_LOW, "grad_relu": "off"}),
    "layermatch, outputs": ("layermatch", {**_LOW, "averaging": "outputs"}),
    "layermatch, teacher": ("layermatch", {**_LOW, "averaging": "teacher"}),
    "layermatch, centres": ("layermatch", {**_LOW, "averaging": "centres"}),
    "zeromatch, mlp, freematch": ("zeromatch", {"distil_share": 0.0, "inner": "freematch", "auxiliary": "mlp", "annealing": "constant"}),
    "zeromatch, flexmatch, no auxiliary head": (
        "zeromatch",
        {"distil_share": 0.0, "inner": "flexmatch", "inner_options": "threshold=0.3,weighting=smooth", "annealing": "off"},
    ),
    "finessl of the paper": (
        "finessl",
        {
            **_LOW,
            "margin": "paper",
            "smoothed_label": "paper",
            "auxiliary_labelled": "paper",
            "auxiliary_target": "paper",
            "strong_views": 1,
            "pace_reset": 0,
        },
    ),
}
CASES = {name: (name, ACTIVE.get(name, {})) for name in TRAINED} | FORMS


def crossed(axis):
    """(method, entry) pairs for a test: all of them for CORE, the first entry alone for the other methods unless -m exhaustive asks."""
    pairs = [(name, entry, name in CORE or number == 0) for name in TRAINED for number, entry in enumerate(axis)]
    return [(name, entry) if always else pytest.param(name, entry, marks=pytest.mark.exhaustive) for name, entry, always in pairs]


SAMPLED = [name if name in CORE else pytest.param(name, marks=pytest.mark.exhaustive) for name in TRAINED]
