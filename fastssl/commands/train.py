"""`fastssl train`: from flags to a run and its final table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..config import SECTIONS, RunConfig, parse_set, read_yaml, resolve
from ..pipelines.errors import CheckpointError, ConfigError

# flag -> dotted key. Everything else is reached by --set.
FLAGS: dict[str, str] = {
    "--model": "model.name",
    "--weights": "model.weights",
    "--tune": "model.tune",
    "--data": "data.name",
    "--labels": "data.labels",
    "--test": "data.test",
    "--holdout": "data.holdout",
    "--labels-per-class": "data.labels_per_class",
    "--label-fraction": "data.label_fraction",
    "--labels-total": "data.labels_total",
    "--sampling": "data.sampling",
    "--split": "data.split",
    "--policy": "data.policy",
    "--max-bad": "data.max_bad",
    "--steps": "train.steps",
    "--batch-size": "train.batch_size",
    "--ratio": "train.ratio",
    "--lr": "train.lr",
    "--amp": "train.amp",
    "--ema": "train.ema",
    "--weak-pass": "train.weak_pass",
    "--step-mode": "train.step_mode",
    "--device": "train.device",
    "--seed": "train.seed",
}
SELECTORS = ("data.labels_per_class", "data.label_fraction", "data.labels_total", "data.split")
UNSET = (None, "none", "null", "")
DEFAULT_METHOD = "finessl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fields = {f"{s}.{name}": f.metadata["help"] for s, kind in SECTIONS.items() for name, f in kind.__dataclass_fields__.items()}
    parser.add_argument("--method", help=f"method by name (fastssl methods lists them); {DEFAULT_METHOD} if left out")
    for flag, key in FLAGS.items():
        parser.add_argument(flag, dest=key, metavar=flag[2:].upper().replace("-", "_"), help=fields[key].replace("%", "%%"))
    parser.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=None, help=fields["train.deterministic"])
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="any other option; may be repeated")
    parser.add_argument("--config", metavar="FILE", help="YAML file with sections method, model, data, train; flags go over it")
    parser.add_argument("--out", metavar="DIR", help="run directory; a new one under runs/ if left out")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that --out names")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run from its newest checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the resolved configuration, train nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="end stdout with one JSON object of the result")


def run(args: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"this version trains in one process, and WORLD_SIZE is {os.environ['WORLD_SIZE']}; start it without torchrun")
    if args.resume:
        trainer = resumed(args)
        if trainer is None:
            return 0
    else:
        config = configure(args)
        from ..engine.assemble import assemble
        from ..engine.directory import check_free, claim

        if args.out and not args.dry_run:
            check_free(Path(args.out), overwrite=args.overwrite)
        parts = assemble(config)
        if args.dry_run:
            return describe(parts, args.json)
        from ..engine.run import Run

        folder = Path(args.out) if args.out else claim(Path("runs"), f"{config.method_name}-{Path(config.data.name).name or 'data'}")
        trainer = Run(parts, folder, overwrite=args.overwrite, quiet=args.quiet)
    from ..engine.report import final_table

    result = trainer.train()
    print(final_table(result, trainer.parts.source.classes))
    print(f"run: {result['run_dir']}")
    if args.json:
        print(json.dumps(result))
    return 0


def configure(args: argparse.Namespace) -> RunConfig:
    """The run's configuration: defaults < preset < file < flags."""
    from .. import methods, presets

    file = read_yaml(args.config) if args.config else {}
    given = flags(args)
    name = given.get("method.name") or file.get("method.name") or DEFAULT_METHOD
    kind = methods.find(str(name))
    chosen = {**file, **given}
    preset = presets.defaults(str(name), model=chosen.get("model.name"), data=chosen.get("data.name"), weights=chosen.get("model.weights"))
    layers = [("preset", preset), (args.config or "file", file), ("the command line", given)]
    if chosen.get("data.labels") not in UNSET:
        layers[0] = ("preset", without_selectors(preset))  # the user's own labels.csv: all of it, unless a number is asked for
    for i, (_, layer) in enumerate(layers):
        # Whoever says how many are labelled says all of it: the ways of choosing of lower layers give way together.
        if any(layer.get(key) not in UNSET for key in SELECTORS):
            layers[:i] = [(place, without_selectors(lower)) for place, lower in layers[:i]]
    config = resolve(str(name), kind.Config, layers)
    # A run must be found again from anywhere, so it keeps whole paths.
    kept = {"name": config.data.name if config.data.name == "digits" else os.path.abspath(config.data.name)}
    kept |= {key: os.path.abspath(value) for key in ("labels", "test", "split") if (value := getattr(config.data, key)) is not None}
    if not os.path.exists(kept["name"]):
        kept.pop("name")  # a name that is no folder is reported as it was given
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **kept))


