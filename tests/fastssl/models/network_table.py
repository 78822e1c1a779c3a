"""The networks that are tried by name, and docs/networks.md's table of them: python -m tests.fastssl.models.network_table prints it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastssl import models
from fastssl.config import ModelConfig
from fastssl.models import Network


class Row(NamedTuple):
    name: str
    size: int | None = None  # data.size: for networks that take images of any size
    options: dict[str, int] = {}  # of the model section

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(name=self.name, weights="random", **self.options)


ROWS = (
    Row("glyph_clip"),
    Row("wrn-28-2", 16),
    Row("wrn-28-8", 16),
    Row("wrn-37-2", 32),
    Row("preact-resnet-18", 16),
    Row("timm:vit_tiny_patch16_224", options={"img_size": 32, "patch_size": 2}),
    Row("timm:vit_small_patch16_224", options={"img_size": 32, "patch_size": 2}),
    Row("timm:deit_tiny_patch16_224", options={"img_size": 64}),
    Row("timm:swin_tiny_patch4_window7_224", options={"img_size": 64}),
    Row("timm:convnext_atto", 32),
    Row("timm:resnet18", 32),
    Row("timm:efficientnet_b0", 32),
    Row("timm:mobilenetv3_small_050", 32),
    Row("open_clip:ViT-S-32-alt", options={"img_size": 64}),
    Row("open_clip:RN50", options={"img_size": 64}),
)
HEADER = "| network | options | images | features | weights of the encoder | batch-norm |\n|---|---|---|---|---|---|"


def build(row: Row, classes: tuple[str, ...] = ("a", "b", "c")) -> Network:
    torch.manual_seed(0)
    return models.build(row.config, classes, size=row.size)


def line(row: Row, network: Network) -> str:
    """The row as docs/networks.md has it. Buffers are no weights."""
    side = models.describe(row.config, row.size).size
    options = {**({"data.size": row.size} if row.size else {}), **{f"model.{key}": value for key, value in row.options.items()}}
    said = " ".join(f"`{key}={value}`" for key, value in options.items())
    count = sum(p.numel() for p in network.encoder.parameters())
    norm = "yes" if network.has_batchnorm else "no"
    return f"| `{row.name}` | {said} | {side} px | {network.encoder.num_features} | {count:,} | {norm} |"


def main() -> None:
    print(HEADER)
    for row in ROWS:
        print(line(row, build(row)))


if __name__ == "__main__":
    main()
