"""Several networks that are judged as one: their logits are summed (DivideMix, arXiv 2002.07394)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .network import Network, Output


class Together(nn.Module):
    """Networks of the same classes and the same inputs -> Output(sum of their logits [N, C], their features side by side).

    Texts are embedded by each network for itself; the embedded form is theirs, side by side in the last dimension.
    """

    def __init__(self, networks: Sequence[Network]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Output:
        outputs = [network(part) for network, part in zip(self.networks, self._parts(x), strict=True)]
        return Output(torch.stack([out.logits for out in outputs]).sum(0), torch.cat([out.features for out in outputs], 1))

    def _parts(self, x: Tensor) -> Sequence[Tensor]:
        """What each network reads of an input."""
        if not (self.reads_text and torch.is_floating_point(x)):
            return [x] * len(self.networks)
        one = torch.zeros(1, 1, dtype=torch.int64, device=x.device)
        return x.split([network.continuous(one).shape[-1] for network in self.networks], dim=-1)

    @property
    def reads_text(self) -> bool:
        return self.networks[0].reads_text

    @property
    def has_batchnorm(self) -> bool:
        return any(network.has_batchnorm for network in self.networks)

    def continuous(self, x: Tensor) -> Tensor:
        """As Network.continuous."""
        return x if torch.is_floating_point(x) else torch.cat([network.continuous(x) for network in self.networks], -1)

    def movable(self, x: Tensor, r: Tensor) -> Tensor:
        """As Network.movable."""
        if not self.reads_text:
            return r
        pieces = zip(self.networks, self._parts(x), self._parts(r), strict=True)
        return torch.cat([network.movable(a, b) for network, a, b in pieces], -1)

    def moved(self, x: Tensor, r: Tensor) -> Tensor:
        """As Network.moved."""
        return x + self.movable(x, r)
