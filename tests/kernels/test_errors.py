"""What callers get wrong is one ValueError that says what came and what was wanted, before any work."""

from __future__ import annotations

import math
import re

import pytest
import torch

from fastssl.kernels import PseudoLabel, consistency_loss, cross_entropy, pseudo_label_loss, pseudo_label_loss_and_grad

X = torch.zeros(4, 3)
GRAD = torch.zeros(4, 3, requires_grad=True)
INTS = torch.zeros(4, 3, dtype=torch.int64)
LABEL = torch.zeros(4, dtype=torch.int64)
READY = PseudoLabel(X[:, 0], LABEL, X[:, 0], X[:, 0])

PSEUDO = [
    ("student shape", torch.zeros(4), X, {}, "student must be a floating-point tensor [N, C] or [V, N, C]; got float32 [4]"),
    ("student dtype", INTS, X, {}, "student must be a floating-point tensor [N, C] or [V, N, C]; got int64 [4, 3]"),
    ("student type", [1.0], X, {}, "student must be a floating-point tensor [N, C] or [V, N, C]; got list [1.0]"),
    ("one class", torch.zeros(4, 1), torch.zeros(4, 1), {}, "student needs at least 2 classes"),
    ("teacher rows", X, torch.zeros(5, 3), {}, "teacher must be a floating-point tensor [N, C], rows and classes of student = [4, 3]"),
    ("teacher classes", X, torch.zeros(4, 2), {}, "got float32 [4, 2]"),
    ("teacher views", X[None], X[None], {}, "got float32 [1, 4, 3]"),
    ("teacher dtype", X, INTS, {}, "got int64 [4, 3]"),
    ("teacher grad", X, GRAD, {}, "teacher must not require grad, because no gradient reaches it; pass teacher.detach()"),
    ("judge grad", X, X, {"judge": GRAD}, "judge must not require grad"),
    ("judge shape", X, X, {"judge": X[:3]}, "judge must be a floating-point tensor [N, C]"),
    ("judge beside PseudoLabel", X, READY, {"judge": X[:3]}, "judge must be a floating-point tensor [N, C]"),
    ("device", X, X.to("meta"), {}, "teacher must lie on cpu as the other tensors of this call do; got meta"),
    ("weighting", X, X, {"weighting": "soft"}, "weighting must be one of step, smooth, gaussian, confidence, none; got 'soft'"),
    ("align_for", X, X, {"align_for": "label"}, "align_for must be one of both, weight; got 'label'"),
    ("threshold [N]", X, X, {"threshold": torch.zeros(4)}, "threshold must be a floating-point tensor [] or [C] = [3] or [N, 1] = [4, 1]"),
    ("threshold int", X, X, {"threshold": torch.tensor(1)}, "got int64 []"),
    ("threshold nan", X, X, {"threshold": math.nan}, "threshold must be a number or a floating-point tensor"),
    ("threshold None", X, X, {"threshold": None}, "threshold must be a number or a floating-point tensor"),
    ("threshold True", X, X, {"threshold": True}, "threshold must be a number or a floating-point tensor"),
    ("threshold grad", X, X, {"threshold": torch.zeros((), requires_grad=True)}, "threshold must not require grad"),
    ("power 0", X, X, {"power": 0}, "power must be a number above 0; got int 0"),
    ("power tensor", X, X, {"power": torch.ones(())}, "power must be a number above 0; got float32 []"),
    ("power inf", X, X, {"power": math.inf}, "power must be a number above 0; got float inf"),
    ("no variance", X, X, {"weighting": "gaussian"}, "weighting gaussian needs variance"),
    ("variance shape", X, X, {"variance": torch.zeros(3)}, "variance must be a floating-point tensor []; got float32 [3]"),
    ("variance 0", X, X, {"variance": 0.0}, "variance must be a number above 0"),
    ("temperature", X, X, {"temperature": 0.0}, "temperature must be a number above 0, or None for hard labels; got float 0.0"),
    ("align", X, X, {"align": torch.ones(4)}, "align must be a floating-point tensor [C] = [3]; got float32 [4]"),
    ("sample_weight", X, X, {"sample_weight": torch.ones(4, 1)}, "sample_weight must be a floating-point tensor [N] = [4]"),
    ("sample_weight bool", X, X, {"sample_weight": torch.ones(4, dtype=torch.bool)}, "got bool [4]"),
    ("margin", X, X, {"margin": torch.ones(4)}, "margin must be a floating-point tensor [C] = [3]; got float32 [4]"),
    ("margin grad", X, X, {"margin": torch.ones(3, requires_grad=True)}, "margin must not require grad"),
    ("adjust", X, X, {"adjust": 1.0}, "adjust must be a floating-point tensor [C] = [3]; got float 1.0"),
    ("smoothing 1", X, X, {"smoothing": 1.0}, "smoothing must be a number from 0 to below 1; got float 1.0"),
    ("smoothing -1", X, X, {"smoothing": -0.1}, "smoothing must be a number from 0 to below 1"),
    ("soft margin", X, X, {"temperature": 1.0, "margin": torch.ones(3)}, "margin needs hard labels"),
    ("soft smoothing", X, X, {"temperature": 1.0, "smoothing": 0.1}, "smoothing needs hard labels; got smoothing=0.1 with temperature"),
    ("PseudoLabel align", X, READY, {"align": torch.ones(3)}, "align needs the teacher's logits, but teacher is a PseudoLabel"),
    ("PseudoLabel temperature", X, READY, {"temperature": 1.0}, "temperature needs the teacher's logits, but teacher is a PseudoLabel"),
    ("PseudoLabel rows", X[:3], READY, {}, "teacher.label must be an integer tensor [N] = [3]; got int64 [4]"),
    ("PseudoLabel confidence", X, READY._replace(confidence=X), {}, "teacher.confidence must be a floating-point tensor [N] = [4]"),
    ("PseudoLabel label", X, READY._replace(label=LABEL + 3), {}, "teacher.label must hold labels from 0 to 2; got 3 in row 0"),
]


