"""The calls whose kernels `compiled_kernels.py` compiles: public functions on CPU tensors, with every launch caught instead of run.

A case is what a user writes, so the kernels, tiles and arguments are those that the call would launch on a GPU. To add one is a line in
`CALLS`. Rows are few: no kernel is compiled for their number. Tensors start at a 16-byte border, as CUDA's allocator gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.kernels import PseudoLabel, _dispatch, _launch, augment
from fastssl.pipelines import resident_fused
from fastssl.pipelines.policies import POLICIES
from fastssl.pipelines.views import Augmenter

ROWS = 64
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CLASSES = (10, 100, 1000, 1001, 4096, 8192, 21841, 65536)
EVERY = tuple((c, dtype) for dtype in ("float32", "bfloat16") for c in CLASSES)
HALF = ((1000, "float16"), (1001, "float16"))
SOME = ((10, "float32"), (1000, "bfloat16"), (1001, "bfloat16"), (8192, "float32"), (21841, "bfloat16"))


VIEWS = ((32, "float32"), (32, "bfloat16"), (96, "bfloat16"), (224, "float32"), (224, "bfloat16"))  # sides of views for classes


class Inputs:
    """Tensors of one size. All hold what passes for a logit, a label, a weight or a probability."""

    def __init__(self, classes: int, dtype: str):
        self.classes, self.dtype = classes, DTYPES[dtype]

    def logits(self, *views: int, grad: bool = False) -> Tensor:
        return torch.zeros(*views, ROWS, self.classes, dtype=self.dtype, requires_grad=grad)

    def rows(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(ROWS, dtype=dtype)

    def per_class(self) -> Tensor:
        return torch.ones(self.classes)

    def number(self) -> Tensor:
        return torch.ones(())

    def ready(self) -> PseudoLabel:
        return PseudoLabel(self.rows(), self.rows(torch.int64), self.rows(), self.rows())


def kernels(name: str) -> Callable:
    """The Triton form of a public function, whatever the tensors' device."""
    return _dispatch.triton_kernels(name)


def at_once(x: Inputs, teacher: Tensor | PseudoLabel | None = None, views: tuple[int, ...] = (), **options) -> None:
    given = {"scale": 0.5, **options}
    kernels("pseudo_label_loss_and_grad")(x.logits(*views), x.logits() if teacher is None else teacher, **given)


def by_autograd(x: Inputs, teacher: Tensor | PseudoLabel | None = None, views: tuple[int, ...] = (), **options) -> None:
    student = x.logits(*views, grad=True)
    found = kernels("pseudo_label_loss")(student, x.logits() if teacher is None else teacher, **options)
    found.loss.backward(torch.ones_like(found.loss))


def entropy(x: Inputs, target: Tensor, **options) -> None:
    loss = kernels("cross_entropy")(x.logits(grad=True), target, **options)
    loss.sum().backward()  # an upstream gradient of stride 0


def consistency(x: Inputs, **options) -> None:
    teacher = x.logits(grad=options.get("teacher_grad", False))
    loss = kernels("consistency_loss")(x.logits(grad=True), teacher, **options)
    loss.backward(torch.ones_like(loss))


def heavy(x: Inputs) -> dict:
    """Everything that a hard target may come with."""
    vectors = {name: x.per_class() for name in ("align", "margin", "adjust")}
    return {"judge": x.logits(), "views": (3,), "smoothing": 0.1, "sample_weight": x.rows(), "threshold": x.per_class(), **vectors}


def soft(x: Inputs) -> dict:
    return {"temperature": 0.5, "weighting": "gaussian", "variance": x.number(), "threshold": x.number(), "align": x.per_class()}


def finessl(x: Inputs) -> dict:
    return {"judge": x.logits(), "weighting": "confidence", "threshold": 0.0, "margin": x.per_class()}


def augmented(x: Inputs, policy: str, stored: int | None = None, weak: bool = False, **options) -> None:
    """Views of x.classes pixels, of images stored at that side or at another."""
    stored, side = stored or x.classes, x.classes
    augmenter = Augmenter(POLICIES[policy], (side, side), flip=True, stored=stored)
    taps = resident_fused.taps(stored, side, side, "bicubic", torch.device("cpu"))
    choices = resident_fused.strong(augmenter.sampler)
    numbers = torch.ones(3), torch.ones(3)
    make = augment.Augment(
        (stored, stored), (side, side), *numbers, pad=augmenter.pad, flip=True, strong=choices, taps=taps, dtype=x.dtype, **options
    )
    make(torch.zeros(1, 3, stored, stored, dtype=torch.uint8), x.rows(torch.int64), x.rows(torch.int64), plain=8, weak=56 if weak else 8)


