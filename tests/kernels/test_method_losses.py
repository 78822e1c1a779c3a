"""The methods' own modules, each against its paper's equation in float64, written here in plain torch."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from fastssl.kernels import PseudoLabel, PseudoLabelLoss
from fastssl.kernels.method_losses import (
    AdaMatchLoss,
    FixMatchLoss,
    FlexMatchLoss,
    FreeMatchLoss,
    MeanTeacherLoss,
    PiModelLoss,
    SmoothFixMatchLoss,
    SoftMatchLoss,
    UDALoss,
)

N, C = 40, 4


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


WEAK, LABELLED, TAU = drawn(1, N, C), drawn(2, 12, C), torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
ALIGN = torch.tensor([0.25, 2.0, 1.0, 0.5], dtype=torch.float64)
MEAN, VARIANCE = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.02, dtype=torch.float64)


def p(z: Tensor) -> Tensor:
    powers = (z - z.max(1, keepdim=True).values).exp()
    return powers / powers.sum(1, keepdim=True)


def ce(q: Tensor, z: Tensor) -> Tensor:
    return -(q * p(z).log()).sum(1)


def onehot(z: Tensor) -> Tensor:
    return torch.eye(C, dtype=torch.float64)[z.argmax(1)]


def top(q: Tensor) -> Tensor:
    return q.max(1).values


def aligned(q: Tensor) -> Tensor:
    return q * ALIGN / (q * ALIGN).sum(1, keepdim=True)


def indicator(condition: Tensor) -> Tensor:
    return condition.double()


def softmatch(s: Tensor, align: bool) -> Tensor:
    d = (top(aligned(p(WEAK)) if align else p(WEAK)) - MEAN).clamp(max=0)
    return (-(d**2) / (2 * VARIANCE / 2**2)).exp() * ce(onehot(WEAK), s)  # two sigmas


def per_class(s: Tensor) -> Tensor:
    return indicator(top(p(WEAK)) >= TAU[WEAK.argmax(1)]) * ce(onehot(WEAK), s)


def smooth(s: Tensor, tau: float, power: float) -> Tensor:
    return ((top(p(WEAK)) - tau).clamp(min=0) / (1 - tau)) ** power * ce(onehot(WEAK), s)


def uda(s: Tensor, threshold: float, temperature: float) -> Tensor:
    return indicator(top(p(WEAK)) >= threshold) * ce(p(WEAK / temperature), s)


# name -> (module of a reduction, its arguments after the student, the paper's rows of a student [N, C])
METHODS = {
    "FixMatch": (lambda r: FixMatchLoss(reduction=r), (WEAK,), lambda s: indicator(top(p(WEAK)) >= 0.95) * ce(onehot(WEAK), s)),
    "FixMatch 0.6": (lambda r: FixMatchLoss(0.6, reduction=r), (WEAK,), lambda s: indicator(top(p(WEAK)) >= 0.6) * ce(onehot(WEAK), s)),
    "SmoothFixMatch": (lambda r: SmoothFixMatchLoss(reduction=r), (WEAK,), lambda s: smooth(s, 0.95, 1)),
    "SmoothFixMatch squared": (lambda r: SmoothFixMatchLoss(0.5, 2, reduction=r), (WEAK,), lambda s: smooth(s, 0.5, 2)),
    "UDA": (lambda r: UDALoss(reduction=r), (WEAK,), lambda s: uda(s, 0.8, 0.4)),
    "UDA 0.5 2.0": (lambda r: UDALoss(0.5, 2.0, reduction=r), (WEAK,), lambda s: uda(s, 0.5, 2.0)),
    "FlexMatch": (lambda r: FlexMatchLoss(reduction=r), (WEAK, TAU), per_class),
    "FreeMatch": (lambda r: FreeMatchLoss(reduction=r), (WEAK, TAU), per_class),
    "SoftMatch": (lambda r: SoftMatchLoss(reduction=r), (WEAK, MEAN, VARIANCE, ALIGN), lambda s: softmatch(s, True)),
    "SoftMatch unaligned": (lambda r: SoftMatchLoss(reduction=r), (WEAK, 0.7, 0.02), lambda s: softmatch(s, False)),
    "AdaMatch": (
        lambda r: AdaMatchLoss(reduction=r),
        (WEAK, LABELLED, ALIGN),
        lambda s: indicator(top(aligned(p(WEAK))) >= 0.9 * top(p(LABELLED)).mean()) * ce(onehot(aligned(p(WEAK))), s),
    ),
    "MeanTeacher": (lambda r: MeanTeacherLoss(reduction=r), (WEAK,), lambda s: ((p(s) - p(WEAK)) ** 2).sum(1) / C),
    "MeanTeacher kl": (lambda r: MeanTeacherLoss("kl", reduction=r), (WEAK,), lambda s: (p(WEAK) * (p(WEAK) / p(s)).log()).sum(1)),
    "PiModel": (lambda r: PiModelLoss(reduction=r), (WEAK,), lambda s: ((p(s) - p(WEAK)) ** 2).sum(1) / C),
    # Lee 2013: no threshold.
    "Pseudo-Label": (lambda r: PseudoLabelLoss(weighting="none", reduction=r), (WEAK,), lambda s: ce(onehot(WEAK), s)),
}
EVERY_ROW_COUNTS = {"SoftMatch", "SoftMatch unaligned", "MeanTeacher", "MeanTeacher kl", "PiModel", "Pseudo-Label"}
OF_PSEUDO_LABELS = [name for name in METHODS if not name.startswith(("MeanTeacher", "PiModel", "Pseudo-Label"))]


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("name", METHODS)
def test_value_and_gradient_are_the_papers(name: str, reduction: str) -> None:
    make, arguments, equation = METHODS[name]
    student, upstream = drawn(3, N, C).requires_grad_(), drawn(4, N) if reduction == "none" else torch.ones((), dtype=torch.float64)
    rows = equation(student)
    live = int((rows != 0).sum())
    assert live == N if name in EVERY_ROW_COUNTS else 0 < live < N  # both kinds of row are there to be told apart
    wanted = {"mean": rows.sum() / N, "sum": rows.sum(), "none": rows}[reduction]
    got = make(reduction)(student, *arguments)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad((loss * upstream).sum(), student)[0] for loss in (got, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", OF_PSEUDO_LABELS)
def test_views_follow_each_other(name: str) -> None:
    make, arguments, equation = METHODS[name]
    student = drawn(5, 3, N, C)
    torch.testing.assert_close(make("none")(student, *arguments), torch.cat([equation(view) for view in student]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OF_PSEUDO_LABELS)
def test_the_pseudo_label_on_request(name: str) -> None:
    """What memories and logs want comes with the loss instead of from a second reading of the teacher."""
    make, arguments, equation = METHODS[name]
    student = drawn(3, N, C)
    loss, rows = make("sum")(student, *arguments, return_pseudo_label=True)
    assert isinstance(rows, PseudoLabel) and loss == make("sum")(student, *arguments) == rows.loss.sum()
    named, judged = (aligned(p(WEAK)) if changed else p(WEAK) for changed in ("Ada" in name, "Ada" in name or name == "SoftMatch"))
    torch.testing.assert_close(rows.label, named.argmax(1))
    torch.testing.assert_close(rows.confidence, top(judged))
    if "UDA" not in name:
        torch.testing.assert_close(rows.weight * ce(onehot(named), student), equation(student))


def of_confidence(*confidences: float) -> Tensor:
    """Logits [N, 3] whose largest probability, at class 0, is what is said."""
    return torch.tensor([[c, (1 - c) * 0.6, (1 - c) * 0.4] for c in confidences], dtype=torch.float64).log()


def test_published_anchors() -> None:
    """Numbers by hand, on students that predict 1/3 everywhere: each row's cross-entropy is log 3."""
    flat = torch.zeros(1, 3, dtype=torch.float64)
    log3 = math.log(3)
    for power, weight in ((1, 0.5), (2, 0.25), (0.5, 0.70711)):
        assert SmoothFixMatchLoss(power=power)(flat, of_confidence(0.975)).item() == pytest.approx(weight * log3, rel=1e-5)
    for confidence, weight in ((0.8, math.exp(-2)), (0.95, 1.0)):
        assert SoftMatchLoss()(flat, of_confidence(confidence), mean=0.9, variance=0.01).item() == pytest.approx(weight * log3, rel=1e-6)
    # AdaMatch: labelled confidences 0.9 and 1.0 at tau 0.9 give a threshold of 0.855.
    labelled, even = of_confidence(0.9, 1 - 1e-12), torch.ones(3, dtype=torch.float64)
    kept = AdaMatchLoss(reduction="none")(flat.expand(2, 3), of_confidence(0.854, 0.856), labelled, even)
    assert kept.tolist() == [0.0, pytest.approx(log3)]
    # FlexMatch: 40 and 10 of 100 samples labelled, the third class's none: thresholds 2/3, 1/9 and 0 of tau.
    counts = torch.tensor([40.0, 10.0, 0.0], dtype=torch.float64)
    beta = counts / torch.maximum(counts.max(), 100 - counts.sum())
    threshold = 0.95 * beta / (2 - beta)
    torch.testing.assert_close(threshold / 0.95, torch.tensor([2 / 3, 1 / 9, 0], dtype=torch.float64))
    kept = FlexMatchLoss(reduction="none")(flat.expand(2, 3), of_confidence(0.632, 0.634), threshold)
    assert kept.tolist() == [0.0, pytest.approx(log3)]


