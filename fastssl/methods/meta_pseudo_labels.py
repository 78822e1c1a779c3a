"""Meta Pseudo Labels (Pham et al. 2021): a teacher labels for a student, and learns from how much a step on its labels helped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import option
from ..kernels import cross_entropy, pseudo_label_loss
from ..models import Network, Output, Report
from ..pipelines import keyed
from ..pipelines.batch import Batch, DataSpec, Views
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Averaged, Method, Stage, Terms, Updater
from .bricks import noise
from .bricks.batchnorm import no_dropout
from .bricks.consistency import probabilities
from .bricks.forward import forward_together, forward_views
from .bricks.guesses import onehot
from .bricks.mixing import mixed_batch
from .bricks.options import MethodOptions
from .bricks.quality import pseudo_label_quality
from .bricks.ramps import ramp
from .bricks.rounds import refuse_probe
from .bricks.start import copied

_SAMPLE = keyed.key(0x4D504C)  # the random numbers by which labels are drawn


class Taught(NamedTuple):
    """What the teacher's pass leaves, its graph with it."""

    base: Tensor  # [] its loss on labels and by UDA
    meta: Tensor  # [] mean cross-entropy of the labels that it gave
    target: Tensor  # [U] int64 labels, or [U, C] probabilities
    slope: Tensor  # [] norm of the gradient of `meta` with respect to the [U, C] logits
    metrics: dict[str, Any]


