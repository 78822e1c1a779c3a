"""A trained network as files for others: safetensors under the names of the network's own library, and a description beside them.

| layout | what the file holds | what loads it, strictly |
|---|---|---|
| timm | the network, its classifier with it where that is one linear map | timm.create_model |
| open_clip | the image tower | open_clip.create_model(...).visual |
| torch | the encoder | our own class, or the user's |
| fastssl | the network as it was trained: encoder.*, with all that tuning added, and head.* | `load` |

A head that has no place in the library's network (open_clip, torch; any but a linear one) lies in a second file. Legend as in plain.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import ModelConfig
from ..pipelines.errors import ConfigError, ResourceError, SetupError
from . import heads, peft, plain
from .network import Network

SCHEMA = 1
LOAD = "from safetensors.torch import load_file"


class Exported(NamedTuple):
    """What is to be written."""

    files: dict[Path, dict[str, Tensor]]  # a network's, and a head's where it is apart
    about: dict[str, Any]  # JSON-able
    note: str | None  # why adapters were kept, where nobody asked for that


def places(out: Path) -> tuple[Path, Path, Path]:
    """Network, head and description: net.safetensors, net.head.safetensors, net.json."""
    return out, out.with_name(f"{out.stem}.head.safetensors"), out.with_suffix(".json")


def pack(network: Network, config: ModelConfig, size: int, out: Path, *, merged: bool | None = None) -> Exported:
    """Brings a trained network into the form of its files.

    Args:
        network: in evaluation mode, on the CPU; it is not changed.
        config: what it was built from.
        size: side of its images in pixels.
        out: place of the network's file.
        merged: True: adapters are folded into the weights; False: all stays as it was trained; None: folded where they can be.

    Raises:
        ConfigError: `merged`, and a tuning that no weight of the network can stand for.
    """
    left = peft.kept(network.encoder)
    if left and merged:
        raise ConfigError(
            f"--merged: {', '.join(left)} cannot be folded into a network's weights; leave --merged out to export them as they are"
        )
    tried = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    about: dict[str, Any] = {"head": heads.kind_of(network.head), "tune": config.tune, "kept": list(left)}
    if merged is False or left:
        note = f"{', '.join(left)} cannot be folded into a network's weights: kept, and fastssl alone builds this network" if left else None
        code = ["from fastssl.models import exported", "", f'model, about = exported.load("{out.name}")', "logits = model(images).logits"]
        about = {"layout": "fastssl", **about, "python": code}
        return Exported({out: dict(network.state_dict())}, about, None if merged is False else note)
    made = plain.of(config, network, tried)
    about = {"layout": made.layout, **about}
    code = [*made.code, f'model.load_state_dict(load_file("{out.name}"), strict=True)', "model.eval()"]
    code.insert(1, LOAD)
    code += [f"model.{name} = {value}" for name, value in made.after.items()]
    files = {out: made.state}
    if made.apart:
        head = places(out)[1]
        files[head] = dict(network.head.state_dict())
        code.insert(0, "import torch.nn.functional as F")
        code += ["features = model(images)", f'head = load_file("{head.name}")', plain.head_code(network.head)]
    else:
        code.append("logits = model(images)")
    with torch.no_grad():
        answer = made.answer(tried)
        got = network.head(answer) if made.apart else answer
        off = plain.difference(got, network(tried).logits)
    if not off <= plain.TOLERANCE:  # NaN too
        raise ConfigError(
            f"{config.name} in its own library answers random images with logits that are off by {off:.1g} of the largest; give --kept"
        )
    return Exported(files, {**about, "largest_difference": off, "python": code}, None)


def write(exported: Exported, description: Path, about: dict[str, Any]) -> None:
    """Writes the files, each whole or not at all, and last the description. `about` also stands in the network's file, as metadata.

    Raises:
        ResourceError: no space left.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    for path, tensors in exported.files.items():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            state = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
            save_file(state, temporary, metadata={"format": "pt", "fastssl": json.dumps(about)})
            mask = os.umask(0)  # Rust's writer makes a file that its owner alone may read
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            os.replace(temporary, path)
        except SafetensorError as error:  # Rust's writer has no OSError
            if "os error 28" not in str(error):
                raise
            raise ResourceError(f"no space left while writing {path}; free some and export again") from None
        finally:
            temporary.unlink(missing_ok=True)
    temporary = description.with_name(f".{description.name}.{os.getpid()}")
    temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, description)


def load(path: str | Path) -> tuple[Network, dict[str, Any]]:
    """A network that was exported in fastssl's layout, in evaluation mode, and its description. Needs the one file alone.

    A network of the user's own is built by its factory: that module must be importable, and is run.

    Raises:
        SetupError: no such file, no export of fastssl, of a later version, or damaged.
        ConfigError: an export in another layout.
    """
    from safetensors import SafetensorError, safe_open

    from . import build, weights

    state = weights.read(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("fastssl", "null"))
    except (SafetensorError, ValueError) as error:
        raise SetupError(f"cannot read the description in {path}: {error}") from None
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise SetupError(f"{path} is no export that this version of fastssl reads; write it with fastssl export")
    if about["layout"] != "fastssl":
        raise ConfigError(
            f"{path} is laid out for {about['layout']}; its description beside it says how to load it, as --weights takes it too"
        )
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    config = ModelConfig(**{key: value for key, value in about["model"].items() if key in known})
    network = build(dataclasses.replace(config, weights="random", head_init="random"), tuple(about["classes"]), size=about["input"]["size"])
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise SetupError(f"{path} does not fit its own description: {str(error).splitlines()[0]}") from None
    return network.eval(), about
