"""No data-dependent branch and no host read: one graph under torch.compile with eager's results, and no value asked of a meta tensor."""

from __future__ import annotations

import pytest
import torch

from fastssl.kernels import PseudoLabel, class_statistics, consistency_loss, cross_entropy, pseudo_label_loss, pseudo_label_loss_and_grad

G = torch.Generator().manual_seed(0)
N, C = 6, 5


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G) * 2


TEACHER, JUDGE, WEIGHT, COLUMN = normal(N, C), normal(N, C), torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 1.0]), normal(C).abs()
LABEL, READY = torch.arange(N) % C, pseudo_label_loss(normal(N, C), TEACHER, threshold=0.3)
CALLS = {
    "step": lambda s: pseudo_label_loss(s, TEACHER, threshold=0.5),
    "views": lambda s: pseudo_label_loss(
        torch.stack([s, s * 2]), TEACHER, threshold=0.5, margin=COLUMN, smoothing=0.2, sample_weight=WEIGHT
    ),
    "smooth": lambda s: pseudo_label_loss(s, TEACHER, threshold=COLUMN / 4, weighting="smooth", adjust=COLUMN, judge=JUDGE),
    "gaussian": lambda s: pseudo_label_loss(s, TEACHER, threshold=COLUMN[0], weighting="gaussian", variance=COLUMN[1], align=COLUMN),
    "soft": lambda s: pseudo_label_loss(s, TEACHER, threshold=TEACHER[:, :1], weighting="confidence", temperature=0.5),
    "weight": lambda s: pseudo_label_loss(s, TEACHER, weighting="none", align=COLUMN, align_for="weight"),
    "ready": lambda s: pseudo_label_loss(s, PseudoLabel(*(t.detach() for t in READY)), threshold=0.6, judge=JUDGE),
    "ce": lambda s: (cross_entropy(s, LABEL, margin=COLUMN, smoothing=0.1, class_weight=COLUMN, sample_weight=WEIGHT),),
    "ce soft": lambda s: (cross_entropy(s, TEACHER.softmax(1), adjust=COLUMN, class_weight=COLUMN),),
    "mse": lambda s: (consistency_loss(s, TEACHER),),
    "kl": lambda s: (consistency_loss(s, TEACHER, kind="kl", temperature=2.0, sample_weight=WEIGHT),),
    "ce of probabilities": lambda s: (consistency_loss(s, TEACHER.softmax(1), kind="ce", teacher_is="probabilities", temperature=0.5),),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_compiled_equals_eager(call) -> None:
    student = normal(N, C).requires_grad_()
    torch.compiler.reset()
    wanted, got = call(student), torch.compile(call, fullgraph=True, backend="aot_eager")(student)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    # Detached in eager, detached compiled.
    assert [t.requires_grad for t in got] == [t.requires_grad for t in wanted] == [True] + [False] * (len(wanted) - 1)
    gradients = [torch.autograd.grad(out[0].sum(), student)[0] for out in (got, wanted)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


def test_closed_form_and_statistics_compiled() -> None:
    def both(student: torch.Tensor, scale: torch.Tensor):
        found, gradient = pseudo_label_loss_and_grad(student, TEACHER, scale=scale, threshold=0.5, margin=COLUMN, smoothing=0.2)
        return (*found, gradient, *class_statistics(TEACHER, threshold=0.5))

    torch.compiler.reset()
    student = normal(2, N, C)
    before = student.clone()
    for ours, theirs in zip(torch.compile(both, fullgraph=True, backend="aot_eager")(student, WEIGHT), both(student, WEIGHT), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(student, before)


def test_one_graph_serves_any_number_of_rows_and_any_number_as_option() -> None:
    """Under dynamic=True the shapes and the plain numbers of the options are symbols while tracing."""
    torch.compiler.reset()
    compiled = torch.compile(pseudo_label_loss_and_grad, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 6, 9):
        student, teacher, by = normal(rows, C), normal(rows, C), rows / 30
        hard = {"threshold": 0.4 + by, "weighting": "smooth", "power": 1 + by, "smoothing": by}
        soft = {"threshold": 0.4 + by, "weighting": "gaussian", "variance": by, "temperature": 0.5 + by}
        for options in (hard, soft):
            got, wanted = (call(student, teacher, scale=by, **options) for call in (compiled, pseudo_label_loss_and_grad))
            torch.testing.assert_close(got, wanted)


@pytest.mark.compiler
def test_inductor_equals_eager() -> None:
    torch.compiler.reset()
    student, call = normal(2, N, C).requires_grad_(), lambda s: pseudo_label_loss(s, TEACHER, threshold=0.5, margin=COLUMN, smoothing=0.2)
    wanted, got = call(student), torch.compile(call, fullgraph=True)(student)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(out.loss.sum(), student)[0] for out in (got, wanted)))


@pytest.mark.parametrize("name", ["views", "smooth", "gaussian", "soft", "weight", "ready", "ce", "ce soft", "mse", "kl"])
def test_no_value_is_asked_of_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A meta tensor has no values: .item(), bool(), nonzero() and boolean indexing raise on it, as they would stop the host on a GPU."""
    for constant in ("TEACHER", "JUDGE", "WEIGHT", "COLUMN", "LABEL"):
        monkeypatch.setitem(globals(), constant, globals()[constant].to("meta"))
    monkeypatch.setitem(globals(), "READY", PseudoLabel(*(t.detach().to("meta") for t in READY)))
    student = torch.zeros(N, C, device="meta", requires_grad=True)
    rows = CALLS[name](student)[0]
    rows.sum().backward()
    assert rows.is_meta and student.grad.is_meta


def test_no_value_is_asked_by_closed_form_and_statistics() -> None:
    x = torch.zeros(N, C, device="meta")
    found, gradient = pseudo_label_loss_and_grad(x[None], x, scale=x[:, 0], threshold=x[0], margin=x[0], smoothing=0.1)
    assert found.loss.is_meta and gradient.shape == (1, N, C)
    assert class_statistics(x, threshold=x[0]).histogram.is_meta
