"""The forward of a step's views: jointly where batch-norm must see them together, apart where the teacher needs no graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from ...models import Network, Output
from ...pipelines.batch import Batch


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
        with torch.no_grad(), frozen_statistics(network):
            taught = forward_together(network, list(teachers))
    outputs = forward_together(network, [*batch.labelled, *students])
    return outputs[: len(batch.labelled)], taught + outputs[len(batch.labelled) :]


@contextlib.contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Batch-norm layers in training mode normalise by the batch as ever, and leave their running statistics alone."""
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, kept, strict=True):
            layer.momentum = momentum


def forward_together(network: Network, views: list[torch.Tensor]) -> list[Output]:
    """Views as one batch of the network, and its outputs apart again."""
    sizes = [len(view) for view in views]
    out = network(torch.cat(views))
    return [Output(*pieces) for pieces in zip(out.logits.split(sizes), out.features.split(sizes), strict=True)]
