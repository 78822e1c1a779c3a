"""FineSSL's whole loss block (arXiv 2405.11756) from both heads' logits: four terms, their gradient, and the update of the learning pace.

B labelled and B unlabelled samples, C classes, U rows of the unlabelled set. Rows of `main` and `auxiliary` [4B, C]: labelled, weak,
strong, second strong. With margin m_k = 8 (max beta - min beta) (1 - beta_k) / (1 + beta_k), beta the learning pace of the steps before:

| term | rows | mean over |
|---|---|---|
| L_x | cross-entropy of main, m[label] added to every other logit | B |
| L_x1 | cross-entropy of auxiliary | B |
| L_u | max softmax(auxiliary weak) * cross-entropy of main against the main head's weak label, margin as in L_x | 2B |
| L_u1 | cross-entropy of auxiliary against that label smoothed by 0.5 | strong rows whose main weak confidence is at least 0.7 |

loss = L_x + L_x1 + 3 L_u + L_u1; afterwards labels of confidence at least 0.7 enter the pace. All blocks compute this; they differ in how.
Meters, accuracies and `.item()` for logging are left out of all of them.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fastssl.kernels import PseudoLabel, cross_entropy, pseudo_label_loss, pseudo_label_loss_and_grad

from .loss_peers import spiked

MARGIN_SCALE, SMOOTHING, GAMMA, SURE, LEAST_WEIGHT = 8.0, 0.5, 3.0, 0.7, 0.0


class Step(NamedTuple):
    """The inputs of one step."""

    main: Tensor  # [4B, C] logits
    auxiliary: Tensor  # [4B, C] logits
    label: Tensor  # [B] int64
    index: Tensor  # [B] int64, rows of the bank


class Memory(NamedTuple):
    """What steps leave behind; a block uses the bank and the pace, or the counts."""

    bank: Tensor  # [U] int64, last confident label of every unlabelled sample, -1 for none
    pace: Tensor  # [C] fp32
    counts: Tensor  # [C] fp32, samples of the bank a class


class Result(NamedTuple):
    loss: Tensor  # []
    main: Tensor  # [4B, C] gradient; weak rows 0
    auxiliary: Tensor  # [4B, C] gradient; weak rows 0


def make_step(batch: int, classes: int, unlabelled: int, dtype: torch.dtype, device: torch.device, seed: int) -> Step:
    """A step whose samples the bank of `make_memory` has not seen."""
    generator = torch.Generator(device).manual_seed(seed)
    clear = 1e-4 if dtype in (torch.float32, torch.float64) else 8e-3  # a rounded logit must not decide who is sure
    parts = [torch.randn(4 * batch, classes, generator=generator, device=device) * 2 for _ in range(2)]
    for part, salt in zip(parts, (1, 2), strict=True):
        part[batch : 2 * batch] = spiked(batch, classes, SURE, device, seed + salt * 1_000_003, clear)
    label = torch.randint(classes, (batch,), generator=generator, device=device)
    index = torch.randperm(unlabelled // 2, generator=generator, device=device)[:batch]
    return Step(parts[0].to(dtype), parts[1].to(dtype), label, index)


def make_memory(classes: int, unlabelled: int, device: torch.device, seed: int) -> Memory:
    """The middle of an epoch: a tenth of the samples seen, low classes more often, all of them in the second half of the bank."""
    generator = torch.Generator(device).manual_seed(seed)
    bank = torch.full((unlabelled,), -1, dtype=torch.int64, device=device)
    seen = unlabelled // 2 + torch.randperm(unlabelled - unlabelled // 2, generator=generator, device=device)[: unlabelled // 10]
    skewed = torch.rand(len(seen), generator=generator, device=device) ** 2
    bank[seen] = (skewed * classes).long().clamp(max=classes - 1)
    counts = torch.zeros(classes, device=device).index_add_(0, bank[seen], torch.ones(len(seen), device=device))
    return Memory(bank, torch.zeros(classes, device=device), counts)


def margins(pace: Tensor) -> Tensor:
    return MARGIN_SCALE * (pace.max() - pace.min()) * (1 - pace) / (1 + pace)


def official(step: Step, memory: Memory) -> Result:
    """As the authors' trainer goes about it: a Counter over the whole bank on the host, and branches on device values. Our own lines."""
    classes = step.main.shape[1]
    count = Counter(memory.bank.tolist())
    if max(count.values()) < len(memory.bank):
        seen = copy.deepcopy(count)
        seen.pop(-1, None)
        for k in range(classes):
            memory.pace[k] = count[k] / max(seen.values())
    margin = margins(memory.pace)

    def margin_rows(logits: Tensor, target: Tensor) -> Tensor:
        chosen = torch.zeros_like(logits).scatter_(1, target[:, None], 1.0)
        return functional.cross_entropy(logits + margin[target][:, None] * (1 - chosen), target, reduction="none")

    main, auxiliary = step.main.detach().requires_grad_(), step.auxiliary.detach().requires_grad_()
    labelled, weak, strong, second = main.chunk(4)
    labelled1, weak1, strong1, second1 = auxiliary.chunk(4)
    loss = margin_rows(labelled, step.label).mean() + functional.cross_entropy(labelled1, step.label)

    confidence, guess = weak.detach().softmax(dim=-1).max(dim=-1)
    weight = weak1.detach().softmax(dim=-1).amax(dim=-1)
    guesses, weights = torch.cat([guess, guess]), torch.cat([weight, weight])
    counted = weights >= LEAST_WEIGHT
    if torch.sum(counted) > 0:
        loss = loss + GAMMA * (weights * counted * margin_rows(torch.cat([strong, second]), guesses)).mean()
    sure = torch.cat([confidence, confidence]) >= SURE
    if torch.sum(sure) > 0:
        off = SMOOTHING / (classes - 1)
        target = torch.full_like(torch.cat([strong1, second1]), off).scatter_(1, guesses[:, None], 1 - SMOOTHING)
        rows = -(target * torch.cat([strong1, second1]).log_softmax(dim=-1)).sum(dim=-1)
        loss = loss + rows[sure].mean()
    loss.backward()

    chosen = (confidence >= SURE).nonzero().squeeze(1)
    if chosen.numel() > 0:
        memory.bank[step.index[confidence >= SURE]] = guess[confidence >= SURE]
    return Result(loss.detach(), main.grad, auxiliary.grad)