def ordered(x: Inputs) -> None:
    """The draw of a batch, whatever the size of its images: one labelled view, three unlabelled ones."""
    numbers = lambda count: [x.rows(torch.int64) for _ in range(count)]  # noqa: E731
    given = augment.Order(x.number().long(), *numbers(2), torch.ones(4, dtype=torch.int64), *numbers(4), x.rows(), *numbers(1), 1)
    views = (torch.ones(4 * ROWS, dtype=torch.int64) for _ in range(2))
    augment.order(given, augment.Drawn(*numbers(2), x.rows(), *numbers(2), *views))


# name, options in words, sizes, the call
CALLS: list[tuple[str, str, tuple[tuple[int, str], ...], Callable[[Inputs], None]]] = [
    ("pseudo_label_loss_and_grad", "step", (*EVERY, *HALF), at_once),
    ("pseudo_label_loss", "step", EVERY, by_autograd),
    ("pseudo_label_loss_and_grad", "3 views, every option of hard targets", SOME, lambda x: at_once(x, **heavy(x))),
    ("pseudo_label_loss", "3 views, every option of hard targets", SOME, lambda x: by_autograd(x, **heavy(x))),
    ("pseudo_label_loss_and_grad", "soft, aligned, gaussian", SOME, lambda x: at_once(x, **soft(x))),
    ("pseudo_label_loss", "soft, aligned, gaussian", SOME, lambda x: by_autograd(x, **soft(x))),
    ("pseudo_label_loss_and_grad", "FineSSL's main head", SOME, lambda x: at_once(x, scale=x.number(), **finessl(x))),
    ("pseudo_label_loss_and_grad", "ready teacher, smoothing", SOME, lambda x: at_once(x, x.ready(), scale=x.rows(), smoothing=0.5)),
    (
        "pseudo_label_loss_and_grad", "smooth, aligned for the weight", SOME,
        lambda x: at_once(x, weighting="smooth", power=2.0, align=x.per_class(), align_for="weight"),
    ),
    ("cross_entropy", "hard", (*SOME, (65536, "float32")), lambda x: entropy(x, x.rows(torch.int64))),
    (
        "cross_entropy", "hard, margin, smoothing, class weight", SOME,
        lambda x: entropy(x, x.rows(torch.int64), margin=x.per_class(), smoothing=0.1, class_weight=x.per_class()),
    ),
    ("cross_entropy", "soft", SOME, lambda x: entropy(x, x.logits())),
    ("consistency_loss", "mse, both gradients", SOME, lambda x: consistency(x, kind="mse", teacher_grad=True)),
    ("consistency_loss", "kl", SOME, lambda x: consistency(x, kind="kl", temperature=2.0, sample_weight=x.rows())),
    ("consistency_loss", "kl, both gradients", SOME, lambda x: consistency(x, kind="kl", teacher_grad=True)),
    ("consistency_loss", "ce of probabilities", SOME, lambda x: consistency(x, kind="ce", teacher_is="probabilities")),
    (
        "consistency_loss", "mse of probabilities, sharpened", SOME,
        lambda x: consistency(x, kind="mse", teacher_is="probabilities", temperature=0.5),
    ),
    ("class_statistics", "every row", SOME, lambda x: kernels("class_statistics")(x.logits())),
    ("class_statistics", "class thresholds", SOME, lambda x: kernels("class_statistics")(x.logits(), threshold=x.per_class())),
    ("augment", "strong, fixmatch", VIEWS, lambda x: augmented(x, "fixmatch", channels_last=True)),
    ("augment", "strong, usb", VIEWS, lambda x: augmented(x, "usb")),
    ("augment", "strong, usb, stored at 32", ((224, "bfloat16"),), lambda x: augmented(x, "usb", 32, channels_last=True)),
    ("augment", "weak", VIEWS, lambda x: augmented(x, "fixmatch", weak=True)),
    ("augment", "order of a draw", ((32, "float32"),), ordered),
]  # fmt: skip


class Case(NamedTuple):
    """One kernel of one call."""

    call: str
    options: str
    classes: int
    dtype: str
    launch: _launch.Launch

    @property
    def name(self) -> str:
        return f"{title(*self[:4])}, {self.launch.kernel.__name__}"


def title(call: str, options: str, classes: int, dtype: str) -> str:
    return f"{call} ({options}), C {classes}, {dtype}"


def caught(call: Callable[[], None]) -> list[_launch.Launch]:
    """The launches of a call, in order; none of them is run, so what the call returns is memory as it was found."""
    found: list[_launch.Launch] = []
    run = _launch.Launch.run
    _launch.Launch.run = lambda launch, device: found.append(launch)
    try:
        call()
    finally:
        _launch.Launch.run = run
    return found


def cases(only: list[str]) -> Iterator[Case]:
    """Every kernel of every call at every size; with `only`, where the title holds one of these texts. Made when asked for."""
    for call, options, sizes, do in CALLS:
        for size in sizes:
            name = title(call, options, *size)
            if only and not any(text in name for text in only):
                continue
            launches = caught(lambda do=do, size=size: do(Inputs(*size)))
            if not launches:
                raise RuntimeError(f"{name} launched nothing")
            yield from (Case(call, options, *size, launch) for launch in launches)
