"""A finished run as the teacher of another one."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models import Network
from ..models.network import TextInput
from ..pipelines.batch import DataSpec
from ..pipelines.errors import CheckpointError, ConfigError
from ..pipelines.text import load_tokenizer
from . import checkpoint
from .inference import Trained, load_trained
from .saved import saved_config


class TextTeacher(nn.Module):
    """The judged network of a run on texts and its auxiliary head.

    `teacher(ids)`: [N, L] token ids, of the tokenizer that both networks have -> ([N, C], [N, C]) logits of main and auxiliary head.
    """

    def __init__(self, network: Network, auxiliary: nn.Module):
        super().__init__()
        self.network, self.auxiliary = network, auxiliary

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_floating_point(ids):
            raise ConfigError("a teacher of texts reads tokens, and method.mixup mixes the student's own embeddings of them; leave it at 0")
        out = self.network(ids)
        return out.logits, self.auxiliary(out.features)


class Teacher(nn.Module):
    """The judged network of a run and its auxiliary head, on images normalised for another network.

    `teacher(images)`: [N, 3, H, W] fp32, normalised by `spec`'s constants -> ([N, C], [N, C]) logits of main and auxiliary head.
    """

    def __init__(self, network: Network, auxiliary: nn.Module, own: tuple[tuple[float, ...], tuple[float, ...]], spec: DataSpec):
        super().__init__()
        self.network, self.auxiliary = network, auxiliary
        # (x * s + m - own_m) / own_s, in one multiplication and one addition
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in own)
        theirs_mean, theirs_std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
        self.register_buffer("scale", theirs_std / std, persistent=False)
        self.register_buffer("offset", (theirs_mean - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        out = self.network(images * self.scale.to(images.dtype) + self.offset.to(images.dtype))
        return out.logits, self.auxiliary(out.features)


def load(folder: str, spec: DataSpec, text: TextInput | None = None) -> Teacher | TextTeacher:
    """The teacher that a run directory holds.

    Args:
        text: what the student reads, where that is texts.

    Raises:
        CheckpointError: no run there, or none with an auxiliary head.
        ConfigError: other classes, images of another size, or texts in other tokens.
    """
    if not (Path(folder) / "config.yaml").exists():
        raise CheckpointError(
            f"method.teacher: {folder} is no run directory (it holds no config.yaml); give the folder of a finished finessl run"
        )
    config = saved_config(Path(folder))
    trained = load_trained(Path(folder), config)
    if trained.classes != spec.classes:
        raise ConfigError(f"the teacher in {folder} knows the classes {', '.join(trained.classes[:8])}, and {spec.name} has others")
    _check_input(folder, trained, spec, text)
    state, _, _ = checkpoint.newest(Path(folder) / "checkpoints")
    own = {name.removeprefix("auxiliary."): value for name, value in state["method"].items() if name.startswith("auxiliary.")}
    if not own:
        raise CheckpointError(f"{folder} holds a run of {config.method_name}, which has no auxiliary head; a teacher is a run of finessl")
    auxiliary = copy.deepcopy(trained.network.head)
    try:
        auxiliary.load_state_dict(own)
    except RuntimeError:
        raise CheckpointError(
            f"the auxiliary head in {folder} is another kind of head than its main one; a teacher is a run of finessl"
        ) from None
    if text is not None:
        return TextTeacher(trained.network, auxiliary)
    return Teacher(trained.network, auxiliary, (trained.mean, trained.std), spec)


def _check_input(folder: str, trained: Trained, spec: DataSpec, text: TextInput | None) -> None:
    """Raises ConfigError where the teacher does not read what the student does."""
    if (trained.text is None) != (text is None):
        raise ConfigError(
            f"the teacher in {folder} reads {trained.samples}, and {spec.name} holds {'texts' if text else 'images'}; give another run"
        )
    if text is None:
        if trained.size != spec.shape[-1]:
            raise ConfigError(
                f"the teacher in {folder} takes images of {trained.size} pixels and this run makes them of {spec.shape[-1]}; "
                f"--set data.size={trained.size}, or take a network that wants as much"
            )
        return
    own, theirs = (load_tokenizer(one.tokenizer) for one in (text, trained.text))
    if own.fingerprint != theirs.fingerprint:
        raise ConfigError(
            f"the teacher in {folder} has another tokenizer than this run's network, so their tokens are other words; take networks that "
            "share theirs"
        )
    if trained.text.longest < spec.shape[-1]:
        raise ConfigError(
            f"the teacher in {folder} takes {trained.text.longest} tokens and this run reads texts up to {spec.shape[-1]}; "
            f"--set data.max_length={trained.text.longest}"
        )
