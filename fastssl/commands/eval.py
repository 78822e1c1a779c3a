"""`fastssl eval RUN`: the judged network of a run on its own test images, or on others."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from . import places

CHUNK = 512  # images held at the network's size at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory that train made")
    parser.add_argument(
        "--data", metavar="DATA", help="folder with a sub-folder of images a class, or a set by name; the run's own test part if left out"
    )
    parser.add_argument("--labels", metavar="CSV", help="labels.csv (path,label) of --data")
    parser.add_argument("--root", metavar="DIR", help="folder that holds the published sets, where it is not the run's")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    import sys

    import torch

    from ..config import DataConfig
    from ..engine.assemble import room
    from ..engine.inference import load_trained, logits_for
    from ..engine.sweep import judge
    from ..pipelines import sources, splits
    from ..pipelines.errors import CheckpointError, ConfigError, DataError
    from ..pipelines.resize import resized
    from .train import refuse_row_judges, saved_config, whole_paths

    places.check(args)
    if args.labels and not args.data:
        raise ConfigError("--labels goes with --data; the run's own test part has its labels")
    folder = Path(args.run)
    config = saved_config(folder)
    refuse_row_judges(config)
    own = config.data
    data = own if args.data is None else DataConfig(name=args.data, labels=args.labels, interpolation=own.interpolation, resize=own.resize)
    if args.root:
        data = dataclasses.replace(data, root=args.root)
    data = whole_paths(data)
    places.fetch(args, data)
    trained = load_trained(folder, config)
    for text in trained.complaints:
        print(f"warning: {text}", file=sys.stderr)
    # Small images stay small until their turn comes, as in training.
    source = sources.configured(data, size=trained.size, enlarge=False, room=room(torch.device("cpu")))
    if args.data:
        strange = sorted(set(source.classes) - set(trained.classes))
        if strange:
            known = ", ".join(trained.classes)
            raise DataError(f"{args.data} has classes that the run never saw: {', '.join(strange[:5])}; the run knows {known}")
        to_run = [trained.classes.index(name) for name in source.classes]
        rows = [i for i, label in enumerate(source.label) if label >= 0 and (source.test[i] or not source.published)]
        label, trained_on = [to_run[source.label[i]] for i in rows], None
    else:
        split = splits.load(folder / "split.csv", source)
        if split.hash != trained.manifest["split_hash"]:
            raise CheckpointError(f"{folder / 'split.csv'} is not the split that the run was trained with; bring the old file back")
        if source.classes != trained.classes:
            now, then = ", ".join(source.classes), ", ".join(trained.classes)
            raise DataError(f"{data.name} has classes {now} now, and the run was trained on {then}; give it back its folders")
        rows = list(split.test)
        label, trained_on = [int(source.label[i]) for i in rows], split.label
    if not rows:
        raise DataError("there is no labelled test image; give --data with a folder of test images, a sub-folder a class")

    result: dict[str, object] = {"run_dir": str(folder), "step": trained.manifest["step"], "data": args.data or config.data.name}
    judged = {}
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in trained.networks}
    for start in range(0, len(rows), CHUNK):
        images = resized(source.images[rows[start : start + CHUNK]], trained.size, data.interpolation or "bicubic")
        for name, network in trained.networks.items():
            logits[name].append(logits_for(network, images, trained, config.train.amp))
    for name in trained.networks:
        judged[name] = judge(torch.cat(logits[name]), torch.tensor(label), len(trained.classes), trained_on)
        result[name] = dataclasses.asdict(judged[name])
    counted = judged.get("ema", judged["raw"])
    result |= {"accuracy": counted.accuracy, "ece": counted.ece, "rows": counted.rows}
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"accuracy  {100 * counted.accuracy:.2f} % of {counted.rows} images (step {result['step']})")
    if "ema" in judged:
        print(f"  raw network  {100 * judged['raw'].accuracy:.2f} %\n  averaged network  {100 * judged['ema'].accuracy:.2f} %")
    if thirds := counted.thirds:
        print(f"balanced accuracy  {100 * counted.balanced_accuracy:.2f} %\ngeometric mean  {100 * counted.geometric_mean:.2f} %")
        print("\n".join(f"  {name} labels  {'-' if share is None else f'{100 * share:.2f} %'}" for name, share in thirds.items()))
    print(f"calibration error (ECE)  {100 * counted.ece:.2f} %")
    for name, share in zip(trained.classes, counted.per_class, strict=True):
        print(f"  {name}  {'-' if share is None else f'{100 * share:.2f} %'}")
    return 0
