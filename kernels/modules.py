"""The losses as `nn.Module`s that reduce, for other people's training loops.

N rows, C classes, V views. `reduction` is "mean" over all rows (kept or not; no row at all gives 0), "sum", or "none" for the rows.
Tensor options are kept as buffers, so they follow the module to its device; they are not part of its state dict.
"""

from __future__ import annotations

import difflib
import inspect

from torch import Tensor, nn

from . import _check
from ._dispatch import consistency_loss, cross_entropy, pseudo_label_loss
from .reference import PseudoLabel

REDUCTIONS = ("mean", "sum", "none")


def _reduce(rows: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return rows
    return rows.sum() / max(rows.shape[0], 1) if reduction == "mean" else rows.sum()


class PseudoLabelLoss(nn.Module):
    """`pseudo_label_loss` with its options fixed here or given at the call: `PseudoLabelLoss(threshold=0.95)(student, teacher.detach())`.

    Args:
        reduction: "mean", "sum" or "none".
        options: keyword arguments of `pseudo_label_loss`.

    Raises:
        ValueError: unknown option or reduction; at the call, as `pseudo_label_loss`.
    """

    _known = tuple(name for name, p in inspect.signature(pseudo_label_loss).parameters.items() if p.kind is p.KEYWORD_ONLY)

    def __init__(self, *, reduction: str = "mean", **options):
        super().__init__()
        _check.choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction
        self._check_names(options)
        self._plain = {name: value for name, value in options.items() if not isinstance(value, Tensor)}
        self._tensors = tuple(name for name in options if name not in self._plain)
        for name in self._tensors:
            self.register_buffer(name, options[name], persistent=False)

    def forward(self, student: Tensor, teacher: Tensor | PseudoLabel, **options) -> Tensor:
        """Student [N, C] or [V, N, C], teacher [N, C] without grad or a PseudoLabel; `options` of this call go before the fixed ones."""
        self._check_names(options)
        fixed = {**self._plain, **{name: getattr(self, name) for name in self._tensors}}
        return _reduce(pseudo_label_loss(student, teacher, **{**fixed, **options}).loss, self.reduction)

    def extra_repr(self) -> str:
        fixed = [f"{name}={value!r}" for name, value in self._plain.items()]
        fixed += [f"{name}={list(getattr(self, name).shape)}" for name in self._tensors]
        return ", ".join([*fixed, f"reduction={self.reduction!r}"])

    def _apply(self, fn, recurse: bool = True):
        # `.to(torch.bfloat16)` of a whole model would round a threshold of 0.95 to 0.9492: tensors move, but keep their dtype.
        given = {name: getattr(self, name) for name in self._tensors}
        super()._apply(fn, recurse)
        for name, tensor in given.items():
            moved = getattr(self, name)
            if moved.dtype != tensor.dtype:
                setattr(self, name, tensor.to(moved.device))
        return self

    def _check_names(self, options: dict) -> None:
        for name in options:
            if name not in self._known:
                near = difflib.get_close_matches(name, self._known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(self._known)}"
                raise ValueError(f"{type(self).__name__} has no option {name!r}; {hint}")


class BalancedMarginCrossEntropy(nn.Module):
    """Balanced margin softmax of FineSSL (arXiv 2405.11756): a row with label c has margin[c] added to every other logit.

    Args:
        smoothing: eps in [0, 1); the label keeps 1 - eps, every other class gets eps / (C - 1).
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: smoothing or reduction out of range; at the call, as `cross_entropy`.
    """

    def __init__(self, smoothing: float = 0.0, reduction: str = "mean"):
        super().__init__()
        _check.choice("reduction", reduction, REDUCTIONS)
        _check.number("smoothing", smoothing, "from 0 to below 1", 0, 1, low_allowed=True)
        self.smoothing = smoothing
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor, margin: Tensor) -> Tensor:
        """Logits [N, C], target [N] integer, margin [C]."""
        return _reduce(cross_entropy(logits, target, margin=margin, smoothing=self.smoothing), self.reduction)

    def extra_repr(self) -> str:
        return f"smoothing={self.smoothing}, reduction={self.reduction!r}"


class ConsistencyLoss(nn.Module):
    """`consistency_loss` with its options fixed: `ConsistencyLoss("mse")(student, teacher)`.

    Args:
        kind, temperature, teacher_grad, teacher_is: as in `consistency_loss`.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: unknown kind, form of teacher or reduction, temperature out of range; at the call, as `consistency_loss`.
    """

    def __init__(
        self,
        kind: str = "mse",
        temperature: float = 1.0,
        teacher_grad: bool = False,
        teacher_is: str = "logits",
        reduction: str = "mean",
    ):
        super().__init__()
        _check.choice("kind", kind, ("mse", "kl", "ce"))
        _check.choice("teacher_is", teacher_is, ("logits", "probabilities"))
        _check.choice("reduction", reduction, REDUCTIONS)
        _check.number("temperature", temperature, "above 0", 0)
        self.options = {"kind": kind, "temperature": temperature, "teacher_grad": teacher_grad, "teacher_is": teacher_is}
        self.reduction = reduction

    def forward(self, student: Tensor, teacher: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Student and teacher [N, C], sample_weight [N]."""
        return _reduce(consistency_loss(student, teacher, sample_weight=sample_weight, **self.options), self.reduction)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in {**self.options, "reduction": self.reduction}.items())
