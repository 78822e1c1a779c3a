"""Guessed labels as MixMatch and ReMixMatch mix them: sharpened, stacked with the given ones, each row mixed with any other."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import cross_entropy
from ...models import Network
from ...pipelines.batch import Batch
from ...schedules import Clock
from .batchnorm import batchnorm
from .mixing import Mix, continuous, drawn, mixed

FORWARDS = ("together", "interleaved")
SHARES = ("sample", "batch")


def sharpened(p: Tensor, temperature: float) -> Tensor:
    """[n, C] probabilities -> p ** (1 / T), each row over its sum; T = 1 leaves them as they are."""
    if temperature == 1:
        return p
    return (p.clamp(min=torch.finfo(p.dtype).tiny).log() / temperature).softmax(1)


def onehot(label: Tensor, like: Tensor) -> Tensor:
    """[n] int64 -> [n, C] in the dtype of `like` [m, C]; torch's own asks the device whether labels are in range."""
    return (label[:, None] == torch.arange(like.shape[1], device=label.device)).to(like.dtype)


class Stack(NamedTuple):
    """B labelled rows, then the rows of all unlabelled views, each with its soft target."""

    images: Tensor  # [n, ...]; texts as word embeddings
    target: Tensor  # [n, C] without gradient
    weight: Tensor  # [B] of the labelled rows

    def labelled_loss(self, logits: Tensor) -> Tensor:
        """[] mean cross-entropy of the first B of [n, C] logits, each row by its weight."""
        b = len(self.weight)
        return cross_entropy(logits[:b], self.target[:b], sample_weight=self.weight).mean()


def stacked(batch: Batch, guess: Tensor, clock: Clock, *, alpha: float, each: str, network: Network | None = None) -> Stack:
    """All views of a batch as one stack, mixed: x <- s x + (1 - s) x[partner], and the targets alike, 1/2 <= s.

    A label's weight counts where the label does: its own row's loss is taken by it, and as a partner of weight w the row enters with w
    times its share (w at most 1), image and target, so that a label of weight 0 teaches nothing.

    Args:
        guess: [U, C] the target of every view of an unlabelled row.
        alpha: of Beta(alpha, alpha), 0 leaves the rows as they are. each: "sample" draws s for each row, "batch" one for all.
        network: embeds texts, with gradient, which are then brought to the longest one's length.
    """
    known = onehot(batch.label, guess)
    views = [continuous(network, view) for view in (*batch.labelled, *batch.unlabelled)]
    if views[0].dim() == 3:
        longest = max(view.shape[1] for view in views)
        views = [F.pad(view, (0, 0, 0, longest - view.shape[1])) for view in views]
    images = torch.cat(views)
    target = torch.cat([known, *[guess] * len(batch.unlabelled)])
    if alpha > 0:
        mix = drawn(clock, len(images), alpha, each=each, major=True, device=images.device)
        counts = torch.cat([batch.weight.clamp(0, 1), batch.weight.new_ones(len(images) - len(batch.weight))])
        mix = Mix(mix.partner, 1 - (1 - mix.share) * counts.index_select(0, mix.partner))
        images, target = mixed(images, mix), mixed(target, mix)
    return Stack(images, target.detach(), batch.weight)


def forward_stack(network: Network, images: Tensor, first: int, *, moves: int) -> Tensor:
    """[n, C] logits of a stack, forwarded as the official codes do: in batches of about `first` rows that mix its parts.

    The first `first` rows are one batch, the rest is cut into others of at most as many rows; then part k of the first batch changes
    places with the same rows of batch k, so that the first batch holds some of everything and every other some of the first.

    Args:
        moves: which of these batches moves batch-norm's running statistics, as an index.
    """
    parts = swapped([images[:first], *_cut(images[first:], first)])
    logits = []
    for number, part in enumerate(parts):
        with batchnorm(network, "update" if number == moves % len(parts) else "batch"):
            logits.append(network(part).logits)
    return torch.cat(swapped(logits))


def _cut(rest: Tensor, most: int) -> tuple[Tensor, ...]:
    return torch.tensor_split(rest, -(-len(rest) // most)) if len(rest) else ()


def swapped(batches: list[Tensor]) -> list[Tensor]:
    """Part k of the first batch in the place of the same rows of batch k, and the other way round; its own inverse."""
    first, *others = batches
    count = len(batches)
    size, more = divmod(len(first), count)
    edges = [0]
    for k in range(count):  # rows left over go to the last parts
        edges.append(edges[-1] + size + (k >= count - more))
    mine, theirs = [first[: edges[1]]], []
    for k, other in enumerate(others, start=1):
        rows = edges[k + 1] - edges[k]
        at = min(edges[k], len(other) - rows)
        mine.append(other[at : at + rows])
        theirs.append(torch.cat([other[:at], first[edges[k] : edges[k + 1]], other[at + rows :]]))
    return [torch.cat(mine), *theirs]
