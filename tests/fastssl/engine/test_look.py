"""What a method may do between stages: look at the data, once, and draw from another split afterwards."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastssl.cli import main
from fastssl.config import option
from fastssl.engine import sweep
from fastssl.engine.look import Look
from fastssl.methods.base import Method, Stage, Terms
from fastssl.methods.bricks.options import MethodOptions
from fastssl.models import Network, Output, Report
from fastssl.pipelines import sources, splits
from fastssl.pipelines.batch import Views
from fastssl.pipelines.errors import DataError
from fastssl.pipelines.resident import ResidentPipeline
from tests.fastssl.engine.test_run import flat, records, state_of

VIEWS = Views(("weak",), ("weak",))


@pytest.fixture(scope="module")
def digits():
    source = sources.load("digits", size=8)
    return source, splits.make(source, per_class=3)


class Restless(nn.Module):
    """An encoder that asks for random numbers in evaluation too, and whose parts are in different modes."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.seen = []

    def forward(self, x):
        torch.rand(3)
        self.seen.append((len(x), [m.training for m in self.modules()]))
        return self.layers(x)


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = Network(Restless(), nn.Linear(6, 10))
    made.train()
    made.encoder.layers[2].eval()  # held in evaluation by its owner
    return made


def look_of(digits, network, **options):
    source, split = digits
    pipeline = ResidentPipeline(source, split, VIEWS, batch_size=4, **options)
    return Look(pipeline, split, network)


def test_it_sees_what_evaluation_sees_in_the_order_of_the_data(digits, network):
    look = look_of(digits, network)
    source, split = digits
    for part in ("labelled", "unlabelled", "train"):
        index, logits = look(part)
        expected, _, rows = sweep.logits_of(network, look.pipeline, part)
        assert torch.equal(index, rows) and torch.equal(logits, expected) and not logits.requires_grad
    wanted = split.unlabelled[[900, 3, 17, 3]]
    index, logits = look(wanted, batch_size=3)
    assert index.tolist() == wanted.tolist()
    torch.testing.assert_close(logits[1], logits[3], rtol=1e-5, atol=1e-6)
    inputs = (torch.from_numpy(source.images[wanted]).float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(logits, network.eval()(inputs).logits, rtol=1e-4, atol=1e-5)
    assert not torch.equal(look(wanted, view="weak")[1], logits) and torch.equal(look(wanted, view="weak")[1], look(wanted, view="weak")[1])


def test_what_is_reduced_is_all_that_is_held(digits, network):
    look = look_of(digits, network)
    pieces = []

    def reduce(out, label, index):
        assert isinstance(out, Output) and len(out.features) == len(label) == len(index) and out.logits.dtype == torch.float32
        pieces.append(len(index))
        return out.logits.amax(1), label

    index, most, label = look("train", reduce=reduce, batch_size=500)
    assert pieces == [500, 500, 347] and most.shape == label.shape == (1347,)
    source, split = digits
    given = dict(zip(split.labelled.tolist(), split.label.tolist(), strict=True))
    assert label.tolist() == [given.get(row, -1) for row in index.tolist()], "labels that the split hides are hidden here"
    amp = Look(look.pipeline, split, network, torch.bfloat16)("labelled")[1]
    assert amp.dtype == torch.float32 and torch.equal(amp, sweep.logits_of(network, look.pipeline, "labelled", amp=torch.bfloat16)[0])


def test_nothing_is_left_behind(digits, network):
    look = look_of(digits, network)
    modes, state = [m.training for m in network.modules()], torch.get_rng_state()
    step, memory = look.pipeline.step.clone(), {k: v.clone() for k, v in network.state_dict().items()}
    look("labelled")
    assert all(not any(inside) for _, inside in network.encoder.seen), "all of it in evaluation"
    assert [m.training for m in network.modules()] == modes and modes.count(False) == 1
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(look.pipeline.step, step)
    assert all(torch.equal(value, memory[key]) for key, value in network.state_dict().items())
    assert torch.is_grad_enabled()

    def broken(out, label, index):
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        look("labelled", reduce=broken)
    assert [m.training for m in network.modules()] == modes and torch.equal(torch.get_rng_state(), state)


def test_another_network_can_be_looked_through(digits, network):
    look, other = look_of(digits, network), Network(Restless(), nn.Linear(6, 10))
    assert torch.equal(look("labelled", other)[1], sweep.logits_of(other, look.pipeline, "labelled")[0])
    assert not network.encoder.seen


def test_test_rows_and_no_rows_are_refused(digits, network):
    look = look_of(digits, network)
    test = digits[1].test
    for rows in ("test", test[:1], np.array([0, int(test[5])])):
        with pytest.raises(ValueError, match="may not look at test rows"):
            look(rows)
    with pytest.raises(ValueError, match="no row to look at"):
        look(np.array([], np.int64))
    look.pipeline.sweep = lambda *a: iter(())
    with pytest.raises(DataError, match="none of the 30 images"):
        look("labelled")


@dataclass(frozen=True)
class Config(MethodOptions):
    part: float = option(0.5, "share of the unlabelled rows that are drawn in each stage")


class Choosing(Method):
    """Three stages of two steps, the last as the first; before each, other unlabelled rows are chosen by what the network says of them."""

    Config = Config
    summary, paper, views = "test", "none", VIEWS
    calls = []  # of all runs: (k, rows drawn so far)

    def __init__(self, config, network, spec, **options):
        super().__init__(config, network, spec, **options)
        self.register_buffer("chosen", torch.ones(spec.rows, dtype=torch.bool))
        self.register_buffer("length", torch.zeros((), dtype=torch.int64))
        self.drawn = []

    def stage(self, k, steps):
        if k > 2:
            return None
        return Stage(int(self.length) if k == 1 else 2, name="middle" if k == 1 else "outer")

    def prepare(self, k, look):
        Choosing.calls.append((k, [sorted(set(rows)) for rows in self.drawn]))
        rows = look.split.unlabelled
        index, value = look(rows, reduce=lambda out, label, index: out.logits[:, k])
        cut = value.quantile(self.config.part)
        self.chosen.zero_()
        self.chosen[index[value <= cut]] = True
        self.length.fill_(2)
        self.drawn = []
        return Report([f"prepared {k}"], [f"beware {k}"] if k == 2 else [])

    def split_of(self, split):
        return dataclasses.replace(split, unlabelled=split.unlabelled[self.chosen.numpy()[split.unlabelled]])

    def loss(self, batch, clock):
        self.drawn.append(batch.unlabelled_index.tolist())
        assert self.chosen[batch.unlabelled_index].all(), "drawn from the split that memory asks for"
        return Terms(self.network(batch.labelled[0]).logits.square().mean() + self.network(batch.unlabelled[0]).logits.square().mean())


FLAGS = ["--model", "wrn-10-1", "--set", "data.size=8", "--batch-size", "4", "--ratio", "8", "--steps", "6", "--labels-per-class", "2"]
FLAGS += ["--method", f"{__name__}:Choosing", "--ema", "0.9", "--quiet", "--set", "train.eval_every=6", "--set", "train.save_every=1"]


@pytest.fixture
def root(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])
    Choosing.calls.clear()


