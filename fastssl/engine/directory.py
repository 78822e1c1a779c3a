"""A run's directory: made whole, held against a second process, never taken from anybody."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import IO

import yaml

from ..pipelines import splits
from ..pipelines.errors import ConfigError
from ..pipelines.table import write_table
from . import own_labels
from .assemble import Parts
from .report import write_atomically


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuses a directory that holds something, unless it is a run and may be replaced.

    Raises:
        ConfigError: what is there and how to go on.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give another --out")
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"{folder} exists; give another --out, --resume {folder} to go on with it, or --overwrite")
    if not (folder / "config.yaml").exists() or not (folder / "split.csv").exists():
        raise ConfigError(f"{folder} is no run of fastssl, so --overwrite leaves it alone; give another --out")


def claim(parent: Path, stem: str) -> Path:
    """Makes and returns parent/stem-N for the first N that nobody has: making it is what claims it."""
    parent.mkdir(parents=True, exist_ok=True)
    n = 1
    while True:
        try:
            (parent / f"{stem}-{n}").mkdir()
            return parent / f"{stem}-{n}"
        except FileExistsError:
            n += 1


def create(folder: Path, parts: Parts, *, overwrite: bool) -> None:
    """Makes the directory with the resolved configuration, the split and the quarantine list.

    Raises:
        ConfigError: it is there already.
    """
    check_free(folder, overwrite=overwrite)
    if folder.exists() and any(folder.iterdir()):
        take_lock(folder).close()  # a run that is being trained is not replaced
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    splits.save(parts.split, parts.source, folder / "split.csv")
    if parts.source.quarantine:
        write_table(folder / "quarantine.csv", ("path", "reason"), parts.source.quarantine)
    if parts.own_labels:
        write_table(folder / own_labels.FILE, own_labels.COLUMNS, parts.own_labels)
    # Last, because it is what makes the directory a run.
    write_atomically(folder / "config.yaml", yaml.safe_dump(parts.config.nested(), sort_keys=False))


def take_lock(folder: Path) -> IO[str]:
    """Holds the directory against a second process for as long as the file stays open.

    Raises:
        ConfigError: another process holds it.
    """
    file = open(folder / ".lock", "w")  # noqa: SIM115 - held open on purpose
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigError(f"{folder} is being trained by another process; wait for it or give another --out") from None
    return file
