"""`fastssl export RUN --out FILE.safetensors`: a run's network as files that timm, open_clip or plain torch load."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipelines.errors import ConfigError

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..engine.inference import Trained

NETWORKS = ("judged", "raw", "ema", "second")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory that train made")
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        help="file to write, NAME.safetensors; NAME.json beside it says what is in it and how to load it",
    )
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        default="judged",
        help="the averaged network (ema), the other one (raw), or the one that counts: averaged where one is kept (judged); of a run that "
        "is judged by two networks together the first (raw) or the second",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--merged", action="store_true", help="adapters folded into the weights, or an error where they cannot be")
    form.add_argument("--kept", action="store_true", help="adapters as they were trained; fastssl alone builds such a network")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier export")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the lines")


def run(args: argparse.Namespace) -> int:
    from ..models import exported, exported_text

    out = Path(args.out)
    check(out, exported.places(out), overwrite=args.overwrite)
    from .. import __version__
    from ..engine.inference import load_trained
    from ..engine.own_labels import with_own_labels
    from .train import refuse_row_judges, saved_config

    folder = Path(args.run)
    config = saved_config(folder)
    refuse_row_judges(with_own_labels(config, folder))
    trained = load_trained(folder, config)
    for text in trained.complaints:
        print(f"warning: {text}", file=sys.stderr)
    kind = trained.judge if args.network == "judged" else args.network
    if kind == "together":
        raise ConfigError(
            f"{folder} is judged by several networks, whose logits are summed, and a file holds one; export each: --network "
            f"{'ema' if 'ema' in trained.networks else 'raw'}, then --network second"
        )
    if kind not in trained.networks and kind == "second":
        raise ConfigError(f"{folder} has no second network that it is judged by; leave --network out")
    if kind not in trained.networks:
        raise ConfigError(f"{folder} keeps no averaged network; take --network raw, or train with --ema")
    model = dataclasses.replace(config.model, name=trained.models[kind])
    merged = True if args.merged else False if args.kept else None
    if trained.text is None:
        packed = exported.pack(trained.networks[kind], model, trained.size, out, merged=merged)
    else:
        packed = exported_text.pack(trained.networks[kind], model, trained.text, trained.longest, out, merged=merged)
    if packed.note:
        print(f"note: {packed.note}", file=sys.stderr)
    about = {
        "schema": exported.SCHEMA,
        "layout": packed.about["layout"],
        "files": [path.name for path in packed.files],
        "name": model.name,
        "classes": list(trained.classes),
        "input": read_by(trained, config),
        **packed.about,
        "network": kind,
        "method": config.method_name,
        "step": trained.manifest["step"],
        "amp": config.train.amp,
        # Where the weights began is told without the places of one machine.
        "model": dataclasses.asdict(model) | {"weights": model.weights and Path(model.weights).name},
        "made_by": f"fastssl {__version__}: {command(args)}",
    }
    _, head, description = exported.places(out)
    exported.write(packed, description, about)
    if head not in packed.files:
        head.unlink(missing_ok=True)  # an earlier export's, which --overwrite gave up
    if args.json:
        print(json.dumps({**about, "out": str(out), "description": str(description)}))
        return 0
    print("\n".join(lines(about, packed.files, description)))
    return 0


def read_by(trained: Trained, config: RunConfig) -> dict[str, Any]:
    """What the network reads."""
    if trained.text is not None:
        how = "token ids of the tokenizer, special ones included, cut at `tokens`; -1 beyond a text's end where fastssl reads them"
        return {"size": None, "tokens": trained.longest, "tokenizer": trained.text.tokenizer, "how": how}
    return {
        "size": trained.size,
        "mean": list(trained.mean),
        "std": list(trained.std),
        "interpolation": config.data.interpolation or "bicubic",
        "how": "RGB, the centre square, resized to size, scaled to [0, 1], then (x - mean) / std",
    }


def check(out: Path, places: tuple[Path, ...], *, overwrite: bool) -> None:
    """Refuses a place that does not fit or is taken, before anything is read."""
    if out.suffix != ".safetensors" or out.stem.endswith(".head"):
        raise ConfigError(f"--out takes a name like net.safetensors, got {out}")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; make it, or give another --out")
    for path in places:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; give another --out")
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists; give another --out, or --overwrite")


def command(args: argparse.Namespace) -> str:
    """The command line that made the files."""
    words = ["fastssl", "export", args.run, "--out", args.out]
    words += ["--network", args.network] if args.network != "judged" else []
    words += [f"--{name}" for name in ("merged", "kept", "overwrite") if getattr(args, name)]
    return shlex.join(words)


def lines(about: dict[str, Any], files: dict[Path, Any], description: Path) -> list[str]:
    """What was written, in words."""
    network, *head = files
    samples = "texts" if "tokens" in about["input"] else "images"
    inside = (
        "classifier included" if not head and about["layout"] == "timm" else "the encoder alone" if head else "adapters and head included"
    )
    said = [f"{network}: {about['name']} at step {about['step']} ({about['network']}), as {about['layout']} names its weights, {inside}"]
    if head:
        why = "it is no linear layer" if about["head"] != "linear" else "the network has no place for it"
        said.append(f"{head[0]}: the {about['head']} head, apart, because {why}")
    said.append(f"{description}: classes, input, and the Python that loads it")
    if "largest_difference" in about:
        said.append(
            f"loaded strictly, and tried on two random {samples}: logits differ by {about['largest_difference']:.1e} of the largest"
        )
    return said
