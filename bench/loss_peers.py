"""The pseudo-label loss as others compute it, and as fastssl does: the same function of the same inputs, under one signature.

N rows, C classes. Every peer gives the mean over all N rows of [confidence >= 0.95] * cross-entropy(student, argmax teacher), alone or with
its gradient. bfloat16 runs under autocast where a training loop would have it there. `deviation` holds a peer to float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fastssl.kernels import pseudo_label_loss, pseudo_label_loss_and_grad

THRESHOLD = 0.95
# Of the mean loss (computed in float32 from the very inputs that float64 gets) and of the gradient (one rounding to its dtype).
LOSS_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-3, torch.float16: 2e-3}


class Peer(NamedTuple):
    """One implementation."""

    name: str
    loss: Callable[[Tensor, Tensor], Tensor] | None  # (student, teacher) -> mean loss []; None: it has no such form
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (student, teacher) -> (mean loss [], its gradient [N, C])
    capturable: bool = True  # in a CUDA graph
    spoils: bool = False  # `both` writes over `student`
    roundings: int = 1  # to the gradient's dtype, in `both`
    rounds_loss: bool = False  # rows of loss come in the student's dtype
    ours: bool = False


def with_gradient(loss_of: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def both(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        student = student.detach().requires_grad_()
        loss = loss_of(student, teacher)
        loss.backward()
        return loss.detach(), student.grad

    return both


def eager_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """FixMatch's block as training loops write it."""
    with torch.autocast(student.device.type, torch.bfloat16, enabled=student.dtype == torch.bfloat16):
        confidence, label = teacher.softmax(dim=-1).max(dim=-1)
        mask = (confidence >= THRESHOLD).float()
        return (functional.cross_entropy(student, label, reduction="none") * mask).mean()


