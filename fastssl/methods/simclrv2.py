"""SimCLRv2 (Chen et al. 2020b): contrast, fine-tuning from within the projection, and distillation on the unlabelled images."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from ..config import option
from ..kernels import consistency_loss, cross_entropy
from ..models import Network, Output
from ..models.heads import ProjectedHead
from ..pipelines.batch import Batch, DataSpec, Views
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Stage, Terms
from .bricks.forward import forward_views
from .bricks.options import but
from .bricks.quality import pseudo_label_quality
from .bricks.start import Start, copied
from .simclr import SimCLR


class SimCLRv2(SimCLR):
    """Stages 1 and 2 as SimCLR, the projection's first layer kept under the classifier. Stage 3, distillation of the fine-tuned network:

    L = (1 - a) mean CE(y, z_x) + a (1 / U) sum CE(softmax(t_u / T), z_u / T), teacher t and student z on one and the same view.

    The teacher is frozen, in evaluation. It is the same network as it was after stage 2 (self-distillation), or the network
    `teacher_model`, which stages 1 and 2 then train: the student is that of `--model`.
    """

    @dataclass(frozen=True)
    class Config(SimCLR.Config):
        layers: int = but(SimCLR.Config, "layers", 3)
        fine_tune_from: int = option(
            1, "layer of the projection that fine-tuning starts from: 0, its input, or 1, its first", source="SimCLRv2: 1", least=0, most=1
        )
        fine_tune_rate: float = but(
            SimCLR.Config, "fine_tune_rate", 1 / 30, "SimCLRv2: 0.005 sqrt(1024) after 0.075 sqrt(4096), both by LARS"
        )
        classifier: str = but(SimCLR.Config, "classifier", "zero", "SimCLRv2's code")
        distil_share: float = option(
            0.4, "share of the run's steps in distillation; 0 leaves it out", source="ours; paper: 400 epochs after 800", least=0, most=0.98
        )
        alpha: float = option(1.0, "a: weight of the teacher's term, 1 - a that of the labels", source="SimCLRv2: 1", least=0, most=1)
        distil_temperature: float = option(1.0, "T on both sides", source="SimCLRv2: 1; self-distillation 0.1", above=0)
        distil_square: bool = option(False, "multiply the teacher's term by T^2", source="SimCLRv2's notebook; not its equation")
        distil_view: str = option(
            "weak", "view that teacher and student see", source="SimCLRv2: crops and flips", choices=("weak", "strong", "simclr")
        )
        distil_rate: float = option(1.0, "factor on the learning rate in distillation", above=0)
        teacher_model: str = option("", "network that is pre-trained, fine-tuned and teaches; the run's own if left out")
        student: str = option(
            "fresh",
            "start of a student that is its own teacher: the values that the run began with, or the teacher's (tuned)",
            source="SimCLRv2's notebook: a fresh one",
            choices=("fresh", "tuned"),
        )

    summary = "contrast, fine-tuning from the projection's first layer, then distillation into the same or another network"
    paper = "Chen et al. 2020, arXiv 2006.10029"
    called = "simclrv2"

    def __init__(self, config: Any, network: Network, spec: DataSpec, *, teacher: Network | None = None, **options: Any):
        if config.distil_share and not config.fine_tune_share:
            raise ConfigError("simclrv2 distils what was fine-tuned; give method.fine_tune_share above 0, or method.distil_share=0")
        if config.fine_tune_share + config.distil_share >= 1:
            raise ConfigError(
                f"method.fine_tune_share {config.fine_tune_share} and method.distil_share {config.distil_share} leave contrast no steps; "
                "give less than 1 in all"
            )
        if config.teacher_model and not config.distil_share:
            raise ConfigError("method.teacher_model is trained to teach, and method.distil_share=0 leaves that out; give one of the two")
        if config.teacher_model and config.student == "tuned":
            raise ConfigError("method.student=tuned goes on with its teacher's weights, and method.teacher_model names another network")
        if config.teacher_model and config.mixup and spec.kind == "text":
            raise ConfigError("method.mixup mixes one network's embeddings of texts, which method.teacher_model cannot read; leave one out")
        if bool(config.teacher_model) != (teacher is not None):
            raise ValueError("a teacher is passed where method.teacher_model names one, and nowhere else")
        if config.fine_tune_from and not isinstance((network if teacher is None else teacher).head, ProjectedHead):
            raise ConfigError(
                "simclrv2 fine-tunes from the projection's first layer, which model.head=projected holds; leave model.head out, or give "
                "--set method.fine_tune_from=0"
            )
        super().__init__(config, network, spec, **options)
        self.teacher, self.start = teacher, None
        if teacher is not None:
            self.learner = "teacher"
            self.projection = self.projected()
        elif config.distil_share:
            self.teacher = copy.deepcopy(network).requires_grad_(False)
            self.start = Start(network) if config.student == "fresh" else None
        self.train(self.training)

    @classmethod
    def others(cls, config: Any) -> dict[str, str]:
        return {"teacher": config.teacher_model} if config.teacher_model else {}

    @classmethod
    def head_of(cls, config: Any) -> str | None:
        return "projected" if config.fine_tune_from else None

    def shared_layers(self) -> int:
        return self.config.fine_tune_from

    @classmethod
    def shares(cls, config: Any) -> list[tuple[str, float]]:
        (_, first), *later = super().shares(config)
        if not config.distil_share:
            return [("contrast", first), *later]
        return [("contrast", first - config.distil_share), *later, ("distil", config.distil_share)]

    @classmethod
    def views_of(cls, config: Any) -> Views:
        return Views(("weak",), (config.distil_view,)) if config.distil_share else super().views_of(config)

    def stage_of(self, name: str, steps: int) -> Stage:
        if name != "distil":
            return super().stage_of(name, steps)
        known = ("weak",) if self.config.alpha < 1 else ()
        return Stage(steps, ("network",), name, self.idle(name), Views(known, (self.config.distil_view,)), rate=self.config.distil_rate)

    def idle(self, name: str) -> tuple[str, ...]:
        if self.learner == "network":
            return ()
        return ("teacher",) if name == "distil" else ("network",)

    def judges(self) -> tuple[str, ...]:
        """The teacher until there is a student."""
        return super().judges() if self.doing == "distil" or self.learner == "network" else ("teacher",)

    def begun(self, name: str) -> tuple[str, list[str]]:
        if name != "distil":
            return super().begun(name)
        if self.learner == "teacher":
            return f"{self.config.teacher_model} teaches the run's own network", []
        copied(self.judged(), self.teacher)
        if self.start is None:
            return "the network goes on with what it says itself", []
        self.start.restore(self.network, self.ema)
        return "the network teaches itself from its start again", []

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        if self.doing != "distil":
            return super().outputs(batch, clock)
        return forward_views(self.network, batch, self.asked.no_grad, self.weak_pass)

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        if self.doing != "distil":
            return super().objective(labelled, unlabelled, batch, clock)
        c, student = self.config, unlabelled[0].logits
        with torch.no_grad():
            teacher = self.teacher(batch.unlabelled[0]).logits
        rows = consistency_loss(student, teacher, kind="ce", temperature=c.distil_temperature)
        distilled = rows.mean() * (c.distil_temperature**2 if c.distil_square else 1.0)
        total, metrics = c.alpha * distilled, {"loss_unlabelled": distilled.detach()}
        if labelled:
            supervised = cross_entropy(labelled[0].logits, batch.label, sample_weight=batch.weight).mean()
            total, metrics["loss_labelled"] = total + (1 - c.alpha) * supervised, supervised.detach()
        every = torch.ones(len(teacher), device=teacher.device)
        return Terms(total, {**metrics, **pseudo_label_quality(teacher.argmax(1), every, batch.hidden_label, self.spec.num_classes)})

    def train(self, mode: bool = True) -> SimCLRv2:
        super().train(mode)
        if getattr(self, "teacher", None) is not None and (self.learner == "network" or self.doing == "distil"):
            self.teacher.train(False)
        return self
