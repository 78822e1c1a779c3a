"""Frozen linear layers of transformer blocks in float8, by torchao. The door to torchao.

| form | in float8 |
|---|---|
| backward | the product that gives the gradient with respect to a layer's input |
| full | that, and the layer's own product in the forward pass |

Activations and gradients are scaled row by row, weights column by column (forward) or as a whole (backward), by powers of two found
anew each time: torchao's recipe "rowwise_with_gw_hp". Weights stay what and where they are, in their own type, so that a checkpoint
does not know of this. Gradients with respect to weights, which nobody asks for here, are left out by a compiler; eager steps pay for
them, in the run's own precision.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..config import ModelConfig, TrainConfig
from ..pipelines.errors import ConfigError, SetupError
from . import towers
from .network import Network
from .tuned_block import TunedBlock

FORMS = ("backward", "full")
ALIGNED = 16  # both sides of a float8 product's operands are multiples of it
CAPABILITY = (8, 9)  # of the first CUDA devices that have float8


def apply(network: Network, model: ModelConfig, train: TrainConfig, device: torch.device) -> None:
    """Does what `train.fp8` asks for to a tuned network, in place; nothing where that is off.

    Raises:
        ConfigError: a precision or a network that it is not for.
        SetupError: a device or a package that is lacking.
    """
    if train.fp8 == "off":
        return
    if train.amp != "bf16":
        raise ConfigError(f"train.fp8 stands beside bf16, and this run has --amp {train.amp}; add --amp bf16 or leave train.fp8 off")
    maps = frozen_maps(network, train.fp8, name=model.name, tune=model.tune)
    demand(device)
    convert(network, train.fp8, maps)


def demand(device: torch.device) -> None:
    """Raises SetupError where device or packages lack float8."""
    if device.type != "cuda":
        raise SetupError(f"train.fp8 needs a CUDA device with float8, and this run is on {device.type}; leave train.fp8 off")
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        kind, (major, minor) = torch.cuda.get_device_name(device), found
        raise SetupError(
            f"train.fp8 needs compute capability {CAPABILITY[0]}.{CAPABILITY[1]}, and {kind} has {major}.{minor}; leave train.fp8 off"
        )
    try:
        import torchao.float8  # noqa: F401
    except ImportError as error:
        raise SetupError("train.fp8 needs torchao, which is not installed; run: pip install 'fastssl[fp8]'") from error


def frozen_maps(network: Network, form: str, *, name: str, tune: str) -> list[nn.Linear]:
    """The linear layers that `form` is for: of the blocks, called as modules, frozen, both sides multiples of 16.

    Queries, keys and values of a block with adapters or prompts are not among them: their weights are cut into parts there.

    Args:
        network: tuned already: what trains says so by `requires_grad`.
        form: of FORMS.
        name, tune: the network's and the tuning's, for the sentence.

    Raises:
        ConfigError: there is none, or no gradient for the backward form to pass on.
    """
    tower = towers.find(network.encoder)
    if tower is None:
        raise ConfigError(
            f"train.fp8 needs a network with transformer blocks of timm's, open_clip's or fastssl's VisionTransformer, and {name} has "
            "none; leave train.fp8 off"
        )
    unseen: set[int] = set()  # layers whose weights are read past them
    for block in tower.blocks:
        if isinstance(block, TunedBlock):
            attention = block.parts().attention
            weight = getattr(attention, "weight", None)
            unseen.update(id(m) for m in block.modules() if isinstance(m, nn.Linear) and m.weight is weight)
        else:
            unseen.update(id(m.out_proj) for m in block.modules() if isinstance(m, nn.MultiheadAttention))
    found = [
        m
        for m in tower.blocks.modules()
        if isinstance(m, nn.Linear)
        and id(m) not in unseen
        and not m.weight.requires_grad
        and not (m.in_features % ALIGNED or m.out_features % ALIGNED)
    ]
    if not found:
        raise ConfigError(
            f"train.fp8 is for frozen linear layers with sides that {ALIGNED} divides, and --tune {tune} leaves none in {name}; take "
            "--tune vpt_deep, lora or another that freezes blocks, or leave train.fp8 off"
        )
    if form == "backward" and not any(p.requires_grad for p in network.encoder.parameters()):
        raise ConfigError(
            f"train.fp8=backward has nothing to do: with --tune {tune} no gradient passes through {name}; leave train.fp8 off"
        )
    return found


def convert(network: Network, form: str, maps: list[nn.Linear], *, emulate: bool = False) -> None:
    """Puts torchao's Float8Linear where each of `maps` stands, with its own parameters, in place.

    Args:
        network: whose layers they are.
        form: of FORMS.
        maps: what `frozen_maps` found.
        emulate: products of float8 values in fp32, which any device can: what float8 does to the numbers, at no gain of speed.
    """
    from torchao.float8 import convert_to_float8_training

    wanted = {id(m) for m in maps}
    convert_to_float8_training(network, module_filter_fn=lambda m, _: id(m) in wanted, config=recipe(form, emulate=emulate))
    if emulate:
        for layer in converted(network):
            layer.register_forward_pre_hook(_autocast)


def recipe(form: str, *, emulate: bool = False) -> Any:
    """torchao's Float8LinearConfig of a form.

    Raises:
        ValueError: no such form.
    """
    from torchao.float8 import CastConfig, Float8LinearConfig, ScalingType

    if form not in FORMS:
        raise ValueError(f"form must be {' or '.join(FORMS)}, got '{form}'")
    config = Float8LinearConfig.from_recipe_name("rowwise_with_gw_hp")
    if form == "backward":
        off = CastConfig(scaling_type=ScalingType.DISABLED)
        config = dataclasses.replace(config, cast_config_input=off, cast_config_weight=off)
    return dataclasses.replace(config, emulate=emulate)


def _autocast(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    # torchao's layer takes over what CUDA's autocast would do to its input; it does not ask for the CPU's.
    kind = inputs[0].device.type
    return (inputs[0].to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else inputs[0],)


def converted(module: nn.Module) -> list[nn.Linear]:
    """The layers of a module that run in float8."""
    loaded = sys.modules.get("torchao.float8.float8_linear")
    return [] if loaded is None else [m for m in module.modules() if isinstance(m, loaded.Float8Linear)]


@contextlib.contextmanager
def plain(module: nn.Module) -> Iterator[None]:
    """Within it, no layer of `module` runs in float8: ordinary layers stand in their place, with the same parameters."""
    eight = {id(m) for m in converted(module)}
    places = [(parent, key, m) for parent in module.modules() for key, m in parent.named_children() if id(m) in eight]
    try:
        for parent, key, layer in places:
            stand_in = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta").train(layer.training)
            stand_in.weight, stand_in.bias = layer.weight, layer.bias
            setattr(parent, key, stand_in)
        yield
    finally:
        for parent, key, layer in places:
            setattr(parent, key, layer)
