"""The peers of the GPU benchmark compute one function, and what holds them to it sees a fault. All on the CPU, at tiny shapes."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest
import torch

from bench import finessl_block, gpu_checks, loss_peers, value_checks

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
COMPILED = [pytest.param(name, marks=[pytest.mark.compiler, pytest.mark.slow]) for name in ("compile", "compile_closed")]


@pytest.fixture
def tiny() -> tuple[torch.Tensor, torch.Tensor]:
    return loss_peers.inputs(40, 11, torch.float32, CPU, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["eager", *COMPILED, "ours_autograd", "ours_at_once"])
def test_peer_is_right(name: str, dtype: torch.dtype) -> None:
    torch.compiler.reset()
    peer = loss_peers.make(name)
    student, teacher = loss_peers.inputs(24, 11, dtype, CPU, 3)
    for gradient in (True, False) if peer.loss else (True,):
        assert loss_peers.fault(peer, student, teacher, gradient) is None


@pytest.mark.slow
def test_liger_is_right_in_the_interpreter(python) -> None:
    if importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("needs liger-kernel: pip install liger-kernel")
    triton, numpy = (tuple(map(int, importlib.metadata.version(name).split(".")[:2])) for name in ("triton", "numpy"))
    if triton <= (3, 6) and numpy >= (2, 5):
        pytest.skip("the interpreter of triton 3.6 fails with numpy 2.5")
    code = """
import torch
from bench import loss_peers
peer = loss_peers.make("liger")
for dtype in (torch.float32, torch.bfloat16):
    student, teacher = loss_peers.inputs(9, 11, dtype, torch.device("cpu"), 1)
    for gradient in (True, False):
        print(loss_peers.fault(peer, student, teacher, gradient))
