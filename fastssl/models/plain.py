"""A trained encoder in the network that its own library makes: strictly loaded, tried, and with the code that makes it again.

Legend: N images, S side in pixels, d width of the features, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import heads, own, peft
from .network import Network, Report

CODE = {
    "linear": 'logits = F.linear(features, head["weight"], head["bias"])',
    "cosine": 'logits = head["scale"] * F.linear(F.normalize(features, dim=1), F.normalize(head["weight"], dim=1))',
    "projected": 'norm = [head[f"norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]\n'
    'hidden = F.relu(F.batch_norm(F.linear(features, head["linear.weight"]), *norm))\n'
    'logits = F.linear(hidden, head["classifier.weight"], head["classifier.bias"])',
}
TOLERANCE = 1e-4  # see `difference`: folding rounds each weight once, in fp32


class Plain(NamedTuple):
    """What is exported of a network whose tuning could be folded into its weights."""

    layout: str  # "timm", "open_clip" or "torch": whose names the weights bear
    state: dict[str, Tensor]  # what the library's module loads strictly
    apart: bool  # the head has no place in the module, which then answers with features
    answer: Callable[[Tensor], Tensor]  # of the module: [N, 3, S, S] -> [N, C] logits, or [N, d] features where the head is apart
    code: tuple[str, ...]  # Python that makes `model`, untrained
    after: dict[str, Any]  # attributes of `model` that are set once its weights are loaded


def of(config: Any, network: Network, tried: Tensor) -> Plain:
    """The plain network of a trained one.

    Args:
        config: the ModelConfig that it was built from.
        network: its encoder may be tuned; it is not changed.
        tried: [N, 3, S, S] images on which a classifier inside timm's network must answer as the head does, or it is kept apart.

    Raises:
        ConfigError: a tuning that `peft.merge` cannot fold.
        SetupError: a package that is not installed.
    """
    merged = peft.merge(network.encoder)
    bare = dataclasses.replace(config, weights="random", head_init="random", drop_path=0.0)
    first, _, rest = config.name.partition(":")
    if first == "timm" and rest:
        return _timm(bare, merged.model.state_dict(), network, tried)
    if first == "open_clip" and rest:
        from . import open_clip_networks

        return _loaded("open_clip", *open_clip_networks.plain(bare), merged.visual.state_dict())
    if rest:
        from . import user

        fresh = user.make(bare, (), tried.shape[-1], Report()).encoder
        code = (f"from {first} import {rest}", "", f"model = {rest}()")
    else:
        fresh, code = own.make(bare, (), None, Report()).encoder, own.code(config.name)
    return _loaded("torch", fresh, code, {}, merged.state_dict())


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference of logits, as a share of the largest logit; absolute where that is below 1."""
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1))


def head_code(head: nn.Module) -> str:
    """Python that brings `features` to `logits` by the head's tensors in `head`."""
    return CODE[heads.kind_of(head)]


def _timm(config: Any, state: dict[str, Tensor], network: Network, tried: Tensor) -> Plain:
    """timm's network, with the head in the place of its classifier where that is one linear map of the same features."""
    from . import timm_networks

    if isinstance(network.head, heads.LinearHead):
        whole, code, place = timm_networks.plain(config, network.head.out_features)
        full = state | {f"{place}.{key}": value for key, value in network.head.state_dict().items()}
        if place is not None and _answers(whole, full, network, tried):
            return Plain("timm", full, False, whole, code, {})
    bare, code, _ = timm_networks.plain(config, 0)
    return _loaded("timm", bare, code, {}, state)


def _answers(whole: nn.Module, state: dict[str, Tensor], network: Network, tried: Tensor) -> bool:
    """Whether timm's network takes the state strictly and then answers as the trained one. Some read other features with a classifier."""
    try:
        whole.load_state_dict(state, strict=True)
    except RuntimeError:
        return False
    with torch.no_grad():
        got, expected = whole.eval()(tried), network(tried).logits
    return isinstance(got, Tensor) and got.shape == expected.shape and difference(got, expected) <= TOLERANCE


def _loaded(layout: str, module: nn.Module, code: tuple[str, ...], after: dict[str, Any], state: dict[str, Tensor]) -> Plain:
    module.load_state_dict(state, strict=True)
    for name, value in after.items():
        setattr(module, name, value)
    return Plain(layout, state, True, module.eval(), code, after)
