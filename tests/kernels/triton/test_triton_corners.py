"""Where Triton once differed from the reference: inference mode, keywords, forward mode, targets of no mass, extreme maxima, many views."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.autograd import forward_ad

from fastssl import kernels
from fastssl.kernels import PseudoLabel, _dispatch, _launch, class_statistics, consistency_loss, cross_entropy, pseudo_label_loss, reference

NAN, INF = math.nan, math.inf
LOWEST = torch.finfo(torch.float32).min
N, C = 4, 6


def inputs(device: str, *, made_in_inference: bool = False) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    with torch.inference_mode(made_in_inference):
        made = {name: torch.randn(N, C, generator=g).to(device) * 2 for name in ("student", "teacher")}
        made |= {name: torch.rand(C, generator=g).to(device) + 0.5 for name in ("align", "margin", "adjust", "class_weight")}
        return made | {"sample_weight": torch.rand(N, generator=g).to(device) + 0.5, "label": torch.arange(N, device=device) % C}


LOSSES: dict[str, Callable] = {
    "hard": lambda s, x: pseudo_label_loss(s, x["teacher"], threshold=0.1, margin=x["margin"], sample_weight=x["sample_weight"]).loss,
    "soft": lambda s, x: pseudo_label_loss(s, x["teacher"], threshold=0.1, temperature=0.5, align=x["align"], adjust=x["adjust"]).loss,
    "ready": lambda s, x: (
        pseudo_label_loss(s, PseudoLabel(*(x[k] for k in ("sample_weight", "label", "sample_weight", "sample_weight"))), threshold=0.1).loss
    ),
    "ce": lambda s, x: cross_entropy(s, x["label"], margin=x["margin"], class_weight=x["class_weight"], smoothing=0.1),
    "ce soft": lambda s, x: cross_entropy(s, x["teacher"].softmax(1), adjust=x["adjust"], sample_weight=x["sample_weight"]),
    "kl": lambda s, x: consistency_loss(s, x["teacher"], kind="kl", sample_weight=x["sample_weight"]),
}


class Wrapped(torch.Tensor):
    """Not a plain tensor, so that the operators serve it rather than the autograd.Functions."""


@pytest.mark.parametrize("kind", [torch.Tensor, Wrapped])
@pytest.mark.parametrize("name", LOSSES)
def test_inputs_made_in_inference_mode_serve(name: str, kind: type, device: str) -> None:
    """Teachers and labels often are; torch saves none of them for a backward pass."""
    slopes = []
    for made_in_inference in (True, False):
        x = inputs(device, made_in_inference=made_in_inference)
        assert x["teacher"].is_inference() == made_in_inference
        student = inputs(device)["student"].as_subclass(kind).requires_grad_()
        slopes.append(torch.autograd.grad(LOSSES[name](student, x).sum(), student)[0])
    assert torch.equal(*slopes) and slopes[0].abs().sum() > 0


@pytest.mark.parametrize("asked", ["triton", ""])
def test_keywords_in_any_order_are_served_alike(asked: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSSL_KERNELS", asked)
    served, find = [], _dispatch.triton_kernels
    monkeypatch.setattr(_dispatch, "triton_kernels", lambda name: served.append(name) or find(name))
    x = inputs(device)
    student, teacher, label = x["student"], x["teacher"], x["label"]
    pseudo_label_loss(threshold=0.5, student=student, teacher=teacher)
    pseudo_label_loss(teacher=PseudoLabel(*pseudo_label_loss(student, teacher)), student=student)
    kernels.pseudo_label_loss_and_grad(scale=1.0, teacher=teacher, student=student)
    cross_entropy(smoothing=0.1, target=label, logits=student)
    consistency_loss(kind="mse", teacher=teacher, student=student)
    class_statistics(threshold=None, teacher=teacher)
    assert served == [*["pseudo_label_loss"] * 3, "pseudo_label_loss_and_grad", "cross_entropy", "consistency_loss", "class_statistics"]


@pytest.mark.parametrize("name", LOSSES)
def test_forward_mode_keeps_its_tangents(name: str, device: str) -> None:
    x = inputs(device)
    student, tangent = x["student"], torch.linspace(-1, 2, N * C, device=device).reshape(N, C)
    leaf = student.clone().requires_grad_()
    rows = LOSSES[name](leaf, x)
    slope = torch.stack([torch.autograd.grad(row, leaf, retain_graph=True)[0] for row in rows])
    wanted = (slope * tangent).sum((1, 2))
    assert wanted.abs().min() > 1e-4
    with forward_ad.dual_level():
        found = [forward_ad.unpack_dual(LOSSES[name](forward_ad.make_dual(student, tangent), x)).tangent]
    call = lambda s: torch.func.jvp(lambda z: LOSSES[name](z, x), (s,), (tangent,))[1]  # noqa: E731
    torch.compiler.reset()
    found += [call(student), torch.compile(call, fullgraph=True, backend="aot_eager")(student)]
    for tangents in found:
        torch.testing.assert_close(tangents, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("student", [[NAN, 0.0], [-INF, -INF], [INF, 0.0], [-INF, 0.0]])
def test_a_target_of_no_mass(student: list[float], device: str, tiles: str) -> None:
    """Nothing is asked of such a row, but where it has no softmax that shows."""
    for call, served in (
        (lambda z: reference.cross_entropy(z, torch.zeros_like(z)), lambda z: cross_entropy(z, torch.zeros_like(z))),
        *(
            (
                lambda z, kind=kind: reference.consistency_loss(z, torch.zeros_like(z), kind=kind, teacher_is="probabilities"),
                lambda z, kind=kind: consistency_loss(z, torch.zeros_like(z), kind=kind, teacher_is="probabilities"),
            )
            for kind in ("ce", "kl", "mse")
        ),
    ):
        found = []
        for loss in (call, served):
            z = torch.tensor([student, [1.0, 2.0]], device=device, requires_grad=True)
            rows = loss(z)
            found.append((rows.detach(), torch.autograd.grad(rows.sum(), z)[0]))
        torch.testing.assert_close(*found, equal_nan=True)
        assert found[0][0].isnan().tolist() == [student != [-INF, 0.0], False]


@pytest.mark.parametrize("place", [0, 3, 16, 38])
def test_the_lowest_number_may_be_a_row_s_maximum(place: int, device: str, tiles: str) -> None:
    """A running maximum starts there, and the class that equals it was seen all the same."""
    teacher = torch.full((3, 39), -INF, device=device)
    teacher[0, place], teacher[1, place:], teacher[2, 1] = LOWEST, LOWEST, 0.0
    student = torch.zeros(3, 39, device=device)
    found, wanted = (module.pseudo_label_loss(student, teacher, threshold=0.02) for module in (kernels, reference))
    assert found.label.tolist() == wanted.label.tolist() == [place, place, 1]
    torch.testing.assert_close(found.confidence, wanted.confidence)
    assert torch.equal(class_statistics(teacher).histogram, reference.class_statistics(teacher).histogram)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_maxima_the_first_is_the_label(dtype: torch.dtype, device: str, tiles: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they lie: a long row's ends are walked last, and one of them comes first."""
    if tiles == "looped":
        monkeypatch.setattr(_launch, "STEP", _launch.STEP._replace(classes=128))
    pairs = [(0, 5), (0, 200), (1, 300), (2, 130), (7, 8), (100, 228), (130, 131), (140, 299), (299, 300)]
    teacher = torch.zeros(len(pairs), 301, dtype=dtype, device=device)
    for row, pair in enumerate(pairs):
        teacher[row, list(pair)] = 5.0
    assert pseudo_label_loss(teacher, teacher).label.tolist() == [first for first, _ in pairs]


