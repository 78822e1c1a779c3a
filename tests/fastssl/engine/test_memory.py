"""Memory: what is foreseen without values is what real tensors take; where it runs out, one sentence, exit 7, and a run to go on with."""

import json

import pytest
import torch
from torch import nn

from fastssl.cli import main
from fastssl.config import TrainConfig
from fastssl.engine import memory
from fastssl.engine.ledger import Ledger, Shapes, evaluation_bytes, step_bytes
from fastssl.engine.memory import Memory, mend
from fastssl.engine.step import Step
from fastssl.methods.base import Method, Stage
from fastssl.models import Network
from fastssl.models.heads import LinearHead
from fastssl.pipelines.batch import Views

CPU = torch.device("cpu")
MIB = 2**20
RUN = ["train", "--method", "supervised", "--labels-per-class", "2", "--batch-size", "8", "--steps", "4", "--quiet"]
VIEWS = Views(labelled=("weak",), unlabelled=("weak", "strong"), no_grad=1)


class Encoder(nn.Module):
    """Convolution, batch-norm, dropout: weights, buffers and randomness."""

    num_features = 5

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Dropout(0.3)

    def forward(self, x):
        return self.drop(self.norm(self.conv(x)).relu()).mean((2, 3))


def network():
    torch.manual_seed(0)
    return Network(Encoder(), LinearHead(5, 4)).train()


def shapes(rows=6, separate=False, amp=None):
    return Shapes(VIEWS, rows, 2, (3, 8, 8), CPU, amp, separate)


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_counted_without_values_as_with_them(amp):
    net, ledger = network(), Ledger()
    for tensor in [*net.parameters(), *net.buffers()]:
        ledger.leave_out(tensor)
    with ledger:
        labelled, weak, strong = torch.zeros(6, 3, 8, 8), torch.zeros(12, 3, 8, 8), torch.zeros(12, 3, 8, 8)
        with torch.autocast("cpu", dtype=amp, enabled=amp is not None, cache_enabled=False):
            logits = net(torch.cat([labelled, weak, strong])).logits
        logits.float().sum().backward()
    # Some operations of the CPU keep a few bytes apart that the shapes alone do not tell of.
    assert ledger.peak == pytest.approx(step_bytes(net, shapes(amp=amp)), rel=1e-3) and ledger.peak > 30 * 3 * 64 * 4 * 2


def test_evaluation_is_counted_to_the_byte():
    net = Network(nn.Sequential(nn.Flatten(), nn.Linear(4, 8, bias=False)), nn.Linear(8, 5, bias=False))
    assert evaluation_bytes(net, 7, (1, 2, 2), CPU, None) == 7 * 4 * (4 + 8 + 5)


def test_a_pass_without_a_graph_is_cheaper():
    assert step_bytes(network(), shapes(separate=True)) < step_bytes(network(), shapes())


def test_following_a_network_writes_nothing():
    net = network()
    before, rng = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    step_bytes(net, shapes())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state()) and all(p.grad is None for p in net.parameters())


class TwoStages(Method):
    Config = object
    views = VIEWS

    def loss(self, batch, clock):
        raise NotImplementedError

    def stage(self, k, steps):
        return [Stage(2, name="head", frozen=("network.encoder",)), Stage(2), None][k]


def foreseen(rows=6, ema=0.0, toy=None, **train):
    method = TwoStages(None, network(), toy.spec(), ema=ema, weak_pass="joint")
    return method, memory.foresee(method, TrainConfig(ratio=2, **train), views=VIEWS, image=(3, 8, 8), rows=rows)


def test_the_dearest_stage_counts_and_the_first_one_is_entered(toy, monkeypatch):
    monkeypatch.setattr(memory, "allocated", lambda device: 100 * MIB)
    method, found = foreseen(toy=toy)
    assert [p.requires_grad for p in method.network.parameters()] == [False, False, False, True, True]
    whole = network()
    # The first stage's optimiser, of the head, stays beside that of the second.
    weights, buffers = memory.size_of(whole.parameters()) + memory.size_of(whole.head.parameters()), memory.size_of(whole.buffers())
    assert found.fixed + 6 * found.per_row == pytest.approx(100 * MIB + weights + buffers + step_bytes(whole, shapes()), abs=6)
    assert found.fixed + 12 * found.per_row == pytest.approx(100 * MIB + weights + buffers + step_bytes(whole, shapes(12)), abs=12)


def test_optimiser_and_averages_are_fixed_costs(toy, monkeypatch):
    monkeypatch.setattr(memory, "allocated", lambda device: 100 * MIB)
    _, sgd = foreseen(toy=toy)
    weights = memory.size_of(network().parameters()) + memory.size_of(network().head.parameters())
    assert foreseen(toy=toy, optimizer="adamw")[1].fixed == sgd.fixed + weights
    assert foreseen(toy=toy, momentum=0.0)[1].fixed == sgd.fixed - weights
    # Averages lie in the method: here only their buffers are seen to be copied, as `allocated` is made up.
    assert foreseen(toy=toy, ema=0.9)[1].fixed == sgd.fixed + memory.size_of(network().buffers())


