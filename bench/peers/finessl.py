"""FineSSL's step as its code takes it, on a network of ours: plain deep prompts, every view with gradient, class counts on the host."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastssl.models.tuned_block import TunedBlock
from fastssl.pipelines.batch import Batch

from ..finessl_block import Memory, Step, official


class PlainPrompts(nn.Module):
    """Deep prompts as tokens (VPT-deep as published): appended before each block, taken through the whole of it, dropped after it.

    Args:
        encoder: timm's vision transformer as `models.build` tunes it with vpt_deep; its own blocks run, not ours.
        explicit: attention as two batched products around a softmax that is stored, as FineSSL's code has it; False: torch's fused one.
        half: weights in this dtype without autocast (norms computed in fp32), as the code runs in fp16; None for fp32.
    """

    def __init__(self, encoder: nn.Module, *, explicit: bool = True, half: torch.dtype | None = None):
        super().__init__()
        self.tower = encoder.model
        tuned = [block for block in self.tower.blocks if isinstance(block, TunedBlock)]
        assert len(tuned) == len(self.tower.blocks), "every block has deep prompts"
        self.prompts = [block.prompts["deep"] for block in tuned]
        self.blocks = [block.block for block in tuned]
        for block in self.blocks:
            block.attn.fused_attn = not explicit
        if half is not None:
            for module in self.tower.modules():
                if isinstance(module, nn.LayerNorm):
                    module.forward = _wide(module)
                    continue
                for p in module.parameters(recurse=False):
                    p.data = p.data.to(half)
        self.half = half

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, d], the class token."""
        tower = self.tower
        tokens = tower.norm_pre(tower.patch_drop(tower._pos_embed(tower.patch_embed(x if self.half is None else x.to(self.half)))))
        count = tokens.shape[1]
        for block, prompts in zip(self.blocks, self.prompts, strict=True):
            tokens = block(torch.cat([tokens, prompts.expand(len(tokens), -1, -1)], dim=1))[:, :count]
        return tower.forward_head(tower.norm(tokens))


def _wide(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """A LayerNorm's forward in fp32 between inputs and outputs in half precision."""
    return lambda x: functional.layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(x.dtype)


class Published:
    """One step a call: one forward of the labelled, the weak and both strong views, the loss block, SGD, three values for the meters.

    Args:
        network: copied; a timm vision transformer with deep prompts and a cosine head, whose copy is the second head.
        batch: as many unlabelled as labelled samples.
        classes, rows: C; unlabelled samples of the set.
        lr: constant here; the code moves it once in 500 steps.
        explicit, half: see PlainPrompts. SGD's state has the weights' dtype.
    """

    def __init__(
        self,
        network: nn.Module,
        batch: Batch,
        *,
        classes: int,
        rows: int,
        lr: float,
        explicit: bool = True,
        half: torch.dtype | None = None,
    ):
        device = batch.label.device
        copied = copy.deepcopy(network).train()
        self.encoder = PlainPrompts(copied.encoder, explicit=explicit, half=half)
        self.head, self.auxiliary = copied.head, copy.deepcopy(copied.head)
        self.batch = batch
        self.memory = Memory(
            torch.full((rows,), -1, dtype=torch.int64, device=device),
            torch.zeros(classes, device=device),
            torch.zeros(classes, device=device),
        )
        self.optimizer = torch.optim.SGD(self.trained(), lr=lr, momentum=0.9, weight_decay=5e-4)
        self.meters: tuple[float, ...] = ()

    def __call__(self) -> None:
        batch = self.batch
        features = self.encoder(torch.cat([*batch.labelled, *batch.unlabelled]))
        main, auxiliary = self.head(features), self.auxiliary(features.detach())
        found = official(Step(main, auxiliary, batch.label, batch.unlabelled_index), self.memory)
        torch.autograd.backward([main, auxiliary], [found.main, found.auxiliary])
        hits = (main[: len(batch.label)].argmax(dim=1) == batch.label).float().mean()
        self.meters = (found.loss.item(), hits.item(), self.head.scale.item())
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self) -> float:
        """Of the last step."""
        return self.meters[0]

    def trained(self) -> list[Tensor]:
        return [*self.encoder.prompts, *self.head.parameters(), *self.auxiliary.parameters()]