class MetaPseudoLabels(Method):
    """A step of the student S (the network that is judged) and of the teacher T, in this order:

    T sees l, u_w, u_s; y' ~ Categorical(softmax z_T(u_s)), one label a row.
    S moves by mean CE_e(y', z_S(u_s)), and h = loss before - loss after, both mean CE(y, z_S(l)).
    b <- 0.99 b + 0.01 h.
    T moves by mean CE_e(y, z_T(l)) + w (1 / U) sum 1[max q >= tau] CE(q, z_T(u_s)) + lambda_m (h - b) mean CE(y', z_T(u_s)).

    q = softmax(z_T(u_w) / temperature) without gradient; CE_e has label smoothing e / C for every class; T's second line uses the logits of
    the first, of before S moved. S learns from no label until the second stage, in which it alone trains on them.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        teacher_model: str = option("", "the teacher's network; the run's own model if not said", source="MPL: the student's")
        feedback: str = option(
            "difference",
            "h: the student's labelled loss before its step less that after it (difference), or the inner product of the gradient of that "
            "loss after the step with the student's own (dot), which momentum, clipping and weight decay do not enter; the paper's factor "
            "eta is left to method.lambda_m",
            source="MPL code: difference; paper: the product, which it approximates",
            choices=("difference", "dot"),
        )
        feedback_statistics: str = option(
            "batch",
            "statistics by which batch-norm normalises the labelled images there: their own, or the running ones (eval)",
            source="ours; MPL code mixes statistics of two batches",
            choices=("batch", "eval"),
        )
        targets: str = option(
            "sampled",
            "the student learns labels drawn from the teacher's probabilities, or these themselves (soft), by which the teacher's last "
            "term has no gradient at all",
            source="MPL paper: sampled; its released code: soft",
            choices=("sampled", "soft"),
        )
        lambda_m: float = option(1.0, "weight of the teacher's feedback term; 0 leaves a student of UDA's teacher", source="MPL", least=0)
        baseline_decay: float = option(0.99, "decay of h's running mean b", source="MPL code", least=0, most=1)
        lambda_u: float = option(8.0, "weight of the teacher's UDA term", source="MPL, CIFAR-10", least=0)
        ramp_share: float = option(
            1 / 60,
            "length of that weight's linear ramp, as a share of the stage",
            source="MPL, CIFAR-10: 5,000 of 300,000",
            least=0,
            most=1,
        )
        threshold: float = option(
            0.6, "tau: confidence of the sharpened prediction from which it teaches; 0 is off", source="MPL, CIFAR-10", least=0, most=1
        )
        temperature: float = option(0.7, "predictions are sharpened as softmax(z / temperature); 1 is off", source="MPL, CIFAR-10", above=0)
        smoothing: float = option(
            0.15, "e: label smoothing of teacher and student, e / C for every class", source="MPL, CIFAR-10", least=0, most=0.99
        )
        wait_share: float = option(
            0.01,
            "share of the stage in which the student holds still while its teacher learns",
            source="MPL, CIFAR-10: 3,000 of 300,000",
            least=0,
            most=0.99,
        )
        warmup_share: float = option(
            1 / 60,
            "share of the stage in which the student's learning rate then rises, linearly",
            source="MPL, CIFAR-10: 5,000 of 300,000",
            least=0,
            most=1,
        )
        finetune_share: float = option(
            1 / 300,
            "share of the run's steps, its last ones, in which the student alone trains on the labels; 0 leaves them out",
            source="MPL, CIFAR-10: 1,000 after 300,000",
            least=0,
            most=0.99,
        )
        finetune_rate: float = option(2e-4, "factor on the learning rate in them", source="MPL, CIFAR-10: 1e-5 after 0.05", above=0)

    summary = "a teacher's sampled labels train a student, and the teacher learns which of them lowered the student's labelled loss"
    paper = "Pham et al. 2021, arXiv 2003.10580"
    views = Views(labelled=("weak",), unlabelled=("weak", "strong"), no_grad=1)
    compiled = ("loss", "taught", "studied", "known", "remember")
    baseline: Tensor

    def __init__(self, config: Any, network: Network, spec: DataSpec, *, teacher: Network | None = None, **options: Any):
        super().__init__(config, network, spec, **options)
        if teacher is None:
            raise ValueError("meta_pseudo_labels trains two networks, and was given no teacher; pass another Network as teacher=")
        refuse_probe("meta_pseudo_labels", network)
        if config.wait_share + config.warmup_share > 1:
            raise ConfigError(
                f"method.wait_share {config.wait_share} and method.warmup_share {config.warmup_share} leave the student no step at its "
                "full rate; give at most 1 in all"
            )
        self.teacher = teacher
        self.register_buffer("baseline", torch.zeros(()))
        self.finetuning = False
        # The library's smoothing leaves the label 1 - e; here e / C is the label's too.
        self.smoothing = config.smoothing * (1 - 1 / spec.num_classes)

    @classmethod
    def others(cls, config: Any) -> dict[str, str]:
        return {"teacher": config.teacher_model}

    def stage(self, k: int, steps: int) -> Stage | None:
        last = min(round(self.config.finetune_share * steps), steps - 1)  # no step in a short run: 1/300 of it would be none
        stages = [Stage(steps - last, name="meta", parts=(("network",), ("teacher",)))]
        if last:
            rate = self.config.finetune_rate
            stages.append(Stage(last, networks=("network",), name="finetune", views=Views(("weak",)), rate=rate))
        return stages[k] if k < len(stages) else None

    def enter(self, stage: Stage) -> None:
        super().enter(stage)
        self.finetuning = stage.name == "finetune"

    @torch.no_grad()
    def prepare(self, k: int, look: Any) -> Report:
        if k != 1 or self.ema is None:
            return super().prepare(k, look)
        # The average would follow the raw student within some steps, and lose what averaging gave.
        copied(self.ema, self.network)
        return Report(["meta_pseudo_labels: fine-tuning on the labels starts from the averaged student"])

    def averages(self) -> list[Averaged]:
        return [] if self.ema is None else [Averaged(self.ema, self.network, self.decay)]

    def decay(self, step: Tensor) -> Tensor:
        """[] decay of the averaged student after step number `step`: min((k + 1) / (k + 10), train.ema), k steps done."""
        done = step.to(torch.float32) + 1
        return ((done + 1) / (done + 10)).clamp(max=self.ema_decay)

    def rate(self, clock: Clock) -> Tensor:
        """[] fp32 factor on the student's learning rate in the step under way."""
        wait, warmup = (round(share * clock.total) for share in (self.config.wait_share, self.config.warmup_share))
        return ((clock.step.to(torch.float32) - wait + 1) / max(1, warmup)).clamp(0, 1)

    def step(self, batch: Batch, clock: Clock, update: Updater) -> Terms:
        if self.finetuning:
            return super().step(batch, clock, update)
        taught = self.taught(batch, clock)
        studied = self.studied(batch, taught.target, clock)
        rate = self.rate(clock)
        # A student that holds still says nothing: no rounding of a device is to stand for it.
        helped = torch.where(rate > 0, self.feedback(batch, studied.total, rate, update), 0.0)
        baseline = self.config.baseline_decay * self.baseline + (1 - self.config.baseline_decay) * helped
        weight = self.config.lambda_m * (helped - baseline)
        update(taught.base + weight * taught.meta, part=1)
        more = {"feedback": helped, "mpl_gradient": weight.abs() * taught.slope}
        total = (taught.base + studied.total).detach()
        terms = Terms(total, {**taught.metrics, **studied.metrics, **more}, {"baseline": baseline})
        self.remember(batch, terms, clock)
        self.recognise(batch)
        return terms

    def loss(self, batch: Batch, clock: Clock) -> Terms:
        """Both networks' losses, added up; each gives its own network's gradient. The feedback, which takes the student's step, is left
        out."""
        if self.finetuning:
            return super().loss(batch, clock)
        taught = self.taught(batch, clock)
        studied = self.studied(batch, taught.target, clock)
        return Terms(taught.base + studied.total, {**taught.metrics, **studied.metrics})

    def taught(self, batch: Batch, clock: Clock) -> Taught:
        """The teacher's pass and the labels that it gives."""
        alpha, mix = self.config.mixup, None
        if alpha > 0:
            mix = mixed_batch(batch, clock, alpha, self.whole, self.teacher)
        seen = batch if mix is None else mix.batch
        labelled, (weak, strong) = forward_views(self.teacher, seen, self.asked.no_grad, self.weak_pass)
        anchor = weak.logits.detach()
        base, metrics = self.supervised(labelled[0].logits, anchor, strong.logits, seen, clock)
        if mix is not None:
            anchor = anchor.index_select(0, mix.unlabelled.partner)
            other, _ = self.supervised(labelled[0].logits, anchor, strong.logits, mix.partners(), clock)
            share = mix.share.to(base.dtype)
            base = share * base + (1 - share) * other
        p, classes = probabilities(strong.logits.detach()), self.spec.num_classes
        sampled = self.config.targets == "sampled"
        target = self.sampled(strong.logits.detach(), batch.unlabelled_index, clock) if sampled else p
        label = target if sampled else p.argmax(1)
        apart = p - (onehot(target, p) if sampled else target)
        metrics |= pseudo_label_quality(label, torch.ones_like(p[:, 0]), batch.hidden_label, classes)
        return Taught(base, cross_entropy(strong.logits, target).mean(), target, apart.norm() / len(p), metrics)

    def supervised(self, known: Tensor, anchor: Tensor, strong: Tensor, batch: Batch, clock: Clock) -> tuple[Tensor, dict[str, Any]]:
        """The teacher's loss on [B, C] labelled logits and by UDA: [U, C] of strong views by those of weak ones."""
        c = self.config
        labelled = cross_entropy(known, batch.label, smoothing=self.smoothing, sample_weight=batch.weight).mean()
        pseudo = pseudo_label_loss(strong, anchor, threshold=c.threshold, temperature=c.temperature, judge=anchor / c.temperature)
        unlabelled = pseudo.loss.mean()
        metrics = {"loss_labelled": labelled.detach(), "loss_unlabelled": unlabelled.detach(), "confident": pseudo.weight.mean()}
        return labelled + c.lambda_u * ramp(clock, "linear", c.ramp_share) * unlabelled, metrics

    def sampled(self, logits: Tensor, rows: Tensor, clock: Clock) -> Tensor:
        """[U] labels, one drawn from softmax of each of [U, C] logits (Gumbel-argmax), by the row [U] of the data set and the step."""
        drawn = noise.uniform(noise.stream(_SAMPLE, clock), rows, logits.shape[1])
        return (logits.double() - (-drawn.log()).log()).argmax(1)

    def studied(self, batch: Batch, target: Tensor, clock: Clock) -> Terms:
        """The student's loss. Labelled images go along where batch-norm sees them, and teach nothing."""
        alpha, seen = self.config.mixup, batch
        if alpha > 0:  # the teacher labelled mixed images; texts are mixed as each network embeds them
            seen = mixed_batch(batch, clock, alpha, self.whole, self.network).batch
        views = [seen.unlabelled[1], *(seen.labelled if self.network.has_batchnorm else ())]
        logits = forward_together(self.network, views)[0].logits
        if self.config.targets == "sampled":
            total = cross_entropy(logits, target, smoothing=self.smoothing).mean()
        else:
            e = self.config.smoothing
            total = cross_entropy(logits, (1 - e) * target + e / self.spec.num_classes).mean()
        return self.with_further(Terms(total, {"loss_student": total.detach()}), total, [], [], batch, clock)

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        return forward_together(self.network, [batch.unlabelled[0]], "batch")[0].logits

    def feedback(self, batch: Batch, loss: Tensor, rate: Tensor, update: Updater) -> Tensor:
        """[] h. Moves the student by its [] loss at `rate`, [] factor on the learning rate."""
        if self.config.feedback == "dot":
            return rate * self.product(batch, loss, partial(update, rate=rate))
        with torch.no_grad():
            before = self.known(batch)
        update(loss, part=0, rate=rate)
        with torch.no_grad():
            return before - self.known(batch)

    def product(self, batch: Batch, loss: Tensor, update: Updater) -> Tensor:
        """[] inner product of the student's gradient with that of `known` after the student moved by it.

        Both are taken as they leave the backward pass: before any clipping, and over what mixed precision multiplies losses by.
        """
        weights = [p for p in self.network.parameters() if p.requires_grad]
        own: dict[int, Tensor] = {}
        hooks = [tensor.register_hook(partial(own.__setitem__, k)) for k, tensor in enumerate([loss, *weights])]
        update(loss, part=0)
        for hook in hooks:
            hook.remove()
        scale = own.pop(0)
        after = torch.autograd.grad(self.known(batch) * scale, [weights[k - 1] for k in own], materialize_grads=True)
        return torch.stack([(g * other).sum() for g, other in zip(own.values(), after, strict=True)]).sum() / scale**2

    def known(self, batch: Batch) -> Tensor:
        """[] mean CE(y, z_S(l)) of the student as it stands: labelled images alone, no dropout, no running statistics moved."""
        with no_dropout(self.network):
            out = forward_together(self.network, [batch.labelled[0]], self.config.feedback_statistics)[0]
        return cross_entropy(out.logits, batch.label, sample_weight=batch.weight).mean()

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        """The second stage's."""
        loss = cross_entropy(labelled[0].logits, batch.label, sample_weight=batch.weight).mean()
        return Terms(loss, {"loss_labelled": loss.detach()})

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        if not self.finetuning:
            self.baseline.copy_(terms.memory["baseline"])
