"""`fastssl eval RUN`: the judged network of a run on its own test images or texts, or on others."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import places

if TYPE_CHECKING:
    import torch

    from ..config import RunConfig
    from ..engine.inference import Trained
    from ..engine.sweep import Judgement
    from ..pipelines.source import AnySource, Source

CHUNK = 512  # images held at the network's size at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory that train made")
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="folder with a sub-folder of images a class, a set by name, or for a run on texts a table of them; the run's own test part if "
        "left out",
    )
    parser.add_argument("--labels", metavar="CSV", help="labels.csv (path,label) of --data")
    parser.add_argument("--root", metavar="DIR", help="folder that holds the published sets, where it is not the run's")
    parser.add_argument(
        "--fgsm",
        metavar="EPS",
        help="accuracy also on test images moved by EPS, in pixels of [0, 1] (0.03 is about 8/255), along the sign of the loss's gradient; "
        "of texts the word embeddings move, and EPS is in their own units; several with commas between",
    )
    add_columns(parser)
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def add_columns(parser: argparse.ArgumentParser, labels: bool = True) -> None:
    """--text-column and --label-column, for tables of texts."""
    parser.add_argument("--text-column", metavar="NAME", help="column of a table that holds the texts; as the run's (text) if left out")
    if labels:
        parser.add_argument("--label-column", metavar="NAME", help="column that holds their labels; as the run's (label) if left out")


class Measured(NamedTuple):
    """What the networks of a run, by their names, answer to N rows."""

    logits: dict[str, torch.Tensor]  # [N, C]
    label: torch.Tensor  # [N]
    trained_on: Any  # labels that the run trained on, where the rows are of its own set
    attacked: dict[str, list[torch.Tensor]]  # [N, C] for each size of --fgsm
    unmoved: dict[str, int]  # rows without a gradient


def run(args: argparse.Namespace) -> int:
    from ..engine import robustness
    from ..engine.inference import load_trained
    from ..engine.own_labels import with_own_labels
    from ..engine.sweep import judge
    from ..pipelines.errors import ConfigError
    from .train import refuse_row_judges, saved_config

    places.check(args)
    if args.labels and not args.data:
        raise ConfigError("--labels goes with --data; the run's own test part has its labels")
    folder = Path(args.run)
    config = saved_config(folder)
    refuse_row_judges(with_own_labels(config, folder))
    trained = load_trained(folder, config)
    for text in trained.complaints:
        print(f"warning: {text}", file=sys.stderr)
    reads_text = trained.text is not None
    epsilons = () if args.fgsm is None else robustness.sizes(args.fgsm, of_texts=reads_text)
    found = (texts if reads_text else images)(args, folder, config, trained, epsilons)

    judgement = lambda logits: judge(logits, found.label, len(trained.classes), found.trained_on)  # noqa: E731
    judged = {name: judgement(logits) for name, logits in found.logits.items()}
    counted, which = judged[trained.judge], trained.judge
    result: dict[str, Any] = {"run_dir": str(folder), "step": trained.manifest["step"], "data": args.data or config.data.name}
    result |= {name: dataclasses.asdict(one) for name, one in judged.items()}
    result |= {"accuracy": counted.accuracy, "ece": counted.ece, "rows": counted.rows}
    if epsilons:
        shares = {name: [judgement(logits).accuracy for logits in each] for name, each in found.attacked.items()}
        result["fgsm"] = [
            {"epsilon": size, "accuracy": shares[which][k], "clean_accuracy": counted.accuracy, "unmoved": found.unmoved[which]}
            | {name: each[k] for name, each in shares.items()}
            for k, size in enumerate(epsilons)
        ]
    print(json.dumps(result) if args.json else table(result, judged, counted, trained.classes, trained.samples))
    return 0


def images(args: argparse.Namespace, folder: Path, config: RunConfig, trained: Trained, epsilons: tuple[float, ...]) -> Measured:
    """A run on images, on its own test part or on --data."""
    import torch

    from ..config import DataConfig
    from ..engine import robustness
    from ..engine.assemble import room
    from ..engine.inference import logits_for
    from ..pipelines import sources
    from ..pipelines.errors import ConfigError, DataError
    from ..pipelines.resize import resized
    from .train import whole_paths

    if args.data not in (None, *sources.NAMES) and sources.is_table(args.data):
        raise ConfigError(f"{folder} reads images, and {args.data} is a table of texts; give --data a folder of images")
    if args.text_column or args.label_column:
        raise ConfigError(f"--text-column and --label-column go with a table of texts, and {folder} reads images; leave them out")
    own = config.data
    data = own if args.data is None else DataConfig(name=args.data, labels=args.labels, interpolation=own.interpolation, resize=own.resize)
    if args.root:
        data = dataclasses.replace(data, root=args.root)
    data = whole_paths(data)
    places.fetch(args, data)
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
        piece = resized(source.images[rows[start : start + CHUNK]], trained.size, data.interpolation or "bicubic")
        for name, network in trained.networks.items():
            logits[name].append(logits_for(network, piece, trained, amp))
            if epsilons:
                pixels = torch.from_numpy(piece).float().div(255)
                found, still = robustness.attacked(network, pixels, target[start : start + CHUNK], trained, amp, epsilons)
                for made, one in zip(attacked[name], found, strict=True):
                    made.append(one)
                unmoved[name] += still
    whole = {name: [torch.cat(made) for made in each] for name, each in attacked.items()}
    return Measured({name: torch.cat(made) for name, made in logits.items()}, target, trained_on, whole, unmoved)


def texts(args: argparse.Namespace, folder: Path, config: RunConfig, trained: Trained, epsilons: tuple[float, ...]) -> Measured:
    """A run on texts, on its own test part or on the table --data."""
    import torch

    from ..pipelines import sources
    from ..pipelines.errors import ConfigError, DataError
    from . import eval_texts

    for flag in ("labels", "root", "download"):
        if getattr(args, flag):
            raise ConfigError(f"--{flag} goes with images, and {folder} reads texts; leave it out")
    trained_on = None
    if args.data:
        rows = eval_texts.other_rows(args, config, trained)
    else:
        source = sources.configured(config.data)
        chosen, label, trained_on = own_rows(source, folder, config.data.name, trained)
        rows = eval_texts.Labelled([source.texts[r] for r in chosen], label, source.warnings)
    for text in rows.warnings:
        print(f"warning: {text}", file=sys.stderr)
    if not rows.texts:
        raise DataError("there is no labelled test text; give --data with a table of texts and their labels")
    logits, attacked, unmoved = eval_texts.measured(trained, rows, config.train.amp, epsilons)
    return Measured(logits, torch.tensor(rows.label), trained_on, attacked, unmoved)


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


def own_rows(source: AnySource, folder: Path, data: str, trained: Trained) -> tuple[list[int], list[int], Any]:
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
        back = "folders" if trained.text is None else "labels"
        raise DataError(f"{data} has classes {now} now, and the run was trained on {then}; give it back its {back}")
    rows = list(split.test)
    return rows, [int(source.label[i]) for i in rows], split.label


def table(
    result: dict[str, Any], judged: dict[str, Judgement], counted: Judgement, classes: tuple[str, ...], samples: str = "images"
) -> str:
    """The figures as lines for a reader."""
    percent = lambda share: "-" if share is None else f"{100 * share:.2f} %"  # noqa: E731
    lines = [f"accuracy  {percent(counted.accuracy)} of {counted.rows} {samples} (step {result['step']})"]
    if len(judged) > 1:
        named = {"raw": "raw network", "ema": "averaged network", "together": "all together"}
        lines += [f"  {named.get(name, name)}  {percent(one.accuracy)}" for name, one in judged.items()]
    if counted.thirds:
        lines += [f"balanced accuracy  {percent(counted.balanced_accuracy)}", f"geometric mean  {percent(counted.geometric_mean)}"]
        lines += [f"  {name} labels  {percent(share)}" for name, share in counted.thirds.items()]
    lines.append(f"calibration error (ECE)  {percent(counted.ece)}")
    lines += [f"  {name}  {percent(share)}" for name, share in zip(classes, counted.per_class, strict=True)]
    for one in result.get("fgsm", ()):
        raw = f", raw network {percent(one['raw'])}" if len(judged) > 1 else ""
        still = f"; {one['unmoved']} {samples} have no gradient and did not move" if one["unmoved"] else ""
        beside = f"(clean {percent(one['clean_accuracy'])}{raw})"
        lines.append(f"accuracy under FGSM, epsilon {one['epsilon']:g}  {percent(one['accuracy'])} {beside}{still}")
    return "\n".join(lines)
