"""Tuning: which of an encoder's weights train, and what is added to it. `--tune` names, joined by + where they combine.

| name | what trains (the heads train in any case) |
|---|---|
| full | every weight |
| linear | the heads alone |
| lp_ft | first the heads alone, then every weight, as two stages (Kumar et al. 2022, arXiv 2202.10054) |
| last_k | the last `partial` blocks (1 if not said) and the final norm |
| bias | every parameter of the encoder whose name ends in "bias" (BitFit) |
| bn | weights and biases of batch-norm layers |
| vpt_deep | `prompts` vectors before each block, dropped after it (VPT-deep) |
| vpt_shallow | `prompts` vectors before the first block, which travel through all and are dropped after the last |
| vpt_last | `prompts` vectors before the last block alone |
| lora, adapter, adaptformer, ssf | see adapters.py and tuned_block.py |

All combine but vpt_shallow with vpt_deep; full, linear and lp_ft stand alone. `partial` = k keeps adapters, prompts and tuned biases
to the last k blocks (shallow prompts then enter before the first of them; the final norm's biases stay in). Adapters and prompts
need a vision transformer of timm, open_clip or our own; full, linear, lp_ft, bias and bn work on every network. What text encoders
take of these, and how, is in text_tuning.py.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

from torch import nn

from ..config import ModelConfig
from ..pipelines.errors import ConfigError, unknown
from . import adapters, text_tuning, towers
from .text_tower import TextEncoder
from .tuned_block import TunedBlock

ALONE = ("full", "linear", "lp_ft")
PROMPTS = ("vpt_deep", "vpt_shallow", "vpt_last")
ADAPTERS = ("lora", "adapter", "adaptformer", "ssf")
NAMES = (*ALONE, "last_k", "bias", "bn", *PROMPTS, *ADAPTERS)
EVERYWHERE = ("full", "linear", "lp_ft", "bias", "bn")  # need no transformer blocks
ROOMLESS = (*ALONE, "bn", "vpt_last")  # `partial` means nothing to these


def parse(how: str) -> tuple[str, ...]:
    """ "vpt_deep+lora" -> ("vpt_deep", "lora").

    Raises:
        ConfigError: an unknown name, one named twice, or names that do not combine.
    """
    names = tuple(name.strip() for name in how.split("+"))
    for name in names:
        if name not in NAMES:
            raise ConfigError(unknown("--tune", name, NAMES))
        if names.count(name) > 1:
            raise ConfigError(f"--tune {how} names {name} twice; once is enough")
        if name in ALONE and len(names) > 1:
            raise ConfigError(f"--tune {name} stands alone, and '{how}' adds to it; leave the rest out")
    if "vpt_deep" in names and "vpt_shallow" in names:
        raise ConfigError(f"--tune {how}: vpt_shallow's prompts would be dropped by vpt_deep; take one of the two")
    return names


def tune(encoder: nn.Module, config: ModelConfig, *, name: str) -> nn.Module:
    """Returns the encoder with just those weights trainable that `config.tune` names, adapters built in. Changes it in place.

    Raises:
        ConfigError: names that do not combine, or that this network cannot take.
    """
    names = parse(config.tune)
    if "lp_ft" in names:
        encoder.probe_share = config.lp_share
    if isinstance(encoder, TextEncoder):
        return text_tuning.tune(encoder, names, config, name)
    tower = towers.find(encoder)
    _check(names, config, tower, encoder, name)
    if names[0] not in ("full", "lp_ft"):
        encoder.requires_grad_(False)
    for wanted in names:
        if wanted == "bias":
            _train(encoder, lambda key: key.endswith("bias"), tower if config.partial else None, config.partial)
        elif wanted == "bn":
            for layer in _batch_norms(encoder):
                layer.requires_grad_(True)
        elif wanted == "last_k":
            _train(encoder, lambda key: True, tower, config.partial or 1)
    if tower is not None:
        _build_in(tower, names, config)
    return encoder


def probe_share(encoder: nn.Module) -> float:
    """Share of a run's steps that trains the heads alone before the encoder joins in; 0 for all tunings but lp_ft."""
    return getattr(encoder, "probe_share", 0.0)


def kept(encoder: nn.Module) -> tuple[str, ...]:
    """What `merge` could not fold: of "prompts", "adapter", "adaptformer", "ssf on a map without bias"."""
    if isinstance(encoder, TextEncoder):
        return text_tuning.kept(encoder)
    found = [word for module in encoder.modules() if isinstance(module, TunedBlock) for word in module.kept()]
    return tuple(dict.fromkeys(found))


