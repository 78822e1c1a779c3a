"""The step rows, on any device: what runs against what, on which shapes, checked how. bench_step.py and gpu_steps.py run them.

FixMatch: three bodies of the same step. `published` is fp32 as published; `published_bf16` the same under bf16 autocast and channels_last;
`usb` semilearn's practice in fp32. In a `joint` row all compute the same function (batch statistics over all views, gradient through
them); in a `separate` row ours forwards the weak views apart, which under batch-norm is other mathematics, and says so.

FineSSL: `published` has prompts as tokens, explicit attention and every view in the graph, in fp32; `published_fp16` (on a CPU
`published_bf16`) the same with weights in half precision, as the code runs; `published_fused` the latter with torch's fused attention, on
CUDA a kinder peer than the code. Ours computes the same function; its weak view is forwarded without gradient, which changes nothing
without batch-norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import our_steps, step_rows
from ._timing import Machine, copy_gb_per_s
from .peers import finessl as finessl_peer
from .peers.fixmatch import Apart, Published
from .peers.usb import Practice

LR = 1e-3  # low enough that weights stay finite on noise; it has no part in the time
# One step in fp32, rows and memory in another order: measured on WRN-28-2 up to 6e-3 of the update. Other mathematics (the weak views
# apart) is off by 0.4 and more.
SAME = {"loss": 1e-5, "update": 2e-2}
NEAR = {"loss": 5e-2, "update": 0.5}  # of bf16 against fp32: a confidence may cross the threshold


def fixmatch(
    benchmark: Any,
    machine: Machine,
    network: nn.Module,
    sizes: tuple[int, int],
    classes: int,
    *,
    weak_pass: str,
    rounds: int,
    peers: Sequence[str] = ("published", "published_bf16", "usb"),
    goals: dict[str, float] | None = None,
    mode: str = "eager",
    side: int = 32,
    calls: int = 1,
    limit: float = step_rows.LIMIT,
) -> None:
    """Ours in bf16 with channels_last against the published practice, on B labelled and U unlabelled images. `sizes`: (B, U)."""
    batch = our_steps.noise_batch(*sizes, 2, side, classes, machine.device)
    threshold = our_steps.middle_confidence(network, batch, weak_pass)
    options = {"threshold": threshold, "lr": LR}
    ours = our_steps.fixmatch(network, batch, weak_pass=weak_pass, amp="bf16", **options)
    exact = our_steps.fixmatch(network, batch, weak_pass=weak_pass, **options)
    makers = {
        "published": lambda: Published(network, batch, **options),
        "published_bf16": lambda: Published(network, batch, amp=torch.bfloat16, channels_last=True, **options),
        "usb": lambda: Practice(network, batch, **options),
    }
    others = {name: makers[name]() for name in peers}
    before = step_rows.weights(ours)
    same = others["published"] if weak_pass == "joint" else Apart(network, batch, **options)
    counted = step_rows.flops(our_steps.fixmatch(network, batch, weak_pass=weak_pass, amp="bf16", **options))
    ours.prepare(mode)

    def checks() -> dict[str, float]:
        if same is not others["published"]:
            same()
        exact()
        found = step_rows.agree("ours_fp32", exact, same, before, **SAME)
        found |= step_rows.agree("ours", ours, same, before, **NEAR)
        for name in others.keys() - {"published"}:
            allowed = SAME if name == "usb" else NEAR
            found |= step_rows.agree(name, others[name], others["published"], before, **allowed)
        return found

    step_rows.race(benchmark, machine, ours, others, rounds=rounds, calls=calls, checks=checks, goals=goals, limit=limit)
    info = benchmark.extra_info
    info.update(batch=f"{sizes[0]}+{sizes[1]}+{sizes[1]}", weak_pass=weak_pass, mode=mode, mathematics=_mathematics(weak_pass))
    _at_peak(info, machine, counted)


def fixmatch_fp32(
    benchmark: Any, machine: Machine, network: nn.Module, sizes: tuple[int, int], classes: int, *, rounds: int, **goals
) -> None:
    """Ours without autocast against the published practice: what formats and fewer passes are worth without half precision."""
    batch = our_steps.noise_batch(*sizes, 2, 32, classes, machine.device)
    options = {"threshold": our_steps.middle_confidence(network, batch, "joint"), "lr": LR}
    ours, published = our_steps.fixmatch(network, batch, **options), Published(network, batch, **options)
    before = step_rows.weights(ours)
    checks = lambda: step_rows.agree("ours", ours, published, before, **SAME)  # noqa: E731
    step_rows.race(benchmark, machine, ours, {"published": published}, rounds=rounds, checks=checks, goals=goals)
    benchmark.extra_info.update(batch=f"{sizes[0]}+{sizes[1]}+{sizes[1]}", weak_pass="joint", mode="eager")
    _at_peak(benchmark.extra_info, machine, step_rows.flops(ours), torch.float32)


def finessl(
    benchmark: Any,
    machine: Machine,
    network: nn.Module,
    batch_size: int,
    side: int,
    *,
    rounds: int,
    peers: Sequence[str],
    most: dict[str, int] | None = None,
    goals: dict[str, float] | None = None,
    mode: str = "eager",
    calls: int = 1,
    limit: float = step_rows.LIMIT,
) -> None:
    """Ours in bf16 against the published form on `batch_size` labelled and as many unlabelled samples, four views in all."""
    classes = len(network.head.weight)
    half = torch.float16 if machine.cuda else torch.bfloat16
    batch = our_steps.noise_batch(batch_size, batch_size, 3, side, classes, machine.device)
    with step_rows.ieee(machine):
        found = exact_finessl(network, our_steps.noise_batch(1, 1, 3, side, classes, machine.device))
    common = {"classes": classes, "rows": our_steps.ROWS, "lr": LR}
    makers = {
        "published": lambda: finessl_peer.Published(network, batch, **common),
        "published_fp16": lambda: finessl_peer.Published(network, batch, half=torch.float16, **common),
        "published_bf16": lambda: finessl_peer.Published(network, batch, half=torch.bfloat16, **common),
        "published_fused": lambda: finessl_peer.Published(network, batch, half=half, explicit=False, **common),
    }
    others = {name: makers[name]() for name in peers}
    ours = our_steps.finessl(network, batch, lr=LR, amp="bf16")
    counted = step_rows.flops(our_steps.finessl(network, batch, lr=LR, amp="bf16"))
    ours.prepare(mode)

    def checks() -> dict[str, float]:
        value = others[peers[0]].loss()
        for name, entrant in {"ours": ours, **others}.items():
            found[f"{name}_loss_off"] = abs(entrant.loss() - value) / abs(value)
            assert found[f"{name}_loss_off"] <= NEAR["loss"], f"{name}: its loss is not that of {peers[0]}: {found}"
        return found

    step_rows.race(benchmark, machine, ours, others, rounds=rounds, calls=calls, checks=checks, goals=goals, limit=limit, most=most)
    benchmark.extra_info.update(batch=f"4 x {batch_size}", prompts=50, mode=mode)
    _at_peak(benchmark.extra_info, machine, counted)


def exact_finessl(network: nn.Module, batch: Any) -> dict[str, float]:
    """Holds one fp32 step of ours to one of the published form."""
    ours = our_steps.finessl(network, batch, lr=LR)
    published = finessl_peer.Published(network, batch, classes=len(network.head.weight), rows=our_steps.ROWS, lr=LR)
    before = step_rows.weights(ours)
    ours()
    published()
    return step_rows.agree("ours_fp32", ours, published, before, **SAME)


class Given:
    """Stands for a loss whose backward pass is free: it hands out gradients that are there."""

    def __init__(self, parameters: list[nn.Parameter], gradients: list[Tensor]):
        self.pairs, self.value = list(zip(parameters, gradients, strict=True)), gradients[0].new_zeros(())
        self.device = self.value.device

    def backward(self) -> None:
        for parameter, gradient in self.pairs:
            parameter.grad = gradient

    def detach(self) -> Tensor:
        return self.value


def update(benchmark: Any, machine: Machine, network: nn.Module, *, rounds: int, calls: int, goals: dict[str, float] | None = None) -> None:
    """Optimiser and averaged weights alone, gradients given: ours against both published loops. Ours checks finiteness as well."""
    batch = our_steps.noise_batch(2, 2, 2, 32, len(network.head.weight), machine.device)
    ours = our_steps.fixmatch(network, batch, threshold=0.5, lr=LR).step
    generator = torch.Generator().manual_seed(1)
    draw = lambda p: torch.randn(p.shape, generator=generator).to(machine.device).contiguous(memory_format=_format(p))  # noqa: E731
    ours_loss = Given(ours.update.parameters, [draw(p) for p in ours.update.parameters])
    by_name = {id(p): g for p, (_, g) in zip(ours.update.parameters, ours_loss.pairs, strict=True)}
    gradients = [by_name[id(p)] for p in ours.method.network.parameters()]
    rate = torch.tensor(LR, device=machine.device)

    def our_update() -> None:
        ours.update.begin(rate)
        ours.update(ours_loss)

    def theirs(peer: Published) -> Any:
        given = Given(list(peer.network.parameters()), [g.contiguous() for g in gradients])

        def call() -> None:
            given.backward()
            peer.update()

        return call

    entrants = {kind: peer(network, batch, threshold=0.5, lr=LR) for kind, peer in (("published", Published), ("usb", Practice))}

    def checks() -> dict[str, float]:
        mine = [p.detach() for p in ours.method.network.parameters()]
        away = max(
            float((a - b.detach()).norm() / b.detach().norm())
            for a, b in zip(mine, entrants["published"].trained(), strict=True)
            if b.any()
        )
        assert away < 1e-6, f"weights after one update differ by {away:.1e} of their norm"
        return {"weights_off": away}

    calls_of = {kind: theirs(peer) for kind, peer in entrants.items()}
    step_rows.race(benchmark, machine, our_update, calls_of, rounds=rounds, calls=calls, checks=checks, goals=goals)
    size = 7 * 4 * sum(p.numel() for p in ours.update.parameters)
    rate_of_copy = copy_gb_per_s(machine, 2**31 if machine.cuda else 2**27, 7).median * 1e9
    step_rows.ceiling(benchmark.extra_info, size / rate_of_copy, "7 passes over the weights at the rate of a large copy")


def _format(p: Tensor) -> torch.memory_format:
    last = p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _at_peak(info: dict[str, Any], machine: Machine, counted: int, dtype: torch.dtype = torch.bfloat16) -> None:
    best = step_rows.peak(machine, dtype)
    info.update(gflop=counted / 1e9, peak_gflops=best / 1e9, achieved_gflops=counted / info["ours_ms"] / 1e6)
    step_rows.ceiling(info, counted / best, f"matrix products and convolutions at the best {str(dtype)[6:]} rate of a large one")


def _mathematics(weak_pass: str) -> str:
    return "the published" if weak_pass == "joint" else "the weak views have batch statistics of their own"
