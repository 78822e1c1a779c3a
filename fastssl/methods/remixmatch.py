"""ReMixMatch (Berthelot et al. 2020): MixMatch with aligned guesses of one weak view, strong views, and a rotation task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import option
from ..kernels import cross_entropy
from ..models import Network, Output
from ..pipelines import keyed
from ..pipelines.batch import Batch, DataSpec, Views
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Method, Terms
from .bricks import noise
from .bricks.alignment import Alignment
from .bricks.consistency import probabilities
from .bricks.forward import forward_together
from .bricks.guesses import FORWARDS, SHARES, forward_stack, onehot, sharpened, stacked
from .bricks.options import MethodOptions, UnlabelledOptions, but
from .bricks.quality import pseudo_label_quality
from .bricks.ramps import ramp
from .bricks.shares import class_shares

_TURNS = keyed.key(0x526F74, 0)


class ReMixMatch(Method):
    """L = mean CE(t', z(x')) + r(t) [lambda_u mean CE(q', z(u')) + lambda_1 mean CE(q, z(s_1))] + lambda_r mean CE(k, rot(turned s_1)).

    q = S(normalise(p_w * p_data / p_model), T), p_w the weak view's prediction, is the target of the weak view and of every strong view
    s_1 .. s_K. x', t' are mixed labelled rows, u', q' mixed unlabelled ones, of [labelled; weak; s_1 .. s_K] (see mixmatch.py). rot is a
    linear head of four classes that tells by how many quarters s_1 was turned. No gradient goes through a target.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        ctaugment: bool = but(MethodOptions, "ctaugment", True, "paper; false: strong views by --policy alone, as USB has them")
        strong_views: int = option(2, "K: strong views of an unlabelled image", source="USB: 2; paper: 8, and 1 with 40 labels", least=1)
        strong_labelled: bool = option(True, "labelled images in a strong view; else in a weak one", source="official code; USB: false")
        temperature: float = option(0.5, "T of the sharpening; 1 is off", source="paper: 0.5", above=0)
        mixup: float = but(MethodOptions, "mixup", 0.75, "paper: 0.75; a row's partner is any row, labelled or not")
        share_by: str = option(
            "sample", "MixUp's share is drawn for each row, or once for a batch", source="official code: sample; USB: batch", choices=SHARES
        )
        align: str = option(
            "labelled",
            "distribution alignment: the marginal that guesses are brought to is the shares of the labelled classes (labelled), uniform, "
            "or a running mean of labels (running); or none",
            source="paper: known or running; USB: labelled",
            choices=("none", "labelled", "uniform", "running"),
        )
        align_memory: str = option(
            "queue",
            "the guesses' own marginal: the mean of the last 128 batches before this one (queue), or an average of decay 0.999, this batch "
            "in it (ema)",
            source="official code: queue; USB, TorchSSL: ema",
            choices=("queue", "ema"),
        )
        lambda_u: float = but(UnlabelledOptions, "lambda_u", 1.5, "official code: 1.5, on mixed rows")
        lambda_strong: float = option(
            0.5, "lambda_1: weight of the first strong view, unmixed; 0 is off", source="official code: 0.5", least=0
        )
        lambda_rotation: float = option(
            0.5, "lambda_r: weight of the rotation task; 0 is off", source="official code: 0.5; 2 with 40 labels", least=0
        )
        rotation: str = option(
            "quarters",
            "which images are turned how far: a quarter of the batch by each angle (quarters), or drawn for each (drawn)",
            source="official code: quarters; USB: drawn",
            choices=("quarters", "drawn"),
        )
        ramp_share: float = option(
            1 / 64,
            "share of the run over which lambda_u and lambda_1 rise from 0",
            source="official code, USB: 16,384 steps, 1/64 of the run; 1/8 with 40 labels",
            least=0,
            most=1,
        )
        forward: str = option(
            "together",
            "what trains goes through the network in one pass (together), or the mixed rows in batches of as many rows as there are "
            "labelled ones, which hold some of each kind, and the others by themselves (interleaved)",
            source="official code: interleaved",
            choices=FORWARDS,
        )

    summary = "aligned, sharpened labels of one weak view train several strong ones, mixed with everything; rotations beside"
    paper = "Berthelot et al. 2020, arXiv 1911.09785"
    views = Views(("strong",), ("weak", "strong", "strong"))

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        if config.lambda_rotation and spec.kind == "text":
            raise ConfigError("a text cannot be turned by quarters; give --set method.lambda_rotation=0")
        if config.lambda_rotation and spec.shape[1] != spec.shape[2]:
            raise ConfigError(f"images of {spec.shape[1]} x {spec.shape[2]} cannot be turned by quarters; give method.lambda_rotation=0")
        self.rotation = nn.Linear(network.encoder.num_features, 4) if config.lambda_rotation else None
        self.alignment = None
        if config.align != "none":
            queue = config.align_memory == "queue"
            self.alignment = Alignment(
                spec.num_classes,
                target="predicted" if config.align == "running" else config.align,
                memory=config.align_memory,
                shares=class_shares(spec) if config.align == "labelled" else None,
                lagging=queue,
            )

    @classmethod
    def views_of(cls, config: Any) -> Views:
        # Mixed, the weak view trains too.
        return Views(("strong" if config.strong_labelled else "weak",), ("weak", *("strong",) * config.strong_views))

    def loss(self, batch: Batch, clock: Clock) -> Terms:
        config, known = self.config, len(batch.label)
        guess, memory = self.guessed(batch)
        stack = stacked(batch, guess, clock, alpha=config.mixup, each=config.share_by, network=self.network)
        turned, turns = self.turned(batch, clock)
        mixed, strong, rotated = self.passes(stack.images, known, batch.unlabelled[1], turned)
        supervised = stack.labelled_loss(mixed)
        unsupervised = cross_entropy(mixed[known:], stack.target[known:]).mean()
        rise = ramp(clock, "linear", config.ramp_share)
        total = supervised + config.lambda_u * rise * unsupervised
        metrics = {
            "loss_labelled": supervised.detach(),
            "loss_unlabelled": unsupervised.detach(),
            **pseudo_label_quality(guess.argmax(1), torch.ones_like(guess[:, 0]), batch.hidden_label, self.spec.num_classes),
        }
        if strong is not None:
            anchored = cross_entropy(strong.logits, guess).mean()
            total = total + config.lambda_strong * rise * anchored
            metrics["loss_strong"] = anchored.detach()
        if self.rotation is not None:
            found = cross_entropy(self.rotation(rotated.features), turns).mean()
            total = total + config.lambda_rotation * found
            metrics["loss_rotation"] = found.detach()
        return self.with_further(Terms(total, metrics, memory), total, [], [], batch, clock)

    @torch.no_grad()
    def guessed(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """[U, C] aligned, then sharpened prediction of the weak view, and what `remember` will want. Running statistics stay."""
        (weak,) = forward_together(self.network, [batch.unlabelled[0]], "batch")
        p, memory = probabilities(weak.logits), {}
        if self.alignment is not None:
            counts = batch.weight.to(p.dtype).clamp(0, 1)
            told = (onehot(batch.label, p) * counts[:, None]).sum(0) / counts.sum().clamp(min=torch.finfo(p.dtype).tiny)
            # A batch without a label that counts says nothing of their shares.
            told = torch.where(counts.sum() > 0, told, self.alignment.target_marginal.to(p.dtype))
            ratio, memory = self.alignment.read(p.mean(0), told)
            p = p * ratio.to(p.dtype)
            p = p / p.sum(1, keepdim=True)
        return sharpened(p, self.config.temperature), memory

    def passes(self, stack: Tensor, known: int, strong: Tensor, turned: Tensor | None) -> tuple[Tensor, Output | None, Output | None]:
        """[n, C] logits of the mixed rows; what the network says of the first strong view and of the turned one, where they take part."""
        alone = [strong] if self.config.lambda_strong else []
        alone += [] if turned is None else [turned]
        if self.config.forward == "together":
            mixed, *others = forward_together(self.network, [stack, *alone])
            logits = mixed.logits
        else:
            others = [forward_together(self.network, [view], "batch")[0] for view in alone]
            logits = forward_stack(self.network, stack, known, moves=-1)
        first = others.pop(0) if self.config.lambda_strong else None
        return logits, first, others.pop() if others else None

    def turned(self, batch: Batch, clock: Clock) -> tuple[Tensor | None, Tensor | None]:
        """The first strong view turned counter-clockwise, [U, ...], and by how many quarters, [U] int64; None without the task."""
        if self.rotation is None:
            return None, None
        x = batch.unlabelled[1]
        places = torch.arange(len(x), device=x.device)
        if self.config.rotation == "quarters":
            parts = x.tensor_split(4)
            turns = torch.cat([torch.full_like(place, k) for k, place in enumerate(places.tensor_split(4))])
            return torch.cat([torch.rot90(part, k, (2, 3)) for k, part in enumerate(parts)]), turns
        turns = (noise.uniform(noise.stream(_TURNS, clock), places, 1)[:, 0] * 4).long()
        shaped = turns.view(-1, 1, 1, 1)
        x = torch.where(shaped % 2 == 1, torch.rot90(x, 1, (2, 3)), x)
        return torch.where(shaped >= 2, torch.rot90(x, 2, (2, 3)), x), turns

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        if self.alignment is not None:
            self.alignment.write(terms.memory)

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        return forward_together(self.network, [batch.unlabelled[0]], "batch")[0].logits
