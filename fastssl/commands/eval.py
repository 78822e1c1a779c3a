"""`fastssl eval RUN`: the judged network of a run on its own test images, or on others."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import places

if TYPE_CHECKING:
    from ..engine.inference import Trained
    from ..engine.sweep import Judgement
    from ..pipelines.source import Source

CHUNK = 512  # images held at the network's size at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory that train made")
    parser.add_argument(
        "--data", metavar="DATA", help="folder with a sub-folder of images a class, or a set by name; the run's own test part if left out"
    )
    parser.add_argument("--labels", metavar="CSV", help="labels.csv (path,label) of --data")
    parser.add_argument("--root", metavar="DIR", help="folder that holds the published sets, where it is not the run's")
    parser.add_argument(
        "--fgsm",
        metavar="EPS",
        help="accuracy also on test images moved by EPS, in pixels of [0, 1] (0.03 is about 8/255), along the sign of the loss's gradient; "
        "several with commas between",
    )
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    import torch

    from ..config import DataConfig
    from ..engine import robustness
    from ..engine.assemble import room
    from ..engine.inference import load_trained, logits_for
    from ..engine.sweep import judge
    from ..pipelines import sources
    from ..pipelines.errors import ConfigError, DataError
    from ..pipelines.resize import resized
    from .train import refuse_row_judges, saved_config, whole_paths

    places.check(args)
    if args.labels and not args.data:
        raise ConfigError("--labels goes with --data; the run's own test part has its labels")
    epsilons = () if args.fgsm is None else robustness.sizes(args.fgsm)
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
    rows, label, trained_on = other_rows(source, args.data, trained) if args.data else own_rows(source, folder, data.name, trained)
    if not rows:
        raise DataError("there is no labelled test image; give --data with a folder of test images, a sub-folder a class")

    target, amp = torch.tensor(label), config.train.amp
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in trained.networks}
    attacked: dict[str, list[list[torch.Tensor]]] = {name: [[] for _ in epsilons] for name in trained.networks}
    unmoved = dict.fromkeys(trained.networks, 0)
    for start in range(0, len(rows), CHUNK):
        images = resized(source.images[rows[start : start + CHUNK]], trained.size, data.interpolation or "bicubic")
        for name, network in trained.networks.items():
            logits[name].append(logits_for(network, images, trained, amp))
            if epsilons:
                pixels = torch.from_numpy(images).float().div(255)
                found, still = robustness.attacked(network, pixels, target[start : start + CHUNK], trained, amp, epsilons)
                for pieces, piece in zip(attacked[name], found, strict=True):
                    pieces.append(piece)
                unmoved[name] += still
    judgement = lambda pieces: judge(torch.cat(pieces), target, len(trained.classes), trained_on)  # noqa: E731
    judged = {name: judgement(pieces) for name, pieces in logits.items()}
    counted, which = judged.get("ema", judged["raw"]), "ema" if "ema" in judged else "raw"
    result: dict[str, Any] = {"run_dir": str(folder), "step": trained.manifest["step"], "data": args.data or config.data.name}
    result |= {name: dataclasses.asdict(one) for name, one in judged.items()}
    result |= {"accuracy": counted.accuracy, "ece": counted.ece, "rows": counted.rows}
    if epsilons:
        shares = {name: [judgement(pieces).accuracy for pieces in each] for name, each in attacked.items()}
        result["fgsm"] = [
            {"epsilon": size, "accuracy": shares[which][k], "clean_accuracy": counted.accuracy, "unmoved": unmoved[which]}
            | {name: each[k] for name, each in shares.items()}
            for k, size in enumerate(epsilons)
        ]
    print(json.dumps(result) if args.json else table(result, judged, counted, trained.classes))
    return 0


def other_rows(source: Source, given: str, trained: Trained) -> tuple[list[int], list[int], None]:
    """Rows and labels of --data, a published set's test part alone. Raises DataError for classes that the run never saw."""
    from ..pipelines.errors import DataError

    strange = sorted(set(source.classes) - set(trained.classes))
    if strange:
        known = ", ".join(trained.classes)
        raise DataError(f"{given} has classes that the run never saw: {', '.join(strange[:5])}; the run knows {known}")
    to_run = [trained.classes.index(name) for name in source.classes]
    rows = [i for i, label in enumerate(source.label) if label >= 0 and (source.test[i] or not source.published)]
    return rows, [to_run[source.label[i]] for i in rows], None


def own_rows(source: Source, folder: Path, data: str, trained: Trained) -> tuple[list[int], list[int], Any]:
    """Rows and labels of the run's own test part, and the labels that it trained on.

    Raises:
        CheckpointError: the split is another one now. DataError: the classes are others.
    """
    from ..pipelines import splits
    from ..pipelines.errors import CheckpointError, DataError

    split = splits.load(folder / "split.csv", source)
    if split.hash != trained.manifest["split_hash"]:
        raise CheckpointError(f"{folder / 'split.csv'} is not the split that the run was trained with; bring the old file back")
    if source.classes != trained.classes:
        now, then = ", ".join(source.classes), ", ".join(trained.classes)
        raise DataError(f"{data} has classes {now} now, and the run was trained on {then}; give it back its folders")
    rows = list(split.test)
    return rows, [int(source.label[i]) for i in rows], split.label


def table(result: dict[str, Any], judged: dict[str, Judgement], counted: Judgement, classes: tuple[str, ...]) -> str:
    """The figures as lines for a reader."""
    percent = lambda share: "-" if share is None else f"{100 * share:.2f} %"  # noqa: E731
    lines = [f"accuracy  {percent(counted.accuracy)} of {counted.rows} images (step {result['step']})"]
    if "ema" in judged:
        lines += [f"  raw network  {percent(judged['raw'].accuracy)}", f"  averaged network  {percent(judged['ema'].accuracy)}"]
    if counted.thirds:
        lines += [f"balanced accuracy  {percent(counted.balanced_accuracy)}", f"geometric mean  {percent(counted.geometric_mean)}"]
        lines += [f"  {name} labels  {percent(share)}" for name, share in counted.thirds.items()]
    lines.append(f"calibration error (ECE)  {percent(counted.ece)}")
    lines += [f"  {name}  {percent(share)}" for name, share in zip(classes, counted.per_class, strict=True)]
    for one in result.get("fgsm", ()):
        raw = f", raw network {percent(one['raw'])}" if "ema" in one else ""
        still = f"; {one['unmoved']} images have no gradient and did not move" if one["unmoved"] else ""
        beside = f"(clean {percent(one['clean_accuracy'])}{raw})"
        lines.append(f"accuracy under FGSM, epsilon {one['epsilon']:g}  {percent(one['accuracy'])} {beside}{still}")
    return "\n".join(lines)
