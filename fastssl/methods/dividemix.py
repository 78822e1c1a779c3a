"""DivideMix (Li et al. 2020): labels may be wrong; two networks tell clean from noisy ones for each other, and learn half-supervised."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import option
from ..kernels import consistency_loss, cross_entropy
from ..models import Network, Output, Report
from ..pipelines.batch import Batch, DataSpec, Split, Views
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Averaged, Method, Stage, Terms
from .bricks.batchnorm import no_dropout
from .bricks.consistency import probabilities
from .bricks.forward import forward_apart, forward_together
from .bricks.guesses import onehot, sharpened, stacked
from .bricks.mixing import drawn, mixed
from .bricks.mixture import Verdicts
from .bricks.options import MethodOptions, UnlabelledOptions, but
from .bricks.quality import pseudo_label_quality
from .bricks.regularisers import entropy
from .bricks.rounds import listed, pool, refuse_probe

NAMES, ORDINAL = ("network", "second"), ("first", "second")


class DivideMix(Method):
    """L = mean CE(t', z') over clean rows + lambda_u r(e) mean MSE(softmax z', q') over the others + eta sum_c pi_c log(pi_c / mean p_c).

    Two networks A and B warm up on all labels by mean CE(y, z) + mu mean sum_c p_c log p_c. Then, epoch after epoch, each judges all
    labels: w is the posterior of the component with smaller mean in a mixture of two Gaussians over its losses. A trains on B's verdict,
    then B on A's: clean are labels of w > tau, and all other rows are unlabelled. With p_A, p_B means over two weak views and S sharpening,
    t = S(w y + (1 - w) p_A) and q = S((p_A + p_B) / 2) (B's roles the other way round). Primes are MixUp of all views with all, pi = 1 / C.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        warmup_share: float = option(
            0.05,
            "share of the run's steps in which the two networks warm up, half of it each",
            source="DivideMix: 10 of 300 epochs on CIFAR-10, 30 on CIFAR-100, 1 of 80 on Clothing1M",
            above=0,
            most=0.9,
        )
        warmup_penalty: float = option(
            0.0, "mu: weight in the warm-up of the negative entropy", source="DivideMix: 1 where noise is asymmetric", least=0
        )
        threshold: float = option(
            0.5, "tau: posterior above which a label is clean", source="DivideMix: 0.5; 0.6 at 90 % noise", least=0, most=0.999
        )
        history: int = option(
            1,
            "epochs over which normalised losses are averaged for the mixture",
            source="DivideMix's code: 5 at 90 % noise, else 1",
            least=1,
        )
        temperature: float = option(0.5, "T of the sharpening; 1 is off", source="DivideMix: 0.5", above=0)
        mixup: float = but(MethodOptions, "mixup", 4.0, "DivideMix: 4, one share a batch, any row with any; 0.5 on Clothing1M")
        lambda_u: float = but(UnlabelledOptions, "lambda_u", 25.0, "DivideMix: from 0, 25, 50, 150 by noise; 25 in its code")
        ramp_epochs: float = option(
            16.0, "epochs after the warm-up over which that weight rises from 0", source="DivideMix's code: 16", least=0
        )
        penalty: float = option(1.0, "eta: weight of the mean prediction's divergence from uniform", source="DivideMix: 1", least=0)
        every: int = option(
            0,
            "steps of each network in an epoch; 0: one visit of its clean labels, or of the samples without a label where that is longer",
            source="DivideMix's code: one visit of the clean ones; it has no samples without a label",
            least=0,
        )

    summary = "noisy labels: two networks divide them for each other by their losses, and mix clean ones with guesses of the others"
    paper = "Li, Socher and Hoi 2020, arXiv 2002.07394"
    views = Views(labelled=("weak", "weak"), unlabelled=("weak", "weak"))  # mixed, they train: none is a teacher's alone

    def __init__(self, config: Any, network: Network, spec: DataSpec, *, second: Network | None = None, **options: Any):
        if second is None:
            raise ValueError("dividemix trains two networks; pass another one of the same make as second")
        super().__init__(config, network, spec, **options)
        refuse_probe("dividemix", network)
        self.second = second
        self.second_ema = copy.deepcopy(second).requires_grad_(False) if self.ema_decay else None
        largest = max(sum(spec.labelled_counts), spec.unlabelled)
        self.verdicts = Verdicts(2, spec.rows, config.history)
        self.epochs = Epochs(config.every or max(1, largest // max(1, self.unlabelled_batch)))
        self.side, self.warming = 0, False  # which network trains in the present stage, and how

    @classmethod
    def others(cls, config: Any) -> dict[str, str]:
        return {"second": ""}

    def judges(self) -> tuple[str, ...]:
        return NAMES if self.ema is None else ("ema", "second_ema")

    def averages(self) -> list[Averaged]:
        """Of the network that trains: the other's average stays with it."""
        if self.ema is None:
            return []
        return [Averaged(*((self.ema, self.network), (self.second_ema, self.second))[self.side], self.ema_decay)]

    def train(self, mode: bool = True) -> DivideMix:
        super().train(mode)
        if getattr(self, "second_ema", None) is not None:
            self.second_ema.train(False)
        return self

    def stage(self, k: int, steps: int) -> Stage | None:
        """Warm-up of A, of B; then A's part of an epoch, B's part, and so on."""
        if steps < 4:
            raise ConfigError("dividemix trains two networks twice, a step each at least; give --steps 4 or more")
        warm = min(max(1, round(self.config.warmup_share * steps / 2)), (steps - 2) // 2)
        plain = {"views": Views(("weak",)), "schedule": steps // 2, "goes_on": True}
        if k < 2:
            return Stage(warm, networks=(NAMES[k],), name=f"warm_up_{ORDINAL[k]}", **plain)
        (number, side), rest = divmod(k - 2, 2), steps - 2 * warm
        lengths = self.epochs.planned(number, rest)
        if lengths is None:
            return None
        if self.epochs.plain[side] and number == self.epochs.number:
            return Stage(lengths[side], networks=(NAMES[side],), name=f"warm_up_{ORDINAL[side]}", **plain)
        name, schedule = f"epoch_{ORDINAL[side]}", (rest + 1) // 2
        return Stage(lengths[side], networks=(NAMES[side],), name=name, schedule=schedule, goes_on=k > 2)

    def enter(self, stage: Stage) -> None:
        super().enter(stage)
        self.side, self.warming = NAMES.index(stage.networks[0]) if stage.networks else 0, stage.views is not None

    def prepare(self, k: int, look: Any) -> Report:
        number, side = divmod(k - 2, 2)
        self.epochs.phase.fill_(side + 1 if k >= 2 else 0)
        return self._judge(number, look) if k >= 2 and side == 0 else Report()

    def split_of(self, split: Split) -> Split:
        phase = int(self.epochs.phase)
        return (self._divided(split, phase - 1) if phase else None) or split

    def _divided(self, split: Split, side: int) -> Split | None:
        """What network `side` trains on by the other's verdict; None where it has nothing clean or nothing noisy."""
        w = self.verdicts.w[1 - side].cpu().numpy()[split.labelled]
        clean = (w > self.config.threshold) & (split.weight > 0)
        noisy = split.labelled[~clean & ((w >= 0) | (split.weight <= 0))]  # lost files are in neither part
        others = np.sort(np.concatenate([noisy, pool(split)]))
        if not clean.any() or not len(others):
            return None
        weight = (w * np.minimum(split.weight, 1))[clean].astype(np.float32)
        return Split(split.labelled[clean], split.label[clean], weight, others, split.test)

    def _judge(self, number: int, look: Any) -> Report:
        """Both networks look at all labels, before either trains on."""
        split, told, report, what = look.split, [], Report(), f"dividemix, epoch {number + 1}"
        asked, before = split.labelled[(split.weight > 0) | (split.weight.max() == 0)], self.verdicts.w > self.config.threshold
        for side, name in enumerate(NAMES):
            index, loss = look(asked, network=self.get_submodule(name), reduce=lambda out, y, _: cross_entropy(out.logits, y))
            found, kept = self.verdicts.judge(side, index, loss)
            clean = found.posterior > self.config.threshold
            numbers = {"clean": int(clean.sum()), "edge": float(kept[clean].max()) if clean.any() else None}
            numbers |= {key: mean if math.isfinite(mean) else None for key, mean in zip(("low", "high"), found.means, strict=True)}
            report.values |= {f"{key}_{ORDINAL[side]}": value for key, value in numbers.items()}
            means = "no loss is finite" if numbers["low"] is None else "mean losses {:.3f} and {:.3f}".format(*found.means)
            told.append(f"{clean.sum():,} of {len(asked):,} labels look clean to the {ORDINAL[side]} network ({means})")
        if number:
            report.values["moved"] = int((before != (self.verdicts.w > self.config.threshold)).sum())
            told.append(f"{report.values['moved']:,} verdicts are new")
        report.notes.append(f"{what}: {'; '.join(told)}")
        self.epochs.begin(number)
        parts, batch = [self._divided(split, side) for side in range(2)], look.pipeline.batch_size
        visits = [max(len((part or split).labelled) // batch, len(pool(split)) // self.unlabelled_batch) for part in parts]
        self.epochs.plain.copy_(torch.tensor([part is None for part in parts]))
        self.epochs.length.fill_(self.config.every or max(1, round(sum(visits) / 2)))  # alike: one schedule fits both networks
        self._warn(report, what, split, parts)
        return report

    def _warn(self, report: Report, what: str, split: Split, parts: list[Split | None]) -> None:
        """One warning a run of each kind: a network without a division, classes without a clean label."""
        plain, warned = [ORDINAL[side] for side, part in enumerate(parts) if part is None], self.epochs.warned
        if plain and not warned[0]:
            warned[0] = True
            report.warnings.append(
                f"{what}: nothing is clean, or nothing noisy, for the {' and the '.join(plain)} network, so that it learns from all labels "
                "as in the warm-up, until an epoch divides them"
            )
        had = set(split.label[split.weight > 0].tolist())
        some = [set((split if part is None else part).label.tolist()) for part in parts]  # without a division it learns from all
        gone = sorted(had - set().union(*some))
        if gone and not warned[1]:
            warned[1] = True
            names = listed([self.spec.classes[c] for c in gone])
            report.warnings.append(f"{what}: no label of {names} looks clean, so that guesses alone teach {'them' if gone[1:] else 'it'}")

    def loss(self, batch: Batch, clock: Clock) -> Terms:
        learner, other = (self.get_submodule(NAMES[side]) for side in (self.side, 1 - self.side))
        if self.warming:
            return self._warm(learner, batch, clock)
        c, views, classes = self.config, len(batch.labelled), self.spec.num_classes
        t, q = self._targets(learner, other, batch)
        images = stacked(batch, q, clock, alpha=0.0, each="batch", network=learner).images
        target = torch.cat([*[t] * views, *[q] * len(batch.unlabelled)])
        if c.mixup > 0:
            mix = drawn(clock, len(images), c.mixup, major=True, device=images.device)
            images, target = mixed(images, mix), mixed(target, mix)
        logits, known = learner(images).logits, views * len(batch.label)
        counts = (batch.weight > 0).to(torch.float32).repeat(views)
        supervised = cross_entropy(logits[:known], target[:known], sample_weight=counts).mean()
        unsupervised = consistency_loss(logits[known:], target[known:], kind="mse", teacher_is="probabilities").mean()
        mean = probabilities(logits).mean(0)
        penalty = -(classes * mean.clamp(min=torch.finfo(mean.dtype).tiny)).log().mean()
        total = supervised + c.lambda_u * self._ramp(clock) * unsupervised + c.penalty * penalty
        metrics = {
            "loss_labelled": supervised.detach(),
            "loss_unlabelled": unsupervised.detach(),
            "loss_penalty": penalty.detach(),
            **pseudo_label_quality(q.argmax(1), torch.ones_like(q[:, 0]), batch.hidden_label, classes),
        }
        return self.with_further(Terms(total, metrics), total, [], [], batch, clock)

    def _warm(self, learner: Network, batch: Batch, clock: Clock) -> Terms:
        logits = learner(batch.labelled[0]).logits
        total = supervised = cross_entropy(logits, batch.label, sample_weight=batch.weight).mean()
        if self.config.warmup_penalty:
            total = supervised - self.config.warmup_penalty * entropy(logits).mean()
        return self.with_further(Terms(total, {"loss_labelled": supervised.detach()}), total, [], [], batch, clock)

    @torch.no_grad()
    def _targets(self, learner: Network, other: Network, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, C] refined labels and [U, C] guesses, sharpened. The learner's passes leave its running statistics alone; the other network
        is in evaluation."""
        views = [*batch.labelled, *batch.unlabelled]
        own = [probabilities(out.logits) for out in forward_apart(learner, views, "batch")]
        with no_dropout(other):
            theirs = [probabilities(out.logits) for out in forward_together(other, list(batch.unlabelled), "eval")]
        first = own[: len(batch.labelled)]
        guess = torch.stack([*own[len(first) :], *theirs]).mean(0)
        p = torch.stack(first).mean(0)
        w = batch.weight.clamp(0, 1).to(p.dtype)[:, None]
        return sharpened(w * onehot(batch.label, p) + (1 - w) * p, self.config.temperature), sharpened(guess, self.config.temperature)

    def _ramp(self, clock: Clock) -> Tensor | float:
        """Factor in [0, 1] by the epochs since the warm-up, fractions among them."""
        if not self.config.ramp_epochs:
            return 1.0
        at = self.epochs
        within = (clock.step - at.begun[self.side]) / at.length
        return ((at.number + within) / self.config.ramp_epochs).clamp(0, 1).to(torch.float32)

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        return forward_together(self.get_submodule(NAMES[self.side]), [batch.unlabelled[0]], "batch")[0].logits


class Epochs(nn.Module):
    """Where the run is in its epochs, each a stretch of steps of the first network and as long a one of the second.

    Args:
        length: of a stretch, as long as nothing better is known.
    """

    guards_itself = True  # a step never writes it
    number: Tensor
    phase: Tensor
    spent: Tensor
    begun: Tensor
    length: Tensor
    plain: Tensor
    warned: Tensor

    def __init__(self, length: int):
        super().__init__()
        for name in ("number", "phase", "spent"):  # phase: 0 in the warm-up, 1 and 2 where the first or second network trains on
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("begun", torch.zeros(2, dtype=torch.int64))  # steps of each network on divided labels, before this epoch
        self.register_buffer("length", torch.tensor(length))
        self.register_buffer("plain", torch.zeros(2, dtype=torch.bool))  # whether a network has no division in this epoch
        self.register_buffer("warned", torch.zeros(2, dtype=torch.bool))

    def begin(self, number: int) -> None:
        if number > int(self.number):
            self.spent.add_(2 * self.length)
            self.begun.add_(torch.where(self.plain, 0, self.length))
        self.number.fill_(number)

    def planned(self, number: int, steps: int) -> tuple[int, int] | None:
        """Steps of the two networks in an epoch of a run that has so many for all of them; None where they are used up.

        What would be left and is less than half an epoch, the last one takes over. Epochs to come are as long as the present one.
        """
        ahead, length = number - int(self.number), int(self.length)
        whole = 2 * length
        left = steps - int(self.spent) - ahead * whole
        if ahead > 0 and 2 * left <= whole:
            return None
        if 2 * (left - whole) > whole:
            return length, length
        return round(left / 2), left - round(left / 2)
