"""SimCLR and SimCLRv2 as `fastssl train` runs them: stops inside every stage, a teacher of another make, and an encoder for other runs."""

import json

import pytest
import torch

from fastssl.cli import main
from tests.fastssl.engine.test_run import flat, records, state_of

NET = ["--set", "data.size=8", "--set", "model.batchnorm_momentum=0.1", "--lr", "0.1", "--quiet"]
SHORT = [*NET, "--labels-per-class", "2", "--batch-size", "4", "--ratio", "2", "--steps", "6", "--set", "train.eval_every=6"]
THIRDS = ["--set", "method.fine_tune_share=0.33", "--set", "method.distil_share=0.33"]
CASES = {
    "self": ("wrn-10-1", []),
    "another teacher": ("wrn-10-1", ["--set", "method.teacher_model=wrn-10-2"]),
    "labels too, averaged": ("wrn-10-1", ["--set", "method.alpha=0.5", "--ema", "0.9"]),
}


def run(folder, method, *more):
    assert main(["train", "--method", method, *more, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_bit_for_bit_inside_every_stage_and_between_them(tmp_path, case):
    model, more = CASES[case]
    flags = ["--model", model, *SHORT, *THIRDS, *more]
    whole = run(tmp_path / "whole", "simclrv2", *flags)
    reference = flat(state_of(whole))
    for stop in (1, 2, 3, 4, 5):
        broken = run(tmp_path / f"stopped{stop}", "simclrv2", *flags, "--set", f"train.stop_at={stop}")
        halfway = flat(state_of(broken))
        assert halfway["/run/stage_index"] == (stop - 1) // 2
        assert main(["train", "--resume", str(broken), "--quiet"]) == 0
        resumed = flat(state_of(broken))
        assert resumed.keys() == reference.keys()
        for key, value in reference.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, resumed[key]), (stop, key)
        assert records(whole) == records(broken)
        log = (broken / "log.txt").read_text()
        assert [log.count(f"simclrv2, stage {k} of 3, ") for k in (1, 2, 3)] == [1, 1, 1], "each is prepared once"


def test_the_student_is_what_is_kept(tmp_path, capsys):
    """The network of --model is judged, evaluated and exported, its hidden layer with it; the teacher's accuracy stands in the table."""
    out = run(tmp_path / "run", "simclrv2", "--model", "wrn-10-1", *SHORT, *THIRDS, *CASES["another teacher"][1])
    state, last = state_of(out)["method"], json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert state["teacher.stem.weight" if "teacher.stem.weight" in state else "teacher.encoder.stem.weight"].shape[0] == 16
    assert state["teacher.head.linear.weight"].shape == (128, 128) and state["network.head.linear.weight"].shape == (64, 64)
    assert [row["name"] for row in last["rounds"]] == ["contrast", "fine_tune", "distil"]
    assert last["rounds"][2]["accuracy"] == last["accuracy"]
    assert "head: projected" in (out / "config.yaml").read_text(), "what eval, predict and export build it from"
    capsys.readouterr()
    assert main(["eval", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] == pytest.approx(last["accuracy"])
    assert main(["export", str(out), "--out", str(tmp_path / "net.safetensors"), "--json"]) == 0
    about = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert about["head"] == "projected" and about["files"] == ["net.safetensors", "net.head.safetensors"]


def test_its_encoder_starts_another_run(tmp_path, capsys):
    """Contrast alone, exported: another method's network begins with its encoder, batch-norm's statistics and all."""
    out = run(tmp_path / "run", "simclr", "--model", "wrn-10-1", *SHORT, "--set", "method.fine_tune_share=0")
    file = tmp_path / "encoder.safetensors"
    assert main(["export", str(out), "--out", str(file), "--network", "raw"]) == 0
    other = run(tmp_path / "other", "finessl", "--model", "wrn-10-1", "--weights", str(file), *SHORT, "--set", "train.stop_at=1")
    log = (other / "log.txt").read_text()
    assert f"weights {file}: " in log and "keep their random start" not in log
    moved = state_of(out)["method"]
    begun = state_of(run(tmp_path / "still", "supervised", "--model", "wrn-10-1", "--weights", str(file), *SHORT, "--tune", "linear"))
    for key, value in begun["method"].items():
        if key.startswith("network.encoder.") and not key.endswith("num_batches_tracked"):
            assert torch.equal(value, moved[key]), key


def test_linear_evaluation_trains_the_head_alone(tmp_path):
    """Fine-tuning then leaves the encoder as contrast made it, batch-norm's statistics and all."""
    flags = ["--model", "wrn-10-1", *SHORT, "--set", "method.tuned=head", "--set", "method.fine_tune_share=0.5", "--set", "train.keep=9"]
    out = run(tmp_path / "run", "simclr", *flags, "--set", "train.save_every=3")
    half = run(tmp_path / "half", "simclr", *flags, "--set", "train.stop_at=3")
    first, last = state_of(half)["method"], state_of(out)["method"]
    for key, value in last.items():
        if key.startswith("network.encoder."):
            assert torch.equal(value, first[key]), key
    assert not torch.equal(last["network.head.weight"], first["network.head.weight"])
