"""DALI as a decoder on the CPU: what it makes of files beside what Pillow makes of them."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.pipelines import images
from fastssl.pipelines.decoded import ppm

pytest.importorskip("nvidia.dali", reason="DALI comes with the dali extra: pip install nvidia-dali-cuda120")
from fastssl.pipelines.dali import Decoder  # noqa: E402

CPU = torch.device("cpu")


def never(i):
    raise AssertionError(f"file {i} was refused")


def decoded(files, size, interpolation="bicubic", again=never):
    decoder = Decoder(len(files), size, interpolation, CPU, 1)
    out = torch.zeros(len(files), 3, size, size, dtype=torch.uint8)
    decoder.feed([np.frombuffer(data, np.uint8) for data in files])
    decoder.take(out, again)
    decoder.close()
    return out.numpy()


def apart(files, size, interpolation="bicubic"):
    """Absolute differences in grey levels between DALI's and Pillow's squares."""
    mine = decoded(files, size, interpolation).astype(int)
    return np.abs(mine - np.stack([images.decode(data, size, interpolation) for data in files]).astype(int))


@pytest.fixture(scope="module")
def photos():
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(x) for x in load_sample_images().images]


@pytest.mark.parametrize("options", [{"subsampling": s, "progressive": p} for s in (0, 1, 2) for p in (False, True)])
def test_jpegs_at_their_own_size_are_pillows_to_the_bit(photos, encoded, options):
    squares = [photo.crop((left, 0, left + 224, 224)) for photo in photos for left in (0, 101)]
    files = [encoded(image, "JPEG", quality=90, **options) for image in squares + [square.convert("L") for square in squares]]
    assert apart(files, 224).max() == 0


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "levels"), [(224, 1), (96, 2), (32, 6)])
def test_resized_photos_differ_at_the_border_alone(photos, encoded, interpolation, size, levels):
    """Where its filter reaches over the edge Pillow leaves pixels out and DALI repeats the last one; elsewhere both round the same sum.

    99.9 % of all pixels lie within `levels` grey levels; the smaller the square, the larger its border's share.
    """
    files = [encoded(photo.crop((0, 0, *box)), "JPEG", quality=90) for photo in photos for box in ((500, 375), (375, 427), (640, 427))]
    off = apart(files, size, interpolation)
    assert off.mean() < 0.15 and (off <= levels).mean() >= 0.999 and off.max() < 20
    assert (off[..., 4:-4, 4:-4] <= 1).mean() > 0.9996


def test_a_plain_jpeg_or_png_is_read_alike(photos, encoded):
    """Whatever `examined` calls plain: every EXIF orientation, grey, subsampling, one pixel, an odd gamma."""
    image = photos[0].resize((70, 50))
    files = [encoded(image.crop((0, 0, 1, 1)), kind) for kind in ("JPEG", "PNG")]
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files += [encoded(image, kind, exif=exif) for kind in ("JPEG", "PNG")]
    files += [encoded(image.convert("L"), "PNG"), encoded(image, "JPEG", subsampling="4:1:1"), encoded(image, "PNG", gamma=0.2)]
    assert all(images.examined(data) for data in files)
    for data in files:
        with Image.open(io.BytesIO(data)) as opened:
            side = min(opened.size)
        assert apart([data], side)[..., 1:-1, 1:-1].max(initial=0) <= 1 and apart([data], side).mean() < 0.6


def test_odd_files_are_not_plain(photos, encoded):
    image = photos[0].resize((20, 20))
    deep = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    odd = {
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "palette": encoded(image.quantize(16), "PNG"),
        "one bit": encoded(image.convert("1"), "PNG"),
        "alpha": encoded(image.convert("RGBA"), "PNG"),
        "grey and alpha": encoded(image.convert("LA"), "PNG"),
        "one colour is transparent": encoded(image, "PNG", transparency=(1, 2, 3)),
        "16 bits": encoded(Image.fromarray(deep), "PNG"),
        "animated": encoded(image, "PNG", save_all=True, append_images=[image.rotate(90)]),
        "rgb jpeg": encoded(image, "JPEG", keep_rgb=True),
        **{kind: encoded(image, kind) for kind in ("WEBP", "GIF", "TIFF", "BMP")},
    }
    assert [name for name, data in odd.items() if images.examined(data)] == []


def test_sixteen_bits_of_colour_are_not_plain():
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + bytes(range(48))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")
    assert not images.examined(png)


def test_what_pillow_made_passes_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 33, 33), dtype=np.uint8)
    assert np.array_equal(decoded([ppm(p).tobytes() for p in pixels], 33), pixels)


def test_a_batch_may_be_smaller_than_the_last(encoded, photos):
    files = [encoded(photos[0].resize((16, 16)), "PNG")] * 3
    decoder = Decoder(4, 16, "bicubic", CPU, 1)
    for count in (3, 1, 2):
        out = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
        decoder.feed([np.frombuffer(data, np.uint8) for data in files[:count]])
        decoder.take(out, never)
        assert np.array_equal(out[-1].numpy(), images.decode(files[0], 16))


def test_a_file_that_dali_refuses_is_asked_for_again(encoded, photos, capfd):
    good = encoded(photos[0].resize((16, 16)), "PNG")
    asked = []

    def again(i):
        asked.append(i)
        return ppm(np.full((3, 16, 16), 7, np.uint8))

    out = decoded([good, b"no image", good, b"\xff\xd8\xff broken"], 16, again=again)
    assert asked == [1, 3] and (out[[1, 3]] == 7).all()
    assert np.array_equal(out[0], images.decode(good, 16)) and np.array_equal(out[2], out[0])


def test_without_dali_the_message_names_the_command(python):
    code = (
        "import sys, torch; sys.modules['nvidia.dali'] = None\n"
        "from fastssl.pipelines import dali, errors\n"
        "try: dali.Decoder(1, 8, 'bicubic', torch.device('cpu'), 1)\n"
        "except errors.SetupError as error: print(error.exit_code, error)"
    )
    assert python("-c", code).stdout.startswith(
        "4 --pipeline dali needs NVIDIA DALI, which is not installed; run: pip install nvidia-dali-cuda120"
    )


def test_importing_the_streamed_pipeline_wakes_no_dali(python):
    code = "import sys, fastssl.pipelines.streamed, fastssl.pipelines.sources; print('nvidia.dali' in sys.modules)"
    assert python("-c", code).stdout.strip() == "False"


@pytest.mark.skipif("FASTSSL_DATA" not in os.environ, reason="FASTSSL_DATA names no folder with cifar10-jpeg.tar.xz")
def test_cifar_jpegs_are_pillows_to_the_bit():
    files = []
    with tarfile.open(Path(os.environ["FASTSSL_DATA"]) / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(".jpg") and len(files) < 500:
                files.append(archive.extractfile(member).read())
    assert len(files) == 500 and apart(files, 32).max() == 0
