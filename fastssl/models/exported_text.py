"""A trained network for texts as files for others; see exported.py, whose table this adds to.

| layout | what the file holds | what loads it, strictly |
|---|---|---|
| transformers | the library's network, adapters folded in; the head lies in a second file | transformers.AutoModel, and `--weights` |
| fastssl | the network as it was trained | `exported.load` |

The second is taken where adapters, prompts, dense steps or the pooling leave no plain form.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from ..config import ModelConfig
from ..pipelines.errors import ConfigError
from . import bare, build, heads, peft, plain
from .exported import LOAD, Exported, places
from .network import Network, TextInput
from .text_card import Dense, Normalize

POOLED = {"mean": "features = (hidden * there).sum(1) / there.sum(1)", "cls": "features = hidden[:, 0]"}


def pack(network: Network, config: ModelConfig, text: TextInput, longest: int, out: Path, *, merged: bool | None = None) -> Exported:
    """Brings a trained network into the form of its files; arguments and errors as `exported.pack`'s.

    Args:
        text: what the network reads. longest: tokens of a text that the run read.
    """
    left = [*peft.kept(network.encoder), *_apart(network)]
    if left and merged:
        raise ConfigError(
            f"--merged: {', '.join(left)} cannot be folded into a network's weights; leave --merged out to export them as they are"
        )
    about: dict[str, Any] = {"head": heads.kind_of(network.head), "tune": config.tune, "kept": left}
    if merged is False or left:
        note = f"{', '.join(left)} cannot be folded into a network's weights: kept, and fastssl alone builds this network" if left else None
        code = ["from fastssl.models import exported", "", f'model, about = exported.load("{out.name}")', "logits = model(ids).logits"]
        about = {"layout": "fastssl", **about, "python": code}
        return Exported({out: dict(network.state_dict())}, about, None if merged is False else note)
    state = peft.merge(network.encoder).model.state_dict()
    off = _difference(network, config, state)
    if not off <= plain.TOLERANCE:  # NaN too
        raise ConfigError(f"{config.name} in its own library answers random texts with logits that are off by {off:.1g}; give --kept")
    head = places(out)[1]
    code = _code(network, text, longest, out, head)
    about = {"layout": "transformers", **about, "largest_difference": off, "python": code}
    return Exported({out: dict(state), head: dict(network.head.state_dict())}, about, None)


def _apart(network: Network) -> list[str]:
    """What no file of the library's network has a place for."""
    poolings = network.encoder.pooling.poolings
    found = [] if len(poolings) == 1 and poolings[0] in POOLED else [f"the pooling {'+'.join(poolings)}"]
    return found + ["a dense step of its card"] * any(isinstance(step, Dense) for step in network.encoder.after)


def _difference(network: Network, config: ModelConfig, state: dict[str, torch.Tensor]) -> float:
    """Of the logits that a fresh network with these weights gives two random texts from the trained one's."""
    with torch.random.fork_rng(devices=[]):
        fresh = build(dataclasses.replace(bare(config), tune="full"), ("a", "b")).encoder
    fresh.model.load_state_dict(state, strict=True)
    ids = torch.randint(fresh.model.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    ids[1, 7:] = -1
    with torch.no_grad():
        return plain.difference(network.head(fresh.eval()(ids)), network(ids).logits)


def _code(network: Network, text: TextInput, longest: int, out: Path, head: Path) -> list[str]:
    """The Python that loads the files and answers a list of texts."""
    place = text.tokenizer
    normal = any(isinstance(step, Normalize) for step in network.encoder.after)
    return [
        "import torch.nn.functional as F",
        LOAD,
        "from transformers import AutoConfig, AutoModel, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{place}")',
        f'model = AutoModel.from_config(AutoConfig.from_pretrained("{place}"))',
        'if hasattr(model, "pooler"):',
        "    model.pooler = None",
        f'model.load_state_dict(load_file("{out.name}"), strict=True)',
        "model.eval()",
        f'tokens = tokenizer(texts, padding=True, truncation=True, max_length={longest}, return_tensors="pt")',
        "hidden = model(**tokens).last_hidden_state",
        'there = tokens["attention_mask"].unsqueeze(-1)',
        POOLED[network.encoder.pooling.poolings[0]],
        *["features = F.normalize(features, dim=-1)"] * normal,
        f'head = load_file("{head.name}")',
        plain.head_code(network.head),
    ]
