"""Interpolation consistency (Verma et al. 2019): the prediction of a mix of two images must be the mix of their predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import option
from ..kernels import consistency_loss, cross_entropy
from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec, Views
from ..schedules import Clock
from .base import Averaged, Method, Terms
from .bricks.consistency import RampOptions, consistency_weight, probabilities
from .bricks.forward import forward_apart, forward_together
from .bricks.mixing import Mix, drawn, mixed
from .bricks.options import but
from .bricks.teaching import check_average, following, taught

_UNLABELLED, _LABELLED = 0, 1  # the step's two mixes


class ICT(Method):
    """L = mean CE(y, z_x) + w(t) (1 / U) sum (1 / C) ||p(l u_i + (1 - l) u_j) - sg(l p'_i + (1 - l) p'_j)||^2, l ~ Beta(mixup, mixup).

    u_j is the partner of u_i in a permutation of the batch, p' the running average's prediction. The average moves after
    the optimiser's step as Mean Teacher's does, and is what is judged. target=logits with mix_labelled=true is the official code.
    """

    @dataclass(frozen=True)
    class Config(RampOptions):
        ramp_share: float = but(RampOptions, "ramp_share", 0.25, "official code: 100 of 400 epochs")
        mixup: float = option(
            1.0,
            "alpha: images are mixed by a share from Beta(alpha, alpha); 0 leaves them as they are",
            source="official code: 1.0 CIFAR-10, 0.1 SVHN",
            least=0,
        )
        target: str = option(
            "probabilities",
            "what is mixed of the teacher's predictions: probabilities, or logits before the softmax",
            source="paper: probabilities; official code: logits",
            choices=("probabilities", "logits"),
        )
        mix_labelled: bool = option(False, "labelled images are mixed with each other too", source="paper: false; official code: true")
        mix_share: str = option(
            "batch",
            "one share for all rows of a step, or one for each",
            source="official code: batch; G: sample",
            choices=("batch", "sample"),
        )
        mix_major: bool = option(False, "take the larger of share and 1 - share, so that a row stays mostly itself", source="G: true")

    summary = "the prediction of a mix of two images must be the mix of their predictions"
    paper = "Verma et al. 2019, arXiv 1903.03825"
    views = Views(labelled=("weak",), unlabelled=("weak",))
    usual_ema = 0.999

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        check_average("ict", options.get("ema", 0.0))
        super().__init__(config, network, spec, **options)

    def averages(self) -> list[Averaged]:
        return [Averaged(self.ema, self.network, following(self.ema_decay), buffers="own")]

    def loss(self, batch: Batch, clock: Clock) -> Terms:
        (known,), (other,) = batch.labelled, batch.unlabelled
        mix = self.drawn(len(other), _UNLABELLED, clock)
        (teacher,) = taught(self.ema, self.network, [other])
        other = self.network.continuous(other)
        own = self.drawn(len(known), _LABELLED, clock) if self.config.mix_labelled else None
        (labelled,) = forward_together(self.network, [known if own is None else mixed(self.network.continuous(known), own)])
        (unlabelled,) = forward_apart(self.network, [mixed(other, mix)])
        supervised = self.supervised(labelled.logits, batch, own).mean()
        unsupervised = self.distances(unlabelled.logits, teacher.logits, mix).mean()
        total = supervised + consistency_weight(self.config, clock) * unsupervised
        terms = Terms(total, {"loss_labelled": supervised.detach(), "loss_unlabelled": unsupervised.detach()})
        return self.with_further(terms, total, [labelled], [unlabelled], batch, clock)

    def drawn(self, n: int, use: int, clock: Clock) -> Mix:
        """Who of n rows is mixed with whom in this step. `use`: which of the step's mixes."""
        c = self.config
        return drawn(clock, n, c.mixup, use=use, each=c.mix_share, major=c.mix_major, device=clock.step.device)

    def supervised(self, logits: Tensor, batch: Batch, mix: Mix | None) -> Tensor:
        """[B] cross-entropy of labelled rows, by both labels where they are mixed."""
        rows = cross_entropy(logits, batch.label, sample_weight=batch.weight)
        if mix is None:
            return rows
        label, weight = batch.label.index_select(0, mix.partner), batch.weight.index_select(0, mix.partner)
        share = mix.share.to(rows.dtype)
        return share * rows + (1 - share) * cross_entropy(logits, label, sample_weight=weight)

    def distances(self, student: Tensor, teacher: Tensor, mix: Mix) -> Tensor:
        """[U] squared distance of the prediction of mixed images to the mix of the teacher's predictions, mean over classes."""
        if self.config.target == "logits":
            kind = torch.promote_types(teacher.dtype, torch.float32)
            return consistency_loss(student, mixed(teacher.to(kind), mix))
        return consistency_loss(student, mixed(probabilities(teacher), mix), teacher_is="probabilities")

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        return forward_apart(self.network, [batch.unlabelled[0]])[0].logits
