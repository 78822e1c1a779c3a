"""Image files -> uint8 arrays, by Pillow in threads; the one door to Pillow.

One defined outcome for every kind of file:

| file | outcome |
|---|---|
| EXIF orientation | applied |
| grey, palette, 1 bit, CMYK, YCbCr | converted to RGB |
| 16 bits a channel | the high 8 bits (grey: v / 257, rounded) |
| 32 bits a channel (integer or float) | quarantined: its range is not defined |
| alpha, or a transparent palette colour | laid on white |
| animated | the first frame |
| not square | the largest centred square |
| another size | Pillow's bicubic, or bilinear where asked for, with antialiasing |
| another format than FORMATS, whatever its suffix says | quarantined |
| over MAX_PIXELS, empty, truncated, broken | quarantined |
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ResourceError, SetupError
from .resize import check_interpolation

# Formats are a fixed list because every further decoder is a further way in for a hostile file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
MAX_PIXELS = 89_000_000
LARGEST_NATIVE = 224  # pixels; photographs are not kept larger than this unless a size is asked for
_SIZED = 2000  # files whose headers are read to find the usual size
_BLOCK = 64  # files a task: a future for each of a million files would cost more than the files


class BadImage(Exception):
    """One file that has no usable image; the message is the reason."""


def _pillow() -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise SetupError("reading image files needs Pillow, which is not installed; run: pip install pillow") from error
    return Image, ImageOps


def _open(data: bytes) -> Any:
    image_module, _ = _pillow()
    if not data:
        raise BadImage("empty file")
    try:
        image = image_module.open(io.BytesIO(data), formats=FORMATS)
    except image_module.UnidentifiedImageError:
        raise BadImage(f"not an image in one of the formats {', '.join(FORMATS)}") from None
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width} x {image.height} pixels, over the limit of {MAX_PIXELS:,}")
    return image


def _rgb(image: Any) -> Any:
    image_module, _ = _pillow()
    if image.mode.startswith("I;16"):
        return image_module.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BadImage("32 bits a channel, whose range is not defined; save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = image_module.new("RGBA", image.size, (255, 255, 255, 255))
        return image_module.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _upright(data: bytes) -> tuple[Any, bool]:
    """(the whole image in RGB, turned as its EXIF says; whether it is `plain`)."""
    _, ops = _pillow()
    try:
        image = _open(data)
        plain = _plain(image)
        image.load()
        return _rgb(ops.exif_transpose(image)), plain
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise anything from OSError to struct.error on a broken file
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error


def _plain(image: Any) -> bool:
    """Whether every sound decoder reads the same RGB out of an opened, not yet loaded file: grey or colour JPEG and PNG of 8 bits."""
    if image.mode not in ("RGB", "L") or image.has_transparency_data or getattr(image, "n_frames", 1) > 1:
        return False
    if image.format == "PNG":
        return image.tile[0][3] == image.mode  # "RGB;16B" is 16 bits that Pillow calls RGB
    # Without Adobe's mark three components are YCbCr to everybody.
    return image.format == "JPEG" and image.info.get("adobe_transform", 1) == 1


def examined(data: bytes) -> bool:
    """Decodes a file to see that it can be; whether it is plain, so that another decoder than Pillow may read it.

    Raises:
        BadImage: no usable image; the message says why.
    """
    return _upright(data)[1]


def fingerprint(data: bytes) -> int:
    """64-bit hash of a file's bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def decode(data: bytes, size: int, interpolation: str = "bicubic") -> np.ndarray:
    """File bytes -> [3, size, size] uint8. `interpolation` is "bilinear" or "bicubic".

    Raises:
        BadImage: no usable image; the message says why.
    """
    image, _ = _upright(data)
    side = min(image.size)
    if image.size != (size, size):
        # Cutting the square out first gives the pixels of "shorter side, then centre crop" without ever holding a long strip.
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), _pillow()[0].Resampling[interpolation.upper()], box=box)
    return np.asarray(image).transpose(2, 0, 1)


def read_file(path: str | Path) -> bytes:
    """The bytes of a file. Raises BadImage with the system's reason."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from error


def native_size(files: Sequence[Any]) -> int:
    """The side at which a folder is kept when none is asked for.

    The shorter side of the most common image size among the first 2,000 files that have one (the larger size where two are equally
    common), at most 224 pixels: so a set of 32x32 images stays as it is, and photographs become 224x224.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    image_module, _ = _pillow()
    for file in files[:_SIZED]:
        try:
            with image_module.open(file, formats=FORMATS) as image:
                sizes[image.size] += 1
        except Exception:  # noqa: S112  broken files are reported when they are decoded
            continue
    if not sizes:
        return LARGEST_NATIVE
    return min(LARGEST_NATIVE, min(max(sizes, key=lambda wh: (sizes[wh], wh))))