def test_rows_that_fit_are_rounded_down():
    found = Memory("cuda:0", rows=64, fixed=200 * MIB, per_row=10 * MIB, evaluation=100 * MIB)
    assert found.peak == 840 * MIB and found.fits(1050 * MIB) and not found.fits(1049 * MIB)
    assert found.rows_in(1000 * MIB) == 60 and found.rows_in(550 * MIB) == 24 and found.rows_in(100 * MIB) == 0
    assert found.rows_in(1000 * MIB, evaluating=True) == 50
    assert Memory("cpu", 1, 10, 1, 50).peak == 60  # evaluation may be the dearest


@pytest.mark.parametrize(
    ("batch", "rows", "space", "failed", "wanted"),
    [
        (64, 64, 550, False, "--batch-size 24 would fit (200.0 MiB fixed and 10.0 MiB a labelled image, of 550.0 MiB), and --set "
         "train.accumulate=4 keeps the batch of 64"),
        (64, 64, 9000, True, "--batch-size 32 would fit"),  # it did not, whatever the estimate says
        (64, 16, 382, True, "--batch-size 40 would fit"),  # four draws a step already: each may bring 10
        (64, 16, 382, True, "train.accumulate=8 keeps the batch of 64"),
        (7, 7, 290, True, "--batch-size 3 would fit"),
        (7, 7, 290, True, "train.accumulate=7 keeps"),  # pieces are equal
        (64, 64, 200, True, "not even --batch-size 1 would fit"),
        (1, 1, 9000, True, "not even --batch-size 1 would fit"),
    ],
)  # fmt: skip
def test_a_batch_that_would_fit(batch, rows, space, failed, wanted):
    found = Memory("cuda:0", rows=rows, fixed=200 * MIB, per_row=10 * MIB, evaluation=0)
    assert wanted in mend(found, TrainConfig(batch_size=batch), space * MIB, failed=failed)


def test_texts_are_called_texts():
    found = Memory("cpu", rows=8, fixed=200 * MIB, per_row=10 * MIB, evaluation=0, sample="text")
    assert found.said() == "about 280.0 MiB resident at the peak (200.0 MiB fixed, 10.0 MiB a labelled text)"
    assert "10.0 MiB a labelled text, of" in mend(found, TrainConfig(batch_size=8), 250 * MIB)
    told = mend(Memory("cpu", 8, 0, 1, 900 * MIB, sample="text"), TrainConfig(batch_size=8), 500 * MIB)
    assert told.startswith("evaluating up to 512 texts at once") and "data.max_length" in told


def test_a_captured_step_keeps_its_memory_while_evaluating():
    found = Memory("cuda:0", rows=10, fixed=200 * MIB, per_row=10 * MIB, evaluation=300 * MIB, captured=True)
    assert found.peak == 600 * MIB and found.rows_in(1000 * MIB) == 30
    assert Memory("cuda:0", 10, 200 * MIB, 10 * MIB, 300 * MIB).peak == 500 * MIB


def test_gradients_that_outweigh_activations_do_not_hide_what_an_image_takes():
    found = Memory("cpu", rows=1, fixed=200 * MIB, per_row=MIB, evaluation=0, after=90 * MIB)
    assert found.peak == 290 * MIB and found.rows_in(400 * MIB) == 120
    assert found.rows_in(350 * MIB) == 0, "not even the gradients fit"


def test_a_small_batch_of_a_large_network_still_has_a_slope(toy, monkeypatch):
    """Where one image's activations are less than the gradients, the line of two draws was flat."""
    monkeypatch.setattr(memory, "allocated", lambda device: 100 * MIB)
    method = toy.method("supervised", "linear").float()
    wide = nn.Sequential(nn.Flatten(), nn.Linear(27, 2000), nn.Tanh(), nn.Linear(2000, 7))
    wide.num_features = 7
    method.network.encoder = wide
    found = memory.foresee(method, TrainConfig(), views=Views(("weak",)), image=(3, 3, 3), rows=1)
    assert found.per_row >= 4 * 2000, "the hidden layer of one image"
    assert found.peak >= 100 * MIB + 2 * memory.size_of(method.parameters()), "momentum and gradients"


def test_training_that_failed_is_not_laid_at_evaluations_door():
    found = Memory("cpu", rows=4, fixed=200 * MIB, per_row=10 * MIB, evaluation=900 * MIB)
    assert not found.evaluates(1000 * MIB) and found.evaluates(1375 * MIB)
    assert mend(found, TrainConfig(batch_size=4), 1000 * MIB, failed=True).startswith("--batch-size 2 would fit")