def test_uda_has_the_gradient_of_the_divergence() -> None:
    student = drawn(3, N, C).requires_grad_()
    q, kept = p(WEAK / 0.4), indicator(top(p(WEAK)) >= 0.8)
    divergence = (kept * (q * (q / p(student)).log()).sum(1)).mean()
    ours = UDALoss()(student, WEAK)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (ours, divergence)), rtol=1e-11, atol=1e-12)
    entropy = (kept * ce(q, WEAK / 0.4)).mean()
    assert entropy > 0.001
    torch.testing.assert_close(ours - divergence, entropy)


def test_gradient_into_the_teacher() -> None:
    first, second = drawn(3, N, C).requires_grad_(), drawn(4, N, C).requires_grad_()
    PiModelLoss()(first, second).backward()
    wanted = torch.autograd.grad(((p(first) - p(second)) ** 2).mean(), (first, second))
    torch.testing.assert_close((first.grad, second.grad), wanted)
    for kind in ("mse", "kl"):
        second.grad = None
        MeanTeacherLoss(kind)(first, second).backward()
        assert second.grad is None


CALLS = {name: (make("mean"), (drawn(3, N, C), *arguments)) for name, (make, arguments, _) in METHODS.items()}


@pytest.mark.parametrize("name", CALLS)
def test_modules_travel(name: str) -> None:
    """A copy, a pickle, a cast: same loss, no state; what is single stays single."""
    loss, arguments = CALLS[name]
    wanted = loss(*arguments)
    assert wanted > 0 and not loss.state_dict() and not list(loss.parameters())
    copies = (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss).to(torch.bfloat16), copy.deepcopy(loss).eval())
    for other in copies:
        assert other(*arguments) == wanted and repr(other) == repr(loss)
    half = loss(*(a.bfloat16() if isinstance(a, Tensor) and a.dim() > 1 else a.float() if isinstance(a, Tensor) else a for a in arguments))
    assert half.dtype == torch.float32 and half.item() == pytest.approx(wanted.item(), rel=0.25)


