"""What a network does with images of a size, found out without its weights on torch's meta device, where tensors are shapes alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..pipelines.errors import FastsslError


class Refused(ValueError):
    """The network cannot take it; the message is its own reason, in one line."""


def reason(error: BaseException) -> str:
    """The first line of an error, or its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def width(make: Callable[[], nn.Module], size: int) -> int:
    """Width d of the features that the made encoder answers images of `size` pixels with.

    Args:
        make: builds the encoder. It is called on the meta device, and once more on the CPU where that device does not serve.
        size: side of the square colour images in pixels.

    Raises:
        Refused: it cannot be built, refuses the images, or answers with something else than [N, d].
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return features(_made(make), size)
        except Refused as refused:
            cause = refused.__cause__
            if not (isinstance(cause, NotImplementedError) or "meta" in str(cause).lower()):
                raise
        # A network that computes with its tensors' values while it is built, or branches on them, needs real ones.
        return features(_made(make), size)


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make().eval()
    except FastsslError:
        raise
    except Exception as error:
        raise Refused(reason(error)) from error


def features(encoder: nn.Module, size: int) -> int:
    """Width d of an encoder's answer to two images of `size` pixels, on the device where it lies.

    Raises:
        Refused: see `width`.
    """
    first = next(encoder.parameters(), torch.empty(0))
    kind = first.dtype if first.dtype.is_floating_point else torch.float32
    try:
        with torch.no_grad():
            out = encoder(torch.zeros(2, 3, size, size, device=first.device, dtype=kind))
    except Exception as error:
        raise Refused(reason(error)) from error
    if not isinstance(out, torch.Tensor) or out.ndim != 2 or len(out) != 2:
        got = f"a tensor {list(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
        raise Refused(f"2 images give {got}, where features [2, d] are wanted")
    return out.shape[1]
