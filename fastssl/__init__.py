"""fastssl: image and text classifiers from a few labels and many unlabelled samples.

Importing this package imports nothing else, torch included; the rooms load when they are first named:
`fastssl.kernels` (losses, torch alone), `fastssl.pipelines` (data), `fastssl.models`, `fastssl.methods`, `fastssl.engine`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_ROOMS = ("kernels", "pipelines", "config", "schedules", "environment", "models", "methods", "engine", "presets")

_here = Path(__file__).resolve().parent
if not (_here / "kernels").is_dir():
    # In the repository the two ground floors lie beside this folder, not in it: uninstalled and editable use find them here.
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
