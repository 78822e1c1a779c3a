"""Methods by name. One literal table: a name, and where its class lives."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..pipelines.errors import ConfigError, unknown

if TYPE_CHECKING:
    from .base import Method

METHODS: dict[str, str] = {
    "supervised": "supervised:Supervised",
    "fixmatch": "fixmatch:FixMatch",
    "finessl": "finessl:FineSSL",
}


def find(name: str) -> type[Method]:
    """The class of a method by name.

    Raises:
        ConfigError: unknown name, with the nearest ones.
    """
    if name not in METHODS:
        raise ConfigError(unknown("method", name, METHODS))
    module, kind = METHODS[name].split(":")
    return getattr(importlib.import_module(f".{module}", __name__), kind)
