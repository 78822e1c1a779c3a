"""Tiny published sets in torchvision's own formats on disk, so that the real torchvision classes read them.

Where torchvision knows checksums, those of the files made here take their place for the length of a test.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


class Truth(NamedTuple):
    """What was written: [n, 3, S, S] uint8 and [n] int64 of each part."""

    images: dict[str, np.ndarray]
    label: dict[str, np.ndarray]


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def pictures(count: int, side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def jpeg(path: Path, image: np.ndarray) -> np.ndarray:
    """Writes [3, H, W] and returns it as it is read back."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "JPEG", quality=90)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return np.asarray(Image.open(io.BytesIO(buffer.getvalue()))).transpose(2, 0, 1)


def cifar10(root: Path, patch: Any, *, per_class: int = 6, test: int = 20) -> Truth:
    return _cifar("CIFAR10", root, patch, "labels", [f"kind_{c}" for c in range(10)], per_class, test)


def cifar100(root: Path, patch: Any, *, per_class: int = 2, test: int = 100) -> Truth:
    return _cifar("CIFAR100", root, patch, "fine_labels", [f"kind_{c:02d}" for c in range(100)], per_class, test)


def _cifar(kind: str, root: Path, patch: Any, key: str, classes: list[str], per_class: int, test: int) -> Truth:
    from torchvision import datasets

    known = getattr(datasets, kind)
    folder = root / known.base_folder
    folder.mkdir(parents=True)
    count = {"train": per_class * len(classes), "test": test}
    images = {part: pictures(n, 32, seed) for seed, (part, n) in enumerate(count.items())}
    label = {part: np.arange(n) * 7 % len(classes) for part, n in count.items()}
    sums = {}
    for part, listed in (("train", known.train_list), ("test", known.test_list)):
        blocks = zip(np.array_split(images[part], len(listed)), np.array_split(label[part], len(listed)), strict=True)
        for (name, _), (data, rows) in zip(listed, blocks, strict=True):
            (folder / name).write_bytes(pickle.dumps({"data": data.reshape(len(data), -1), key: rows.tolist()}))
        sums[part] = [[name, md5(folder / name)] for name, _ in listed]
    meta = folder / known.meta["filename"]
    meta.write_bytes(pickle.dumps({known.meta["key"]: classes}))
    patch.setattr(known, "train_list", sums["train"])
    patch.setattr(known, "test_list", sums["test"])
    patch.setattr(known, "meta", {**known.meta, "md5": md5(meta)})
    return Truth(images, label)


def svhn(root: Path, patch: Any) -> Truth:
    from scipy.io import savemat
    from torchvision import datasets

    root.mkdir(parents=True, exist_ok=True)
    count = {"train": 40, "test": 10, "extra": 15}
    images = {part: pictures(n, 32, seed) for seed, (part, n) in enumerate(count.items())}
    label = {part: np.arange(n) % 10 for part, n in count.items()}
    listed = {}
    for part, (url, name, _) in datasets.SVHN.split_list.items():
        written = np.where(label[part] == 0, 10, label[part]).astype(np.uint8)[:, None]  # the files write 0 as 10
        savemat(root / name, {"X": images[part].transpose(2, 3, 1, 0), "y": written})
        listed[part] = [url, name, md5(root / name)]
    patch.setattr(datasets.SVHN, "split_list", listed)
    return Truth(images, label)


def stl10(root: Path, patch: Any) -> Truth:
    from torchvision import datasets

    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    count = {"train": 20, "test": 10, "unlabelled": 15}
    images = {part: pictures(n, 96, seed) for seed, (part, n) in enumerate(count.items())}
    label = {part: np.arange(n) % 10 for part, n in count.items()}
    label["unlabelled"][:] = -1
    for part, stem in (("train", "train"), ("test", "test"), ("unlabelled", "unlabeled")):
        (folder / f"{stem}_X.bin").write_bytes(images[part].transpose(0, 1, 3, 2).tobytes())  # columns first on disk
        if part != "unlabelled":
            (folder / f"{stem}_y.bin").write_bytes((label[part] + 1).astype(np.uint8).tobytes())
    for name in ("train_list", "test_list"):
        patch.setattr(datasets.STL10, name, [[file, md5(folder / file)] for file, _ in getattr(datasets.STL10, name)])
    return Truth(images, label)


