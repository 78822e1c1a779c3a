"""What other people's tools make of the images that `bench_pipelines.py` times: Pillow, torchvision v2, DALI, kornia.

Each peer is a function that returns a call; the call makes one batch of normalised fp32 views. Where a peer cannot run FixMatch's policy,
`POLICY` says what it runs instead. `replayed` is no peer: it runs our own draws through Pillow, to check the pixels before timing.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from fastssl.pipelines import keyed
from fastssl.pipelines.policies import GEOMETRIC, LEVELS, OPS, level_value
from fastssl.pipelines.views import Augmenter

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
POLICY = {
    "pillow": "FixMatch's",
    "torchvision_v2": "its own RandAugment(2, 10): one magnitude, always applied; each image by itself",
    "dali": "its own rand_augment(n=2, m=10): one magnitude, always applied, bilinear; crops pad with zeros",
    "kornia": "its own RandAugment(2, 10): one draw of operations for the whole batch, one magnitude",
}


class Work(NamedTuple):
    """Images and what is to become of them."""

    images: np.ndarray  # [n, 3, S, S] uint8
    kinds: tuple[str, ...]  # n of "weak" or "strong"
    size: int  # side of the views
    resize: int  # side that crops are cut out of, after padding
    pad: int  # pixels of reflection a side
    cutout: int  # nominal side of the square
    jpeg: tuple[bytes, ...] = ()  # the same images as files


def _affine(matrix: Callable) -> Callable:
    return lambda image, v: image.transform(image.size, Image.Transform.AFFINE, matrix(v))


PILLOW: dict[str, Callable] = {
    "identity": lambda image, v: image,
    "autocontrast": lambda image, v: ImageOps.autocontrast(image),
    "equalize": lambda image, v: ImageOps.equalize(image),
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "solarize": lambda image, v: ImageOps.solarize(image, v),
    "rotate": lambda image, v: image.rotate(v),
    "shear_x": _affine(lambda v: (1, v, 0, 0, 1, 0)),
    "shear_y": _affine(lambda v: (1, 0, 0, v, 1, 0)),
    "translate_x": _affine(lambda v: (1, 0, v, 0, 1, 0)),
    "translate_y": _affine(lambda v: (1, 0, 0, 0, 1, v)),
}


def _cropped(image: Image.Image, work: Work, flip: bool, top: int, left: int) -> Image.Image:
    if image.size != (work.resize, work.resize):
        image = image.resize((work.resize, work.resize), Image.Resampling.BILINEAR)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    padded = np.pad(np.asarray(image), ((work.pad,) * 2, (work.pad,) * 2, (0, 0)), mode="reflect")
    return Image.fromarray(padded[top : top + work.size, left : left + work.size])


def replayed(work: Work, augmenter: Augmenter, keys: Tensor) -> Tensor:
    """[n, 3, size, size] uint8: the views that `augmenter` draws under `keys`, made by Pillow one at a time."""
    words, drawn = keyed.bits(keys, 3), augmenter.drawn(keys)
    corners = keyed.below(words[:, 1:], work.resize + 2 * work.pad - work.size + 1)
    views = []
    for i, kind in enumerate(work.kinds):
        image = Image.fromarray(work.images[i].transpose(1, 2, 0))
        image = _cropped(image, work, bool(keyed.below(words[i, 0], 2)), *corners[i].tolist())
        if kind == "strong":
            for op, value in zip(drawn.op[i].tolist(), drawn.value[i].tolist(), strict=True):
                image = PILLOW[OPS[op]](image, value)
            left, right, top, bottom = drawn.box[i].tolist()
            ImageDraw.Draw(image).rectangle((left, top, right, bottom), fill=augmenter.policy.fill)
        views.append(np.asarray(image).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(views))


_JOB: tuple[Work, list, Tensor] | None = None  # what a worker process works on


def _begin(work: Work, out: Tensor) -> None:
    global _JOB
    torch.set_num_threads(1)
    files = [io.BytesIO(data) for data in work.jpeg]
    _JOB = work, files or [Image.fromarray(image.transpose(1, 2, 0)) for image in work.images], out


def _strong(image: Image.Image, work: Work) -> Image.Image:
    for _ in range(2):
        op, level = random.choice(OPS), random.randint(1, LEVELS)
        value = level_value(op, level, work.size, 0.3)
        if random.random() < 0.5:
            image = PILLOW[op](image, -value if OPS.index(op) >= GEOMETRIC and random.random() < 0.5 else value)
    x, y = (max(0, int(random.uniform(0, work.size) - work.cutout / 2)) for _ in range(2))
    ImageDraw.Draw(image).rectangle((x, y, x + work.cutout, y + work.cutout), fill=(127, 127, 127))
    return image


def _views(part: slice) -> None:
    assert _JOB is not None
    work, images, out = _JOB
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (MEAN, STD))
    corners = work.resize + 2 * work.pad - work.size
    for i in range(part.start, part.stop):
        image = Image.open(images[i]).convert("RGB") if work.jpeg else images[i]
        image = _cropped(image, work, random.random() < 0.5, random.randint(0, corners), random.randint(0, corners))
        if work.kinds[i] == "strong":
            image = _strong(image, work)
        # torchvision's ToTensor and Normalize.
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        out[i] = pixels.sub_(mean).div_(std)


@contextmanager
def pillow_workers(work: Work, processes: int) -> Iterator[Callable[[], Tensor]]:
    """FixMatch's recipe by Pillow in worker processes that wait for nothing: views are written to shared memory, no queue, no copy."""
    count = len(work.kinds)
    out = torch.zeros(count, 3, work.size, work.size).share_memory_()
    # Positions go round the workers in small pieces, so that weak and strong views are shared out evenly.
    pieces = [slice(at, min(at + 16, count)) for at in range(0, count, 16)]
    with multiprocessing.get_context("spawn").Pool(processes, _begin, (work, out)) as pool:

        def call() -> Tensor:
            pool.map(_views, pieces, chunksize=1)
            return out

        yield call


