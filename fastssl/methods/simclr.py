"""SimCLR (Chen et al. 2020a): a network learns to tell images apart by two views of each, then the labels fine-tune it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import option
from ..kernels import cross_entropy
from ..models import Network, Output, Report
from ..models.heads import LinearHead, ProjectedHead
from ..pipelines.batch import Batch, DataSpec, Views
from ..pipelines.errors import ConfigError
from ..schedules import Clock
from .base import Method, Stage, Terms
from .bricks.batchnorm import batchnorm
from .bricks.contrast import NormedProjection, contrast_rows, partners, similarities
from .bricks.forward import forward_together, forward_views
from .bricks.options import MethodOptions
from .bricks.rounds import refuse_probe
from .bricks.start import copied


class SimCLR(Method):
    """Stage 1, contrast: (1 / U) sum over pairs of l(a, b) + l(b, a). Stage 2, fine-tuning: mean CE(y, z_x).

    l(i, j) = -log(exp(<h_i, h_j> / T) / sum over k != i of exp(<h_i, h_k> / T)) over the 2 U rows of both views; h the projection of the
    features, of unit length. The projection is dropped after stage 1, and a new classifier is trained with the network. Optimiser and
    schedule start afresh with each stage.
    """

    @dataclass(frozen=True)
    class Config(MethodOptions):
        temperature: float = option(0.1, "T of the similarities", source="SimCLR's code: 0.1 on ImageNet, 0.5 on CIFAR-10", above=0)
        width: int = option(128, "D: width of what is compared", source="SimCLR's code", least=1)
        layers: int = option(2, "layers of the projection, each with batch-norm", source="SimCLR: 2, SimCLRv2: 3", least=1)
        view: str = option(
            "simclr", "view that is drawn twice for contrast", source="SimCLR; texts: strong", choices=("simclr", "strong", "weak")
        )
        reduction: str = option(
            "pairs",
            "mean over the U pairs of both directions' sum, or over the 2 U rows (half of that)",
            source="SimCLR's code: pairs; its equation: rows",
            choices=("pairs", "rows"),
        )
        fine_tune_share: float = option(
            0.25, "share of the run's steps in fine-tuning; 0: contrast alone, for an encoder to export", source="ours", least=0, most=0.99
        )
        fine_tune_rate: float = option(
            1 / 6, "factor on the learning rate in fine-tuning", source="SimCLR: 0.8 after 4.8 at batches of 4096", above=0
        )
        fine_tune_decay: float = option(0.0, "weight decay in fine-tuning", source="SimCLR, SimCLRv2: none", least=0)
        tuned: str = option(
            "all",
            "what fine-tuning trains: the whole network, or its head on the encoder as it is (linear evaluation)",
            source="SimCLR: both",
            choices=("all", "head"),
        )
        classifier: str = option(
            "normal",
            "start of a linear classifier before fine-tuning: zero, normal with a deviation of 0.01, or as it is (kept: a head_init=text)",
            source="SimCLR's code: normal; SimCLRv2: zero",
            choices=("zero", "normal", "kept"),
        )

    summary = "contrast of two views of each image, then fine-tuning by the labels"
    paper = "Chen et al. 2020, arXiv 2002.05709"
    whole = 0  # no view teaches
    called: ClassVar[str] = "simclr"

    def __init__(self, config: Any, network: Network, spec: DataSpec, **options: Any):
        super().__init__(config, network, spec, **options)
        refuse_probe(self.called, network)
        if config.ctaugment:
            raise ConfigError(f"{self.called} shows no image by learned rates; leave method.ctaugment false")
        self.learner = "network"  # the network that contrast and fine-tuning train
        self.doing = self.shares(config)[-1][0]
        self.projection = self.projected()

    def projected(self) -> nn.Module:
        """The layers of the projection that are not part of the network."""
        network, shared = self.get_submodule(self.learner), self.shared_layers()
        features = network.head.width if shared else network.encoder.num_features
        return NormedProjection(features, self.config.width, self.config.layers - shared)

    def shared_layers(self) -> int:
        """Leading layers of the projection that lie in the network's head."""
        return 0

    def no_weight_decay(self) -> set[str]:
        """Names of the classifiers' weights, which the code neither decays nor scales by LARS: what begins at zero has no length."""
        heads = [(place, module.head) for place, module in self.named_children() if isinstance(module, Network)]
        return {f"{place}.head.{'classifier.' * isinstance(head, ProjectedHead)}weight" for place, head in heads}

    @classmethod
    def shares(cls, config: Any) -> list[tuple[str, float]]:
        """Names of the stages in order, and their shares of the run's steps; contrast has what the others leave."""
        later = [("fine_tune", config.fine_tune_share)] if config.fine_tune_share else []
        return [("contrast", 1 - sum(share for _, share in later)), *later]

    @classmethod
    def views_of(cls, config: Any) -> Views:
        # Of all stages together: each draws its own part of them.
        return Views(("weak",) if config.fine_tune_share else (), (config.view, config.view))

    def stage(self, k: int, steps: int) -> Stage | None:
        shares = self.shares(self.config)
        if steps < len(shares):
            names = ", ".join(name for name, _ in shares)
            raise ConfigError(f"{self.called} has {len(shares)} stages ({names}), a step each at least; give --steps {len(shares)} or more")
        if k >= len(shares):
            return None
        return self.stage_of(shares[k][0], lengths(steps, [share for _, share in shares])[k])

    def stage_of(self, name: str, steps: int) -> Stage:
        """The stage of that name."""
        c, learner = self.config, self.learner
        if name == "contrast":
            untaught = f"{learner}.head.classifier" if self.shared_layers() else f"{learner}.head"
            return Stage(steps, (learner, "projection"), name, (untaught, *self.idle(name)), Views((), (c.view, c.view)))
        still = (f"{learner}.encoder",) if c.tuned == "head" else ()
        views = Views(("weak",), ("weak",) if c.entropy_min else ())
        rate, decay = c.fine_tune_rate, c.fine_tune_decay
        return Stage(steps, (learner,), name, (*still, *self.idle(name)), views, rate=rate, weight_decay=decay)

    def idle(self, name: str) -> tuple[str, ...]:
        """Networks that have no part in the stage of that name."""
        return ()

    def enter(self, stage: Stage) -> None:
        self.doing = stage.name
        super().enter(stage)

    def prepare(self, k: int, look: Any) -> Report:
        names = [name for name, _ in self.shares(self.config)]
        report = Report([f"{self.called}, stage {k + 1} of {len(names)}, {names[k]}: "])
        said, warned = self.begun(names[k])
        report.notes[0] += said
        report.warnings += warned
        return report

    def begun(self, name: str) -> tuple[str, list[str]]:
        """What happens before the stage of that name: what there is to say of it, and to warn of."""
        return self._begin() if name == "contrast" else self._classify()

    def _begin(self) -> tuple[str, list[str]]:
        c = self.config
        said = f"two views ({c.view}) of each of {self.unlabelled_batch:,} {self.spec.kind}s a step are told from all others"
        trains = any(p.requires_grad for p in self.get_submodule(self.learner).encoder.parameters())
        idle = not trains and not self.shared_layers()
        warned = f"{self.called}: no weight of the encoder trains, so that contrast moves nothing that is kept; take another --tune"
        judged = f"{self.called}: no stage trains the classifier, whose accuracy says nothing; hand the encoder on by fastssl export"
        return said, [warned] * idle + [judged] * (c.fine_tune_share == 0)

    @torch.no_grad()
    def _classify(self) -> tuple[str, list[str]]:
        """Drops the projection, begins a classifier and the average anew."""
        network, how = self.get_submodule(self.learner), self.config.classifier
        head = network.head.classifier if isinstance(network.head, ProjectedHead) else network.head
        if isinstance(head, LinearHead | nn.Linear) and how != "kept":
            head.bias.zero_()
            head.weight.zero_()
            if how == "normal":
                head.weight.copy_(0.01 * torch.randn(head.weight.shape))  # on the host, so that every device begins alike
        if self.ema is not None:  # of a student that another network is to teach, nothing has moved yet
            copied(self.network, self.ema)
        kept = " but its first layer" if self.shared_layers() else ""
        return f"the projection{kept} is dropped, the labels train {'the network' if self.config.tuned == 'all' else 'the head alone'}", []

    def loss(self, batch: Batch, clock: Clock) -> Terms:
        return self.contrast(batch) if self.doing == "contrast" else super().loss(batch, clock)

    def contrast(self, batch: Batch) -> Terms:
        """The loss of the stage that sees no label."""
        network = self.get_submodule(self.learner)
        outputs = forward_together(network, list(batch.unlabelled))
        features = torch.cat([out.features for out in outputs])
        if self.shared_layers():
            with batchnorm(network.head, "batch"):  # the pass above has moved its running statistics
                features = network.head.hidden(features)
        first, second = self.projection(features).chunk(2)
        logits = similarities(first, second, self.config.temperature)
        loss = contrast_rows(logits).mean() * (2 if self.config.reduction == "pairs" else 1)
        found = (logits.detach().argmax(1) == partners(logits)).to(torch.float32).mean()
        return Terms(loss, {"loss_contrast": loss.detach(), "contrast_accuracy": found})

    def outputs(self, batch: Batch, clock: Clock) -> tuple[list[Output], list[Output]]:
        return forward_views(self.get_submodule(self.learner), batch, self.asked.no_grad, self.weak_pass)

    def clean(self, unlabelled: list[Output], batch: Batch) -> Tensor:
        if not self.config.mixup:
            return unlabelled[0].logits
        return forward_together(self.get_submodule(self.learner), [batch.unlabelled[0]], "batch")[0].logits

    def objective(self, labelled: list[Output], unlabelled: list[Output], batch: Batch, clock: Clock) -> Terms:
        loss = cross_entropy(labelled[0].logits, batch.label, sample_weight=batch.weight).mean()
        return Terms(loss, {"loss_labelled": loss.detach()})


def lengths(steps: int, shares: list[float]) -> list[int]:
    """Whole numbers of steps, `steps` in all and each at least 1: rounded shares, of which the first takes the difference."""
    found = [max(1, round(share * steps)) for share in shares]
    found[0] += steps - sum(found)
    while found[0] < 1:
        found[found.index(max(found))] -= 1
        found[0] += 1
    return found
