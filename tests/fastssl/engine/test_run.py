"""Runs through the command line's own entry: resume bit for bit, learning, skipped steps, signals, files."""

import json
import os
import signal
import threading

import pytest
import torch
import yaml

from fastssl.cli import main
from fastssl.engine import checkpoint

SMALL = ["--labels-per-class", "2", "--batch-size", "8", "--ratio", "2", "--steps", "6", "--quiet", "--set", "train.report_every=2"]
RUNS = {
    "finessl": ["--method", "finessl", "--amp", "bf16", "--set", "method.pace_reset=4"],
    "fixmatch": ["--method", "fixmatch", "--model", "wrn-28-2", "--set", "data.size=8", "--set", "method.threshold=0.2", "--ema", "0.9"],
    "supervised": ["--method", "supervised", "--set", "train.optimizer=adamw", "--lr", "0.001", "--ema", "0.9"],
}


def state_of(folder):
    return checkpoint.newest(folder / "checkpoints")[0]


def flat(value, prefix=""):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}/{key}").items()}
    return {prefix: value}


def records(folder):
    timeless = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["event"] != "result":
            timeless.append({k: v for k, v in record.items() if k not in ("seconds", "images_per_second")})
    return timeless


@pytest.mark.parametrize("name", RUNS)
def test_stop_and_resume_equals_an_unbroken_run_bit_for_bit(tmp_path, name):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["train", *RUNS[name], *SMALL, "--out", str(whole)]) == 0
    assert main(["train", *RUNS[name], *SMALL, "--out", str(broken), "--set", "train.stop_at=3"]) == 0
    assert json.loads((broken / "STATUS.json").read_text())["state"] == "stopped"
    assert main(["train", "--resume", str(broken), "--quiet"]) == 0
    a, b = flat(state_of(whole)), flat(state_of(broken))
    assert a.keys() == b.keys()
    compared = 0
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, b[key]), key
            compared += 1
        elif "seconds" not in key and "curve" not in key:
            assert value == b[key], key
    assert compared > 20
    assert records(whole) == records(broken) and len(records(whole)) > 5
    assert json.loads((broken / "STATUS.json").read_text())["state"] == "finished"