def test_tensor_options_keep_their_dtype() -> None:
    """In bfloat16 0.95 is 0.9492, and rows between the two would slip in."""
    loss, teacher = FixMatchLoss(torch.tensor(0.95)), of_confidence(0.9495)
    assert loss.to(torch.bfloat16).threshold.dtype == torch.float32 and not loss.state_dict()
    assert loss(torch.zeros(1, 3), teacher.float()) == 0 < FixMatchLoss(0.949)(torch.zeros(1, 3), teacher.float())
    assert loss.to("meta").threshold.device.type == "meta"


@pytest.mark.parametrize("name", CALLS)
def test_one_graph(name: str) -> None:
    loss, (student, *rest) = CALLS[name]
    student = student.clone().requires_grad_()
    torch.compiler.reset()
    results = [call(student, *rest) for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager"))]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(result, student)[0] for result in results))


def test_options_of_the_function_go_through() -> None:
    student, keep = drawn(3, N, C), indicator(torch.arange(N) % 2 == 0)
    aligned_rows = indicator(top(aligned(p(WEAK))) >= 0.6) * ce(onehot(aligned(p(WEAK))), student)
    torch.testing.assert_close(FixMatchLoss(0.9)(student, WEAK, align=ALIGN, threshold=0.6), aligned_rows.mean())
    wanted = (keep * METHODS["FlexMatch"][2](student + ALIGN)).mean()
    torch.testing.assert_close(FlexMatchLoss(adjust=ALIGN)(student, WEAK, TAU, sample_weight=keep), wanted)
    assert repr(SmoothFixMatchLoss(0.9, adjust=ALIGN)) == "SmoothFixMatchLoss(threshold=0.9, power=1.0, adjust=[4], reduction='mean')"
    assert repr(UDALoss()) == "UDALoss(threshold=0.8, temperature=0.4, reduction='mean')"
    assert repr(AdaMatchLoss()) == "AdaMatchLoss(threshold=0.9, reduction='mean')"


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixMatchLoss(95), "threshold must be a number from 0 to 1; got int 95"),
        (lambda: FixMatchLoss("0.95"), "threshold must be a number from 0 to 1; got str '0.95'"),
        (lambda: FixMatchLoss(treshold=0.9), r"has no option 'treshold'; did you mean threshold\?"),
        (lambda: FixMatchLoss(weighting="smooth"), "has no option 'weighting'; known: threshold, judge"),
        (lambda: FixMatchLoss(power=2.0), "has no option 'power'"),
        (lambda: FixMatchLoss(reduction="avg"), "reduction must be one of mean, sum, none; got 'avg'"),
        (lambda: FixMatchLoss()(X, X, sample_weigth=X[:, 0]), r"did you mean sample_weight\?"),
        (lambda: FixMatchLoss()(X, X.clone().requires_grad_()), r"pass teacher.detach\(\)"),
        (lambda: SmoothFixMatchLoss(power=0), "power must be a number above 0"),
        (lambda: SmoothFixMatchLoss(1.1), "threshold must be a number from 0 to 1"),
        (lambda: UDALoss(temperature=0), "temperature must be a number above 0"),
        (lambda: UDALoss(-0.1), "threshold must be a number from 0 to 1"),
        (lambda: UDALoss(smoothing=0.1)(X, X), "smoothing needs hard labels"),
        (lambda: FlexMatchLoss(threshold=X[0]), "has no option 'threshold'"),
        (lambda: FlexMatchLoss()(X, X, 0.95), r"threshold must be a tensor \[C\], one for each class; got 0.95. .*FixMatchLoss"),
        (lambda: FreeMatchLoss()(X, X, X[:, :1]), r"threshold must be a tensor \[C\], one for each class; got \[2, 1\]"),
        (lambda: FreeMatchLoss()(X, X, X[0, :2]), r"threshold must be a floating-point tensor .*\[C\] = \[3\].*; got float32 \[2\]"),
        (lambda: SoftMatchLoss()(X, X, X[0], 1.0), r"mean must be a number or a tensor \[\]; got \[3\]"),
        (lambda: SoftMatchLoss()(X, X, None, 1.0), r"mean must be a number or a tensor \[\]; got None"),
        (lambda: SoftMatchLoss()(X, X, 0.5, None), "weighting gaussian needs variance"),
        (lambda: SoftMatchLoss(align=X[0]), "has no option 'align'"),
        (lambda: AdaMatchLoss(1.5), "threshold must be a number from 0 to 1"),
        (lambda: AdaMatchLoss(X[0]), r"threshold must be a number from 0 to 1; got float32 \[3\]"),
        (lambda: AdaMatchLoss()(X, X, X[:0], X[0]), "needs at least one row"),
        (lambda: MeanTeacherLoss("ce"), "kind must be one of mse, kl; got 'ce'"),
        (lambda: MeanTeacherLoss(reduction="avg"), "reduction must be one of"),
        (lambda: PiModelLoss(reduction="avg"), "reduction must be one of"),
    ],
)
def test_errors(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_no_row_gives_0() -> None:
    none = torch.zeros(0, 3, requires_grad=True)
    for loss, rest in ((FixMatchLoss(), ()), (FlexMatchLoss(), (X[0],)), (SoftMatchLoss(), (0.5, 1.0)), (MeanTeacherLoss(), ())):
        assert loss(none, none.detach(), *rest).item() == 0
