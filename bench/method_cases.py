"""The methods of the registry as steps to be timed: by what options each is busy, which stage, and the images that it forwards.

A forward pass weighs 1 an image, its backward pass 2. What a step forwards follows from its views, the batch and the case's further
forwards; `seen` counts what the networks are really given, so that a pass too many cannot explain itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastssl.config import TrainConfig
from fastssl.engine import updates
from fastssl.engine.step import Step
from fastssl.engine.teacher import Teacher
from fastssl.methods import METHODS, find
from fastssl.methods.base import Method
from fastssl.models import Network
from fastssl.pipelines.batch import Batch, DataSpec, FoundationLabels
from fastssl.schedules import Clock

from . import our_steps

UNTRAINED = ("zero_shot",)  # which takes no steps
_ALL = {"threshold": 0.0}  # every pseudo-label counts on an untrained network


class Passes(NamedTuple):
    """Images that a step forwards. A search for a gradient by the input, whose backward pass leaves out the weights and so weighs 1 as
    its forward pass does, counts as two plain ones."""

    graph: int  # with a backward pass
    plain: int  # without

    @property
    def work(self) -> int:
        return 3 * self.graph + self.plain


@dataclass(frozen=True)
class Case:
    """A method in one of its stages.

    Attributes:
        alone: further forwards with gradient of all labelled views, where the network has batch-norm.
        taught: further forwards without gradient, in unlabelled batches.
        passes: (B, U) -> what a step forwards, where its views do not say.
        apart: views among these that a separate weak pass forwards without gradient.
        labelled: times as many labelled images as the other rows have, for a method of several passes over them alone: one of 8 images
            would be timed by its fixed costs.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    stage: int = 0
    alone: int = 0
    taught: int = 0
    teacher: bool = False  # it is given another network that teaches it
    passes: Callable[[int, int], Passes] | None = None
    apart: int = 0
    labelled: int = 1


CASES: dict[str, Case] = {
    "supervised": Case("supervised"),
    "pseudo_label": Case("pseudo_label"),
    "pi_model": Case("pi_model"),
    "temporal_ensembling": Case("temporal_ensembling"),
    "mean_teacher": Case("mean_teacher", passes=lambda b, u: Passes(b + u, b + u)),
    "adversarial": Case("adversarial", passes=lambda b, u: Passes(2 * b, 2 * b), labelled=8),
    # Passes are counted alike in any arithmetic: here the search runs in the row's own, below always in fp32.
    "vat": Case("vat", {"direction": "amp", "xi": 1.0}, passes=lambda b, u: Passes(b + 2 * u, 2 * u)),
    "vat_fp32": Case("vat", passes=lambda b, u: Passes(b + 2 * u, 2 * u)),
    "ict": Case("ict", taught=1),
    "uda": Case("uda", {**_ALL, "tsa": "exp"}),
    "mixmatch": Case("mixmatch", passes=lambda b, u: Passes(b + 2 * u, 2 * u)),
    # Three views mixed, the first strong one by itself and turned; the weak one guesses. Its rates come after the loss, so they are off.
    "remixmatch": Case("remixmatch", {"ctaugment": False}, passes=lambda b, u: Passes(b + 5 * u, u)),
    "fixmatch": Case("fixmatch", _ALL),
    "spl": Case("spl", _ALL),
    "flexmatch": Case("flexmatch", {"threshold": 0.3}),
    "freematch": Case("freematch"),
    "softmatch": Case("softmatch"),
    "adamatch": Case("adamatch", _ALL, alone=1),
    "dash": Case("dash"),
    "comatch": Case("comatch", _ALL),
    "simmatch": Case("simmatch", _ALL),
    "debiaspl": Case("debiaspl", _ALL),
    "layermatch": Case("layermatch", _ALL),
    "layermatch_teacher": Case("layermatch", {**_ALL, "averaging": "teacher"}, taught=1),
    "finessl": Case("finessl", _ALL),
    "self_training": Case("self_training", {"loss": "zoph"}, stage=1),
    "self_training_contrast": Case("self_training", {"joint": "contrast"}, stage=1),
    "noisy_student": Case("noisy_student", stage=1),
    "pl_mixup": Case("pl_mixup", stage=1, passes=lambda b, u: Passes(b + u, u)),
    "label_propagation": Case("label_propagation", stage=1),
    "label_propagation_teacher": Case("label_propagation", {"consistency": 100.0}, stage=1, passes=lambda b, u: Passes(b + u, b + u)),
    # The teacher sees l, w, s, the student s and l. The feedback's two passes over l without gradient are no part of the loss, so that
    # they are in the step's time and in no count.
    "meta_pseudo_labels": Case("meta_pseudo_labels", _ALL, passes=lambda b, u: Passes(2 * b + 3 * u, 2 * b), apart=1),
    # Both networks guess from two views, one of them refines two views of the labels and learns from all four.
    "dividemix": Case("dividemix", stage=2, passes=lambda b, u: Passes(2 * (b + u), 2 * b + 4 * u)),
    "simclr_contrast": Case("simclr", passes=lambda b, u: Passes(2 * u, 0)),
    "simclr": Case("simclr", stage=1, labelled=8),
    "simclrv2": Case("simclrv2", {"fine_tune_from": 0}, stage=2, taught=1),
    "sentaugment": Case("sentaugment", {"bank": "own"}, stage=1),
    "semikd": Case("semikd", _ALL, taught=2, teacher=True),
    "zeromatch_distil": Case("zeromatch", {"inner_options": "threshold=0"}),
    "zeromatch": Case("zeromatch", {"inner_options": "threshold=0"}, stage=1),
    "pseudo_supervision": Case("pseudo_supervision"),
    "pl_feature": Case("pl_feature", {"inner_options": "threshold=0"}),
}
TRAINED = tuple(name for name in METHODS if name not in UNTRAINED)


