"""The words of this room: what a network wants to see, what it answers with, and what there is to say about how it was made."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Output(NamedTuple):
    logits: Tensor  # [N, C]
    features: Tensor  # [N, d]


class TextInput(NamedTuple):
    """What a network for texts wants to see."""

    tokenizer: str  # folder or hub name
    longest: int  # tokens that the encoder takes at most, special ones included


class InputSpec(NamedTuple):
    """What a network wants to see: square side in pixels (None: any), constants for [0, 1] colours, way of resizing; or texts."""

    size: int | None
    mean: tuple[float, float, float] | None = None  # None: the data set's own
    std: tuple[float, float, float] | None = None
    interpolation: str = "bicubic"  # or "bilinear": how images of another size were brought to `size` when the weights were trained
    text: TextInput | None = None  # a network for texts, to which none of the above applies


@dataclass
class Report:
    """What the making of a network, or of a method's stage, left to say.

    Attributes:
        notes: for the log. warnings: where something may not be as the user thinks.
        values: of a stage: name -> number of what it changed; logged, and part of the run's result.
    """

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)


class Made(NamedTuple):
    """A raw encoder, and the rows of a head that starts from class names."""

    encoder: nn.Module  # [N, 3, H, W] -> [N, d], with `num_features` = d
    text_rows: Tensor | None = None  # [C, d]


class Contrast(NamedTuple):
    """An image tower with what makes a zero-shot classifier of it."""

    encoder: nn.Module  # [N, 3, H, W] -> [N, d], with `num_features` = d
    projection: Tensor | None  # [d, e] into the joint space; None where the features lie in it (d = e)
    text: Tensor  # [C, e], the classes' text features
    scale: float  # the model's own factor on the cosine


class Network(nn.Module):
    """An encoder and one classifier head ([N, d] -> [N, classes]).

    An encoder for images maps [N, C, H, W] -> [N, d]. One for texts says `reads_text = True`, maps [N, L] token ids, -1 beyond a text's
    end, and has `embed`, which makes the embedded form of them: [N, L, e + 1] word embeddings, in the last channel 1 where there is a token
    and 0 beyond the end. It maps that form too, so that texts can be mixed and moved as images are.

    Args:
        dropout: probability that training drops a feature before the head.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, dropout: float = 0.0):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x: Tensor) -> Output:
        features = self.encoder(x)
        return Output(self.head(features if self.dropout is None else self.dropout(features)), features)

    @property
    def reads_text(self) -> bool:
        return getattr(self.encoder, "reads_text", False)

    def continuous(self, x: Tensor) -> Tensor:
        """Inputs that can be mixed and moved: images as they are, texts embedded, with gradient to the embeddings."""
        return x if torch.is_floating_point(x) else self.encoder.embed(x)

    def movable(self, x: Tensor, r: Tensor) -> Tensor:
        """What of r [N, ...] can move continuous inputs x: all of it for images; for texts the embeddings of tokens, and 0 elsewhere."""
        if not self.reads_text:
            return r
        r = r * (x[..., -1:] > 0)
        return torch.cat([r[..., :-1], torch.zeros_like(r[..., -1:])], dim=-1)

    def moved(self, x: Tensor, r: Tensor) -> Tensor:
        """Continuous inputs x [N, ...] + r, so far as they can move."""
        return x + self.movable(x, r)

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        if not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.train(False)  # a frozen encoder keeps its batch-norm statistics too
        return self

    @property
    def has_batchnorm(self) -> bool:
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules())


def unknown_network(name: str, known: Iterable[str], lister: str) -> str:
    """One sentence for a name that a library does not know: its nearest names, or how to list them all."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"unknown model '{name}'; " + (f"did you mean {' or '.join(near)}?" if near else f"{lister} in Python lists all names")