@pytest.mark.parametrize(("student", "teacher", "options", "message"), [case[1:] for case in PSEUDO], ids=[case[0] for case in PSEUDO])
def test_pseudo_label_loss(student, teacher, options: dict, message: str) -> None:
    for call in (pseudo_label_loss, lambda *a, **o: pseudo_label_loss_and_grad(*a, scale=1.0, **o)):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(student, teacher, **options)


@pytest.mark.parametrize("scale", [None, True, math.nan, math.inf, torch.ones(3), torch.ones(4, 1), torch.ones(4, dtype=torch.int64)])
def test_scale(scale) -> None:
    with pytest.raises(ValueError, match="scale must be"):
        pseudo_label_loss_and_grad(X, X, scale=scale)


CROSS = [
    ("logits", torch.zeros(4), LABEL, {}, "logits must be a floating-point tensor [N, C]; got float32 [4]"),
    ("integer logits", INTS, LABEL, {}, "logits must be a floating-point tensor [N, C]; got int64 [4, 3]"),
    ("target rows", X, LABEL[:3], {}, "target must be an integer tensor [N] = [4]; got int64 [3]"),
    ("target float", X, X[:, 0], {}, "target must be an integer tensor [N] = [4]; got float32 [4]"),
    ("target bool", X, LABEL.bool(), {}, "got bool [4]"),
    ("target list", X, [0, 0, 0, 0], {}, "target must be an integer tensor [N] = [4]; got list"),
    ("one-hot integers", X, INTS, {}, "target must be a floating-point tensor [N, C] = [4, 3]; got int64 [4, 3]"),
    ("soft classes", X, X[:, :2], {}, "target must be a floating-point tensor [N, C] = [4, 3]; got float32 [4, 2]"),
    ("soft grad", X, GRAD, {}, "target must not require grad"),
    (
        "soft margin",
        X,
        X,
        {"margin": torch.ones(3)},
        "margin needs hard labels, because it depends on the row's label; got it with a target",
    ),
    ("soft smoothing", X, X, {"smoothing": 0.1}, "smoothing needs hard labels; got smoothing=0.1 with a target [N, C]"),
    ("class_weight", X, LABEL, {"class_weight": torch.ones(4)}, "class_weight must be a floating-point tensor [C] = [3]"),
    ("sample_weight", X, LABEL, {"sample_weight": torch.ones(3)}, "sample_weight must be a floating-point tensor [N] = [4]"),
    ("margin", X, LABEL, {"margin": torch.ones(4)}, "margin must be a floating-point tensor [C] = [3]"),
    ("smoothing", X, LABEL, {"smoothing": "a"}, "smoothing must be a number from 0 to below 1; got str 'a'"),
    ("target device", X, LABEL.to("meta"), {}, "target must lie on cpu"),
]


@pytest.mark.parametrize(("logits", "target", "options", "message"), [case[1:] for case in CROSS], ids=[case[0] for case in CROSS])
def test_cross_entropy(logits, target, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        cross_entropy(logits, target, **options)


CONSISTENCY = [
    ("kind", X, X, {"kind": "js"}, "kind must be one of mse, kl, ce; got 'js'"),
    ("teacher_is", X, X, {"teacher_is": "labels"}, "teacher_is must be one of logits, probabilities; got 'labels'"),
    ("temperature", X, X, {"temperature": 0}, "temperature must be a number above 0; got int 0"),
    ("student", X[0], X[0], {}, "student must be a floating-point tensor [N, C]; got float32 [3]"),
    ("teacher", X, X[:3], {}, "teacher must be [N, C] = [4, 3] like student; got [3, 3]"),
    ("teacher dtype", X, INTS, {}, "teacher must be a floating-point tensor [N, C]; got int64 [4, 3]"),
    ("device", X, X.to("meta"), {}, "teacher must lie on cpu"),
    ("sample_weight", X, X, {"sample_weight": torch.ones(4, 1)}, "sample_weight must be a floating-point tensor [N] = [4]"),
]


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"), [case[1:] for case in CONSISTENCY], ids=[case[0] for case in CONSISTENCY]
)
def test_consistency_loss(student, teacher, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        consistency_loss(student, teacher, **options)


def test_labels_on_a_device_are_asserted_only_when_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    """FASTSSL_KERNELS_DEBUG=1: an assertion on the device, whose value the host does not ask for. A meta tensor stands for the device."""
    from fastssl.kernels import _check

    asserted = []
    monkeypatch.setattr(torch, "_assert_async", lambda holds, message: asserted.append((holds.is_meta, message)))
    label = torch.zeros(4, dtype=torch.int64, device="meta")
    _check.labels_in_range("target", label, 3)
    assert asserted == []
    monkeypatch.setenv("FASTSSL_KERNELS_DEBUG", "1")
    _check.labels_in_range("target", label, 3)
    assert asserted == [(True, "target must hold labels from 0 to 2")]