def closed_form(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient written out, for a compiler to fuse: the most that torch.compile can be given."""
    confidence, label = teacher.float().softmax(dim=-1).max(dim=-1)
    weight = (confidence >= THRESHOLD).float()[:, None] / len(student)
    log_p = student.float().log_softmax(dim=-1)
    target = torch.arange(student.shape[-1], device=student.device) == label[:, None]
    loss = -(torch.where(target, log_p, 0.0) * weight).sum()
    return loss, ((log_p.exp() - target.float()) * weight).to(student.dtype)


def our_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return pseudo_label_loss(student, teacher, threshold=THRESHOLD).loss.mean()


def our_loss_and_gradient(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    found, gradient = pseudo_label_loss_and_grad(student, teacher, scale=1 / len(student), threshold=THRESHOLD)
    return found.loss.mean(), gradient


def _compile() -> Peer:
    loss = torch.compile(eager_loss, fullgraph=True, dynamic=False)
    return Peer("compile", loss, with_gradient(loss))


def _compile_closed() -> Peer:
    return Peer("compile_closed", None, torch.compile(closed_form, fullgraph=True, dynamic=False))


def _liger() -> Peer:
    """Liger's cross-entropy has no mask, so the mask multiplies its rows; it asks the device for values, so no graph can hold it.

    With reduction="sum" and ignored labels it would save nothing: the division by N makes its backward pass multiply all the same.
    """
    from liger_kernel.transformers.functional import liger_cross_entropy

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        confidence, label = teacher.softmax(dim=-1, dtype=torch.float32).max(dim=-1)
        return (liger_cross_entropy(student, label, reduction="none").float() * (confidence >= THRESHOLD)).mean()

    # It stores the gradient over the logits, then multiplies it by the mask: two roundings.
    return Peer("liger", loss, with_gradient(loss), capturable=False, spoils=True, roundings=2, rounds_loss=True)


MAKERS: dict[str, Callable[[], Peer]] = {
    "eager": lambda: Peer("eager", eager_loss, with_gradient(eager_loss)),
    "compile": _compile,
    "compile_closed": _compile_closed,
    "liger": _liger,
    "ours_autograd": lambda: Peer("ours_autograd", our_loss, with_gradient(our_loss), ours=True),
    "ours_at_once": lambda: Peer("ours_at_once", None, our_loss_and_gradient, ours=True),
}


def make(name: str) -> Peer:
    """A peer by its name in MAKERS. An ImportError means that its package is missing."""
    return MAKERS[name]()


def spiked(rows: int, classes: int, threshold: float, device: torch.device, seed: int, clear: float) -> Tensor:
    """Teacher logits [N, C] in fp32: normal noise and one spike a row, so high that about half of the rows reach `threshold` at any C.

    No row has two largest logits, and none has a confidence within `clear` of the threshold, where rounding alone would decide.
    """
    generator = torch.Generator(device).manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, device=device)
    # exp(spike) meets about C * exp(1/2) of noise, so at `middle` the odds of the spike are those of the threshold.
    middle = math.log(classes) + 0.5 + math.log(threshold / (1 - threshold))
    spike = middle + 2 * torch.randn(rows, 1, generator=generator, device=device)
    label = torch.randint(classes, (rows, 1), generator=generator, device=device)
    logits.scatter_(1, label, torch.maximum(spike, logits.amax(dim=1, keepdim=True) + 0.5))
    near = (logits.softmax(dim=1).amax(dim=1) - threshold).abs() < clear
    if rows and bool(near.any()):
        logits[near] = logits[int((~near).nonzero()[0])].clone()
    return logits


def inputs(rows: int, classes: int, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """(student, teacher) [N, C] of one step."""
    # Rounding to bfloat16 moves a logit below 16 by up to 2**-5, and a confidence near 0.95 by up to 2**-5 * 0.95 * 0.05 = 1.5e-3.
    clear = 1e-4 if dtype == torch.float32 else 4e-3
    teacher = spiked(rows, classes, THRESHOLD, device, seed, clear).to(dtype)
    student = torch.randn(rows, classes, generator=torch.Generator(device).manual_seed(seed + 1_000_003), device=device)
    return student.to(dtype), teacher


def kept(teacher: Tensor) -> float:
    """Fraction of rows whose confidence reaches the threshold."""
    return (teacher.float().softmax(dim=1).amax(dim=1) >= THRESHOLD).float().mean().item()


def deviation(loss: Tensor, gradient: Tensor | None, student: Tensor, teacher: Tensor, chunk: int = 256) -> tuple[float, float]:
    """(relative error of the mean loss, norm of the gradient's error over its norm), from float64 on all rows; NaN stays NaN."""
    rows = len(student)
    total = student.new_zeros((), dtype=torch.float64)
    error, size = torch.zeros_like(total), torch.zeros_like(total)
    for start in range(0, rows, chunk):
        part = slice(start, start + chunk)
        z, t = student[part].double(), teacher[part].double()
        top, label = t.max(dim=1, keepdim=True)
        weight = ((t - top).exp().sum(dim=1, keepdim=True).reciprocal() >= THRESHOLD).double()
        highest = z.amax(dim=1, keepdim=True)
        powers = (z - highest).exp()
        norm = powers.sum(dim=1, keepdim=True)
        total += (weight * (highest + norm.log() - z.gather(1, label))).sum()
        if gradient is not None:
            want = (powers / norm).scatter_add_(1, label, -torch.ones_like(norm)) * (weight / rows)
            error += (gradient[part].double() - want).square().sum()
            size += want.square().sum()
    mean = total / rows
    off = float(((loss.double() - mean) / mean).abs())
    return off, float((error / size).sqrt()) if gradient is not None else 0.0


def fault(peer: Peer, student: Tensor, teacher: Tensor, gradient: bool) -> str | None:
    """What is wrong with the peer's result on these inputs, or None. Inputs are left as they are, and must be by a peer that says so."""
    before = student.clone()
    given = student.clone() if peer.spoils and gradient else student
    loss, slope = peer.both(given, teacher) if gradient else (peer.loss(given, teacher), None)
    off, away = deviation(loss, slope, student, teacher)
    loss_tolerance = GRADIENT_TOLERANCE[student.dtype] if peer.rounds_loss else LOSS_TOLERANCE
    tolerance = GRADIENT_TOLERANCE[student.dtype] * peer.roundings
    # Written so that NaN is a fault.
    if not off <= loss_tolerance:
        return f"mean loss off by {off:.1e} of its size, allowed {loss_tolerance:.0e}"
    if not away <= tolerance:
        return f"gradient off by {away:.1e} of its norm, allowed {tolerance:.0e}"
    if slope is not None and (slope.dtype, slope.shape) != (student.dtype, student.shape):
        return f"gradient is {slope.dtype} {list(slope.shape)}, student {student.dtype} {list(student.shape)}"
    return None if torch.equal(before, student) else "the student's logits were changed"


def least_bytes(rows: int, classes: int, itemsize: int, passes: float) -> float:
    """Bytes of `passes` passes over [N, C], and of a row's results: loss, confidence and weight in fp32, label in int64."""
    return passes * rows * classes * itemsize + 20 * rows
