"""The values that a network began with, for methods that train one twice from the same start; one network's values in another."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Start(nn.Module):
    """The values that a network began with, of all that moves: its weights that train, and its buffers."""

    guards_itself = True  # a step never writes it

    def __init__(self, network: nn.Module):
        super().__init__()
        self.names = [name for name, p in network.named_parameters() if p.requires_grad] + [name for name, _ in network.named_buffers()]
        for i, value in enumerate(self._moving(network)):
            self.register_buffer(f"value_{i}", value.detach().clone())

    def _moving(self, network: nn.Module) -> list[Tensor]:
        every = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        return [every[name] for name in self.names]

    @torch.no_grad()
    def restore(self, *networks: nn.Module | None) -> None:
        """Brings networks of this make back to it, in place."""
        for network in networks:
            if network is not None:
                for i, value in enumerate(self._moving(network)):
                    value.copy_(self.get_buffer(f"value_{i}"))


@torch.no_grad()
def copied(source: nn.Module, target: nn.Module) -> None:
    """All values of one network into another of the same make, in place."""
    values = source.state_dict()
    for name, value in target.state_dict().items():
        value.copy_(values[name])