def common_side(files: Sequence[Any], workers: int | None = None) -> int | None:
    """The side in pixels that all files share, where each is a square of it; None otherwise. Files that cannot be read have no say."""
    image_module, _ = _pillow()
    found: set[tuple[int, int]] = set()

    def sizes(start: int) -> None:
        for file in files[start : start + _BLOCK]:
            if len(found) > 1:  # already told: a million photographs are not opened for it
                return
            try:
                with image_module.open(file, formats=FORMATS) as image:
                    found.add(image.size)
            except Exception:  # noqa: S112  broken files are reported when they are decoded
                continue

    with warnings.catch_warnings(), ThreadPoolExecutor(threads(workers)) as pool:
        warnings.simplefilter("ignore")
        for _ in pool.map(sizes, range(0, len(files), _BLOCK)):
            pass
    ((width, height),) = found if len(found) == 1 else ((0, 1),)
    return width if width == height else None


def kept_side(files: Sequence[Any], size: int | None, enlarge: bool, workers: int | None = None) -> int:
    """The side in pixels at which files are held in memory.

    Args:
        files: paths or open binary files; a slice of them is a list.
        size: what is asked for; `native_size` if None.
        enlarge: bring smaller images to `size` too. False holds a set of equal squares smaller than that as it is, for a pipeline
            that enlarges each batch; anything else is brought to `size` at once, as resizing twice would change pixels.
    """
    if size is None:
        return native_size(files)
    common = None if enlarge else common_side(files, workers)
    return size if common is None else min(common, size)


def threads(workers: int | None) -> int:
    """How many threads decode: as asked for, else the number of cores, at most 8."""
    return workers or min(8, os.cpu_count() or 1)


def room_for(count: int, size: int) -> np.ndarray:
    """[count, 3, size, size] uint8 zeros. Raises ResourceError where they do not fit into memory."""
    shape = (count, 3, size, size)
    try:
        return np.zeros(shape, np.uint8)
    except MemoryError as error:
        need = np.prod(shape, dtype=np.float64) / 1e9
        raise ResourceError(f"{count} images of {size} pixels need {need:.1f} GB of memory; ask for a smaller size") from error


def decode_files(
    paths: Sequence[Path], size: int, workers: int | None = None, interpolation: str = "bicubic"
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Decodes N files in threads: `decode_each` of their bytes."""
    return decode_each(lambda i: read_file(paths[i]), len(paths), size, workers, interpolation)


def decode_each(
    read: Callable[[int], bytes],
    count: int,
    size: int,
    workers: int | None = None,
    interpolation: str = "bicubic",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Decodes N files in threads.

    Args:
        read: position -> bytes; may raise BadImage.
        count: N.
        size: side of the decoded squares in pixels.
        workers: threads; the number of cores, at most 8, if None.
        interpolation: how images of another size are resized, "bilinear" or "bicubic".
        progress: called with (files done, N).

    Returns:
        ([N, 3, size, size] uint8, [N] uint64 hash of each file's bytes, {position: reason} of the bad ones, whose rows are zero).

    Raises:
        ResourceError: the decoded images do not fit into memory.
        SetupError: Pillow is missing.
    """
    _pillow()
    check_interpolation(interpolation)
    images = room_for(count, size)
    content = np.zeros(count, np.uint64)
    bad: dict[int, str] = {}

    workers = threads(workers)
    block = min(_BLOCK, -(-count // (4 * workers))) or 1  # few files are shared out too

    def work(start: int) -> None:
        for i in range(start, min(start + block, count)):
            try:
                data = read(i)
                images[i] = decode(data, size, interpolation)
                content[i] = fingerprint(data)
            except BadImage as error:
                bad[i] = str(error)

    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        # Pillow warns of odd metadata and of large images; what cannot be used is in `bad`, with its reason.
        warnings.simplefilter("ignore")
        for number, _ in enumerate(pool.map(work, range(0, count, block)), 1):
            if progress is not None:
                progress(min(number * block, count), count)
    return images, content, dict(sorted(bad.items()))
