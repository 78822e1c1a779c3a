"""Pseudo-labelling against confirmation bias (Arazo et al. 2020, arXiv 1908.02983): soft pseudo-labels, MixUp over everything, and two
regularisers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import option
from ..kernels import cross_entropy
from ..models import Network, Output, Report
from ..pipelines.batch import Batch, DataSpec, Split, Views
from ..schedules import Clock
from .base import Method, Stage, Terms
from .bricks.batchnorm import no_dropout
from .bricks.consistency import probabilities
from .bricks.forward import forward_together
from .bricks.guesses import stacked
from .bricks.mixing import drawn, mixed
from .bricks.options import MethodOptions, but
from .bricks.passes import Passes, PassOptions
from .bricks.quality import pseudo_label_quality
from .bricks.regularisers import entropy
from .bricks.rounds import apart, listed, pool, refuse_probe
from .bricks.rows import last_of


class PLMixup(Method):
    """Stage 1: mean CE(y, z_x). Then L = mean [l CE(s, z') + (1 - l) CE(s_partner, z')] + lambda_a R_A + lambda_h R_H (eq. 1 to 4).

    z' of l x + (1 - l) x_partner over all B + U rows, one l ~ Beta(mixup, mixup) a step; s is y of a labelled row, else what was predicted
    of the sample in the last pass: softmax(z) of its plain view, as the step of that pass met it. R_A = sum_c (1 / C) log((1 / C) / p_c),
    p the mean prediction of the mixed rows; R_H the mean of their entropies.
    """

    @dataclass(frozen=True)
    class Config(PassOptions):
        warmup_share: float = but(PassOptions, "warmup_share", 0.25, "ours; paper: 10 epochs before 400")
        mixup: float = but(MethodOptions, "mixup", 1.0, "official code: 1; a row's partner is any row, labelled or not")
        lambda_prior: float = option(
            0.8, "weight of R_A, by which the mean prediction stays near uniform; 0 is off", source="paper: 0.8", least=0
        )
        lambda_entropy: float = option(0.4, "weight of R_H, by which each prediction becomes sure; 0 is off", source="paper: 0.4", least=0)
        view: str = option("weak", "view of the unlabelled samples that trains", source="paper: weak", choices=("weak", "strong"))

    summary = "soft pseudo-labels of the last pass, MixUp of labelled and unlabelled rows, and two regularisers of predictions"
    paper = "Arazo et al. 2020, arXiv 1908.02983"

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        refuse_probe("pl_mixup", network)
        self.passes = Passes("pl_mixup", config, spec, self.unlabelled_batch)
        self.rounds = 0  # of the run, for the log
        self.bank = Predictions(spec.rows, spec.num_classes)

    @classmethod
    def views_of(cls, config: Any) -> Views:
        return Views(("weak",), ("plain", config.view), no_grad=1)

    def stage(self, k: int, steps: int) -> Stage | None:
        self.rounds = self.passes.count(steps)
        if k:
            return self.passes.stage(k - 1, steps)
        return Stage(self.passes.warmup(steps), name="labels", views=Views(("weak",)))

    def split_of(self, split: Split) -> Split:
        return apart(split)  # labelled samples come in the labelled stream alone

    @torch.no_grad()
    def prepare(self, k: int, look: Any) -> Report:
        if k == 0:
            return Report()
        report, split, what = Report(), look.split, f"{self.spec.kind}s"
        rows, device = pool(split), self.bank.s.device
        before, had = self.bank.s.argmax(1), self.bank.s.sum(1) > 0
        known = torch.from_numpy(split.labelled[split.weight > 0]).to(device)
        if k == 1:
            if not len(rows):
                report.warnings.append(f"pl_mixup: every {self.spec.kind} has a label, so that there is none to label")
            else:
                index, p = look(rows, reduce=lambda out, *_: out.logits.double().softmax(1))
                self.bank.begin(index, p)
            label = torch.from_numpy(split.label[split.weight > 0]).to(device)
            self.bank.begin(known, F.one_hot(label, self.spec.num_classes))
        else:
            self.bank.turn(known)
        at = torch.from_numpy(rows).to(device)
        s, there = self.bank.read(at)
        label = s.argmax(1)
        moved = int((there & had[at] & (label != before[at])).sum()) if k > 1 else 0
        count, sure = int(there.sum()), float(s[there].amax(1).mean()) if there.any() else 0.0
        report.values |= {"labelled": count, "moved": moved, "confidence": sure}
        report.notes.append(
            f"pl_mixup, round {k} of {self.rounds}: {count:,} of {len(rows):,} {what} have a pseudo-label, "
            f"{sure:.2f} sure in the mean; {moved:,} changed their likeliest class"
        )
        self._warn(report, torch.bincount(label[there], minlength=self.spec.num_classes).cpu().numpy(), len(rows))
        return report

    def _warn(self, report: Report, counts: np.ndarray, rows: int) -> None:
        """One warning a run, where a class is nobody's likeliest or some rows have no pseudo-label."""
        faults, short = [], rows - int(counts.sum())
        if short:
            faults.append(
                f"{short:,} of {rows:,} {self.spec.kind}s have no pseudo-label, as what was said of them is not finite, and weigh 0"
            )
        gone = [name for name, count in zip(self.spec.classes, counts, strict=True) if not count]
        if gone and counts.sum():
            faults.append(f"no {self.spec.kind} is likeliest {listed(gone)}")
        if faults:
            (report.notes if self.bank.told else report.warnings).append(f"pl_mixup: {'; '.join(faults)}")
            self.bank.told.fill_(True)

    def loss(self, batch: Batch, clock: Clock) -> Terms:
        if not batch.unlabelled:  # the labels alone
            supervised = cross_entropy(self.network(batch.labelled[0]).logits, batch.label, sample_weight=batch.weight).mean()
            return Terms(supervised, {"loss_labelled": supervised.detach()})
        with torch.no_grad(), no_dropout(self.network):
            (plain,) = forward_together(self.network, [batch.unlabelled[0]], "batch")
            prediction = probabilities(plain.logits)
        s, there = self.bank.read(batch.unlabelled_index)
        seen = batch._replace(unlabelled=batch.unlabelled[1:])
        x, target, _ = stacked(seen, s, clock, alpha=0, each="batch", network=self.network)  # not mixed yet
        weight = torch.cat([batch.weight, there.to(batch.weight.dtype)])
        mix = drawn(clock, len(x), self.config.mixup, device=x.device)
        logits = self.network(mixed(x, mix)).logits
        rows = cross_entropy(logits, target, sample_weight=weight)
        others = cross_entropy(logits, target.index_select(0, mix.partner), sample_weight=weight.index_select(0, mix.partner))
        share = mix.share.to(rows.dtype)
        known = torch.arange(len(x), device=x.device) < len(batch.label)
        supervised, unsupervised = (
            (share * torch.where(whose, rows, 0) + (1 - share) * torch.where(whose.index_select(0, mix.partner), others, 0)).mean()
            for whose in (known, ~known)
        )
        total = supervised + unsupervised
        metrics: dict[str, Any] = {"loss_labelled": supervised.detach(), "loss_unlabelled": unsupervised.detach()}
        metrics |= pseudo_label_quality(
            torch.where(there, s.argmax(1), -1), there.to(torch.float32), batch.hidden_label, self.spec.num_classes
        )
        if self.config.lambda_prior:
            prior = uniformity(logits)
            total, metrics["loss_prior"] = total + self.config.lambda_prior * prior, prior.detach()
        if self.config.lambda_entropy:
            sure = entropy(logits).mean()
            total, metrics["loss_sure"] = total + self.config.lambda_entropy * sure, sure.detach()
        return self.with_further(Terms(total, metrics, {"prediction": prediction}), total, [], [], batch, clock)

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        if "prediction" in terms.memory:
            self.bank.write(batch.unlabelled_index, terms.memory["prediction"], clock.ok)

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        return forward_together(self.network, [batch.unlabelled[0]], "batch")[0].logits