def test_a_finished_run_has_nothing_left_to_do(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", *RUNS["supervised"], *SMALL, "--out", str(folder)]) == 0
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert main(["train", "--resume", str(folder)]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_another_thread_count_warns(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", *RUNS["supervised"], *SMALL, "--out", str(folder), "--set", "train.stop_at=2"]) == 0
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert main(["train", "--resume", str(folder)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert f"saved with {threads} threads and resumed with {threads + 1}" in capsys.readouterr().err


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    folder = tmp_path / "run"
    more = ["--set", "train.save_every=2", "--set", "train.stop_at=4"]
    assert main(["train", *RUNS["supervised"], *SMALL, *more, "--out", str(folder)]) == 0
    os.truncate(folder / "checkpoints" / "step-4" / "state.pt", 50)
    assert main(["train", "--resume", str(folder)]) == 0
    assert "step-4" in (text := capsys.readouterr().err) and "going on from step 2" in text


def test_an_edited_split_is_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", *RUNS["supervised"], *SMALL, "--out", str(folder), "--set", "train.stop_at=2"]) == 0
    lines = (folder / "split.csv").read_text().splitlines()
    kept = [line for line in lines if "labelled" in line]
    lines.remove(kept[0])
    (folder / "split.csv").write_text("\n".join(lines) + "\n")
    assert main(["train", "--resume", str(folder)]) == 6
    assert "split_hash" in capsys.readouterr().err


def test_resume_keeps_its_configuration(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", *RUNS["supervised"], *SMALL, "--out", str(folder), "--set", "train.stop_at=2"]) == 0
    assert main(["train", "--resume", str(folder), "--lr", "0.5"]) == 2
    assert "train.lr: 0.001 -> 0.5" in capsys.readouterr().err
    assert main(["train", "--resume", str(folder), "--method", "fixmatch"]) == 6
    assert "holds a run of supervised, not fixmatch" in capsys.readouterr().err


def test_the_written_configuration_runs_again(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", *RUNS["finessl"], *SMALL, "--out", str(first)]) == 0
    assert main(["train", "--config", str(first / "config.yaml"), "--quiet", "--out", str(second)]) == 0
    assert yaml.safe_load((first / "config.yaml").read_text()) == yaml.safe_load((second / "config.yaml").read_text())
    a, b = flat(state_of(first)["method"]), flat(state_of(second)["method"])
    assert all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize(("number", "code", "state"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "preempted")])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, capsys, number, code, state):
    folder = tmp_path / "run"
    long = [w if w != "6" else "5000" for w in SMALL]

    over = threading.Event()

    def send():
        while not (folder / "metrics.jsonl").exists():
            if over.wait(0.05):
                return
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        assert main(["train", *RUNS["supervised"], *long, "--out", str(folder)]) == code
    finally:
        over.set()
        thread.join()
    assert "--resume" in capsys.readouterr().err
    status = json.loads((folder / "STATUS.json").read_text())
    assert status["state"] == state and checkpoint.listed(folder / "checkpoints")[-1].name == f"step-{status['step']}"


def test_divergence_ends_with_exit_5_and_names_the_last_good_checkpoint(tmp_path, capsys):
    folder = tmp_path / "run"
    args = ["--lr", "1e30", "--set", "train.max_skipped=2", "--set", "train.optimizer=sgd", "--steps", "12", "--set", "train.save_every=1"]
    assert main(["train", *RUNS["supervised"][:2], *SMALL, *args, "--out", str(folder)]) == 5
    assert "not finite" in (text := capsys.readouterr().err) and "train anew" in text
    assert json.loads((folder / "STATUS.json").read_text())["state"] == "diverged"
    assert all(torch.isfinite(v).all() for v in state_of(folder)["method"].values() if v.is_floating_point())


def test_result_line_and_files(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", *RUNS["finessl"], *SMALL, "--out", str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    wanted = "run_dir method data model steps seconds images_per_second accuracy labels".split()
    assert all(result[key] is not None for key in wanted)
    assert (result["method"], result["steps"], result["labels"]) == ("finessl", 6, 20)
    for name in ("config.yaml", "split.csv", "metrics.jsonl", "log.txt", "STATUS.json", "checkpoints/step-6/MANIFEST.json"):
        assert (folder / name).exists(), name


LEARNING = {
    "supervised": (["--model", "wrn-28-2", "--set", "data.size=8", "--labels-per-class", "20", "--steps", "60"], 0.7),
    "fixmatch": (["--model", "wrn-28-2", "--set", "data.size=8", "--labels-per-class", "10", "--steps", "60"], 0.6),
    # From random heads, without the text tower's help: untrained they guess.
    "finessl": (["--labels-per-class", "4", "--steps", "40", "--set", "model.head_init=random"], 0.8),
}


@pytest.mark.parametrize("name", LEARNING)
def test_learns_on_digits(tmp_path, capsys, name):
    args, floor = LEARNING[name]
    assert main(["train", "--method", name, "--amp", "bf16", *args, "--quiet", "--json", "--out", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] > floor


def assembled(name):
    from fastssl.cli import parser
    from fastssl.commands.train import configure
    from fastssl.engine.assemble import assemble
    from fastssl.engine.run import Run

    return Run(assemble(configure(parser().parse_args(["train", *RUNS[name], *SMALL]))), None, quiet=True)


@pytest.mark.parametrize("name", ["finessl", "fixmatch"])
def test_a_skipped_step_leaves_no_trace_in_memory(monkeypatch, name):
    """NaN images reach banks and batch-norm statistics inside the step; afterwards all is as before, and the step is counted."""
    run = assembled(name)
    run.step()
    before = {k: v.clone() for k, v in run.method.state_dict().items()}
    batch = run.pipeline.draw()
    poisoned = batch._replace(labelled=(batch.labelled[0] * float("nan"),))
    monkeypatch.setattr(run.pipeline, "draw", lambda: poisoned)
    run.step()
    assert not run.update.ok and run.step.streak == 1
    for key, value in run.method.state_dict().items():
        assert torch.equal(value, before[key]), key
    monkeypatch.setattr(run.pipeline, "draw", lambda: batch)
    run.step()
    assert run.update.ok and run.step.streak == 0
    changed = [k for k, v in run.method.state_dict().items() if not torch.equal(v, before[k])]
    assert any("running_mean" in k or "bank" in k or "pace" in k for k in changed), "the same batch, clean, does write memory"
    assert run.step.read()["skipped"] == pytest.approx(1 / 3)


def test_global_generator_is_taken_up_again(tmp_path):
    from fastssl.commands.train import saved_config
    from fastssl.engine.run import resume

    folder = tmp_path / "run"
    assert main(["train", *RUNS["supervised"], *SMALL, "--out", str(folder), "--set", "train.stop_at=2"]) == 0
    saved = state_of(folder)["rng"]
    torch.rand(3)
    run = resume(saved_config(folder), folder, quiet=True)
    assert torch.equal(torch.get_rng_state(), saved)
    run.lock.close()


def test_quiet_silences_progress_but_no_warning(tmp_path, capsys):
    args = [*RUNS["supervised"][:2], "--labels-total", "11", "--sampling", "uniform", "--steps", "1", "--quiet"]
    assert main(["train", *args, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err.splitlines()
    assert any("without a label" in line for line in said) and all("warning" in line for line in said)


def test_a_full_disk_is_exit_7_and_the_reason_is_not_hidden(tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    folder = tmp_path / "run"
    from fastssl.engine import checkpoint as writer
    from fastssl.engine import report

    real = report.os.fsync
    # The disk fills when the first checkpoint is written, and stays full for the status that would follow it.
    monkeypatch.setattr(writer, "sha256", lambda path: monkeypatch.setattr(report.os, "fsync", full) or "")
    assert main(["train", *RUNS["supervised"], *SMALL, "--out", str(folder)]) == 7
    monkeypatch.setattr(report.os, "fsync", real)
    assert "no space left" in capsys.readouterr().err
    assert json.loads((folder / "STATUS.json").read_text())["state"] == "running" and not list(folder.glob(".STATUS*"))


@pytest.mark.parametrize("name", RUNS)
def test_no_host_read_in_loss_update_and_memory(monkeypatch, name):
    """No tensor becomes a Python number inside a step's loss, update and memory: each such read would make CUDA wait."""
    run = assembled(name)
    run.step()
    batch = run.pipeline.draw()  # on the CPU the views may group rows by operation; on a device they come by one kernel
    monkeypatch.setattr(run.pipeline, "draw", lambda: batch)

    # The CPU's own closed forms read values, which costs nothing there; the reference stands in for a device's kernels. On the CPU, and
    # there alone, a label out of range is looked for at once (kernels' contract).
    monkeypatch.setenv("FASTSSL_KERNELS", "reference")
    monkeypatch.setattr("fastssl.kernels._check.labels_in_range", lambda *args: None)

    def refuse(self, *args, **kwargs):
        raise AssertionError("host read inside a step")

    for attribute in ("item", "__bool__", "__int__", "__float__", "tolist", "__index__"):
        monkeypatch.setattr(torch.Tensor, attribute, refuse)
    run.step()
