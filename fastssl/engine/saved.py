"""A run directory's configuration. Wakes no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..config import RunConfig, read_yaml, resolve
from ..pipelines.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Stands for the Config of a method that is not asked for."""


def saved_config(folder: Path, *, trains: bool = False) -> RunConfig:
    """The configuration that a run directory holds.

    Args:
        trains: whether the run is to go on. Who asks for its network alone runs no code of a method of the user's own, whose options
            are left unread then.

    Raises:
        CheckpointError: it holds none.
    """
    from .. import methods

    path = folder / "config.yaml"
    if not path.exists():
        raise CheckpointError(f"{folder} is no run directory: it holds no config.yaml; give the folder that train printed as 'run:'")
    values = read_yaml(str(path))
    name = str(values.get("method.name"))
    if ":" in name and not trains:
        return resolve(name, NoOptions, [(str(path), {k: v for k, v in values.items() if not k.startswith("method.")})])
    return resolve(name, methods.find(name).Config, [(str(path), values)])