def uniformity(logits: Tensor) -> Tensor:
    """[n, C] logits -> [] KL(uniform || mean prediction), 0 where it is uniform."""
    log_p = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32).log_softmax(1)
    mean = log_p.logsumexp(0) - np.log(len(logits))
    return -(mean + np.log(logits.shape[1])).mean()


class Predictions(nn.Module):
    """What is said of each sample: `s`, which teaches, and `s_next`, which becomes it at the end of a pass.

    Only the rows of a batch are written. Like rows.PredictionBank it looks at `ok` itself.

    Args:
        rows: of the data set. classes: C.
    """

    guards_itself = True
    s: Tensor
    s_next: Tensor
    told: Tensor

    def __init__(self, rows: int, classes: int):
        super().__init__()
        self.register_buffer("s", torch.zeros(rows, classes))
        self.register_buffer("s_next", torch.zeros(rows, classes))
        self.register_buffer("told", torch.zeros((), dtype=torch.bool))  # whether the user was warned

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """[n] rows -> [n, C] probabilities, and [n] bool: whether there are any. Zeros where there are none."""
        s = self.s.index_select(0, index)
        return s, s.sum(1) > 0

    def begin(self, index: Tensor, p: Tensor) -> None:
        """First values of [n] rows; none of one that is not finite."""
        p = torch.where(p.isfinite().all(1, keepdim=True), p, 0).to(self.s.dtype)
        self.s[index], self.s_next[index] = p, p

    def write(self, index: Tensor, p: Tensor, ok: Tensor) -> None:
        """Notes [n, C] predictions where `ok` ([] bool), never one that is not finite: of a sample that comes twice its last row."""
        sound = ok & p.isfinite().all(1, keepdim=True)
        p = torch.where(sound, p.to(self.s_next.dtype), self.s_next.index_select(0, index))
        self.s_next.index_copy_(0, index, p.index_select(0, last_of(index, len(self.s_next))))

    def turn(self, known: Tensor) -> None:
        """Takes over what was noted, of all rows but the labelled ones ([n] `known`)."""
        self.s_next[known] = self.s[known]
        self.s.copy_(self.s_next)
