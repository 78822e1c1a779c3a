"""The unlabelled losses of the methods, under the methods' names: modules that take the place of a block in another training loop.

N rows, C classes, V strong views. `student` is [N, C] or [V, N, C] logits of the strong view, `teacher` [N, C] logits of the weak view
that do not require grad; labels and weights carry no gradient. `reduction` is "mean" over all V*N rows, kept or not, as in the papers
(no row at all gives 0), "sum", or "none" for the rows. A confidence meets its threshold with >=, as in most official codes.

What holds for every module but the last two (`ConsistencyLoss` serves them):
* `options` are further options of `pseudo_label_loss` (sample_weight, align, adjust ...), here or at the call, where they go first.
* The call returns the loss, and with `return_pseudo_label=True` (loss, PseudoLabel).
* ValueError: a number out of its range, an unknown option or reduction; at the call, as `pseudo_label_loss`.

A module has no parameters, no state dict and no memory. Where a method's threshold moves, its state is the caller's: the docstring says
how to compute what the call takes, docs/losses.md shows it in code. Lee's Pseudo-Label (2013) has no class here, because it is
`PseudoLabelLoss(weighting="none")(z, z.detach())`, one view being both sides. FineSSL's is in finessl_loss.py.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from . import _check
from ._dispatch import class_statistics, pseudo_label_loss
from .modules import ConsistencyLoss, PseudoLabelLoss, _reduce
from .reference import PseudoLabel

_READ_BY = {"power": "smooth", "variance": "gaussian"}  # option -> the one weighting that reads it
_Result = Tensor | tuple[Tensor, PseudoLabel]


def _fraction(name: str, value: float | Tensor) -> None:
    """A number from 0 to 1, both included: 95 for 0.95 would keep no row at all and say nothing. Tensors are not read."""
    if not isinstance(value, Tensor):
        _check.number(name, value, "from 0 to 1", 0, math.nextafter(1, 2), low_allowed=True)


class _MethodLoss(PseudoLabelLoss):
    """A `PseudoLabelLoss` that is one method: what makes it that method is fixed and no option any more."""

    _set: ClassVar[dict[str, str]] = {}  # options that the method fixes
    _asked: ClassVar[tuple[str, ...]] = ()  # options that are arguments of the module's own call

    def __init_subclass__(cls) -> None:
        unread = (name for name, weighting in _READ_BY.items() if weighting != cls._set.get("weighting"))
        taken = {*cls._set, *cls._asked, *unread}
        cls._known = tuple(name for name in PseudoLabelLoss._known if name not in taken)

    def forward(self, student: Tensor, teacher: Tensor | PseudoLabel, *, return_pseudo_label: bool = False, **options) -> _Result:
        """Student [N, C] or [V, N, C], teacher [N, C] without grad or a PseudoLabel."""
        return self._loss(student, teacher, return_pseudo_label, options)

    def _loss(self, student: Tensor, teacher: Tensor | PseudoLabel, both: bool, options: dict[str, Any], **asked) -> _Result:
        self._check_names(options)
        fixed = {**self._plain, **{name: getattr(self, name) for name in self._tensors}}
        rows = pseudo_label_loss(student, teacher, **{**fixed, **options}, **asked, **self._set)
        loss = _reduce(rows.loss, self.reduction)
        return (loss, rows) if both else loss


class FixMatchLoss(_MethodLoss):
    """FixMatch (Sohn et al. 2020, arXiv 2001.07685, eq. 4): mean of 1[max p >= threshold] CE(argmax p, student), p = softmax(teacher).

    With `align` at the call it is FixMatch with distribution alignment.

    Args:
        threshold: tau in [0, 1], or a tensor [], [C] or [N, 1].
    """

    _set = {"weighting": "step"}

    def __init__(self, threshold: float | Tensor = 0.95, *, reduction: str = "mean", **options):
        _fraction("threshold", threshold)
        super().__init__(reduction=reduction, threshold=threshold, **options)


class SmoothFixMatchLoss(_MethodLoss):
    """Smooth FixMatch (arXiv 2405.14313, eq. 21 for power 1): mean of Phi(max p) CE(argmax p, student), p = softmax(teacher).

    Phi(c) = (max(0, c - threshold) / (1 - threshold)) ** power lets rows fade in, so the gradient is continuous where c crosses the
    threshold. Rows weigh less than FixMatch's; the paper makes up for it by a constant factor on the loss, which is the caller's.

    Args:
        threshold: tau in [0, 1], or a tensor [], [C] or [N, 1]. At 1 Phi is its limit, the step.
        power: exponent above 0: 1 linear (the paper's), 2 quadratic, 0.5 square root.
    """

    _set = {"weighting": "smooth"}

    def __init__(self, threshold: float | Tensor = 0.95, power: float = 1.0, *, reduction: str = "mean", **options):
        _fraction("threshold", threshold)
        _check.number("power", power, "above 0", 0)
        super().__init__(reduction=reduction, threshold=threshold, power=power, **options)


class UDALoss(_MethodLoss):
    """UDA's image recipe (Xie et al. 2020, arXiv 1904.12848): mean of 1[max p >= threshold] CE(q, student), q = softmax(teacher / T).

    The mask looks at p = softmax(teacher), unsharpened. The paper writes KL(q || student): CE is larger by the entropy of q, a
    constant, so the gradient is the same and the logged value is not. UDA's signal annealing of the labelled term is not part of it.
    `margin` and `smoothing` need hard labels and are refused at the call.

    Args:
        threshold: in [0, 1], or a tensor [], [C] or [N, 1].
        temperature: T above 0.
    """

    _set = {"weighting": "step"}

    def __init__(self, threshold: float | Tensor = 0.8, temperature: float = 0.4, *, reduction: str = "mean", **options):
        _fraction("threshold", threshold)
        _check.number("temperature", temperature, "above 0", 0)
        super().__init__(reduction=reduction, threshold=threshold, temperature=temperature, **options)


class _ClassThresholdLoss(_MethodLoss):
    """mean of 1[max p >= threshold[argmax p]] CE(argmax p, student), p = softmax(teacher)."""

    _set = {"weighting": "step"}
    _asked = ("threshold",)

    def forward(self, student: Tensor, teacher: Tensor, threshold: Tensor, *, return_pseudo_label: bool = False, **options) -> _Result:
        """Student [N, C] or [V, N, C], teacher [N, C] without grad, threshold [C]; a threshold of another shape is a ValueError."""
        if not isinstance(threshold, Tensor) or threshold.dim() != 1:
            came = list(threshold.shape) if isinstance(threshold, Tensor) else repr(threshold)
            raise ValueError(f"threshold must be a tensor [C], one for each class; got {came}. One for all classes: FixMatchLoss")
        return self._loss(student, teacher, return_pseudo_label, options, threshold=threshold)


class FlexMatchLoss(_ClassThresholdLoss):
    """FlexMatch (Zhang et al. 2021, arXiv 2110.08263): FixMatch with a threshold for each class, lower where a class learns slowly.

    The caller keeps, for each of `total` unlabelled samples, the last label that it was given with confidence >= tau (0.95), or none.
    counts [C] are the labels kept, before this step's are written (the PseudoLabel holds this step's label and confidence):

        beta = counts / torch.maximum(counts.max(), total - counts.sum())
        threshold = tau * beta / (2 - beta)
    """


class FreeMatchLoss(_ClassThresholdLoss):
    """FreeMatch's self-adaptive thresholding (Wang et al. 2023, arXiv 2205.07246): a global threshold, scaled class by class.

    The caller keeps tau [] and p [C], both 1/C at first, and moves them before each call by s = class_statistics(teacher):

        tau.lerp_(s.confidence_mean, 1 - 0.999)
        p.lerp_(s.mean_probability, 1 - 0.999)
        threshold = tau * p / p.max()

    The paper's second unlabelled term, self-adaptive fairness, is not part of this loss.
    """


class SoftMatchLoss(_MethodLoss):
    """SoftMatch (Chen et al. 2023, arXiv 2301.10921): mean of exp(-2 min(c - mean, 0)**2 / variance) CE(argmax p, student).

    p = softmax(teacher); c is the largest of normalise(p * align) (uniform alignment), while the label is that of p, unaligned.
    The caller keeps mean [] (1/C at first), variance [] (1 at first) and marginal [C] (1/C at first) and moves them before each call by
    s = class_statistics(teacher), whose confidence is unaligned, as the paper's:

        mean.lerp_(s.confidence_mean, 1 - 0.999)
        variance.lerp_(s.confidence_var, 1 - 0.999)
        marginal.lerp_(s.mean_probability, 1 - 0.999)
        align = (1 / C) / marginal
    """

    _set = {"weighting": "gaussian", "align_for": "weight"}
    _asked = ("threshold", "variance", "align")

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        mean: float | Tensor,
        variance: float | Tensor,
        align: Tensor | None = None,
        *,
        return_pseudo_label: bool = False,
        **options,
    ) -> _Result:
        """Student [N, C] or [V, N, C], teacher [N, C] without grad; mean and variance numbers or tensors []; align [C], or None."""
        if not isinstance(mean, (int, float)) and not (isinstance(mean, Tensor) and mean.dim() == 0):
            raise ValueError(f"mean must be a number or a tensor []; got {list(mean.shape) if isinstance(mean, Tensor) else repr(mean)}")
        return self._loss(student, teacher, return_pseudo_label, options, threshold=mean, variance=variance, align=align)


class AdaMatchLoss(_MethodLoss):
    """AdaMatch (Berthelot et al. 2021, arXiv 2106.04732): mean of 1[max q >= threshold * c] CE(argmax q, student).

    q = normalise(softmax(teacher) * align) gives label and confidence; c is the mean of max softmax(labelled) over this step's weakly
    augmented labelled rows: the threshold is relative to how sure the network is of what it knows. The caller keeps the running
    marginals [C] of labelled and of unlabelled predictions, moves them by `class_statistics(...).mean_probability` before the call, and
    passes align = labelled marginal / unlabelled marginal. Logit interpolation and the ramp of the loss's weight are the caller's too.

    Args:
        threshold: tau in [0, 1], a number.
    """

    _set = {"weighting": "step", "align_for": "both"}
    _asked = ("threshold", "align")

    def __init__(self, threshold: float = 0.9, *, reduction: str = "mean", **options):
        _check.number("threshold", threshold, "from 0 to 1", 0, math.nextafter(1, 2), low_allowed=True)
        super().__init__(reduction=reduction, **options)
        self.relative = threshold

    def forward(
        self, student: Tensor, teacher: Tensor, labelled: Tensor, align: Tensor, *, return_pseudo_label: bool = False, **options
    ) -> _Result:
        """Student [N, C] or [V, N, C], teacher [N, C] without grad; labelled [B, C] logits, read without gradient; align [C]."""
        threshold = self.relative * class_statistics(labelled).confidence_mean
        return self._loss(student, teacher, return_pseudo_label, options, threshold=threshold, align=align)

    def extra_repr(self) -> str:
        return f"threshold={self.relative}, {super().extra_repr()}"


class MeanTeacherLoss(ConsistencyLoss):
    """Mean Teacher's consistency (Tarvainen and Valpola 2017, arXiv 1703.01780): mean of (1/C) ||softmax(student) - softmax(teacher)||^2.

    `loss(student, teacher, sample_weight=None)`; the teacher's logits [N, C] come from the averaged network and are constants.

    Args:
        kind: "mse", or "kl" for KL(teacher || student) (the official ImageNet recipe).
    """

    def __init__(self, kind: str = "mse", reduction: str = "mean"):
        _check.choice("kind", kind, ("mse", "kl"))
        super().__init__(kind, reduction=reduction)


class PiModelLoss(ConsistencyLoss):
    """Pi-model's consistency (Laine and Aila 2017, arXiv 1610.02242): mean of (1/C) ||softmax(first) - softmax(second)||^2.

    `loss(first, second, sample_weight=None)`: logits [N, C] of two noisy passes of one network. The gradient flows into both, as in the
    official code; codes that detach one of them halve it.
    """

    def __init__(self, reduction: str = "mean"):
        super().__init__("mse", teacher_grad=True, reduction=reduction)
