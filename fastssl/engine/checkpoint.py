"""Checkpoints: written whole or not at all, checked when read, loaded without unpickling code.

A checkpoint is a folder `step-N` with `state.pt` (tensors and plain numbers) and `MANIFEST.json` (sizes, sha256, what run it is
of). It is written beside its place, flushed, and renamed: a folder of that name is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from ..pipelines.errors import CheckpointError, ResourceError

SCHEMA = 1


def save(folder: Path, step: int, state: dict[str, Any], about: dict[str, Any], *, keep: int = 2) -> Path:
    """Writes `folder/step-N` atomically and drops all but the newest `keep`.

    Args:
        state: nested dicts and lists of tensors, numbers and strings.
        about: JSON-able facts for the manifest.

    Raises:
        ResourceError: no space left; earlier checkpoints are untouched.
    """
    final = folder / f"step-{step}"
    temporary = folder / f".writing-{step}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What a killed writer left behind; the run's lock says that no other writer is at work.
        for left in (*folder.glob(".writing-*"), *folder.glob(".old-*")):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        data = temporary / "state.pt"
        with open(data, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        manifest = {"schema": SCHEMA, "step": step, **about, "files": {"state.pt": {"bytes": data.stat().st_size, "sha256": sha256(data)}}}
        with open(temporary / "MANIFEST.json", "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        flush_folder(temporary)
        if final.exists():
            # Renaming cannot replace a full folder; the old one steps aside first and goes once the new one stands.
            aside = folder / f".old-{step}-{os.getpid()}"
            os.rename(final, aside)
            os.rename(temporary, final)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(temporary, final)
        flush_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left while saving {final}; free some and run again with --resume") from error
        raise
    except RuntimeError as error:
        # torch's zip writer reports a full disk as a RuntimeError of its own.
        shutil.rmtree(temporary, ignore_errors=True)
        if shutil.disk_usage(folder).free < 1 << 20:
            raise ResourceError(f"no space left while saving {final}; free some and run again with --resume") from error
        raise
    for old in listed(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def listed(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first. Half-written ones bear another name and are not seen."""
    found = [p for p in folder.glob("step-*") if p.name[5:].isdigit() and (p / "MANIFEST.json").exists()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of one checkpoint.

    Raises:
        CheckpointError: unreadable, or of another schema.
    """
    try:
        manifest = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path / 'MANIFEST.json'}: {error}") from None
    if manifest.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} has schema {manifest.get('schema')}, and this version reads {SCHEMA}; use the fastssl that wrote it")
    return manifest


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, manifest) of one checkpoint, its bytes checked first.

    Raises:
        CheckpointError: missing, truncated or altered; the message names the file.
    """
    manifest = read_manifest(path)
    data = path / "state.pt"
    expected = manifest["files"]["state.pt"]
    if not data.exists() or data.stat().st_size != expected["bytes"] or sha256(data) != expected["sha256"]:
        raise CheckpointError(f"{data} is damaged (its size or checksum is not the one written); take an earlier checkpoint")
    try:
        return torch.load(data, map_location="cpu", weights_only=True), manifest
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{data} holds more than tensors and numbers, and is not read: {str(error).splitlines()[0]}") from None


def newest(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(state, manifest, complaints) of the newest checkpoint that can be read; complaints name the damaged newer ones.

    Raises:
        CheckpointError: there is none.
    """
    complaints: list[str] = []
    for path in reversed(listed(folder)):
        try:
            state, manifest = load(path)
            return state, manifest, complaints
        except CheckpointError as error:
            complaints.append(str(error))
    raise CheckpointError("; ".join(complaints) or f"{folder} holds no checkpoint; the run saved none yet, so train it anew")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