def trained(folder, *more):
    assert main(["train", *FLAGS, "--out", str(folder), *more]) == 0
    return folder


def test_each_stage_is_prepared_once_and_said(tmp_path, root, capsys):
    whole = trained(tmp_path / "run")
    assert [k for k, _ in Choosing.calls] == [0, 1, 2]
    assert all(len(rows) == 2 for _, rows in Choosing.calls[1:]), "two steps lie between"
    lines = (whole / "log.txt").read_text().splitlines()
    places = [next(i for i, line in enumerate(lines) if text in line) for text in ("prepared 0", "prepared 1", "stage 2, middle: 2 steps")]
    places += [lines.index("prepared 2"), lines.index("warning: beware 2"), lines.index("stage 3, outer: 2 steps")]
    assert places == sorted(places)
    result = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert result["event"] == "result" and result["split_hash"] in (whole / "checkpoints" / "step-6" / "MANIFEST.json").read_text()


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_resumed_run_prepares_what_is_left_and_ends_the_same(tmp_path, root, stop):
    whole = trained(tmp_path / "whole")
    reference = flat(state_of(whole))
    Choosing.calls.clear()
    broken = trained(tmp_path / "broken", "--set", f"train.stop_at={stop}")
    before = [k for k, _ in Choosing.calls]
    assert main(["train", "--resume", str(broken), "--quiet"]) == 0
    after = [k for k, _ in Choosing.calls[len(before) :]]
    assert before == list(range((stop + 1) // 2)) and before + after == [0, 1, 2], "none inside a stage, and none twice"
    resumed = flat(state_of(broken))
    assert resumed.keys() == reference.keys()
    for key, value in reference.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, resumed[key]), key
    assert records(whole) == records(broken)


def test_a_dry_run_prepares_the_stage_that_it_measures(root, capsys):
    assert main(["train", *FLAGS, "--dry-run"]) == 0
    assert [k for k, _ in Choosing.calls] == [0]


def test_a_recorded_draw_takes_its_rows_from_the_new_split(digits, steps, monkeypatch):
    """As a captured step does: the addresses that it read are those that `use` writes."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the order of rows as a device computes it
    source, split = digits
    pipeline = ResidentPipeline(source, split, Views(("plain",), ("plain",)), batch_size=4, ratio=8)
    few = dataclasses.replace(split, unlabelled=split.unlabelled[100:140])
    batch, tape = [], steps.Tape()
    tape.record(lambda: batch.append(pipeline.draw()))
    assert len(set(batch[0].unlabelled_index.tolist()) - set(few.unlabelled.tolist())) > 0
    pipeline.use(few)
    seen = set()
    for _ in range(4):
        tape.replay()
        rows = batch[0].unlabelled_index
        seen |= set(rows.tolist())
        expected = (torch.from_numpy(source.images[rows.numpy()]).float() / 255 - 0.5) / 0.5
        torch.testing.assert_close(batch[0].unlabelled[0], expected)
    assert seen == set(few.unlabelled.tolist())


def test_a_failing_preparation_ends_the_run_as_any_failure_does(tmp_path, root, monkeypatch):
    def broken(self, k, look):
        raise ValueError("no graph to be built")

    monkeypatch.setattr(Choosing, "prepare", broken)
    state = torch.get_rng_state()
    assert main(["train", *FLAGS, "--out", str(tmp_path / "run")]) == 1
    status = json.loads((tmp_path / "run" / "STATUS.json").read_text())
    assert status["state"] == "failed" and "no graph to be built" in status["reason"]
    assert torch.equal(torch.get_rng_state(), state)
