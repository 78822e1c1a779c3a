"""What a network's forwards and backward hold at their peak, counted with tensors that have shapes and no values.

Nothing is computed and nothing is written: torch's fake tensors stand for weights and images, autograd keeps of them what it would
keep of real ones, and a ledger counts the storages that live.
"""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..pipelines.batch import Views


@dataclass(frozen=True)
class Shapes:
    """One draw, and how a network is run on it."""

    views: Views
    rows: int  # labelled images
    ratio: int  # unlabelled ones each
    image: tuple[int, ...]  # [C, H, W]; of texts (L,) of the longest
    device: torch.device
    amp: torch.dtype | None
    separate: bool  # teachers' views run apart, without a graph


class Ledger(TorchDispatchMode):
    """Counts the bytes of storages that come up within it.

    Attributes:
        live: bytes now. peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, Any] = {}

    def leave_out(self, tensor: Tensor) -> None:
        """Another's tensor: neither it nor its views are counted."""
        self.known[tensor.untyped_storage()._cdata] = None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return out

    def _enter(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self.known:
            self.live += storage.nbytes()
            self.known[key] = weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self.live -= size
        self.known.pop(key)


def step_bytes(network: nn.Module, shapes: Shapes) -> int:
    """Views, activations and gradients of one draw at their peak, in bytes; weights are not in it.

    Raises:
        Exception: whatever the network raises that cannot be followed without values.
    """
    views, unlabelled = shapes.views, shapes.rows * shapes.ratio
    sizes = [shapes.rows] * len(views.labelled) + [unlabelled] * len(views.unlabelled)
    first, last = len(views.labelled), len(views.labelled) + (views.no_grad if shapes.separate else 0)
    follow = _Follower(network, shapes.device, shapes.amp)
    with follow.modes():
        images = [_inputs(n, shapes.image, shapes.device) for n in sizes]
        with torch.no_grad():
            taught = [follow(torch.cat(images[first:last]))] if last > first else []
        logits = follow(torch.cat(images[:first] + images[last:]))
        logits.float().sum().backward()
    del taught
    return follow.ledger.peak


def evaluation_bytes(network: nn.Module, rows: int, image: tuple[int, ...], device: torch.device, amp: torch.dtype | None) -> int:
    """Images and activations of `rows` images evaluated at once at their peak, in bytes; weights are not in it."""
    follow = _Follower(network, device, amp)
    with follow.modes(), torch.no_grad():
        follow(_inputs(rows, image, device))
    return follow.ledger.peak


def _inputs(rows: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Images, or token ids, without values."""
    return torch.empty(rows, *shape, device=device, dtype=torch.int64 if len(shape) == 1 else None)


class _Follower:
    """A network with weights that have no values."""

    def __init__(self, network: nn.Module, device: torch.device, amp: torch.dtype | None):
        self.network, self.device, self.amp = network, device, amp
        self.mode, self.ledger = FakeTensorMode(allow_non_fake_inputs=True), Ledger()
        self.weights = {name: self.mode.from_tensor(t) for name, t in [*network.named_parameters(), *network.named_buffers()]}
        for tensor in self.weights.values():
            self.ledger.leave_out(tensor)

    def modes(self) -> Any:
        stack = contextlib.ExitStack()
        stack.enter_context(self.mode)
        stack.enter_context(self.ledger)
        return stack

    def __call__(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None, cache_enabled=False):
            return functional_call(self.network, self.weights, (images,)).logits
