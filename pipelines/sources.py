"""Names and paths -> Source or TextSource."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import choice, shards
from . import extra as elsewhere
from .digits import load_digits
from .errors import ConfigError, unknown
from .file_set import Taking
from .folder import load_folder
from .published import load_published
from .resize import check_interpolation
from .set_facts import SETS, root_of
from .source import AnySource, Source
from .text_source import TextSource
from .text_table import SUFFIXES, is_table, load_table

NAMES = ("digits", *SETS)
_LARGEST = 4096


def load(
    name_or_path: str | Path,
    *,
    size: int | None = None,
    labels: str | Path | None = None,
    test: str | Path | None = None,
    max_bad: float = 0.01,
    workers: int | None = None,
    root: str | Path | None = None,
    extra: bool = False,
    extra_unlabelled: str | Path | None = None,
    interpolation: str = "bicubic",
    enlarge: bool = True,
    pipeline: str = "resident",
    room: choice.Room | None = None,
    progress: Callable[[int, int], None] | None = None,
    text_column: str = "text",
    label_column: str = "label",
) -> AnySource:
    """Loads a set by its name; a folder of images (or of tar shards of them) or a table of texts by its path.

    Args:
        name_or_path: one of NAMES, or a folder (one that is called digits is given as ./digits), or a file that ends in .csv, .tsv,
            .parquet or .jsonl (text_table.py), which takes `test`, `extra_unlabelled`, `max_bad` and the columns alone.
        size: side of the square images in pixels; the data's own if None.
        labels: CSV with the columns path,label; images of the folder that it does not name are unlabelled.
        test: the test part of a folder: another folder with a sub-folder a class, or a CSV with the columns path,label; of a table:
            another table.
        max_bad: largest share of images that may be undecodable, in [0, 1].
        workers: decoding threads; the number of cores, at most 8, if None.
        root: the folder that holds published sets; `set_facts.default_root()` if None.
        extra: svhn's extra part too, unlabelled.
        extra_unlabelled: a folder of images, or a CSV of their paths, that become unlabelled rows after the set's own (extra.py);
            beside a table of texts another table.
        interpolation: how images of another size are resized, "bilinear" or "bicubic" (digits: always bicubic).
        enlarge: bring smaller images to `size` too; False leaves sets of equal small squares as they are, for a pipeline that
            enlarges each batch (digits are always enlarged here).
        pipeline: who will serve the set: "resident" decodes a folder into memory, "dali" indexes it and leaves the files where they are,
            "auto" decodes what fits into `room`. Named sets are always resident.
        room: free memory, for "auto"; endless if None.
        progress: called with (files done, files in all) while a folder's files are opened.
        text_column, label_column: what those columns of a table are called.

    Raises:
        ConfigError: an unknown name, a path that does not exist, a value out of range, or an option that the set does not take.
        DataError: files that cannot be used as given.
        SetupError: a missing package, or a published set that is not in root.
    """
    if size is not None and not 1 <= size <= _LARGEST:
        raise ConfigError(f"image size {size} is out of range; give 1 to {_LARGEST} pixels")
    if not 0 <= max_bad <= 1:
        raise ConfigError(f"--max-bad {max_bad} is out of range; give a share between 0 and 1")
    check_interpolation(interpolation)
    name = str(name_or_path)
    if choice.check(pipeline) == "dali" and name in NAMES:
        raise ConfigError(
            f"--pipeline dali reads folders of image files and tar shards; {name} fits into memory, so take --pipeline resident"
        )
    if name in NAMES:
        for flag, value in (("--labels", labels), ("--test", test)):
            if value is not None:
                raise ConfigError(f"{name} brings its own labels and test part; {flag} goes with a folder of images")
    if name not in SETS and root is not None:
        raise ConfigError(f"--root says where {', '.join(SETS)} lie; leave it out for {name}")
    if extra and name != "svhn":
        raise ConfigError(f"data.extra goes with svhn, which alone has such a part; leave it out for {name}")
    if name not in NAMES and is_table(name):
        _check_text(name, size=size, labels=labels, pipeline=pipeline)
        columns = {"text_column": text_column, "label_column": label_column}
        return load_table(name, test=test, extra=extra_unlabelled, max_bad=max_bad, **columns)
    taking = Taking(size, max_bad, workers, interpolation, enlarge, pipeline, room, progress)
    if name in NAMES:
        places = [root_of(root) / SETS[name].place] if name in SETS else []
        more = None if extra_unlabelled is None else elsewhere.listed(extra_unlabelled, places)
        source = (
            load_digits(size)
            if name == "digits"
            else load_published(
                name,
                root=root,
                size=size,
                extra=extra,
                interpolation=interpolation,
                enlarge=enlarge,
                max_bad=max_bad,
                workers=workers,
            )
        )
        source = source if more is None else elsewhere.joined(source, more, taking)
        source.choice = choice.named(len(source), source.images.shape[3])
        return source
    folder = Path(name_or_path).expanduser()
    if not folder.exists():
        raise ConfigError(f"{unknown('data', name, NAMES)}; and there is no folder of that name")
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is a file; --data takes a folder of images (and --labels a CSV that names them), or a table of texts "
            f"({', '.join(SUFFIXES)})"
        )
    for flag, value in (("--labels", labels), ("--test", test)):
        if value is not None and not Path(value).expanduser().exists():
            raise ConfigError(f"{flag} {value}: no such file")
    if labels is not None and Path(labels).expanduser().is_dir():
        raise ConfigError(f"--labels {labels} is a folder; it takes a CSV with the columns path,label")
    files = {"labels": labels, "test": test}
    files = {key: None if value is None else Path(value).expanduser() for key, value in files.items()}
    load_files = shards.load_shards if shards.sharded(folder) else load_folder
    if extra_unlabelled is None:
        return load_files(folder, **files, taking=taking)
    more = elsewhere.listed(extra_unlabelled, [folder, *([files["test"]] if files["test"] is not None else [])])
    return elsewhere.joined(load_files(folder, **files, taking=taking._replace(beside=len(more))), more, taking)


def _check_text(name: str, *, size: int | None, labels: str | Path | None, pipeline: str) -> None:
    """Raises ConfigError for options that a table of texts does not take."""
    if labels is not None:
        raise ConfigError(
            f"{name} holds texts with their labels; leave out --labels, or name another column with --set data.label_column=NAME"
        )
    if pipeline == "dali":
        raise ConfigError(f"--pipeline dali reads image files, and {name} holds texts, which are always resident; leave it out")
    if size is not None:
        raise ConfigError(
            f"a size of {size} pixels is for images, and {name} holds texts; leave data.size out (data.max_length counts tokens)"
        )


def configured(
    data: Any,
    *,
    size: int | None = None,
    interpolation: str | None = None,
    enlarge: bool = True,
    room: choice.Room | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AnySource:
    """Loads what the `data` section of a run's configuration names.

    Args:
        data: a DataConfig. size, interpolation: the network's own, where it has them; the configuration's otherwise. Of texts a
            network's size is nothing, and the configuration's an error.
        enlarge, room, progress: as in `load`.
    """
    size = size or data.size
    size = size if data.resize is None or size is None else max(size, data.resize)
    return load(
        data.name,
        size=data.size if data.name not in NAMES and is_table(data.name) else size,
        labels=data.labels,
        test=data.test,
        max_bad=data.max_bad,
        root=data.root,
        extra=data.extra,
        extra_unlabelled=data.extra_unlabelled,
        interpolation=data.interpolation or interpolation or "bicubic",
        enlarge=enlarge,
        workers=data.workers,
        pipeline=data.pipeline,
        room=room,
        progress=progress,
        text_column=data.text_column,
        label_column=data.label_column,
    )


__all__ = ["NAMES", "SETS", "Source", "TextSource", "configured", "is_table", "load"]
