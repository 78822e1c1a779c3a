"""Deep visual prompts: the exact cheap form against the plain one, forward and backward, on the CPU.

Correctness first: outputs and prompt gradients must agree before anything is timed. `ratio_to_plain` is the median of paired
ratios, plain over cheap, rounds interleaved in one process.
"""

import statistics
import time

import pytest
import torch

from fastssl.models.vit import VisionTransformer
from tests.fastssl.models.test_vit import plain_forward

ROUNDS = 7
# name: (image side, width, depth, heads, stem, prompts, images); the second has the 197 tokens of a ViT-B/16 at 224 pixels, narrower
SHAPES = {
    "glyph_clip_17tokens": (32, 128, 6, 4, (32, 64), 8, 96),
    "vit_197tokens": (224, 192, 4, 3, (24, 48, 96), 50, 8),
}


@pytest.mark.parametrize("shape", SHAPES)
def bench_prompts(benchmark, shape):
    side, width, depth, heads, stem, count, images = SHAPES[shape]
    torch.manual_seed(0)
    vit = VisionTransformer(side, 1, width, depth, heads, stem=stem).requires_grad_(False)
    x = torch.randn(images, 1, side, side)
    prompts = torch.randn(depth, count, width).mul_(0.05).requires_grad_()

    def cheap():
        prompts.grad = None
        vit.forward_features(x, prompts).square().sum().backward()
        return prompts.grad

    def plain():
        prompts.grad = None
        plain_forward(vit, x, prompts).square().sum().backward()
        return prompts.grad

    assert torch.allclose(cheap().clone(), plain(), rtol=1e-3, atol=1e-4)
    ratios = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        plain()
        middle = time.perf_counter()
        cheap()
        ratios.append((middle - start) / (time.perf_counter() - middle))
    benchmark.extra_info["ratio_to_plain"] = statistics.median(ratios)
    benchmark.pedantic(cheap, rounds=ROUNDS)
