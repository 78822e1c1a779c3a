"""Self-training (Scudder 1965; Nigam and Ghani 2000; Zoph et al. 2020): what the network is sure of becomes its labels, round by round."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import option
from ..kernels import cross_entropy
from ..models import Network, Output, Report
from ..pipelines.batch import Batch, DataSpec, Split, Views
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Method, Stage, Terms
from .bricks.forward import forward_views
from .bricks.joint import TASKS, joint_task
from .bricks.options import MethodOptions
from .bricks.quality import pseudo_label_quality
from .bricks.rounds import by_class, change, lengths, pool, refuse_probe, told_vanished
from .bricks.selection import surest
from .bricks.start import Start
from .bricks.targets import Chosen

LEAST_MEAN = 1e-8  # running mean of a loss, as a divisor


class SelfTraining(Method):
    """Stage 0, the teacher: mean CE(y, z). Stages 1 to R, a student each: mean CE over labels and what was selected, as one stream.

    Before stage r the network so far, in evaluation, judges plain views of the unlabelled: those of max p >= threshold (or the k surest of
    each class) are labelled argmax p. With loss=zoph they stay a stream of their own: L = (L_h + a (m_h / m_p) L_p) / (1 + a), L_h and L_p
    the means over labels and pseudo-labels, m_h and m_p their running means, this batch in them. With joint a second task's loss on
    unlabelled views is added in all stages. The run ends early where a round moves no label.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        rounds: int = option(
            3, "R: rounds of selection, a student each; 0: labels (and joint task) alone", source="Noisy Student: 3", least=0
        )
        criterion: str = option(
            "threshold",
            "what is selected: predictions of a confidence (threshold), or the surest of each predicted class (k_best)",
            source="scikit-learn's SelfTrainingClassifier: threshold",
            choices=("threshold", "k_best"),
        )
        threshold: float = option(
            0.75, "confidence from which a prediction is taken for a label", source="scikit-learn: 0.75; Zoph: 0.5", least=0, most=1
        )
        k_best: int = option(
            10,
            "k: samples that each round adds to each class (criterion=k_best)",
            source="scikit-learn: 10, of all classes together",
            least=1,
        )
        keep: bool = option(
            False,
            "labels once given stay, and rounds add to them; false: each round labels anew what it selects",
            source="true: Scudder 1965, scikit-learn; false: Zoph, Noisy Student",
        )
        start: str = option(
            "fresh",
            "where a student starts: at the weights that the run began with (fresh), or those of its teacher (warm)",
            source="scikit-learn, Zoph: fresh",
            choices=("fresh", "warm"),
        )
        loss: str = option(
            "union",
            "cross-entropy over labels and selected as one labelled stream (union), or two streams by normalised losses (zoph)",
            source="Scudder 1965: union; Zoph 2020: zoph",
            choices=("union", "zoph"),
        )
        alpha: float = option(1.0, "a: weight of the pseudo-labels' normalised loss (loss=zoph)", source="ours; Zoph tunes it", least=0)
        mean_decay: float = option(0.99, "decay of the running means of both losses (loss=zoph)", source="ours", least=0, most=1)
        view: str = option(
            "weak", "view of labelled and selected samples alike", source="Zoph: one strength for both", choices=("weak", "strong")
        )
        joint: str = option(
            "none",
            "second task on the unlabelled samples, with a head of its own on the same encoder: by how many quarters an image was turned "
            "(rotation), or which two views are of one sample (contrast)",
            source="Zoph 2020, section 5: joint training",
            choices=TASKS,
        )
        joint_weight: float = option(0.5, "weight of that task", source="ReMixMatch's rotation: 0.5", least=0)
        contrast_view: str = option(
            "simclr", "the two views of joint=contrast; texts have no simclr", source="SimCLR", choices=("simclr", "strong", "weak")
        )
        contrast_temperature: float = option(0.5, "T of joint=contrast", source="SimCLR on CIFAR-10: 0.5", above=0)
        contrast_width: int = option(128, "width of the embedding of joint=contrast", source="SimCLR: 128", least=1)
        teacher_share: float = option(
            0.0, "share of the run's steps in which the first teacher trains; 0: as many as a round", source="ours", least=0, most=0.99
        )

    summary = "rounds in which what the network is sure of joins its labels; Zoph's normalised loss and a joint second task as options"
    paper = "Scudder 1965; Nigam & Ghani 2000; Zoph et al. 2020, arXiv 2006.06882"
    whole = 0  # what teaches is a table, so that every view may be mixed

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        refuse_probe("self_training", network)
        if config.joint == "contrast" and spec.kind == "text" and config.contrast_view == "simclr":
            raise ConfigError("view 'simclr' is for images; give --set method.contrast_view=weak or strong")
        size = {"width": config.contrast_width, "temperature": config.contrast_temperature}
        self.joint = joint_task(config.joint, "method.joint", network, spec, **size)
        self.chosen = Chosen(spec.rows)
        fresh = config.rounds > 0 and config.start == "fresh"
        self.start = Start(network) if fresh else None
        self.joint_start = Start(self.joint) if fresh and self.joint is not None else None
        self.pseudo = config.loss == "zoph" and config.rounds > 0  # whether the present stage has a stream of selected samples
        self.register_buffer("ended", torch.zeros((), dtype=torch.int64))  # the round that moved no label, 0 as long as there is none
        self.register_buffer("means", torch.zeros(2))  # of L_h and of L_p
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    @classmethod
    def views_of(cls, config: Any) -> Views:
        selected = (config.view,) if config.loss == "zoph" and config.rounds else ()
        return Views((config.view,), (*selected, *_joint_views(config)))

    def stage(self, k: int, steps: int) -> Stage | None:
        c, ended = self.config, int(self.ended)
        first, each = lengths("self_training", steps, c.rounds, c.teacher_share)
        if k > c.rounds or 0 < ended <= k:
            return None
        if k:
            return Stage(each, name="student")
        if not c.rounds:
            return Stage(first)
        asked = self.asks(c)
        # What nobody has selected from is not drawn, but for the entropy term.
        unlabelled = _joint_views(c) or (asked.unlabelled if c.entropy_min else ())
        return Stage(first, name="teacher", views=dataclasses.replace(asked, unlabelled=unlabelled))

    def enter(self, stage: Stage) -> None:
        super().enter(stage)
        self.pseudo = self.config.loss == "zoph" and stage.name == "student"

    def split_of(self, split: Split) -> Split:
        rows = self.chosen.rows()
        if not len(rows):
            return split
        if self.config.loss == "zoph":
            # A joint task goes on with all unlabelled samples, of which those that were not selected weigh nothing in L_p.
            return split if self.joint is not None else dataclasses.replace(split, unlabelled=rows, hash="")
        label, weight = self.chosen.label.cpu().numpy()[rows], np.ones(len(rows), np.float32)
        parts = {"labelled": rows, "label": label, "weight": weight}
        return dataclasses.replace(split, hash="", **{name: np.concatenate([getattr(split, name), part]) for name, part in parts.items()})

    def prepare(self, k: int, look: Any) -> Report:
        if k == 0:
            return Report()
        c, split, report, classes = self.config, look.split, Report(), self.spec.num_classes
        before, free = self.chosen.label.cpu().numpy().copy(), pool(split)
        after = before.copy() if c.keep else np.full_like(before, -1)
        asked = free[after[free] < 0]
        if len(asked):
            index, confidence, guess = (x.cpu().numpy() for x in look(asked, reduce=_judged))
            rows = self._selected(confidence, guess, k)
            after[index[rows]] = guess[rows]
        found = change(before, after)
        counts = np.bincount(after[after >= 0], minlength=classes)
        what = f"self_training, round {k} of {c.rounds}"
        report.notes.append(f"{what}: {found.chosen:,} of {len(free):,} {self.spec.kind}s selected, {found}; {by_class(self.spec, counts)}")
        report.values = {"selected": found.chosen, "moved": found.moved, "changed": found.changed, "classes": int((counts > 0).sum())}
        if not found.chosen or not found.moved:
            self.ended.fill_(k)  # the network stays what it is
            if not found.chosen:
                report.warnings.append(f"{what}: nothing is selected, so that training ends here, with the network so far")
            else:
                report.notes.append(f"{what}: no label has moved, so that training ends here")
            return report
        last = before[before >= 0] if k > 1 else split.label[split.weight > 0]
        told_vanished(report, what, self.spec, np.bincount(last, minlength=classes), counts)
        rows = np.flatnonzero(after >= 0)
        self.chosen.write(rows, after[rows])
        self.means.zero_()
        self.begun.fill_(False)
        if self.start is not None:
            self.start.restore(self.network, self.ema)
        if self.joint_start is not None:
            self.joint_start.restore(self.joint)
        return report

    def _selected(self, confidence: np.ndarray, guess: np.ndarray, k: int) -> np.ndarray:
        """Positions of the predictions that round k takes for labels; NaN never."""
        if self.config.criterion == "threshold":
            return np.flatnonzero(confidence >= self.config.threshold)
        each = self.config.k_best * (1 if self.config.keep else k)  # k rounds have added so many, once or anew
        return surest(guess, confidence, np.full(self.spec.num_classes, each))

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        """Of the labelled view, and of the unlabelled one that pseudo-labels or entropy teach; the joint task has a pass of its own."""
        count = 1 if self.pseudo or self.config.entropy_min > 0 else 0
        return forward_views(self.network, batch._replace(unlabelled=batch.unlabelled[:count]), 0, self.weak_pass)

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        own = cross_entropy(labelled[0].logits, batch.label, sample_weight=batch.weight).mean()
        metrics: dict[str, Any] = {"loss_labelled": own.detach()}
        if not self.pseudo:
            return Terms(own, metrics)
        label, weight = self.chosen.of(batch.unlabelled_index)
        rows = cross_entropy(unlabelled[0].logits, label, sample_weight=weight)
        given = rows.sum() / weight.sum().clamp(min=1).to(rows.dtype)
        means = self._means(torch.stack([own, given]).detach(), weight.sum() > 0)
        ratio = (means[0] / means[1].clamp(min=LEAST_MEAN)).to(rows.dtype)
        a = self.config.alpha
        metrics |= {"loss_unlabelled": given.detach(), "loss_ratio": ratio}
        metrics |= pseudo_label_quality(torch.where(weight > 0, label, -1), weight, batch.hidden_label, self.spec.num_classes)
        memory = {"means": means, "begun": self.begun | (weight.sum() > 0)}
        return Terms((own + a * ratio * given) / (1 + a), metrics, memory)

    def _means(self, now: Tensor, there: Tensor) -> Tensor:
        """[2] running means with this batch's losses in them; a batch without a pseudo-label moves neither."""
        now, m = now.to(self.means.dtype), self.config.mean_decay
        moved = torch.where(self.begun, m * self.means + (1 - m) * now, now)
        return torch.where(there, moved, self.means)

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        if self.pseudo:
            self.means.copy_(terms.memory["means"])
            self.begun.copy_(terms.memory["begun"])

    def further(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> dict[str, Tensor]:
        found = super().further(labelled, unlabelled, batch, clock)
        if self.joint is not None:
            views = batch.unlabelled[-len(_joint_views(self.config)) :]
            found[self.config.joint] = self.config.joint_weight * self.joint(self.network, views)
        return found


def _joint_views(config: Any) -> tuple[str, ...]:
    """The views of the joint task, the last of the unlabelled ones."""
    return {"none": (), "rotation": ("weak",), "contrast": (config.contrast_view,) * 2}[config.joint]


def _judged(out: Output, label: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and class of each row."""
    confidence, guess = out.logits.double().softmax(1).max(1)
    return confidence, guess
