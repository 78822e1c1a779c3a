"""Values and gradients of every loss against float64, on any device: dtypes, class counts, options, memory layouts.

N rows, C classes. The float64 side is `fastssl.kernels.reference`, which the tests hold to an oracle of plain Python numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastssl.kernels import class_statistics, consistency_loss, cross_entropy, pseudo_label_loss, pseudo_label_loss_and_grad, reference

from . import loss_peers

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def away(found: Tensor, want: Tensor) -> float:
    """Norm of the error over the norm of `want`; infinite where shapes or the places of NaN differ."""
    if found.shape != want.shape or not torch.equal(found.isnan(), want.isnan()):
        return float("inf")
    found, want = (t.detach().double().nan_to_num(0.0) for t in (found, want))
    return float((found - want).norm() / want.norm().clamp(min=1e-30))


def faults_of_pseudo_label_loss(student: Tensor, teacher: Tensor, **options) -> Iterator[str]:
    """Both forms of the loss against float64, upstream gradient not 1 and another for every row."""
    rows = student.shape[-2]
    scale = 0.5 + torch.rand(rows, generator=torch.Generator(student.device).manual_seed(7), device=student.device)
    exact = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    z = student.double().requires_grad_()
    want = reference.pseudo_label_loss(z, teacher.double(), **exact)
    (slope,) = torch.autograd.grad((want.loss * scale.double().repeat(len(want.loss) // max(rows, 1))).sum(), z)
    given = student.detach().requires_grad_()
    found = pseudo_label_loss(given, teacher, **options)
    (gradient,) = torch.autograd.grad((found.loss * scale.repeat(len(found.loss) // max(rows, 1))).sum(), given)
    at_once, closed = pseudo_label_loss_and_grad(student, teacher, scale=scale, **options)
    for form, result, its in (("autograd", found, gradient), ("at once", at_once, closed)):
        if not torch.equal(result.label, want.label):
            yield f"{form}: {int((result.label != want.label).sum())} labels"
        for name in ("loss", "confidence", "weight"):
            off = away(getattr(result, name), getattr(want, name))
            if not off <= loss_peers.LOSS_TOLERANCE:
                yield f"{form}: {name} {off:.0e}"
        off = away(its, slope)
        if its.dtype != student.dtype or not off <= loss_peers.GRADIENT_TOLERANCE[student.dtype]:
            yield f"{form}: gradient {off:.0e} {its.dtype}"


def gather(cases: Iterator[tuple[str, Iterator[str]]]) -> str:
    """Runs every case; the faults of all of them in one AssertionError, or how many passed."""
    bad, count = [], 0
    for name, faults in cases:
        count += 1
        found = list(faults)
        if found:
            bad.append(f"{name}: {', '.join(found)}")
    if bad:
        raise AssertionError(f"{len(bad)} of {count} cases: " + "; ".join(bad))
    return f"{count} cases"


def dtypes_and_classes(device: torch.device, classes: tuple[int, ...]) -> str:
    cases = (
        (f"{str(dtype)[6:]} C={c}", faults_of_pseudo_label_loss(*loss_peers.inputs(37, c, dtype, device, c), threshold=0.95))
        for dtype in DTYPES
        for c in classes
    )
    return gather(cases)


def options_of(rows: int, c: int, device: torch.device) -> dict[str, dict]:
    """Every option once, and the combinations that methods use."""
    draw = torch.Generator(device).manual_seed(3)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=draw, device=device)

    judge = loss_peers.spiked(rows, c, 0.7, device, 11, 1e-3)
    weight = uniform(rows) * (uniform(rows) > 0.3)
    return {
        "smooth": {"weighting": "smooth", "threshold": 0.8, "power": 2.0},
        "gaussian, tensors": {"weighting": "gaussian", "threshold": uniform(1)[0], "variance": uniform(1, low=0.1)[0]},
        "confidence, judge, margin": {"weighting": "confidence", "threshold": 0.0, "judge": judge, "margin": uniform(c, high=8.0)},
        "none, soft": {"weighting": "none", "temperature": 0.5},
        "threshold by class": {"threshold": uniform(c, low=0.5)},
        "threshold by row": {"threshold": uniform(rows, 1, low=0.5)},
        "align both": {"weighting": "gaussian", "threshold": 0.6, "variance": 0.2, "align": uniform(c, low=0.5, high=2.0)},
        "align weight, soft": {
            "weighting": "gaussian",
            "threshold": 0.6,
            "variance": 0.2,
            "align": uniform(c, low=0.5, high=2.0),
            "align_for": "weight",
            "temperature": 0.7,
        },
        "margin, smoothing, weights": {"margin": uniform(c, high=8.0), "smoothing": 0.5, "sample_weight": weight, "threshold": 0.7},
        "adjust": {"adjust": uniform(c, low=-2.0), "threshold": 0.7},
    }


def options(device: torch.device, classes: tuple[int, ...]) -> str:
    def cases() -> Iterator[tuple[str, Iterator[str]]]:
        for c in classes[2::3]:
            student, teacher = loss_peers.inputs(37, c, torch.float32, device, c)
            for name, given in options_of(37, c, device).items():
                yield f"{name} C={c}", faults_of_pseudo_label_loss(student, teacher, **given)
            views = torch.stack([student, student.flip(0)])
            yield f"two views C={c}", faults_of_pseudo_label_loss(views, teacher, threshold=0.8, smoothing=0.1)

    return gather(cases())


def layouts(device: torch.device, classes: tuple[int, ...]) -> str:
    def shapes(x: Tensor) -> dict[str, Tensor]:
        rows, c = x.shape
        wide = torch.empty(rows, c + 3, dtype=x.dtype, device=device)
        odd = torch.empty(rows * c + 1, dtype=x.dtype, device=device)
        wide[:, :c], odd[1:] = x, x.flatten()
        twice = x.repeat_interleave(2, dim=1)
        return {
            "rows apart": wide[:, :c],
            "unaligned start": odd[1:].view(rows, c),
            "every second column": twice[:, ::2],
            "transposed": x.t().contiguous().t(),
            "expanded": x[:1].expand(rows, c),
            "one row": x[:1],
            "no row": x[:0],
        }

    def cases() -> Iterator[tuple[str, Iterator[str]]]:
        for c in classes[2::3]:
            for dtype in DTYPES[:2]:
                students, teachers = (shapes(x) for x in loss_peers.inputs(19, c, dtype, device, c))
                for name, student in students.items():
                    yield f"{name} {str(dtype)[6:]} C={c}", faults_of_pseudo_label_loss(student, teachers[name])

    return gather(cases())


def other_losses(device: torch.device, classes: tuple[int, ...]) -> str:
    """cross_entropy, consistency_loss, class_statistics."""

    def compare(function: Callable, twin: Callable, student: Tensor, *args, **given) -> Iterator[str]:
        scale = 0.5 + torch.rand(len(student), device=device)
        results = []
        for f, x, kind in ((function, student.detach(), None), (twin, student.detach().double(), torch.float64)):
            to = [a.to(kind) if kind and a.is_floating_point() else a for a in args]
            x = x.requires_grad_()
            rows = f(x, *to, **{k: v.to(kind) if kind and isinstance(v, Tensor) else v for k, v in given.items()})
            results.append((rows, *torch.autograd.grad((rows * scale.to(rows.dtype)).sum(), x)))
        for name, found, want, allowed in zip(
            ("loss", "gradient"), *results, (loss_peers.LOSS_TOLERANCE, loss_peers.GRADIENT_TOLERANCE[student.dtype]), strict=True
        ):
            off = away(found, want)
            if not off <= allowed:
                yield f"{name} {off:.0e}"

    def statistics(teacher: Tensor) -> Iterator[str]:
        found, want = class_statistics(teacher, threshold=0.8), reference.class_statistics(teacher.double(), threshold=0.8)
        if not torch.equal(found.histogram, want.histogram):
            yield "histogram"
        yield from (
            f for f in ("mean_probability", "confidence_mean", "confidence_var") if not away(getattr(found, f), getattr(want, f)) <= 1e-4
        )

    def cases() -> Iterator[tuple[str, Iterator[str]]]:
        for c in classes[2::3]:
            for dtype in DTYPES[:2]:
                student, teacher = loss_peers.inputs(37, c, dtype, device, c)
                end = f"{str(dtype)[6:]} C={c}"
                label, vector = teacher.argmax(dim=1), torch.rand(c, device=device)
                weight = torch.rand(37, device=device).masked_fill(torch.arange(37, device=device) % 4 == 0, 0.0)
                both, hard = (cross_entropy, reference.cross_entropy), {"margin": 8 * vector, "smoothing": 0.1}
                yield f"cross_entropy hard {end}", compare(*both, student, label, class_weight=vector, sample_weight=weight, **hard)
                yield f"cross_entropy soft {end}", compare(*both, student, teacher.float().softmax(dim=1), adjust=vector)
                for kind in ("mse", "kl", "ce"):
                    pair = (consistency_loss, reference.consistency_loss)
                    yield f"{kind} {end}", compare(*pair, student, teacher, kind=kind, temperature=0.7, sample_weight=weight)
                yield f"class_statistics {end}", statistics(teacher)

    return gather(cases())


def dead_rows_and_nan(device: torch.device, classes: tuple[int, ...]) -> str:
    """Weight 0: exact zeros whatever the student holds; a non-finite teacher: NaN."""

    def check(c: int) -> Iterator[str]:
        student, teacher = loss_peers.inputs(64, c, torch.float32, device, c)
        dead = teacher.softmax(dim=1).amax(dim=1) < loss_peers.THRESHOLD
        if not 0 < int(dead.sum()) < 64:
            yield "these inputs have no dead row, or no other"
        student[dead] = torch.tensor(float("nan"), device=device)
        found, gradient = pseudo_label_loss_and_grad(student, teacher, scale=1.0)
        given = student.clone().requires_grad_()
        rows = pseudo_label_loss(given, teacher).loss
        (slope,) = torch.autograd.grad(rows.sum(), given)
        for name, value in (("loss", found.loss), ("gradient", gradient), ("rows", rows), ("slope", slope)):
            if bool((value[dead] != 0).any()) or bool(value[~dead].isnan().any()):
                yield f"{name} of dead rows"
        teacher[5, 1], teacher[6, 0] = float("nan"), float("inf")
        rows = pseudo_label_loss(torch.zeros_like(student), teacher).loss
        if not bool(rows[5:7].isnan().all()):
            yield "a non-finite teacher does not show"

    return gather((f"C={c}", check(c)) for c in classes)
