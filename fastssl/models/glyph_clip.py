"""glyph_clip: a small image-text model of our own, shipped with the package so that everything works without a network.

A vision transformer over 32 x 32 pictures and a byte-level transformer over names, trained by contrast (Radford et al. 2021) between
rendered characters and what they are called; see docs/glyph_clip.md and `glyph_training`. It has never seen a data set's images.

Legend: N images, K names, d visual width, e joint width, L bytes of a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastssl.pipelines.errors import SetupError

from .names import TEMPLATES, prompts
from .vit import Block, VisionTransformer

WEIGHTS = Path(__file__).parent / "weights" / "glyph_clip.safetensors"
MEAN = STD = 0.5  # of the pixels that the image tower expects: (x - MEAN) / STD for x in [0, 1], any channel
IMAGE_SIZE = 32
CONTEXT = 48  # bytes of a prompt; longer ones are cut


class GlyphVision(VisionTransformer):
    """The image tower: reads colour pictures by the mean of their channels."""

    def embed_patches(self, x: Tensor) -> Tensor:
        """[N, 1 or 3, 32, 32] -> [N, T, d], in fp32 even under autocast: bf16 convolutions this narrow are slow."""
        with torch.autocast(x.device.type, enabled=False):
            return super().embed_patches(x.float().mean(1, keepdim=True))


class TextTower(nn.Module):
    """A transformer over the UTF-8 bytes of prompts; feature = mean over the bytes, normed."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4):
        super().__init__()
        self.token = nn.Embedding(256, width)
        self.position = nn.Parameter(torch.zeros(CONTEXT, width))
        self.blocks = nn.ModuleList(Block(width, heads, 4.0) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token.weight, std=0.05)
        nn.init.normal_(self.position, std=0.05)

    def forward(self, text: Tensor) -> Tensor:
        """[K, CONTEXT] int64 bytes, padded by 0 -> [K, width]."""
        x = self.token(text) + self.position
        for block in self.blocks:
            x = block(x)
        real = (text != 0).unsqueeze(-1).to(x.dtype)
        return self.norm((x * real).sum(1) / real.sum(1).clamp_min(1))


def tokenize(texts: Sequence[str]) -> Tensor:
    """Prompts -> [K, CONTEXT] int64: their UTF-8 bytes, cut at CONTEXT, padded by 0."""
    rows = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        data = text.encode()[:CONTEXT]
        row[: len(data)] = torch.tensor(list(data), dtype=torch.int64)
    return rows


class GlyphCLIP(nn.Module):
    """Both towers, their projections into the joint space, and the learned scale of the cosine.

    Attributes:
        vision: [N, 1 or 3, 32, 32] normalised fp32 -> [N, d] features; takes deep prompts (see VisionTransformer).
        projection: linear map d -> e without bias, so that a text head on the features is exact (see `text_head`).
        logit_scale: log of the factor on the cosine.
    """

    def __init__(self, width: int = 128, depth: int = 4, heads: int = 4, joint: int = 128, text_width: int = 64):
        super().__init__()
        self.vision = GlyphVision(image_size=IMAGE_SIZE, channels=1, width=width, depth=depth, heads=heads, stem=(32, 64))
        self.projection = nn.Linear(width, joint, bias=False)
        self.text = TextTower(text_width)
        self.text_projection = nn.Linear(text_width, joint, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def encode_image(self, x: Tensor) -> Tensor:
        """[N, 1 or 3, 32, 32] pictures, normalised by MEAN and STD -> [N, e] of unit length."""
        return F.normalize(self.projection(self.vision.forward_features(x)).float(), dim=-1)

    def embed_prompts(self, texts: Sequence[str]) -> Tensor:
        """K texts, as they are -> [K, e] of unit length."""
        tokens = tokenize(texts).to(self.logit_scale.device)
        return F.normalize(self.text_projection(self.text(tokens)).float(), dim=-1)

    def encode_text(self, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
        """K class names -> [K, e] of unit length: the mean over each name's prompts (see `names.prompts`)."""
        groups = [prompts(name, templates) for name in names]
        each = self.embed_prompts([text for group in groups for text in group]).split([len(group) for group in groups])
        return F.normalize(torch.stack([rows.mean(0) for rows in each]), dim=-1)

    def text_head(self, names: Sequence[str]) -> Tensor:
        """K class names -> [K, d] rows T P^T of a head on `vision`'s features: f (T P^T)^T = (f P) T^T, zero-shot up to norms."""
        return self.encode_text(names) @ self.projection.weight.float()

    def zero_shot(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """[N, 1 or 3, 32, 32] pictures and K class names -> [N, K] logits: the cosine times the learned scale."""
        return self.logit_scale.exp() * self.encode_image(images) @ self.encode_text(names).T


def load(weights: str | Path | None = None) -> GlyphCLIP:
    """The model in fp32, in evaluation mode.

    Args:
        weights: a safetensors file as `glyph_training` writes it; None for the one in the package; "random" for fresh weights
            from torch's global generator.

    Raises:
        SetupError: the file is missing, unreadable, or holds another model.
    """
    model = GlyphCLIP().eval()
    if weights == "random":
        return model
    path = WEIGHTS if weights is None else Path(weights)
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise SetupError(f"no weights at {path}; give --weights a glyph_clip safetensors file, or 'random'") from None
    except (OSError, SafetensorError) as fault:
        raise SetupError(
            f"cannot read {path} as safetensors ({fault}); write it anew with: python -m fastssl.models.glyph_training"
        ) from None
    own = model.state_dict()
    wrong = sorted(set(own) ^ set(state)) or sorted(k for k in own if own[k].shape != state[k].shape)
    if wrong:
        raise SetupError(
            f"{path} is no glyph_clip: '{wrong[0]}' is missing, unknown or of another shape; leave --weights out for the built-in file"
        )
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model
