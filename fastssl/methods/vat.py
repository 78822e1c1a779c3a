"""Virtual adversarial training (Miyato et al. 2018): predictions must not change in the direction in which they change most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import option
from ..kernels import consistency_loss, cross_entropy, reference
from ..models import Output
from ..pipelines import keyed
from ..pipelines.batch import Batch, Views
from ..schedules import Clock
from .base import Method, Terms
from .bricks import noise
from .bricks.forward import forward_together
from .bricks.input_gradient import PRECISIONS, input_gradient, precision, unit
from .bricks.options import MethodOptions, but
from .bricks.ramps import RAMPS, ramp

_NOISE = keyed.key(0x564154)  # keeps the start of the search apart from everybody else's random numbers


class VAT(Method):
    """L = mean CE(y, z_x) + lambda_u ramp(t) mean KL(p_u || f(u + r)) + entropy_min mean H(p_u); p_u = f(u) and r carry no gradient.

    r = epsilon d / ||d||, where d starts as normal noise and each power iteration makes it the gradient of KL(p_u || f(u + xi d / ||d||))
    at that place (Miyato et al., algorithm 1). Norms are of a whole image as it reaches the network, or of all word embeddings of a text.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        entropy_min: float = but(MethodOptions, "entropy_min", 0.06, "TorchSSL: 0.06; VAT's code: 1; 0 is VAT without entropy minimisation")
        lambda_u: float = option(0.3, "weight of the unlabelled term", source="TorchSSL: 0.3; VAT's code and USB: 1", least=0)
        epsilon: float = option(
            6.0,
            "L2 norm of the perturbation of a whole normalised image: it goes with the root of the number of pixels",
            source="TorchSSL: 6; VAT's code on CIFAR-10: 8 with augmentation, 10 without, on SVHN 3.5 and 2.5",
            above=0,
        )
        xi: float = option(
            0.1,
            "L2 norm of the step at whose end the search takes its gradient; below the resolution of the arithmetic it finds noise",
            source="ours; the published 1e-6 is such a case in fp32",
            above=0,
        )
        power_iterations: int = option(1, "gradients that the search takes", source="VAT, section 4.2.3: 1", least=1)
        direction: str = option(
            "fp32",
            "arithmetic of the search, clean pass included: fp32, or the run's own mixed precision (amp), with which xi must be about 1",
            source="ours",
            choices=PRECISIONS,
        )
        reverse: bool = option(
            False, "the divergence to be made small is KL(f(u + r) || p_u)", source="VAT: false; MixMatch's authors' code: true"
        )
        ramp: str = option("linear", "rise of the unlabelled term's weight", source="TorchSSL: linear; VAT: none", choices=RAMPS)
        ramp_share: float = option(0.4, "share of the run over which it rises", source="TorchSSL: 0.4", least=0, most=1)

    summary = "predictions stay the same under the small perturbation that would change them most"
    paper = "Miyato et al. 2018, arXiv 1704.03976"
    views = Views(labelled=("weak",), unlabelled=("weak",))
    whole = 2  # of `outputs`: the clean and the perturbed pass; MixUp mixes labelled images alone

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        labelled = forward_together(self.network, list(batch.labelled))
        images = self.network.continuous(batch.unlabelled[0])
        with precision(images, self.config.direction):
            # In another arithmetic than the search's, rounding would pass for a difference between f(u) and f(u + xi d).
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.entropy_min > 0):
                clean = forward_together(self.network, [images], "batch")[0]
            r = self.perturbation(images.detach(), clean.logits, batch.unlabelled_index, clock)
        return labelled, [clean, forward_together(self.network, [images + r], "batch")[0]]

    def perturbation(self, images: Tensor, logits: Tensor, index: Tensor, clock: Clock) -> Tensor:
        """[U, ...] r, without gradient.

        Args:
            images: [U, ...]. logits: [U, C] of the clean pass. index: [U] rows of the data set, which with seed and step key the noise.
        """
        logits = logits.detach()
        start = noise.normal(noise.stream(_NOISE, clock), index, tuple(images.shape[1:]), images.dtype)
        d = unit(self.network.movable(images, start))
        for _ in range(self.config.power_iterations):
            at = images + self.config.xi * d.to(images.dtype)
            g = input_gradient(self.network, at, lambda z: reference.consistency_loss(z, logits, kind="kl").sum())
            d = unit(self.network.movable(images, g))
        return (self.config.epsilon * d).to(images.dtype)

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        supervised = cross_entropy(labelled[0].logits, batch.label, sample_weight=batch.weight).mean()
        clean, perturbed = unlabelled[0].logits.detach(), unlabelled[1].logits
        if self.config.reverse:
            rows = consistency_loss(clean, perturbed, kind="kl", teacher_grad=True)
        else:
            rows = consistency_loss(perturbed, clean, kind="kl")
        unsupervised = rows.mean()
        total = supervised + self.weight(clock) * unsupervised
        return Terms(total, {"loss_labelled": supervised.detach(), "loss_unlabelled": unsupervised.detach()})

    def weight(self, clock: Clock) -> float | Tensor:
        """Weight of the unlabelled term at this step."""
        return self.config.lambda_u * ramp(clock, self.config.ramp, self.config.ramp_share)
