"""SimMatch (Zheng et al. 2022): weak and strong view agree over classes and over labelled images, each correcting the other."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import option
from ..kernels import cross_entropy
from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec, Views
from ..pipelines.errors import DataError
from ..schedules import Clock
from .base import Averaged, Method, Terms
from .bricks.averaged_pass import STATISTICS, averaged_pass
from .bricks.forward import forward_together
from .bricks.marginal_queue import MarginalQueue
from .bricks.options import MethodOptions, UnlabelledOptions, but
from .bricks.projection import Projection, log_affinity
from .bricks.quality import pseudo_label_quality
from .bricks.rows import last_of
from .bricks.shares import adjustment
from .bricks.teaching import check_average


class SimMatch(Method):
    """L = mean CE(y, z_x) + lambda_u (1 / U) sum 1[max q >= tau] CE(q, z_s) + lambda_in (1 / U) sum CE(h, s).

    p is the weak view's prediction, aligned to uniform; a and s are the softmax, over a memory F of all labelled images, of f_w F / T and
    f_s F / T. Instances: h_k ~ a_k p_(y_k). Classes: q = alpha p + (1 - alpha) g, g_c the sum of a over labelled images of class c. Nothing
    is masked in the last term. As long as a labelled image was never drawn, that term is 0 and q = p. `teacher_by` says whose weak view and
    memory these are: the network's own with a memory that averages over visits, or the averaged network's.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        teacher_by: str = option(
            "ensemble",
            "targets and memory by the network that trains, the memory averaging each image's embeddings over its visits (ensemble), or by "
            "the averaged network (network)",
            source="ensemble: paper, small data sets, and USB; network: paper and code, ImageNet",
            choices=("ensemble", "network"),
        )
        momentum: float = option(
            0.7, "share of the old embedding in the memory at a visit (teacher_by=ensemble)", source="USB", least=0, most=1
        )
        lambda_u: float = but(UnlabelledOptions, "lambda_u", 1.0, "USB on CIFAR: 1; SimMatch's code on ImageNet: 10")
        lambda_in: float = option(1.0, "weight of the instance term", source="USB on CIFAR: 1; SimMatch's code on ImageNet: 5", least=0)
        threshold: float = option(
            0.95, "tau: confidence of q from which a row is used", source="USB on CIFAR: 0.95; code on ImageNet: 0.7", least=0, most=1
        )
        temperature: float = option(0.1, "T of all similarities", source="SimMatch's code and USB", above=0)
        width: int = option(128, "D: width of the embedding", source="SimMatch's code and USB", least=1)
        alpha: float = option(
            0.9, "share of p in q; 1: labelled images correct no class", source="SimMatch's code and USB", least=0, most=1
        )
        align_batches: int = option(
            32, "batches that alignment's marginal is the mean of; 0: no alignment", source="USB: 32; code on ImageNet: 256", least=0
        )
        teacher_statistics: str = option(
            "batch",
            "batch-norm in the averaged network's pass: the batch's or the running statistics (teacher_by=network)",
            source="SimMatch's code: the batch's, shuffled over devices",
            choices=STATISTICS,
        )
        logit_adjustment: float = but(UnlabelledOptions, "logit_adjustment", 0.0)

    summary = "weak and strong view agree over classes and over labelled images, each correcting the other"
    paper = "Zheng et al. 2022, arXiv 2203.06915"
    views = Views(labelled=("weak",), unlabelled=("weak", "strong"), no_grad=1)

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        if config.teacher_by == "network":
            check_average("simmatch with teacher_by=network", options.get("ema", 0.0))
        super().__init__(config, network, spec, **options)
        self.projection = Projection(network.encoder.num_features, config.width)
        self.marginal = MarginalQueue(spec.num_classes, config.align_batches)
        momentum = config.momentum if config.teacher_by == "ensemble" else 0.0
        self.memory = LabelledMemory(spec, config.width, momentum)
        self.average = None
        if config.teacher_by == "network":
            self.average = copy.deepcopy(self.projection).requires_grad_(False)
        self.register_buffer("prior", adjustment(spec, config.logit_adjustment), persistent=False)

    def averages(self) -> list[Averaged]:
        own = [] if self.average is None else [Averaged(self.average, self.projection, self.ema_decay)]
        return super().averages() + own

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        """Of the labelled view, the teacher's after it where that is a network of its own; and of the unlabelled views."""
        if self.average is None:
            return super().outputs(batch, clock)
        (known,), (weak, strong) = batch.labelled, batch.unlabelled
        student = forward_together(self.network, [known, strong])
        taught = averaged_pass(self.ema, self.network, [known, weak], self.config.teacher_statistics)
        return [student[0], taught[0]], [taught[1], student[1]]

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        if self.average is None:
            return super().clean(unlabelled, batch)
        return forward_together(self.network, [batch.unlabelled[0]], "batch")[0].logits

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        weak, strong = unlabelled
        supervised = cross_entropy(labelled[0].logits, batch.label, adjust=self.prior, sample_weight=batch.weight).mean()
        with torch.no_grad():
            teacher = self.projection if self.average is None else self.average
            log_p, memory = self.marginal.read(weak.logits)
            log_a = self.memory.log_affinity(teacher(weak.features), self.config.temperature)
            log_h, q = corrected(log_p, log_a, self.memory.label, self.config.alpha)
            q = torch.where(self.memory.full, q, log_p.exp())
            memory["known"] = teacher(labelled[-1].features)
            confidence, label = q.max(1)
            weight = (confidence >= self.config.threshold).to(q.dtype)
        unsupervised = cross_entropy(strong.logits, q, sample_weight=weight).mean()
        log_s = self.memory.log_affinity(self.projection(strong.features), self.config.temperature)
        instance = torch.where(self.memory.full, -(log_h.exp() * log_s).sum(1).mean(), 0.0)
        total = supervised + self.config.lambda_u * unsupervised + self.config.lambda_in * instance
        metrics = {
            "loss_labelled": supervised.detach(),
            "loss_unlabelled": unsupervised.detach(),
            "loss_instance": instance.detach(),
            **pseudo_label_quality(label, weight, batch.hidden_label, self.spec.num_classes),
        }
        return Terms(total, metrics, memory)

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        self.marginal.write(terms.memory)
        self.memory.write(batch.index, terms.memory["known"], torch.where(batch.weight > 0, batch.label, -1), clock.ok)


