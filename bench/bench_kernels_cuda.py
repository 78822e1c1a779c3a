"""The losses on a CUDA device against their peers, as pytest-benchmark rows: `pytest bench --benchmark-only -k cuda`.

The same rows as `python -m bench.gpu_losses`, which writes them as a table. pytest-benchmark's own clock measures ours un-captured, the
device waited for; `extra_info` has the event times of every entrant in microseconds, and "x peer", the peer's time over ours, each with
"graph" before it where it was captured. A row whose peer is wrong fails.
"""

from __future__ import annotations

import gc

import pytest
import torch

from bench._timing import Machine, copy_gb_per_s, cycle
from bench.finessl_block import BLOCKS, make_memory, make_step
from bench.loss_peers import inputs, make
from bench.loss_rows import FINESSL, Case, cases, measure, measure_finessl

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none")
ROUNDS = 21


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine("cuda")


@pytest.fixture(scope="module")
def copy(machine: Machine) -> float:
    """GB/s of a large device copy in this run."""
    return copy_gb_per_s(machine, 2**31).median


@pytest.fixture(autouse=True)
def _ours_is_triton(monkeypatch: pytest.MonkeyPatch):
    """Nothing else can serve the rows named ours; what a row held on the device is gone before the next."""
    monkeypatch.setenv("FASTSSL_KERNELS", "triton")
    yield
    gc.collect()
    torch.cuda.empty_cache()


def note(benchmark, records: list[dict], copy: float | None = None) -> None:
    """Puts the records into extra_info; a failed one fails the row."""
    failed = [f"{r['name']} {r['mode']}: {r['why']}" for r in records if r["status"] == "failed"]
    assert not failed, "; ".join(failed)
    for r in records:
        if r["status"] != "ok":
            continue
        name = ("graph " if r["mode"] == "captured" else "") + r["name"]
        benchmark.extra_info[f"{name} us"] = r["us"]
        for peer, value in r.get("ratio_to", {}).items():
            benchmark.extra_info[f"{name} x {peer}"] = value
        if copy and "moved_gb_per_s" in r:
            benchmark.extra_info[f"{name} % of copy"] = 100 * r["gb_per_s"] / copy
            benchmark.extra_info[f"{name} % of copy, bytes moved"] = 100 * r["moved_gb_per_s"] / copy


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.title.replace(" ", "-"))
def bench_pseudo_label_loss(benchmark, machine: Machine, copy: float, case: Case) -> None:
    note(benchmark, list(measure(machine, case, ROUNDS)), copy)
    ours = make("ours_at_once").both if case.gradient else make("ours_autograd").loss
    sets = [inputs(case.rows, case.classes, case.dtype, machine.device, seed) for seed in range(2)]
    run = cycle(ours, sets, len(sets))
    benchmark.pedantic(lambda: (run(), machine.synchronize()), rounds=ROUNDS, warmup_rounds=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def bench_finessl_block(benchmark, machine: Machine, dtype: torch.dtype) -> None:
    note(benchmark, list(measure_finessl(machine, dtype, ROUNDS)))
    batch, classes, unlabelled = FINESSL
    step = make_step(batch, classes, unlabelled, dtype, machine.device, 0)
    memory = make_memory(classes, unlabelled, machine.device, 0)
    block = BLOCKS["ours_at_once"][0]()
    benchmark.pedantic(lambda: (block(step, memory), machine.synchronize()), rounds=ROUNDS, warmup_rounds=2)
