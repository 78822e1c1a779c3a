"""CoMatch (Li et al. 2021): predictions smoothed by neighbours in a memory make the graph that embeddings learn by contrast."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import option
from ..kernels import cross_entropy
from ..models import Network, Output
from ..pipelines.batch import Batch, DataSpec, Views
from ..schedules import Clock
from .base import Averaged, Method, Terms
from .bricks.averaged_pass import STATISTICS, averaged_pass
from .bricks.forward import forward_together
from .bricks.guesses import onehot
from .bricks.marginal_queue import MarginalQueue
from .bricks.options import MethodOptions, UnlabelledOptions, but
from .bricks.projection import Projection, log_affinity
from .bricks.quality import pseudo_label_quality
from .bricks.shares import adjustment
from .bricks.teaching import check_average

EPSILON = 1e-7  # in the contrastive term's logarithm


class CoMatch(Method):
    """L = mean CE(y, z_x) + lambda_u (1 / U) sum 1[max q >= tau] CE(q, z_s0) + lambda_c (1 / U) sum -Q_ij log(S_ij + 1e-7).

    q = alpha p + (1 - alpha) A P: p the weak prediction, aligned to uniform; A the softmax of its similarities / T to a memory, P the
    memory's predictions. Q = q q^T with 1 on the diagonal and 0 below tau_c, rows divided by their sum; S the row softmax of the strong
    views' similarities f_s0 f_s1^T / T. All U rows are nodes, confident or not. The order is the official CIFAR code's; `momentum_encoder`
    makes it that of the ImageNet code.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        lambda_u: float = but(UnlabelledOptions, "lambda_u", 1.0, "CoMatch's code: 1 on CIFAR, 10 on ImageNet")
        lambda_c: float = option(1.0, "weight of the contrastive term", source="CoMatch's code: 1 on CIFAR", least=0)
        threshold: float = option(
            0.95, "tau: confidence of the smoothed prediction from which a row is used", source="CoMatch's code", least=0, most=1
        )
        temperature: float = option(0.2, "T of all similarities", source="CoMatch's code: 0.2 on CIFAR, 0.1 on ImageNet", above=0)
        width: int = option(64, "D: width of the embedding", source="CoMatch's code: 64 on CIFAR, 128 on ImageNet", least=1)
        alpha: float = option(0.9, "share of a row's own prediction in the smoothed one", source="CoMatch's code", least=0, most=1)
        graph_threshold: float = option(
            0.8,
            "tau_c: agreement of two predictions from which they are neighbours",
            source="CoMatch's code: 0.8 on CIFAR",
            least=0,
            most=1,
        )
        queue_batch: int = option(5, "length of the memory, in steps' rows", source="CoMatch's code", least=1)
        align_batches: int = option(
            32, "batches that alignment's marginal is the mean of; 0: no alignment", source="CoMatch's code", least=0
        )
        momentum_encoder: bool = option(
            False, "the averaged network makes targets, memory and the second strong embedding", source="CoMatch's ImageNet code: true"
        )
        contrast_batch: int = option(
            47,
            "length of the memory of strong embeddings, in steps' rows (momentum_encoder)",
            source="ImageNet code: 30,000 rows, 46.9 steps' of 640",
            least=1,
        )
        teacher_statistics: str = option(
            "batch",
            "batch-norm in the averaged network's pass: the batch's or the running statistics (momentum_encoder)",
            source="ImageNet code: the batch's, shuffled over devices",
            choices=STATISTICS,
        )
        logit_adjustment: float = but(UnlabelledOptions, "logit_adjustment", 0.0)

    summary = "predictions smoothed by a memory of neighbours, and a graph of their agreement that embeddings learn"
    paper = "Li et al. 2021, arXiv 2011.11183"
    views = Views(labelled=("weak",), unlabelled=("weak", "strong", "strong"), no_grad=1)

    @classmethod
    def views_of(cls, config: Any) -> Views:
        # With a momentum encoder the first strong view is its own, and gets no gradient.
        return Views(("weak",), ("weak", "strong", "strong"), no_grad=2 if config.momentum_encoder else 1)

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        if config.momentum_encoder:
            check_average("comatch with momentum_encoder=true", options.get("ema", 0.0))
        super().__init__(config, network, spec, **options)
        self.projection = Projection(network.encoder.num_features, config.width)
        self.marginal = MarginalQueue(spec.num_classes, config.align_batches)
        # B is not more than U, and not known before the first batch: the rows that B and U make of it are used.
        self.memory = FeatureQueue(config.width, spec.num_classes, 2 * config.queue_batch * self.unlabelled_batch)
        self.average = self.strong_memory = None
        if config.momentum_encoder:
            self.average = copy.deepcopy(self.projection).requires_grad_(False)
            self.strong_memory = FeatureQueue(config.width, spec.num_classes, config.contrast_batch * self.unlabelled_batch)
        self.register_buffer("prior", adjustment(spec, config.logit_adjustment), persistent=False)

    def averages(self) -> list[Averaged]:
        own = [] if self.average is None else [Averaged(self.average, self.projection, self.ema_decay)]
        return super().averages() + own

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        """Of the labelled view, the averaged network's after it where there is a momentum encoder; and of the unlabelled views."""
        if self.average is None:
            return super().outputs(batch, clock)
        (known,), (weak, first, second) = batch.labelled, batch.unlabelled
        student = forward_together(self.network, [known, second])
        taught = averaged_pass(self.ema, self.network, [known, weak, first], self.config.teacher_statistics)
        return [student[0], taught[0]], [*taught[1:], student[1]]

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        if self.average is None:
            return super().clean(unlabelled, batch)
        return forward_together(self.network, [batch.unlabelled[0]], "batch")[0].logits

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        weak, first, second = unlabelled
        supervised = cross_entropy(labelled[0].logits, batch.label, adjust=self.prior, sample_weight=batch.weight).mean()
        with torch.no_grad():
            teacher = self.projection if self.average is None else self.average
            f_weak, f_known = teacher(weak.features), teacher(labelled[-1].features)
            log_p, memory = self.marginal.read(weak.logits)
            aligned = log_p.exp()
            q = self.smoothed(aligned, f_weak, batch)
            confidence, label = q.max(1)
            weight = (confidence >= self.config.threshold).to(q.dtype)
        if self.average is None:
            student, keys = first, self.projection(second.features)
        else:
            student, keys = second, self.average(first.features).detach()
        unsupervised = cross_entropy(student.logits, q, sample_weight=weight).mean()
        contrast = self.contrast(self.projection(student.features), keys, q, batch)
        total = supervised + self.config.lambda_u * unsupervised + self.config.lambda_c * contrast
        known = onehot(batch.label, aligned)
        # A label of weight 0 teaches nothing: the memory takes what is predicted of its image.
        guess = labelled[-1].logits.detach().to(aligned.dtype).softmax(1)
        known = torch.where(batch.weight[:, None] > 0, known, guess)
        memory |= {"features": torch.cat([f_weak, f_known]), "probabilities": torch.cat([aligned, known])}
        if self.strong_memory is not None:
            memory |= {"strong_features": keys, "strong_probabilities": q}
        metrics = {
            "loss_labelled": supervised.detach(),
            "loss_unlabelled": unsupervised.detach(),
            "loss_contrast": contrast.detach(),
            **pseudo_label_quality(label, weight, batch.hidden_label, self.spec.num_classes),
        }
        return Terms(total, metrics, memory)

    def smoothed(self, p: Tensor, features: Tensor, batch: Batch) -> Tensor:
        """[U, C] aligned predictions -> q. As long as the memory is not full they stay what they are: its empty rows would take weight."""
        others, predictions, there = self.memory.read(self._rows(batch))
        with torch.autocast(p.device.type, enabled=False):
            by_others = log_affinity(features, others, self.config.temperature).exp() @ predictions
        mixed = self.config.alpha * p + (1 - self.config.alpha) * by_others.to(p.dtype)
        return torch.where(there.all(), mixed, p)

    def contrast(self, features: Tensor, keys: Tensor, q: Tensor, batch: Batch) -> Tensor:
        """[] mean over rows of -sum_j Q_ij log(S_ij + 1e-7).

        Args:
            features: [U, D]. keys: [U, D], of the other strong view. q: [U, C] without grad.
        """
        n, predictions, there = len(q), q, None
        if self.strong_memory is not None:
            past, past_q, seen = self.strong_memory.read(self._strong_rows())
            keys, predictions = torch.cat([keys, past]), torch.cat([q, past_q.to(q.dtype)])
            there = torch.cat([torch.ones_like(seen[:1]).expand(n), seen])
        with torch.autocast(q.device.type, enabled=False):
            graph = agreement_graph(q, predictions, self.config.graph_threshold)
            similarity = features @ keys.T / self.config.temperature
            if there is not None:
                similarity = similarity.masked_fill(~there, -torch.inf)
            rows = -(graph * (similarity.softmax(1) + EPSILON).log()).sum(1)
        return rows.mean()

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        memory = terms.memory
        self.marginal.write(memory)
        self.memory.write(memory["features"], memory["probabilities"], self._rows(batch), clock.ok)
        if self.strong_memory is not None:
            self.strong_memory.write(memory["strong_features"], memory["strong_probabilities"], self._strong_rows(), clock.ok)

    def _rows(self, batch: Batch) -> int:
        """Rows of the memory: queue_batch times those of a step, of which `batch` may be a piece."""
        known, users = len(batch.label), len(batch.unlabelled_index)
        return self.config.queue_batch * (self.unlabelled_batch + self.unlabelled_batch * known // users)

    def _strong_rows(self) -> int:
        return self.config.contrast_batch * self.unlabelled_batch


class FeatureQueue(nn.Module):
    """The last rows of features with their predictions, first in, first out. A step's rows divide the length, so that no write wraps.

    It looks at `ok` itself (`guards_itself`): a copy of all rows before each step would cost many times what the step's own rows do.

    Args:
        width: D. classes: C. rows: most that it may be used for.
    """

    guards_itself = True
    features: Tensor
    probabilities: Tensor
    written: Tensor

    def __init__(self, width: int, classes: int, rows: int):
        super().__init__()
        self.register_buffer("features", torch.zeros(rows, width))
        self.register_buffer("probabilities", torch.zeros(rows, classes))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))  # rows, ever

    def read(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """[rows, D] features, [rows, C] predictions, [rows] bool: which of them are there."""
        there = torch.arange(rows, device=self.written.device) < self.written
        return self.features[:rows], self.probabilities[:rows], there

    def write(self, features: Tensor, probabilities: Tensor, rows: int, ok: Tensor) -> None:
        """Puts [n, D] and [n, C] in the place of the oldest of `rows`; nothing where `ok` says so or something is not finite.

        Under train.accumulate a piece is written before the step's verdict is known.
        """
        n = len(features)
        sound = ok & features.isfinite().all() & probabilities.isfinite().all()
        place = self.written % rows + torch.arange(n, device=features.device)
        for bank, new in ((self.features, features), (self.probabilities, probabilities)):
            bank.index_copy_(0, place, torch.where(sound, new.to(bank.dtype), bank.index_select(0, place)))
        self.written.add_(torch.where(sound, n, 0))


def agreement_graph(q: Tensor, others: Tensor, threshold: float) -> Tensor:
    """[U, C], [U + K, C] predictions, the first U rows the same -> [U, U + K] graph whose rows sum to 1.

    Products below the threshold are no neighbours; a row is always its own, with weight 1 before rows are divided by their sum.
    """
    graph = q @ others.T
    own = torch.eye(len(q), len(others), dtype=torch.bool, device=q.device)
    graph = torch.where(own, 1.0, torch.where(graph >= threshold, graph, 0.0))
    return graph / graph.sum(1, keepdim=True)
