"""`fastssl data preview` draws a contact sheet of views; `fastssl data check` opens a whole set and says what it found."""

from __future__ import annotations

import argparse
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipelines.errors import ConfigError, unknown

if TYPE_CHECKING:
    from ..pipelines.source import AnySource, Source  # wakes torch, which `fastssl --help` must not

ACTIONS = ("preview", "check")
_CELL = 72  # pixels that a view takes on the sheet at least
_GAP, _LINE = 4, 14
_STREAM = 0x50524556  # rows and views of previews share no random number with a run's
_ROWS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", help="'preview' draws originals and views, 'check' opens every image or text and counts")
    parser.add_argument("--data", default="digits", help="digits, a published set, a folder of images, or a table of texts (.csv ...)")
    parser.add_argument("--root", help="folder that holds the published sets")
    parser.add_argument("--labels", help="labels.csv with columns path,label")
    parser.add_argument(
        "--test", help="test images: a folder with a sub-folder a class, or a CSV with columns path,label; beside texts a table"
    )
    parser.add_argument(
        "--extra-unlabelled", metavar="PLACE", help="more unlabelled images: a folder, or a CSV with a column path; beside texts a table"
    )
    parser.add_argument("--text-column", help="column of a table that holds the texts; text if left out")
    parser.add_argument("--label-column", help="column of a table that holds their labels; label if left out")
    parser.add_argument("--max-bad", type=float, default=0.01, help="share of undecodable images, or of empty texts, that is an error")
    parser.add_argument("--size", type=int, help="side of the views in pixels; the data's own if left out")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    preview = parser.add_argument_group("preview")
    preview.add_argument("--views", help="views by name, with commas between: plain, weak, strong, simclr, probe; weak,strong if left out")
    preview.add_argument("--policy", help="strong view's policy by name; fixmatch if left out")
    preview.add_argument("--resize", type=int, help="side to which images are brought before views cut --size out of them")
    preview.add_argument("--interpolation", help="how images are resized: bicubic (if left out) or bilinear")
    preview.add_argument("--count", type=int, help=f"images on the sheet, at most {_ROWS}; 8 if left out")
    preview.add_argument("--seed", type=int, help="of the choice of images and of the views; 0 if left out")
    preview.add_argument("--out", metavar="FILE", help="PNG file to write")
    preview.add_argument("--overwrite", action="store_true", help="replace the file that --out names")


def run(args: argparse.Namespace) -> int:
    if args.what not in ACTIONS:
        raise ConfigError(unknown("action of data", args.what, ACTIONS))
    if args.what == "check":
        given = [flag for flag in ("views", "policy", "resize", "interpolation", "count", "seed", "out") if getattr(args, flag) is not None]
        if given or args.overwrite:
            flags = ", ".join(f"--{flag}" for flag in [*given, *["overwrite"] * args.overwrite])
            raise ConfigError(f"data check draws nothing; leave out {flags}")
        source = _loaded(args, args.size)
        report = checked(source)
        print(json.dumps(report) if args.json else "\n".join(lines(report, source.sample, source.samples)))
        return 0
    return preview(args)


def _loaded(args: argparse.Namespace, size: int | None, interpolation: str = "bicubic") -> AnySource:
    from ..pipelines import sources

    text = args.data not in sources.NAMES and sources.is_table(args.data)
    columns = {name: value for name in ("text_column", "label_column") if (value := getattr(args, name)) is not None}
    if columns and not text:
        raise ConfigError(
            f"--{next(iter(columns)).replace('_', '-')} names a column of a table of texts, and {args.data} is none; leave it out"
        )
    # A folder's files stay where they are: a sheet needs a few of them, and a count none.
    pipeline = "resident" if text or args.data in sources.NAMES else "dali"
    return sources.load(
        args.data,
        size=size,
        labels=args.labels,
        test=args.test,
        extra_unlabelled=args.extra_unlabelled,
        max_bad=args.max_bad,
        root=args.root,
        interpolation=interpolation,
        enlarge=False,
        pipeline=pipeline,
        **columns,
    )


