"""Update: backward, finiteness, clipping, optimiser, averaged networks. All decisions stay on the device.

A step whose loss or gradient is not finite changes nothing: torch's fused optimisers skip themselves by `found_inf`, and the
averaged networks move by a factor that is then zero. The host is told later, by a counter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..methods.base import Averaged, Method, Stage
from ..models import Network, towers
from ..pipelines.errors import ConfigError
from .optimizers import make_optimizer, undecayed

FIRST_SCALE = 2.0**16  # of a fp16 loss


class Update:
    """The one update of a stage's step. Making it begins the stage.

    Args:
        method: whose trainable parameters (all but averaged copies) are updated.
        stage: which of its networks train, and at which rate.
        config: optimiser, learning rate, decay, clipping.
        scaled: scale the loss dynamically, as fp16 needs.
        part: names of the submodules that this update is of, where the stage is in parts (updates.py).

    Attributes:
        watch: called with "backward" after each backward pass and with "update" after a whole update, by who measures them.

    Raises:
        ConfigError: layer-wise learning rates asked of a network whose layers have no known order.
    """

    watch: Callable[[str], None] | None = None

    def __init__(self, method: Method, stage: Stage, config: TrainConfig, *, scaled: bool = False, part: tuple[str, ...] | None = None):
        self.method = method
        self.factor = stage.rate
        if stage.weight_decay is not None:
            config = dataclasses.replace(config, weight_decay=stage.weight_decay)
        self.clip = config.clip
        self.turns, self.turn = config.accumulate, 0  # pieces of a step's batch; how many of them are done
        method.enter(stage)
        named = [(name, p) for name, p in trainable(method, stage) if part is None or name.split(".")[0] in part]
        self.parameters = [p for _, p in named]
        device = self.parameters[0].device
        self.lr = torch.zeros((), dtype=torch.float32, device=device)
        self.step = torch.zeros((), dtype=torch.int64, device=device)  # number of the step under way
        self.ok = torch.ones((), dtype=torch.bool, device=device)
        self.losses_ok = torch.ones((), dtype=torch.bool, device=device)  # of a step's pieces so far
        scales = layer_scales(method, config.layer_decay)
        levels = sorted({scales.get(name, 1.0) for name, _ in named})
        self.levels = torch.tensor(levels, dtype=torch.float32, device=device)
        self.rates = torch.zeros_like(self.levels)  # the groups' learning rates are views of it: one launch moves them all
        self.optimizer = make_optimizer(named, dict(zip(levels, self.rates, strict=True)), config, scales, undecayed(method))
        own = {id(p) for p in self.parameters}
        followed = [one for one in method.averages() if part is None or any(id(p) in own for p in one.source.parameters())]
        self.averages = [Average(one) for one in followed]
        self.scale = torch.full((), FIRST_SCALE, device=device) if scaled else None
        self.growth = torch.zeros((), dtype=torch.int32, device=device)

    def restart(self, stage: Stage) -> None:
        """Begins the stage again: what an optimiser remembers is forgotten, in place, unless the stage goes on."""
        self.method.enter(stage)
        self.turn = 0
        if stage.goes_on:
            return
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()
        if self.scale is not None:
            self.scale.fill_(FIRST_SCALE)
        self.growth.zero_()

    def begin(self, lr: Tensor, step: Tensor | None = None) -> None:
        """Starts a step: takes over its learning rate ([] fp32) and number ([] int64; 0 if None), and forgets the last step's verdict."""
        self.lr.copy_(lr * self.factor)
        if step is not None:
            self.step.copy_(step)
        torch.mul(self.levels, self.lr, out=self.rates)
        self.ok.fill_(True)

    def __call__(self, loss: Tensor, part: int = 0, rate: Tensor | None = None) -> None:
        """Trains by one [] loss; where a step's batch comes in pieces, by the mean of their losses once the last one is here.

        Args:
            part: of a stage in parts, which is the caller's matter (updates.py).
            rate: [] factor on the learning rate of this update; 1 if None.
        """
        if rate is not None:
            torch.mul(self.levels, self.lr * rate, out=self.rates)
        with torch.autocast(loss.device.type, enabled=False):
            if self.turn == 0:
                self.losses_ok.fill_(True)
                for p in self.parameters:
                    p.grad = None
            share = loss if self.turns == 1 else loss / self.turns
            (share if self.scale is None else share * self.scale).backward()
            if self.watch is not None:
                self.watch("backward")
            self.losses_ok.logical_and_(torch.isfinite(loss.detach()))
            self.turn = (self.turn + 1) % self.turns
            if self.turn:
                return
            grads = [p.grad for p in self.parameters if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)).float())
            if self.scale is not None:
                norm = norm / self.scale
            # lr * norm too: a finite gradient under a huge rate would still write infinities into the weights.
            # Of a step in several parts none moves once one has failed.
            finite = self.losses_ok & self.ok & torch.isfinite(norm * self.lr)
            if self.clip > 0:
                torch._foreach_mul_(grads, (self.clip / (norm + 1e-6)).clamp(max=1.0))
            found_inf = (~finite).to(torch.float32)
            self.optimizer.found_inf = found_inf
            self.optimizer.grad_scale = self.scale
            self.optimizer.step()
            if self.scale is not None:
                torch._amp_update_scale_(self.scale, self.growth, found_inf, 2.0, 0.5, 2000)
            self.ok.logical_and_(finite)
            for average in self.averages:
                average.move(finite, self.step)
            if self.watch is not None:
                self.watch("update")

    def state_dict(self) -> dict[str, object]:
        state = {str(i): {k: v for k, v in self.optimizer.state[p].items() if isinstance(v, Tensor)} for i, p in enumerate(self.parameters)}
        return {"optimizer": state, "scale": self.scale, "growth": self.growth, "lr": self.lr}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores by copying in place: a captured step keeps its addresses."""
        for i, p in enumerate(self.parameters):
            for key, value in state["optimizer"][str(i)].items():
                self.optimizer.state[p][key].copy_(value)
        if self.scale is not None:
            self.scale.copy_(state["scale"])
        self.growth.copy_(state["growth"])
        self.lr.copy_(state["lr"])  # for a report before the next step


def trainable(method: Method, stage: Stage) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) of all that the stage trains, in a fixed order.

    Raises:
        ValueError: the stage trains nothing.
    """
    averaged = {id(p) for one in method.averages() for p in one.average.parameters()}
    named = [
        (name, p)
        for name, p in method.named_parameters()
        if p.requires_grad and id(p) not in averaged and (stage.networks is None or name.split(".")[0] in stage.networks)
    ]
    if not named:
        raise ValueError(f"stage '{stage.name}' of {type(method).__name__} has no trainable parameter")
    return named


