"""UDA on images (Xie et al. 2020): a sharpened prediction on the weak view teaches the strong view; labels may be released by and by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import option
from ..models import Network, Output, Report
from ..pipelines.batch import Batch, DataSpec, Split, Views
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Stage, Terms
from .bricks.options import ThresholdOptions
from .bricks.start import Start
from .thresholded import Thresholded

TSA = ("none", "linear", "exp", "log")
_SHOWN = 10  # classes that a line of the log names


class UDA(Thresholded):
    """L = sum m CE(y, z_x) / max(1, sum m) + lambda_u (1 / U) sum 1[max p_w >= tau] CE(softmax(z_w / T), z_s).

    p_w = softmax(z_w) is not sharpened where it is judged. m = 1[p_x(y) <= eta_t], without gradient: training signal annealing, with
    eta_t = a_t (1 - 1/C) + 1/C and a_t = t/K (linear), exp(5 (t/K - 1)) (exp) or 1 - exp(-5 t/K) (log); without it m = 1. The paper's
    KL(q || p_s) is this cross-entropy less the entropy of q, which has no gradient.

    With `in_domain` k a first stage trains the network on the labels alone; then it judges each image of --extra-unlabelled, and the k
    surest of each predicted class go on as unlabelled images, their predicted labels forgotten. The rest is not used.
    """

    @dataclass(frozen=True)
    class Config(ThresholdOptions):
        threshold: float = option(
            0.8, "tau: confidence from which a prediction teaches; 0 is off", source="UDA code, images", least=0, most=1
        )
        temperature: float = option(0.4, "T: targets are softmax(z / T); 1 is off", source="UDA code, images", above=0)
        tsa: str = option(
            "none",
            "training signal annealing, how fast labels are released: one is left out while its class is predicted with more than eta_t",
            source="UDA code: none on images",
            choices=TSA,
        )
        tsa_form: str = option(
            "official",
            "what is compared with eta_t, and what the labelled term is divided by: the label's own probability, and the labels that are "
            "left in (official); or the largest probability, and all labels of the batch (usb)",
            source="UDA code; USB and TorchSSL: usb",
            choices=("official", "usb"),
        )
        in_domain: int = option(
            0,
            "k: of the images of --extra-unlabelled, the surest k of each predicted class are kept, by a network trained on the labels "
            "first; 0 keeps all of them and has no first stage",
            source="UDA, paper alone; its k is not in our sources",
            least=0,
        )
        base_share: float = option(
            0.25, "share of the run's steps that the network judging them trains on the labels alone", source="ours", above=0, most=0.99
        )
        base: str = option(
            "apart",
            "that network: one apart, so that training starts from the initial weights afterwards (apart), or the network itself, which "
            "goes on from there (same)",
            source="paper: a baseline apart",
            choices=("apart", "same"),
        )

    summary = "sharpened predictions on confident weak views train the strong views; labels may be released by and by"
    paper = "Xie et al. 2020, arXiv 1904.12848"

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        if config.in_domain and not spec.extra:
            raise ConfigError(
                f"method.in_domain={config.in_domain} chooses among the images of --extra-unlabelled, and there are none; give "
                "--extra-unlabelled DIR|CSV, or leave it at 0"
            )
        kept = torch.zeros(spec.extra, dtype=torch.bool) if config.in_domain else None
        self.register_buffer("kept", kept)  # of the images from elsewhere, those that were chosen
        self.start = Start(network) if config.in_domain and config.base == "apart" else None

    def stage(self, k: int, steps: int) -> Stage | None:
        if self.kept is None:
            return super().stage(k, steps)
        if steps < 2:
            raise ConfigError(
                f"method.in_domain={self.config.in_domain} needs a step before its choice and one after; give --steps 2 or more"
            )
        first = min(max(1, round(self.config.base_share * steps)), steps - 1)
        return Stage(first, name="base", views=Views(("weak",))) if k == 0 else super().stage(k - 1, steps - first)

    def prepare(self, k: int, look: Any) -> Report:
        if k != 1 or self.kept is None:
            return super().prepare(k, look)
        own = self.spec.rows - self.spec.extra
        rows = look.split.unlabelled[look.split.unlabelled >= own]
        found = look(rows, reduce=surest) if len(rows) else ()
        report = Report()
        kept = np.zeros(self.spec.extra, np.bool_)
        if found:
            index, label, confidence = (column.cpu().numpy() for column in found)
            chosen = top(label, confidence, self.config.in_domain, self.spec.num_classes)
            kept[index[chosen] - own] = True
            self._tell(report, np.bincount(label[chosen], minlength=self.spec.num_classes), len(rows))
        if not kept.any():
            report.warnings.append(f"in-domain: none of the {len(rows)} extra images is kept; training goes on with the set's own alone")
        self.kept.copy_(torch.from_numpy(kept))
        if self.start is not None:
            self.start.restore(self.network, self.ema)
        return report

    def _tell(self, report: Report, counts: np.ndarray, rows: int) -> None:
        k, classes = self.config.in_domain, self.spec.classes
        report.notes.append(
            f"in-domain: {counts.sum():,} of {rows:,} extra images kept, {counts.min()} to {counts.max()} of each predicted class"
        )
        short = [f"{classes[c]} {counts[c]}" for c in np.flatnonzero(counts < k)]
        if short:
            named = ", ".join(short[:_SHOWN]) + (", ..." if len(short) > _SHOWN else "")
            report.notes.append(
                f"in-domain: {len(short)} of {len(classes)} classes have fewer than {k}, and all of theirs are kept: {named}"
            )

    def split_of(self, split: Split) -> Split:
        if self.kept is None:
            return split
        own = self.spec.rows - self.spec.extra
        kept = np.concatenate([np.ones(own, np.bool_), self.kept.cpu().numpy()])
        return dataclasses.replace(split, unlabelled=split.unlabelled[kept[split.unlabelled]], hash="")

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        if not unlabelled:  # the first stage: labels alone
            loss = self.supervised([view.logits for view in labelled], batch)
            return Terms(loss, {"loss_labelled": loss.detach()})
        if self.config.tsa == "none":
            return super().objective(labelled, unlabelled, batch, clock)
        mask = self.released(labelled[0].logits.detach(), batch.label, clock)
        mask = mask * (batch.weight > 0)  # a label that does not count is not counted either
        # The labelled term is a mean over all B rows: this weight makes it the sum over the rows that are left in, over their number.
        count = mask.sum().clamp(min=1) if self.config.tsa_form == "official" else len(mask)
        terms = super().objective(labelled, unlabelled, batch._replace(weight=batch.weight * mask * (len(mask) / count)), clock)
        terms.metrics["labels_released"] = mask.mean()
        return terms

    def released(self, known: Tensor, label: Tensor, clock: Clock) -> Tensor:
        """[B] 1 for a labelled row that trains in the step under way, 0 for one that is predicted well already.

        Args:
            known: [B, C] logits without grad.
        """
        p = known.softmax(1, dtype=torch.float64 if known.dtype == torch.float64 else torch.float32)
        judged = p.gather(1, label[:, None])[:, 0] if self.config.tsa_form == "official" else p.amax(1)
        return (judged <= self.eta(clock)).to(p.dtype)

    def eta(self, clock: Clock) -> Tensor:
        """[] threshold of training signal annealing in the step under way, of clock.total."""
        t, classes = clock.step.to(torch.float64) / clock.total, self.spec.num_classes
        share = {"linear": t, "exp": torch.exp(5 * (t - 1)), "log": 1 - torch.exp(-5 * t)}[self.config.tsa]
        return share * (1 - 1 / classes) + 1 / classes

    def standard(self, teacher: Tensor, known: Tensor, batch: Batch, clock: Clock) -> tuple[dict[str, Any], dict[str, Tensor]]:
        options, memory = super().standard(teacher, known, batch, clock)
        return {**options, "temperature": self.config.temperature}, memory

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        if self.asked.unlabelled:
            super().remember(batch, terms, clock)


def surest(out: Output, label: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """[n] predicted classes and [n] their log-probabilities, NaN where a logit is not finite."""
    value, guess = out.logits.double().log_softmax(1).max(1)
    return guess, torch.where(torch.isfinite(out.logits).all(1), value, torch.nan)


def top(label: np.ndarray, confidence: np.ndarray, k: int, classes: int) -> np.ndarray:
    """Positions of the k surest of each class, earlier ones first among equals; all where a class has fewer. NaN is never among them."""
    order = np.argsort(-confidence, kind="stable")
    order = order[np.isfinite(confidence[order])]
    return np.sort(np.concatenate([order[label[order] == c][:k] for c in range(classes)]))
