"""The gate of float8 by the command line's own entry, with float8 emulated: it lets through or ends the run, and leaves no trace."""

import functools
import json

import pytest
import torch

from fastssl.cli import main, parser
from fastssl.commands.train import configure
from fastssl.engine import checkpoint, gradient_gate, modes
from fastssl.engine.assemble import assemble
from fastssl.engine.putback import written
from fastssl.engine.run import Run
from fastssl.models import fp8

pytest.importorskip("torchao", reason="torchao comes with the test extra: pip install '.[test]'")
RUN = ["train", "--method", "finessl", "--amp", "bf16", "--labels-per-class", "2", "--batch-size", "8", "--ratio", "2", "--steps", "6"]


@pytest.fixture
def emulated(monkeypatch):
    """Float8 as numbers, on a device that lacks it: what `--device cpu` refuses."""
    monkeypatch.setattr(fp8, "demand", lambda device: None)
    monkeypatch.setattr(fp8, "convert", functools.partial(fp8.convert, emulate=True))


def asked(form):
    return [*RUN, "--set", f"train.fp8={form}"]


def run_of(form):
    return Run(assemble(configure(parser().parse_args(asked(form)))), None, quiet=True)


def test_backward_passes_and_full_does_not(emulated):
    found = {}
    for form in fp8.FORMS:
        step = run_of(form).step
        before, rng = [t.clone() for t in written(step)], torch.get_rng_state()
        drawn = step.pipeline.state_dict()
        ours = gradient_gate.gradient(step)
        with fp8.plain(step.method):
            theirs = gradient_gate.gradient(step)
        found[form] = gradient_gate.cosine(ours, theirs)
        assert all(torch.equal(a, b) for a, b in zip(before, written(step), strict=True)) and torch.equal(rng, torch.get_rng_state())
        assert all(torch.equal(value, step.pipeline.state_dict()[name]) for name, value in drawn.items())
        assert all(p.grad is None for p in step.method.parameters())
    assert found["backward"] >= gradient_gate.LEAST > found["full"] > 0.98
    assert found["backward"] < 1 - 1e-6, "nothing was in float8"


def test_without_float8_the_cosine_is_one():
    step = run_of("off").step
    assert gradient_gate.cosine(gradient_gate.gradient(step), gradient_gate.gradient(step)) == pytest.approx(1.0, abs=1e-12)


def test_cosine_by_hand():
    a, b = [torch.tensor([3.0]), torch.tensor([4.0, 0.0])], [torch.tensor([3.0]), torch.tensor([0.0, 4.0])]
    assert gradient_gate.cosine(a, b) == pytest.approx(9 / 25)
    for bad in ([torch.zeros(1), torch.zeros(2)], [torch.tensor([torch.nan]), torch.zeros(2)]):
        assert not gradient_gate.cosine(a, bad) >= -1


def test_a_failing_gate_ends_the_run(emulated, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*asked("full"), "--quiet", "--out", str(folder)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("fastssl: train.fp8=full: the cosine between the gradients with and without float8 is 0.99")
    assert said.endswith("and at least 0.999 is wanted; take train.fp8=backward or leave it off")
    assert json.loads((folder / "STATUS.json").read_text())["state"] == "failed"
    assert not list((folder / "checkpoints").glob("*"))


def test_a_run_trains_stops_and_goes_on(emulated, tmp_path, capsys, monkeypatch):
    """Resumed bit for bit; the checkpoint is an ordinary one, and eval, which knows nothing of float8, finds the run's own accuracy."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    common = [*asked("backward"), "--set", "train.eval_every=3"]
    assert main([*common, "--out", str(whole), "--json"]) == 0
    text = capsys.readouterr()
    accuracy = json.loads(text.out.strip().splitlines()[-1])["accuracy"]
    assert "fp8 backward in 12 frozen layers: the gradient's cosine against bf16 is 0.999" in text.err
    assert main([*common, "--quiet", "--out", str(broken), "--set", "train.stop_at=3"]) == 0
    assert main(["train", "--resume", str(broken)]) == 0
    assert "cosine" not in capsys.readouterr().err, "a run that goes on has passed the gate"
    a, b = (checkpoint.newest(folder / "checkpoints")[0]["method"] for folder in (whole, broken))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    bare = assemble(configure(parser().parse_args(RUN))).method
    bare.load_state_dict(a, strict=True)
    assert {type(v) for v in a.values()} == {torch.Tensor}
    monkeypatch.undo()
    assert main(["eval", str(whole), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["accuracy"] == accuracy


def test_compiled_steps_are_not_compiled_again_after_an_evaluation_without_float8(emulated):
    ends = []
    for mode in ("eager", "compile"):
        run = run_of("backward")
        run.method.train()
        modes.prepare(run.step, mode, pytest.fail, backend="aot_eager")
        with torch.compiler.set_stance("fail_on_recompile"):
            run.step()
            accuracy = run.result()["accuracy"]
            run.step()
        ends.append((accuracy, [p.detach().clone() for p in run.update.parameters]))
        assert len(fp8.converted(run.method)) == 12
    assert ends[0][0] == ends[1][0]
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        assert (a - b).norm() < 5e-3 * a.norm()  # compiled bf16 rounds in other places


def test_refusals_come_before_a_run_directory(tmp_path, capsys):
    folder = tmp_path / "run"
    for extra, code, words in (
        (["--set", "train.fp8=backward"], 4, "train.fp8 needs a CUDA device with float8, and this run is on cpu"),
        (["--set", "train.fp8=backward", "--tune", "full"], 2, "--tune full leaves none in glyph_clip"),
        (["--set", "train.fp8=full", "--model", "wrn-28-2", "--tune", "full"], 2, "transformer blocks"),
        (["--set", "train.fp8=on"], 2, "train.fp8"),
    ):
        assert main([*RUN, "--device", "cpu", *extra, "--out", str(folder)]) == code
        assert words in capsys.readouterr().err
    assert not folder.exists()