def fashion_mnist(root: Path, patch: Any) -> Truth:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    count = {"train": 30, "test": 10}
    images, label = {}, {}
    for seed, (part, n) in enumerate(count.items()):
        grey, stem = pictures(n, 28, seed)[:, 0], "train" if part == "train" else "t10k"
        label[part] = np.arange(n) % 10
        images[part] = np.repeat(grey[:, None], 3, axis=1)
        head = b"\x00\x00\x08\x03" + b"".join(int(v).to_bytes(4, "big") for v in grey.shape)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + grey.tobytes())
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(
            b"\x00\x00\x08\x01" + n.to_bytes(4, "big") + label[part].astype(np.uint8).tobytes()
        )
    return Truth(images, label)


def food101(root: Path, patch: Any, *, side: int = 24) -> Truth:
    """Three classes; the lists name files in an order that is not the disk's."""
    folder, classes = root / "food-101", ("apple_pie", "ice_cream", "pad_thai")
    images, label = {}, {}
    for seed, part in enumerate(("train", "test")):
        listed = {name: [f"{name}/{1000 * seed + 9 - i}" for i in range(4)] for name in classes}
        shown = pictures(12, side, seed)
        images[part] = np.stack(
            [
                jpeg(folder / "images" / f"{file}.jpg", image)
                for image, file in zip(shown, [f for files in listed.values() for f in files], strict=True)
            ]
        )
        label[part] = np.repeat(np.arange(3), 4)
        (folder / "meta").mkdir(exist_ok=True)
        (folder / "meta" / f"{part}.json").write_text(json.dumps(listed))
    return Truth(images, label)


def flowers102(root: Path, patch: Any) -> Truth:
    from scipy.io import savemat
    from torchvision import datasets

    folder = root / "flowers-102"
    shown = pictures(12, 20, 0)
    read = np.stack([jpeg(folder / "jpg" / f"image_{i + 1:05d}.jpg", image) for i, image in enumerate(shown)])
    label = np.arange(12) * 9 % 102
    savemat(folder / "imagelabels.mat", {"labels": label[None] + 1})
    order = {"trnid": [3, 1, 2], "valid": [5, 4], "tstid": [6, 7, 8, 9, 10, 11, 12]}
    savemat(folder / "setid.mat", {name: np.array(ids)[None] for name, ids in order.items()})
    listed = {**datasets.Flowers102._file_dict}
    for part in ("label", "setid"):
        listed[part] = (listed[part][0], md5(folder / listed[part][0]))
    patch.setattr(datasets.Flowers102, "_file_dict", listed)
    rows = {"train": np.array([3, 1, 2, 5, 4]) - 1, "test": np.arange(5, 12)}
    return Truth({part: read[at] for part, at in rows.items()}, {part: label[at] for part, at in rows.items()})


def eurosat(root: Path, patch: Any) -> Truth:
    """Ten classes of ten files: the first eight train."""
    from fastssl.pipelines.set_facts import EUROSAT

    shown = pictures(100, 64, 0)
    files = [root / "eurosat" / "2750" / name / f"{name}_{i}.jpg" for name in EUROSAT for i in range(10)]
    read = np.stack([jpeg(file, image) for file, image in zip(files, shown, strict=True)])
    last = np.arange(100) % 10 >= 8
    return Truth({"train": read[~last], "test": read[last]}, {"train": np.arange(100)[~last] // 10, "test": np.arange(100)[last] // 10})


def pcam(root: Path, patch: Any) -> Truth:
    import h5py
    from torchvision import datasets

    folder = root / "pcam"
    folder.mkdir(parents=True)
    images = {part: pictures(n, 96, seed) for seed, (part, n) in enumerate({"train": 12, "test": 6}.items())}
    label = {part: np.arange(len(shown)) % 2 for part, shown in images.items()}
    for part, shown in images.items():
        names = datasets.PCAM._FILES[part]
        with h5py.File(folder / names["images"][0], "w") as file:
            file["x"] = shown.transpose(0, 2, 3, 1)
        with h5py.File(folder / names["targets"][0], "w") as file:
            file["y"] = label[part].astype(np.uint8).reshape(-1, 1, 1, 1)
    return Truth(images, label)
