"""What a method is given besides network and data: a foundation model's labels, and room for its banks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import torch

from .. import environment
from ..config import RunConfig
from ..methods.base import Method
from ..models import Network
from ..pipelines import foundation
from ..pipelines.batch import DataSpec, FoundationLabels, Split
from ..pipelines.choice import told
from ..pipelines.errors import ConfigError, ResourceError
from ..pipelines.source import AnySource
from . import own_labels

SHOWN = 4  # banks that are named
SPARE = 0.1  # share of the free memory that banks leave


def spec_of(
    spec: DataSpec,
    kind: type[Method],
    config: RunConfig,
    source: AnySource,
    split: Split,
    note: Callable[[str], None],
    warn: Callable[[str], None],
    lines: own_labels.Lines = (),
) -> DataSpec:
    """The data's facts with the foundation labels that the run was given, or has made itself.

    Args:
        lines: of the labels that the run made itself (own_labels.py), where it did.

    Raises:
        ConfigError: the method trains nothing and is given nothing; descriptions of classes, and no labels that are made by them.
        DataError: the file does not fit the data.
    """
    if config.data.descriptions is not None and not lines:
        raise ConfigError(
            "data.descriptions describe classes for labels that a run on texts makes itself (zeromatch, pseudo_supervision, pl_feature and "
            "zero_shot without --foundation-labels), and this run makes none; leave it out"
        )
    if kind.trains_nothing and not lines and config.data.foundation_labels is None and config.model.head_init != "text":
        raise ConfigError(
            f"{config.method_name} trains nothing, and the head of {config.model.name} knows nothing: take a network with a text tower "
            "(glyph_clip, open_clip:ARCH/TAG) and --set model.head_init=text, or give --foundation-labels FILE"
        )
    if lines:
        return dataclasses.replace(spec, foundation=own_labels.read(lines, config, source, split, warn=warn, note=note))
    found = foundation.configured(config.data, source, split, seed=config.train.seed, warn=warn, note=note)
    bare = int((found.label[split.test] < 0).sum()) if found is not None and kind.judges_rows else 0
    if bare:
        warn(
            f"{bare} of {len(split.test)} test {source.samples} have no foundation label, and {config.method_name} judges each by its "
            "label too; fastssl pseudolabel --test-rows labels them"
        )
    return dataclasses.replace(spec, foundation=found)


def digest(labels: FoundationLabels | None) -> str | None:
    """A hash of foundation labels: a run that goes on must go on with the same ones."""
    if labels is None:
        return None
    return hashlib.blake2b(labels.label.tobytes() + labels.weight.tobytes(), digest_size=16).hexdigest()


def digest_of_extra(source: AnySource) -> str | None:
    """A hash of the samples from elsewhere, which no split's labels pin down; None where there are none."""
    if not source.extra:
        return None
    found = hashlib.blake2b("\0".join(source.ids[source.own :]).encode("utf-8", "surrogateescape"), digest_size=16)
    found.update(source.content[source.own :].tobytes())
    return found.hexdigest()


def check_banks(method: Method, device: torch.device) -> str | None:
    """A sentence on the bytes that a method's memory takes; None where it is nothing to speak of.

    Raises:
        ResourceError: they cannot fit.
    """
    networks = {id(part) for module in method.modules() if isinstance(module, Network) for part in module.modules()}
    sizes: dict[str, int] = {}
    for place, module in method.named_modules():
        if id(module) not in networks:
            for name, buffer in module.named_buffers(recurse=False):
                sizes[f"{place}.{name}".lstrip(".")] = buffer.numel() * buffer.element_size()
    total = sum(sizes.values())
    if not total:
        return None
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)
    named = ", ".join(f"{name} {told(sizes[name])}" for name in largest[:SHOWN] if sizes[name])
    said = f"memory of the method: {told(total)} ({named}{', ...' if len(largest) > SHOWN else ''})"
    memory = environment.memory()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory[1] if memory else None
    if free is not None and total > (1 - SPARE) * free:
        raise ResourceError(f"{said}, and {device} has {told(free)} free; take a method or option that keeps less of each sample")
    return said
