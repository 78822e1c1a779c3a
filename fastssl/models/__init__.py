"""Networks: names -> an encoder with one classifier head.

A network answers with `Output(logits [N, C], features [N, d])`. What it wants as input, it says itself (`describe`).

| name | network | file |
|---|---|---|
| glyph_clip, wrn-28-2, wrn-28-8, wrn-37-2, preact-resnet-18 | our own | own.py |
| timm:NAME | any network of timm with pooled features | timm_networks.py |
| open_clip:ARCH[/TAG] | an image tower of open_clip; its text tower starts heads from class names | open_clip_networks.py |
| transformers:FOLDER_OR_NAME | a text encoder, pooled as its card says | transformers_networks.py |
| package.module:factory | a user's nn.Module | user.py |

Importing this room imports neither timm nor open_clip nor transformers: their files wake when one of their names is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType
from typing import Any

from torch import nn

from ..pipelines.errors import ConfigError
from . import weights
from .heads import make_head
from .network import InputSpec, Network, Output, Report
from .peft import tune
from .together import Together

__all__ = ["InputSpec", "Network", "Output", "Report", "Together", "bare", "build", "describe"]


def describe(config: Any, size: int | None = None, *, encoder: nn.Module | None = None) -> InputSpec:
    """The input of a ModelConfig's network. Reads and fetches no weights; a file of them must be there.

    Args:
        config: names the network; `img_size` and `patch_size` are what it is built with.
        size: side of the images in pixels where the user asks for one; else the network's own.
        encoder: the user's own module, which then stands for the named network.

    Returns:
        What the images must be. Where `size` is given, the network was tried on it.

    Raises:
        ConfigError: unknown name (with the nearest ones), an option that the network does not take, a size that it refuses.
        SetupError: a package that is not installed, no file of weights where one is named.
    """
    if config.weights not in (None, "random"):
        weights.check(config.weights)
    if encoder is not None:
        from . import user

        return user.describe_module(encoder, config, size)
    return _family(config.name).describe(config, size)


def build(
    config: Any,
    classes: tuple[str, ...],
    *,
    size: int | None = None,
    encoder: nn.Module | None = None,
    report: Report | None = None,
) -> Network:
    """Builds the network of a ModelConfig for the named classes, with torch's global generator.

    Args:
        config: network, weights, tuning and head.
        classes: C class names.
        size: side of the images in pixels, where it is known: a user's module without `num_features` is tried on it.
        encoder: the user's own module (see user.py), taken as it is in place of the named network; changed in place by tuning.
        report: takes what there is to say about weights.

    Raises:
        ConfigError: unknown network, options or tuning that do not fit, text initialisation without a text tower.
        SetupError: a missing package; a file or a hub's weights that cannot be read or do not fit.
    """
    report = Report() if report is None else report
    if config.head == "projected" and config.head_init == "text":
        raise ConfigError("model.head_init=text fills a head of one layer, and model.head=projected has a hidden one; take another head")
    if encoder is not None:
        from . import user

        made = user.make_module(encoder, config, size, report)
    else:
        made = _family(config.name).make(config, classes, size, report)
    _set_momentum(made.encoder, config.batchnorm_momentum)
    tuned = tune(made.encoder, config, name=config.name)
    head = make_head(config.head, tuned.num_features, len(classes), scale=config.head_scale, width=config.head_width)
    _set_momentum(head, config.batchnorm_momentum)
    if made.text_rows is not None:
        head.set_weight(made.text_rows)
    return Network(tuned, head, config.dropout)


def bare(config: Any) -> Any:
    """The ModelConfig of the same network without any weights of its own: what a checkpoint is loaded into.

    No file of weights, no hub and no text tower is needed again.
    """
    return dataclasses.replace(config, weights="random", head_init="random")


def _family(name: str) -> ModuleType:
    """The module that describes and makes the networks of this kind of name."""
    first, colon, rest = name.partition(":")
    if not colon:
        return importlib.import_module(".own", __package__)
    if not first or not rest:
        raise ConfigError(
            f"'{name}' names no network; networks are named like timm:resnet18, open_clip:ViT-B-16/openai or package.module:factory"
        )
    kinds = {"timm": ".timm_networks", "open_clip": ".open_clip_networks", "transformers": ".transformers_networks"}
    kind = kinds.get(first, ".user")
    return importlib.import_module(kind, __package__)


def _set_momentum(network: nn.Module, momentum: float | None) -> None:
    """Batch-norm layers keep their authors' momentum unless another one is asked for."""
    for layer in network.modules() if momentum is not None else ():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = momentum
