"""Parameter-efficient tuning: what of a network trains.

`full` trains everything, `linear` the head alone, `vpt_deep` (Jia et al. 2022, as in FineSSL) prompt vectors before every
block of a frozen transformer, and the head. The prompts' exact cheap form lives in the blocks (vit.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..pipelines.errors import ConfigError


class PromptedEncoder(nn.Module):
    """A frozen vision transformer with trainable deep prompts.

    Args:
        encoder: a transformer with `blocks`, `num_features` and `forward_features(x, prompts)`.
        count: P prompt vectors before each block.
        patch: side of a patch in pixels, for the published range of initial values: U(-v, v), v = sqrt(6 / (3 patch^2 + d)).
    """

    def __init__(self, encoder: nn.Module, count: int, patch: int):
        super().__init__()
        if count < 1:
            raise ConfigError(f"model.prompts must be at least 1 for vpt_deep, got {count}")
        self.encoder = encoder.requires_grad_(False)
        self.num_features = encoder.num_features
        bound = math.sqrt(6 / (3 * patch * patch + encoder.num_features))
        self.prompts = nn.Parameter(torch.empty(len(encoder.blocks), count, encoder.num_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, d]."""
        return self.encoder.forward_features(x, self.prompts)


def tune(encoder: nn.Module, how: str, *, name: str, prompts: int) -> nn.Module:
    """Returns the encoder with just those weights trainable that `how` names (the head trains in any case).

    Raises:
        ConfigError: prompts asked of a network that has no transformer blocks.
    """
    if how == "full":
        return encoder
    if how == "linear":
        return encoder.requires_grad_(False)
    if how == "vpt_deep":
        if not hasattr(encoder, "blocks"):
            raise ConfigError(
                f"--tune vpt_deep needs a network with transformer blocks, and {name} has none; take --tune full or --model glyph_clip"
            )
        return PromptedEncoder(encoder, prompts, encoder.patch)
    raise ConfigError(f"model.tune must be full, linear or vpt_deep, got '{how}'")
