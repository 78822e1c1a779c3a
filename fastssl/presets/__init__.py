"""Published and measured settings: functions that return dotted keys, each with its source.

`defaults` is what a plain command means; `find` names a published setting, which then stands alone: nothing of `defaults` is in it.
Layers, each over the one before: defaults or the named preset < file < flags.
"""

from __future__ import annotations

from typing import Any

from ..methods import METHODS
from ..pipelines.errors import ConfigError, unknown
from . import adversarial, classic, consistency, finessl, fixmatch, graph, mixing, rounds, simclr, texts, uda, usb, zeromatch
from .plain import defaults
from .preset import Preset, Published

# Presets of methods that are not built yet are not listed.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for room in (finessl, fixmatch, usb, classic, zeromatch, consistency, graph, mixing, uda, adversarial, texts, rounds, simclr)
    for preset in room.PRESETS
    if preset.method in METHODS
}

__all__ = ["PRESETS", "Preset", "Published", "defaults", "find", "layer"]


def find(name: str) -> Preset:
    """The preset of that name. Raises ConfigError naming the nearest ones."""
    if name not in PRESETS:
        raise ConfigError(unknown("preset", name, PRESETS))
    return PRESETS[name]


def layer(preset: Preset, method: str) -> dict[str, Any]:
    """The dotted keys of a preset for `method`: another one's own options are left at their defaults."""
    values = preset.values()
    if method == preset.method:
        return values
    return {key: value for key, value in values.items() if not key.startswith("method.")} | {"method.name": method}
