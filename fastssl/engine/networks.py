"""The networks of a run: the one of `model.name`, and the further ones that its method asks for."""

from __future__ import annotations

import copy
import dataclasses

from torch import nn

from .. import models
from ..config import ModelConfig, RunConfig
from ..methods.base import Method
from ..models import InputSpec, Network, Report
from ..pipelines.errors import ConfigError
from ..pipelines.text import load_tokenizer

SOFT_ORIGINS = ("default", "preset")  # layers that give way to what data or method ask for; a user's own words do not


def headed(config: RunConfig, kind: type[Method]) -> RunConfig:
    """The configuration with the head that the method wants, unless the user named one."""
    head = kind.head_of(config.method)
    if head is None or config.origins.get("model.head", "default").split()[0] not in SOFT_ORIGINS:
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, head=head))


def others(
    kind: type[Method],
    method: object,
    model: ModelConfig,
    classes: tuple[str, ...],
    *,
    about: InputSpec | None = None,
    size: int | None = None,
    encoder: nn.Module | None = None,
    report: Report | None = None,
) -> dict[str, Network]:
    """Keyword -> network of each further one that a method's configuration asks for, built as `models.build` does.

    Args:
        method: its configuration.
        model: of the run's own network. Heads, tuning and dropout are the same for all; weights that were named are of this one's model
            alone.
        about: what the run's own network wants to see, to which the others must agree; not asked if None.
        size: side of the images in pixels.
        encoder: the user's own module, in place of the named one, not tuned yet. It starts anew at random where all of it trains, and keeps
            its weights elsewhere.

    Raises:
        ConfigError: a network that wants other inputs than the run's own.
    """
    found = {}
    for keyword, name in kind.others(method).items():
        if name in ("", model.name):
            own = copy.deepcopy(encoder)
            found[keyword] = models.build(
                model, classes, size=size, encoder=own if own is None or model.tune != "full" else restarted(own), report=report
            )
            continue
        wanted = dataclasses.replace(model, name=name, weights="random" if model.weights == "random" else None)
        if about is not None:
            try:
                other = models.describe(wanted)
            except ConfigError as error:
                raise ConfigError(f"the {keyword}'s network: {error}") from None
            agree(keyword, name, other, model.name, about, size)
            models.describe(wanted, size)  # which tries the network on that size
        found[keyword] = models.build(wanted, classes, size=size, report=report)
    return found


def named(method: Method) -> dict[str, str]:
    """Name -> model of each further network of a method, averages of theirs among them; "" where it is the run's own."""
    found = dict(method.others(method.config))
    names = {id(module): name for name, module in method.named_children()}
    for one in method.averages():
        average, source = names.get(id(one.average)), names.get(id(one.source))
        if average is not None and source in found:
            found[average] = found[source]
    return found


def agree(keyword: str, name: str, other: InputSpec, own: str, about: InputSpec, size: int | None) -> None:
    """Raises ConfigError where the network `name` cannot read what the run's own one reads."""
    if (other.text is None) != (about.text is None):
        kinds = ("images", "texts") if other.text is None else ("texts", "images")
        raise ConfigError(f"the {keyword} {name} reads {kinds[0]} and {own} reads {kinds[1]}; name two networks of a kind")
    if other.text is not None:
        if load_tokenizer(other.text.tokenizer).fingerprint != load_tokenizer(about.text.tokenizer).fingerprint:
            raise ConfigError(
                f"the {keyword} {name} has another tokenizer than {own}, so their tokens are other words; name two that share it"
            )
        return
    if other.size is not None and size is not None and other.size != size:
        raise ConfigError(
            f"the {keyword} {name} takes images of {other.size} pixels and this run makes them of {size}; --set data.size={other.size}"
        )
    if other.mean is not None and (other.mean, other.std) != (about.mean, about.std):
        raise ConfigError(
            f"the {keyword} {name} wants its images normalised by other constants than {own}; --set model.normalise=data, or name two alike"
        )


def restarted(encoder: nn.Module) -> nn.Module:
    """A user's module with a random start of its own, so far as its layers know how to make one."""
    for layer in encoder.modules():
        again = getattr(layer, "reset_parameters", None)
        if callable(again):
            again()
    return encoder
