"""Noisy Student (Xie et al. 2020): a teacher without noise labels, an equal or larger student learns with noise, and teaches the next."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import option
from ..kernels import cross_entropy
from ..models import Network, Output, Report
from ..pipelines.batch import Batch, DataSpec, Split, Views
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Averaged, Method, Stage, Terms
from .bricks.forward import forward_views
from .bricks.options import MethodOptions
from .bricks.quality import pseudo_label_quality
from .bricks.rounds import by_class, change, lengths, pool, refuse_probe, told_vanished
from .bricks.selection import balanced
from .bricks.start import Start
from .bricks.targets import Chosen, Targets


class NoisyStudent(Method):
    """Stage 0, the teacher: mean CE(y, z). Stages 1 to R, a student each: mean CE(y, z) + rho mean CE(q_T, z_u), rho = U / B.

    Before stage r the network so far, in evaluation and on plain views, predicts the unlabelled: those of max p >= threshold are kept, of
    each class the `per_class` surest; a class with fewer repeats them. q_T = softmax(z / T), or its class. Students start afresh and see
    views with noise; model.dropout and model.drop_path are noise too. Labels are smoothed, pseudo-labels where they are hard.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        rounds: int = option(3, "R: students, each the teacher of the next", source="Noisy Student: 3", least=1)
        targets: str = option(
            "soft",
            "what students learn: the teacher's probabilities, or its likeliest class (hard)",
            source="Noisy Student: soft",
            choices=("soft", "hard"),
        )
        temperature: float = option(1.0, "T of soft targets", source="official code: 1", above=0)
        threshold: float = option(0.3, "confidence from which a prediction is kept", source="Noisy Student: 0.3", least=0, most=1)
        balance: bool = option(True, "draw every predicted class equally often", source="Noisy Student")
        per_class: int = option(
            0,
            "rows of each class: more are cut to the surest, fewer repeat; 0: the unlabelled over the classes",
            source="Noisy Student: 130,000 of ImageNet's; its SVHN script: 53,113, all over the classes",
            least=0,
        )
        lambda_u: float | None = option(
            None, "rho: weight of the unlabelled mean; none: U / B, both sums over B", source="official code: U / B", least=0
        )
        smoothing: float = option(
            0.1, "label smoothing of labels, and of hard pseudo-labels", source="official code: 0.1, eps / C a class", least=0, most=0.99
        )
        view: str = option("strong", "view of the unlabelled", source="Noisy Student: RandAugment", choices=("strong", "weak"))
        labelled_view: str = option(
            "strong", "view of the labelled, the teacher's too", source="Noisy Student: as the unlabelled", choices=("strong", "weak")
        )
        teacher_model: str = option(
            "",
            "name of a model for the first teacher, no larger than --model; that of --model if empty",
            source="Noisy Student: a smaller one",
        )
        allow_smaller: bool = option(False, "let the student be smaller than teacher_model", source="ours")
        teacher_share: float = option(
            0.0, "share of the run's steps in which the first teacher trains; 0: as many as a round", source="ours", least=0, most=0.99
        )

    summary = "a teacher labels without noise, an equal or larger student learns with noise and on balanced classes, and teaches the next"
    paper = "Xie et al. 2020, arXiv 1911.04252"
    whole = 0  # what teaches is a table, so that every view may be mixed

    def __init__(self, config: Any, network: Network, spec: DataSpec, *, first_teacher: Network | None = None, **options: Any):
        super().__init__(config, network, spec, **options)
        refuse_probe("noisy_student", network)
        if config.per_class * spec.num_classes > spec.rows:
            raise ConfigError(
                f"method.per_class={config.per_class} of {spec.num_classes} classes is more than the {spec.rows:,} {spec.kind}s of "
                f"{spec.name}; give at most {spec.rows // spec.num_classes}"
            )
        self.first_teacher = self.first_average = None
        if config.teacher_model:
            if first_teacher is None:
                raise ValueError("method.teacher_model names a network of its own for the first teacher; pass it as first_teacher")
            self._check(first_teacher)
            self.first_teacher = first_teacher
            self.first_average = copy.deepcopy(first_teacher).requires_grad_(False) if self.ema_decay else None
        self.chosen = Chosen(spec.rows)
        self.taught = Targets(spec.rows, spec.unlabelled, spec.num_classes) if config.targets == "soft" else None
        self.start = Start(network)
        self.teaching = False  # whether the first teacher trains

    def _check(self, teacher: Network) -> None:
        """Raises ConfigError where the student is smaller than its first teacher."""
        mine, other = (sum(p.numel() for p in net.parameters()) for net in (self.network, teacher))
        if mine < other and not self.config.allow_smaller:
            raise ConfigError(
                f"noisy_student's student has {mine:,} parameters and its teacher {self.config.teacher_model} has {other:,}; name a "
                "smaller method.teacher_model or a larger --model, or give --set method.allow_smaller=true"
            )

    @classmethod
    def others(cls, config: Any) -> dict[str, str]:
        return {"first_teacher": config.teacher_model} if config.teacher_model else {}

    @classmethod
    def views_of(cls, config: Any) -> Views:
        return Views((config.labelled_view,), (config.view,))

    def stage(self, k: int, steps: int) -> Stage | None:
        c = self.config
        first, each = lengths("noisy_student", steps, c.rounds, c.teacher_share)
        if k:
            return Stage(each, networks=("network",), name="student") if k <= c.rounds else None
        if c.mixup and self.first_teacher is not None and self.network.reads_text:
            raise ConfigError("texts are mixed as word embeddings, and method.teacher_model has its own; give --set method.mixup=0")
        asked = self.asks(c)
        views = dataclasses.replace(asked, unlabelled=asked.unlabelled if c.entropy_min else ())
        return Stage(first, networks=("network" if self.first_teacher is None else "first_teacher",), name="teacher", views=views)

    def enter(self, stage: Stage) -> None:
        super().enter(stage)
        self.teaching = stage.name == "teacher"

    def averages(self) -> list[Averaged]:
        more = [] if self.first_average is None else [Averaged(self.first_average, self.first_teacher, self.ema_decay)]
        return super().averages() + more

    def judges(self) -> tuple[str, ...]:
        if not self.teaching or self.first_teacher is None:
            return super().judges()
        return ("first_teacher",) if self.first_average is None else ("first_average",)

    def train(self, mode: bool = True) -> NoisyStudent:
        super().train(mode)
        if getattr(self, "first_average", None) is not None:
            self.first_average.train(False)
        return self

    def split_of(self, split: Split) -> Split:
        rows = self.chosen.drawn()
        # A round that keeps nothing draws what there is, which then weighs nothing.
        return dataclasses.replace(split, unlabelled=rows, hash="") if len(rows) else split

    def prepare(self, k: int, look: Any) -> Report:
        if k == 0:
            return Report()
        c, report, classes = self.config, Report(), self.spec.num_classes
        before, free = self.chosen.label.cpu().numpy().copy(), pool(look.split)
        index = confidence = guess = np.zeros(0, np.int64)
        q = None
        if len(free):
            found, confidence, guess, *soft = look(free, network=self._teacher(k), reduce=self._judged)
            index, confidence, guess = (x.cpu().numpy() for x in (found, confidence, guess))
            q = soft[0] if soft else None
        sure = np.isfinite(confidence) & (confidence >= c.threshold)
        per_class = c.per_class or max(1, len(free) // classes)
        copies = sure.astype(np.int64)
        if c.balance:
            copies = balanced(index, guess, np.where(sure, confidence, np.nan), per_class, classes, (look.pipeline.seed, k))
        kept = np.flatnonzero(copies)
        self.chosen.write(index[kept], guess[kept], copies[kept])
        if self.taught is not None:
            at = torch.from_numpy(kept).to(self.taught.q.device)
            rows = torch.from_numpy(index[kept]).to(at.device)
            self.taught.write(rows, torch.zeros(0, classes, device=at.device) if q is None else q[at])
        self._tell(report, k, look.split, before, len(free), confidence[kept], guess[kept], copies[kept], per_class)
        self.start.restore(self.network, self.ema)
        return report

    def _teacher(self, k: int) -> nn.Module | None:
        """The network that teaches the student of round k; None: the judged one."""
        if k > 1 or self.first_teacher is None:
            return None
        return self.first_teacher if self.first_average is None else self.first_average

    def _judged(self, out: Output, label: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        """Confidence and class of each row, and soft targets where they are learned."""
        logits = out.logits.double()
        confidence, guess = logits.softmax(1).max(1)
        soft = () if self.taught is None else ((logits / self.config.temperature).softmax(1).to(self.taught.q.dtype),)
        return confidence, guess, *soft

    def _tell(
        self,
        report: Report,
        k: int,
        split: Split,
        before: np.ndarray,
        free: int,
        confidence: np.ndarray,
        guess: np.ndarray,
        copies: np.ndarray,
        per_class: int,
    ) -> None:
        what, things = f"noisy_student, round {k} of {self.config.rounds}", f"{self.spec.kind}s"
        found = change(before, self.chosen.label.cpu().numpy())
        counts = np.bincount(guess, minlength=self.spec.num_classes)
        short = int(((counts > 0) & (counts < per_class)).sum()) if self.config.balance else 0
        drawn = f" and drawn {copies.sum():,} times, {per_class:,} of a class" if self.config.balance and found.chosen else ""
        report.notes.append(f"{what}: {found.chosen:,} of {free:,} {things} kept{drawn}; {found}; {by_class(self.spec, counts)}")
        least = float(confidence.min()) if len(confidence) else None
        if least is not None:
            repeat = f"; {short} classes have fewer and repeat" if short else ""
            report.notes.append(f"{what}: least confidence kept {least:.3f}{repeat}")
        report.values = {"kept": found.chosen, "drawn": int(copies.sum()), "moved": found.moved, "changed": found.changed}
        report.values |= {"short": short, "least_confidence": least}
        if not found.chosen:
            told = report.notes if self.chosen.told else report.warnings  # one warning a run
            told.append(f"{what}: none of {free:,} {things} is kept, so that this student has the labels alone")
            self.chosen.told.fill_(True)
        last = before[before >= 0] if k > 1 else split.label[split.weight > 0]
        told_vanished(report, what, self.spec, np.bincount(last, minlength=self.spec.num_classes), counts)

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        learner = self.first_teacher if self.teaching and self.first_teacher is not None else self.network
        return forward_views(learner, batch, self.asked.no_grad, self.weak_pass)

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        # TensorFlow's smoothing spreads eps over all classes, the right one among them; the kernel's over the others.
        classes = self.spec.num_classes
        eps = self.config.smoothing * (classes - 1) / classes
        supervised = cross_entropy(labelled[0].logits, batch.label, smoothing=eps, sample_weight=batch.weight).mean()
        metrics: dict[str, Any] = {"loss_labelled": supervised.detach()}
        if self.teaching:
            return Terms(supervised, metrics)
        label, weight = self.chosen.of(batch.unlabelled_index)
        if self.taught is None:
            rows = cross_entropy(unlabelled[0].logits, label, smoothing=eps, sample_weight=weight)
        else:
            q, _ = self.taught.of(batch.unlabelled_index)
            rows = cross_entropy(unlabelled[0].logits, q, sample_weight=weight)
        unsupervised = rows.mean()
        rho = len(weight) / len(batch.label) if self.config.lambda_u is None else self.config.lambda_u
        metrics |= {"loss_unlabelled": unsupervised.detach()}
        metrics |= pseudo_label_quality(torch.where(weight > 0, label, -1), weight, batch.hidden_label, classes)
        return Terms(supervised + rho * unsupervised, metrics)