def _sync_free_loss(main: Tensor, auxiliary: Tensor, label: Tensor, counts: Tensor) -> Tensor:
    margin = margins(counts / counts.max().clamp(min=1))
    labelled, weak, strong = main.tensor_split((len(label), 2 * len(label)))
    labelled1, weak1, strong1 = auxiliary.tensor_split((len(label), 2 * len(label)))
    work = torch.promote_types(main.dtype, torch.float32)
    confidence, guess = weak.detach().softmax(dim=-1, dtype=work).max(dim=-1)
    weight = weak1.detach().softmax(dim=-1, dtype=work).amax(dim=-1)
    sure = (confidence >= SURE).to(work)

    target = torch.cat([label, guess, guess])
    # Taking the margin off the target's logit is the same as adding it to the others, and touches one element a row.
    shifted = torch.cat([labelled, strong]).to(work).scatter_add(1, target[:, None], -margin.to(work)[target][:, None])
    rows = functional.cross_entropy(shifted, target, reduction="none")
    n, classes = len(label), main.shape[1]
    loss = rows[:n].mean() + GAMMA * (rows[n:] * weight.repeat(2)).mean() + functional.cross_entropy(labelled1.to(work), label)
    # torch spreads its label smoothing over all classes, FineSSL over the others.
    smoothing = SMOOTHING * classes / (classes - 1)
    smoothed = functional.cross_entropy(strong1.to(work), guess.repeat(2), reduction="none", label_smoothing=smoothing)
    loss = loss + (smoothed * sure.repeat(2)).sum() / (2 * sure.sum()).clamp(min=1)
    counts.index_add_(0, guess, sure.to(counts.dtype))
    return loss


def _by_autograd(loss_of: Callable[..., Tensor]) -> Callable[[Step, Memory], Result]:
    def block(step: Step, memory: Memory) -> Result:
        main, auxiliary = step.main.detach().requires_grad_(), step.auxiliary.detach().requires_grad_()
        loss = loss_of(main, auxiliary, step.label, memory.counts)
        loss.backward()
        return Result(loss.detach(), main.grad, auxiliary.grad)

    return block


