"""ZeroMatch (arXiv 2502.12584): a foundation model labels everything once; a small network first learns these labels, then learns by
semi-supervision while a second head on its encoder keeps fitting them, so that weak pseudo-labels do not undo what the teacher gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import option
from ..models import Network, Output
from ..models.heads import LinearHead
from ..pipelines.batch import Batch, DataSpec, Views
from ..schedules import Clock
from . import find
from .base import Method, Stage, Terms
from .bricks.foundation import GivenLabels, demand
from .bricks.inner import CARRIED, inner_config, make_inner
from .bricks.options import MethodOptions
from .bricks.rounds import refuse_probe


class ZeroMatch(Method):
    """Stage 1: mean CE(y', z(weak)) over the unlabelled samples. Stage 2: L_inner + lambda_p alpha_t mean CE(y', r(weak)).

    y' are the foundation model's labels; the second mean is over labelled and unlabelled rows; r is a new auxiliary head on the same
    encoder (its gradient reaches the encoder), alpha_t = t / (T - 1). The main head goes on from stage 1; optimiser and schedule start
    afresh. The auxiliary head is not part of the network that is judged. A sample without such a label counts as 0 in the means, one with
    a confidence by it.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        inner: str = option("adamatch", "semi-supervised method of stage 2", source="ZeroMatch code: adamatch", choices=CARRIED)
        inner_options: str = option("", "its options: name=value,name=value; an inner adamatch is USB's unless they say otherwise")
        distil_share: float = option(
            0.5, "share of the run's steps in stage 1; 0 leaves it out", source="ZeroMatch: as many steps as stage 2", least=0, most=0.99
        )
        auxiliary: str = option("linear", "auxiliary head", source="code: linear on images; paper: an MLP", choices=("linear", "mlp"))
        annealing: str = option(
            "linear",
            "weight alpha_t of the auxiliary term: t / (T - 1), 1 throughout (constant), or no auxiliary term at all (off)",
            source="ZeroMatch: linear",
            choices=("linear", "constant", "off"),
        )
        lambda_p: float = option(1.0, "weight of the auxiliary term", source="ZeroMatch code", least=0)

    summary = "a foundation model's labels, first distilled, then kept by a second head beside a semi-supervised method"
    paper = "ZeroMatch 2025, arXiv 2502.12584"
    views = Views(labelled=("weak",), unlabelled=("weak", "strong"), no_grad=0)
    needs_foundation = True

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        demand(spec, "zeromatch")
        refuse_probe("zeromatch", network)
        self.given = GivenLabels(spec)
        self.inner = make_inner(config.inner, find(config.inner), config.inner_options, network, spec, **options)
        self.distilling = False
        width, classes = network.encoder.num_features, spec.num_classes
        self.auxiliary = None
        if config.annealing != "off":
            linear = LinearHead(width, classes)
            hidden = (nn.Linear(width, width), nn.GELU()) if config.auxiliary == "mlp" else ()
            self.auxiliary = nn.Sequential(*hidden, linear) if hidden else linear

    @classmethod
    def views_of(cls, config: Any) -> Views:
        kind = find(config.inner)
        inner = kind.views_of(inner_config(config.inner, kind, config.inner_options))
        # The auxiliary term trains the weak views, so they carry gradient.
        return Views(inner.labelled, inner.unlabelled, inner.no_grad if config.annealing == "off" else 0)

    def stage(self, k: int, steps: int) -> Stage | None:
        first = min(max(1, round(self.config.distil_share * steps)), steps - 1) if self.config.distil_share and steps > 1 else 0
        # The unlabelled stream holds every training sample, unless an imbalance profile or a split file leaves the labelled ones out.
        stages = [Stage(first, networks=("network",), name="distil", views=Views((), ("weak",)))] if first else []
        stages.append(Stage(steps - first, name="semi_supervised"))
        return stages[k] if k < len(stages) else None

    def enter(self, stage: Stage) -> None:
        super().enter(stage)
        self.distilling = stage.name == "distil"

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        index = batch.unlabelled_index
        agreement = self.given.agreement(unlabelled[0].logits, index)
        if self.distilling:
            loss = self.given.rows(unlabelled[0].logits, index).mean()
            return Terms(loss, {"loss_foundation": loss.detach(), "foundation_agreement": agreement})
        terms = self.inner.objective(labelled, unlabelled, batch, clock)
        terms.metrics["foundation_agreement"] = agreement
        if self.auxiliary is None:
            return terms
        features = torch.cat([labelled[0].features, unlabelled[0].features])
        loss = self.given.rows(self.auxiliary(features), torch.cat([batch.index, index])).mean()
        terms.metrics["loss_foundation"] = loss.detach()
        return Terms(terms.total + self.config.lambda_p * self.annealed(clock) * loss, terms.metrics, terms.memory)

    def annealed(self, clock: Clock) -> float | Tensor:
        """alpha of the step under way."""
        if self.config.annealing != "linear":
            return 1.0
        return clock.step.to(torch.float32) / max(1, clock.total - 1)

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        if not self.distilling:
            self.inner.remember(batch, terms, clock)
