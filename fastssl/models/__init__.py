"""Networks: names -> an encoder with one classifier head.

A network answers with `Output(logits [N, C], features [N, d])`. What it wants as input, it says itself (`describe`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..pipelines.errors import ConfigError, SetupError, unknown
from .heads import CosineHead, LinearHead
from .peft import tune


class Output(NamedTuple):
    logits: Tensor  # [N, C]
    features: Tensor  # [N, d]


class InputSpec(NamedTuple):
    """What a network wants to see: square side in pixels (None: any), and the constants that normalise [0, 1] colours."""

    size: int | None
    mean: tuple[float, float, float] | None = None  # None: the data set's own
    std: tuple[float, float, float] | None = None


class Network(nn.Module):
    """An encoder ([N, C, H, W] -> [N, d]) and one classifier head ([N, d] -> [N, classes])."""

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, x: Tensor) -> Output:
        features = self.encoder(x)
        return Output(self.head(features), features)

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        if not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.train(False)  # a frozen encoder keeps its batch-norm statistics too
        return self

    @property
    def has_batchnorm(self) -> bool:
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules())


WIDE = {"wrn-28-2": (28, 2), "wrn-28-8": (28, 8)}
INPUTS: dict[str, InputSpec] = {
    "glyph_clip": InputSpec(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "wrn-28-2": InputSpec(None),
    "wrn-28-8": InputSpec(None),
}


def describe(name: str) -> InputSpec:
    """The named network's input.

    Raises:
        ConfigError: unknown name, with the nearest ones.
    """
    if name not in INPUTS:
        raise ConfigError(unknown("model", name, INPUTS))
    return INPUTS[name]


def build(config: Any, classes: tuple[str, ...]) -> Network:
    """Builds the network of a ModelConfig for the named classes, with torch's global generator.

    Raises:
        ConfigError: unknown network, tuning that does not fit, text initialisation without a text tower.
        SetupError: a file of weights that cannot be read or does not fit.
    """
    describe(config.name)
    text_rows = None
    if config.name == "glyph_clip":
        from .glyph_clip import load

        clip = load(config.weights)
        encoder: nn.Module = clip.vision
        if config.head_init == "text":
            if config.weights == "random":
                raise ConfigError("model.head_init=text needs a trained text tower, and --weights random has none; use random")
            text_rows = clip.text_head(list(classes)).detach()
    else:
        from .wrn import WideResNet

        depth, width = WIDE[config.name]
        encoder = WideResNet(depth, width, momentum=config.batchnorm_momentum)
        if config.head_init == "text":
            raise ConfigError(f"model.head_init=text needs a text tower, and {config.name} has none; use random")
        if config.weights not in (None, "random"):
            load_weights(encoder, config.weights, config.name)
    encoder = tune(encoder, config.tune, name=config.name, prompts=config.prompts)
    if config.head == "cosine":
        head: nn.Module = CosineHead(encoder.num_features, len(classes), config.head_scale)
    else:
        head = LinearHead(encoder.num_features, len(classes))
    if text_rows is not None:
        head.set_weight(text_rows)
    return Network(encoder, head)


def load_weights(module: nn.Module, path: str, name: str) -> None:
    """Copies a safetensors file into `module`, every tensor named and shaped alike.

    Raises:
        SetupError: unreadable file, or tensors that do not fit (the first five are named).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SetupError(f"cannot read weights {path}: {error}; give a .safetensors file that exists") from None
    own = module.state_dict()
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape] + [k for k in state if k not in own]
    if wrong:
        raise SetupError(f"weights {path} do not fit {name}: {len(wrong)} tensors differ, such as {', '.join(wrong[:5])}")
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(state[key])
