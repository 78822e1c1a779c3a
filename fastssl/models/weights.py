"""Weights from a safetensors file into a network: names matched, what did not fit told. Nothing here unpickles.

The same tensors bear other names in other files: "visual." before an image tower that was saved with its text tower, "module." and
"model." before what was saved inside a wrapper. The prefix under which most of a network's own names are found is taken off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..pipelines.errors import SetupError
from .network import Report

State = dict[str, Tensor]
COUNTER = "num_batches_tracked"  # of batch-norm: says nothing about the function that a network computes
# First words of the names that a classifier bears; encoders have none, so these are left aside without a word of warning.
HEADS = frozenset(("head", "heads", "head_dist", "fc", "classifier", "last_linear", "linear", "logits", "output"))
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar", ".npz")
SHOWN = 3


class Fit(NamedTuple):
    """How a file's tensors meet a network's."""

    found: State  # the network's name -> the file's tensor, shapes alike
    misshapen: dict[str, list[int]]  # the network's name -> another shape that the file has for it
    missing: list[str]  # the network's names that the file lacks
    unused: list[str]  # the file's names under the prefix that the network lacks, classifiers left out
    prefix: str


def check(path: str | Path) -> None:
    """Raises SetupError where there is no such file, or its suffix is that of another format."""
    if Path(path).suffix in PICKLED:
        raise SetupError(f"weights {path} are not read: that format can carry code; save the tensors with safetensors.torch.save_file")
    if not Path(path).is_file():
        raise SetupError(f"cannot read weights {path}: no such file; give a .safetensors file, or random")


def read(path: str | Path) -> State:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        SetupError: no such file, or not in that format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SetupError(f"cannot read weights {path} as safetensors: {error}") from None


def fit(module: nn.Module, state: State, skip: tuple[str, ...] = ()) -> Fit:
    """Matches a file's names with a network's, by the prefix that serves most of them; names that begin as `skip` says are left aside."""
    own = {key: value for key, value in module.state_dict().items() if not key.endswith(COUNTER) and not key.startswith(skip)}
    votes: Counter[str] = Counter()
    for key in state:
        words = key.split(".")
        for at in range(len(words)):
            if ".".join(words[at:]) in own:
                votes["".join(word + "." for word in words[:at])] += 1
    prefix = max(votes, key=lambda p: (votes[p], -len(p)), default="")
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    found = {key: inside[key] for key, value in own.items() if key in inside and inside[key].shape == value.shape}
    misshapen = {key: list(inside[key].shape) for key in own if key in inside and key not in found}
    left = [key for key in inside if key not in own and not key.endswith(COUNTER) and not key.startswith(skip)]
    unused = [key for key in left if key.split(".")[0] not in HEADS]
    return Fit(found, misshapen, [key for key in own if key not in inside], unused, prefix)


def load(
    module: nn.Module,
    path: str | Path,
    name: str,
    report: Report,
    others: Callable[[State], Iterable[State]] = lambda state: (),
    skip: tuple[str, ...] = (),
) -> Fit:
    """Copies a safetensors file into `module`.

    Args:
        module: the network whose tensors are overwritten.
        path: the file.
        name: the network's name, for messages.
        report: gets a note of what was taken; a warning where tensors of the network or of the file are left over.
        others: the file's tensors -> further forms of them (converted, resampled); the form that fits best is taken.
        skip: beginnings of names in `module` that are none of this load's business.

    Raises:
        SetupError: unreadable; tensors of other shapes; fewer than half of the network's tensors in the file.
    """
    state = read(path)
    best = plain = fit(module, state, skip)
    if plain.misshapen or plain.missing:
        best = max([plain, *(fit(module, other, skip) for other in others(dict(state)))], key=lambda f: len(f.found))
    count = len(best.found) + len(best.missing) + len(best.misshapen)
    if 2 * (len(best.found) + len(best.misshapen)) < count:
        raise SetupError(
            f"weights {path} are not of {name}: {len(best.found)} of its {count} tensors are in the file, {shown(best.missing)} are not"
        )
    own = module.state_dict()
    if best.misshapen:
        key, there = next(iter(best.misshapen.items()))
        raise SetupError(
            f"weights {path} do not fit {name}: {len(best.misshapen)} of {count} tensors have other shapes, such as {key} "
            f"with {there} where {list(own[key].shape)} is wanted"
        )
    with torch.no_grad():
        for key, value in best.found.items():
            own[key].copy_(value)
    resampled = [key for key in best.found if best is not plain and key in plain.misshapen]
    tell(best, count, resampled, path, name, report)
    return best


def tell(fit: Fit, count: int, resampled: list[str], path: str | Path, name: str, report: Report) -> None:
    """Puts into words what was taken and what was not."""
    taken = f"weights {path}: {len(fit.found)} of the {count} tensors of {name}"
    if fit.prefix:
        taken += f", which the file names {fit.prefix}..."
    if resampled:
        taken += f"; brought to this image and patch size: {shown(resampled)}"
    if not fit.missing and not fit.unused:
        report.notes.append(taken)
        return
    rest = [f"{len(fit.missing)} are not in the file and keep their random start ({shown(fit.missing)})"] if fit.missing else []
    rest += [f"{len(fit.unused)} of the file's are not used ({shown(fit.unused)})"] if fit.unused else []
    report.warnings.append("; ".join([taken, *rest]))


def shown(names: list[str]) -> str:
    """The first few of the names."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
