"""Dash (Xu et al. 2021): pseudo-labels whose loss lies below a threshold that shrinks as training goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import option
from ..kernels.reference import PseudoLabel
from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec
from ..schedules import Clock
from .base import Terms
from .bricks.options import UnlabelledOptions
from .thresholded import Thresholded

KEPT_SCALE = 0.9  # of the mean over kept rows, official code


class Dash(Thresholded):
    """L = mean CE(y, z_x) + lambda_u 0.9 sum w CE(q, z_s) / max(sum w, 1), w = 1[-log max p_w <= rho_t].

    Warm-up: every row counts, q = softmax(z_w / 0.5); rho_hat is the mean of CE(q, z_s) over its last stretch, of training batches by the
    network that trains. After it rho_t = max(rho_min, C0 gamma^-n rho_hat), n growing by 1 at every drop; q is soft while rho_t > rho_min,
    and argmax p_w from then on. At rho_t = rho_min = 0.05 the rule is FixMatch's with threshold exp(-0.05) = 0.951.
    """

    @dataclass(frozen=True)
    class Config(UnlabelledOptions):
        gamma: float = option(1.27, "factor by which the loss threshold falls at each drop", source="Dash, paper and SVHN script", least=1)
        excess: float = option(1.0001, "C0: factor on rho_hat", source="Dash, paper; its code: 1", above=0)
        rho_min: float = option(0.05, "least loss threshold; there soft targets end", source="Dash", above=0)
        temperature: float = option(0.5, "T of soft targets", source="Dash", above=0)
        warmup_share: float = option(
            10 / 1024, "warm-up, share of the steps: at least one", source="official code: 10 of 1024 epochs", above=0, most=1
        )
        measured_share: float = option(
            0.1,
            "last part of the warm-up, over which rho_hat is measured: at least a step",
            source="code: the last of 10 epochs",
            above=0,
            most=1,
        )
        drop_share: float = option(
            9 / 1024, "steps from drop to drop, share of the steps: at least one", source="official code: 9 of 1024 epochs", above=0, most=1
        )
        first_drops: int = option(1, "n right after the warm-up", source="official code: 1; paper: 0", least=0)
        selection: str = option(
            "weak",
            "the loss that meets the threshold: -log max p_w (weak), or the one that trains, CE(q, z_s) (strong)",
            source="weak: official code and USB; strong: paper, eq. 13",
            choices=("weak", "strong"),
        )
        reduction: str = option(
            "kept",
            "the unlabelled term: 0.9 times the mean over kept rows, or the mean over all rows (batch)",
            source="kept: official code; batch: USB",
            choices=("kept", "batch"),
        )

    summary = "pseudo-labels whose loss lies below a threshold that shrinks step by step"
    paper = "Xu et al. 2021, arXiv 2109.00650"

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        self.register_buffer("loss_sum", torch.zeros(()))
        self.register_buffer("loss_count", torch.zeros(()))
        self.register_buffer("at", torch.full((), -1, dtype=torch.int64))  # step of the last writing

    def lengths(self, total: int) -> tuple[int, int, int]:
        """Steps of the warm-up, of its measured end, and from drop to drop, in a stage of `total` steps."""
        warm = max(1, round(self.config.warmup_share * total))
        return warm, max(1, round(self.config.measured_share * warm)), max(1, round(self.config.drop_share * total))

    def rho(self, clock: Clock) -> Tensor:
        """[] the loss threshold of the step under way; infinite in the warm-up."""
        warm, _, between = self.lengths(clock.total)
        # Where every measured step was skipped: what an untrained network's loss would be.
        measured = torch.where(self.loss_count > 0, self.loss_sum / self.loss_count.clamp(min=1), math.log(self.spec.num_classes))
        drops = self.config.first_drops + torch.div(clock.step - warm, between, rounding_mode="floor")
        rho = self.config.excess * measured * self.config.gamma ** -drops.to(measured.dtype)
        return torch.where(clock.step < warm, torch.inf, rho.clamp(min=self.config.rho_min))

    def standard(self, teacher: Tensor, known: Tensor, batch: Batch, clock: Clock) -> tuple[dict[str, Any], dict[str, Tensor]]:
        options, memory = self.aligned(teacher, known)
        memory["rho"] = self.rho(clock)
        return {"threshold": torch.exp(-memory["rho"]), "memory": memory, **options}, memory

    def pseudo_labels(self, student: Tensor, teacher: Tensor, options: dict[str, Any]) -> PseudoLabel:
        memory = options.pop("memory")
        by_strong, rho = self.config.selection == "strong", memory["rho"]
        if by_strong:
            options["weighting"] = "none"
        hard = super().pseudo_labels(student, teacher, dict(options))
        soft = super().pseudo_labels(student, teacher, {**options, "temperature": self.config.temperature})
        memory["loss"] = soft.loss.detach().mean()  # in the warm-up, where it is asked for, of all rows
        rows, weight = torch.where(rho > self.config.rho_min, soft.loss, hard.loss), hard.weight
        if by_strong:
            weight = (rows.detach() <= rho).to(rows.dtype)
            rows = weight * rows
        if self.config.reduction == "kept":
            rows = rows * (KEPT_SCALE * len(rows) / weight.sum().clamp(min=1))  # the mean over all rows is taken of it
        return hard._replace(loss=rows, weight=weight)

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        terms = super().objective(labelled, unlabelled, batch, clock)
        terms.metrics["threshold"] = torch.exp(-terms.memory["rho"])
        return terms

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        super().remember(batch, terms, clock)
        warm, measured, _ = self.lengths(clock.total)
        counts = (clock.step < warm) & (clock.step >= warm - measured)
        anew = clock.step < self.at  # another stage, with a warm-up of its own
        for total, more in ((self.loss_sum, terms.memory["loss"]), (self.loss_count, torch.ones_like(self.loss_count))):
            total.copy_(torch.where(anew, 0.0, total) + torch.where(counts, more.to(total.dtype), 0.0))
        self.at.copy_(clock.step)
