"""Batch-norm in one of three modes for the length of a forward pass, so that a method says which pass moves the running statistics.

| mode | normalises by | running statistics |
|---|---|---|
| update | the batch | moved |
| batch | the batch | left alone: no buffer is written, so that functional gradients trace through the pass |
| eval | the running statistics | left alone |

The reference codes make every teacher's, guess's and perturbed pass as `batch` and one pass a step as `update`. Dropout is untouched by all
three, and layers that are in evaluation mode already (a frozen encoder's) stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

MODES = ("update", "batch", "eval")


@contextlib.contextmanager
def batchnorm(network: nn.Module, mode: str) -> Iterator[None]:
    """Holds the network's batch-norm layers in `mode`, one of MODES.

    Raises:
        ValueError: no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"batch-norm's mode is update, batch or eval, got {mode!r}")
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if mode != "update" else []
    kept = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            if mode == "eval":
                layer.training = False
            elif layer.training:
                layer.track_running_stats = False  # torch then hands the buffers to nobody
        yield
    finally:
        for layer, (training, tracks) in zip(layers, kept, strict=True):
            layer.training, layer.track_running_stats = training, tracks


@contextlib.contextmanager
def no_dropout(network: nn.Module) -> Iterator[None]:
    """Holds still whatever the network draws while it trains: dropout of any kind (layers, functions, attention) and dropped paths.

    All modules but batch-norm's are in evaluation mode meanwhile: some read their own `training` and have no dropout layer.
    """
    layers = [m for m in network.modules() if not isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer, training in zip(layers, kept, strict=True):
            layer.training = training
