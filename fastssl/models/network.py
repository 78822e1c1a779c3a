"""The words of this room: what a network wants to see, what it answers with, and what there is to say about how it was made."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn


class Output(NamedTuple):
    logits: Tensor  # [N, C]
    features: Tensor  # [N, d]


class InputSpec(NamedTuple):
    """What a network wants to see: square side in pixels (None: any), constants that normalise [0, 1] colours, way of resizing."""

    size: int | None
    mean: tuple[float, float, float] | None = None  # None: the data set's own
    std: tuple[float, float, float] | None = None
    interpolation: str = "bicubic"  # or "bilinear": how images of another size were brought to `size` when the weights were trained


@dataclass
class Report:
    """What a network's making left to say: `notes` for the log, `warnings` where something may not be as the user thinks."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


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
    """An encoder ([N, C, H, W] -> [N, d]) and one classifier head ([N, d] -> [N, classes]).

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
