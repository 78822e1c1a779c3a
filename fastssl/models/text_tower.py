"""A text encoder: a network of the transformers library with its pooling, fed by token ids or by their embeddings. Imports no library.

Legend: N texts, L tokens, P prompt vectors, e width of word embeddings, d width of the features.
"""

from __future__ import annotations

import inspect
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .text_card import Pooling


class Layers(NamedTuple):
    """Where an encoder's transformer layers are."""

    blocks: nn.ModuleList
    name: str  # place in the library's network


class TextEncoder(nn.Module):
    """[N, L] token ids, -1 beyond a text's end, or [N, L, e + 1] embedded (see network.py) -> [N, d].

    Args:
        model: the library's network; its `pooler`, which no feature depends on, is taken off.
        pooling: over the tokens of its last layer.
        after: what the card has after the pooling.
        width: d.

    Attributes:
        prompts: [P, e] vectors that enter before the text, as embeddings, or None; or
        room: P places before the text, which deep prompts fill (see text_tuning.py).
    """

    reads_text = True

    def __init__(self, model: nn.Module, pooling: Pooling, after: nn.Module, width: int):
        super().__init__()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        self.model, self.pooling, self.after, self.num_features = model, pooling, after, width
        self.prompts: nn.Parameter | None = None
        self.room = 0

    def embed(self, ids: Tensor) -> Tensor:
        """[N, L] token ids -> [N, L, e + 1]: word embeddings without positions, and 1 where there is a token."""
        there = (ids >= 0).unsqueeze(-1)
        words = self.model.get_input_embeddings()(ids.clamp_min(0))
        return torch.cat([words * there, there.to(words.dtype)], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_floating_point(x):
            x = self.embed(x)
        words, there = x[..., :-1], x[..., -1] > 0
        ahead = self.room if self.prompts is None else len(self.prompts)
        seen, options = there, {}
        if ahead:
            empty = words.new_zeros(ahead, words.shape[-1]) if self.prompts is None else self.prompts.to(words.dtype)
            words = torch.cat([empty.expand(len(words), -1, -1), words], dim=1)
            seen = torch.cat([there.new_ones(len(there), ahead), there], dim=1)
            options = self._positions(ahead, there.shape[1], x.device)
        hidden = self.model(inputs_embeds=words, attention_mask=seen.long(), **options)[0]
        return self.after(self.pooling(hidden[:, ahead:], there))

    def _positions(self, ahead: int, length: int, device: torch.device) -> dict[str, Tensor]:
        """Prompts take the last places of a table of positions, so that the text's are what they were, whatever padding follows it."""
        found = table(self.model)
        if found is None:
            return {}  # positions are relative, and prompts are that far ahead of the text
        first, count = found
        prompts = torch.arange(first + count - ahead, first + count, device=device)
        return {"position_ids": torch.cat([prompts, torch.arange(first, first + length, device=device)])[None]}


def table(model: nn.Module) -> tuple[int, int] | None:
    """(place of the first token, places that tokens can take) of a network's table of positions; None where it has none."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa and MPNet count from behind the pad
            return first, module.num_embeddings - first
    return None


def takes_positions(model: nn.Module) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def layers(encoder: TextEncoder) -> Layers | None:
    """The transformer layers of an encoder: the one list of modules that is as long as its description says. None where there is none,
    as where all layers share their weights (ALBERT)."""
    wanted = getattr(encoder.model.config, "num_hidden_layers", None)
    found = [(name, m) for name, m in encoder.model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == wanted]
    outer = [(name, m) for name, m in found if not any(name.startswith(f"{other}.") for other, _ in found if other != name)]
    return Layers(outer[0][1], outer[0][0]) if len(outer) == 1 else None


def layer_numbers(encoder: TextEncoder) -> tuple[dict[str, int], int] | None:
    """Parameter name -> layer, and the layer of the head (see `towers.layers`).

    Embeddings, of positions too, are layer 0; layer l (from 0) is l + 1, and prompts that enter before all layers go with the first; a
    final norm goes with the last layer, dense steps of the card with the head.
    """
    found = layers(encoder)
    if found is None:
        return None
    depth, start = len(found.blocks), f"model.{found.name}."
    tops = [name for name, _ in encoder.model.named_children()]
    result: dict[str, int] = {}
    for name, _ in encoder.named_parameters():
        if name.startswith(start):
            result[name] = int(name.removeprefix(start).split(".")[0]) + 1
        elif name.startswith("model."):
            late = tops.index(name.split(".")[1]) > tops.index(found.name.split(".")[0])
            result[name] = depth if late else 0
        else:
            result[name] = 1 if name == "prompts" else depth + 1
    return result, depth + 1
