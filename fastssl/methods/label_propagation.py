"""Label propagation (Iscen et al. 2019): labels spread over a graph of nearest features once a pass, and the network trains on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import option
from ..kernels import consistency_loss, cross_entropy
from ..models import Network, Output, Report
from ..pipelines.batch import Batch, DataSpec, Split, Views
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Averaged, Method, Stage, Terms
from .bricks.diffusion import class_weights, diffused, neighbour_graph
from .bricks.forward import forward_apart, forward_together
from .bricks.neighbours import SEARCHES, installed, unit
from .bricks.options import but
from .bricks.passes import Passes, PassOptions
from .bricks.quality import pseudo_label_quality
from .bricks.ramps import ramp
from .bricks.rounds import apart, listed, refuse_probe
from .bricks.teaching import check_average, following, taught


class LabelPropagation(Method):
    """Stage 1: mean CE(y, z_x). Then L = (1 / (B + U)) [sum_labelled zeta_y CE(y, z_x) + sum omega_i zeta_(y_i) CE(y_i, z_i)] (eq. 11).

    Before each pass: v = f / norm(f) of all samples; A_ij = max(0, v_i v_j)^3 for the k nearest j of i, W = A + A^T, S = D^-1/2 W D^-1/2;
    F = (I - alpha S)^-1 Y; q_i = max(F_i, 0) over its sum; y_i = argmax q_i; omega_i = 1 - H(q_i) / log C, over the largest of them;
    zeta_c = (N / C) / |{i: y_i = c}|. Labelled samples keep their own labels, with omega 1.
    """

    @dataclass(frozen=True)
    class Config(PassOptions):
        warmup_share: float = but(PassOptions, "warmup_share", 0.25, "ours; paper: 180 of 360 epochs")
        neighbours: int = option(50, "k: neighbours of each sample in the graph", source="paper: 50", least=1)
        power: float = option(3.0, "exponent of a similarity in the graph", source="paper: 3", above=0)
        alpha: float = option(0.99, "how far labels spread, below 1; 0: nowhere", source="paper: 0.99", least=0, most=0.9999)
        seeds: str = option(
            "share",
            "what a labelled sample starts with: 1 over the number of its class's labels (share), or 1 (one)",
            source="official code: share; paper: one",
            choices=("share", "one"),
        )
        iterations: int = option(20, "iterations of the conjugate gradients at most", source="official code: 20", least=1)
        tolerance: float = option(1e-6, "their relative tolerance", source="official code: 1e-6", least=0, most=1)
        certainty: bool = option(True, "omega: a sample weighs by how certain its label is; false: 1", source="paper: true")
        balance: bool = option(True, "zeta: a class weighs the less the more samples have its label; false: 1", source="paper: true")
        graph_view: str = option(
            "plain",
            "view of the samples by whose features the graph is made",
            source="ours; official code: the training one, weak",
            choices=("plain", "weak"),
        )
        view: str = option("weak", "view of the unlabelled samples that trains", source="paper: weak", choices=("weak", "strong"))
        consistency: float = option(
            0.0,
            "weight of Mean Teacher's term, of all samples and in both stages; 0 is off, and train.ema is then no part of the loss",
            source="paper, with Mean Teacher: 100, train.ema 0.97",
            least=0,
        )
        ramp_share: float = option(
            5 / 180, "length of its way up, exp(-5 (1 - u)^2), as a share of each stage", source="paper: 5 of 180 epochs", least=0, most=1
        )
        search: str = option(
            "auto",
            "how neighbours are found: all cosines (exact), an approximate index (faiss), or faiss where it is installed and pays (auto)",
            source="official code: faiss, exact",
            choices=SEARCHES,
        )

    summary = "labels spread over a graph of nearest features, and the network trains on them by certainty and class"
    paper = "Iscen et al. 2019, arXiv 1904.04717"

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        if config.consistency:
            check_average("label_propagation with method.consistency", options.get("ema", 0.0))
        super().__init__(config, network, spec, **options)
        refuse_probe("label_propagation", network)
        if config.search == "faiss" and not installed():
            raise ConfigError("method.search=faiss needs faiss, which is not installed; run: pip install 'fastssl[faiss]', or take auto")
        self.whole = 1 if config.consistency else 0  # without a teacher what teaches is a table, so that every view may be mixed
        self.passes = Passes("label_propagation", config, spec, self.unlabelled_batch)
        self.rounds = 0  # of the run, for the log
        self.warming = False
        self.table = Propagated(spec.rows, spec.num_classes)

    @classmethod
    def views_of(cls, config: Any) -> Views:
        if config.consistency:  # a teacher's view beside the student's
            return Views(("weak", "weak"), ("weak", config.view), no_grad=1)
        return Views(("weak",), (config.view,))

    def stage(self, k: int, steps: int) -> Stage | None:
        self.rounds = self.passes.count(steps)
        if k:
            return self.passes.stage(k - 1, steps)
        return Stage(self.passes.warmup(steps), name="labels", views=None if self.config.consistency else Views(("weak",)))

    def enter(self, stage: Stage) -> None:
        super().enter(stage)
        self.warming = stage.name == "labels"

    def averages(self) -> list[Averaged]:
        if not self.config.consistency:
            return super().averages()
        # The teacher is young in the first stage alone.
        return [Averaged(self.ema, self.network, following(self.ema_decay) if self.warming else self.ema_decay, buffers="own")]

    def split_of(self, split: Split) -> Split:
        return apart(split)  # labelled samples come in the labelled stream alone

    @torch.no_grad()
    def prepare(self, k: int, look: Any) -> Report:
        if k == 0:
            return Report()
        c, split, classes = self.config, look.split, self.spec.num_classes
        index, features, given = look("train", view=c.graph_view, reduce=lambda out, label, _: (unit(out.features), label))
        strength = torch.zeros(self.spec.rows)
        strength[torch.from_numpy(split.labelled)] = torch.from_numpy(split.weight).clamp(min=0)
        strength = strength.to(index.device)[index]
        graph = neighbour_graph(features, c.neighbours, power=c.power, search=c.search)
        options = {"alpha": c.alpha, "seeds": c.seeds, "tolerance": c.tolerance, "iterations": c.iterations}
        found = diffused(graph, given, strength, classes, **options)
        known, reached = strength > 0, found.label >= 0
        label = torch.where(known, given, found.label)
        most = found.certainty.max()
        omega = found.certainty / torch.where(most > 0, most, 1.0) if c.certainty else reached.to(found.certainty.dtype)
        omega = torch.where(known, strength.clamp(max=1).to(omega.dtype), omega)
        zeta = class_weights(label, classes) if c.balance else torch.ones(classes, device=label.device)
        before = self.table.label.index_select(0, index)
        changed = int(((before >= 0) & (label >= 0) & (label != before)).sum())
        self.table.write(index, label, omega, zeta)
        return self._told(k, known, reached, graph.isolated, given, omega, changed)

    def _told(self, k: int, known: Tensor, reached: Tensor, isolated: Tensor, given: Tensor, omega: Tensor, changed: int) -> Report:
        what, new = f"{self.spec.kind}s", ~known
        spread, unreached, alone = (int(x.sum()) for x in (new & reached, new & ~reached, new & isolated))
        sure = float(omega[new].mean()) if new.any() else 0.0
        report = Report(values={"propagated": spread, "moved": changed, "isolated": alone, "unreached": unreached, "certainty": sure})
        report.notes.append(
            f"label_propagation, round {k} of {self.rounds}: {spread:,} of {spread + unreached:,} {what} labelled by the graph, weighing "
            f"{sure:.2f} in the mean; {changed:,} changed their label"
        )
        faults = []
        if unreached:
            faults.append(
                f"{unreached:,} of {spread + unreached:,} {what} weigh 0: {alone:,} are like no other (isolated in the graph), to "
                f"{unreached - alone:,} no path leads from a labelled one within {self.config.iterations} iterations; raise "
                "method.neighbours or method.iterations, or lower method.power"
            )
        empty = torch.bincount(given[known], minlength=self.spec.num_classes) == 0
        if empty.any():
            names = [name for name, none in zip(self.spec.classes, empty.tolist(), strict=True) if none]
            faults.append(f"no {self.spec.kind} is labelled {listed(names)}, so that none becomes it")
        if self.config.neighbours >= len(known) - 1:
            faults.append(f"method.neighbours={self.config.neighbours} joins every {self.spec.kind} to every other; give fewer")
        if k == 1 and not new.any():
            faults.append(f"every {self.spec.kind} has a label, so that there is none to label")
        if faults:
            text = f"label_propagation: {'; '.join(faults)}"
            (report.notes if self.table.told else report.warnings).append(text)  # once a run is enough
            self.table.told.fill_(True)
        return report

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        if not self.config.consistency:
            return super().outputs(batch, clock)
        (known, other), (theirs, own) = batch.labelled, batch.unlabelled
        wanted, teacher = taught(self.ema, self.network, [other, theirs])
        student, trained = forward_together(self.network, [known, own])
        return [student, wanted], [teacher, trained]

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        zeta, student = self.table.zeta, labelled[0].logits
        rows = cross_entropy(student, batch.label, class_weight=zeta, sample_weight=batch.weight)
        if not unlabelled:  # the labels alone
            supervised = rows.mean()
            return Terms(supervised, {"loss_labelled": supervised.detach()})
        other = unlabelled[-1].logits
        label, omega = self.table.of(batch.unlabelled_index)
        guessed = cross_entropy(other, label, class_weight=zeta, sample_weight=omega)
        count = len(rows) + len(guessed)
        supervised, unsupervised = rows.sum() / count, guessed.sum() / count
        total = supervised + unsupervised
        metrics: dict[str, Any] = {"loss_labelled": supervised.detach(), "loss_unlabelled": unsupervised.detach()}
        metrics |= pseudo_label_quality(torch.where(omega > 0, label, -1), omega, batch.hidden_label, self.spec.num_classes)
        if self.config.consistency:
            target = torch.cat([labelled[1].logits, unlabelled[0].logits])
            agreement = consistency_loss(torch.cat([student, other]), target, kind="mse").mean()
            total = total + self.config.consistency * ramp(clock, "gauss", self.config.ramp_share) * agreement
            metrics["loss_consistency"] = agreement.detach()
        return Terms(total, metrics)

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        if self.config.consistency or self.config.mixup > 0:
            return forward_apart(self.network, [batch.unlabelled[0]])[0].logits
        return unlabelled[0].logits


class Propagated(nn.Module):
    """The labels that have spread, and how much each sample and each class weighs.

    Args:
        rows: of the data set. classes: C.
    """

    guards_itself = True  # a step never writes it
    label: Tensor
    omega: Tensor
    zeta: Tensor
    told: Tensor

    def __init__(self, rows: int, classes: int):
        super().__init__()
        self.register_buffer("label", torch.full((rows,), -1))
        self.register_buffer("omega", torch.zeros(rows))
        self.register_buffer("zeta", torch.ones(classes))
        self.register_buffer("told", torch.zeros((), dtype=torch.bool))  # whether the user was warned

    def write(self, index: Tensor, label: Tensor, omega: Tensor, zeta: Tensor) -> None:
        """Takes [n] rows with [n] labels (-1: none) and weights, and those of [C] classes; other rows have none."""
        self.label.fill_(-1)
        self.omega.zero_()
        self.label[index], self.omega[index] = label, omega.to(self.omega.dtype)
        self.zeta.copy_(zeta)

    def of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """[n] rows -> [n] int64 labels, 0 of a row without one, and [n] weights."""
        return self.label.index_select(0, index).clamp(min=0), self.omega.index_select(0, index)
