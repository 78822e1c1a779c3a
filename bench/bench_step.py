"""Whole training steps, data left out: ours against the published practice, same weights and views, in turns in one process.

`pytest bench/bench_step.py --benchmark-only`; `-k fixmatch_wrn282_joint_cpu` for one row. Correctness comes first in every row: one step
of ours must equal one of the peer (loss and updated weights; see step_cases.py). `ratio_to_PEER` is the median over the rounds of
their time divided by ours; `most_to_PEER` is what the ceiling measured in the same run leaves room for. On a CPU 5 rounds of one step,
fewer where 60 seconds end them, at least 3; on CUDA 20 rounds of 10 steps, ours captured as one CUDA graph. `bench/peers` says what the
peers do; `python -m bench.gpu_steps` runs the rows for a GPU with checks of its own.

| row | what runs |
|---|---|
| fixmatch_wrn282_joint_cpu | FixMatch, WRN-28-2, 16 + 112 + 112 images, bf16; batch-norm over all views as published |
| fixmatch_wrn282_separate_cpu | the weak views apart, without gradient |
| fixmatch_wrn282_fp32_cpu | joint, without half precision |
| finessl_vitb16_cpu | FineSSL, timm's ViT-B/16 at 224 pixels with 50 prompts, 4 labelled samples and 3 views of 4 unlabelled ones |
| update_wrn282_cpu | SGD and averaged weights alone |
| fixmatch_wrn282_*_cuda, fixmatch_wrn288_*_cuda | FixMatch at 64 + 448 + 448 |
| finessl_vitb16_cuda | FineSSL at 32 + 3 x 32 |
| update_wrn282_cuda, update_wrn288_cuda | SGD and averaged weights alone |
| graph_small_cuda, graph_large_cuda | the captured step against the compiled one, at 8 + 8 + 8 and 64 + 448 + 448 |

The losses' rows stand in bench_kernels.py and bench_kernels_cuda.py, the class counts' in the former, the pipelines' in bench_pipelines.py,
whole runs in bench_run.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import our_steps, step_cases, step_rows
from bench._timing import Machine

CPU_ROUNDS, SHORT_ROUNDS, CUDA_ROUNDS, CUDA_CALLS = 5, 20, 20, 10
VIT = "timm:vit_base_patch16_224"
CPU_BATCH, CUDA_BATCH = (16, 112), (64, 448)


def _fixmatch(name: str, weak_pass: str, classes: int = 10, **options: Any) -> Callable[[Any, Machine], None]:
    def row(benchmark: Any, machine: Machine) -> None:
        network = our_steps.wide_network(name, classes, machine.device)
        given = {"sizes": CUDA_BATCH, "rounds": CUDA_ROUNDS, "mode": "graph", "calls": CUDA_CALLS} if machine.cuda else {}
        step_cases.fixmatch(
            benchmark,
            machine,
            network,
            classes=classes,
            weak_pass=weak_pass,
            **({"sizes": CPU_BATCH, "rounds": CPU_ROUNDS} | given | options),
        )

    return row


def _fixmatch_fp32(benchmark: Any, machine: Machine) -> None:
    network = our_steps.wide_network("wrn-28-2", 10, machine.device)
    step_cases.fixmatch_fp32(benchmark, machine, network, CPU_BATCH, 10, rounds=CPU_ROUNDS, published=1.15)


def _finessl(benchmark: Any, machine: Machine) -> None:
    network = our_steps.prompted_network(VIT, 100, machine.device)
    given: dict[str, Any]
    if machine.cuda:
        given = {"batch_size": 32, "rounds": CUDA_ROUNDS, "mode": "graph", "calls": CUDA_CALLS, "goals": {"published_fp16": 2.2}}
        given["peers"] = ("published", "published_fp16", "published_fused")
    else:
        # fp32 takes several times as long here, so it leaves after three rounds.
        given = {"batch_size": 4, "rounds": CPU_ROUNDS, "most": {"published": 3}, "goals": {"published": 2.8, "published_bf16": 1.3}}
        given["peers"] = ("published", "published_bf16")
    step_cases.finessl(benchmark, machine, network, side=224, **given)


def _update(name: str, **goals: float) -> Callable[[Any, Machine], None]:
    def row(benchmark: Any, machine: Machine) -> None:
        network = our_steps.wide_network(name, 10, machine.device)
        step_cases.update(benchmark, machine, network, rounds=SHORT_ROUNDS, calls=10, goals=goals)

    return row


def _graph(sizes: tuple[int, int], goal: float) -> Callable[[Any, Machine], None]:
    def row(benchmark: Any, machine: Machine) -> None:
        network = our_steps.wide_network("wrn-28-2", 10, machine.device)
        batch = our_steps.noise_batch(*sizes, 2, 32, 10, machine.device)
        options = {"threshold": our_steps.middle_confidence(network, batch, "joint"), "lr": step_cases.LR, "amp": "bf16"}
        graph, compiled, eager = (our_steps.fixmatch(network, batch, **options).prepare(mode) for mode in ("graph", "compile", "eager"))
        before = step_rows.weights(graph)
        checks = lambda: step_rows.agree("graph", graph, compiled, before, loss=1e-2, update=5e-2)  # noqa: E731
        others, goals = {"compiled": compiled, "eager": eager}, {"compiled": goal}
        step_rows.race(benchmark, machine, graph, others, rounds=CUDA_ROUNDS, calls=CUDA_CALLS, checks=checks, goals=goals)
        benchmark.extra_info["batch"] = f"{sizes[0]}+{sizes[1]}+{sizes[1]}"

    return row


ROWS: dict[str, Callable[[Any, Machine], None]] = {
    "fixmatch_wrn282_joint_cpu": _fixmatch("wrn-28-2", "joint", goals={"published": 2.3}),
    "fixmatch_wrn282_separate_cpu": _fixmatch("wrn-28-2", "separate", peers=("published", "published_bf16"), goals={"published": 3.4}),
    "fixmatch_wrn282_fp32_cpu": _fixmatch_fp32,
    "finessl_vitb16_cpu": _finessl,
    "update_wrn282_cpu": _update("wrn-28-2", published=5.0),
    "fixmatch_wrn282_joint_cuda": _fixmatch("wrn-28-2", "joint", goals={"published": 2.5, "published_bf16": 1.4}),
    "fixmatch_wrn282_separate_cuda": _fixmatch("wrn-28-2", "separate", goals={"published": 3.5, "published_bf16": 1.9}),
    "fixmatch_wrn288_joint_cuda": _fixmatch("wrn-28-8", "joint", 100, goals={"published": 2.0, "published_bf16": 1.2}),
    "fixmatch_wrn288_separate_cuda": _fixmatch("wrn-28-8", "separate", 100, goals={"published": 2.8, "published_bf16": 1.6}),
    "finessl_vitb16_cuda": _finessl,
    "update_wrn282_cuda": _update("wrn-28-2", published=15.0),
    "update_wrn288_cuda": _update("wrn-28-8"),
    "graph_small_cuda": _graph((8, 8), 2.5),
    "graph_large_cuda": _graph(CUDA_BATCH, 1.1),
}


@pytest.mark.parametrize("row", ROWS)
def bench_step(benchmark: Any, row: str) -> None:
    device = row.rpartition("_")[2]
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"{row} is a row for a GPU, and torch sees no CUDA device here")
    ROWS[row](benchmark, Machine(device))