def torchvision_v2(work: Work, device: str) -> Callable[[], Tensor]:
    """torchvision.transforms.v2 on uint8 tensors that lie on the device, in this process."""
    from torchvision.transforms import v2

    weak = [v2.RandomHorizontalFlip(), v2.RandomCrop(work.size, padding=work.pad, padding_mode="reflect")]
    if work.resize != work.images.shape[-1]:
        weak.insert(0, v2.Resize((work.resize, work.resize), antialias=True))
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    share = (work.cutout / work.size) ** 2
    erase = v2.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0))
    run = {"weak": v2.Compose(weak + last), "strong": v2.Compose([*weak, v2.RandAugment(2, 10), *last, erase])}
    images = torch.from_numpy(work.images).to(device)
    return lambda: torch.stack([run[kind](image) for image, kind in zip(images, work.kinds, strict=True)])


def kornia(work: Work, device: str) -> Callable[[], Tensor]:
    """kornia on whole float batches that lie on the device as uint8."""
    import kornia.augmentation as K
    from kornia.augmentation.auto import RandAugment

    weak: list = [K.Resize((work.resize, work.resize))] if work.resize != work.images.shape[-1] else []
    weak += [K.RandomHorizontalFlip(p=0.5), K.RandomCrop((work.size,) * 2, padding=work.pad, padding_mode="reflect")]
    last = K.Normalize(torch.tensor(MEAN, device=device), torch.tensor(STD, device=device))
    share = (work.cutout / work.size) ** 2
    erase = K.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0))
    run = {"weak": K.AugmentationSequential(*weak, last), "strong": K.AugmentationSequential(*weak, RandAugment(2, 10), last, erase)}
    tensors = {kind: torch.from_numpy(images).to(device) for kind, images in _by_kind(work, work.images).items()}
    return lambda: torch.cat([run[kind](images.float().div(255)) for kind, images in tensors.items()])


def _by_kind(work: Work, items: np.ndarray | list) -> dict:
    """The items of the weak, then of the strong views, where there are any."""
    groups = {}
    for kind in sorted(set(work.kinds), reverse=True):
        chosen = [item for item, k in zip(items, work.kinds, strict=True) if k == kind]
        groups[kind] = np.stack(chosen) if isinstance(items, np.ndarray) else chosen
    return groups


def dali(work: Work, device: str) -> Callable[[], Tensor]:
    """NVIDIA DALI with one thread a core, run to the end at each call; on CUDA files are decoded there, other images copied there first."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.auto_aug.rand_augment import rand_augment

    cuda, encoded = device == "cuda", bool(work.jpeg)
    files = [np.frombuffer(data, np.uint8) for data in work.jpeg]
    inputs = _by_kind(work, files or [np.ascontiguousarray(image.transpose(1, 2, 0)) for image in work.images])
    options = {"exec_async": False, "exec_pipelined": False, "prefetch_queue_depth": 1}

    @pipeline_def(num_threads=os.cpu_count() or 1, device_id=0 if cuda else None, enable_conditionals=True, **options)
    def views(kind: str, chosen: list):
        images = fn.external_source(source=lambda: chosen, batch=True, layout="" if encoded else "HWC")
        if encoded:
            images = fn.decoders.image(images, device="mixed" if cuda else "cpu", output_type=types.RGB)
        elif cuda:
            images = images.gpu()
        if encoded or work.resize != work.images.shape[-1]:
            images = fn.resize(images, size=(work.resize, work.resize), interp_type=types.INTERP_LINEAR)
        spare = work.resize - work.size
        start = fn.random.uniform(range=(-work.pad - 0.5, work.pad + spare + 0.5), shape=(2,))
        images = fn.slice(images, fn.cast(start, dtype=types.INT32), (work.size,) * 2, axis_names="HW", out_of_bounds_policy="pad")
        if kind == "strong":
            images = rand_augment(images, n=2, m=10, shape=(work.size, work.size))
            anchor = fn.random.uniform(range=(0.0, float(work.size)), shape=(2,)) - work.cutout / 2
            images = fn.erase(images, anchor=anchor, shape=(work.cutout,) * 2, axis_names="HW", fill_value=127)
        flip = fn.random.coin_flip()
        mean, std = [c * 255 for c in MEAN], [c * 255 for c in STD]
        return fn.crop_mirror_normalize(images, mirror=flip, mean=mean, std=std, dtype=types.FLOAT, output_layout="CHW")

    built = [views(kind, chosen, batch_size=len(chosen)) for kind, chosen in inputs.items()]
    for pipeline in built:
        pipeline.build()
    return lambda: torch.cat([torch.from_dlpack(pipeline.run()[0].as_tensor()).clone() for pipeline in built])
