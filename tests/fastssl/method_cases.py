"""The methods as the tests run them: by what options a made-up batch has pseudo-labels that count, and further forms of some."""

import pytest
import torch

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
    "ict": {"mix_share": "sample", "mix_major": True},
    "zeromatch": {"distil_share": 0.0, "inner_options": "threshold=0"},
    "pl_feature": {"inner_options": "threshold=0"},
    "uda": {"threshold": 0.0},
    "fixmatch": {"threshold": 0.0},
    "spl": {"threshold": 0.0},
    "flexmatch": {"threshold": 0.3},
    "adamatch": {"threshold": 0.0},
    "comatch": {"threshold": 0.0},
    "simmatch": {"threshold": 0.0},
    "debiaspl": {"threshold": 0.0},
    "layermatch": {"threshold": 0.0},
    "finessl": {"threshold": 0.0},
    "simclrv2": {"alpha": 0.5, "fine_tune_from": 0},
    "self_training": {"loss": "zoph"},  # its plain form has one stream, of labels and selected samples
    "meta_pseudo_labels": {"threshold": 0.0},
    "sentaugment": {"bank": "own", "keep": 1.0},
    "semikd": {"threshold": 0.0},
}
_LOW = {"threshold": 0.0}
# name -> method, options: what a method's file holds besides its default
FORMS = {
    "comatch, momentum encoder": ("comatch", {**_LOW, "momentum_encoder": True, "contrast_batch": 2, "ema": 0.9}),
    "simmatch, averaged network": ("simmatch", {**_LOW, "teacher_by": "network", "ema": 0.9}),
    "dash of usb, by the strong view": ("dash", {"selection": "strong", "reduction": "batch", "first_drops": 0, "warmup_share": 0.5}),
    "mixmatch, interleaved, one share a batch": ("mixmatch", {"forward": "interleaved", "share_by": "batch", "guesses": 3}),
    "mixmatch, unmixed": ("mixmatch", {"mixup": 0.0, "temperature": 1.0}),
    "remixmatch of usb, interleaved": (
        "remixmatch",
        {
            "ctaugment": False,
            "strong_labelled": False,
            "align_memory": "ema",
            "share_by": "batch",
            "rotation": "drawn",
            "forward": "interleaved",
        },
    ),
    "pseudo_label of usb, smooth, aligned": (
        "pseudo_label",
        {"threshold": 0.2, "lambda_u": 1.0, "ramp_start": 0.0, "ramp_share": 0.4, "weighting": "smooth", "align": "uniform"},
    ),
    "adversarial, l2, clipped": ("adversarial", {"norm": "l2", "clip": True, "share": 0.3}),
    "vat, reversed, two iterations, no entropy": ("vat", {"reverse": True, "power_iterations": 2, "entropy_min": 0.0, "ramp": "none"}),
    "pi_model of usb": ("pi_model", {"reduction": "streams", "gradient": "one", "ramp": "linear"}),
    "temporal_ensembling, streams": ("temporal_ensembling", {"reduction": "streams", "labels_share": False}),
    "mean_teacher, two heads, kl": ("mean_teacher", {"two_heads": True, "cost": "kl", "early_decay": 0.9}),
    "mean_teacher of torchssl": ("mean_teacher", {"reduction": "streams", "ramp": "linear", "teacher_dropout": False}),
    "ict of the code": ("ict", {"target": "logits", "mix_labelled": True}),
    "uda, labels released slowly": ("uda", {**_LOW, "tsa": "exp", "align": "uniform"}),
    "uda of usb": ("uda", {"threshold": 0.2, "tsa": "log", "tsa_form": "usb", "temperature": 1.0}),
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
    "self_training, zoph, contrast": ("self_training", {"loss": "zoph", "alpha": 0.5, "joint": "contrast", "contrast_view": "strong"}),
    "self_training, union, contrast": ("self_training", {"joint": "contrast", "contrast_view": "strong", "start": "warm"}),
    "noisy_student, hard, smaller teacher": (
        "noisy_student",
        {"targets": "hard", "lambda_u": 1.0, "view": "weak", "teacher_model": "toy", "ema": 0.9},
    ),
    "pl_mixup, unmixed, strong, no regularisers": (
        "pl_mixup",
        {"mixup": 0.0, "lambda_prior": 0.0, "lambda_entropy": 0.0, "view": "strong"},
    ),
    "label_propagation, mean teacher, strong": ("label_propagation", {"consistency": 100.0, "ema": 0.97, "view": "strong"}),
    "meta_pseudo_labels, product": ("meta_pseudo_labels", {**_LOW, "feedback": "dot", "wait_share": 0.0}),
    "meta_pseudo_labels, soft, running statistics": ("meta_pseudo_labels", {**_LOW, "targets": "soft", "feedback_statistics": "eval"}),
    "layermatch, gradient by conflict": ("layermatch", {**_LOW, "grad_relu": "conflict_global", "averaging": "off", "head": "linear"}),
    "layermatch, gradient by entries": ("layermatch", {**_LOW, "grad_relu": "conflict_element", "averaging": "off", "head": "linear"}),
    "layermatch, averaged classifier alone": ("layermatch", {**_LOW, "grad_relu": "off"}),
    "layermatch, outputs": ("layermatch", {**_LOW, "averaging": "outputs"}),
    "layermatch, teacher": ("layermatch", {**_LOW, "averaging": "teacher"}),
    "layermatch, centres": ("layermatch", {**_LOW, "averaging": "centres"}),
    "dividemix, averaged, bare": ("dividemix", {"temperature": 1.0, "penalty": 0.0, "ramp_epochs": 0.0, "ema": 0.9}),
    "sentaugment, hard, strong": ("sentaugment", {"bank": "own", "keep": 1.0, "targets": "hard", "view": "strong"}),
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


def lived(name, m):
    """The method as it is once each sample has been seen, where before that its unlabelled term says nothing."""
    p = torch.rand(m.spec.rows, m.spec.num_classes, generator=torch.Generator().manual_seed(0)).softmax(1)
    if name == "temporal_ensembling":
        m.bank.write(torch.arange(m.spec.rows), p, torch.tensor(True))
    if name in ("self_training", "noisy_student"):
        rows = torch.arange(m.spec.rows - m.spec.unlabelled, m.spec.rows)
        m.chosen.write(rows.numpy(), p[rows].argmax(1).numpy())
    if name == "noisy_student" and m.taught is not None:
        m.taught.write(rows, p[rows])
    if name == "pl_mixup":
        m.bank.begin(torch.arange(m.spec.rows), p)
    if name == "label_propagation":
        m.table.write(torch.arange(m.spec.rows), p.argmax(1), p.amax(1), 0.5 + p[0])
    if name == "simclrv2":  # a teacher that says other things than its student
        for p_teacher in m.teacher.parameters():
            p_teacher.data += 0.3 * torch.arange(p_teacher.numel(), dtype=p_teacher.dtype).cos().view_as(p_teacher)
    if name == "sentaugment":
        rows = torch.arange(m.spec.rows - m.spec.unlabelled, m.spec.rows)
        m.taught.write(rows, p[rows])
    return m


def crossed(axis):
    """(method, entry) pairs for a test: all of them for CORE, the first entry alone for the other methods unless -m exhaustive asks."""
    pairs = [(name, entry, name in CORE or number == 0) for name in TRAINED for number, entry in enumerate(axis)]
    return [(name, entry) if always else pytest.param(name, entry, marks=pytest.mark.exhaustive) for name, entry, always in pairs]


SAMPLED = [name if name in CORE else pytest.param(name, marks=pytest.mark.exhaustive) for name in TRAINED]


def kinds(method, total=100):
    """Numbers of the first stage of each kind: what one recording each serves."""
    found, k = {}, 0
    while k < 8 and (stage := method.stage(k, total)) is not None:
        found.setdefault(stage.kind, k)
        k += 1
    return list(found.values())


# (method, number of a stage of another kind than the first) for what looks at every step that a method has.
LATER = [
    ("self_training", 1),
    ("noisy_student", 1),
    ("pl_mixup", 1),
    ("label_propagation", 1),
    ("simclr", 1),
    ("simclrv2", 1),
    ("simclrv2", 2),
    ("dividemix", 1),
    ("dividemix", 2),
    ("dividemix", 3),
    ("sentaugment", 1),
    ("zeromatch", 1),
]

# Runs of 16 steps in several stages: method -> (kinds of stages, options).
ROUNDS = {
    "self_training": (2, ["rounds=2", "threshold=0.1", "joint=rotation", "keep=true"]),
    "noisy_student": (2, ["rounds=2", "threshold=0.1", "teacher_model=wrn-10-1", "allow_smaller=true"]),
    "pl_mixup": (2, ["every=4"]),
    "label_propagation": (2, ["every=4", "neighbours=5", "consistency=1"]),
    "meta_pseudo_labels": (2, ["threshold=0.0", "finetune_share=0.3", "wait_share=0.1"]),
    "dividemix": (4, ["every=2", "warmup_share=0.2"]),
    "simclr": (2, []),
    "simclrv2": (3, ["teacher_model=wrn-10-2"]),
}
