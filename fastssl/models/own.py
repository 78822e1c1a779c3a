"""Our own networks by name: the shipped glyph_clip, and the residual networks that papers train from scratch."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn

from ..pipelines.errors import ConfigError, unknown
from . import weights
from .network import InputSpec, Made, Report

WIDE = {"wrn-28-2": (28, 2), "wrn-28-8": (28, 8), "wrn-37-2": (37, 2)}
NAMES = ("glyph_clip", *WIDE, "preact-resnet-18")
SHAPES = ("timm:NAME", "open_clip:ARCH/TAG", "package.module:factory")


def describe(config: Any, size: int | None) -> InputSpec:
    """The input of one of NAMES (see `models.describe`)."""
    name = config.name
    if name not in NAMES:
        raise ConfigError(_unknown(name))
    for option in ("img_size", "patch_size"):
        if getattr(config, option) is not None:
            raise ConfigError(f"model.{option} goes with vision transformers of timm and open_clip, and {name} takes none; leave it out")
    if config.drop_path:
        raise ConfigError(f"model.drop_path goes with networks of timm, and {name} drops no paths; leave it out")
    if name != "glyph_clip":
        return InputSpec(size)
    from .glyph_clip import IMAGE_SIZE, MEAN, STD

    if size not in (None, IMAGE_SIZE):
        raise ConfigError(f"{name} takes images of {IMAGE_SIZE} pixels, and data.size asks for {size}; leave it out")
    return InputSpec(IMAGE_SIZE, (MEAN,) * 3, (STD,) * 3)


def make(config: Any, classes: tuple[str, ...], size: int | None, report: Report) -> Made:
    """The encoder of one of NAMES (see `models.build`)."""
    describe(config, None)
    if config.name == "glyph_clip":
        return _glyph_clip(config, classes, report)
    if config.head_init == "text":
        raise ConfigError(f"model.head_init=text needs a text tower, and {config.name} has none; use random")
    encoder = _residual(config)
    if config.weights not in (None, "random"):
        weights.load(encoder, config.weights, config.name, report)
    return Made(encoder)


def code(name: str) -> tuple[str, ...]:
    """Python that makes the encoder of one of NAMES as `model`."""
    if name == "glyph_clip":
        return ("from fastssl.models.glyph_clip import GlyphCLIP", "", "model = GlyphCLIP().vision")
    if name in WIDE:
        return ("from fastssl.models.wrn import WideResNet", "", f"model = WideResNet{WIDE[name]}")
    return ("from fastssl.models.preact import PreActResNet", "", "model = PreActResNet()")


def _glyph_clip(config: Any, classes: tuple[str, ...], report: Report) -> Made:
    from .glyph_clip import load

    if config.weights not in (None, "random") and not any(key.startswith("vision.") for key in weights.read(config.weights)):
        clip = load()  # the file holds an image tower alone, as an export does: the text tower is the package's
        weights.load(clip.vision, config.weights, config.name, report)
    else:
        clip = load(config.weights)
    if config.head_init != "text":
        return Made(clip.vision)
    if config.weights == "random":
        raise ConfigError("model.head_init=text needs a trained text tower, and --weights random has none; use random")
    return Made(clip.vision, clip.text_head(list(classes)).detach())


def _residual(config: Any) -> nn.Module:
    if config.name in WIDE:
        from .wrn import WideResNet

        depth, width = WIDE[config.name]
        return WideResNet(depth, width)
    from .preact import PreActResNet

    return PreActResNet()


def _unknown(name: str) -> str:
    """The sentence for an unknown name; a name that timm knows is pointed there."""
    if importlib.util.find_spec("timm") is not None:
        import timm

        if timm.is_model(name.partition(".")[0]):
            return f"unknown model '{name}'; did you mean timm:{name}?"
    return unknown("model", name, (*NAMES, *SHAPES))
