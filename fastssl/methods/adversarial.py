"""Adversarial training as a regulariser (Goodfellow et al. 2015): labelled images, moved so as to raise their loss, keep their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import option
from ..kernels import cross_entropy, reference
from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec, Views
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Method, Terms
from .bricks.forward import forward_together
from .bricks.input_gradient import PRECISIONS, input_gradient, precision, unit
from .bricks.options import MethodOptions

USUAL = {"linf": 8 / 255, "l2": 128 / 255}  # epsilon in pixel units
OF_TEXTS = {"linf": 0.01, "l2": 1.0}  # in those of word embeddings, of whose numbers 0.05 is a usual deviation: ours


class Adversarial(Method):
    """L = a mean CE(y, z(x)) + (1 - a) mean CE(y, z(x + r)); g = grad_x CE(y, z(x)), and r carries no gradient.

    r = epsilon sign(g) (norm linf: the fast gradient sign method, Goodfellow et al., section 4), or epsilon g / ||g||_2, the norm of a
    whole image (norm l2). Only labels say which way is up, so unlabelled images have no part in it: `vat` does the same without labels.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        norm: str = option("linf", "norm that bounds the perturbation", source="Goodfellow et al.: linf", choices=("linf", "l2"))
        epsilon: float | None = option(
            None,
            "size of the perturbation in that norm; in pixel units 8/255 (linf) and 128/255 (l2) if not said",
            source="usual sizes for 32-pixel photographs, from memory; Goodfellow et al. on MNIST: 0.25 (linf, pixels of [0, 1])",
            above=0,
        )
        units: str = option(
            "pixels",
            "what epsilon is measured in: pixels of [0, 1], or what the network sees (normalised); of texts always word embeddings",
            choices=("pixels", "normalised"),
        )
        share: float = option(
            0.5, "a: weight of the clean term; the perturbed one gets 1 - a", source="Goodfellow et al.: 0.5", least=0, most=1
        )
        clip: bool = option(False, "perturbed pixels are brought back into [0, 1]", source="Goodfellow et al.: false")
        direction: str = option(
            "amp", "arithmetic of the gradient: the run's own mixed precision (amp), or fp32", source="ours", choices=PRECISIONS
        )

    summary = "labelled images, and the same moved so as to raise their loss"
    paper = "Goodfellow et al. 2015, arXiv 1412.6572"
    views = Views(labelled=("weak",))

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        if config.epsilon is None and config.units == "normalised":
            raise ConfigError("method.units=normalised needs method.epsilon in those units, for instance --set method.epsilon=0.1")
        texts = spec.kind == "text"
        if texts and config.clip:
            raise ConfigError("method.clip brings pixels back into their range, and word embeddings have none; leave it out")
        super().__init__(config, network, spec, **options)
        usual = OF_TEXTS if texts else USUAL
        self.epsilon = usual[config.norm] if config.epsilon is None else config.epsilon
        mean, std = (torch.tensor(constants).view(-1, 1, 1) for constants in (spec.mean, spec.std))
        scaled = config.units == "pixels" and not texts
        self.register_buffer("unit", std.clone() if scaled else torch.ones(()), persistent=False)
        self.register_buffer("black", (0 - mean) / std, persistent=False)
        self.register_buffer("white", (1 - mean) / std, persistent=False)

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        unlabelled = [forward_together(self.network, [view], "batch")[0] for view in batch.unlabelled]  # of the entropy term
        return forward_together(self.network, list(batch.labelled)), unlabelled

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        moved = forward_together(self.network, [self.moved(batch.labelled[0], batch.label, batch.weight)], "batch")[0]
        clean, perturbed = (cross_entropy(out.logits, batch.label, sample_weight=batch.weight).mean() for out in (labelled[0], moved))
        total = self.config.share * clean + (1 - self.config.share) * perturbed
        return Terms(total, {"loss_labelled": clean.detach(), "loss_adversarial": perturbed.detach()})

    def moved(self, images: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        """[B, ...] x + r. A gradient of exactly zero moves nothing.

        Args:
            images: [B, C, H, W] normalised. label: [B]. weight: [B] of each row in the loss.
        """
        with precision(images, self.config.direction):
            images = self.network.continuous(images)
            g = input_gradient(self.network, images, lambda z: reference.cross_entropy(z, label, sample_weight=weight).sum())
            g = self.network.movable(images, g)
        # In units u of epsilon an image is x u + constant: the gradient there is g / u, and a step s there is s / u here.
        size = self.unit.to(images.dtype)
        step = g.sign() if self.config.norm == "linf" else unit(g / size).to(images.dtype)
        moved = images + self.epsilon * step / size
        return moved.clamp(self.black.to(images.dtype), self.white.to(images.dtype)) if self.config.clip else moved
