"""A method inside another one: it judges what the outer one's network said, and keeps its own memory."""

from __future__ import annotations

from typing import Any

from ...config import resolve
from ...models import Network
from ...pipelines.batch import DataSpec
from ...pipelines.errors import ConfigError

CARRIED = ("adamatch", "fixmatch", "flexmatch", "freematch", "softmatch")  # ZeroMatch, section 6.5; its code patches these and more
OUTER = ("ctaugment", "entropy_min", "mixup")  # options of every method, which work on the whole loss


def inner_config(name: str, kind: Any, text: str) -> Any:
    """The inner method's Config from "name=value,name=value".

    Raises:
        ConfigError: unknown or repeated names, values out of range.
    """
    layer: dict[str, str] = {}
    # As the ZeroMatch code does: USB's AdaMatch, without interpolation, strong labelled views and ramp.
    usual = {"strong_labelled": "false", "interpolate": "false", "ramp": "false", "align_memory": "ema", "threshold": "0.95"}
    if name == "adamatch":
        layer |= {f"method.{key}": value for key, value in usual.items()}
    given: set[str] = set()
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (word.strip() for word in item.partition("="))
        if not equals or key in given:
            raise ConfigError(f"method.inner_options takes name=value,name=value, each name once, got '{text}'")
        if key in OUTER:
            raise ConfigError(f"method.inner_options: {key} is the outer method's; give --set method.{key}={value}")
        given.add(key)
        layer[f"method.{key}"] = value
    return resolve(name, kind.Config, [("method.inner_options", layer)]).method


def make_inner(name: str, kind: Any, text: str, network: Network, spec: DataSpec, **options: Any) -> Any:
    """The inner method, without a network of its own: the outer one calls its `objective` with what its network said.

    Raises:
        ConfigError: an inner method that needs more of the network than its outputs.
    """
    config = inner_config(name, kind, text)
    inner = kind(config, network, spec, **{**options, "ema": 0.0})
    if getattr(inner, "interpolates", False):
        raise ConfigError(f"an inner {name} cannot interpolate logits, which takes a forward pass of its own: leave interpolate at false")
    inner.network = None  # the outer method's: kept once, saved once
    return inner
