"""A sweep in several processes: the same figures, a process that dies, and Ctrl-C in a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastssl.cli import main
from fastssl.engine import checkpoint, grid_jobs
from fastssl.engine.grid import Outcome
from tests.fastssl.sweep_cases import SMALL, net, results, sweep  # noqa: F401 - net is a fixture

pytestmark = pytest.mark.usefixtures("net")
ROOT = Path(__file__).resolve().parents[3]


def test_processes_share_the_work_and_one_that_dies_takes_one_run_along(tmp_path, capsys):
    out = tmp_path / "s"
    words = [
        "--method",
        "fixmatch",
        "--variant",
        "dies: model.name=sweep_net:dies",
        "--variant",
        "a: train.lr=0.05",
        "--variant",
        "b: train.lr=0.5",
    ]
    small = [word for word in SMALL if word not in ("--model", "sweep_net:Net")]
    words = [word + (" model.name=sweep_net:Net" if word[:2] in ("a:", "b:") else "") for word in words]
    assert main(["sweep", *small, *words, "--jobs", "2", "--out", str(out), "--json"]) == 7
    table = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["n"] for row in table["rows"]] == [0, 1, 1] and "signal 9" in table["rows"][0]["failures"][0]["reason"]
    assert sweep(tmp_path / "one", "--method", "fixmatch", "--set", "train.lr=0.05,0.5") == 0
    ours = [r["accuracy"] for r in results(out).values()]
    assert ours == [r["accuracy"] for r in results(tmp_path / "one").values()] and len(ours) == 2


def test_ctrl_c_reaches_every_process_once(tmp_path):
    out = tmp_path / "s"
    words = [*SMALL, "--method", "supervised", "--seeds", "0-3", "--jobs", "2", "--out", str(out), "--set", "train.eval_every=100000"]
    words = ["100000" if word == "4" else word.replace("save_every=2", "save_every=100000") for word in words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path / "modules"))), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "fastssl", "sweep", *words], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        end = time.monotonic() + 120
        while len(list((out / "runs").glob("*/metrics.jsonl"))) < 2:
            assert process.poll() is None and time.monotonic() < end, "both processes begin to train"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group
        said = process.communicate(timeout=60)[1]
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 130 and "stopped with 0 of 4 runs finished" in said and "Traceback" not in said
    for seed in (0, 1):
        folder = out / "runs" / f"supervised-seed{seed}"
        assert json.loads((folder / "STATUS.json").read_text())["state"] == "interrupted" and checkpoint.listed(folder / "checkpoints")
    assert not (out / "runs" / "supervised-seed2").exists()


class Prompt:
    """Stands for a process: a cell is finished as soon as it begins."""

    def __init__(self, root, threads, checkpoints):
        self.pipe, self.theirs = Pipe()
        self.cell, self.process = None, SimpleNamespace(is_alive=lambda: True, join=lambda: None, kill=lambda: None, pid=os.getpid())

    def begin(self, cell):
        self.cell = cell
        self.theirs.send(Outcome(cell.name, "finished"))

    def outcome(self, *, stopping):
        self.cell = None
        return self.pipe.recv()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_between_two_runs_stops_the_rest(tmp_path, monkeypatch, number, code):
    monkeypatch.setattr(grid_jobs, "Worker", Prompt)
    cells = [SimpleNamespace(name=name) for name in "abc"]
    handlers = [signal.getsignal(n) for n in grid_jobs.SIGNALS]
    ended = []
    for outcome in grid_jobs.in_processes(cells, tmp_path, jobs=1):
        ended.append((outcome.name, outcome.state, outcome.code))
        if outcome.name == "a":
            os.kill(os.getpid(), number)
    assert ended == [("a", "finished", 0), ("b", "stopped", code)]
    assert [signal.getsignal(n) for n in grid_jobs.SIGNALS] == handlers