def checked(source: AnySource) -> dict[str, Any]:
    """What a set holds, as plain values."""
    known = source.label >= 0
    classes = []
    for number, name in enumerate(source.classes):
        own = source.label == number
        counts = {source.samples: own.sum(), "labelled": (own & source.given & ~source.test).sum(), "test": (own & source.test).sum()}
        classes.append({"name": name, **{key: int(value) for key, value in counts.items()}})
    texts = source.samples == "texts"
    told = _characters(source) if texts else {"pixels": int(source.images.shape[3])}
    return {
        "data": source.name,
        source.samples: len(source),
        **told,
        "unknown": int((~known).sum()) - source.extra,
        "extra": source.extra,
        **({} if texts else {"mirroring_keeps_labels": source.flip}),
        "classes": classes,
        "unusable" if texts else "undecodable": [{source.sample: name, "reason": reason} for name, reason in source.quarantine],
        "warnings": list(source.warnings),
    }


def _characters(source: AnySource) -> dict[str, Any]:
    """Lengths of texts, other wordings of them, and copies: rows that are not the first of their content."""
    import numpy as np

    lengths = np.array([len(text) for text in source.texts])
    marks = dict(zip(("least", "median", "p99", "most"), np.percentile(lengths, (0, 50, 99, 100), method="nearest").tolist(), strict=True))
    train = source.content[~source.test]
    return {
        "characters": {key: int(value) for key, value in marks.items()},
        "wordings": [sum(map(bool, other)) for other in source.augmented],
        "copies": {
            "training": len(train) - len(np.unique(train)),
            "labelled_in_test": int(np.isin(source.content[source.given], source.content[source.test]).sum()),
            "unlabelled_in_test": int(np.isin(source.content[~source.given & ~source.test], source.content[source.test]).sum()),
        },
    }


def lines(report: dict[str, Any], sample: str = "image", samples: str = "images") -> list[str]:
    """The report of `checked` for people."""
    classes = f"in {len(report['classes'])} classes"
    if sample == "text":
        least, median, most, longest = (report["characters"][key] for key in ("least", "median", "p99", "most"))
        lengths = f"{least} to {longest} characters, median {median}, 99 of 100 at most {most}"
        said = [f"{report['data']}: {report['texts']} texts {classes}; {lengths}"]
    else:
        flips = "mirroring keeps labels" if report["mirroring_keeps_labels"] else "mirroring changes labels"
        said = [f"{report['data']}: {report['images']} images of {report['pixels']} pixels {classes}; {flips}"]
    width = max(len(entry["name"]) for entry in report["classes"])
    for entry in report["classes"]:
        counts = f"{entry[samples]} {samples}, {entry['labelled']} with a label for training, {entry['test']} for testing"
        said.append(f"  {entry['name']:<{width}}  {counts}")
    if report["unknown"]:
        said.append(f"  without a known label: {report['unknown']}")
    if report["extra"]:
        said.append(f"  extra, from elsewhere and unlabelled: {report['extra']}")
    said += [f"  text_aug_{number}: {count} other wordings" for number, count in enumerate(report.get("wordings", ()))]
    if any(report.get("copies", {}).values()):
        training, labelled, unlabelled = (report["copies"][key] for key in ("training", "labelled_in_test", "unlabelled_in_test"))
        said.append(f"  copies: {training} within training; of test texts {labelled} labelled and {unlabelled} unlabelled")
    unusable = "cannot be used" if sample == "text" else "cannot be decoded"
    said += [f"{unusable}: {entry[sample]}: {entry['reason']}" for entry in report.get("undecodable", report.get("unusable"))]
    return said + [f"warning: {text}" for text in report["warnings"]]


