"""What goes wrong in captured training steps, and the test that each has. A Tape (conftest.py) freezes what a CUDA graph freezes.

| pitfall | test (here, unless a file is named) |
|---|---|
| 1 a learning rate frozen, or read by the host | test_a_tape_trains_as_eager_steps, test_rates_are_tensors; 9's |
| 2 an optimiser's first step differs | test_a_tape_of_the_first_step_serves_all |
| 3 warm-up changes training | test_modes.py: test_trying_a_mode_out_leaves_no_trace |
| 4 tensors bound anew | test_loading_state_keeps_a_tape_valid, test_update.py: test_state_is_restored_in_place_and_bit_for_bit |
| 5 batch-norm statistics | test_batch_norm_moves_once_a_step |
| 6 gradients that move | test_gradients_left_over_do_not_matter |
| 7 frozen randomness | test_replays_draw_anew; the draw: pipelines' test_capturable.py, on CUDA test_pitfalls_cuda.py |
| 8 a weight's cast kept from warm-up | test_a_tape_trains_as_eager_steps[bf16] |
| 9 the host asks | test_modes.py: test_a_step_asks_the_device_for_nothing, test_without_device.py; test_a_frozen_answer_shows |
| 10 phases, partial batches | test_phases_pass_on_tape, test_batches_keep_their_shape |
| 11 metrics overwritten, or fetched one by one | test_metrics_are_summed_across_replays |
| 12 other threads while capturing | test_capture_minds_its_own_thread |
| 13 compiling again | test_modes.py: test_compiled_and_captured_steps_equal_eager_ones; kernels: test_triton_traced.py |
| 14 no eager twin, inputs not read again | test_a_tape_trains_as_eager_steps, test_inputs_are_read_again; on CUDA test_pitfalls_cuda.py |
| 15 factors of single tensors | test_a_tape_trains_as_eager_steps[decays], test_update.py: test_average_is_the_textbook_recursion |
"""

import contextlib
import copy
import re

import pytest
import torch
from torch import nn

from fastssl.cli import parser
from fastssl.commands.train import configure
from fastssl.engine import capture
from fastssl.engine.assemble import assemble
from fastssl.engine.run import Run
from fastssl.models import Network
from fastssl.models.heads import CosineHead
from tests.fastssl.method_cases import TRAINED, crossed

FORMS = {
    "sgd": {"schedule": "cosine", "warmup": 3},
    "adamw": {"optimizer": "adamw", "schedule": "cosine", "clip": 0.5},
    "lars": {"optimizer": "lars", "warmup": 5},
    "decays": {"weight_decay": 0.1, "ema": 0.7, "momentum": 0.5},
    "bf16": {"amp": "bf16", "dtype": torch.float32},
}


class Norming(nn.Module):
    """An encoder with batch-norm and dropout."""

    num_features = 7

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(27, 9), nn.BatchNorm1d(9), nn.Dropout(0.3), nn.Linear(9, 7))

    def forward(self, x):
        return self.layers(x)


def norming():
    torch.manual_seed(0)
    return Network(Norming(), CosineHead(7, 5))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_table_names_tests_that_exist(root):
    there = set(re.findall(r"^def (test_\w+)", "\n".join(p.read_text(encoding="utf-8") for p in root.glob("tests/**/test_*.py")), re.M))
    named, files = re.findall(r"(test_\w+)(?!\w|\.py)", __doc__), re.findall(r"test_\w+\.py", __doc__)
    assert len(named) > 15 and set(named) <= there, set(named) - there
    assert all(list(root.glob(f"tests/**/{name}")) for name in files)


def test_a_frozen_answer_shows(steps):
    """Were a number read by the host, a tape would go on with the first one."""
    rate, weight, tape = torch.tensor(1.0), torch.zeros(2), steps.Tape()
    tape.record(lambda: weight.add_(float(rate)))
    rate.fill_(10.0)
    tape.replay()
    assert weight.tolist() == [2.0, 2.0]
    tape = steps.Tape()
    tape.record(lambda: weight.add_(rate))
    rate.fill_(100.0)
    tape.replay()
    assert weight.tolist() == [112.0, 112.0]


