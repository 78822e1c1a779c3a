"""Optimisers with tensor learning rates, their state made before the first step: torch's fused SGD and AdamW, and LARS."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from .lars import LARS


def make_optimizer(
    named: list[tuple[str, nn.Parameter]],
    rates: dict[float, Tensor],
    config: TrainConfig,
    scales: dict[str, float],
    exempt: frozenset[str] = frozenset(),
) -> torch.optim.Optimizer:
    """The optimiser that the configuration names, over groups by learning rate and decay.

    Parameters of fewer than two dimensions (norms, biases, scales), and those in `exempt`, are not decayed unless `config.decay_all`.

    Args:
        named: (name, parameter) of all that trains.
        rates: factor -> [] fp32 learning rate of the parameters that have this factor in `scales` (1 where they are not in it).
        exempt: names of parameters that the network itself asks to leave undecayed, see `undecayed`.
    """
    groups, tensors = [], []
    for scale, rate in rates.items():
        members = [(name, p) for name, p in named if scales.get(name, 1.0) == scale]
        decays = [config.decay_all or (p.ndim > 1 and name not in exempt) for name, p in members]
        for decayed in (True, False):
            params = [p for (_, p), does in zip(members, decays, strict=True) if does == decayed]
            if params:
                groups.append({"params": params, "weight_decay": config.weight_decay if decayed else 0.0})
                tensors.append(rate)
    # The tensors come in after the optimiser is made, whose checks would read them.
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, nesterov=nesterov, fused=True)
        if config.momentum > 0:
            # Zeros before step 1 equal torch's own first step, and let a first step that is skipped stay a skipped one.
            for _, p in named:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    elif config.optimizer == "lars":
        for group in groups:
            group["adapt"] = all(p.ndim > 1 for p in group["params"])
        optimizer = LARS(groups, lr=0.0, momentum=config.momentum, eta=config.trust)
    else:
        optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True, capturable=True)  # torch refuses to capture it otherwise
        optimizer._warned_capturable_if_run_uncaptured = True  # and warns of eager steps, which are meant too
        for _, p in named:
            optimizer.state[p].update(
                step=torch.zeros((), dtype=torch.float32, device=p.device), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
            )
    for group, rate in zip(optimizer.param_groups, tensors, strict=True):
        group["lr"] = rate
    return optimizer


def undecayed(module: nn.Module) -> frozenset[str]:
    """Names of the parameters that networks within a module ask to leave undecayed, as timm's do by `no_weight_decay()`."""
    names = set()
    for place, part in module.named_modules():
        ask = getattr(part, "no_weight_decay", None)
        if callable(ask):
            names |= {f"{place}.{name}" if place else name for name in ask()}
    return frozenset(names)
