"""timm:NAME: any network of timm that answers with pooled features. One of the two doors to timm.

NAME is timm's, with or without a tag ("vit_small_patch16_224.augreg_in1k"). Weights come from its repository on the Hugging Face hub
(see hub.py), from a safetensors file, or are random. `model.img_size` and `model.patch_size` go to the network as it is built:
USB's ViT-S/2 is timm:vit_small_patch16_224 with 32 and 2. timm itself then resamples positions and patches of the weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ..pipelines.errors import ConfigError, SetupError, unknown
from . import hub, probe, weights
from .network import InputSpec, Made, Report, unknown_network


class TimmEncoder(nn.Module):
    """A network of timm without its classifier.

    Args:
        model: made with num_classes=0.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.num_features = getattr(model, "head_hidden_size", None) or model.num_features

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, d] pooled features."""
        return self.model(x)


def describe(config: Any, size: int | None) -> InputSpec:
    """The input of a timm network by timm's own description of its weights (see `models.describe`)."""
    cfg = _cfg(config.name)
    described = _timm().data.resolve_data_config(pretrained_cfg=cfg.to_dict())
    side = size or config.img_size or described["input_size"][-1]
    try:
        probe.width(lambda: TimmEncoder(_create(config)), side)
    except probe.Refused as error:
        mend = "give a network that pools its features, or other options"
        if side != described["input_size"][-1] or config.img_size is not None or config.patch_size is not None:
            mend = "set another size, or leave data.size, model.img_size and model.patch_size out"
            if cfg.fixed_input_size and config.img_size is None:
                mend = f"leave data.size out, or build the network for that size with model.img_size={side}"
        raise ConfigError(f"{config.name} refuses images of {side} pixels ({error}); {mend}") from None
    return InputSpec(side, tuple(described["mean"]), tuple(described["std"]), described["interpolation"])


def make(config: Any, classes: tuple[str, ...], size: int | None, report: Report) -> Made:
    """The encoder of a timm network (see `models.build`)."""
    cfg = _cfg(config.name)
    if config.head_init == "text":
        raise ConfigError(f"model.head_init=text needs a text tower, and {config.name} has none; use random")
    if config.weights is None:
        return Made(TimmEncoder(_from_hub(config, cfg, report)))
    model = _create(config)
    if config.weights != "random":
        weights.load(model, config.weights, config.name, report, lambda state: _converted(model, state))
    return Made(TimmEncoder(model))


def _from_hub(config: Any, cfg: Any, report: Report) -> nn.Module:
    """The network with its weights by tag, loaded by timm, from a safetensors file alone."""
    if not cfg.hf_hub_id:
        raise SetupError(
            f"timm has no safetensors weights for {config.name} on the hub; give --weights random or --weights FILE.safetensors"
        )
    path = hub.fetch(cfg.hf_hub_id, ("model.safetensors",), config.name)
    try:
        model = _create(config, pretrained=True, pretrained_cfg_overlay={"file": str(path), "custom_load": False})
    except (RuntimeError, KeyError, ValueError) as error:
        raise SetupError(f"the weights {cfg.hf_hub_id} do not fit {config.name} as it is built here: {probe.reason(error)}") from None
    note = f"weights: {cfg.hf_hub_id}, revision {hub.revision(path)}"
    if config.img_size not in (None, cfg.input_size[-1]) or config.patch_size is not None:
        note += ", positions and patches brought to this image and patch size by timm"
    report.notes.append(note)
    return model


def _converted(model: nn.Module, state: weights.State) -> Iterator[weights.State]:
    """A file's tensors as the network's family in timm reads the checkpoints of its authors, and resampled to its sizes."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    prefix = weights.fit(model, state).prefix
    for form in (state, {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}):
        try:
            if convert is not None:
                yield convert(dict(form), model)
        except (KeyError, RuntimeError, AttributeError, ValueError, IndexError, AssertionError):
            continue  # not a form that this family knows; what then fits is judged by names and shapes


def _create(config: Any, **options: Any) -> nn.Module:
    """timm's network without a classifier, random unless the options say otherwise.

    Raises:
        ConfigError: img_size, patch_size or drop_path given to a network that takes none.
    """
    given = {key: value for key, value in built_with(config).items() if value is not None}
    given |= {"drop_path_rate": config.drop_path} if config.drop_path else {}
    try:
        return _timm().create_model(_name(config.name), **{"num_classes": 0, **given, **options})
    except TypeError as error:
        for key in given:
            if f"'{key}'" in str(error):
                hint = "data.size alone sets the side of its images" if key == "img_size" else "leave it out"
                raise ConfigError(f"{config.name} takes no model.{key.removesuffix('_rate')}; {hint}") from None
        raise


def plain(config: Any, classes: int) -> tuple[nn.Module, tuple[str, ...], str | None]:
    """timm's own network of a ModelConfig, random, as `models.plain` wants it.

    Args:
        classes: outputs of its classifier; 0 for a network that answers with pooled features.

    Returns:
        The network, Python that makes it, and the place of its classifier where that is one linear map with a bias.
    """
    model = _create(config, num_classes=classes)
    options = {"num_classes": classes, **{key: value for key, value in built_with(config).items() if value is not None}}
    given = "".join(f", {key}={value}" for key, value in options.items())
    place = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    layer = dict(model.named_modules()).get(place) if isinstance(place, str) else None
    linear = isinstance(layer, nn.Linear) and layer.bias is not None
    return model, ("import timm", "", f'model = timm.create_model("{_name(config.name)}"{given})'), place if linear else None


def built_with(config: Any) -> dict[str, Any]:
    """timm's options that the shape of the network depends on; None where it keeps its own."""
    return {key: getattr(config, key) for key in ("img_size", "patch_size")}


def _cfg(name: str) -> Any:
    """timm's description of the named weights.

    Raises:
        ConfigError: unknown network or tag.
    """
    timm = _timm()
    given = _name(name)
    arch, _, tag = given.partition(".")
    if not timm.is_model(arch):
        raise ConfigError(unknown_network(f"timm:{arch}", [f"timm:{known}" for known in timm.list_models()], "timm.list_models()"))
    try:
        return timm.get_pretrained_cfg(given, allow_unregistered=False)
    except RuntimeError:
        tags = sorted(known.partition(".")[2] for known in timm.list_pretrained(f"{arch}.*"))
        raise ConfigError(unknown("weights", tag, tags, f"timm:{arch}")) from None


def _name(name: str) -> str:
    return name.removeprefix("timm:")


def _timm() -> ModuleType:
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise SetupError("timm:NAME needs timm, which is not installed; run: pip install 'fastssl[vision]'") from error
    return timm