@pytest.mark.parametrize(("name", "form"), crossed(FORMS))
def test_a_tape_trains_as_eager_steps(toy, steps, name, form):
    """Twenty steps, bit for bit, while learning rate, ramps, thresholds and averages move."""
    ends, sums = [], []
    for taped in (False, True):
        step = steps.step_of(toy, name, total=20, **FORMS[form])
        start = steps.everything(step)
        if taped:
            steps.captured(step)
            assert same(start, steps.everything(step)[: len(start)])
            for _ in range(20):
                step()
            assert step.run.recorder.replays == 20
        else:
            steps.eagerly(step, 20)
        ends.append(steps.everything(step))
        sums.append(step.read())
    assert same(*ends) and sums[0] == sums[1] and sums[0]["skipped"] == 0
    assert not same(start, ends[0][: len(start)])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_rates_are_tensors(toy, steps, optimizer):
    update = steps.step_of(toy, "supervised", optimizer=optimizer).update
    for group in update.optimizer.param_groups:
        assert (
            isinstance(group["lr"], torch.Tensor) and group["lr"].untyped_storage().data_ptr() == update.rates.untyped_storage().data_ptr()
        )
        assert optimizer == "lars" or group["fused"]
    assert all(update.optimizer.state[p] for p in update.parameters), "an optimiser's state is there before its first step"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_a_tape_of_the_first_step_serves_all(toy, steps, optimizer):
    eager, taped = (steps.step_of(toy, "fixmatch", optimizer=optimizer) for _ in range(2))
    steps.captured(taped, warm_ups=1)
    steps.eagerly(eager, 4)
    for _ in range(4):
        taped()
    assert same(steps.everything(eager), steps.everything(taped))


def test_loading_state_keeps_a_tape_valid(toy, steps):
    donor, taped = steps.step_of(toy, "finessl"), steps.captured(steps.step_of(toy, "finessl"))
    steps.eagerly(donor, 3)
    taped()
    for part in ("method", "update", "pipeline"):
        getattr(taped, part).load_state_dict({k: v for k, v in getattr(donor, part).state_dict().items()})
    taped.load_state_dict(donor.state_dict())
    steps.eagerly(donor, 3)
    for _ in range(3):
        taped()
    assert same(steps.everything(donor), steps.everything(taped)) and donor.read() == taped.read()


# Method -> the views whose pass moves the statistics, where it is not all that carry gradient.
MOVING = {
    **dict.fromkeys(("pi_model", "mean_teacher", "meta_pseudo_labels"), lambda batch: [batch.labelled[0], batch.unlabelled[1]]),
    **dict.fromkeys(("ict", "pseudo_label", "vat", "self_training"), lambda batch: batch.labelled),
    **{"simclr": lambda batch: batch.unlabelled, "simclrv2": lambda batch: batch.unlabelled, "dividemix": lambda batch: batch.labelled[:1]},
}


@pytest.mark.parametrize("weak_pass", ["joint", "separate"])
@pytest.mark.parametrize("name", [name for name in TRAINED if "mixmatch" not in name and name != "pl_mixup"])
def test_batch_norm_moves_once_a_step(toy, steps, name, weak_pass):
    """By the one pass that carries gradients, whichever way the weak views go; the average follows. Mixed images: by their own tests."""
    step = steps.captured(steps.step_of(toy, name, network=norming(), weak_pass=weak_pass))
    norm, twin = step.method.network.encoder.layers[2], copy.deepcopy(step.method.network)
    views, expected = step.pipeline.views, twin.encoder.layers[2]
    for k in range(3):
        batch = step.pipeline.fresh(k)
        twin.load_state_dict({name: value for name, value in step.method.network.state_dict().items()})
        skipped = views.no_grad if weak_pass == "separate" else 0
        twin(torch.cat(MOVING[name](batch) if name in MOVING else [*batch.labelled, *batch.unlabelled[skipped:]]))
        step()
        assert torch.allclose(norm.running_mean, expected.running_mean, rtol=1e-9) and norm.running_mean.abs().max() > 1e-3
        assert torch.allclose(norm.running_var, expected.running_var, rtol=1e-9)
        averaged = step.method.ema.encoder.layers[2]
        assert torch.equal(averaged.running_mean, norm.running_mean) == (step.method.averages()[0].buffers == "source")


def test_gradients_left_over_do_not_matter(toy, steps):
    clean, soiled = (steps.captured(steps.step_of(toy, "fixmatch")) for _ in range(2))
    for k in range(4):
        clean()
        for p in soiled.update.parameters:
            if k % 2 == 0:
                p.grad = torch.full_like(p, 1e3)
            elif p.grad is not None:
                p.grad.fill_(1e3)
        soiled()
    assert same(steps.everything(clean), steps.everything(soiled))


def test_replays_draw_anew(toy, steps):
    """The same batch, no training: what differs is dropout. A seed brings it back."""
    step = steps.captured(steps.step_of(toy, "supervised", network=norming(), lr=0.0, ema=0.0))
    losses = []
    for seed in (5, 5):
        torch.manual_seed(seed)
        for _ in range(3):
            step.pipeline.place.zero_()
            step()
            losses.append(step.read()["loss"])
    assert len(set(losses[:3])) == 3 and losses[:3] == losses[3:]


