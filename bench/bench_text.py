"""FixMatch's text step against the plain practice, data included: tokens a second, and steps.

`pytest bench/bench_text.py --benchmark-only`. An encoder of MiniLM's size with random weights, and texts with AG News' lengths (a mean of
54 tokens) that nobody wrote. Ours is `fastssl train`'s own step in bf16: token ids resident, words replaced on the device, a few fixed
lengths. The peers are text_peer.py's, in fp32 and in bf16. Before anything is timed, ours in fp32 and the peer compute one loss on the
same rows, to 1e-4 of it. Turn by turn in one process, as in bench_run.py; `ratio_to_PEER` is time a step, `tokens_ratio_to_PEER` tokens a
second, padding counted by nobody.

| row | run |
|---|---|
| fixmatch_text_cpu | 8 + 56 + 56 texts, eager; peers with 1 worker a loader |
| fixmatch_text_cuda | 32 + 224 + 224 texts, captured; `eager` is our own step not captured; peers with 4 workers a loader |
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from bench import step_rows, text_peer
from bench._timing import Machine
from bench.bench_run import steps_of
from fastssl.config import resolve
from fastssl.engine.assemble import assemble
from fastssl.engine.run import Run
from fastssl.methods import find

CLASSES, LABELS, LR, SAME, NEAR = 4, 40, 5e-5, 1e-4, 5e-2
THRESHOLD = 0.0  # random weights are sure of nothing: every row counts, and no confidence stands at an edge


class Plan(NamedTuple):
    """How long a row is measured, and on what."""

    sizes: tuple[int, int]
    workers: int
    rounds: int
    steps: int  # timed in each round
    skip: int  # steps of each before those
    texts: int = 2000
    encoder: dict[str, int] = {}  # noqa: RUF012  sizes that differ from MiniLM's


ROWS = {
    "fixmatch_text_cpu": Plan((8, 56), workers=1, rounds=3, steps=3, skip=1),
    "fixmatch_text_cuda": Plan((32, 224), workers=4, rounds=10, steps=50, skip=10),
}


def our_run(folder: Path, plan: Plan, device: torch.device, **options: Any) -> Run:
    """A Run on the folder's table and encoder, ready for its first step."""
    given = {
        "data.name": str(folder / "texts.csv"),
        "model.name": f"transformers:{folder / 'encoder'}",
        "model.weights": "random",
        "method.threshold": THRESHOLD,
        "train.device": str(device),
        "train.amp": "bf16",
        "train.optimizer": "adamw",
        "train.lr": LR,
        "train.schedule": "constant",
        "train.batch_size": plan.sizes[0],
        "train.ratio": plan.sizes[1] // plan.sizes[0],
        **options,
    }
    run = Run(assemble(resolve("fixmatch", find("fixmatch").Config, [("bench", given)]), quiet=True), None, quiet=True)
    run.method.train()
    run.prepare()
    return run


def check(ours: Run, peer: text_peer.TextPractice, name: str, allowed: float) -> dict[str, float]:
    """Holds our loss to the peer's on one batch of ours: |difference| / loss."""
    batch = ours.pipeline.draw()
    with torch.no_grad(), torch.autocast(batch.label.device.type, torch.bfloat16, enabled=ours.config.train.amp == "bf16"):
        own = float(ours.method.loss(batch, ours.step.clock).total)
    theirs = peer.of_batch(batch)
    off = abs(own - theirs) / abs(theirs)
    assert off <= allowed, (
        f"{name}: our loss {own:.6f} and the peer's {theirs:.6f} on the same rows differ by {off:.1e}, allowed {allowed:.0e}"
    )
    return {f"{name}_loss_off": off}


