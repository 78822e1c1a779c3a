"""The judged network of a finished run, for eval and predict: no training state, no training data."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..config import RunConfig
from ..models import Network, Together
from ..models.network import TextInput
from ..pipelines.errors import CheckpointError
from . import checkpoint
from .step import AMP_TYPES


@dataclass
class Trained:
    """A run's judged network and what it takes to feed it."""

    # In eval mode, on the CPU: "raw" and, where one was kept, "ema"; or several by name, "raw" the first, and then "together".
    networks: dict[str, Network | Together]
    classes: tuple[str, ...]
    size: int | None  # side of the square input in pixels; None for texts
    mean: tuple[float, ...]
    std: tuple[float, ...]
    manifest: dict[str, Any]
    complaints: list[str]
    text: TextInput | None = None  # of a run on texts: its tokenizer
    longest: int | None = None  # of a run on texts: tokens of each that it reads
    models: dict[str, str] = dataclasses.field(default_factory=dict)  # name of a network -> its model's

    @property
    def judge(self) -> str:
        """Which of the networks counts."""
        return list(self.networks)[-1]

    @property
    def network(self) -> Network | Together:
        """The network that counts."""
        return self.networks[self.judge]

    @property
    def samples(self) -> str:
        """What it reads, in the plural."""
        return "images" if self.text is None else "texts"


def load_trained(folder: Path, config: RunConfig, *, encoder: nn.Module | None = None) -> Trained:
    """The networks of the newest readable checkpoint of a run.

    Args:
        folder: the run directory.
        config: its configuration.
        encoder: for a run that was given the user's own network: another one of the same make, whose weights are overwritten.

    Raises:
        CheckpointError: there is none, or it does not hold what the configuration names.
        SetupError: the folder of a text encoder, which says how the network is built and texts are tokenised, is not there any more.
    """
    state, manifest, complaints = checkpoint.newest(folder / "checkpoints")
    classes, model = tuple(manifest["classes"]), models.bare(config.model)
    reads_text = manifest.get("kind") == "text"  # runs of before texts were known have no kind
    text = models.describe(model).text if reads_text else None
    size = None if reads_text else manifest["shape"][-1]

    def read(name: str) -> Network:
        """The network of that name in the method."""
        own = {k.removeprefix(f"{name}."): v for k, v in state["method"].items() if k.startswith(f"{name}.")}
        other = manifest.get("others", {}).get(name)
        network = models.build(
            dataclasses.replace(model, name=other) if other else model,
            classes,
            size=size,
            encoder=None if other else copy.deepcopy(encoder),
        )
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint in {folder} does not fit its config.yaml: {str(error).splitlines()[0]}") from None
        return network.eval()

    # Runs of before methods named their judges had one network, and an averaged one where they kept it.
    usual = ("ema",) if any(key.startswith("ema.") for key in state["method"]) else ("network",)
    judges = tuple(manifest.get("judges", usual))
    called = {"raw": "network"} if judges[0] == "ema" else {}
    names = ("ema" if called else "raw", "second", *(f"judge {k}" for k in range(3, len(judges) + 1)))
    called |= dict(zip(names[: len(judges)], judges, strict=True))
    networks: dict[str, Network | Together] = {name: read(own) for name, own in called.items()}
    if len(judges) > 1:
        networks["together"] = Together([networks[name] for name, own in called.items() if own in judges]).eval()
    return Trained(
        networks,
        classes,
        size,
        tuple(manifest["mean"]),
        tuple(manifest["std"]),
        manifest,
        complaints,
        text,
        (config.data.max_length or manifest["shape"][-1]) if reads_text else None,
        {name: manifest.get("others", {}).get(own) or config.model.name for name, own in called.items()},
    )


def logits_for(network: Network, images: np.ndarray, trained: Trained, amp: str, batch_size: int = 512) -> Tensor:
    """[N, 3, S, S] uint8 images -> [N, C] fp32 logits, normalised and run as evaluation in training does.

    Args:
        amp: the run's mixed precision; fp16 networks are run in fp32 here, as the CPU has no fp16 autocast of ours.
    """
    pieces = [
        logits_at(network, torch.from_numpy(images[start : start + batch_size]).float().div(255), trained, amp)
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(pieces) if pieces else torch.zeros(0, len(trained.classes))


def logits_at(network: Network, pixels: Tensor, trained: Trained, amp: str) -> Tensor:
    """The same of [n, 3, S, S] fp32 pixels in [0, 1], as one batch."""
    kind = AMP_TYPES.get(amp) if amp != "fp16" else None
    with torch.inference_mode(), torch.autocast("cpu", dtype=kind, enabled=kind is not None, cache_enabled=False):
        return network(normalised(pixels, trained)).logits.float()


def normalised(pixels: Tensor, trained: Trained) -> Tensor:
    """Pixels in [0, 1] as the network wants to see them."""
    return (pixels - torch.tensor(trained.mean).view(-1, 1, 1)) / torch.tensor(trained.std).view(-1, 1, 1)