class LabelledMemory(nn.Module):
    """An embedding of each labelled image, and its label. Images take places in the order in which they first come.

    The split's labelled rows are known by their number alone, so a map from rows of the data set to places comes about by visits.

    It looks at `ok` itself (`guards_itself`): a copy of all of it before each step would cost many times what the step's own rows do.

    Args:
        spec: with labelled counts, whose sum is K, and rows. width: D.
        momentum: share of the old embedding at a visit; the sum is brought back to length 1.

    Attributes:
        features: [K, D] unit rows; zeros where no image is yet.
        label: [K] int64, -1 for one that does not count. place: [rows] int64, -1 for an image that has none.
        count: [] int64, places that are taken.

    Raises:
        DataError: the data do not say how many labels there are.
    """

    guards_itself = True
    features: Tensor
    label: Tensor
    place: Tensor
    count: Tensor

    def __init__(self, spec: DataSpec, width: int, momentum: float):
        super().__init__()
        size = sum(spec.labelled_counts)
        if not size:
            raise DataError(f"{spec.name} does not say how many labels each class has, and a memory of all labelled images was asked for")
        self.momentum = momentum
        self.register_buffer("features", torch.zeros(size, width))
        self.register_buffer("label", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("place", torch.full((spec.rows,), -1, dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def full(self) -> Tensor:
        """[] bool: whether every labelled image was drawn."""
        return self.count >= len(self.label)

    def log_affinity(self, features: Tensor, temperature: float) -> Tensor:
        """[U, D] unit rows -> [U, K] logs of the softmax over the memory."""
        return log_affinity(features, self.features, temperature)

    def write(self, index: Tensor, features: Tensor, label: Tensor, ok: Tensor) -> None:
        """Takes the embeddings of a batch; nothing where `ok` says so or one is not finite. An image that comes twice takes its last row.

        Args:
            index: [n] int64 rows of the data set. features: [n, D] unit rows. label: [n] int64.
        """
        last = last_of(index, len(self.place))
        known = self.place.index_select(0, index)
        new = (known < 0) & (last == torch.arange(len(index), device=index.device))
        # Places in the order of the images' last rows. All rows of one image then write the same values.
        own = self.count + new.to(torch.int64).cumsum(0) - 1
        place = torch.where(known < 0, own.index_select(0, last), known)
        sound = ok & features.isfinite().all()
        before = self.features.index_select(0, place)
        fresh = features.index_select(0, last).to(before.dtype)
        moved = torch.where((known < 0)[:, None], fresh, self.momentum * before + (1 - self.momentum) * fresh)
        moved = nn.functional.normalize(moved, dim=1)  # each row by its own length
        self.features.index_copy_(0, place, torch.where(sound, moved, before))
        self.label.index_copy_(0, place, torch.where(sound, label, self.label.index_select(0, place)))
        self.place.index_copy_(0, index, torch.where(sound, place, known))
        self.count.add_(torch.where(sound, new.sum(), 0))


def corrected(log_p: Tensor, log_a: Tensor, label: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Classes correct instances and, from the same uncorrected numbers, instances correct classes (equations 8 and 11).

    Args:
        log_p: [U, C] logs of the aligned prediction. log_a: [U, K] logs of the similarities' softmax.
        label: [K] int64; -1 for an image whose label does not count: it is as likely of any class, and its share of a says what p says.

    Returns:
        [U, K] logs of h ~ a_k p_(y_k); [U, C] q = alpha p + (1 - alpha) g, g_c the sum of a over images of class c.
    """
    told, label = label >= 0, label.clamp(min=0)
    likely = torch.where(told, log_p.to(log_a.dtype).index_select(1, label), -math.log(log_p.shape[1]))
    log_h = (log_a + likely).log_softmax(1)
    p, a = log_p.exp(), log_a.exp().to(log_p.dtype)
    if alpha == 1:
        return log_h, p
    rest = torch.where(told, 0.0, a).sum(1, keepdim=True)
    return log_h, alpha * p + (1 - alpha) * (torch.zeros_like(p).index_add(1, label, torch.where(told, a, 0.0)) + rest * p)