def without_selectors(layer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in layer.items() if key not in SELECTORS}


def flags(args: argparse.Namespace) -> dict[str, Any]:
    """Dotted keys given on the command line; --set and a flag may not contradict each other."""
    given = {key: getattr(args, key) for key in FLAGS.values() if getattr(args, key) is not None}
    if args.deterministic is not None:
        given["train.deterministic"] = args.deterministic
    if args.method is not None:
        given["method.name"] = args.method
    for key, value in parse_set(args.set).items():
        if key in given and str(given[key]) != value:
            raise ConfigError(f"{key} is given twice: {given[key]} by its flag and {value} by --set; keep one")
        given[key] = value
    return given


def saved_config(folder: Path) -> RunConfig:
    """The configuration that a run directory holds.

    Raises:
        CheckpointError: it holds none.
    """
    from .. import methods

    path = folder / "config.yaml"
    if not path.exists():
        raise CheckpointError(f"{folder} is no run directory: it holds no config.yaml; give the folder that train printed as 'run:'")
    values = read_yaml(str(path))
    name = str(values.get("method.name"))
    return resolve(name, methods.find(name).Config, [(str(path), values)])


def resumed(args: argparse.Namespace) -> Any:
    """The run to go on with, or None where there is nothing left to do."""
    folder = Path(args.resume)
    config = saved_config(folder)
    own = {f"{s}.{k}": v for s, body in config.nested().items() for k, v in body.items()}
    given = flags(args)
    if args.dry_run:
        raise ConfigError("--dry-run checks a run before it begins; --resume goes on with one: leave one of them out")
    if args.out or args.overwrite or args.config:
        raise ConfigError("--resume goes on in its own directory with its own configuration; leave out --out, --overwrite and --config")
    if given.get("method.name", config.method_name) != config.method_name:
        raise CheckpointError(
            f"{folder} holds a run of {config.method_name}, not {given['method.name']}; "
            "leave out --method, or train anew with another --out"
        )
    soft = {"train.stop_at", "train.report_every", "train.eval_every", "train.save_every", "train.keep"}
    changed = resolve(config.method_name, type(config.method), [("config.yaml", own), ("the command line", given)])
    fresh = {f"{s}.{k}": v for s, body in changed.nested().items() for k, v in body.items()}
    hard = [f"{k}: {own[k]} -> {fresh[k]}" for k in own if own[k] != fresh[k] and k not in soft]
    if hard:
        raise ConfigError(f"a resumed run keeps its configuration, and {', '.join(hard)} would change it; train anew with another --out")
    if "train.stop_at" not in given:
        changed = resolve(config.method_name, type(config.method), [("config.yaml", fresh | {"train.stop_at": None})])
    from ..engine import checkpoint
    from ..engine.run import resume

    saved = checkpoint.listed(folder / "checkpoints")
    if saved and int(saved[-1].name[5:]) >= config.train.steps:
        print(f"{folder} is finished ({config.train.steps} steps): nothing to do", file=sys.stderr)
        if args.json:
            records = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            results = [r for r in map(json.loads, records) if r["event"] == "result"]
            print(json.dumps({k: v for k, v in results[-1].items() if k not in ("event", "step")}))
        return None
    return resume(changed, folder, quiet=args.quiet)


def describe(parts: Any, as_json: bool) -> int:
    """--dry-run: the resolved configuration and the counts, on stdout."""
    import yaml

    from ..engine.assemble import trained_parameters

    if as_json:
        counts = {"labelled": len(parts.split.labelled), "unlabelled": len(parts.split.unlabelled), "test": len(parts.split.test)}
        trained = trained_parameters(parts.method)
        print(json.dumps({"config": parts.config.nested(), **counts, "trained_weights": trained, "device": str(parts.device)}))
        return 0
    print(yaml.safe_dump(parts.config.nested(), sort_keys=False), end="")
    split = parts.split
    print(f"# {len(split.labelled)} labelled, {len(split.unlabelled)} unlabelled, {len(split.test)} test images")
    print(f"# {trained_parameters(parts.method):,} trained weights on {parts.device}")
    for note in [*parts.notes, *(f"warning: {text}" for text in parts.warnings)]:
        print(f"# {note}")
    return 0
