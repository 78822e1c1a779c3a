"""SentAugment (Du et al. 2020): unlabelled samples are retrieved by embeddings from a bank; a teacher labels them for a fresh student."""

from __future__ import annotations

import dataclasses
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
from .base import Method, Stage, Terms
from .bricks.neighbours import SEARCHES, installed, neighbours, unit
from .bricks.options import MethodOptions
from .bricks.quality import pseudo_label_quality
from .bricks.rounds import listed
from .bricks.selection import surest
from .bricks.start import Start
from .bricks.targets import Targets


class SentAugment(Method):
    """Stage 1, the teacher: mean CE(y, z_x). Stage 2, the student: mean CE(y, z_x) + lambda_u (1 / U) sum KL(q_u || softmax(z_u)).

    Before stage 1 the network as it starts embeds labelled samples and bank; the K rows of the bank with the largest cosines to each query
    are retrieved, copies left out. After it the teacher's probabilities q judge them, the surest of each predicted class are kept, in the
    labels' own shares, and the student starts from the weights from which the teacher did. q is constant: the teacher is gone.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        bank: str = option(
            "extra",
            "what is retrieved from: the samples of --extra-unlabelled (extra), or the set's own unlabelled ones (own)",
            source="SentAugment: a bank from elsewhere",
            choices=("extra", "own"),
        )
        query: str = option(
            "class",
            "queries: the mean embedding of each class's labelled samples (class), of all of them (all), or each labelled sample (each)",
            source="SentAugment: all three; the default is ours",
            choices=("class", "all", "each"),
        )
        retrieved: int = option(10_000, "K: rows of the bank that are retrieved for each query", source="SentAugment's README", least=1)
        near: float = option(
            1.0,
            "a retrieved sample whose cosine to a labelled one is above this is left out as its near copy; 1 is off (true copies of "
            "labelled and of test samples are always left out)",
            source="ours",
            above=0,
            most=1,
        )
        keep: float = option(
            0.5,
            "of the retrieved samples so many are kept: a share up to 1, a number above",
            source="ours",
            above=0,
        )
        least_confidence: float = option(0.0, "confidence of the teacher below which none is kept; 0 is off", least=0, most=1)
        targets: str = option(
            "soft",
            "what the student learns: the teacher's probabilities, or its likeliest class (hard)",
            source="SentAugment",
            choices=("soft", "hard"),
        )
        lambda_u: float = option(1.0, "weight of the unlabelled term", source="ours", least=0)
        view: str = option(
            "weak", "view of the kept samples that the student sees", source="SentAugment has no augmentation", choices=("weak", "strong")
        )
        teacher_share: float = option(0.25, "share of the run's steps in which the teacher trains", source="ours", above=0, most=0.99)
        search: str = option(
            "auto",
            "how neighbours are found: all cosines (exact), an approximate index (faiss), or faiss where it is installed and the bank and "
            "the queries are so many that it pays (auto)",
            source="SentAugment: exact up to 100 million sentences, faiss beyond",
            choices=SEARCHES,
        )

    summary = "samples retrieved from a bank by their embeddings, labelled by a teacher, train a fresh student"
    paper = "Du et al. 2020, arXiv 2010.02194"
    whole = 0  # what teaches is a table, so that every view may be mixed

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        if config.bank == "extra" and not spec.extra:
            raise ConfigError(
                f"sentaugment retrieves from the {spec.kind}s of --extra-unlabelled, and there are none; give --extra-unlabelled, or "
                "--set method.bank=own to retrieve from the set's own"
            )
        if config.search == "faiss" and not installed():
            raise ConfigError("method.search=faiss needs faiss, which is not installed; run: pip install 'fastssl[faiss]', or take auto")
        bank = spec.extra if config.bank == "extra" else spec.unlabelled
        queries = {"class": spec.num_classes, "all": 1, "each": sum(spec.labelled_counts) or spec.rows}[config.query]
        self.taught = Targets(spec.rows, kept(min(bank, queries * config.retrieved), config.keep), spec.num_classes)
        self.start = Start(network)

    @classmethod
    def views_of(cls, config: Any) -> Views:
        return Views(labelled=("weak",), unlabelled=(config.view,))

    def stage(self, k: int, steps: int) -> Stage | None:
        if steps < 2:
            raise ConfigError("sentaugment trains a teacher and then a student, a step each at least; give --steps 2 or more")
        first = min(max(1, round(self.config.teacher_share * steps)), steps - 1)
        return Stage(first, name="teacher", views=Views(("weak",))) if k == 0 else super().stage(k - 1, steps - first)

    def prepare(self, k: int, look: Any) -> Report:
        if k == 0:
            return self._retrieve(look)
        return self._score(look) if k == 1 else Report()

    def split_of(self, split: Split) -> Split:
        rows = self.taught.rows()
        return dataclasses.replace(split, unlabelled=rows, hash="") if len(rows) else split

    def _retrieve(self, look: Any) -> Report:
        """Marks the rows of the bank that are near the labelled samples, by the network as it starts."""
        report, split, c, what = Report(), look.split, self.config, f"{self.spec.kind}s"
        known, here = split.labelled[split.weight > 0], self.spec.rows - self.spec.extra
        pool = split.unlabelled[(split.unlabelled >= here) == (c.bank == "extra")]
        pool = pool[~np.isin(pool, split.labelled)]
        bank, found = originals(pool, split, look.pipeline.source.content), np.zeros(0, np.int64)
        if len(bank) and len(known):
            asked = np.concatenate([known, bank])
            index, x, label = look(asked, reduce=lambda out, label, _: (unit(out.features), label))
            bank, labelled, rows = index[label < 0].cpu().numpy(), x[label >= 0], x[label < 0]  # lost files are not among them
            near = neighbours(self._queries(labelled, label[label >= 0]), rows, c.retrieved, search=c.search).index.unique()
            near = near[near >= 0]
            copies = len(near)
            if c.near < 1:
                near = near[neighbours(rows[near], labelled, 1, search="exact").cosine.amax(1) <= c.near]
            copies -= len(near)
            found = bank[near.cpu().numpy()]
            told = f", {len(pool) - len(bank):,} copies left out" if len(pool) > len(bank) else ""
            told += f", {copies:,} near copies of labelled ones left out" if copies else ""
            report.notes.append(f"sentaugment: {len(found):,} of {len(pool):,} {what} of the bank retrieved{told}")
        if not len(found):
            report.warnings.append(f"sentaugment: none of {len(pool):,} {what} of the bank is retrieved; the student has the labels alone")
        self.taught.mark(found)
        return report

    def _queries(self, x: Tensor, label: Tensor) -> Tensor:
        """[Q, d] of [n, d] unit embeddings of the labelled samples; a class without one asks for nothing."""
        if self.config.query == "each":
            return x
        if self.config.query == "all":
            return x.mean(0, keepdim=True)
        return torch.stack([x[label == c].mean(0) for c in label.unique()])

    def _score(self, look: Any) -> Report:
        """Keeps the surest of what was retrieved with the teacher's probabilities, and makes the network what it was."""
        report, rows, classes = Report(), self.taught.rows(), self.spec.num_classes
        if len(rows):
            index, p = look(rows, reduce=lambda out, *_: out.logits.double().softmax(1))
            confidence, guess = (x.cpu().numpy() for x in p.max(1))
            sound = np.isfinite(confidence) & (confidence >= self.config.least_confidence)
            labels = look.split.label[look.split.weight > 0]
            counts = np.bincount(labels, minlength=classes)
            quota = apportioned(counts, kept(len(rows), self.config.keep))
            chosen = surest(guess, np.where(sound, confidence, np.nan), quota)
            if self.config.targets == "hard":
                p = nn.functional.one_hot(p.argmax(1), classes).to(p.dtype)
            self.taught.write(index[torch.from_numpy(chosen).to(index.device)], p[torch.from_numpy(chosen).to(p.device)])
            self._tell(report, np.bincount(guess[chosen], minlength=classes), quota, len(rows))
        self.start.restore(self.network, self.ema)
        return report

    def _tell(self, report: Report, counts: np.ndarray, quota: np.ndarray, rows: int) -> None:
        report.notes.append(f"sentaugment: {counts.sum():,} of {rows:,} retrieved {self.spec.kind}s kept, by the teacher's confidence")
        names = self.spec.classes
        short = [f"{names[c]} {counts[c]} of {quota[c]}" for c in np.flatnonzero(counts < quota)]
        if short:
            report.notes.append(f"sentaugment: {len(short)} of {len(names)} classes have fewer than their share: {listed(short)}")
        if not counts.sum():
            report.warnings.append("sentaugment: none of the retrieved is kept, so that the student has the labels alone")

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        supervised = cross_entropy(labelled[0].logits, batch.label, sample_weight=batch.weight).mean()
        metrics: dict[str, Any] = {"loss_labelled": supervised.detach()}
        if not unlabelled:  # the teacher
            return Terms(supervised, metrics)
        q, weight = self.taught.of(batch.unlabelled_index)
        rows = consistency_loss(unlabelled[0].logits, q, kind="kl", teacher_is="probabilities", sample_weight=weight)
        unsupervised = rows.mean()
        quality = pseudo_label_quality(q.argmax(1), weight, batch.hidden_label, self.spec.num_classes)
        metrics |= {"loss_unlabelled": unsupervised.detach(), **quality}
        return Terms(supervised + self.config.lambda_u * unsupervised, metrics)


def kept(count: int, keep: float) -> int:
    """How many of `count` are kept, at least 1: a share up to 1, a number above."""
    return max(1, round(keep * count) if keep <= 1 else min(count, round(keep)))


def originals(rows: np.ndarray, split: Split, content: np.ndarray) -> np.ndarray:
    """The rows that are copies neither of a test or labelled sample nor of an earlier row. `content`: [N], equal of copies."""
    rows = rows[~np.isin(rows, split.labelled) & ~np.isin(content[rows], content[np.concatenate([split.test, split.labelled])])]
    _, first = np.unique(content[rows], return_index=True)
    return rows[np.sort(first)]


def apportioned(counts: np.ndarray, total: int) -> np.ndarray:
    """[C] shares of `total` in the proportion of `counts`, whole numbers by the largest remainders, the earlier class among equals."""
    exact = counts * total
    share, rest = exact // counts.sum(), exact % counts.sum()
    more = np.argsort(-rest, kind="stable")[: total - share.sum()]
    share[more] += 1
    return share