class MethodStep(our_steps.Ours):
    """One step of a case a call."""

    def __init__(self, step: Step, passes: Passes):
        super().__init__(step)
        self.passes = passes

    def trained(self) -> list[Tensor]:
        return list(self.step.update.parameters)

    def eager_loss(self) -> float:
        """The loss of the step to come, by the method alone: no Step, no compiler. Nothing is moved but batch-norm's statistics."""
        step, clock = self.step, Clock(self.step.clock.total, 0, self.step.device)
        clock.step.copy_(step.clock.step + 1)
        with torch.autocast(step.device.type, dtype=step.amp, enabled=step.amp is not None, cache_enabled=False):
            return float(step.method.loss(step.pipeline.draw(), clock).total.detach())


def method_step(name: str, network: Network, sizes: tuple[int, int], *, weak_pass: str = "joint", amp: str = "off") -> MethodStep:
    """The case's step on a copy of `network` (linear head) and B labelled and U unlabelled samples of noise. `sizes`: (B, U)."""
    case, device, classes = CASES[name], network.head.weight.device, len(network.head.weight)
    kind = find(case.method)
    config = TrainConfig(steps=our_steps.TOTAL, lr=1e-3, ema=0.999, amp=amp, weight_decay=5e-4)
    spec = made_spec(classes)
    network = copy.deepcopy(network)
    if network.has_batchnorm:
        network = network.to(memory_format=torch.channels_last)  # as the engine does it
    further = {"teacher": made_teacher(network, spec)} if case.teacher else {}
    torch.manual_seed(0)  # a case's own heads start at random, a twin's alike
    own = kind.Config(**case.options)
    for keyword in kind.others(own):
        further[keyword] = copy.deepcopy(network)
    options = {"unlabelled_batch": sizes[1], "ema": config.ema, "weak_pass": weak_pass, **further}
    method = kind(own, network, spec, **options).to(device).train()
    stage = method.stage(case.stage, config.steps)
    update = updates.made(method, stage, config, scaled=False)
    held = our_steps.Held(made_batch(method, sizes, classes, device), spec)
    return MethodStep(Step(method, held, update, Clock(stage.steps, 0, device), config), counted(case, method, sizes))


def counted(case: Case, method: Method, sizes: tuple[int, int]) -> Passes:
    """What the case's step forwards, by its views in the present stage and its further forwards."""
    (labelled, unlabelled), views = sizes, method.asked
    apart = views.no_grad if method.weak_pass == "separate" else 0
    if case.passes is not None:
        made, moved = case.passes(labelled, unlabelled), case.apart * apart * unlabelled
        return Passes(made.graph - moved, made.plain + moved)
    alone = case.alone * labelled * len(views.labelled) if method.network.has_batchnorm else 0
    graph = labelled * len(views.labelled) + unlabelled * (len(views.unlabelled) - apart) + alone
    return Passes(graph, unlabelled * (apart + case.taught))


def seen(method: Method, call: Callable[[], object]) -> Passes:
    """What the networks inside `method` are given during `call`."""
    count = {True: 0, False: 0}

    def note(part: nn.Module, given: tuple[Tensor, ...]) -> None:
        trains = any(p.requires_grad for p in part.parameters())
        if torch.is_grad_enabled() and not trains:
            count[False] += 2 * len(given[0])  # a search: the weights are constants
        else:
            count[torch.is_grad_enabled()] += len(given[0])

    hooks = [part.register_forward_pre_hook(note) for part in method.modules() if isinstance(part, Network)]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return Passes(count[True], count[False])


def made_spec(classes: int) -> DataSpec:
    """A set of our_steps.ROWS rows, each with a label of a foundation model that is drawn by chance."""
    rows = our_steps.ROWS
    given = np.random.default_rng(0).integers(0, classes, rows)
    foundation = FoundationLabels(given, np.ones(rows, np.float32))
    shares = {"labelled_counts": (4,) * classes, "foundation": foundation}
    return DataSpec("made up", our_steps.names(classes), (3, 32, 32), rows, rows, **shares)


def made_teacher(network: Network, spec: DataSpec) -> Teacher:
    """A finished run's networks stand-in: a copy of the student, and of its head as the auxiliary one."""
    return Teacher(copy.deepcopy(network), copy.deepcopy(network.head), (spec.mean, spec.std), spec)


def made_batch(method: Method, sizes: tuple[int, int], classes: int, device: torch.device) -> Batch:
    """Noise in the views that the method asks for in its present stage."""
    views = method.asked
    batch = our_steps.noise_batch(*sizes, max(1, len(views.unlabelled)), 32, classes, device)
    (first,) = batch.labelled
    labelled = tuple(first + 0.5 * k * first.roll(1, 0) for k in range(len(views.labelled)))
    return batch._replace(labelled=labelled, unlabelled=batch.unlabelled[: len(views.unlabelled)])
