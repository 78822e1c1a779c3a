"""Deep visual prompts: the exact cheap form against the plain one as published, on the CPU.

The plain form appends the prompts as tokens before each block and runs whole blocks on all of them. Correctness first: outputs and
prompt gradients of both, and of the library's own blocks, must agree in fp32 before anything is timed. Rounds are interleaved in one
process; `ratio_to_X` is the median of paired ratios, X over cheap, and `X_ms` the median of X.

* `plain`: our form of the block too, so that the prompts alone differ. With 50 prompts on 197 tokens it has 1.33 times the cheap form's
  floating-point operations (torch's FlopCounterMode).
* `published`: the step as FineSSL's code takes it, plain prompts, and the weak view inside the graph though no gradient comes of it.
* `library_ms`: one plain call on the library's own blocks. open_clip's nn.MultiheadAttention is far slower on a CPU in bf16 with frozen
  weights (see towers.py), which would flatter us as a peer.

| row | what is timed |
|---|---|
| forward_backward | our own transformer, fp32: a forward and a backward to the prompts |
| vit_b16_forward_backward | a ViT-B/16 at 224 pixels with 50 prompts, random weights, bf16: the same |
| vit_b16_finessl_step | the same: a whole FineSSL step, loss and update, on one labelled image, a weak and two strong views of another |
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastssl.config import ModelConfig, TrainConfig
from fastssl.engine.update import Update
from fastssl.methods import find
from fastssl.models import build
from fastssl.models.peft import tune
from fastssl.models.tuned_block import TunedBlock
from fastssl.models.vit import VisionTransformer
from fastssl.pipelines.batch import Batch, DataSpec
from fastssl.schedules import Clock

ROUNDS = 7
# name: (image side, width, depth, heads, stem, prompts, images); the second has the 197 tokens of a ViT-B/16 at 224 pixels, narrower
SHAPES = {
    "glyph_clip_17tokens": (32, 128, 6, 4, (32, 64), 8, 96),
    "vit_197tokens": (224, 192, 4, 3, (24, 48, 96), 50, 8),
}
NETWORKS = ("open_clip:ViT-B-16", "timm:vit_base_patch16_clip_224")
CLASSES = tuple("abcdefghij")


class Plain(nn.Module):
    """VPT-deep as published, on the blocks and prompts of a tuned encoder.

    Args:
        library: run the library's own blocks; otherwise ours without prompts of their own, so that the prompts' form alone differs.
    """

    def __init__(self, encoder: nn.Module, *, library: bool = False):
        super().__init__()
        self.encoder = encoder
        self.num_features = encoder.num_features
        self.tower = getattr(encoder, "visual", getattr(encoder, "model", encoder))
        tuned = self.tower.transformer.resblocks if hasattr(encoder, "visual") else self.tower.blocks
        assert all(isinstance(block, TunedBlock) for block in tuned)
        self.prompts = [block.prompts["deep"] for block in tuned]
        self.blocks = [block.block if library else TunedBlock(block.block, (), ModelConfig()) for block in tuned]

    def forward(self, x: Tensor) -> Tensor:
        tower = self.tower
        if hasattr(self.encoder, "visual"):
            return tower._pool(self.through(tower._embeds(x)))[0]
        if hasattr(self.encoder, "model"):
            tokens = tower.norm_pre(tower.patch_drop(tower._pos_embed(tower.patch_embed(x))))
            return tower.forward_head(tower.norm(self.through(tokens)))
        return tower.norm(self.through(tower.embed_patches(x))[:, 0])

    def through(self, tokens: Tensor) -> Tensor:
        count = tokens.shape[1]
        for block, prompts in zip(self.blocks, self.prompts, strict=True):
            tokens = block(torch.cat([tokens, prompts.expand(len(tokens), -1, -1)], dim=1))[:, :count]
        return tokens


def gradients(form: nn.Module, x: Tensor, amp: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Features, and the gradients at the prompts of a fixed weighting of them (a sum of squares is constant after a LayerNorm)."""
    prompts = [p for p in form.parameters() if p.requires_grad]
    for p in prompts:
        p.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp, cache_enabled=False):
        out = form(x)
    (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return out.detach(), [p.grad for p in prompts]


def assert_alike(cheap: nn.Module, plain: nn.Module, x: Tensor) -> None:
    (out, grads), (expected, wanted) = gradients(cheap, x), gradients(plain, x)
    assert (out - expected).norm() < 1e-4 * expected.norm()
    assert len(grads) > 1
    for grad, other in zip(grads, wanted, strict=True):
        assert (grad - other).norm() < 1e-3 * other.norm()


def compare(benchmark, cheap: Callable[[], object], peers: dict[str, Callable[[], object]], **facts: object) -> None:
    """Times the cheap form and its peers in turns; notes the median of paired ratios and each peer's median."""
    cheap()
    for peer in peers.values():
        peer()
    rounds = [[seconds(cheap), *(seconds(peer) for peer in peers.values())] for _ in range(ROUNDS)]
    for i, name in enumerate(("cheap", *peers)):
        benchmark.extra_info[f"{name}_ms"] = statistics.median(times[i] for times in rounds) * 1e3
        if i:
            benchmark.extra_info[f"ratio_to_{name}"] = statistics.median(times[i] / times[0] for times in rounds)
    benchmark.extra_info.update(facts)
    benchmark.pedantic(cheap, rounds=ROUNDS)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize("shape", SHAPES)
def bench_forward_backward(benchmark, shape):
    side, width, depth, heads, stem, count, images = SHAPES[shape]
    torch.manual_seed(0)
    cheap = tune(VisionTransformer(side, 1, width, depth, heads, stem=stem), ModelConfig(tune="vpt_deep", prompts=count), name=shape)
    plain, x = Plain(cheap), torch.randn(images, 1, side, side)
    assert_alike(cheap, plain, x)
    assert_alike(cheap, Plain(cheap, library=True), x)
    compare(benchmark, lambda: gradients(cheap, x), {"plain": lambda: gradients(plain, x)}, images=images)


def vit_b16(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(ModelConfig(name=name, weights="random", tune="vpt_deep", head="cosine"), CLASSES)


@pytest.mark.parametrize("name", NETWORKS)
def bench_vit_b16_forward_backward(benchmark, name):
    cheap = vit_b16(name).encoder
    plain, library, x = Plain(cheap), Plain(cheap, library=True), torch.randn(2, 3, 224, 224)
    assert_alike(cheap, plain, x)
    assert_alike(cheap, library, x)
    once = seconds(lambda: gradients(library, x, amp=True)) * 1e3
    peers = {"plain": lambda: gradients(plain, x, amp=True)}
    compare(benchmark, lambda: gradients(cheap, x, amp=True), peers, images=len(x), library_ms=once)


@pytest.mark.parametrize("name", NETWORKS)
def bench_vit_b16_finessl_step(benchmark, name):
    network, kind = vit_b16(name), find("finessl")
    spec = DataSpec("made up", CLASSES, (3, 224, 224), rows=8, unlabelled=8)
    method = kind(kind.Config(), network, spec, unlabelled_batch=1).train()
    image = [torch.randn(1, 3, 224, 224) for _ in range(4)]
    one = torch.zeros(1, dtype=torch.int64)
    batch = Batch((image[0],), one, torch.ones(1), one, tuple(image[1:]), one, one - 1)
    clock, update = Clock(1000, 0), Update(method, method.stage(0, 1000), TrainConfig(lr=0.001))
    cheap, plain = network.encoder, Plain(network.encoder)
    assert_alike(cheap, plain, image[0])

    def step(encoder: nn.Module, weak_pass: str) -> None:
        network.encoder, method.weak_pass = encoder, weak_pass
        clock.advance()
        update.begin(torch.tensor(0.001))
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            method.step(batch, clock, update)
        assert update.ok

    peers = {"plain": lambda: step(plain, "separate"), "published": lambda: step(plain, "joint")}
    compare(benchmark, lambda: step(cheap, "separate"), peers, images=4, prompts=50)
    for form in ("cheap", *peers):
        benchmark.extra_info[f"{form}_steps_per_second"] = 1e3 / benchmark.extra_info[f"{form}_ms"]
