"""What `fastssl sweep` is asked for: methods, variants, lists of values and seeds -> plans, each one run's flags."""

from __future__ import annotations

import argparse
import functools
import itertools
import re
from dataclasses import dataclass
from typing import Any

from ..config import parse_set, read_yaml
from ..pipelines.errors import ConfigError
from . import train

# These flags take one value, commas and all: paths hold commas.
ONE_VALUE = ("--root", "--labels", "--test", "--data", "--split", "--weights", "--foundation-labels")
PEER = "sklearn:"
# Options that belong to the sweep itself.
OWN = {
    "train.seed": "seeds are given by --seeds",
    "method.name": "methods are given by --method, or by method.name in a --variant",
    "train.stop_at": "a sweep's runs go to their end",
}


@dataclass(frozen=True)
class Plan:
    """One run before it is configured.

    Attributes:
        method: None where --preset or --config names it.
        chosen: dotted key -> value as written, all that the command line says of this run.
        settings: those of `chosen` that vary over the sweep, its variant's left out.
    """

    method: str | None
    variant: str | None
    chosen: dict[str, str]
    settings: tuple[tuple[str, str], ...]
    seed: int

    @property
    def peer(self) -> bool:
        return (self.method or "").startswith(PEER)


def seeds(text: str) -> list[int]:
    """ "0-2,7" -> [0, 1, 2, 7]."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"--seeds takes whole numbers and ranges such as 0-4 or 0,2,5, got '{text}'")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return distinct(found, "--seeds")


def values(text: str, place: str) -> list[str]:
    """ "1,2" -> ["1", "2"]; "[a,b],c" -> ["a,b", "c"]: one pair of brackets around a value holds its commas together."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
        if depth < 0:
            break
    if depth:
        raise ConfigError(f"{place} has brackets that do not match in '{text}'; write a value that holds commas as [a,b]")
    parts = [part.strip() for part in parts]
    if len(parts) > 1 and "" in parts:
        raise ConfigError(f"{place} has an empty value between the commas of '{text}'; write none for no value, or [] for an empty text")
    return distinct([part[1:-1] if part.startswith("[") and part.endswith("]") else part for part in parts], place)


def distinct(found: list, place: str) -> list:
    twice = next((item for item in found if found.count(item) > 1), None)
    if twice is not None:
        raise ConfigError(f"{place} names {twice} twice; keep one")
    return found


def variants(items: list[str]) -> dict[str, dict[str, str]]:
    """["grad-relu: method.name=layermatch method.k=1"] -> {"grad-relu": {...}}."""
    found: dict[str, dict[str, str]] = {}
    for item in items:
        name, colon, rest = (part.strip() for part in item.partition(":"))
        if not colon or not name or "=" in name:
            raise ConfigError(f"--variant takes 'NAME: section.option=value ...', got '{item}'")
        if name in found:
            raise ConfigError(f"--variant names {name} twice; keep one, or rename it")
        settings = parse_set(rest.split())
        for key in settings:
            if key in OWN and key != "method.name":
                raise ConfigError(f"variant {name} sets {key}, and {OWN[key]}; leave it out")
        found[name] = settings
    return found


def axes(args: argparse.Namespace) -> dict[str, list[str]]:
    """Dotted key -> the values that flags and --set give it, in the order of the command's options."""
    found = {}
    for flag, key in train.FLAGS.items():
        given = getattr(args, key, None)
        if given is not None:
            found[key] = [given] if flag in ONE_VALUE else values(given, flag)
    for key, value in parse_set(args.set).items():
        if key in found:
            raise ConfigError(f"{key} is given twice, by its flag and by --set; keep one")
        if key in OWN:
            raise ConfigError(f"--set {key}: {OWN[key]}; leave it out")
        found[key] = values(value, f"--set {key}")
    return found


def plans(args: argparse.Namespace) -> list[Plan]:
    """All runs of the sweep: methods x variants x values x seeds, seeds innermost.

    Raises:
        ConfigError: what does not make a grid.
    """
    given, named, numbers = axes(args), variants(args.variant), seeds(args.seeds)
    methods = distinct([name.strip() for name in args.method.split(",")], "--method") if args.method else []
    bodies = {name: settings for name, settings in named.items() if "method.name" not in settings}
    if not methods and (not named or bodies):
        if not (args.preset or (args.config and "method.name" in read_yaml(args.config))):
            what = f"variant {next(iter(bodies))} names no method" if bodies else "a sweep needs a method"
            raise ConfigError(f"{what}; give --method a,b, or method.name in each --variant")
        methods = [None]
    pairs = [(method, name, settings) for method in methods for name, settings in (bodies or {None: {}}).items()]
    for name, settings in named.items():
        if "method.name" in settings:
            pairs.append((settings["method.name"], name, {k: v for k, v in settings.items() if k != "method.name"}))
    found: dict[tuple, Plan] = {}
    for method, variant, settings in pairs:
        for key in settings:
            if key in given:
                raise ConfigError(f"{key} is given twice, by variant {variant} and by its flag or --set; keep one")
        own = {key: value for key, value in given.items() if not peer_skips(method, key)}
        kept = {key: value for key, value in settings.items() if not peer_skips(method, key)}
        if len(kept) < len(settings) and "method.name" in named[variant]:
            raise ConfigError(f"variant {variant}: {method} takes data.* alone; leave {', '.join(sorted(set(settings) - set(kept)))} out")
        if not kept and peer_skips(method, "") and "method.name" not in named.get(variant, {}):
            variant = None  # the same run for every such variant
        for combined in itertools.product(*own.values()):
            chosen = dict(zip(own, combined, strict=True))
            vary = tuple((key, value) for key, value in chosen.items() if len(own[key]) > 1)
            for seed in numbers:
                plan = Plan(method, variant, chosen | kept, vary, seed)
                found.setdefault((method, variant, vary, seed), plan)
    return list(found.values())


def peer_skips(method: str | None, key: str) -> bool:
    """Whether an option says nothing to a method: scikit-learn's know data alone."""
    return (method or "").startswith(PEER) and not key.startswith("data.")


@functools.cache
def train_alone() -> dict[str, Any]:
    """What train's own parser makes of no flags at all."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return vars(parser.parse_args([]))


def namespace(args: argparse.Namespace, plan: Plan) -> argparse.Namespace:
    """What `fastssl train` would have been given for this run."""
    out = argparse.Namespace(**{**train_alone(), **vars(args)})
    for key in train.FLAGS.values():
        setattr(out, key, None)
    out.method = None if plan.peer else plan.method
    out.set = [f"{key}={value}" for key, value in plan.chosen.items()]
    setattr(out, "train.seed", str(plan.seed))
    return out
