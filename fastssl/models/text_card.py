"""How a sentence encoder makes one vector of a text's tokens: the card that sentence-transformers keeps beside the weights.

A card is modules.json, which names the steps in order: the encoder, a pooling over tokens, and what follows it. Without one, the mean
over a text's tokens is taken.

Legend: N texts, L tokens, d width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pipelines.errors import SetupError
from . import weights

# In the order in which the library joins them.
POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = {"Tanh": nn.Tanh, "Identity": nn.Identity, "ReLU": nn.ReLU, "GELU": nn.GELU}


class Card(NamedTuple):
    """What a folder says about its sentence encoder."""

    there: bool  # whether it has a card
    network: Path  # folder of the encoder's config.json and weights
    poolings: tuple[str, ...]  # of the values of POOLINGS
    longest: int | None  # tokens that it was trained on
    steps: tuple[tuple[str, Path], ...]  # after the pooling: "Normalize" or "Dense", and the step's folder
    unheeded: tuple[str, ...] = ()  # what it asks for that is not done here


class Pooling(nn.Module):
    """[N, L, d] tokens and [N, L] bool, which of them are there -> [N, d times the number of poolings]."""

    def __init__(self, poolings: tuple[str, ...]):
        super().__init__()
        self.poolings = poolings

    def forward(self, tokens: Tensor, there: Tensor) -> Tensor:
        x = tokens if tokens.dtype == torch.float64 else tokens.float()
        seen = there.unsqueeze(-1).to(x.dtype)
        count = seen.sum(1).clamp_min(1e-9)  # of a row without tokens, zeros come out
        made = {
            "cls": lambda: x[:, 0],
            "max": lambda: x.masked_fill(seen == 0, -1e9).amax(1),
            "mean": lambda: (x * seen).sum(1) / count,
            "mean_sqrt_len_tokens": lambda: (x * seen).sum(1) / count.sqrt(),
            "weightedmean": lambda: (x * self._rising(seen)).sum(1) / self._rising(seen).sum(1).clamp_min(1e-9),
            "lasttoken": lambda: (x * self._last(seen)).sum(1),
        }
        return torch.cat([made[name]() for name in self.poolings], dim=-1)

    @staticmethod
    def _rising(seen: Tensor) -> Tensor:
        return seen * torch.arange(1, seen.shape[1] + 1, device=seen.device, dtype=seen.dtype)[:, None]

    @staticmethod
    def _last(seen: Tensor) -> Tensor:
        return (seen.cumsum(1) == seen.sum(1, keepdim=True)) * seen


class Normalize(nn.Module):
    """Rows of unit length."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


class Dense(nn.Module):
    """A linear map with an activation; weights under sentence-transformers' names."""

    def __init__(self, inside: int, outside: int, bias: bool, activation: nn.Module):
        super().__init__()
        self.linear = nn.Linear(inside, outside, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))


def read(folder: Path, name: str) -> Card:
    """The card of a folder; of one without modules.json, what takes its place.

    Raises:
        SetupError: a card that cannot be read, or a step that is not known here.
    """
    if not (folder / "modules.json").is_file():
        return Card(False, folder, ("mean",), None, ())
    network, poolings, steps = folder, (), []
    for module in load_json(folder / "modules.json", name):
        kind, place = str(module.get("type", "")).rpartition(".")[2], folder / str(module.get("path", ""))
        if kind == "Transformer":
            network = place
        elif kind == "Pooling":
            poolings = _poolings(load_json(place / "config.json", name), name)
        elif kind in ("Normalize", "Dense"):
            steps.append((kind, place))
        elif kind != "Dropout":  # in evaluation it is nothing, and model.dropout is ours
            known = "Transformer, Pooling, Dense, Normalize and Dropout"
            raise SetupError(
                f"{name}: its modules.json has a step {kind or '(nameless)'}, and {known} are known here; take another encoder"
            )
    if not poolings:
        raise SetupError(f"{name}: its modules.json names no pooling; sentence encoders without one are not known here")
    about = network / "sentence_bert_config.json"
    said = load_json(about, name) if about.is_file() else {}
    return Card(True, network, poolings, said.get("max_seq_length"), tuple(steps), _unheeded(folder, said, name))


def _unheeded(folder: Path, said: dict[str, Any], name: str) -> tuple[str, ...]:
    """What the card asks for that is not done here."""
    more = folder / "config_sentence_transformers.json"
    prompt = load_json(more, name).get("default_prompt_name") if more.is_file() else None
    return (
        *(["texts in lower case (do_lower_case)"] if said.get("do_lower_case") else []),
        *([f"the prompt '{prompt}' before each text"] if prompt else []),
    )


def steps(card: Card, width: int, name: str, trained: bool) -> tuple[nn.Sequential, int]:
    """What follows the pooling, with its weights where `trained`, and the width that comes out of it."""
    made: list[nn.Module] = []
    for kind, place in card.steps:
        if kind == "Normalize":
            made.append(Normalize())
            continue
        about = load_json(place / "config.json", name)
        activation = str(about.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2].rstrip("()")
        if activation not in ACTIVATIONS:
            raise SetupError(f"{name}: its dense step has the activation {activation}, and {', '.join(ACTIVATIONS)} are known here")
        dense = Dense(about["in_features"], about["out_features"], about.get("bias", True), ACTIVATIONS[activation]())
        if dense.linear.in_features != width:
            raise SetupError(f"{name}: its dense step takes {dense.linear.in_features} features, and {width} come before it")
        if trained:
            file = place / "model.safetensors"
            if not file.is_file():
                raise SetupError(f"{name}: its dense step {place.name} has no model.safetensors, and weights of other formats are not read")
            state = weights.read(file)
            if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in dense.state_dict().items()}:
                raise SetupError(f"{name}: the tensors of its dense step {place.name} are not those that its config.json describes")
            dense.load_state_dict(state)
        width = dense.linear.out_features
        made.append(dense)
    return nn.Sequential(*made).float(), width


def load_json(path: Path, name: str) -> Any:
    """What a JSON file holds. Raises SetupError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SetupError(f"{name}: cannot read {path} ({error})") from None


def _poolings(about: dict[str, Any], name: str) -> tuple[str, ...]:
    named = about.get("pooling_mode")  # the form of later versions: one name, or several
    if named is not None:
        found = tuple([named] if isinstance(named, str) else named)
    else:
        found = tuple(short for key, short in POOLINGS.items() if about.get(key))
    strange = [one for one in found if one not in POOLINGS.values()]
    if strange or not found:
        raise SetupError(
            f"{name}: its pooling is {', '.join(strange) or 'none'}, and {', '.join(POOLINGS.values())} are known here; take another"
        )
    return found
