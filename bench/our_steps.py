"""Our step as the engine takes it, on one batch that is held still: what the step rows time, data left out.

A step is the engine's own (`Step`): clock, schedule, forward, loss, backward, finiteness, optimiser, averages, memory, metric sums.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastssl.config import ModelConfig, TrainConfig
from fastssl.engine import modes
from fastssl.engine.step import Step
from fastssl.engine.update import Update, trainable
from fastssl.methods import find
from fastssl.models import build
from fastssl.pipelines.batch import Batch, DataSpec
from fastssl.schedules import Clock

ROWS = 50_000  # samples of the set that a bank has to cover
TOTAL = 1000  # steps of the schedule


class Held:
    """A pipeline whose every draw is the same batch, at the same addresses."""

    capturable = True

    def __init__(self, batch: Batch, spec: DataSpec):
        self.batch, self.spec = batch, spec

    def draw(self) -> Batch:
        return self.batch

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


class Ours:
    """One step a call, in the mode that it was prepared for."""

    def __init__(self, step: Step):
        self.step = step
        self._loss: float | None = None

    def __call__(self) -> None:
        self._loss = None
        self.step()

    def prepare(self, mode: str) -> Ours:
        """Compiles or captures; weights stay as they are. A mode that does not work here raises."""

        def refuse(sentence: str) -> None:
            raise RuntimeError(sentence)

        modes.prepare(self.step, mode, refuse)
        return self

    def loss(self) -> float:
        """Mean of the steps since it was last asked for: of the last one, where it is asked for after each."""
        if self._loss is None:
            self._loss = self.step.read()["loss"]
        assert self._loss is not None, "the step was skipped: its loss or gradient was not finite"
        return self._loss

    def trained(self) -> list[Tensor]:
        return [p for _, p in trainable(self.step.method, self.step.method.stage(0, TOTAL))]


def noise_batch(labelled: int, unlabelled: int, views: int, side: int, classes: int, device: torch.device, seed: int = 0) -> Batch:
    """A batch of normal noise [3, side, side]; strong views are the weak one and more noise. `views`: of an unlabelled sample."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randn(n, 3, side, side, generator=generator)  # noqa: E731
    first, weak = draw(labelled), draw(unlabelled)
    views_u = (weak, *(weak + 0.5 * draw(unlabelled) for _ in range(views - 1)))
    label = torch.randint(classes, (labelled,), generator=generator)
    index, index_u = torch.arange(labelled), torch.arange(unlabelled)
    batch = Batch((first,), label, torch.ones(labelled), index, views_u, index_u, torch.full((unlabelled,), -1))
    return Batch(*(tuple(v.to(device) for v in part) if isinstance(part, tuple) else part.to(device) for part in batch))


def names(classes: int) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(classes))


def wide_network(name: str, classes: int, device: torch.device) -> nn.Module:
    """A wide residual network by name, random weights by a fixed seed."""
    torch.manual_seed(0)
    return build(ModelConfig(name=name), names(classes), size=32).to(device).train()


def prompted_network(name: str, classes: int, device: torch.device, *, prompts: int = 50, **options: object) -> nn.Module:
    """A vision transformer of timm with deep prompts and a cosine head whose logits are spread so that some rows are sure."""
    torch.manual_seed(0)
    config = ModelConfig(name=name, weights="random", tune="vpt_deep", prompts=prompts, head="cosine", head_scale=100.0, **options)
    return build(config, names(classes), size=options.get("img_size")).to(device).train()


@torch.no_grad()
def middle_confidence(network: nn.Module, batch: Batch, weak_pass: str) -> float:
    """A threshold that about half of the weak views reach, in the widest gap between rows around the median."""
    (labelled,), (weak, strong) = batch.labelled, batch.unlabelled
    views, first = (torch.cat([labelled, weak, strong]), len(labelled)) if weak_pass == "joint" else (weak, 0)
    logits = copy.deepcopy(network).train()(views).logits[first : first + len(weak)]
    confidence = logits.float().softmax(dim=-1).amax(dim=-1).sort().values
    low, high = len(confidence) // 4, max(3 * len(confidence) // 4, len(confidence) // 4 + 1)
    at = low + int(confidence.diff()[low:high].argmax())
    return float(confidence[at] + confidence[at + 1]) / 2


def fixmatch(network: nn.Module, batch: Batch, *, threshold: float, lr: float, weak_pass: str = "joint", amp: str = "off") -> Ours:
    """FixMatch on a copy of `network`, by the published recipe."""
    config = TrainConfig(steps=TOTAL, lr=lr, ema=0.999, amp=amp, weight_decay=5e-4)
    return _ours("fixmatch", {"threshold": threshold}, network, batch, config, weak_pass)


def finessl(network: nn.Module, batch: Batch, *, lr: float, amp: str = "off") -> Ours:
    """FineSSL on a copy of `network`, by the published recipe."""
    config = TrainConfig(steps=TOTAL, lr=lr, ema=0.0, amp=amp, weight_decay=5e-4, decay_all=True, nesterov=False, schedule="constant")
    return _ours("finessl", {"gamma": 3.0}, network, batch, config, "separate")


def _ours(name: str, options: dict, network: nn.Module, batch: Batch, config: TrainConfig, weak_pass: str) -> Ours:
    kind, device = find(name), batch.label.device
    head = network.head
    classes = len(head.weight)
    spec = DataSpec("made up", names(classes), tuple(batch.labelled[0].shape[1:]), rows=ROWS, unlabelled=ROWS)
    network = copy.deepcopy(network)
    if network.has_batchnorm:
        network = network.to(memory_format=torch.channels_last)  # as the engine does it
    unlabelled = len(batch.unlabelled_index)
    method = kind(kind.Config(**options), network, spec, unlabelled_batch=unlabelled, ema=config.ema, weak_pass=weak_pass).to(device)
    method.train()
    stage = method.stage(0, config.steps)
    update = Update(method, stage, config, scaled=config.amp == "fp16")
    return Ours(Step(method, Held(batch, spec), update, Clock(stage.steps, 0, device), config))