def layer_scales(method: Method, decay: float) -> dict[str, float]:
    """Parameter name -> factor on the learning rate, decay ** (layers from the head, see `towers.layers`); 1 for names not in it.

    Raises:
        ConfigError: a network whose layers have no known order.
    """
    if decay == 1.0:
        return {}
    scales = {}
    for place, module in method.named_modules():
        if isinstance(module, Network) and any(p.requires_grad for p in module.parameters()):
            found = towers.layers(module.encoder)
            if found is None:
                kind = type(module.encoder).__name__
                raise ConfigError(
                    "train.layer_decay needs a network whose layers are known (vision transformers, timm's, text encoders), got "
                    f"{kind}; leave it at 1"
                )
            layers, head = found
            scales.update({f"{place}.encoder.{name}": decay ** (head - layer) for name, layer in layers.items()})
    return scales


class Average:
    """An averaged copy of a network: average += (1 - decay) (source - average), and the source's buffers unless it fills its own.

    Frozen parameters are equal already and stay out.
    """

    def __init__(self, one: Averaged):
        moving = [(a, s) for a, s in zip(one.average.parameters(), one.source.parameters(), strict=True) if s.requires_grad]
        self.average, self.source = [a.detach() for a, _ in moving], [s.detach() for _, s in moving]
        copied = one.buffers == "source"
        self.buffers, self.values = (list(one.average.buffers()), list(one.source.buffers())) if copied else ([], [])
        self.decay = one.decay

    def move(self, finite: Tensor, step: Tensor) -> None:
        """After step number `step`, or not at all where `finite` ([] bool) says so: by a 0-d factor, so that no host number is frozen
        into a capture."""
        weight = finite * (1.0 - (self.decay(step) if callable(self.decay) else self.decay))
        if not self.average:  # all of the source is frozen, and torch's lists want a tensor at least
            pass
        elif weight.is_cuda:  # three launches over all tensors, where lerp by a tensor would be one for each
            way = torch._foreach_sub(self.source, self.average)
            torch._foreach_mul_(way, weight)
            torch._foreach_add_(self.average, way)
        else:
            weights = {kind: weight.to(kind) for kind in {a.dtype for a in self.average}}
            torch._foreach_lerp_(self.average, self.source, [weights[a.dtype] for a in self.average])
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.values)