def test_phases_pass_on_tape(toy, steps):
    """A warm-up that ends, and FineSSL's pace, which starts anew every so often, are tensors: one tape goes through them."""
    rates = []
    step = steps.captured(steps.step_of(toy, "supervised", warmup=4, total=8, schedule="constant", lr=0.1))
    for _ in range(8):
        step()
        rates.append(round(float(step.update.lr), 6))
    assert rates[:4] == sorted(set(rates[:4])) and rates[4:] == [0.1] * 4 and rates[0] < 0.1
    ends = []
    for taped in (False, True):
        torch.manual_seed(0)
        method = toy.method("finessl", threshold=0.0, pace_reset=3)
        step = steps.step_of(toy, method)
        if taped:
            steps.captured(step)
            for _ in range(10):
                step()
        else:
            steps.eagerly(step, 10)
        ends.append(steps.everything(step))
    assert same(*ends)


RUN = ["train", "--method", "fixmatch", "--labels-per-class", "2", "--batch-size", "7", "--ratio", "2", "--steps", "20"]


def test_batches_keep_their_shape():
    """Past the end of the labelled and of the unlabelled images too: no partial batch, no growing one."""
    run = Run(assemble(configure(parser().parse_args(RUN))), None, quiet=True)
    split = run.parts.split
    shapes = set()
    for _ in range(1 + max(len(split.labelled) // 7, len(split.unlabelled) // 14) * 2):
        batch = run.pipeline.draw()
        shapes.add(tuple(tuple(t.shape) for t in (*batch.labelled, *batch.unlabelled, batch.label, batch.index, batch.unlabelled_index)))
    assert len(split.labelled) % 7 and len(shapes) == 1


def test_metrics_are_summed_across_replays(toy, steps):
    eager, taped = steps.step_of(toy, "finessl"), steps.captured(steps.step_of(toy, "finessl"))
    places = {name: total.data_ptr() for name, total in taped.sums.items()}
    for _ in range(3):
        steps.eagerly(eager, 4)
        for _ in range(4):
            taped()
        found = taped.read()
        assert found == eager.read() and all(isinstance(value, float) for value in found.values() if value is not None)
        assert places == {name: total.data_ptr() for name, total in taped.sums.items()}
        assert all(value is None for value in taped.read().values()), "what was read is not read again"


def test_capture_minds_its_own_thread(monkeypatch):
    """Pipelines' threads may use the device meanwhile; warm-up runs on the stream that is recorded, as handles belong to streams."""
    seen = []

    class Stream:
        def wait_stream(self, other):
            pass

    @contextlib.contextmanager
    def use(stream):
        seen.append(stream)
        yield

    @contextlib.contextmanager
    def graph(graph, **options):
        seen.append(options)
        yield

    for name, value in {
        "Stream": lambda device: Stream(),
        "CUDAGraph": object,
        "current_stream": lambda device: Stream(),
        "synchronize": lambda device: None,
        "stream": use,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    runs = []
    recorder = capture.CudaRecorder(torch.device("cuda"))
    recorder.warm_up(lambda: runs.append(1))
    recorder.record(lambda: runs.append(1))
    assert seen == [recorder.stream, {"pool": None, "stream": recorder.stream, "capture_error_mode": "thread_local"}]
    assert len(runs) == capture.WARM_UPS + 1


@pytest.mark.parametrize("name", TRAINED)
def test_inputs_are_read_again(toy, steps, name):
    """A poisoned batch is seen, skipped on the device, and forgotten."""
    clean, poisoned = (steps.captured(steps.step_of(toy, name)) for _ in range(2))
    clean()
    poisoned()
    before = steps.everything(poisoned)
    batch = poisoned.pipeline.batch
    for image in (*batch.labelled, *batch.unlabelled):
        image.fill_(float("nan"))
    poisoned.run.recorder.replay()  # not by a call, which would draw a new batch
    assert not poisoned.update.ok and poisoned.streak == 1
    changed = [i for i, (a, b) in enumerate(zip(before, steps.everything(poisoned), strict=True)) if not torch.equal(a, b)]
    assert len(changed) < 14, "counters, clock and sums alone"
    assert all(torch.equal(a, b) for a, b in zip(clean.method.state_dict().values(), poisoned.method.state_dict().values(), strict=True))
    poisoned()
    assert poisoned.update.ok and poisoned.streak == 0
