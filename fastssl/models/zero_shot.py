"""Zero-shot classifiers: an image-text model and class names, without any training (Radford et al. 2021, section 3.1).

The logits are s (f P / |f P|) T^T: features f projected by P into the joint space, unit text features T, their mean over a class's
prompts, and the model's own factor s. A head that starts from text (`model.head_init`) leaves P inside its rows, and so is this up to
norms; here it is exact.

Legend: N images, C classes, d width of the features, e joint width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..pipelines.errors import ConfigError
from . import _family
from .heads import CosineHead
from .network import Network, Report
from .peft import tune

KNOWN = "glyph_clip, open_clip:ARCH/TAG, or transformers:NAME for texts"


class Joint(nn.Module):
    """A tower that answers with joint features: [N, 3, H, W] images or texts -> [N, e], not yet of unit length."""

    def __init__(self, encoder: nn.Module, projection: Tensor | None):
        super().__init__()
        self.encoder = encoder
        self.register_buffer("projection", projection)
        self.reads_text = getattr(encoder, "reads_text", False)
        if self.reads_text:
            self.embed = encoder.embed

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        if self.projection is None:
            return features
        with torch.autocast(x.device.type, enabled=False):  # a thousandth of the work, and all of the confidence hangs on it
            return features.float() @ self.projection


def check(config: Any) -> None:
    """Raises ConfigError where a ModelConfig names a model without a text tower, or without trained weights."""
    family = _family(config.name)
    if config.weights == "random":
        raise ConfigError(f"--weights random: a text tower that has learned nothing cannot label; leave it out, or take {KNOWN}")
    ours = ":" not in config.name
    if ours:
        family.describe(config, None)  # an unknown name is told as one
    if not hasattr(family, "contrast") or (ours and config.name != "glyph_clip"):
        raise ConfigError(f"labelling by class names needs a text tower, and {config.name} has none; take {KNOWN}")


def phrases(classes: tuple[str, ...], prompts: tuple[str, ...], templates: tuple[str, ...]) -> list[list[str]]:
    """What each class is called: its own descriptions where it has some, else its name in every template.

    Args:
        classes: C class names; underscores are read as spaces.
        prompts: templates, with {} in the place of the name, and descriptions, as CLASS=TEXT; each kind may be repeated.
        templates: what is taken where `prompts` has none.

    Raises:
        ConfigError: a prompt that is neither.
    """
    own: dict[str, list[str]] = {}
    given = []
    for text in prompts:
        name, equals, description = text.partition("=")
        if equals and name.strip() in classes and description.strip():
            own.setdefault(name.strip(), []).append(description.strip())
        elif text.count("{}") == 1:
            given.append(text)
        else:
            raise ConfigError(
                f"--prompt '{text}' is neither a template with one {{}} nor a description of a class, CLASS=TEXT with a CLASS of "
                f"{', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"
            )
    return [own.get(c) or [template.replace("{}", c.replace("_", " ")) for template in given or templates] for c in classes]


def build(config: Any, classes: tuple[str, ...], prompts: tuple[str, ...] = (), *, report: Report | None = None) -> Network:
    """The zero-shot classifier of a ModelConfig's network and weights.

    Args:
        config: names the network and its weights.
        classes: C class names; underscores are read as spaces.
        prompts: texts with {} in the place of a class's name; the model's own if there are none. For networks that read texts also
            descriptions of one class each, CLASS=TEXT (see `phrases`).
        report: takes what there is to say about weights and prompts.

    Raises:
        ConfigError: no text tower, or a prompt that does not fit. SetupError: weights that cannot be had.
    """
    check(config)
    made = _family(config.name).contrast(config, classes, prompts, Report() if report is None else report)
    head = CosineHead(made.text.shape[1], len(classes), made.scale)
    head.set_weight(made.text)
    # Tuned as "full", the blocks run in our form where their own is slow.
    return Network(Joint(tune(made.encoder, config, name=config.name), made.projection), head).eval()
