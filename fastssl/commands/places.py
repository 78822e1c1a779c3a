"""Where data and weights come from: the flags --root, --download and --offline, and what they do before a command begins."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..pipelines.errors import ConfigError

# What the libraries behind hub names look at; `fastssl/models/hub.py` asks the same.
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--download and --offline; --root is an option of the configuration, and each command says what it means there."""
    parser.add_argument("--download", action="store_true", help="fetch a published set that is not in --root, with torchvision")
    parser.add_argument("--offline", action="store_true", help="fetch nothing: hub names are read from their libraries' caches alone")


def check(args: argparse.Namespace) -> None:
    """Acts on --offline, before anything wakes a hub's client.

    Raises:
        ConfigError: --offline with --download.
    """
    if args.offline and args.download:
        raise ConfigError("--offline fetches nothing and --download fetches the set; leave one of them out")
    if args.offline:
        os.environ.update(dict.fromkeys(OFFLINE, "1"))


def fetch(args: argparse.Namespace, data: Any) -> None:
    """Acts on --download for a DataConfig's set; does nothing where it is there.

    Raises:
        ConfigError: the data is no published set. SetupError: it cannot be fetched.
    """
    if not args.download:
        return
    from ..pipelines.set_facts import SETS
    from ..pipelines.torchvision_sets import download

    if data.name not in SETS:
        raise ConfigError(f"--download fetches {', '.join(SETS)}; leave it out for {data.name}")
    download(data.name, data.root, extra=data.extra)
