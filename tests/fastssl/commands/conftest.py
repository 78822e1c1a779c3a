"""A made text set with its encoder, a run on it, and one on images: for all tests of commands on texts."""

from __future__ import annotations

import os

import pytest

from fastssl.cli import main
from tests.fastssl.text_runs import made, trained


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache of token ids of these tests' own."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def texts(tmp_path_factory, cache):
    return made(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def run(texts, tmp_path_factory):
    """A supervised run that keeps an average."""
    return trained(tmp_path_factory.mktemp("runs") / "run", texts, "--method", "supervised", "--ema", "0.5")


@pytest.fixture(scope="session")
def image_run(tmp_path_factory):
    """A run on images, of one step."""
    out = tmp_path_factory.mktemp("images") / "run"
    net = ["--model", "wrn-10-1", "--set", "data.size=8", "--labels-per-class", "2", "--steps", "1", "--quiet"]
    assert main(["train", "--method", "supervised", *net, "--out", str(out)]) == 0
    return out
