"""The forward of a step's views: jointly where batch-norm must see them together, apart where the teacher needs no graph."""

from __future__ import annotations

import torch
from torch import Tensor

from ...models import Network, Output
from ...pipelines.batch import Batch
from .batchnorm import batchnorm


def forward_views(network: Network, batch: Batch, no_grad: int, weak_pass: str) -> tuple[list[Output], list[Output]]:
    """Outputs of the labelled and of the unlabelled views, in the batch's order.

    Args:
        no_grad: how many of the leading unlabelled views need no gradient.
        weak_pass: "joint" forwards everything as one batch, as FixMatch does: with batch-norm, gradient reaches even the
            teacher's images through the batch statistics. "separate" forwards the teacher's views first, without a graph:
            the same mathematics on networks whose rows do not see each other, and a third cheaper; on networks with
            batch-norm it is another (named) variant, in which that pass leaves the running statistics alone.
    """
    teachers, students = batch.unlabelled[:no_grad], batch.unlabelled[no_grad:]
    if weak_pass == "joint":
        outputs = forward_together(network, [*batch.labelled, *teachers, *students])
        return outputs[: len(batch.labelled)], outputs[len(batch.labelled) :]
    taught: list[Output] = []
    if teachers:
        with torch.no_grad():
            taught = forward_together(network, list(teachers), "batch")
    outputs = forward_together(network, [*batch.labelled, *students])
    return outputs[: len(batch.labelled)], taught + outputs[len(batch.labelled) :]


def forward_together(network: Network, views: list[Tensor], statistics: str = "update") -> list[Output]:
    """Views as one batch of the network, and its outputs apart again.

    Texts of several lengths, or embedded beside others that are not, are a batch for each kind: encoders of texts have no batch-norm, so
    that rows do not see each other, and padding to the longest would be work for nothing.

    Args:
        statistics: batch-norm's mode in this pass, see batchnorm.py.
    """
    kinds = list(dict.fromkeys((view.shape[1:], view.dtype) for view in views))
    if len(kinds) > 1:
        found: list[Output] = [None] * len(views)  # type: ignore[list-item]
        for kind in kinds:
            places = [place for place, view in enumerate(views) if (view.shape[1:], view.dtype) == kind]
            for place, out in zip(places, forward_together(network, [views[place] for place in places], statistics), strict=True):
                found[place] = out
            statistics = "batch" if statistics == "update" else statistics  # one pass of a step moves a head's running statistics
        return found
    sizes = [len(view) for view in views]
    with batchnorm(network, statistics):
        out = network(torch.cat(views) if len(views) > 1 else views[0])
    return [Output(*pieces) for pieces in zip(out.logits.split(sizes), out.features.split(sizes), strict=True)]


def forward_apart(network: Network, views: list[Tensor], statistics: str = "batch") -> list[Output]:
    """Each view as a batch of its own, with its own batch statistics."""
    return [forward_together(network, [view], statistics)[0] for view in views]