@pytest.mark.parametrize("classes", [2, 5, 10, 37])
def test_a_confidence_of_exactly_the_threshold_counts(classes: int, device: str, tiles: str) -> None:
    teacher = torch.zeros(1, classes, device=device)
    confidence = reference.pseudo_label_loss(teacher, teacher).confidence.item()
    for threshold in (confidence, math.nextafter(confidence, 2.0) + 1e-7):
        found, wanted = (module.pseudo_label_loss(teacher, teacher, threshold=threshold).weight for module in (kernels, reference))
        assert found.tolist() == wanted.tolist() == [float(threshold == confidence)]


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}])
def test_more_views_than_a_grid_is_wide(limit: int, options: dict, device: str, normal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "GRID", limit)
    student, teacher = normal(1, 5, 3, C, dtype=torch.float32).to(device), normal(2, 3, C, dtype=torch.float32).to(device)
    slopes = []
    for module in (kernels, reference):
        leaf = student.clone().requires_grad_()
        loss = module.pseudo_label_loss(leaf, teacher, threshold=0.1, **options).loss
        slopes.append(torch.autograd.grad(loss, leaf, torch.linspace(-1, 2, 15, device=device))[0])
    torch.testing.assert_close(*slopes)
    assert bool((slopes[0].abs().sum((1, 2)) > 0).all())


def test_a_grid_never_exceeds_what_cuda_launches() -> None:
    for views in (0, 1, 65535, 65536, 1 << 20):
        wide, deep = _launch.beside(views)
        assert wide <= 65535 and deep <= 65535 and wide * deep >= views and (views == 0) == (0 in (wide, deep))


def test_a_script_trace_holds_no_values_of_its_example(device: str) -> None:
    def both(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found, gradient = kernels.pseudo_label_loss_and_grad(student, teacher, scale=1.0, threshold=0.5)
        return found.loss, gradient

    x = inputs(device)
    with pytest.warns(Warning):  # torch.jit is deprecated; shapes are frozen
        traced = torch.jit.trace(both, (x["student"], x["teacher"]), check_trace=False)
    student, teacher = x["teacher"] * 2, x["student"].flip(0)
    student[1], teacher[2] = NAN, 0.0
    for ours, theirs in zip(traced(student, teacher), both(student, teacher), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_confidences_are_divided_with_correct_rounding(python: Callable) -> None:
    """As compiled for a GPU: Triton's own division of float32 may be off in the last place, and would decide ties with a threshold anew."""
    code = """
import torch
from triton.runtime.driver import driver
from bench.compiled_cases import cases
from bench.compiled_kernels import Standin

found = []
class Recorder:
    def __getitem__(self, grid):
        return lambda **given: found.append(case.launch.kernel.warmup(grid=grid, **given).asm["ptx"])
driver.set_active(Standin(90))
for call in ("pseudo_label_loss_and_grad (step)", "class_statistics (every row)"):
    for classes in (1000, 21841):
        case = next(iter(cases([f"{call}, C {classes}, bfloat16"])))
        case.launch._replace(kernel=Recorder()).run(torch.device("cpu"))
print(*(ptx.count("div.rn.f32") for ptx in found))
"""
    counts = python("-W", "ignore", "-c", code, TRITON_INTERPRET="0").stdout.split()
    assert len(counts) == 4 and all(int(count) > 0 for count in counts)