@pytest.mark.parametrize("evaluating, room", [(False, 1000), (True, 5000)])
def test_evaluation_that_does_not_fit_is_not_laid_at_the_batchs_door(evaluating, room):
    found = Memory("cpu", rows=4, fixed=200 * MIB, per_row=10 * MIB, evaluation=900 * MIB)
    said = mend(found, TrainConfig(batch_size=4), room * MIB, failed=evaluating, evaluating=evaluating)
    assert said.startswith("evaluating up to 512 images at once takes about 1.07 GiB of") and "--batch-size" not in said


ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "host": MemoryError(),
    "allocator": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    ),
    "driver": RuntimeError("CUDA error: out of memory"),
}


def fails(error, when=1):
    """A function that raises at its `when`-th call, and what it stands for until then."""

    def make(real):
        calls = []

        def function(*args, **options):
            calls.append(1)
            if len(calls) == when:
                raise error
            return real(*args, **options)

        return function

    return make


def ended(capsys, folder, doing, step):
    (line,) = capsys.readouterr().err.strip().splitlines()
    mend = "evaluating up to 512 images" if doing == "evaluating" else "--batch-size "
    assert line.startswith(f"fastssl: out of memory on cpu while {doing}, after step {step}: {mend}")
    if doing != "evaluating":
        assert " would fit (" in line and "--set train.accumulate=" in line and "keeps the batch of 8" in line
    status = json.loads((folder / "STATUS.json").read_text())
    assert status["state"] == "failed" and status["step"] == step and "out of memory" in status["reason"]
    assert (folder / "config.yaml").exists() and (folder / "split.csv").exists()


@pytest.mark.parametrize("name", ["cuda", "host"])
def test_out_of_memory_in_a_step(tmp_path, capsys, monkeypatch, name):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", fails(ERRORS[name], when=3)(Step.__call__))
        assert main([*RUN, "--set", "train.save_every=1", "--out", str(folder)]) == 7
    ended(capsys, folder, "training", 2)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-1", "step-2"]
    assert main(["train", "--resume", str(folder), "--quiet"]) == 0
    assert json.loads((folder / "STATUS.json").read_text())["state"] == "finished"


def test_out_of_memory_in_preparing_and_evaluating(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("fastssl.engine.modes.prepare", fails(ERRORS["cuda"])(None))
        assert main([*RUN, "--out", str(tmp_path / "a")]) == 7
    ended(capsys, tmp_path / "a", "preparing", 0)
    monkeypatch.setattr("fastssl.engine.run.logits_of", fails(ERRORS["allocator"])(None))
    assert main([*RUN, "--set", "train.eval_every=2", "--out", str(tmp_path / "b")]) == 7
    ended(capsys, tmp_path / "b", "evaluating", 2)


def test_out_of_memory_in_a_dry_run(capsys, monkeypatch):
    monkeypatch.setattr(Step, "__call__", fails(ERRORS["cuda"])(Step.__call__))
    assert main([*RUN, "--dry-run"]) == 7
    assert "fastssl: out of memory on cpu while training, after step 0: --batch-size " in capsys.readouterr().err


def test_other_errors_are_left_alone(tmp_path, capsys, monkeypatch):
    assert all(map(memory.out_of_memory, ERRORS.values()))
    assert not memory.out_of_memory(RuntimeError("shape mismatch")) and not memory.out_of_memory(ValueError("can't allocate memory"))
    monkeypatch.setattr(Step, "__call__", fails(RuntimeError("shape mismatch"))(Step.__call__))
    assert main([*RUN, "--out", str(tmp_path / "run")]) == 1
    assert "unexpected RuntimeError: shape mismatch" in capsys.readouterr().err


def test_a_run_says_what_it_will_take_and_what_it_took(tmp_path, capsys):
    assert main([*RUN, "--json", "--out", str(tmp_path / "run")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    first, last = (line for line in log if line.startswith("memory: "))
    assert "resident at the peak (" in first and "fixed" in first and "that cpu has for it" in first
    assert 50e6 < result["peak_memory_bytes"] < 1e12
    assert last.startswith(f"memory: {memory.told(result['peak_memory_bytes'])} at the peak (resident in this process")


def test_a_run_that_will_hardly_fit_is_warned_of(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "room", lambda device: 1000)
    assert main([*RUN, "--out", str(tmp_path / "run")]) == 0
    assert "warning: this run will hardly fit into memory: not even --batch-size 1 would fit" in capsys.readouterr().err


def test_a_network_that_cannot_be_followed_is_trained_all_the_same(tmp_path, capsys, monkeypatch):
    def refuse(*args):
        raise ValueError("no shapes here\nand more")

    monkeypatch.setattr(memory, "step_bytes", refuse)
    monkeypatch.setattr(Step, "__call__", fails(ERRORS["cuda"], when=2)(Step.__call__))
    assert main([*RUN, "--out", str(tmp_path / "run")]) == 7
    assert "after step 1; take a smaller --batch-size or --ratio, or --set train.accumulate=2" in capsys.readouterr().err
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "memory: not foreseen, as this network cannot be followed without values (ValueError: no shapes here)" in log
