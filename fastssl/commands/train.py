"""`fastssl train`: from flags to a run and its final table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..config import SECTIONS, DataConfig, RunConfig, parse_set, read_yaml, resolve
from ..engine.saved import saved_config
from ..pipelines.errors import CheckpointError, ConfigError
from . import places

# flag -> dotted key. Everything else is reached by --set.
FLAGS: dict[str, str] = {
    "--model": "model.name",
    "--weights": "model.weights",
    "--tune": "model.tune",
    "--data": "data.name",
    "--root": "data.root",
    "--labels": "data.labels",
    "--test": "data.test",
    "--holdout": "data.holdout",
    "--labels-per-class": "data.labels_per_class",
    "--label-fraction": "data.label_fraction",
    "--labels-total": "data.labels_total",
    "--sampling": "data.sampling",
    "--split": "data.split",
    "--foundation-labels": "data.foundation_labels",
    "--extra-unlabelled": "data.extra_unlabelled",
    "--policy": "data.policy",
    "--max-bad": "data.max_bad",
    "--pipeline": "data.pipeline",
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
    named = "method by name (fastssl methods lists them), or your own as package.module:Class"
    parser.add_argument("--method", help=f"{named}; {DEFAULT_METHOD} if left out")
    for flag, key in FLAGS.items():
        parser.add_argument(flag, dest=key, metavar=flag[2:].upper().replace("-", "_"), help=fields[key].replace("%", "%%"))
    parser.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=None, help=fields["train.deterministic"])
    parser.add_argument("--profile", action=argparse.BooleanOptionalAction, default=None, help=fields["train.profile"])
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="any other option; may be repeated")
    parser.add_argument(
        "--preset", metavar="NAME", help="published setting by name (fastssl presets lists them); file and flags go over it"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with sections method, model, data, train; flags go over it")
    parser.add_argument("--out", metavar="DIR", help="run directory; a new one under runs/ if left out")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that --out names")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run from its newest checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration, counts, and an estimate from a few steps")
    places.add_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="end stdout with one JSON object of the result")


def run(args: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"this version trains in one process, and WORLD_SIZE is {os.environ['WORLD_SIZE']}; start it without torchrun")
    places.check(args)
    if args.resume:
        trainer = resumed(args)
        if trainer is None:
            return 0
    else:
        config = configure(args)
        from ..engine.assemble import assemble
        from ..engine.directory import check_free, claim

        if args.dry_run and config.train.profile:
            raise ConfigError("--dry-run writes nothing and --profile writes a profile; leave one of them out")
        if args.out and not args.dry_run:
            check_free(Path(args.out), overwrite=args.overwrite)
        places.fetch(args, config.data)
        parts = assemble(config, quiet=args.quiet)
        if args.dry_run:
            from .dry_run import describe

            return describe(parts, args.json, quiet=args.quiet)
        from ..engine.run import Run

        method = config.method_name.rpartition(":")[2]  # of package.module:Class the class
        folder = Path(args.out) if args.out else claim(Path("runs"), f"{method}-{place_name(config.data.name)}")
        trainer = Run(parts, folder, overwrite=args.overwrite, quiet=args.quiet)
    from ..engine.report import final_table

    result = trainer.train()
    print(final_table(result, trainer.parts.source.classes))
    print(f"run: {result['run_dir']}")
    if args.json:
        print(json.dumps(result))
    return 0


def place_name(data: str) -> str:
    """What a run directory is called after: "photos/" -> "photos", "reviews.csv" -> "reviews"."""
    from ..pipelines.text_table import is_table

    path = Path(data)
    return (path.stem if is_table(path) else path.name) or "data"


def configure(args: argparse.Namespace) -> RunConfig:
    """The run's configuration: defaults (or the named preset) < file < flags."""
    from .. import methods, presets

    file = read_yaml(args.config) if args.config else {}
    given = flags(args)
    preset = presets.find(args.preset) if args.preset else None
    name = str(given.get("method.name") or file.get("method.name") or (preset.method if preset else DEFAULT_METHOD))
    kind = methods.find(name)
    chosen = {**file, **given}
    if preset is not None:
        lowest = (f"preset {preset.name}", presets.layer(preset, name))
    else:
        model, data, weights = (chosen.get(key) for key in ("model.name", "data.name", "model.weights"))
        asked = str(chosen.get("train.steps", ""))
        steps = int(asked) if asked.isdigit() else None  # what is no number is refused below
        lowest = ("preset", presets.defaults(name, model=model, data=data, weights=weights, steps=steps))
    layers = [lowest, (args.config or "file", file), ("the command line", given)]
    if chosen.get("data.labels") not in UNSET:
        layers[0] = (lowest[0], without_selectors(lowest[1]))  # the user's own labels.csv: all of it, unless a number is asked for
    for i, (_, layer) in enumerate(layers):
        # Whoever says how many are labelled says all of it: the ways of choosing of lower layers give way together.
        if any(layer.get(key) not in UNSET for key in SELECTORS):
            layers[:i] = [(place, without_selectors(lower)) for place, lower in layers[:i]]
    config = resolve(name, kind.Config, layers)
    model = config.model
    if model.weights not in (None, "random") and os.path.exists(model.weights):
        model = dataclasses.replace(model, weights=os.path.abspath(model.weights))
    family, _, place = model.name.partition(":")
    if family == "transformers" and os.path.isdir(os.path.expanduser(place)):
        model = dataclasses.replace(model, name=f"transformers:{os.path.abspath(os.path.expanduser(place))}")
    method = config.method
    if getattr(method, "teacher", ""):  # a run directory
        method = dataclasses.replace(method, teacher=os.path.abspath(method.teacher))
    return dataclasses.replace(config, method=method, model=model, data=whole_paths(config.data))


