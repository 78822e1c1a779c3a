"""Weights from the Hugging Face hub, through its own cache: safetensors files alone. The one door to huggingface_hub.

A file in the cache is taken as it is, whatever the network offers: a run does not change because someone uploads. The command line's
--offline and HF_HUB_OFFLINE=1 mean the same: nothing is fetched.
"""

from __future__ import annotations

import os
from pathlib import Path

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


def revision(path: Path) -> str:
    """The commit that a cached file is of, in short."""
    return path.parent.name[:8]
