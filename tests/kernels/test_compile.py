"""No data-dependent branch and no host read: one graph under torch.compile with eager's results, and no value asked of a meta tensor."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

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


@pytest.mark.parametrize("outside", [C, -1, 255])
def test_labels_outside_are_nan_where_nothing_reads_them(outside: int) -> None:
    """A compiled call raises nothing for a value: the row shows it, unless its sample weight is 0."""

    def both(student, label, weight):
        teacher = PseudoLabel(weight, label, torch.ones_like(weight), weight)
        found, gradient = pseudo_label_loss_and_grad(student, teacher, scale=1.0, threshold=0.5, sample_weight=weight)
        return (
            found.loss,
            gradient.sum(1),
            cross_entropy(student, label, sample_weight=weight),
            cross_entropy(student, label, smoothing=0.1),
        )

    torch.compiler.reset()
    label, weight = (torch.arange(N) % C), torch.ones(N)
    label[1], label[2], weight[2] = outside, outside, 0.0
    found = torch.compile(both, fullgraph=True, backend="aot_eager")(normal(N, C), label, weight)
    lost = [row == 1 for row in range(N)]
    assert [rows.isnan().tolist() for rows in found[:3]] == [lost] * 3 and [rows[2] for rows in found[:3]] == [0, 0, 0]
    assert found[3].isnan().tolist() == [row in (1, 2) for row in range(N)]


@pytest.mark.parametrize("name", CALLS)
def test_forward_mode_keeps_its_tangents(name: str) -> None:
    """Dual tensors, func.jvp, and func.jvp within a compiled function, against the sum over the rows' gradients."""
    student, tangent = normal(N, C), torch.linspace(-1, 2, N * C).reshape(N, C)
    leaf = student.clone().requires_grad_()
    rows = CALLS[name](leaf)[0]
    slopes = [torch.autograd.grad(row, leaf, retain_graph=True)[0] for row in rows.flatten()]
    wanted = torch.stack([(slope * tangent).sum() for slope in slopes])
    assert wanted.abs().sum() > 0
    with forward_ad.dual_level():
        found = [forward_ad.unpack_dual(CALLS[name](forward_ad.make_dual(student, tangent))[0]).tangent]
    call = lambda s: torch.func.jvp(lambda z: CALLS[name](z)[0], (s,), (tangent,))[1]  # noqa: E731
    torch.compiler.reset()
    for tangents in (*found, call(student), torch.compile(call, fullgraph=True, backend="aot_eager")(student)):
        torch.testing.assert_close(tangents, wanted, rtol=1e-4, atol=1e-5)


def test_a_script_trace_holds_no_values_of_its_example() -> None:
    def both(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found, gradient = pseudo_label_loss_and_grad(student, teacher, scale=1.0, threshold=0.5)
        return found.loss, gradient

    with pytest.warns(Warning):  # torch.jit is deprecated; shapes are frozen
        traced = torch.jit.trace(both, (normal(N, C), normal(N, C)), check_trace=False)
    student, teacher = normal(N, C), normal(N, C)
    # Of these the closed form asks values: rows that fall away though their logits are broken, and rows that are lost.
    student[1], teacher[1], student[2], teacher[3] = torch.nan, 0.0, torch.nan, torch.nan
    for ours, theirs in zip(traced(student, teacher), both(student, teacher), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
