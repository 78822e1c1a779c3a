"""`fastssl eval RUN`: the judged network of a run on its own test images, or on others."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory that train made")
    parser.add_argument("--data", metavar="DIR", help="folder with a sub-folder of images a class; the run's own test part if left out")
    parser.add_argument("--labels", metavar="CSV", help="labels.csv (path,label) of --data")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    import sys

    from ..engine.inference import load_trained, logits_for
    from ..engine.sweep import judge
    from ..pipelines import sources, splits
    from ..pipelines.errors import CheckpointError, ConfigError, DataError
    from .train import saved_config

    if args.labels and not args.data:
        raise ConfigError("--labels goes with --data; the run's own test part has its labels")
    folder = Path(args.run)
    config = saved_config(folder)
    trained = load_trained(folder, config)
    for text in trained.complaints:
        print(f"warning: {text}", file=sys.stderr)
    if args.data:
        source = sources.load(args.data, size=trained.size, labels=args.labels)
        strange = sorted(set(source.classes) - set(trained.classes))
        if strange:
            known = ", ".join(trained.classes)
            raise DataError(f"{args.data} has classes that the run never saw: {', '.join(strange[:5])}; the run knows {known}")
        to_run = [trained.classes.index(name) for name in source.classes]
        rows = [i for i, label in enumerate(source.label) if label >= 0]
        label = [to_run[source.label[i]] for i in rows]
    else:
        data = config.data
        source = sources.load(data.name, size=trained.size, labels=data.labels, test=data.test, max_bad=data.max_bad)
        split = splits.load(folder / "split.csv", source)
        if split.hash != trained.manifest["split_hash"]:
            raise CheckpointError(f"{folder / 'split.csv'} is not the split that the run was trained with; bring the old file back")
        if source.classes != trained.classes:
            now, then = ", ".join(source.classes), ", ".join(trained.classes)
            raise DataError(f"{data.name} has classes {now} now, and the run was trained on {then}; give it back its folders")
        rows = list(split.test)
        label = [int(source.label[i]) for i in rows]
    if not rows:
        raise DataError("there is no labelled test image; give --data with a folder of test images, a sub-folder a class")
    import torch

    result: dict[str, object] = {"run_dir": str(folder), "step": trained.manifest["step"], "data": args.data or config.data.name}
    judged = {}
    for name, network in trained.networks.items():
        logits = logits_for(network, source.images[rows], trained, config.train.amp)
        judged[name] = judge(logits, torch.tensor(label), len(trained.classes))
        result[name] = dataclasses.asdict(judged[name])
    counted = judged.get("ema", judged["raw"])
    result |= {"accuracy": counted.accuracy, "ece": counted.ece, "rows": counted.rows}
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"accuracy  {100 * counted.accuracy:.2f} % of {counted.rows} images (step {result['step']})")
    if "ema" in judged:
        print(f"  raw network  {100 * judged['raw'].accuracy:.2f} %\n  averaged network  {100 * judged['ema'].accuracy:.2f} %")
    print(f"calibration error (ECE)  {100 * counted.ece:.2f} %")
    for name, share in zip(trained.classes, counted.per_class, strict=True):
        print(f"  {name}  {'-' if share is None else f'{100 * share:.2f} %'}")
    return 0
