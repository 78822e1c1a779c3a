"""Configuration: frozen dataclasses whose every field carries a sentence, and the layers that fill them.

A run's configuration has four sections: `method`, `model`, `data`, `train`. Values come from layers, each over the one before:
defaults < preset < file < flags. Keys are dotted (`train.lr`); an unknown one is an error that names the nearest.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from .pipelines.errors import ConfigError, unknown
from .sections import SECTIONS, DataConfig, ModelConfig, TrainConfig, option


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run is made of. `method` is the method's own frozen Config, `method_name` its name."""

    method_name: str
    method: Any
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    origins: dict[str, str] = field(default_factory=dict, compare=False)  # dotted key -> the layer that set it

    def nested(self) -> dict[str, dict[str, Any]]:
        """Plain nested values, `method.name` included: what config.yaml holds and `--config` reads back."""
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}
        return {"method": {"name": self.method_name, **dataclasses.asdict(self.method)}, **sections}


def resolve(method_name: str, method_config: type, layers: list[tuple[str, dict[str, Any]]]) -> RunConfig:
    """Builds a RunConfig from layers of dotted keys, later over earlier.

    Args:
        layers: (place, {"train.lr": 0.1, ...}) pairs; `place` is named in errors ("--set", "run.yaml").

    Raises:
        ConfigError: unknown key, wrong type, or a value outside the field's choices.
    """
    types_by_section = {"method": method_config, **SECTIONS}
    known = {f"{section}.{f.name}": f for section, kind in types_by_section.items() for f in dataclasses.fields(kind)}
    hints = {s: typing.get_type_hints(k) for s, k in types_by_section.items()}
    values: dict[str, dict[str, Any]] = {section: {} for section in types_by_section}
    origins: dict[str, str] = {}
    for place, layer in layers:
        for key, value in layer.items():
            if key == "method.name":
                continue
            if key not in known:
                if key.startswith("method."):
                    options = [k for k in known if k.startswith("method.")]
                    has = ", ".join(sorted(name.removeprefix("method.") for name in options)) or "none"
                    said = unknown("option", key, options, place)
                    raise ConfigError(f"{method_name} has no such option: {said}" + (f" It has {has}" if "did you mean" in said else ""))
                raise ConfigError(unknown("option", key, known, place))
            section, name = key.split(".", 1)
            origins[key] = place
            about = known[key].metadata
            values[section][name] = coerce(value, hints[section][name], key, place, about["choices"])
            check_range(values[section][name], about, key, place)
    built = {section: kind(**values[section]) for section, kind in types_by_section.items()}
    return RunConfig(method_name, built["method"], built["model"], built["data"], built["train"], origins)


def coerce(value: Any, kind: Any, key: str, place: str, choices: tuple[str, ...] = ()) -> Any:
    """Brings a value from a flag or a YAML file to its field's type, or says what was wanted."""
    allowed = [kind]
    if isinstance(kind, types.UnionType):
        allowed = list(typing.get_args(kind))
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null", "")):
            return None
        allowed.remove(type(None))
    target = allowed[0]
    try:
        if target is bool:
            if isinstance(value, str):
                value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[value.lower()]
            result: Any = {True: True, False: False}[value]
        elif target is int:
            result = int(value)
            if isinstance(value, bool) or (isinstance(value, float) and value != result):
                raise ValueError
        elif target is float:
            result = float(value)
        else:
            result = str(value)
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f"{key} in {place} must be {_NAMES[target]}, got '{value}'") from None
    if choices and result not in choices:
        raise ConfigError(unknown(f"value of {key}", str(result), choices, place))
    return result


def check_range(value: Any, about: Any, key: str, place: str) -> None:
    """Raises ConfigError where a number is not finite or outside its option's range."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    least, most, above = about["least"], about["most"], about["above"]
    fits = math.isfinite(value) and (least is None or value >= least) and (most is None or value <= most)
    if fits and (above is None or value > above):
        return
    bounds = [f"at least {least}"] if least is not None else []
    bounds += [f"above {above}"] if above is not None else []
    bounds += [f"at most {most}"] if most is not None else []
    raise ConfigError(f"{key} in {place} must be {' and '.join(bounds) or 'a finite number'}, got {value}")


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def flatten(nested: Any, place: str) -> dict[str, Any]:
    """{"train": {"lr": 1}} -> {"train.lr": 1}, as a YAML file gives it."""
    if not isinstance(nested, dict):
        raise ConfigError(f"{place} must hold sections (method, model, data, train), got {type(nested).__name__}")
    flat: dict[str, Any] = {}
    for section, body in nested.items():
        if not isinstance(body, dict):
            raise ConfigError(f"section '{section}' in {place} must hold options, got '{body}'")
        flat.update({f"{section}.{key}": value for key, value in body.items()})
    return flat


def read_yaml(path: str) -> dict[str, Any]:
    """A configuration file as dotted keys, read by PyYAML's safe loader."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            nested = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    return flatten(nested, path)


def parse_set(items: list[str]) -> dict[str, str]:
    """["train.lr=0.1"] -> {"train.lr": "0.1"}."""
    flat = {}
    for item in items:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or "." not in key:
            raise ConfigError(f"--set takes section.option=value, got '{item}'; for example --set train.lr=0.01")
        if flat.get(key, value) != value:
            raise ConfigError(f"{key} is given twice by --set: {flat[key]} and {value}; keep one")
        flat[key] = value
    return flat


__all__ = [
    "SECTIONS",
    "DataConfig",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "coerce",
    "flatten",
    "option",
    "parse_set",
    "read_yaml",
    "resolve",
]
