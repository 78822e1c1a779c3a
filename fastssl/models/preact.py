"""PreAct-ResNet-18 (He et al. 2016, Identity Mappings) for small images, as DivideMix's code has it (PreResNet.py, ResNet18).

A 3 x 3 stem of 64 channels with norm and ReLU, four stages of two pre-activation blocks (64, 128, 256, 512 channels, stride 2 from
the second on). Two things differ from He et al., as they do in that code: every shortcut reads the activated input, identities too,
and there is no norm after the last block.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """norm, ReLU, conv, norm, ReLU, conv; where the shape changes, a 1 x 1 convolution of the activated input is the shortcut."""

    def __init__(self, inside: int, outside: int, stride: int, momentum: float):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside, momentum=momentum)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside, momentum=momentum)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False) if inside != outside or stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        skip = self.shortcut(h)
        return skip + self.conv2(F.relu(self.norm2(self.conv1(h))))


class PreActResNet(nn.Module):
    """PreAct-ResNet-18 for square images of any side; features are the pooled output of the last block.

    Args:
        blocks: blocks of the four stages.
        channels: input channels.
        momentum: batch-norm share of a new batch in the running statistics (DivideMix's code: torch's 0.1).
    """

    def __init__(self, blocks: tuple[int, int, int, int] = (2, 2, 2, 2), channels: int = 3, momentum: float = 0.1):
        super().__init__()
        self.num_features = 512
        self.stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64, momentum=momentum)
        layers, inside = [], 64
        for stage, count in enumerate(blocks):
            outside = 64 << stage
            for i in range(count):
                layers.append(PreActBlock(inside, outside, 2 if i == 0 and stage > 0 else 1, momentum))
                inside = outside
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 512]."""
        return self.layers(F.relu(self.norm(self.stem(x)))).mean(dim=(2, 3))
