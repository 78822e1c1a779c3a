"""Published sets by name, read by torchvision's own classes; the one door to torchvision's data sets.

Nothing is downloaded but by `download`. CIFAR's batches are pickles: torchvision opens them only after the MD5 sums of all of them
equal the published ones, and nothing else here is ever unpickled.

A set is read in parts. Arrays are brought to the wanted size by resize.py, image files by Pillow in threads (images.py).
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import DataError, SetupError
from .set_facts import DIGITS, EUROSAT, PCAM, SETS, STL10, readable, root_of

Rows = Callable[[int, int], np.ndarray]  # (start, stop) -> [n, 3, S, S] uint8


class Part(NamedTuple):
    """Rows of one role, in the set's own order."""

    name: str  # "train", "test", "unlabelled" or "extra"
    label: np.ndarray  # [n] int64, -1 where unknown
    images: Rows | list[Path]
    side: int | None  # of arrays; files have their own

    @property
    def given(self) -> bool:
        """Whether training may be given the labels."""
        return self.name == "train"


class Read(NamedTuple):
    classes: tuple[str, ...]
    parts: list[Part]


def _datasets() -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise SetupError("named sets are read by torchvision, which is not installed; run: pip install 'fastssl[vision]'") from error
    return datasets


def download(name: str, root: str | Path | None = None, *, extra: bool = False) -> None:
    """Fetches a set into root with torchvision, which checks what it fetches; does nothing where the set is there.

    Raises:
        SetupError: no network, a server that refuses, a missing package, a folder that cannot be written.
    """
    place = root_of(root)
    kind = getattr(_datasets(), SETS[name].kind)
    calls: list[dict[str, str]] = [{}]
    if name in ("svhn", "pcam"):  # the others come whole
        calls = [{"split": part} for part in ("train", "test", *["extra"] * extra)]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # results alone go to stdout
            for options in calls:
                kind(place, download=True, **options)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SetupError(f"cannot download {name} into {place}: {error}; fetch it elsewhere and give its folder by --root") from error
    except RuntimeError as error:
        raise SetupError(f"cannot download {name} into {place}: {' '.join(str(error).split())}") from error


def read(name: str, root: str | Path | None = None, *, extra: bool = False) -> Read:
    """The classes and parts of a set that lies in root.

    Args:
        name: one of SETS. extra: SVHN's extra part, as unlabelled rows.

    Raises:
        SetupError: the set is not there, or a package that its format needs is missing.
        DataError: files that are incomplete, or not the published ones.
    """
    facts, place = SETS[name], root_of(root)
    there = place / (facts.place if not extra else "extra_32x32.mat")
    datasets = _datasets()
    if not there.exists():
        raise SetupError(
            f"{name} is not in {place} (looked for {there}); give the folder that holds it by --root, or --download to fetch it there"
        )
    if name == "pcam":
        _need("h5py", name)
    if name in ("svhn", "flowers102"):
        _need("scipy", name)
    if (place / "FashionMNIST" / "processed" / "training.pt").exists() and name == "fashion_mnist":
        # torchvision would read these, of unknown origin, in place of the published files.
        raise DataError(f"{place / 'FashionMNIST' / 'processed'} holds files of an old torchvision; move that folder away")
    try:
        return _READERS[name](getattr(datasets, facts.kind), place, extra)
    except (MemoryError, SetupError, DataError):
        raise
    except Exception as error:  # torchvision's readers raise anything from RuntimeError to KeyError on files that are cut or edited
        why = f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
        if isinstance(error, RuntimeError) and "corrupted" in str(error):
            why = "are incomplete, or not the published ones: their checksums differ"
        raise DataError(f"the files of {name} in {place} {why}; move {there} away and give --download") from error


