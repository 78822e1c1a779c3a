"""Every odd kind of image file has one defined outcome."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from fastssl.pipelines import images
from fastssl.pipelines.images import BadImage, decode, decode_files, native_size

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8)


def pixels(data, size=20):
    out = decode(data, size)
    assert out.shape == (3, size, size) and out.dtype == np.uint8
    return out.transpose(1, 2, 0)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_are_read_to_the_bit(encoded, kind):
    data = encoded(Image.fromarray(COLOUR), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(pixels(data), COLOUR)


def test_grey_one_bit_and_palette_become_rgb(encoded):
    grey = Image.fromarray(COLOUR[..., 0])
    assert np.array_equal(pixels(encoded(grey, "PNG")), np.repeat(COLOUR[..., :1], 3, 2))
    assert set(np.unique(pixels(encoded(grey.convert("1"), "PNG")))) == {0, 255}
    palette = Image.fromarray(COLOUR).quantize(16)
    assert np.array_equal(pixels(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))


def test_cmyk_becomes_rgb(encoded):
    flat = Image.new("CMYK", (20, 20), (0, 255, 255, 0))
    red = pixels(encoded(flat, "JPEG", quality=95))
    assert (red[..., 0] > 245).all() and (red[..., 1:] < 10).all()


def test_sixteen_bits_keep_the_whole_range(encoded):
    ramp = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    out = pixels(encoded(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(out[..., 1], np.round(ramp / 257).astype(np.uint8))
    assert out.min() == 0 and out.max() == 255


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_are_refused(encoded, kind):
    with pytest.raises(BadImage, match="32 bits a channel"):
        decode(encoded(Image.fromarray(np.ones((4, 4), kind)), "TIFF"), 4)


def test_alpha_is_laid_on_white(encoded):
    rgba = np.dstack([COLOUR, np.full((20, 20), 255, np.uint8)])
    rgba[:10, :, 3] = 0
    out = pixels(encoded(Image.fromarray(rgba), "PNG"))
    assert (out[:10] == 255).all() and np.array_equal(out[10:], COLOUR[10:])
    grey = Image.fromarray(np.dstack([COLOUR[..., 0], rgba[..., 3]]), "LA")
    assert (pixels(encoded(grey, "PNG"))[:10] == 255).all()
    see_through = Image.new("P", (20, 20), 0)
    see_through.putpalette([9, 9, 9])
    assert (pixels(encoded(see_through, "PNG", transparency=0)) == 255).all()


def test_animation_gives_its_first_frame(encoded):
    frames = [Image.new("RGB", (20, 20), c) for c in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        out = pixels(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert (out == (255, 0, 0)).all(), kind


def test_exif_orientation_is_applied(encoded):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    turned = pixels(encoded(Image.fromarray(COLOUR), "PNG", exif=exif))
    assert np.array_equal(turned, np.rot90(COLOUR, -1))


def test_one_pixel_fills_the_square(encoded):
    assert (pixels(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), 32) == (1, 2, 3)).all()


def test_the_centred_square_is_kept(encoded):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = COLOUR[:10, :10]
    assert np.array_equal(pixels(encoded(Image.fromarray(wide), "PNG"), 10), COLOUR[:10, :10])
    assert np.array_equal(pixels(encoded(Image.fromarray(wide.transpose(1, 0, 2)), "PNG"), 10), COLOUR[:10, :10].transpose(1, 0, 2))
    resized = Image.fromarray(COLOUR).resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(pixels(encoded(Image.fromarray(COLOUR), "PNG"), 8), np.asarray(resized))


def test_broken_files_say_why(encoded):
    jpeg = encoded(Image.fromarray(COLOUR), "JPEG")
    for data, reason in [
        (b"", "empty file"),
        (b"hello", "not an image in one of the formats JPEG, PNG"),
        (jpeg[: len(jpeg) // 2], "(?i)truncated"),
        (jpeg[:-50], r"image file is truncated \(\d+ bytes not processed\)"),
        (encoded(Image.fromarray(COLOUR), "PPM"), "not an image in one of the formats"),
        (encoded(Image.fromarray(COLOUR), "PNG")[:-30], "(?i)truncated|broken"),
    ]:
        with pytest.raises(BadImage, match=reason):
            decode(data, 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_header_that_claims_too_many_pixels_is_refused_before_decoding():
    def png(side):
        def chunk(kind, body):
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")

    with pytest.raises(BadImage, match="9500 x 9500 pixels, over the limit of 89,000,000"):
        decode(png(9500), 8)
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(png(60_000), 8)


def test_a_long_strip_needs_no_long_memory(encoded):
    strip = encoded(Image.new("RGB", (60_000, 1), (5, 6, 7)), "PNG")
    assert (pixels(strip, 224) == (5, 6, 7)).all()


def write(folder, sizes, encoded):
    paths = []
    for i, size in enumerate(sizes):
        paths.append(folder / f"{i:03d}.png")
        paths[-1].write_bytes(encoded(Image.new("RGB", size), "PNG"))
    return paths


def test_native_size_is_the_usual_one(tmp_path, encoded):
    assert native_size(write(tmp_path, [(16, 16), (16, 16), (40, 30)], encoded)) == 16
    assert native_size(write(tmp_path, [(48, 40), (48, 40), (16, 16)], encoded)) == 40
    assert native_size(write(tmp_path, [(500, 375)] * 2, encoded)) == 224
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    assert native_size([broken]) == 224


def test_threads_change_nothing(tmp_path, encoded):
    paths = []
    for i in range(150):
        paths.append(tmp_path / f"{i}.jpg")
        paths[-1].write_bytes(encoded(Image.fromarray(np.roll(COLOUR, i, 0)), "JPEG") if i % 50 != 7 else b"")
    paths.append(tmp_path / "vanished.jpg")
    one, eight = decode_files(paths, 16, 1), decode_files(paths, 16, 8)
    assert np.array_equal(one[0], eight[0]) and np.array_equal(one[1], eight[1]) and one[2] == eight[2]
    assert one[2] == {7: "empty file", 57: "empty file", 107: "empty file", 150: "cannot be read: No such file or directory"}
    assert (one[1][[0, 20]] == one[1][[0, 20]][::-1]).all(), "the hash is of the content: rolled once around is the same file"


def test_images_that_cannot_fit_name_the_mend(monkeypatch, tmp_path):
    from fastssl.pipelines.errors import ResourceError

    def refuse(*_, **__):
        raise MemoryError

    monkeypatch.setattr(images.np, "zeros", refuse)
    with pytest.raises(ResourceError, match=r"2 images of 224 pixels need 0\.0 GB of memory; ask for a smaller size") as caught:
        decode_files([tmp_path / "a", tmp_path / "b"], 224)
    assert caught.value.exit_code == 7


def test_without_pillow_the_message_names_the_command():
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "from fastssl.pipelines import errors, images\n"
        "try: images.decode_files([], 8)\n"
        "except errors.SetupError as error: print(error.exit_code, error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == "4 reading image files needs Pillow, which is not installed; run: pip install pillow", out.stderr


def test_importing_the_sources_wakes_neither_pillow_nor_scikit_learn():
    code = "import sys, fastssl.pipelines.sources, fastssl.pipelines.resident; print([m for m in ('PIL', 'sklearn') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == "[]", out.stderr
