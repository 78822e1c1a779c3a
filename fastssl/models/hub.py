"""Weights from the Hugging Face hub, through its own cache: safetensors files alone. The one door to huggingface_hub.

A file in the cache is taken as it is, whatever the network offers: a run does not change because someone uploads. The command line's
--offline and HF_HUB_OFFLINE=1 mean the same: nothing is fetched.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..pipelines.errors import SetupError
from .probe import reason

_YES = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its switches


def offline() -> bool:
    """Whether the hub may not be asked."""
    return any(os.environ.get(name, "").upper() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def fetch(repository: str, names: tuple[str, ...], what: str) -> Path:
    """The first of the named files that the repository has, from the cache or the network.

    Args:
        repository: "owner/name", or "owner/name@revision".
        names: safetensors files in order of preference.
        what: who needs it, for errors.

    Raises:
        SetupError: offline and not in the cache; the hub cannot be reached; the repository has none of the files.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = repository.partition("@")
    revision = revision or None
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision, cache_dir=constants.HF_HUB_CACHE, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
    place = f"{names[0]} of {repository} on the Hugging Face hub"
    mend = "give --weights FILE.safetensors or --weights random"
    if offline():
        raise SetupError(f"{what} needs {place}, which is not in the cache {constants.HF_HUB_CACHE}, and this run is offline; {mend}")
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision, cache_dir=constants.HF_HUB_CACHE))
        except LocalEntryNotFoundError as error:  # no answer from the hub; a subclass of the next one
            raise SetupError(f"{what} needs {place}, which cannot be fetched ({reason(error)}); {mend}") from None
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:  # a hub's refusal, a broken connection, a full disk
            raise SetupError(f"{what} needs {place}, which cannot be fetched ({reason(error)}); {mend}") from None
    raise SetupError(f"{what}: {repository} has no {' or '.join(names)}, and weights of other formats are not read; {mend}")


SMALL = ("*.json", "*.txt", "*.model")  # descriptions and tokenizers
WEIGHTS = ("*.safetensors",)
OTHERS = ("onnx/*", "openvino/*", "coreml/*", "checkpoint-*/*", "runs/*")  # the same network in other forms


def folder(repository: str, what: str, *, weights: bool) -> Path:
    """A repository's descriptions and tokenizer as a folder, with its safetensors files where `weights`; from the cache or the network.

    Args:
        repository: "owner/name" or "name", or one of them with "@revision".

    Raises:
        SetupError: offline and not in the cache; the hub cannot be reached, or has no such repository.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    options: dict[str, Any] = {"revision": revision or None, "cache_dir": constants.HF_HUB_CACHE}
    try:
        found = Path(snapshot_download(name, local_files_only=True, **options))
    except (LocalEntryNotFoundError, OSError):
        found = None
    except HFValidationError:
        raise SetupError(f"{what}: there is no folder {name}, and it is no name on the Hugging Face hub either") from None
    if found is not None and _whole(found, weights) and (_card_known(name, options) or offline()):
        return found
    place = f"{name} on the Hugging Face hub" + (", its safetensors weights among it" if weights else "")
    if offline():
        raise SetupError(
            f"{what}: there is no folder {name}, {place} is not in the cache {constants.HF_HUB_CACHE}, and this run is offline; "
            "give a folder"
        )
    try:
        patterns = list(SMALL + (WEIGHTS if weights else ()))
        found = Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=list(OTHERS), **options))
        _card_asked(name, options)
    except (OSError, ValueError) as error:  # a hub's refusal, a broken connection, a full disk
        raise SetupError(f"{what}: there is no folder {name}, and {place} cannot be fetched ({reason(error)}); give a folder") from None
    return found


def _whole(folder: Path, weights: bool) -> bool:
    there = (folder / "config.json").is_file() or (folder / "modules.json").is_file()
    return there and (not weights or any(folder.glob("*.safetensors")) or any(folder.glob("*/*.safetensors")))


def _card_known(name: str, options: dict[str, Any]) -> bool:
    """Whether the cache knows if the repository has a card: another program may have left it the network alone."""
    from huggingface_hub import try_to_load_from_cache

    return try_to_load_from_cache(name, "modules.json", cache_dir=options["cache_dir"], revision=options["revision"]) is not None


def _card_asked(name: str, options: dict[str, Any]) -> None:
    """Lets the cache remember where a repository has no card."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        hf_hub_download(name, "modules.json", **options)
    except EntryNotFoundError:
        pass


def revision(path: Path) -> str:
    """The commit that a cached file is of, in short."""
    return path.parent.name[:8]
