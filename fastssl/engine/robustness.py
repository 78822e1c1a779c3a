"""Robustness of a finished network: its accuracy on images that the fast gradient sign method has moved.

Goodfellow et al. 2015, arXiv 1412.6572, section 4: x + epsilon sign(grad_x CE(y, z(x))), here in pixels of [0, 1] and cut off at their
borders (of texts: text_inference.attacked_texts). The network is in evaluation mode and each one is attacked by its own gradient, in fp32;
it then judges the moved images as it does clean ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..kernels import reference
from ..methods.bricks.input_gradient import input_gradient
from ..models import Network
from ..pipelines.errors import ConfigError
from .inference import Trained, logits_at, normalised

PIECE = 32  # images whose activations are held at a time


def sizes(text: str, flag: str = "--fgsm", *, of_texts: bool = False) -> tuple[float, ...]:
    """ "0.01,0.03" -> (0.01, 0.03). Raises ConfigError unless each is a number in [0, 1]; of texts, unless it is finite and not below 0."""
    found = []
    for word in text.split(","):
        try:
            size = float(word)
        except ValueError:
            size = math.nan
        if of_texts and not (size >= 0 and math.isfinite(size)):
            raise ConfigError(
                f"{flag} takes sizes in the units of word embeddings, 0 or more, one or several with commas between, got '{word.strip()}'"
            )
        if not of_texts and not 0 <= size <= 1:
            raise ConfigError(
                f"{flag} takes sizes in pixels of [0, 1], one or several with commas between (0.03 is about 8/255), got '{word.strip()}'"
            )
        found.append(size)
    return tuple(found)


def direction(network: Network, pixels: Tensor, label: Tensor, trained: Trained) -> Tensor:
    """[N, 3, S, S] signs of the gradient of each image's cross-entropy: -1, 0 or 1.

    Args:
        network: in evaluation mode. pixels: [N, 3, S, S] fp32 in [0, 1]. label: [N].
    """
    pieces = []
    for start in range(0, len(pixels), PIECE):
        place = slice(start, start + PIECE)
        target = label[place]
        loss = lambda z, target=target: reference.cross_entropy(z.float(), target).sum()  # noqa: E731
        pieces.append(input_gradient(network, normalised(pixels[place], trained), loss).sign())  # a positive scale a channel keeps signs
    return torch.cat(pieces)


def moved(pixels: Tensor, signs: Tensor, epsilon: float) -> Tensor:
    """The images moved by epsilon in each pixel, cut off at 0 and 1."""
    return (pixels + epsilon * signs).clamp(0, 1)


def attacked(
    network: Network, pixels: Tensor, label: Tensor, trained: Trained, amp: str, epsilons: tuple[float, ...]
) -> tuple[list[Tensor], int]:
    """[N, C] logits of the images moved by each of `epsilons`, and how many images have a gradient of zero, which moves nothing.

    Args:
        amp: the run's mixed precision, in which moved images are judged as clean ones are; the gradient is in fp32.
    """
    signs = direction(network, pixels, label, trained)
    logits = [logits_at(network, moved(pixels, signs, epsilon), trained, amp) for epsilon in epsilons]
    return logits, int((signs == 0).flatten(1).all(1).sum())
