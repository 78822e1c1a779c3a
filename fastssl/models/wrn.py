"""Wide residual networks (Zagoruyko & Komodakis 2016) as FixMatch trains them: leaky ReLU 0.1, batch-norm momentum 0.001.

The block is that of FixMatch's code (libml/models.py, class ResNet), convolutions without biases. WRN-37-2 is no member of the paper's
6 n + 4 family: USB and TorchSSL (nets/wrn/wrn_var.py) give this name to the network for STL-10's 96 pixels, which has a
fourth stage of 128 k channels, four blocks a stage, and a stride of 2 in the first stage too. Counting as the paper does, it has
8 n + 5 = 37 layers. FixMatch's own code runs the four stages on STL-10 (--scales=4) with a first stride of 1, at four times the
work. The papers' codes differ in which shortcuts read activated inputs; here, as in FixMatch's, those of the first stage alone.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.1  # slope of the leaky ReLU (FixMatch's code)
# Share of a batch's statistics that enters the running ones (FixMatch's momentum 0.999). Runs of a few hundred steps need
# a larger share, or evaluation reads the initial statistics: the caller says how long the run is.
MOMENTUM = 0.001


def norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=momentum)


class WideBlock(nn.Module):
    """Pre-activation residual block: norm, act, conv, norm, act, conv; the first block of all activates before the branch."""

    def __init__(self, inside: int, outside: int, stride: int, momentum: float, activate_first: bool):
        super().__init__()
        self.norm1 = norm(inside, momentum)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm2 = norm(outside, momentum)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False) if inside != outside or stride != 1 else None
        self.activate_first = activate_first

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.norm1(x), LEAK)
        skip = h if self.activate_first else x
        if self.shortcut is not None:
            skip = self.shortcut(skip)
        h = self.conv1(h)
        return skip + self.conv2(F.leaky_relu(self.norm2(h), LEAK))


class WideResNet(nn.Module):
    """WRN-depth-width for square images of any side; features are the pooled last activation.

    Args:
        depth: 6 n + 4 layers: three stages of n blocks, the first of stride 1. Or 37: four stages of 4 blocks, all of stride 2.
        width: widening factor k; the stages have 16k, 32k, 64k (and 128k) channels.
        channels: input channels.
        momentum: batch-norm share of a new batch in the running statistics.
    """

    def __init__(self, depth: int = 28, width: int = 2, channels: int = 3, momentum: float = MOMENTUM):
        super().__init__()
        if depth == 37:
            stages, blocks, first_stride = 4, 4, 2
        elif (depth - 4) % 6 == 0:
            stages, blocks, first_stride = 3, (depth - 4) // 6, 1
        else:
            raise ValueError(f"depth of a wide residual network must be 6 n + 4, or 37 for STL-10's, got {depth}")
        self.num_features = 16 * width << (stages - 1)
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        layers, inside = [], 16
        for stage in range(stages):
            outside = 16 * width << stage
            for i in range(blocks):
                stride = 1 if i > 0 else 2 if stage > 0 else first_stride
                layers.append(WideBlock(inside, outside, stride, momentum, activate_first=stage == 0 and i == 0))
                inside = outside
        self.layers = nn.Sequential(*layers)
        self.norm = norm(inside, momentum)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", a=LEAK, nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 64 k], or [N, 128 k] of four stages."""
        h = F.leaky_relu(self.norm(self.layers(self.stem(x))), LEAK)
        return h.mean(dim=(2, 3))
