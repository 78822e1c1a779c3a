"""A network so small that a run takes a fraction of a second, and what the tests of sweeps ask of a sweep's directory."""

from __future__ import annotations

import json
import sys

import pytest

from fastssl.cli import main
from fastssl.engine import checkpoint

NET = """
import os, signal
from torch import nn

class Net(nn.Sequential):
    num_features = 16
    input_size = 8
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, 16), nn.Tanh())

def dies():
    os.kill(os.getpid(), signal.SIGKILL)
"""
SMALL = ["--model", "sweep_net:Net", "--labels-per-class", "2", "--batch-size", "8", "--ratio", "1", "--steps", "4", "--device", "cpu"]
SMALL += ["--set", "train.report_every=2", "--set", "train.save_every=2"]


@pytest.fixture
def net(tmp_path, monkeypatch):
    """The tiny network's module, where this process and those that it starts find it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sweep_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield tmp_path / "modules"
    sys.modules.pop("sweep_net", None)


def sweep(out, *words):
    """Exit code of `fastssl sweep` of small runs."""
    return main(["sweep", *SMALL, "--out", str(out), *words])


def results(out):
    """name -> result of each finished run."""
    found = {}
    for path in sorted((out / "runs").glob("*/metrics.jsonl")):
        for record in map(json.loads, path.read_text().splitlines()):
            if record["event"] == "result":
                found[path.parent.name] = record
    return found


def weights(folder):
    """The state of a run's method at its newest checkpoint."""
    return checkpoint.newest(folder / "checkpoints")[0]["method"]