def preview(args: argparse.Namespace) -> int:
    """Writes the sheet.

    Raises:
        ConfigError: an unknown name, a number out of range, or a file that is there or cannot be written.
    """
    from ..pipelines import sources, views
    from ..pipelines.policies import policy as policy_named

    if args.data not in sources.NAMES and sources.is_table(args.data):
        raise ConfigError(f"data preview draws images, and {args.data} holds texts; fastssl data check counts them")
    names = [name.strip() for name in (args.views or "weak,strong").split(",")]
    for name in names:
        views.recipe(name)
    policy_name = args.policy or "fixmatch"
    policy = policy_named(policy_name)
    count = 8 if args.count is None else args.count
    if not 1 <= count <= _ROWS:
        raise ConfigError(f"--count {count} is out of range; give 1 to {_ROWS} images")
    out = target(args.out, overwrite=args.overwrite)
    interpolation = args.interpolation or "bicubic"
    if args.resize is not None and args.size is None:
        raise ConfigError("--resize goes with --size: views of that size are cut out of the resized image")
    source = _loaded(args, max(args.size, args.resize or 0) if args.size else None, interpolation)
    stored = source.images.shape[3]
    size = args.size or stored
    augmenter = views.Augmenter(policy, (size, size), flip=source.flip, stored=stored, resize=args.resize, interpolation=interpolation)
    rows, images = pictured(source, augmenter, names, min(count, len(source)), args.seed or 0)
    captions = [f"{name} ({policy_name})" if name == "strong" else name for name in ("original", *names)]
    labels = [source.classes[source.label[row]] if source.label[row] >= 0 else "no label" for row in rows]
    out.write_bytes(sheet(images, captions, labels))
    told = {"out": str(out), "images": [source.ids[row] for row in rows], "views": names, "policy": policy_name, "pixels": size}
    print(
        json.dumps(told) if args.json else f"{out}: {len(rows)} images of {source.name} and their views {', '.join(names)}, {size} pixels"
    )
    return 0


def target(name: str | None, *, overwrite: bool) -> Path:
    """The file to write, checked before any image is opened."""
    if name is None:
        raise ConfigError("data preview needs --out FILE.png")
    out = Path(name).expanduser()
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {name}: the sheet is a PNG file; give a name that ends in .png")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {name}: there is no folder {out.parent}")
    if out.is_dir():
        raise ConfigError(f"--out {name} is a folder; give the name of a file in it")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; give another --out, or --overwrite")
    return out


def pictured(source: Source, augmenter: Any, names: list[str], count: int, seed: int) -> tuple[list[int], list[Any]]:
    """(rows of the set, one [count, 3, S, S] uint8 array of the originals and one a view)."""
    import torch

    from ..pipelines import keyed, order

    rows = order.visited(torch.zeros((), dtype=torch.int64), count, len(source), keyed.key(seed, _STREAM))[0].sort().values
    x = torch.from_numpy(source.images[rows.numpy()])
    made = [augmenter.plain(x)]
    for number, name in enumerate(names):
        made.append(augmenter.view(x, keyed.joined(keyed.key(seed, _STREAM, number), rows), name))
    return rows.tolist(), [view.numpy() for view in made]


def sheet(images: list[Any], captions: list[str], labels: list[str]) -> bytes:
    """A PNG of rows of images: images[c][r] is [3, S, S] uint8, in column c of row r."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    wide = lambda texts: math.ceil(max(font.getlength(text) for text in texts))  # noqa: E731
    size = images[0].shape[3]
    scale = max(1, -(-_CELL // size))  # whole pixels: what is seen is what a network gets
    cell = max(size * scale, wide(captions)) + _GAP
    left, top = wide(labels) + 2 * _GAP, _LINE + 2 * _GAP
    page = Image.new("RGB", (left + cell * len(images), top + (size * scale + _GAP) * len(labels)), "white")
    pen = ImageDraw.Draw(page)
    for column, caption in enumerate(captions):
        pen.text((left + column * cell, _GAP), caption, fill="black", font=font)
    for row, label in enumerate(labels):
        y = top + row * (size * scale + _GAP)
        pen.text((_GAP, y + size * scale // 2 - _LINE // 2), label, fill="black", font=font)
        for column, pictures in enumerate(images):
            shown = Image.fromarray(np.ascontiguousarray(pictures[row].transpose(1, 2, 0)))
            page.paste(shown.resize((size * scale,) * 2, Image.Resampling.NEAREST), (left + column * cell, y))
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