given = student.clone()
peer.both(given, teacher)
print(torch.equal(given, student))
"""
    found = python("-c", code, TRITON_INTERPRET="1").stdout.split()
    assert found == ["None"] * 4 + ["False"], "right in both dtypes and forms, and it does write over the logits, as `spoils` says"


def test_truth_agrees_with_autograd_in_float64(tiny) -> None:
    student, teacher = (t.double() for t in tiny)
    loss, gradient = loss_peers.with_gradient(loss_peers.eager_loss)(student, teacher)
    assert max(loss_peers.deviation(loss, gradient, student, teacher, chunk=7)) < 1e-12


def broken(what: str) -> loss_peers.Peer:
    """Eager with one fault."""
    right = loss_peers.with_gradient(loss_peers.eager_loss)

    def both(student, teacher):
        loss, gradient = right(student, teacher)
        if what == "gradient":
            gradient[3] *= 1.01
        elif what == "loss":
            loss = loss * 1.001
        elif what == "nan":
            gradient[0, 0] = float("nan")
        elif what == "dtype":
            gradient = gradient.double()
        elif what == "changed":
            student[0, 0] += 1
        return loss, gradient

    return loss_peers.Peer(what, None, both)


@pytest.mark.parametrize(
    ("what", "told"), [("gradient", "gradient off"), ("loss", "mean loss"), ("nan", "nan"), ("dtype", "float64"), ("changed", "changed")]
)
def test_fault_is_found(tiny, what: str, told: str) -> None:
    # The gradient of a kept row must be what is broken: rows of weight 0 have none.
    student, teacher = tiny
    teacher[3] = teacher[(teacher.softmax(1).amax(1) >= loss_peers.THRESHOLD).nonzero()[0, 0]]
    assert told in loss_peers.fault(broken(what), student, teacher, True)


@pytest.mark.parametrize("classes", [10, 100, 1000, 21841, 65536])
def test_about_half_of_the_rows_are_kept(classes: int) -> None:
    for dtype in DTYPES:
        _, teacher = loss_peers.inputs(200, classes, dtype, CPU, 0)
        assert 0.3 < loss_peers.kept(teacher) < 0.7
        first, second = teacher.topk(2, dim=1).values.unbind(1)
        assert bool((first > second).all()), "no ties"
        assert float((teacher.double().softmax(1).amax(1) - loss_peers.THRESHOLD).abs().min()) > 5e-5


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in ("official", "sync_free", "ours_autograd", "ours_at_once")
        for dtype in (torch.float32, torch.float16, torch.float64)
    ]
    + [pytest.param("compile", torch.float32, marks=[pytest.mark.compiler, pytest.mark.slow])],
    ids=str,
)
def test_finessl_block_is_right(name: str, dtype: torch.dtype) -> None:
    torch.compiler.reset()
    step = finessl_block.make_step(8, 12, 400, dtype, CPU, 0)
    memory = finessl_block.make_memory(12, 400, CPU, 1)
    assert finessl_block.margins(memory.counts / memory.counts.max()).max() > 1, "the margin matters in these inputs"
    before = [t.clone() for t in (*step, *memory)]
    block = finessl_block.BLOCKS[name][0]()
    assert finessl_block.fault(name, block, step, memory) is None
    assert all(torch.equal(a, b) for a, b in zip(before, (*step, *memory), strict=True))


@pytest.mark.parametrize(("name", "wrong"), [("GAMMA", 2.0), ("SMOOTHING", 0.4), ("SURE", 0.5), ("MARGIN_SCALE", 7.0)])
def test_finessl_fault_is_found(monkeypatch: pytest.MonkeyPatch, name: str, wrong: float) -> None:
    step = finessl_block.make_step(8, 12, 400, torch.float32, CPU, 0)
    memory = finessl_block.make_memory(12, 400, CPU, 1)
    right = getattr(finessl_block, name)

    def block(step, memory):
        monkeypatch.setattr(finessl_block, name, wrong)
        result = finessl_block.ours_at_once(step, memory)
        monkeypatch.setattr(finessl_block, name, right)
        return result

    assert finessl_block.fault("ours_at_once", block, step, memory) is not None


def test_checks_pass_on_the_cpu_or_say_why_not() -> None:
    values = [c.__name__ for c in gpu_checks.CHECKS if c is not gpu_checks.compiled]
    outcomes = {o.name: o for o in gpu_checks.run_checks(CPU, classes=(2, 3, 10, 33), only=tuple(values))}
    assert set(outcomes) == set(values)
    assert [o for o in outcomes.values() if o.status == "failed"] == []
    skipped = {name for name, o in outcomes.items() if o.status == "skipped"}
    assert skipped == {"no_host_sync", "graph_replay", "other_streams", "second_device", "peak_memory", "beyond_int32"}
    assert all(outcomes[name].detail == "needs CUDA" for name in skipped)


@pytest.mark.parametrize("check", ["dtypes_and_classes", "options", "layouts", "dead_rows_and_nan"])
def test_checks_see_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    right = value_checks.pseudo_label_loss_and_grad

    def wrong(student, teacher, **options):
        found, gradient = right(student, teacher, **options)
        return found, gradient + 1e-3

    monkeypatch.setattr(value_checks, "pseudo_label_loss_and_grad", wrong)
    (outcome,) = gpu_checks.run_checks(CPU, classes=(2, 3, 10), only=(check,))
    assert outcome.status == "failed" and "gradient" in outcome.detail


@pytest.mark.parametrize("name", ["cross_entropy", "consistency_loss", "class_statistics"])
def test_checks_see_another_wrong_loss(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    right = getattr(value_checks, name)

    def wrong(*args, **options):
        found = right(*args, **options)
        return found._replace(histogram=found.histogram + 1) if name == "class_statistics" else found * 1.001

    monkeypatch.setattr(value_checks, name, wrong)
    (outcome,) = gpu_checks.run_checks(CPU, classes=(2, 3, 10), only=("other_losses",))
    assert outcome.status == "failed"


@pytest.mark.parametrize("check", ["deterministic", "inputs_unmodified"])
def test_checks_see_a_broken_law(monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    right = gpu_checks.pseudo_label_loss_and_grad

    def wrong(student, teacher, **options):
        found, gradient = right(student, teacher, **options)
        teacher[0, 0] += 1
        return found, gradient + torch.rand(())

    monkeypatch.setattr(gpu_checks, "pseudo_label_loss_and_grad", wrong)
    (outcome,) = gpu_checks.run_checks(CPU, classes=(3, 10), only=(check,))
    assert outcome.status == "failed"