def whole_paths(data: DataConfig) -> DataConfig:
    """A run must be found again from anywhere, so it keeps whole paths; a name that is no folder is left to be reported as it was given."""
    from ..pipelines.set_facts import root_of
    from ..pipelines.sources import NAMES, SETS

    files = ("labels", "test", "split", "foundation_labels", "descriptions", "extra_unlabelled", "noisy_labels")
    kept = {key: os.path.abspath(value) for key in files if (value := getattr(data, key)) is not None}
    if data.name in SETS:
        kept["root"] = str(root_of(data.root))
    elif data.name not in NAMES and os.path.exists(data.name):
        kept["name"] = os.path.abspath(data.name)
    return dataclasses.replace(data, **kept)


def without_selectors(layer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in layer.items() if key not in SELECTORS}


def flags(args: argparse.Namespace) -> dict[str, Any]:
    """Dotted keys given on the command line; --set and a flag may not contradict each other."""
    given = {key: getattr(args, key) for key in FLAGS.values() if getattr(args, key) is not None}
    for name in ("deterministic", "profile"):
        if getattr(args, name) is not None:
            given[f"train.{name}"] = getattr(args, name)
    if args.method is not None:
        given["method.name"] = args.method
    for key, value in parse_set(args.set).items():
        if key in given and str(given[key]) != value:
            raise ConfigError(f"{key} is given twice: {given[key]} by its flag and {value} by --set; keep one")
        given[key] = value
    return given


def refuse_row_judges(config: RunConfig) -> None:
    """Raises ConfigError for a run that judged rows by more than their images: its network alone is not what was judged."""
    from .. import methods

    if ":" not in config.method_name and config.data.foundation_labels and methods.find(config.method_name).judges_rows:
        raise ConfigError(
            f"{config.method_name} judges a sample by its foundation label too, and its network alone knows the sample only; "
            "its accuracy is in the run's metrics.jsonl"
        )


def resumed(args: argparse.Namespace) -> Any:
    """The run to go on with, or None where there is nothing left to do."""
    folder = Path(args.resume)
    config = saved_config(folder, trains=True)
    own = {f"{s}.{k}": v for s, body in config.nested().items() for k, v in body.items()}
    given = flags(args)
    if args.dry_run:
        raise ConfigError("--dry-run checks a run before it begins; --resume goes on with one: leave one of them out")
    if args.out or args.overwrite or args.config or args.preset:
        raise ConfigError(
            "--resume goes on in its own directory with its own configuration; leave out --out, --overwrite, --config and --preset"
        )
    if given.get("method.name", config.method_name) != config.method_name:
        raise CheckpointError(
            f"{folder} holds a run of {config.method_name}, not {given['method.name']}; "
            "leave out --method, or train anew with another --out"
        )
    soft = {
        "data.root",
        "data.workers",
        "train.profile",
        "train.stop_at",
        "train.report_every",
        "train.eval_every",
        "train.save_every",
        "train.keep",
    }
    changed = resolve(config.method_name, type(config.method), [("config.yaml", own), ("the command line", given)])
    fresh = {f"{s}.{k}": v for s, body in changed.nested().items() for k, v in body.items()}
    hard = [f"{k}: {own[k]} -> {fresh[k]}" for k in own if own[k] != fresh[k] and k not in soft]
    if hard:
        raise ConfigError(f"a resumed run keeps its configuration, and {', '.join(hard)} would change it; train anew with another --out")
    # Asked of one stretch of a run, not of the run.
    once = {key: value for key, value in (("train.stop_at", None), ("train.profile", False)) if key not in given}
    changed = resolve(config.method_name, type(config.method), [("config.yaml", fresh | once)])
    changed = dataclasses.replace(changed, data=whole_paths(changed.data))
    places.fetch(args, changed.data)
    from ..engine import checkpoint
    from ..engine.run import resume

    saved = checkpoint.listed(folder / "checkpoints")
    at, told = int(saved[-1].name[5:]) if saved else 0, folder / "STATUS.json"
    status = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    ended = bool(saved) and status.get("state") == "finished" and status.get("step") == at  # a method may end before its steps do
    if at >= config.train.steps or ended:
        print(f"{folder} is finished ({at} steps): nothing to do", file=sys.stderr)
        if args.json:
            records = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            results = [r for r in map(json.loads, records) if r["event"] == "result"]
            print(json.dumps({k: v for k, v in results[-1].items() if k not in ("event", "step")}))
        return None
    return resume(changed, folder, quiet=args.quiet)
