"""A method of the user's own, by `--method package.module:Class`. docs/your_method.md shows one whole.

The class is a `Method` with a frozen `Config`, `summary`, `paper`, `views`, and `objective` (or `loss`). Its module is looked for in the
working folder first, then where Python looks. Naming it runs it: a run directory whose config.yaml names one is resumed with
whatever code has that name then. `eval`, `predict` and `export` read the network alone and import no method.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import traceback
import types
import typing
from typing import Any

from ..pipelines.batch import Views
from ..pipelines.errors import ConfigError, unknown
from .base import Method

_VALUES = (bool, int, float, str)


def load(name: str) -> type[Method]:
    """The class that "package.module:Class" names, checked.

    Raises:
        ConfigError: the module or the class is not there, cannot be imported, or is no method that the engine can run.
    """
    place, _, attribute = name.partition(":")
    if not all(word.isidentifier() for word in (*place.split("."), attribute)):
        raise ConfigError(f"--method {name} must be like package.module:Class")
    module = _module(name, place)
    if not hasattr(module, attribute):
        where = f"{place} ({getattr(module, '__file__', None) or 'no file'})"
        known = [key for key, value in vars(module).items() if _is_method(value)]
        raise ConfigError(unknown("method", attribute, known or [key for key in vars(module) if not key.startswith("_")], where))
    kind = getattr(module, attribute)
    if not _is_method(kind):
        got = f"the class {kind.__name__}" if isinstance(kind, type) else type(kind).__name__
        raise ConfigError(f"--method {name} must be a subclass of fastssl.methods.base.Method, got {got}")
    _check(name, kind)
    return kind


def _is_method(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and value is not Method


def _module(name: str, place: str) -> types.ModuleType:
    here = os.getcwd()
    added = not {"", here} & set(sys.path)
    if added:
        sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()  # it may have been written a moment ago
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"--method {name}: no module '{error.name}' in {here} or where Python looks; run where it lies, install it, or put its "
                "folder on PYTHONPATH"
            ) from None
        last = traceback.format_exception_only(error)[-1].strip()
        raise ConfigError(f"--method {name}: {place} cannot be imported: {last}{_line(error)}") from None
    finally:
        if added:
            # Last from now on, for what the method imports later: a file here must not stand in for a package of that name.
            sys.path.remove(here)
            sys.path.append(here)


def _line(error: BaseException) -> str:
    """Where the import broke: " (my_file.py, line 3)"."""
    if isinstance(error, SyntaxError):
        return f" ({os.path.basename(error.filename or '?')}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    own = frames[1:]  # the first is ours
    return f" ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else ""


def _check(name: str, kind: type[Method]) -> None:
    """Raises ConfigError where something is missing that the engine, the command line or `fastssl methods show` asks for."""
    for key in ("summary", "paper"):
        if not isinstance(getattr(kind, key, None), str):
            raise ConfigError(f"{name} has no {key}; give the class one line of text, such as {key} = ...")
    said = kind.views is not Method.views or kind.views_of.__func__ is not Method.views_of.__func__
    if not said or not isinstance(kind.views, Views):
        raise ConfigError(f'{name} has no views; give the class views = Views(labelled=("weak",), unlabelled=("weak", "strong"))')
    if kind.objective is Method.objective and kind.loss is Method.loss:
        raise ConfigError(f"{name} defines neither objective nor loss; write one of them, returning Terms")
    config: Any = getattr(kind, "Config", None)
    if not isinstance(config, type) or not dataclasses.is_dataclass(config) or not config.__dataclass_params__.frozen:
        raise ConfigError(f"{name} needs a class Config inside, with @dataclass(frozen=True) above it")
    try:
        hints = typing.get_type_hints(config)
    except NameError as error:
        raise ConfigError(f"{name}: an option of Config has a type that cannot be read: {error}") from None
    for field in dataclasses.fields(config):
        if field.name == "name":
            raise ConfigError(f"{name}: Config.name cannot be an option, as method.name is the method's own; call it otherwise")
        if "help" not in field.metadata:
            raise ConfigError(f'{name}: Config.{field.name} must be an option: {field.name}: ... = option(default, "what it means")')
        hint = hints[field.name]
        allowed = set(typing.get_args(hint)) - {type(None)} if isinstance(hint, types.UnionType) else {hint}
        if len(allowed) != 1 or not allowed <= set(_VALUES):
            raise ConfigError(f"{name}: Config.{field.name} must be bool, int, float or str, or one of them | None, got {hint}")
