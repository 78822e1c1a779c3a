"""Our own networks by name: the shipped glyph_clip, and the residual networks that papers train from scratch."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

from torch import nn

from ..pipelines.errors import ConfigError, unknown
from . import weights
from .network import Contrast, InputSpec, Made, Report

WIDE = {"wrn-28-2": (28, 2), "wrn-28-8": (28, 8), "wrn-37-2": (37, 2)}
NAMES = ("glyph_clip", *WIDE, "preact-resnet-18")
SHAPES = ("wrn-DEPTH-WIDTH", "timm:NAME", "open_clip:ARCH/TAG", "package.module:factory")


def wide(name: str) -> tuple[int, int] | None:
    """(depth, width) of a wide residual network by name, of the papers' or any other of depth 6 n + 4; None for other names."""
    if name in WIDE:
        return WIDE[name]
    found = re.fullmatch(r"wrn-([1-9]\d{0,2})-([1-9]\d?)", name)
    depth, width = (int(found[1]), int(found[2])) if found else (0, 0)
    return (depth, width) if depth >= 10 and (depth - 4) % 6 == 0 else None


def describe(config: Any, size: int | None) -> InputSpec:
    """The input of one of NAMES (see `models.describe`)."""
    name = config.name
    if name not in NAMES and wide(name) is None:
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
    if wide(name):
        return ("from fastssl.models.wrn import WideResNet", "", f"model = WideResNet{wide(name)}")
    return ("from fastssl.models.preact import PreActResNet", "", "model = PreActResNet()")


def contrast(config: Any, classes: tuple[str, ...], prompts: tuple[str, ...], report: Report) -> Contrast:
    """glyph_clip as a zero-shot classifier (see `zero_shot.build`)."""
    from . import names
    from .glyph_clip import CONTEXT

    clip, templates = _clip(config, report), prompts or names.TEMPLATES
    texts = [text for name in classes for text in names.prompts(name, templates)]
    long = [text for text in texts if len(text.encode()) > CONTEXT]
    if long:
        report.warnings.append(f"prompts that glyph_clip cuts at {CONTEXT} bytes: {len(long)} of {len(texts)}, such as '{long[0]}'")
    text = clip.encode_text(list(classes), templates).detach()
    return Contrast(clip.vision, clip.projection.weight.detach().T, text, clip.logit_scale.exp().item())


def _clip(config: Any, report: Report) -> Any:
    """A GlyphCLIP with the weights that the configuration names."""
    from .glyph_clip import load

    if config.weights in (None, "random") or any(key.startswith("vision.") for key in weights.read(config.weights)):
        return load(config.weights)
    clip = load()  # the file holds an image tower alone, as an export does: the text tower is the package's
    weights.load(clip.vision, config.weights, config.name, report)
    return clip


def _glyph_clip(config: Any, classes: tuple[str, ...], report: Report) -> Made:
    clip = _clip(config, report)
    if config.head_init != "text":
        return Made(clip.vision)
    if config.weights == "random":
        raise ConfigError("model.head_init=text needs a trained text tower, and --weights random has none; use random")
    return Made(clip.vision, clip.text_head(list(classes)).detach())


def _residual(config: Any) -> nn.Module:
    if shape := wide(config.name):
        from .wrn import WideResNet

        return WideResNet(*shape)
    from .preact import PreActResNet

    return PreActResNet()


def _unknown(name: str) -> str:
    """The sentence for an unknown name; a name that timm knows is pointed there."""
    if importlib.util.find_spec("timm") is not None:
        import timm

        if timm.is_model(name.partition(".")[0]):
            return f"unknown model '{name}'; did you mean timm:{name}?"
    return unknown("model", name, (*NAMES, *SHAPES))
