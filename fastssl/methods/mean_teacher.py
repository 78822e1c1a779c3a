"""Mean Teacher (Tarvainen & Valpola 2017): predictions must agree with those of the network's own running average."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import option
from ..kernels import consistency_loss, cross_entropy
from ..models import Network, Output
from ..models.heads import demand_one_layer
from ..pipelines.batch import Batch, DataSpec, Views
from ..schedules import Clock
from .base import Averaged, Method, Stage, Terms
from .bricks.consistency import LABELLED, UNLABELLED, ConsistencyOptions, consistency_weight, noisy, reduced, share_of_labels
from .bricks.forward import forward_apart, forward_together
from .bricks.options import but
from .bricks.teaching import check_average, following, taught


class MeanTeacher(Method):
    """L = (1 / B) sum_labelled CE(y, z) + w(t) (1 / B) sum d(p, sg p'), B all rows of the mixed batch; p' of the average.

    d is the squared distance over C, or KL(p' || p). Student and teacher see weak views of their own. After the optimiser's step
    theta' <- a theta' + (1 - a) theta, a = min(1 - 1 / (k + 1), train.ema), k steps done. The teacher is what is judged. With two heads the
    consistency term is of a second head, and 0.01 (1 / B) sum (1 / C) ||z - z_second||^2 binds the heads, gradient both ways.
    """

    @dataclass(frozen=True)
    class Config(ConsistencyOptions):
        ramp_share: float = but(ConsistencyOptions, "ramp_share", 40 / 150, "Tarvainen & Valpola 2017, 13 layers: 40,000 of 150,000 steps")
        cost: str = option(
            "mse",
            "distance of the two predictions: squared, mean over classes (mse), or KL(teacher || student)",
            source="Tarvainen & Valpola 2017: mse; their ImageNet run: kl, lambda_u 10",
            choices=("mse", "kl"),
        )
        early_decay: float = option(
            0.0,
            "the average's decay during the ramp, where another than train.ema; 0 for none",
            source="Tarvainen & Valpola 2017, SVHN: 0.99",
            least=0,
            most=1,
        )
        teacher_dropout: bool = option(True, "dropout in the teacher's pass too", source="code: true; the paper's ablation: not needed")
        two_heads: bool = option(
            False, "a head of its own for the consistency term", source="Tarvainen & Valpola 2017, residual networks: true"
        )
        logit_distance: float = option(
            0.01, "weight of the squared distance between the logits of the two heads (two_heads)", source="code, CIFAR-10: 0.01", least=0
        )

    summary = "predictions must agree with those of the network's running average"
    paper = "Tarvainen & Valpola 2017, arXiv 1703.01780"
    views = Views(labelled=("weak", "weak"), unlabelled=("weak", "weak"), no_grad=1)
    usual_ema = 0.999

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        check_average("mean_teacher", options.get("ema", 0.0))
        if config.two_heads:
            demand_one_layer(network.head, "mean_teacher with two_heads=true")
        super().__init__(config, network, spec, **options)
        self.weak_pass = "separate"  # the teacher's pass is always its own
        self.labels_share = share_of_labels(config, spec)
        self.second_head = copy.deepcopy(network.head) if config.two_heads else None
        self.stage_steps: int | None = None

    @classmethod
    def views_of(cls, config: Any) -> Views:
        return Views(("weak",) if config.reduction == "streams" else ("weak", "weak"), ("weak", "weak"), no_grad=1)

    def enter(self, stage: Stage) -> None:
        super().enter(stage)
        self.stage_steps = stage.steps

    def averages(self) -> list[Averaged]:
        until = 0.0
        if self.config.early_decay:
            if self.stage_steps is None:
                raise ValueError("method.early_decay lasts a share of a stage, and none has begun: call enter(stage) before averages()")
            until = self.config.ramp_share * self.stage_steps
        decay = following(self.ema_decay, early=self.config.early_decay, until=until)
        return [Averaged(self.ema, self.network, decay, buffers="own")]

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        deviation = self.config.noise
        known = noisy(batch.labelled, batch.index, deviation, clock, use=LABELLED, network=self.network)
        theirs, own = noisy(batch.unlabelled, batch.unlabelled_index, deviation, clock, use=UNLABELLED, network=self.network)
        *wanted, teacher = taught(self.ema, self.network, [*known[1:], theirs], dropout=self.config.teacher_dropout)
        if self.config.reduction == "streams":
            (student,) = forward_together(self.network, known)
            (other,) = forward_apart(self.network, [own])
        else:
            student, other = forward_together(self.network, [known[0], own])
        return [student, *wanted], [teacher, other]

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        c, (student, *wanted), (teacher, other) = self.config, labelled, unlabelled
        target = torch.cat([*(view.logits for view in wanted), teacher.logits])
        classified = torch.cat([student.logits, other.logits])
        predicted = classified if self.second_head is None else self.second(torch.cat([student.features, other.features]))
        rows = cross_entropy(student.logits, batch.label, sample_weight=batch.weight)
        distances = consistency_loss(predicted[-len(target) :], target, kind=c.cost)
        supervised, unsupervised = reduced(rows, distances, c.reduction)
        total = supervised + self.labels_share * consistency_weight(c, clock) * unsupervised
        metrics = {"loss_labelled": supervised.detach(), "loss_unlabelled": unsupervised.detach()}
        if self.second_head is not None:
            apart = (classified.to(rows.dtype) - predicted.to(rows.dtype)).square().mean()
            total = total + c.logit_distance * apart
            metrics["loss_heads"] = apart.detach()
        return Terms(total, metrics)

    def second(self, features: Tensor) -> Tensor:
        """[N, C] logits of the second head, under the network's own dropout."""
        dropout = self.network.dropout
        return self.second_head(features if dropout is None else dropout(features))

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        return forward_apart(self.network, [batch.unlabelled[0]])[0].logits
