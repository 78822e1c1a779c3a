"""What is added to a transformer block: low-rank updates, bottlenecks, scales and shifts, prompt vectors, with their published starts.

Formulas and initial values are those of FineSSL's code (Gan & Wei 2024), which follows LoRA (Hu et al. 2022), Adapter (Houlsby et
al. 2019), AdaptFormer (Chen et al. 2022), SSF (Lian et al. 2022) and VPT (Jia et al. 2022). `like` is a tensor of the block, whose
device and dtype the new weights take. All draws come from torch's global generator.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


class LowRank(nn.Module):
    """LoRA's update of one linear map: x A B / r with A [d, r] from kaiming-uniform(sqrt 5) and B [r, a] zero.

    Held as weights of two linear maps, `down` [r, d] = A^T and `up` [a, r] = B^T.
    """

    def __init__(self, inside: int, outside: int, rank: int, like: Tensor):
        super().__init__()
        self.rank = rank
        self.down = nn.Parameter(like.new_empty(rank, inside))
        self.up = nn.Parameter(like.new_zeros(outside, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., a], to be added to the map's own output."""
        return F.linear(F.linear(x, self.down), self.up) / self.rank

    def weight(self) -> Tensor:
        """[a, d] fp64: what the update adds to the map's own weight."""
        return self.up.detach().double() @ self.down.detach().double() / self.rank


class Bottleneck(nn.Module):
    """scale * U(dropout(relu(D(LN(x))))) with d -> r -> d; U and both biases start at zero, so it starts as nothing.

    Args:
        width: d.
        rank: r.
        scale: the factor, fixed.
        dropout: on the r values while training (AdaptFormer: 0.1).
        normal: D from kaiming-normal(sqrt 5) (Adapter) instead of kaiming-uniform(sqrt 5) (AdaptFormer).
    """

    def __init__(self, width: int, rank: int, scale: float, like: Tensor, *, dropout: float = 0.0, normal: bool = False):
        super().__init__()
        kind = {"device": like.device, "dtype": like.dtype}
        self.norm = nn.LayerNorm(width, **kind)
        self.down = nn.Linear(width, rank, **kind)
        self.up = nn.Linear(rank, width, **kind)
        self.scale, self.dropout = scale, dropout
        (nn.init.kaiming_normal_ if normal else nn.init.kaiming_uniform_)(self.down.weight, a=math.sqrt(5))
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, d] -> [N, T, d], to be added."""
        hidden = F.dropout(F.relu(self.down(self.norm(x))), self.dropout, self.training)
        return self.scale * self.up(hidden)


class ScaleShift(nn.Module):
    """SSF: y * scale + shift for each channel; scale from N(1, 0.02), shift from N(0, 0.02)."""

    def __init__(self, size: int, like: Tensor):
        super().__init__()
        self.scale = nn.Parameter(like.new_empty(size).normal_(1.0, 0.02))
        self.shift = nn.Parameter(like.new_empty(size).normal_(0.0, 0.02))

    def forward(self, y: Tensor, part: slice = slice(None)) -> Tensor:
        """[..., size] -> the same, in y's dtype; `part` says which of the channels y holds."""
        # The product is formed in the weights' precision: a scale near 1 has but 7 bits in bf16.
        return (y * self.scale[part] + self.shift[part]).to(y.dtype)


def prompts(count: int, patch: int, width: int, like: Tensor) -> nn.Parameter:
    """[P, d] prompt vectors from U(-v, v), v = sqrt(6 / (3 patch^2 + d)) (VPT, and FineSSL's code); `patch` in pixels."""
    bound = math.sqrt(6 / (3 * patch * patch + width))
    return nn.Parameter(like.new_empty(count, width).uniform_(-bound, bound))
