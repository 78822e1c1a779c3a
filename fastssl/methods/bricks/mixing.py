"""MixUp (Zhang et al. 2018, arXiv 1710.09412): rows mixed with partners of their own kind."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...models import Network
from ...pipelines import keyed
from ...pipelines.batch import Batch
from ...schedules import Clock
from . import noise

_SHARE, _ORDER = keyed.key(0x4D6978, 1), keyed.key(0x4D6978, 2)


class Mix(NamedTuple):
    """Who is mixed with whom, and how much of a row is its own."""

    partner: Tensor  # [n] int64 places
    share: Tensor  # [n] or [1] float64: lambda


def drawn(clock: Clock, n: int, alpha: float, *, use: int = 0, each: str = "batch", major: bool = False, device: torch.device) -> Mix:
    """A permutation of n rows and shares from Beta(alpha, alpha); alpha 0 leaves every row as it is.

    Args:
        use: tells several mixes of one step apart.
        each: "batch" draws one share for all rows, "sample" one for each.
        major: take max(lambda, 1 - lambda), so that a row stays mostly itself.
    """
    partner = noise.permutation(noise.stream(keyed.key(_ORDER, use), clock), n)
    rows = torch.arange(n if each == "sample" else 1, device=device)
    if alpha == 0:
        return Mix(partner, torch.ones(len(rows), dtype=torch.float64, device=device))
    share = noise.beta(noise.stream(keyed.key(_SHARE, use), clock), rows, alpha)
    return Mix(partner, torch.maximum(share, 1 - share) if major else share)


def mixed(x: Tensor, mix: Mix) -> Tensor:
    """[n, ...] rows -> lambda x + (1 - lambda) x[partner], in x's dtype."""
    share = mix.share.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))
    return share * x + (1 - share) * x.index_select(0, mix.partner)


class MixedBatch(NamedTuple):
    """A batch whose labelled views and whose unlabelled views after the first `whole` are mixed; the views of a row by one mix.

    One lambda for all rows, so that a loss that is linear in its targets is lambda times the loss on the rows' own and 1 - lambda times the
    loss on their partners'.
    """

    batch: Batch
    labelled: Mix
    unlabelled: Mix
    whole: int

    @property
    def share(self) -> Tensor:
        return self.labelled.share[0]

    def partners(self) -> Batch:
        """The batch with every row's partner in its place, but for the views that are mixed."""
        b, known, other = self.batch, self.labelled.partner, self.unlabelled.partner
        return b._replace(
            label=b.label.index_select(0, known),
            weight=b.weight.index_select(0, known),
            index=b.index.index_select(0, known),
            unlabelled=tuple(v.index_select(0, other) if k < self.whole else v for k, v in enumerate(b.unlabelled)),
            unlabelled_index=b.unlabelled_index.index_select(0, other),
            hidden_label=b.hidden_label.index_select(0, other),
        )


def continuous(network: Network | None, view: Tensor) -> Tensor:
    """A view that can be mixed: as it is, unless `network` reads texts, whose word embeddings are mixed (Guo et al. 2019, wordMixup)."""
    return view if network is None else network.continuous(view)


def mixed_batch(batch: Batch, clock: Clock, alpha: float, whole: int, network: Network | None = None) -> MixedBatch:
    """A batch mixed within itself: labelled rows with labelled ones, unlabelled rows with unlabelled ones, by one lambda.

    Args:
        network: embeds texts, with gradient.
    """
    device = batch.label.device
    known = drawn(clock, len(batch.label), alpha, device=device)
    other = Mix(noise.permutation(noise.stream(keyed.key(_ORDER, 1), clock), len(batch.unlabelled_index)), known.share)
    new = batch._replace(
        labelled=tuple(mixed(continuous(network, view), known) for view in batch.labelled),
        unlabelled=tuple(mixed(continuous(network, view), other) if k >= whole else view for k, view in enumerate(batch.unlabelled)),
    )
    return MixedBatch(new, known, other, whole)
