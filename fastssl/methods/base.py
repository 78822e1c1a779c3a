"""What every method is: an nn.Module whose networks are submodules and whose memory is buffers.

Device moves, checkpoints and resume then come for free, and the engine needs to know no method by name.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..models import Network, Output, Report, Together
from ..models.peft import probe_share
from ..pipelines.batch import Batch, DataSpec, Split, Views
from ..pipelines.ctaugment import OPS, CTAugment, proximity
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .bricks.forward import forward_together, forward_views
from .bricks.mixing import mixed_batch
from .bricks.regularisers import entropy
from .bricks.words import Averaged, Stage, Terms, Updater

__all__ = ["Averaged", "Method", "Stage", "Terms", "Updater"]


class Method(nn.Module):
    """Base of all methods.

    Args:
        config: the method's own Config.
        network: the network to train, heads included.
        spec: what must be known of the data.
        ema: decay of the averaged network, 0 for none.
        unlabelled_batch: U, unlabelled samples a step.
        weak_pass: "joint" (one forward over all views, as batch-norm networks need) or "separate" (views that need no
            gradient run apart, without a graph).
    """

    Config: ClassVar[type]
    views: ClassVar[Views] = Views()
    judges_rows: ClassVar[bool] = False  # whether `finish` judges a row by its foundation label too: images from elsewhere have none
    needs_foundation: ClassVar[bool] = False  # whether it learns from foundation labels and cannot do without (bricks/foundation.demand)
    trains_nothing: ClassVar[bool] = False  # whether the method is judged as its network and what it is given stand
    usual_ema: ClassVar[float] = 0.0  # decay of the averaged network that a method cannot do without, where the user names none
    whole: ClassVar[int] = 1  # leading unlabelled views that MixUp leaves as they are: those that teach
    compiled: ClassVar[tuple[str, ...]] = ("loss", "remember")  # the functions that are compiled whole; `step` is what lies between them
    summary: ClassVar[str]
    paper: ClassVar[str]

    def __init__(
        self,
        config: Any,
        network: Network,
        spec: DataSpec,
        *,
        unlabelled_batch: int = 0,
        ema: float = 0.0,
        weak_pass: str = "separate",
    ):
        super().__init__()
        self.config = config
        self.unlabelled_batch = unlabelled_batch
        self.spec = spec
        self.weak_pass = weak_pass
        self.asked = self.asks(config)  # the present stage's views
        self.network = network
        self.ema_decay = ema
        self.ema = copy.deepcopy(network).requires_grad_(False) if ema else None
        self.augmentation = CTAugment() if getattr(config, "ctaugment", False) else None
        self._held: list[nn.Parameter] = []  # what the present stage froze, and the next lets train again

    @classmethod
    def teacher_run(cls, config: Any) -> str | None:
        """The directory of a finished run that this configuration learns from: its networks are then passed as `teacher`."""
        return None

    @classmethod
    def others(cls, config: Any) -> dict[str, str]:
        """Further networks: the keyword by which the method takes one -> its model's name, or "" for another one of the run's own model,
        with a random start of its own (a user's own module keeps its weights where it is not tuned whole)."""
        return {}

    @classmethod
    def head_of(cls, config: Any) -> str | None:
        """The kind of head (`model.head`) that this configuration wants where the user names none; None for the usual one."""
        return None

    @classmethod
    def views_of(cls, config: Any) -> Views:
        """The views that this configuration of the method needs; by default the class's own."""
        return cls.views

    @classmethod
    def asks(cls, config: Any) -> Views:
        """The views that are drawn: those of `views_of`, and what options of every method add."""
        views = cls.views_of(config)
        if getattr(config, "ctaugment", False):
            if "strong" not in (*views.labelled, *views.unlabelled):
                raise ConfigError(f"method.ctaugment learns how strong views are drawn, and {cls.__name__} draws none; leave it false")
            views = dataclasses.replace(views, probe=True)
        if getattr(config, "entropy_min", 0.0) > 0:  # its gradient goes through the first unlabelled view
            return dataclasses.replace(views, unlabelled=views.unlabelled or ("weak",), no_grad=0)
        return views

    def loss(self, batch: Batch, clock: Clock) -> Terms:
        """The step's loss. Pure: writes none of the method's memory (batch-norm statistics aside).

        By default `outputs` of the views, then `objective`, and `further` terms. With MixUp the objective is taken twice: lambda times the
        one by every row's own targets, 1 - lambda times the one by its partner's; metrics and memory are of the first.
        """
        alpha = getattr(self.config, "mixup", 0.0)
        mix = mixed_batch(batch, clock, alpha, self.whole, self.network) if alpha > 0 else None
        seen = batch if mix is None else mix.batch
        labelled, unlabelled = self.outputs(seen, clock)
        terms = self.objective(labelled, unlabelled, seen, clock)
        total = terms.total
        if mix is not None:
            taught = [Output(*(t.index_select(0, mix.unlabelled.partner) for t in view)) for view in unlabelled[: self.whole]]
            other = self.objective(labelled, taught + unlabelled[self.whole :], mix.partners(), clock)
            share = mix.share.to(total.dtype)
            total = share * total + (1 - share) * other.total
        return self.with_further(terms, total, labelled, unlabelled, batch, clock)

    def with_further(
        self, terms: Terms, total: Tensor, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock
    ) -> Terms:
        """`terms` with another total, to which the `further` terms are added."""
        found = self.further(labelled, unlabelled, batch, clock)
        for name, term in found.items():
            total = total + term
            terms.metrics[f"loss_{name}"] = term.detach()
        return Terms(total, terms.metrics, terms.memory)

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        """What the network says of the labelled and of the unlabelled views, in the order in which the method asks for views."""
        return forward_views(self.network, batch, self.asked.no_grad, self.weak_pass)

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        """The loss of what the network said of each view, in the order in which the method asks for views.

        Whoever has no use for the default `loss` overrides that instead.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither objective nor loss")

    def further(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Name -> [] term beside the objective, weighed; never mixed. By default the entropy term, where it is asked for.

        Args:
            batch: as it was drawn, before any mixing.
        """
        weight = getattr(self.config, "entropy_min", 0.0)
        if not weight or not self.asked.unlabelled:
            return {}
        return {"entropy": weight * entropy(self.clean(unlabelled, batch)).mean()}

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        """[U, C] logits of the first unlabelled view, by the network that trains and with gradient; by a pass of its own where MixUp has
        mixed that view too."""
        if self.whole or not getattr(self.config, "mixup", 0.0):
            return unlabelled[0].logits
        return forward_together(self.network, [batch.unlabelled[0]], "batch")[0].logits

    def remember(self, batch: Batch, terms: Terms, clock: Clock) -> None:
        """The only writer of memory (banks, thresholds, running means) inside a step, after the optimiser's."""

    def step(self, batch: Batch, clock: Clock, update: Updater) -> Terms:
        """One step: loss, the stage's one update, remember."""
        terms = self.loss(batch, clock)
        update(terms.total)
        self.remember(batch, terms, clock)
        self.recognise(batch)
        return terms

    def learned_augmentation(self) -> CTAugment | None:
        """The rates that this method learns, by which the pipeline is to draw strong views; or None."""
        return self.augmentation

    @torch.no_grad()
    def recognise(self, batch: Batch) -> None:
        """Moves those rates, where the batch has probes, by the probability of the label in what the judged network, in evaluation, says.

        A label of weight 0 moves nothing. Whoever overrides `step` calls this after `remember`.
        """
        if self.augmentation is None or not batch.probe:
            return
        images, op, level = batch.probe
        judge = self.judged()
        training = judge.training
        judge.train(False)
        near = proximity(judge(images).logits, batch.label)
        judge.train(training)
        # An operation without parameters has no rate.
        self.augmentation.update(near, torch.where(batch.weight[:, None] > 0, op, OPS.index("identity")), level)

    def stage(self, k: int, steps: int) -> Stage | None:
        """The k-th stage of a run of `steps` steps, or None after the last.

        One stage; two where the network is tuned by lp_ft: its heads alone (a linear probe), then everything.
        """
        share = probe_share(self.network.encoder)
        probe = min(max(1, round(share * steps)), steps - 1) if share else 0
        stages = [Stage(probe, name="linear_probe", frozen=("network.encoder",))] if probe else []
        stages.append(Stage(steps - probe))
        return stages[k] if k < len(stages) else None

    def prepare(self, k: int, look: Any) -> Report:
        """Once, before stage k begins, and not when a run is resumed inside it: relabel, fit a mixture, choose rows. Memory is written in
        place.

        Args:
            k: number of the stage, from 0.
            look: `look(part or rows, network, view, reduce)` -> rows and what `reduce` made of each (engine/look.py); `look.split` is the
                run's split as it was drawn.

        Returns:
            what there is to say of it in the log.
        """
        return Report()

    def split_of(self, split: Split) -> Split:
        """The split that is drawn from, a pure function of the run's own and of memory; taken up before each stage and after a resume."""
        return split

    def enter(self, stage: Stage) -> None:
        """Begins a stage: what it names as frozen stops training, what the stage before had frozen trains again.

        A wholly frozen encoder also keeps its batch-norm statistics (see Network.train).
        """
        self.asked = stage.views or self.asks(self.config)
        for parameter in self._held:
            parameter.requires_grad_(True)
        self._held = [p for place in stage.frozen for p in self.get_submodule(place).parameters() if p.requires_grad]
        for parameter in self._held:
            parameter.requires_grad_(False)
        self.train(self.training)

    def averages(self) -> list[Averaged]:
        """The averaged networks, which the engine moves after each optimiser step."""
        return [] if self.ema is None else [Averaged(self.ema, self.network, self.ema_decay)]

    def judges(self) -> tuple[str, ...]:
        """Names of the submodules whose predictions count, are saved as what eval and predict take, and are exported: the averaged
        network where one is kept. The logits of several are summed."""
        return ("network",) if self.ema is None else ("ema",)

    def judged(self) -> Network | Together:
        """The network whose predictions count, or several as one."""
        networks = [self.get_submodule(name) for name in self.judges()]
        return networks[0] if len(networks) == 1 else Together(networks)

    def predict(self, inputs: Tensor) -> Tensor:
        """[N, ...] inputs -> [N, C] logits of the judged network."""
        return self.judged()(inputs).logits

    def finish(self, logits: Tensor, index: Tensor) -> Tensor:
        """[n, C] logits of the judged network on rows [n] of the data set -> what is judged; another thing than the logits only where the
        method knows more of a row than its image (`judges_rows`)."""
        return logits

    def train(self, mode: bool = True) -> Method:
        super().train(mode)
        if self.ema is not None:
            self.ema.train(False)
        return self