def _need(package: str, name: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise SetupError(f"{name} is read with {package}, which is not installed; run: pip install {package}")


def _rows(array: np.ndarray) -> Rows:
    """Rows of [n, 3, S, S], or of grey [n, S, S] repeated over three channels."""
    if array.ndim == 3:
        return lambda start, stop: np.repeat(array[start:stop, None], 3, axis=1)
    return lambda start, stop: array[start:stop]


def _array_part(name: str, images: np.ndarray, label: Any) -> Part:
    if len(images) != len(label):
        raise ValueError(f"{len(images)} images and {len(label)} labels in the {name} part")
    return Part(name, np.asarray(label, dtype=np.int64), _rows(images), images.shape[-1])


def _cifar(kind: Any, root: Path, extra: bool) -> Read:
    train, test = kind(root, train=True), kind(root, train=False)
    parts = [_array_part(name, part.data.transpose(0, 3, 1, 2), part.targets) for name, part in (("train", train), ("test", test))]
    return Read(tuple(map(readable, train.classes)), parts)


def _svhn(kind: Any, root: Path, extra: bool) -> Read:
    names = ["train", "test"] + ["extra"] * extra
    sets = [(name, kind(root, split=name)) for name in names]
    return Read(DIGITS, [_array_part(name, part.data, part.labels) for name, part in sets])


def _stl10(kind: Any, root: Path, extra: bool) -> Read:
    names = {"train": "train", "test": "test", "unlabelled": "unlabeled"}
    sets = [(name, kind(root, split=split)) for name, split in names.items()]
    return Read(STL10, [_array_part(name, part.data, part.labels) for name, part in sets])


def _fashion_mnist(kind: Any, root: Path, extra: bool) -> Read:
    sets = [(name, kind(root, train=name == "train")) for name in ("train", "test")]
    return Read(tuple(kind.classes), [_array_part(name, part.data.numpy(), part.targets.numpy()) for name, part in sets])


def _file_part(name: str, files: list[Any], label: list[int]) -> Part:
    return Part(name, np.asarray(label, dtype=np.int64), [Path(file) for file in files], None)


def _food101(kind: Any, root: Path, extra: bool) -> Read:
    sets = [(name, kind(root, split=name)) for name in ("train", "test")]
    classes = tuple(map(readable, sets[0][1].classes))
    return Read(classes, [_file_part(name, part._image_files, part._labels) for name, part in sets])


def _flowers102(kind: Any, root: Path, extra: bool) -> Read:
    sets = {name: kind(root, split=name) for name in ("train", "val", "test")}
    files = {name: part._image_files for name, part in sets.items()}
    label = {name: part._labels for name, part in sets.items()}
    train = _file_part("train", files["train"] + files["val"], label["train"] + label["val"])
    return Read(tuple(map(readable, kind.classes)), [train, _file_part("test", files["test"], label["test"])])


def _eurosat(kind: Any, root: Path, extra: bool) -> Read:
    """torchvision has no split. As in USB's code the first 80 % of each class's files train, the rest test."""
    samples = kind(root)
    parts: dict[str, tuple[list[str], list[int]]] = {"train": ([], []), "test": ([], [])}
    for label in range(len(samples.classes)):
        files = [file for file, c in samples.samples if c == label]
        for i, file in enumerate(files):
            names, labels = parts["train" if i < int(0.8 * len(files)) else "test"]
            names.append(file)
            labels.append(label)
    classes = tuple(EUROSAT.get(name, name) for name in samples.classes)
    return Read(classes, [_file_part(name, *part) for name, part in parts.items()])


def _pcam(kind: Any, root: Path, extra: bool) -> Read:
    return Read(PCAM, [_pcam_part(kind(root, split=name), name) for name in ("train", "test")])


def _pcam_part(part: Any, name: str) -> Part:
    """torchvision opens the file anew for each image; here it is read in slices."""
    files = part._FILES[name]
    images = part.h5py.File(part._base_folder / files["images"][0], "r")["x"]  # [n, 96, 96, 3] uint8
    with part.h5py.File(part._base_folder / files["targets"][0], "r") as targets:
        label = targets["y"][:].reshape(-1)
    if len(images) != len(label):
        raise ValueError(f"{len(images)} images and {len(label)} labels in the {name} part")
    return Part(name, label.astype(np.int64), lambda a, b: images[a:b].transpose(0, 3, 1, 2), images.shape[1])


_READERS: dict[str, Callable[[Any, Path, bool], Read]] = {
    "cifar10": _cifar,
    "cifar100": _cifar,
    "svhn": _svhn,
    "stl10": _stl10,
    "fashion_mnist": _fashion_mnist,
    "food101": _food101,
    "flowers102": _flowers102,
    "eurosat": _eurosat,
    "pcam": _pcam,
}
