"""Second tasks on the encoder of a method, each with a head of its own: which way an image is turned, which two views are of one sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import cross_entropy
from ...models import Network
from ...pipelines.batch import DataSpec
from ...pipelines.errors import ConfigError
from .contrast import nt_xent
from .forward import forward_together
from .projection import Projection

TASKS = ("none", "rotation", "contrast")


class Rotation(nn.Module):
    """Mean CE(k, rot(f)), k the quarters by which an image was turned, counter-clockwise: a quarter of the batch by each angle (Gidaris et
    al. 2018, arXiv 1803.07728; batches as ReMixMatch's code has them)."""

    def __init__(self, features: int):
        super().__init__()
        self.head = nn.Linear(features, 4)

    def forward(self, network: Network, views: tuple[Tensor, ...]) -> Tensor:
        """[] loss of one [U, ...] view. Batch-norm's running statistics stay."""
        (x,) = views
        parts = x.tensor_split(4)
        turns = torch.cat([torch.full((len(part),), k, dtype=torch.int64, device=x.device) for k, part in enumerate(parts)])
        turned = torch.cat([torch.rot90(part, k, (2, 3)) for k, part in enumerate(parts)])
        (out,) = forward_together(network, [turned], "batch")
        return cross_entropy(self.head(out.features), turns).mean()


class Contrast(nn.Module):
    """SimCLR's loss of two views by a projection of two layers (Chen et al. 2020, arXiv 2002.05709)."""

    def __init__(self, features: int, width: int, temperature: float):
        super().__init__()
        self.projection, self.temperature = Projection(features, width), temperature

    def forward(self, network: Network, views: tuple[Tensor, ...]) -> Tensor:
        """[] loss of two [U, ...] views. Batch-norm's running statistics stay."""
        first, second = forward_together(network, list(views), "batch")
        return nt_xent(self.projection(first.features), self.projection(second.features), self.temperature).mean()


def joint_task(name: str, option: str, network: Network, spec: DataSpec, *, width: int, temperature: float) -> Rotation | Contrast | None:
    """The task of that name, one of TASKS; None for none.

    Args:
        option: what names it, for errors ("method.joint").

    Raises:
        ConfigError: texts or oblong images that were to be turned.
    """
    features = network.encoder.num_features
    if name == "rotation":
        if spec.kind == "text":
            raise ConfigError(f"a text cannot be turned by quarters; give --set {option}=contrast or none")
        if spec.shape[1] != spec.shape[2]:
            raise ConfigError(
                f"images of {spec.shape[1]} x {spec.shape[2]} cannot be turned by quarters; give --set {option}=contrast or none"
            )
        return Rotation(features)
    return Contrast(features, width, temperature) if name == "contrast" else None
