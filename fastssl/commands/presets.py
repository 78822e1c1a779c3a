"""`fastssl presets` and `fastssl presets show NAME`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..pipelines.errors import ConfigError

SIZES = ("model.img_size", "model.patch_size")  # shown beside a network's name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", help="'show' to see one preset, as YAML that --config takes")
    parser.add_argument("name", nargs="?", help="the preset to show")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(args: argparse.Namespace) -> int:
    from .. import presets

    if args.what is None:
        if args.json:
            print(json.dumps([described(preset) for preset in presets.PRESETS.values()]))
        else:
            print(table(list(presets.PRESETS.values())))
        return 0
    if args.what != "show" or args.name is None:
        raise ConfigError(f"presets takes nothing, or 'show NAME', got '{' '.join(filter(None, (args.what, args.name)))}'")
    preset = presets.find(args.name)
    if args.json:
        print(json.dumps({**described(preset), "notes": list(preset.notes), "values": preset.values()}))
        return 0
    import yaml

    print(f"# {preset.name}: {preset.source}")
    for method, result in results(preset).items():
        print(f"# published accuracy of {method}: {result} %")
    for note in preset.notes:
        print(f"# {note}")
    print(yaml.safe_dump(nested(preset.values()), sort_keys=False), end="")
    return 0


def nested(flat: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"train.lr": 1} -> {"train": {"lr": 1}}."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        section, name = key.split(".", 1)
        sections.setdefault(section, {})[name] = value
    return sections


def results(preset: Any) -> dict[str, Any]:
    """The published results of methods that are built, the preset's own first."""
    from ..methods import METHODS

    others = [name for name in preset.published if name != preset.method and name in METHODS]
    return {name: preset.published[name] for name in (preset.method, *others)}


def labels(values: dict[str, Any]) -> str:
    per_class = values.get("data.labels_per_class")
    return f"{per_class} a class" if per_class is not None else str(values["data.labels_total"])


def described(preset: Any) -> dict[str, Any]:
    values = preset.values()
    return {
        "name": preset.name,
        "method": preset.method,
        "data": values["data.name"],
        "model": values["model.name"],
        "labels": labels(values),
        "published": {name: {"accuracy": r.accuracy, "deviation": r.deviation} for name, r in results(preset).items()},
        "source": preset.source,
    }


def table(shown: list[Any]) -> str:
    """One line a preset: name, method, data, model, labels, the published accuracy of its method in per cent. Then the sources."""
    rows = [("name", "method", "data", "model", "labels", "published accuracy, %")]
    for preset in shown:
        entry = described(preset)
        model = entry["model"] + "".join(f" {key[6:]}={value}" for key, value in preset.values().items() if key in SIZES)
        rows.append((preset.name, preset.method, entry["data"], model, entry["labels"], str(preset.published[preset.method])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    sources = dict.fromkeys((preset.name.split("_")[0], preset.source) for preset in shown)
    return "\n".join([*lines, "", *(f"{stem}_*: {source}" for stem, source in sources)])
