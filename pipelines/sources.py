"""Names and paths -> Source."""

from __future__ import annotations

from pathlib import Path

from .digits import load_digits
from .errors import ConfigError, unknown
from .folder import load_folder
from .source import Source

NAMES = ("digits",)
_LARGEST = 4096


def load(
    name_or_path: str | Path,
    *,
    size: int | None = None,
    labels: str | Path | None = None,
    test: str | Path | None = None,
    max_bad: float = 0.01,
    workers: int | None = None,
) -> Source:
    """Loads a built-in set by its name, or a folder of images by its path.

    Args:
        name_or_path: "digits", or a folder (one that is called digits is given as ./digits).
        size: side of the square images in pixels; the data's own if None.
        labels: CSV with the columns path,label; images of the folder that it does not name are unlabelled.
        test: the test part of a folder: another folder with a sub-folder a class, or a CSV with the columns path,label.
        max_bad: largest share of images that may be undecodable, in [0, 1].
        workers: decoding threads; the number of cores, at most 8, if None.

    Raises:
        ConfigError: an unknown name, a path that does not exist, a value out of range, or an option that the set does not take.
        DataError: files that cannot be used as given.
        SetupError: a missing package.
    """
    if size is not None and not 1 <= size <= _LARGEST:
        raise ConfigError(f"image size {size} is out of range; give 1 to {_LARGEST} pixels")
    if not 0 <= max_bad <= 1:
        raise ConfigError(f"--max-bad {max_bad} is out of range; give a share between 0 and 1")
    if str(name_or_path) == "digits":
        for flag, value in (("--labels", labels), ("--test", test)):
            if value is not None:
                raise ConfigError(f"digits brings its own labels and test part; {flag} goes with a folder of images")
        return load_digits(size)
    root = Path(name_or_path).expanduser()
    if not root.exists():
        raise ConfigError(f"{unknown('data', str(name_or_path), NAMES)}; and there is no folder of that name")
    if not root.is_dir():
        raise ConfigError(f"{root} is a file; --data takes a folder of images, and --labels a CSV that names them")
    for flag, value in (("--labels", labels), ("--test", test)):
        if value is not None and not Path(value).expanduser().exists():
            raise ConfigError(f"{flag} {value}: no such file")
    if labels is not None and Path(labels).expanduser().is_dir():
        raise ConfigError(f"--labels {labels} is a folder; it takes a CSV with the columns path,label")
    return load_folder(
        root,
        size=size,
        labels=None if labels is None else Path(labels).expanduser(),
        test=None if test is None else Path(test).expanduser(),
        max_bad=max_bad,
        workers=workers,
    )


__all__ = ["NAMES", "Source", "load"]
