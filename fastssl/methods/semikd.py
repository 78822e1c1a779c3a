"""SemiKD: a smaller network learns from a finished FineSSL run, and by FineSSL's own terms the more, the better it does beside its teacher.

From the README and the separate trainer of FineSSL's official code (arXiv 2405.11756); the paper's notes do not have it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import option
from ..kernels import consistency_loss, cross_entropy
from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec, Views
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Terms
from .bricks.options import but
from .finessl import FineSSL, FineSSLTerms

WINDOW = 10  # steps between two moves of a


class SemiKD(FineSSL):
    """L = L_x + L_x1 + w [(1 - a) (L_kd + L_kd1) + a (s L_u + L_u1)], FineSSL's terms with margins of alpha_0 a.

    L_kd = mean -sum p_teacher(u_w) log p_student(u_w) on the main heads, L_kd1 on the auxiliary ones (the student's on detached features).
    a starts at 1/2; every 10 steps a <- clip(0.99 a + 0.01 r a, 0, 1), r the window's mean ratio of the teacher's cross-entropy between its
    weak and strong views to the student's. The weak view trains here.
    """

    @dataclass(frozen=True)
    class Config(FineSSL.Config):
        teacher: str = option("", "run directory of the finished finessl run that teaches")
        distil_weight: float = option(5.0, "w: weight of distillation and of FineSSL's unlabelled terms", source="code", least=0)
        share: float = option(0.5, "a at the start: share of FineSSL's terms", source="code", least=0, most=1)
        gamma: float = but(FineSSL.Config, "gamma", 1.0, "code: s = 1")
        margin_scale: float = but(FineSSL.Config, "margin_scale", 10.0, "code")
        strong_views: int = but(FineSSL.Config, "strong_views", 1, "code: of two strong views one is used")

    summary = "distils a finished finessl run into another network, beside FineSSL's own terms"
    paper = "official code of Gan & Wei 2024, arXiv 2405.11756"
    views = Views(labelled=("weak",), unlabelled=("weak", "strong"), no_grad=0)

    def __init__(self, config: Any, network: Network, spec: DataSpec, *, teacher: nn.Module | None = None, **options: Any):
        super().__init__(config, network, spec, **options)
        if teacher is None:
            raise ConfigError("semikd learns from a finished finessl run: give --set method.teacher=RUN")
        self.teacher = teacher.requires_grad_(False).eval()
        # The student's heads are its own: both random, not one the copy of the other.
        self.auxiliary = fresh(network.head)
        self.register_buffer("portion", torch.full((), config.share))
        self.register_buffer("ratio", torch.zeros(()))  # sum of the window's ratios so far
        self.register_buffer("seen", torch.zeros(()))  # how many: skipped steps have none, accumulated ones several
        self.register_buffer("moved", torch.full((), -1, dtype=torch.int64))  # the step at which a moved last

    @classmethod
    def views_of(cls, config: Any) -> Views:
        return Views(("weak",), ("weak",) + ("strong",) * config.strong_views, no_grad=0)

    @classmethod
    def teacher_run(cls, config: Any) -> str | None:
        return config.teacher or None

    def margin_scale(self) -> Tensor:
        return self.config.margin_scale * self.portion

    def total(self, terms: FineSSLTerms, unlabelled: list[Output], batch: Batch, memory: dict[str, Tensor]) -> Tensor:
        weak, strong = unlabelled[:2]
        with torch.no_grad():
            (main, auxiliary), (main_strong, _) = (self.teacher(view) for view in batch.unlabelled[:2])
        distilled = (
            consistency_loss(weak.logits, main, kind="ce").mean() + consistency_loss(self._auxiliary(weak), auxiliary, kind="ce").mean()
        )
        own = cross_entropy(strong.logits.detach(), weak.logits.detach().argmax(1)).mean()
        memory["ratio"] = cross_entropy(main_strong, main.argmax(1)).mean() / own.clamp(min=1e-12)
        a = self.portion
        mixed = (1 - a) * distilled + a * (self.config.gamma * terms.unlabelled + terms.auxiliary_unlabelled)
        return terms.labelled + terms.auxiliary_labelled + self.config.distil_weight * mixed

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        super().remember(batch, terms, clock)
        total, seen = self.ratio + terms.memory["ratio"].to(self.ratio.dtype), self.seen + 1
        ends = ((clock.step + 1) % WINDOW == 0) & (clock.step != self.moved)
        portion = (0.99 * self.portion + 0.01 * (total / seen) * self.portion).clamp(0, 1)
        self.portion.copy_(torch.where(ends, portion, self.portion))
        self.ratio.copy_(torch.where(ends, 0.0, total))
        self.seen.copy_(torch.where(ends, 0.0, seen))
        self.moved.copy_(torch.where(ends, clock.step, self.moved))

    def train(self, mode: bool = True) -> SemiKD:
        super().train(mode)
        if getattr(self, "teacher", None) is not None:
            self.teacher.train(False)
        return self


def fresh(head: nn.Module) -> nn.Module:
    """A head of the same kind with a random start of its own."""
    other = copy.deepcopy(head)
    if hasattr(other, "reset_parameters"):
        other.reset_parameters()
    else:
        other.set_weight(torch.empty_like(head.weight).uniform_(-1, 1))
    return other