def row(benchmark: Any, machine: Machine, folder: Path, plan: Plan) -> None:
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    text_peer.write_encoder(folder / "encoder", **plan.encoder)
    vocabulary = (text_peer.MINILM | plan.encoder)["vocab_size"] - 5
    texts = text_peer.made_up(plan.texts, vocabulary)
    strong = strengthened(texts, vocabulary)
    text_peer.write_table(folder / "texts.csv", texts, LABELS, CLASSES)
    ours, exact = (
        our_run(folder, plan, machine.device),
        our_run(folder, plan, machine.device, **{"train.amp": "off", "train.step_mode": "eager"}),
    )
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "encoder"))
    given = {"threshold": THRESHOLD, "lr": LR, "longest": ours.pipeline.lengths[-1], "workers": plan.workers, "device": machine.device}
    labels = [i % CLASSES for i in range(LABELS)]
    make = lambda amp: text_peer.TextPractice(exact.method.network, tokenizer, texts, strong, labels, plan.sizes, amp=amp, **given)  # noqa: E731
    peers = {"practice": make(None), "practice_bf16": make(torch.bfloat16)}
    info = benchmark.extra_info
    with step_rows.ieee(machine):
        info.update(check(exact, peers["practice"], "fp32", SAME))
        info.update(check(ours, peers["practice"], "bf16", NEAR))
    own = {"ours": ours}
    if machine.cuda:
        own["eager"] = our_run(folder, plan, machine.device, **{"train.step_mode": "eager"})
    take_turns(benchmark, machine, own, peers, plan)
    info.update(batch="{0}+{1}+{1}".format(*plan.sizes), workers=plan.workers, lengths=str(ours.pipeline.lengths), mode=ours.step.mode)


def take_turns(benchmark: Any, machine: Machine, own: dict[str, Run], peers: dict[str, text_peer.TextPractice], plan: Plan) -> None:
    """Times steps of all in turns, and counts their tokens."""
    times: dict[str, list[float]] = {name: [] for name in (*own, *peers)}
    tokens: dict[str, list[float]] = {name: [] for name in times}

    def timed(name: str, call: Any, seen: Any) -> None:
        before = seen()
        times[name].append(step_rows.seconds(machine, call) / plan.steps)
        tokens[name].append((seen() - before) / plan.steps)

    def mine(name: str) -> None:
        timed(name, steps_of(own[name], plan.steps), lambda: int(own[name].pipeline.tokens_seen))

    def others() -> None:
        for name, peer in peers.items():
            peer.open()
            for _ in range(plan.skip):
                peer()
            timed(name, lambda peer=peer: [peer() for _ in range(plan.steps)], lambda peer=peer: peer.tokens)
            peer.close()
        for name in list(own)[1:]:
            mine(name)

    for run in own.values():
        steps_of(run, plan.skip)()
    benchmark.pedantic(lambda: mine("ours"), setup=others, rounds=plan.rounds, iterations=1, warmup_rounds=0)
    for name, run in own.items():
        assert run.step.read().get("skipped", 0.0) == 0.0, f"{name}: steps were skipped: loss or gradient was not finite"
    info = benchmark.extra_info
    step_rows.note(info, times, {})
    rates = {name: [count / taken for count, taken in zip(tokens[name], times[name], strict=True)] for name in times}
    for name, rate in rates.items():
        info[f"{name}_tokens_per_second"] = statistics.median(rate)
        if name != "ours":
            info[f"tokens_ratio_to_{name}"] = statistics.median([a / b for a, b in zip(rates["ours"], rate, strict=True)])
    info.update(rounds=plan.rounds, steps_a_round=plan.steps, threads=torch.get_num_threads(), tf32=step_rows.tf32(machine))


def strengthened(texts: list[str], vocabulary: int, rate: float = 0.3) -> list[str]:
    """The peers' strong texts: each word another with probability `rate`."""
    rng, known, made = np.random.default_rng(1), np.array(text_peer.words(vocabulary)), []
    for text in texts:
        words = np.array(text.split())
        made.append(" ".join(np.where(rng.random(len(words)) < rate, known[rng.integers(vocabulary, size=len(words))], words)))
    return made


@pytest.mark.parametrize("name", ROWS)
def bench_text(benchmark: Any, name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    device = name.rpartition("_")[2]
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"{name} is a row for a GPU, and torch sees no CUDA device here")
    row(benchmark, Machine(device), tmp_path / "texts", ROWS[name])
