"""A small vision transformer whose blocks accept prompts as batch-shared prefix keys and values.

Legend: N images, T tokens (class token first), d width, h heads, P prompts of a block.

VPT-deep (Jia et al. 2022) inserts P prompt vectors before every block and drops their outputs before the next one, so of a
prompt only its keys and values ever matter: LN(prompt) W_kv, computed once for the whole batch and appended to every
image's keys and values. Where the network pools the class token, the last block computes that token alone. Both cuts are
exact: outputs and prompt gradients equal those of the plain form.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with fused query, key and value weights."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width must divide by heads, got {width} and {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, prefix: Tensor | None = None, queries: int | None = None) -> Tensor:
        """[N, T, d] and optionally [P, d] prefix -> [N, queries or T, d]."""
        n, tokens, width = x.shape
        if queries is None:
            q, k, v = self.qkv(x).split(width, dim=-1)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x[:, :queries], weight[:width], bias[:width])
            k, v = F.linear(x, weight[width:], bias[width:]).split(width, dim=-1)
        if prefix is not None:
            shared = F.linear(prefix, self.qkv.weight[width:], self.qkv.bias[width:])  # [P, 2d], once a batch
            shared = shared.to(k.dtype).expand(n, *shared.shape)
            prefix_k, prefix_v = shared.split(width, dim=-1)
            k, v = torch.cat([k, prefix_k], dim=1), torch.cat([v, prefix_v], dim=1)
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        return self.proj(attend(q, k, v))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[N, T, a] -> [N, h, T, a / h]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


_SCORES = 1 << 25  # of a piece, two bytes each


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Softmax attention, scores scaled by 1 / sqrt(a / h): q [N, h, Tq, a / h], k and v [N, h, Tk, a / h] -> [N, Tq, a]."""
    if q.device.type == "cpu" and q.dtype == k.dtype == v.dtype == torch.bfloat16:
        out = _in_bfloat16(q, k, v, dropout)
    elif q.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            q, k, v = (t if t.dtype == torch.float64 else t.float() for t in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return out.transpose(1, 2).flatten(2)


def _in_bfloat16(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Attention as two matrix products: [N, h, T, a / h] bf16 each -> [N, h, Tq, a / h] bf16.

    On a CPU with avx512_bf16 torch's fused attention is as slow in bf16 as in fp32, and 5 to 8 times slower over a few dozen tokens; this
    form takes a half to a third of the fp32 time, forward and backward. It keeps its scores, which is what fused attention is there to
    avoid: without gradients they are made in pieces of 64 MiB. Scores and weights are rounded to bf16, which fused attention spares: it is
    off by 0.4 % where scores are near 1 and by 1 % where they are near 10 (fused 0.2 %, measured against fp64 over 65 tokens).
    """
    images, heads, queries, depth = q.shape
    pieces = 1 if torch.is_grad_enabled() else max(1, -(-images * heads * queries * k.shape[2] // _SCORES))
    parts = zip(*(t.chunk(max(1, min(pieces, images))) for t in (q * depth**-0.5, k, v)), strict=True)
    made = []
    with torch.autocast("cpu", enabled=False):
        for some, keys, values in parts:
            weights = (some @ keys.transpose(-2, -1)).softmax(-1)
            made.append((F.dropout(weights, dropout) if dropout else weights) @ values)
    return made[0] if len(made) == 1 else torch.cat(made)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, prefix: Tensor | None = None, queries: int | None = None) -> Tensor:
        """[N, T, d] -> [N, queries or T, d]; `prefix` is the block's own [P, d] prompt vectors."""
        shared = None if prefix is None else self.norm1(prefix)
        x = x[:, :queries] + self.attn(self.norm1(x), shared, queries)
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Vision transformer with a convolutional stem of stride-2 3x3 convolutions; features are the normed class token.

    Args:
        image_size: side of the square input, in pixels; must divide by 2 ** (len(stem) + 1).
        channels: input channels.
        width, depth, heads, mlp_ratio: the transformer's.
        stem: channels of the hidden convolutions; one more brings the result to `width`.
    """

    pools = "cls"

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 1,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        stem: tuple[int, ...] = (32, 64),
    ):
        super().__init__()
        stride = 2 ** (len(stem) + 1)
        if image_size % stride:
            raise ValueError(f"image_size must divide by {stride} for a stem of {len(stem) + 1} convolutions, got {image_size}")
        self.image_size = image_size
        self.channels = channels
        self.patch = stride
        self.num_features = width
        layers: list[nn.Module] = []
        for inside, outside in zip((channels, *stem[:-1]), stem, strict=True):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.GELU()]
        self.stem = nn.Sequential(*layers, nn.Conv2d(stem[-1], width, 3, stride=2, padding=1))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // stride) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def embed_patches(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, T, d] tokens, class token first, positions added. Colour is averaged where the stem takes grey."""
        if self.channels == 1 and x.shape[1] != 1:
            x = x.mean(dim=1, keepdim=True)
        # The CPU's bf16 convolutions are slow backward, and the stem is a small part of the work: it stays in the input's type there.
        with torch.autocast(x.device.type, enabled=False) if x.device.type == "cpu" else contextlib.nullcontext():
            tokens = self.stem(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.to(tokens.dtype).expand(len(x), -1, -1), tokens], dim=1)
        return tokens + self.pos_embed

    def forward_features(self, x: Tensor, prompts: Tensor | None = None) -> Tensor:
        """[N, C, H, W] images and optionally [depth, P, d] deep prompts -> [N, d] features."""
        if x.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"images must be {self.image_size}x{self.image_size} pixels, got {x.shape[-2]}x{x.shape[-1]}")
        x = self.embed_patches(x)
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(x, None if prompts is None else prompts[i], 1 if i == last else None)
        return self.norm(x[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)
