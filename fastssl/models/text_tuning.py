"""Tuning of text encoders: the names of peft.py that they take, and what each adds.

| name | what trains or is added |
|---|---|
| full, linear, lp_ft, bias | as on every network |
| last_k | the last `partial` layers (1 if not said), and a final norm |
| lora | low-rank updates of the query and value maps of every layer's attention |
| adapter | a bottleneck on the output of every layer's last map, before its dropout and residual |
| vpt_shallow | `prompts` vectors before the text, as word embeddings: all layers see them, the pooling does not |
| vpt_deep | `prompts` places before the text, filled afresh before each layer by vectors of its own |

Maps are found by their names, and a network whose maps are not known is refused. Legend as in text_tower.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..pipelines.errors import ConfigError
from . import adapters
from .text_tower import TextEncoder, layers, table, takes_positions

KNOWN = ("full", "linear", "lp_ft", "last_k", "bias", "lora", "adapter", "vpt_shallow", "vpt_deep")
QUERIES = ("query", "query_proj", "q_proj", "q_lin", "q")
VALUES = ("value", "value_proj", "v_proj", "v_lin", "v")
FUSED = ("Wqkv",)  # rows of query, key and value, one after the other


class Around(nn.Module):
    """Stands where `inner` stood, and keeps its names in every state_dict. Other attributes are the inner module's."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        state = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        begin = prefix + "inner."
        for key in [key for key in state if key.startswith(begin)]:
            state[prefix + key.removeprefix(begin)] = state.pop(key)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Called on this module's part of the state, before its members take theirs: names go back to where the weights are.
        members = {*self._modules, *self._parameters}
        for key in [key for key in state_dict if key.startswith(prefix)]:
            rest = key.removeprefix(prefix)
            if rest.split(".")[0] not in members:
                state_dict[f"{prefix}inner.{rest}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


class TunedMap(Around):
    """A linear map with LoRA's updates of some thirds of its rows, or with a bottleneck on what comes out of it.

    Args:
        inner: the map, [..., d] -> [..., a].
        parts: of how many equal parts its rows are (3 where query, key and value are one map).
        updated: which of the parts get an update; () for none.
    """

    def __init__(self, inner: nn.Linear, config: ModelConfig, *, parts: int = 1, updated: tuple[int, ...] = (), adapter: bool = False):
        super().__init__(inner)
        width, like = inner.out_features // parts, inner.weight
        self.parts = parts
        self.lora = nn.ModuleDict({str(p): adapters.LowRank(inner.in_features, width, config.lora_rank, like) for p in updated})
        rank, scale = config.adapter_rank, config.adapter_scale
        self.adapter = adapters.Bottleneck(inner.out_features, rank, scale, like, normal=True) if adapter else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if len(self.lora):
            pieces = list(y.chunk(self.parts, dim=-1))
            for place, update in self.lora.items():
                pieces[int(place)] = pieces[int(place)] + update(x)
            y = pieces[0] if self.parts == 1 else torch.cat(pieces, dim=-1)
        return y if self.adapter is None else y + self.adapter(y)

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The map itself with the updates in its weight (changed in place). Only where it has no bottleneck."""
        width = self.inner.out_features // self.parts
        for place, update in self.lora.items():
            rows = self.inner.weight[int(place) * width : (int(place) + 1) * width]
            rows.copy_(rows.double() + update.weight())
        return self.inner


class PromptedLayer(Around):
    """A layer before which the first P tokens are replaced by its own prompts [P, d]."""

    def __init__(self, inner: nn.Module, prompts: nn.Parameter):
        super().__init__(inner)
        self.prompts = prompts

    def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Any:
        own = self.prompts.to(hidden_states.dtype).expand(len(hidden_states), -1, -1)
        return self.inner(torch.cat([own, hidden_states[:, len(self.prompts) :]], dim=1), *args, **options)


def tune(encoder: TextEncoder, names: tuple[str, ...], config: ModelConfig, name: str) -> TextEncoder:
    """Builds in what `names` add, and lets train what they name (see `peft.tune`). Changes the encoder in place.

    Raises:
        ConfigError: a tuning that this encoder cannot take.
    """
    how, found = config.tune, layers(encoder)
    strange = [wanted for wanted in names if wanted not in KNOWN]
    if strange:
        raise ConfigError(f"--tune {strange[0]} is none of text encoders, and {name} is one; take {', '.join(KNOWN[:-1])} or {KNOWN[-1]}")
    prompted = [wanted for wanted in names if wanted.startswith("vpt_")]
    by_layer = set(names) & {"last_k", "lora", "adapter", "vpt_deep"} or (config.partial is not None and "bias" in names)
    if by_layer and found is None:
        raise ConfigError(f"--tune {how} goes by transformer layers, and {name} has none that are known here; take full, linear or bias")
    if config.partial is not None and set(names) & {"full", "linear", "lp_ft"}:
        raise ConfigError(f"model.partial says how many layers are tuned, and --tune {how} does not go by layers; leave it out")
    if config.partial is not None and prompted:
        raise ConfigError(f"model.partial does not go with {prompted[0]} of text encoders, whose prompts every layer sees; leave it out")
    depth = len(found.blocks) if found is not None else 0
    if config.partial is not None and config.partial > depth:
        raise ConfigError(f"model.partial must be at most the {depth} layers of {name}, got {config.partial}")
    if prompted and table(encoder.model) is not None and not takes_positions(encoder.model):
        raise ConfigError(
            f"--tune {how}: the installed transformers gives {name} no position_ids, and prompts need them; upgrade transformers"
        )
    if names[0] not in ("full", "lp_ft"):
        encoder.requires_grad_(False)
    for wanted in names:
        _train(encoder, wanted, config.partial)
    for i in range(depth - (config.partial or depth), depth) if found is not None else ():
        _build_in(found.blocks, i, names, config, f"--tune {how}: {name}")
    if "vpt_deep" in names:
        encoder.room = config.prompts
    if "vpt_shallow" in names:
        encoder.prompts = _prompts(config.prompts, encoder.model.get_input_embeddings().weight)
    return encoder


def kept(encoder: TextEncoder) -> tuple[str, ...]:
    """What `merged` cannot fold: of "prompts" and "adapter"."""
    prompted = encoder.prompts is not None or encoder.room > 0
    bottled = any(isinstance(m, TunedMap) and m.adapter is not None for m in encoder.modules())
    return ("prompts",) * prompted + ("adapter",) * bottled


def merge(encoder: TextEncoder) -> TextEncoder:
    """Folds LoRA into the weights, the library's own maps back in place. Changes the encoder; only where `kept` is empty."""
    for name, module in list(encoder.named_modules()):
        if isinstance(module, TunedMap):
            _put(encoder, name, module.folded())
    return encoder


def _train(encoder: TextEncoder, wanted: str, partial: int | None) -> None:
    found = layers(encoder)
    if wanted == "bias" and partial is None:
        chosen = list(encoder.named_parameters())
    elif wanted in ("bias", "last_k"):
        late = found.blocks[len(found.blocks) - (partial or 1) :]
        tops = dict(encoder.model.named_children())
        after = list(tops.values())[list(tops).index(found.name.split(".")[0]) + 1 :]
        chosen = [pair for module in (*late, *after) for pair in module.named_parameters()]
    else:
        return
    for key, parameter in chosen:
        if wanted != "bias" or key.endswith("bias"):
            parameter.requires_grad_(True)


def _build_in(blocks: nn.ModuleList, i: int, names: tuple[str, ...], config: ModelConfig, who: str) -> None:
    """What layer `i` gets of lora, adapter and deep prompts."""
    block = blocks[i]
    maps = [(place, m) for place, m in block.named_modules() if isinstance(m, nn.Linear)]
    if "lora" in names:
        chosen = list(_attention_maps(maps))
        if sorted(part for _, _, updated in chosen for part in updated) not in ([0, 0], [0, 2]):
            seen = ", ".join(place for place, _ in maps)
            raise ConfigError(
                f"{who} has no query and value maps that are known here, among {seen or 'no linear maps'}; take full or last_k"
            )
        for place, parts, updated in chosen:
            _put(block, place, TunedMap(block.get_submodule(place), config, parts=parts, updated=updated))
    if "adapter" in names:
        if not maps or "attention" in maps[-1][0]:
            raise ConfigError(f"{who} has no MLP that is known here; take full or last_k")
        _put(block, maps[-1][0], TunedMap(maps[-1][1], config, adapter=True))  # of a layer's maps, the MLP's last one is the last
    if "vpt_deep" in names:
        norm = next((m for m in block.modules() if isinstance(m, nn.LayerNorm)), None)
        like = norm.weight if norm is not None else next(block.parameters())
        blocks[i] = PromptedLayer(block, _prompts(config.prompts, like))


def _attention_maps(maps: list[tuple[str, nn.Linear]]) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """(place, parts, parts to update) of a layer's maps."""
    for place, linear in maps:
        last = place.rpartition(".")[2]
        if last in QUERIES or last in VALUES:
            yield place, 1, (0,)
        elif last in FUSED and linear.out_features % 3 == 0:
            yield place, 3, (0, 2)


def _prompts(count: int, like: Tensor) -> nn.Parameter:
    """[P, width] from U(-v, v), v = sqrt(6 / (2 width)): VPT's rule with the width for the size of a patch."""
    bound = math.sqrt(3 / like.shape[-1])
    return nn.Parameter(like.new_empty(count, like.shape[-1]).uniform_(-bound, bound))


def _put(root: nn.Module, place: str, module: nn.Module) -> None:
    parent, _, last = place.rpartition(".")
    module.train(root.get_submodule(place).training)
    setattr(root.get_submodule(parent), last, module)