def _our_loss(main: Tensor, auxiliary: Tensor, label: Tensor, counts: Tensor) -> Tensor:
    margin = margins(counts / counts.max().clamp(min=1))
    n, classes = len(label), main.shape[1]
    weak, weak1 = main[n : 2 * n].detach(), auxiliary[n : 2 * n].detach()
    loss = cross_entropy(main[:n], label, margin=margin).mean() + cross_entropy(auxiliary[:n], label).mean()
    options = {"judge": weak1, "weighting": "confidence", "threshold": LEAST_WEIGHT, "margin": margin}
    first = pseudo_label_loss(main[2 * n :].view(2, n, classes), weak, **options)
    second = pseudo_label_loss(auxiliary[2 * n :].view(2, n, classes), first, threshold=SURE, smoothing=SMOOTHING)
    sure = (first.confidence >= SURE).to(first.confidence.dtype)
    counts.index_add_(0, first.label, sure.to(counts.dtype))
    return loss + GAMMA * first.loss.mean() + second.loss.sum() / (2 * sure.sum()).clamp(min=1)


def ours_at_once(step: Step, memory: Memory) -> Result:
    """Four fused calls that give loss and gradient at once; the labelled terms are pseudo-label losses whose labels are given."""
    main, auxiliary, label, counts = step.main, step.auxiliary, step.label, memory.counts
    margin = margins(counts / counts.max().clamp(min=1))
    n, classes = len(label), main.shape[1]
    weak, weak1, views = main[n : 2 * n], auxiliary[n : 2 * n], (2, n, classes)
    ones = torch.ones(n, dtype=torch.promote_types(main.dtype, torch.float32), device=main.device)
    given = PseudoLabel(ones, label, ones, ones)
    x, x_grad = pseudo_label_loss_and_grad(main[:n], given, scale=1 / n, weighting="none", margin=margin)
    x1, x1_grad = pseudo_label_loss_and_grad(auxiliary[:n], given, scale=1 / n, weighting="none")
    options = {"judge": weak1, "weighting": "confidence", "threshold": LEAST_WEIGHT, "margin": margin}
    u, u_grad = pseudo_label_loss_and_grad(main[2 * n :].view(views), weak, scale=GAMMA / (2 * n), **options)
    sure = (u.confidence >= SURE).to(u.confidence.dtype)
    share = (2 * sure.sum()).clamp(min=1).reciprocal()
    student = auxiliary[2 * n :].view(views)
    u1, u1_grad = pseudo_label_loss_and_grad(student, u, scale=share, threshold=SURE, smoothing=SMOOTHING)
    counts.index_add_(0, u.label, sure.to(counts.dtype))
    loss = x.loss.mean() + x1.loss.mean() + GAMMA * u.loss.mean() + u1.loss.sum() * share
    none = torch.zeros_like(weak)
    return Result(loss, torch.cat([x_grad, none, u_grad.flatten(0, 1)]), torch.cat([x1_grad, none, u1_grad.flatten(0, 1)]))


# Name -> maker; whether it can be captured.
BLOCKS: dict[str, tuple[Callable[[], Callable[[Step, Memory], Result]], bool]] = {
    "official": (lambda: official, False),
    "sync_free": (lambda: _by_autograd(_sync_free_loss), True),
    "compile": (lambda: _by_autograd(torch.compile(_sync_free_loss, fullgraph=True, dynamic=False)), True),
    "ours_autograd": (lambda: _by_autograd(_our_loss), True),
    "ours_at_once": (lambda: ours_at_once, True),
}


def fault(name: str, block: Callable[[Step, Memory], Result], step: Step, memory: Memory) -> str | None:
    """What differs from the sync-free block in float64, or None: loss, both gradients, and the counts that the next step would see."""
    tolerance = {torch.float64: 1e-6, torch.float32: 2e-5}.get(step.main.dtype, 1e-2)
    theirs = Memory(*(t.clone() for t in memory))
    exact = memory._replace(counts=memory.counts.double())
    want = _by_autograd(_sync_free_loss)(step._replace(main=step.main.double(), auxiliary=step.auxiliary.double()), exact)
    found = block(step, theirs)
    for field in Result._fields:
        a, b = getattr(found, field).double(), getattr(want, field)
        away = float((a - b).norm() / b.norm())
        if not away <= tolerance:
            return f"{field} of {name} is off by {away:.1e} of its norm, allowed {tolerance:.0e}"
    counts = torch.bincount(theirs.bank[theirs.bank >= 0], minlength=len(memory.pace)) if name == "official" else theirs.counts
    return None if torch.equal(counts.double(), exact.counts) else f"{name} leaves other class counts than float64"
