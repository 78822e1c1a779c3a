"""A user's own network: an nn.Module from Python, or package.module:factory by name.

The contract: `factory()` returns an nn.Module that maps [N, 3, H, W] float32 images to [N, d] features, without a classifier; a class
of such modules is a factory too. The head is ours. Optional attributes, of the factory or of the module that is handed over:

| attribute | meaning | where it is missing |
|---|---|---|
| num_features | d (of the module) | found by trying the module on two images |
| input_size | side of the square images in pixels | the data's own, or data.size |
| mean, std | three numbers each that normalise colours in [0, 1] | the data set's own |
| interpolation | "bicubic" or "bilinear" | bicubic |

Weights are as the factory makes them (`random` says the same), or from a safetensors file. The module must lie where Python finds it:
installed, or on PYTHONPATH. Naming a factory runs it, at eval and predict too: a run directory whose config.yaml names one is as
trustworthy as whoever wrote it.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from ..pipelines.errors import ConfigError, SetupError, unknown
from . import probe, weights
from .network import InputSpec, Made, Report

TRIED = 32  # pixels of the images that a module without num_features is tried on where nothing tells their size


def describe(config: Any, size: int | None) -> InputSpec:
    """The input of a factory's module, by the factory's attributes (see `models.describe`). The factory is not run."""
    return describe_module(_factory(config.name), config, size)


def describe_module(about: Any, config: Any, size: int | None) -> InputSpec:
    """The input of a module, by the attributes of `about`: the module itself, or its factory."""
    for option in ("img_size", "patch_size"):
        if getattr(config, option) is not None:
            raise ConfigError(f"model.{option} goes with vision transformers of timm and open_clip, not with {config.name}; leave it out")
    if config.drop_path:
        raise ConfigError(f"model.drop_path goes with networks of timm, not with {config.name}; build it into the network itself")
    own = getattr(about, "input_size", None)
    if own is not None and (not isinstance(own, int) or own < 1):
        raise ConfigError(f"input_size of {config.name} must be a number of pixels, got {own!r}")
    if None not in (own, size) and own != size:
        raise ConfigError(f"{config.name} takes images of {own} pixels, and data.size asks for {size}; leave it out")
    mean, std = (_colours(about, key, config.name) for key in ("mean", "std"))
    if (mean is None) != (std is None):
        raise ConfigError(f"{config.name} has one of mean and std; give both or neither")
    return InputSpec(own or size, mean, std, getattr(about, "interpolation", "bicubic"))


def make(config: Any, classes: tuple[str, ...], size: int | None, report: Report) -> Made:
    """The encoder that a factory makes (see `models.build`)."""
    factory = _factory(config.name)
    try:
        module = factory()
    except TypeError as error:
        raise ConfigError(f"{config.name} must be callable without arguments: {probe.reason(error)}") from None
    return make_module(module, config, size or getattr(factory, "input_size", None), report)


def make_module(module: Any, config: Any, size: int | None, report: Report) -> Made:
    """A user's module as an encoder, with weights from a file where one is given."""
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{config.name} must give an nn.Module, got {type(module).__name__}")
    if config.head_init == "text":
        raise ConfigError(f"model.head_init=text needs a text tower, and {config.name} has none; use random")
    side = size or getattr(module, "input_size", None) or TRIED
    training = module.training
    try:
        width = probe.features(module.eval(), side)
    except probe.Refused as error:
        raise ConfigError(f"{config.name} does not answer images of {side} pixels with features [N, d]: {error}") from None
    module.train(training)
    if getattr(module, "num_features", width) != width:
        raise ConfigError(f"num_features of {config.name} is {module.num_features}, and its features have {width} columns")
    if not hasattr(module, "num_features"):
        module.num_features = width
    if config.weights not in (None, "random"):
        weights.load(module, config.weights, config.name, report)
    return Made(module)


def _factory(name: str) -> Any:
    """What "package.module:factory" names.

    Raises:
        SetupError: the module cannot be imported.
        ConfigError: it has no such name, or one that cannot be called.
    """
    place, _, attribute = name.partition(":")
    if not all(word.isidentifier() for word in (*place.split("."), attribute)):
        raise ConfigError(f"--model {name} must be like package.module:factory")
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        mend = "install it or put its folder on PYTHONPATH"
        raise SetupError(f"--model {name}: Python finds no module '{error.name}'; {mend}") from None
    except ImportError as error:
        raise SetupError(f"--model {name}: {place} cannot be imported: {probe.reason(error)}") from None
    if not hasattr(module, attribute):
        raise ConfigError(unknown("factory", attribute, [key for key in vars(module) if not key.startswith("_")], f"module {place}"))
    factory = getattr(module, attribute)
    if not callable(factory):
        raise ConfigError(f"--model {name} must name a function or class that makes an nn.Module, got {type(factory).__name__}")
    return factory


def _colours(about: Any, key: str, name: str) -> tuple[float, float, float] | None:
    value = getattr(about, key, None)
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 3:
        raise ConfigError(f"{key} of {name} must be three numbers, got {value!r}")
    return tuple(float(v) for v in value)
