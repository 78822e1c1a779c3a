"""MixMatch (Berthelot et al. 2019): labels guessed from several weak views and sharpened; everything is mixed with everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import option
from ..kernels import consistency_loss
from ..models import Output
from ..pipelines.batch import Batch, Views
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Method, Terms
from .bricks.consistency import probabilities
from .bricks.forward import forward_apart, forward_together
from .bricks.guesses import FORWARDS, SHARES, Stack, forward_stack, sharpened, stacked
from .bricks.options import MethodOptions, UnlabelledOptions, but
from .bricks.quality import pseudo_label_quality
from .bricks.ramps import ramp


class MixMatch(Method):
    """L = mean CE(t', z(x')) over labelled rows + lambda_u r(t) mean MSE(softmax z(u'), q') over unlabelled ones (section 3).

    q = S(1/K sum_k softmax z(u_k), T), S sharpening: p ** (1 / T) over its sum. x', t', u', q' are rows of [labelled; u_1 .. u_K], each
    mixed with a row of this whole stack by max(l, 1 - l), l from Beta(alpha, alpha). MSE is a mean over classes. No gradient goes through
    a target.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        guesses: int = option(2, "K: weak views of an unlabelled image whose mean prediction is its label", source="paper: 2", least=1)
        temperature: float = option(0.5, "T of the sharpening; 1 is off", source="paper: 0.5", above=0)
        mixup: float = but(MethodOptions, "mixup", 0.75, "paper: 0.75; a row's partner is any row, labelled or not; USB: 0.5")
        share_by: str = option(
            "sample",
            "MixUp's share is drawn for each row, or once for a batch",
            source="official code: sample; USB, TorchSSL: batch",
            choices=SHARES,
        )
        lambda_u: float = but(UnlabelledOptions, "lambda_u", 75.0, "paper, CIFAR-10: 75")
        ramp_share: float = option(
            0.4,
            "share of the run over which that weight rises from 0",
            source="USB, TorchSSL: 0.4; official code: 16,384 steps, 1/64 of its run",
            least=0,
            most=1,
        )
        forward: str = option(
            "together",
            "the mixed rows in one pass (together), or in batches of as many rows as there are labelled ones, which hold some of each kind "
            "(interleaved)",
            source="official code: interleaved; DivideMix: together",
            choices=FORWARDS,
        )

    summary = "guessed, sharpened labels; labelled and unlabelled rows mixed with each other"
    paper = "Berthelot et al. 2019, arXiv 1905.02249"
    views = Views(unlabelled=("weak", "weak"))

    @classmethod
    def views_of(cls, config: Any) -> Views:
        if config.mixup == 0 and config.guesses == 1 and config.temperature == 1:
            raise ConfigError(
                "mixmatch with mixup=0, guesses=1 and temperature=1 compares each prediction with itself; set one of the three otherwise"
            )
        return Views(unlabelled=("weak",) * config.guesses)  # mixed, they train: none is a teacher's alone

    def loss(self, batch: Batch, clock: Clock) -> Terms:
        guess = self.guessed(batch)
        stack = stacked(batch, guess, clock, alpha=self.config.mixup, each=self.config.share_by, network=self.network)
        logits, known = self.forward_mixed(stack), len(batch.label)
        supervised = stack.labelled_loss(logits)
        unsupervised = consistency_loss(logits[known:], stack.target[known:], kind="mse", teacher_is="probabilities").mean()
        total = supervised + self.config.lambda_u * ramp(clock, "linear", self.config.ramp_share) * unsupervised
        label = guess.argmax(1)
        metrics = {
            "loss_labelled": supervised.detach(),
            "loss_unlabelled": unsupervised.detach(),
            **pseudo_label_quality(label, torch.ones_like(guess[:, 0]), batch.hidden_label, self.spec.num_classes),
        }
        return self.with_further(Terms(total, metrics), total, [], [], batch, clock)

    @torch.no_grad()
    def guessed(self, batch: Batch) -> Tensor:
        """[U, C] sharpened mean prediction of the views, each forwarded by itself; running statistics stay."""
        views = [probabilities(out.logits) for out in forward_apart(self.network, list(batch.unlabelled), "batch")]
        return sharpened(sum(views[1:], views[0]) / len(views), self.config.temperature)

    def forward_mixed(self, stack: Stack) -> Tensor:
        """[n, C] logits of the mixed rows."""
        if self.config.forward == "interleaved":
            return forward_stack(self.network, stack.images, len(stack.weight), moves=0)
        return self.network(stack.images).logits

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        return forward_together(self.network, [batch.unlabelled[0]], "batch")[0].logits
