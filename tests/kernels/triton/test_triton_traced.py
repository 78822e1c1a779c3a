"""The Triton losses where something traces: operators without a fault by opcheck, one graph under torch.compile with eager's results."""

from __future__ import annotations

import pytest
import torch

from fastssl.kernels import PseudoLabel, cross_entropy, pseudo_label, pseudo_label_loss, pseudo_label_loss_and_grad, triton_cross_entropy

G = torch.Generator().manual_seed(0)
N, C = 6, 5


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G) * 2


S, T, J, W, V = normal(N, C), normal(N, C), normal(N, C), torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 1.0]), normal(C).abs()
LABEL, READY = torch.arange(N) % C, (torch.arange(N) % C, torch.linspace(0.3, 0.9, N))
ONCE = ("test_schema", "test_faketensor", "test_autograd_registration")  # a gradient has no gradient: its operator says so
CALLS = {
    "step": lambda s, t: pseudo_label_loss(s, t, threshold=0.5),
    "views": lambda s, t: pseudo_label_loss(
        torch.stack([s, s * 2]), t, threshold=0.5, margin=to(t, V), smoothing=0.2, sample_weight=to(t, W)
    ),
    "smooth": lambda s, t: pseudo_label_loss(s, t, threshold=to(t, V) / 4, weighting="smooth", adjust=to(t, V), judge=to(t, J)),
    "gaussian": lambda s, t: pseudo_label_loss(s, t, threshold=to(t, V)[0], weighting="gaussian", variance=to(t, V)[1], align=to(t, V)),
    "soft": lambda s, t: pseudo_label_loss(s, t, threshold=t[:, :1], weighting="confidence", temperature=0.5),
    "ready": lambda s, t: pseudo_label_loss(s, PseudoLabel(t[:, 0], to(t, READY[0]), to(t, READY[1]), t[:, 0]), threshold=0.6),
    "ce": lambda s, t: (cross_entropy(s, to(t, LABEL), margin=to(t, V), smoothing=0.1, class_weight=to(t, V), sample_weight=to(t, W)),),
    "ce soft": lambda s, t: (cross_entropy(s, t.softmax(1), adjust=to(t, V), class_weight=to(t, V)),),
}


def to(like: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return value.to(like.device)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_compiled_equals_eager(call, device: str) -> None:
    torch.compiler.reset()
    student, teacher = S.to(device).requires_grad_(), T.to(device)
    wanted, got = call(student, teacher), torch.compile(call, fullgraph=True, backend="aot_eager")(student, teacher)
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.equal(ours, theirs)
    assert [t.requires_grad for t in got] == [t.requires_grad for t in wanted] == [True] + [False] * (len(wanted) - 1)
    upstream = torch.linspace(-1, 2, got[0].numel(), device=device)
    slopes = [torch.autograd.grad(out[0], student, upstream)[0] for out in (got, wanted)]
    assert torch.equal(*slopes) and slopes[0].abs().sum() > 0


def test_the_one_launch_form_compiled(device: str) -> None:
    def both(student, teacher, scale):
        found, gradient = pseudo_label_loss_and_grad(student, teacher, scale=scale, threshold=0.5, margin=V.to(device), smoothing=0.2)
        return (*found, gradient)

    torch.compiler.reset()
    student, teacher, scale = torch.stack([S, S * 2]).to(device), T.to(device), W.to(device)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(student, teacher, scale), both(student, teacher, scale), strict=True):
        assert torch.equal(ours, theirs)


