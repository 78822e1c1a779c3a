"""What is known of each published set by name: where it lies, its classes, its constants, whether mirroring keeps its labels.

| name | images | training | test | unlabelled | constants from |
|---|---|---|---|---|---|
| cifar10 | 32 | 50,000 | 10,000 | | FineSSL's and kekmodel's code |
| cifar100 | 32 | 50,000 | 10,000 | | FineSSL's and kekmodel's code |
| svhn | 32 | 73,257 | 26,032 | 531,131 with data.extra | UDA's and FineSSL's code |
| stl10 | 96 | 5,000 | 8,000 | 100,000 | USB's and TorchSSL's code |
| fashion_mnist | 28, grey | 60,000 | 10,000 | | mean and deviation of the training pixels, as widely used |
| food101 | photographs | 75,750 | 25,250 | | ImageNet's, as FineSSL's code |
| flowers102 | photographs | 2,040 (train and valid) | 6,149 | | ImageNet's |
| eurosat | 64 | first 80 % of each class | the rest | | 1/2, as USB's code; the split as well |
| pcam | 96 | 262,144 | 32,768 (valid is not read) | | ImageNet's |

The counts are the published ones; what is read is what the files hold.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

DIGITS = tuple("0123456789")
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
# torchvision has the names of folders, which run words together.
EUROSAT = {
    "AnnualCrop": "annual crop",
    "Forest": "forest",
    "HerbaceousVegetation": "herbaceous vegetation",
    "Highway": "highway",
    "Industrial": "industrial buildings",
    "Pasture": "pasture",
    "PermanentCrop": "permanent crop",
    "Residential": "residential buildings",
    "River": "river",
    "SeaLake": "sea or lake",
}
PCAM = ("healthy lymph node tissue", "lymph node tumor tissue")


@dataclass(frozen=True)
class Facts:
    """A published set.

    Attributes:
        kind: its class in torchvision.datasets.
        place: what must lie in the root, a folder or a file.
        constants: (mean, std) of the three channels, for values in [0, 1].
        flip: whether mirroring left to right keeps the label.
    """

    kind: str
    place: str
    constants: tuple[tuple[float, float, float], tuple[float, float, float]]
    flip: bool = True


SETS: dict[str, Facts] = {
    "cifar10": Facts("CIFAR10", "cifar-10-batches-py", ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))),
    "cifar100": Facts("CIFAR100", "cifar-100-python", ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))),
    # A mirrored digit is another sign: FixMatch's code crops SVHN and never mirrors it.
    "svhn": Facts("SVHN", "train_32x32.mat", ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)), flip=False),
    "stl10": Facts("STL10", "stl10_binary", ((112.4 / 255, 109.1 / 255, 98.6 / 255), (68.4 / 255, 66.6 / 255, 68.5 / 255))),
    "fashion_mnist": Facts("FashionMNIST", "FashionMNIST/raw", ((0.2860,) * 3, (0.3530,) * 3)),
    "food101": Facts("Food101", "food-101", _IMAGENET),
    "flowers102": Facts("Flowers102", "flowers-102", _IMAGENET),
    "eurosat": Facts("EuroSAT", "eurosat", _HALF),
    "pcam": Facts("PCAM", "pcam", _IMAGENET),
}


def readable(name: str) -> str:
    """A class name as a prompt would write it: "aquarium_fish" -> "aquarium fish", "pink-yellow dahlia?" -> "pink-yellow dahlia"."""
    return name.replace("_", " ").rstrip("?")


def default_root() -> Path:
    """Where named sets lie: $FASTSSL_DATA, else fastssl/data in $XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get("FASTSSL_DATA"):
        return Path(os.environ["FASTSSL_DATA"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastssl" / "data"


def root_of(root: str | Path | None) -> Path:
    """The folder that is meant by --root, absolute."""
    return Path(os.path.abspath(Path(root).expanduser() if root else default_root()))