def merge(encoder: nn.Module) -> nn.Module:
    """A copy of a tuned encoder without adapters: LoRA and SSF folded into the weights, the library's own blocks back in place.

    Its features equal the tuned encoder's in evaluation mode up to rounding, and its tower's state_dict (`.model` of a timm network,
    `.visual` of an open_clip one) loads strictly into the plain library model. This is what an export of a trained network starts from.

    Raises:
        ConfigError: prompts or bottlenecks, which no weight of the network can stand for.
    """
    left = kept(encoder)
    if left:
        raise ConfigError(f"{', '.join(left)} cannot be folded into a network's weights; keep the run's checkpoint, which holds them")
    plain = copy.deepcopy(encoder)
    if isinstance(plain, TextEncoder):
        return text_tuning.merge(plain)
    tower = towers.find(plain)
    for i, block in enumerate(tower.blocks if tower is not None else ()):
        if isinstance(block, TunedBlock):
            tower.blocks[i] = block.folded()
    return plain


def _check(names: tuple[str, ...], config: ModelConfig, tower: towers.Tower | None, encoder: nn.Module, name: str) -> None:
    how = config.tune
    if config.partial is not None and all(wanted in ROOMLESS for wanted in names):
        raise ConfigError(f"model.partial says how many blocks are tuned, and --tune {how} does not go by blocks; leave it out")
    if "bn" in names and not any(_batch_norms(encoder)):
        raise ConfigError(f"--tune bn needs batch-norm layers, and {name} has none; take full, linear, bias or lp_ft")
    blocked = [wanted for wanted in names if wanted not in EVERYWHERE]
    if tower is None:
        if blocked or config.partial is not None:
            what = f"--tune {blocked[0]}" if blocked else "model.partial"
            raise ConfigError(
                f"{what} needs a network with transformer blocks of timm's, open_clip's or fastssl's VisionTransformer, and {name} "
                f"has none; take --tune {', '.join(EVERYWHERE[:-1])} or {EVERYWHERE[-1]}"
            )
        return
    if config.partial is not None and config.partial > len(tower.blocks):
        raise ConfigError(f"model.partial must be at most the {len(tower.blocks)} blocks of {name}, got {config.partial}")
    for block in tower.blocks if set(blocked) - {"last_k"} else ():
        found = towers.parts(block)
        lacks = None
        if found is None:
            lacks = f"blocks ({type(block).__name__})"
        elif not isinstance(found.attention, towers.Attention) and set(blocked) & {*PROMPTS, "lora", "ssf"}:
            lacks = f"attention ({type(found.attention).__name__})"
        elif found.layers is None and "ssf" in blocked:
            lacks = f"MLP ({type(found.mlp).__name__})"
        if lacks:
            raise ConfigError(f"--tune {how} does not know the {lacks} of {name}; take full, linear, lp_ft, bias or last_k")


def _build_in(tower: towers.Tower, names: tuple[str, ...], config: ModelConfig) -> None:
    """Puts a TunedBlock wherever an adapter, a prompt or a prompt's end belongs, and where the block's own form is slow."""
    depth = len(tower.blocks)
    first, last = depth - (config.partial or depth), depth - 1
    added = tuple(wanted for wanted in names if wanted in ADAPTERS)
    for i in range(depth):
        inside, shallow = i >= first, "vpt_shallow" in names
        deep, at_end = "vpt_deep" in names and inside, "vpt_last" in names and i == last
        # linear leaves the whole encoder in evaluation mode, where no block's own form is slow
        slow = tower.rewritten and names != ("linear",) and towers.parts(tower.blocks[i]) is not None
        if not (deep or at_end or (added and inside) or (shallow and i in (first, last)) or slow):
            continue
        like = next(tower.blocks[i].parameters())
        block = TunedBlock(tower.blocks[i], added if inside else (), config)
        fresh = functools.partial(adapters.prompts, config.prompts, tower.patch, tower.width)
        if deep:
            block.prompts["deep"] = fresh(like)
        if at_end:
            block.prompts["last"] = fresh(like)
        if shallow and i == first:
            block.shallow = fresh(like)
        if shallow and i == last:
            block.leaving = config.prompts
        block.class_token_only = tower.class_token_only and i == last
        block.train(tower.blocks[i].training)
        tower.blocks[i] = block


def _train(encoder: nn.Module, chosen: Callable[[str], bool], tower: towers.Tower | None, last: int | None) -> None:
    """Lets the chosen parameters train: of the whole encoder, or of a tower's last blocks and its final norm."""
    modules = [encoder]
    if tower is not None:
        modules = [*tower.blocks[len(tower.blocks) - (last or 1) :], *(getattr(tower.module, norm) for norm in tower.norms)]
    for module in modules:
        for key, parameter in module.named_parameters():
            if chosen(key):
                parameter.requires_grad_(True)


def _batch_norms(encoder: nn.Module) -> list[nn.Module]:
    return [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
