"""FineSSL's loss against its equations in float64, written here in plain torch; and that the module travels."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from fastssl.kernels.finessl_loss import FineSSLLoss

N, C, V = 40, 4, 2


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


WEAK, AUXILIARY_WEAK, STRONG, AUXILIARY = drawn(1, N, C), drawn(2, N, C), drawn(3, V, N, C), drawn(4, V, N, C)
MARGIN = torch.tensor([0.9, 1.5, 2.1, 2.7], dtype=torch.float64)


def p(z: Tensor) -> Tensor:
    powers = (z - z.max(-1, keepdim=True).values).exp()
    return powers / powers.sum(-1, keepdim=True)


def ce(q: Tensor, z: Tensor) -> Tensor:
    return -(q * p(z).log()).sum(-1)


LABEL = torch.eye(C, dtype=torch.float64)[WEAK.argmax(1)]
SIGMA, OMEGA = p(WEAK).max(1).values, p(AUXILIARY_WEAK).max(1).values


def papers(student: Tensor, auxiliary: Tensor, gamma: float = 3.0, threshold: float = 0.7, least: float = 0.0, eps: float = 0.5) -> Tensor:
    """gamma L_u + L_u1 of students [V, N, C]; every logit but the label's gets margin[label]."""
    shifted = student + MARGIN[WEAK.argmax(1)][:, None] * (1 - LABEL)
    main = ((OMEGA >= least) * OMEGA * ce(LABEL, shifted)).mean()
    smoothed = LABEL * (1 - eps) + (1 - LABEL) * eps / (C - 1)
    kept = SIGMA >= threshold
    return gamma * main + (ce(smoothed, auxiliary)[:, kept].mean() if kept.any() else 0.0)


OPTIONS = {"default": (), "masked": (1.0, 0.6, 0.8, 0.0), "none kept": (0.5, 1.0, 0.0, 0.2)}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_value_and_gradient_are_the_papers(options: tuple[float, ...]) -> None:
    student, auxiliary = STRONG.clone().requires_grad_(), AUXILIARY.clone().requires_grad_()
    wanted = papers(student, auxiliary, *options)
    gradients = torch.autograd.grad(wanted, (student, auxiliary), allow_unused=True, materialize_grads=True)
    assert (gradients[1].abs().sum() > 0) == (options != OPTIONS["none kept"])
    assert 0 < ((gradients[0] != 0).sum() if options == OPTIONS["masked"] else 1) < V * N * C
    for reduction, whole in (("mean", lambda x: x), ("none", torch.mean), ("sum", lambda x: x / (V * N))):
        got = whole(FineSSLLoss(*options, reduction=reduction)(student, WEAK, auxiliary, AUXILIARY_WEAK, MARGIN))
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(got, (student, auxiliary)), gradients, rtol=1e-11, atol=1e-12)


def test_one_view() -> None:
    got = FineSSLLoss()(STRONG[0], WEAK, AUXILIARY[0], AUXILIARY_WEAK, MARGIN)
    torch.testing.assert_close(got, papers(STRONG[:1], AUXILIARY[:1]))


def test_rows_come_apart() -> None:
    """A row's value is what it adds: taking one sample's part away leaves the other rows' alone."""
    rows = FineSSLLoss(reduction="none")(STRONG, WEAK, AUXILIARY, AUXILIARY_WEAK, MARGIN)
    assert rows.shape == (V * N,)
    moved = STRONG.clone()
    moved[1, 3] += drawn(5, C)
    other = FineSSLLoss(reduction="none")(moved, WEAK, AUXILIARY, AUXILIARY_WEAK, MARGIN)
    assert (rows != other).nonzero().tolist() == [[N + 3]]


def test_it_hands_out_what_the_pace_counts() -> None:
    loss, rows = FineSSLLoss()(STRONG, WEAK, AUXILIARY, AUXILIARY_WEAK, MARGIN, return_pseudo_label=True)
    assert loss == FineSSLLoss()(STRONG, WEAK, AUXILIARY, AUXILIARY_WEAK, MARGIN) > 0
    torch.testing.assert_close(rows.label, WEAK.argmax(1))
    torch.testing.assert_close(rows.confidence, SIGMA)
    torch.testing.assert_close(rows.weight, OMEGA.repeat(V))


def test_the_module_travels() -> None:
    loss = FineSSLLoss(2.0, 0.6, 0.1, 0.3)
    arguments = (STRONG, WEAK, AUXILIARY, AUXILIARY_WEAK, MARGIN)
    wanted = loss(*arguments)
    assert not loss.state_dict() and not list(loss.parameters())
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss).to(torch.bfloat16)):
        assert other(*arguments) == wanted and repr(other) == repr(loss)
    assert repr(loss) == "FineSSLLoss(gamma=2.0, threshold=0.6, least_weight=0.1, smoothing=0.3, reduction='mean')"
    half = loss(*(a.bfloat16() for a in arguments[:4]), MARGIN.float())
    assert half.dtype == torch.float32 and half.item() == pytest.approx(wanted.item(), rel=0.05)


def test_one_graph() -> None:
    torch.compiler.reset()
    student = STRONG.clone().requires_grad_()
    loss = FineSSLLoss()
    calls = (loss, torch.compile(loss, fullgraph=True, backend="aot_eager"))
    results = [call(student, WEAK, AUXILIARY, AUXILIARY_WEAK, MARGIN) for call in calls]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(result, student)[0] for result in results))


def test_a_lost_teacher_shows_and_a_row_not_kept_does_not() -> None:
    lost = WEAK.clone()
    lost[0, 0] = torch.nan
    assert FineSSLLoss()(STRONG, lost, AUXILIARY, AUXILIARY_WEAK, MARGIN).isnan()
    unkept, auxiliary = int((SIGMA < 0.7).nonzero()[0]), AUXILIARY.clone()
    auxiliary[:, unkept] = torch.nan
    torch.testing.assert_close(FineSSLLoss()(STRONG, WEAK, auxiliary, AUXILIARY_WEAK, MARGIN), papers(STRONG, AUXILIARY))


def test_no_row_gives_0() -> None:
    none = torch.zeros(0, C)
    assert FineSSLLoss()(none, none, none, none, MARGIN).item() == 0


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FineSSLLoss(gamma=-1), "gamma must be a number from 0"),
        (lambda: FineSSLLoss(threshold=7), "threshold must be a number from 0 to 1"),
        (lambda: FineSSLLoss(least_weight=-1), "least_weight must be a number from 0 to 1"),
        (lambda: FineSSLLoss(smoothing=1), "smoothing must be a number from 0 to below 1"),
        (lambda: FineSSLLoss(reduction="avg"), "reduction must be one of mean, sum, none; got 'avg'"),
        (lambda: FineSSLLoss()(X, X, X[:1], X, X[0]), r"auxiliary_student must be \[2, 3\] like student; got \[1, 3\]"),
        (lambda: FineSSLLoss()(X, X, None, X, X[0]), "auxiliary_student must be a floating-point tensor"),
        (lambda: FineSSLLoss()(X, X, X, X[:1], X[0]), "judge must be a floating-point tensor"),
        (lambda: FineSSLLoss()(X, X, X, X, X[0, :2]), r"margin must be .* \[C\] = \[3\]; got float32 \[2\]"),
    ],
)
def test_errors(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