def test_one_graph_serves_any_number_of_rows_and_any_number_as_option(device: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(pseudo_label_loss_and_grad, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 6, 9):
        student, teacher, by = normal(rows, C).to(device), normal(rows, C).to(device), rows / 30
        options = {"threshold": 0.4 + by, "weighting": "smooth", "power": 1 + by, "smoothing": by}
        got, wanted = (call(student, teacher, scale=by, **options) for call in (compiled, pseudo_label_loss_and_grad))
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("outside", [C, -1, 255])
def test_labels_outside_are_nan_where_nothing_reads_them(outside: int, device: str) -> None:
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
    label, weight = (torch.arange(N) % C).to(device), torch.ones(N, device=device)
    label[1], label[2], weight[2] = outside, outside, 0.0
    found = torch.compile(both, fullgraph=True, backend="aot_eager")(normal(N, C).to(device), label, weight)
    lost = [row == 1 for row in range(N)]
    assert [rows.isnan().tolist() for rows in found[:3]] == [lost] * 3 and [rows[2] for rows in found[:3]] == [0, 0, 0]
    assert found[3].isnan().tolist() == [row in (1, 2) for row in range(N)]


@pytest.mark.parametrize("soft", [False, True])
def test_opcheck_pseudo_label(device: str, soft: bool) -> None:
    """Schema, aliasing, fakes against real results, and autograd through the dispatcher."""
    student, teacher = torch.stack([S, S * 2]).to(device), T.to(device)
    options = {"threshold": 0.4, "weighting": "step", "power": 1.0, "variance": None, "judge": None, "align": None, "align_for": "both"}
    options |= {"temperature": 0.5 if soft else None, "margin": None if soft else V.to(device), "adjust": V.to(device), "smoothing": 0.0}
    call = pseudo_label.bind(student, teacher, W.to(device), options | {"sample_weight": W.to(device)})
    for gradient in (False, True):
        torch.library.opcheck(pseudo_label.forward_op, (student, *call, gradient))
    torch.library.opcheck(pseudo_label.forward_op, (student.clone().requires_grad_(), *call, False))
    out = pseudo_label.run_forward(student, call, True, False)
    saved = (call.teacher, call.align, call.margin, call.adjust) if soft else (None, None, call.margin, call.adjust)
    arguments = (*saved, out.label, out.weight, out.stats, out.target_stats, torch.linspace(-1, 1, 2 * N, device=device))
    torch.library.opcheck(pseudo_label.backward_op, (student, *arguments, call.temperature, 0.0, "both"), test_utils=ONCE)


@pytest.mark.parametrize("soft", [False, True])
def test_opcheck_cross_entropy(device: str, soft: bool) -> None:
    logits, vector = S.to(device), V.to(device)
    tensors = (None, T.softmax(1).to(device), None, vector, vector) if soft else (LABEL.to(device), None, vector, vector, None)
    ops = triton_cross_entropy
    torch.library.opcheck(ops.forward_op, (logits, *tensors, W.to(device), 0.0))
    torch.library.opcheck(ops.forward_op, (logits.clone().requires_grad_(), *tensors, W.to(device), 0.0))
    _, weight, stats = ops.run_forward(logits, ops.Call(*tensors, W.to(device), 0.0), True)
    torch.library.opcheck(ops.backward_op, (logits, *tensors, weight, stats, torch.linspace(-1, 1, N, device=device), 0.0), test_utils=ONCE)


def test_the_first_call_of_a_process_may_be_a_traced_one(python) -> None:
    """Triton and the operators are imported while Dynamo traces."""
    code = """
import sys, torch
from fastssl.kernels import pseudo_label_loss, cross_entropy
assert "triton" not in sys.modules or torch.cuda.is_available()
device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.randn(4, 3, device=device, requires_grad=True)
compiled = torch.compile(lambda s: pseudo_label_loss(s, s.detach(), threshold=0.4).loss.sum(), fullgraph=True, backend="aot_eager")
compiled(x).backward()
assert "fastssl.kernels.pseudo_label" in sys.modules
assert torch.equal(compiled(x), pseudo_label_loss(x, x.detach(), threshold=0.4).loss.sum())
assert callable(sys.modules["fastssl.kernels"].cross_entropy)
cross_entropy(x, torch.zeros(4, dtype=torch.int64, device=device)).sum().backward()
import fastssl.kernels
assert type(fastssl.kernels.cross_entropy).__name__ == "function", "a submodule took the function's name"
"""
    python("-W", "ignore", "-c", code, TRITON_INTERPRET="0" if torch.cuda.is_available() else "1", FASTSSL_KERNELS="")
