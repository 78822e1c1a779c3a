"""Views a second: our resident pipeline against Pillow in worker processes, torchvision v2, DALI and kornia.

Each row first checks our pixels against Pillow under our own draws (equal to the last bit), and that every peer gives normalised views of
the right shape. Then all are timed in turns, round by round in one process, so that a busy machine slows all alike.

| row | images | views |
|---|---|---|
| cifar: weak, strong | 448 of 32 x 32 | FixMatch's weak or strong view |
| cifar_step | 64 + 448 + 448 of 32 x 32 | a FixMatch step's: weak, weak, strong |
| finessl: weak, strong | 128 of 32 x 32, shown at 224 | resized to 256, padded by 28, cut to 224; cutout of 16 pixels |
| jpeg_folder | 64 photographs of 500 x 500, JPEG files | FineSSL's strong view at 224 pixels |

`images_per_second` is ours, `PEER_images_per_second` a peer's, medians over the rounds; `ratio_to_PEER` is the median over the rounds of
their time divided by ours, `ratio_to_PEER_low` and `_high` its quartiles. `pillow_2` is Pillow in two worker processes, `pillow_8` in
eight where there are as many cores. A peer's policy where it is not FixMatch's stands in `POLICY` of view_peers.py and in
`policy_of_PEER`. Our own draws include the order of the rows and the labels. Our JPEG row decodes all files by Pillow in threads, each
time anew; a run decodes them once, and `later_epochs_images_per_second` is what it then draws.

Rows for CUDA run the same with the images of ours, torchvision, kornia and DALI on the device; without one they are skipped.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from bench import view_peers
from bench._timing import Job, cpu_wall_clock_us, interleaved
from bench.view_peers import MEAN, POLICY, STD, Work
from fastssl.pipelines import images as image_files
from fastssl.pipelines.batch import Split, Views
from fastssl.pipelines.resident import ResidentPipeline
from fastssl.pipelines.source import Source
from fastssl.pipelines.views import Augmenter

ROUNDS = 15
CHECKED = 48  # images whose pixels are compared before anything is timed


def photographs(count: int, side: int) -> np.ndarray:
    """[count, 3, side, side] uint8: random squares of scikit-learn's two photographs (427 x 640), larger ones enlarged."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng, cut = np.random.default_rng(0), min(side, 400)
    photos, made = [np.asarray(image) for image in load_sample_images().images], []
    for i in range(count):
        photo = photos[i % 2]
        top, left = rng.integers(0, photo.shape[0] - cut + 1), rng.integers(0, photo.shape[1] - cut + 1)
        piece = Image.fromarray(photo[top : top + cut, left : left + cut])
        made.append(np.asarray(piece if cut == side else piece.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1))
    return np.stack(made)


def source_of(images: np.ndarray) -> Source:
    """A set of `images`, all labelled 0 or 1, which may be mirrored."""
    count = len(images)
    known = np.ones(count, bool)
    ids, label = [f"{i:04d}" for i in range(count)], np.arange(count) % 2
    return Source("photographs", ("0", "1"), ids, label, known, ~known, images, np.arange(count, dtype=np.uint64), True, MEAN, STD)


def resident(work: Work, views: Views, batch: int, ratio: int = 1, **options: object) -> ResidentPipeline:
    rows = np.arange(len(work.images))
    split = Split(rows, rows % 2, np.ones(len(rows), np.float32), rows, rows[:0])
    return ResidentPipeline(source_of(work.images), split, views, batch_size=batch, ratio=ratio, size=work.size, **options)


def check_pixels(work: Work, augmenter: Augmenter) -> None:
    """Raises AssertionError unless our views of the first images of each kind are Pillow's to the last bit."""
    for kind in sorted(set(work.kinds)):
        images = work.images[:CHECKED]
        keys = torch.arange(len(images)) * 7919
        few = work._replace(images=images, kinds=(kind,) * len(images))
        assert torch.equal(augmenter.view(torch.from_numpy(images), keys, kind), view_peers.replayed(few, augmenter, keys)), kind


def check_peer(made: torch.Tensor, work: Work, name: str) -> None:
    """Raises AssertionError unless a peer's views are normalised fp32 images of the right shape."""
    assert made.shape == (len(work.kinds), 3, work.size, work.size) and made.dtype == torch.float32, name
    assert made.isfinite().all() and -3 < made.min() < -0.5 and 0.5 < made.max() < 3, name
    assert len(made.flatten(1).unique(dim=0)) > len(made) // 2, f"{name}: views of different images differ"


def timer_of(device: str) -> Callable[[Callable[[], object]], float]:
    """A timer in microseconds of host time; on CUDA a call ends when the device is done."""

    def finished(run: Callable[[], object]) -> None:
        run()
        if device == "cuda":
            torch.cuda.synchronize()

    return lambda run: cpu_wall_clock_us(lambda: finished(run))


def compare(benchmark, ours: Callable[[], object], work: Work, augmenter: Augmenter, device: str = "cpu") -> None:
    """Checks, then times ours and every peer in turns."""
    if device == "cpu":
        check_pixels(work, augmenter)
    with ExitStack() as stack:
        peers = {"pillow_2": stack.enter_context(view_peers.pillow_workers(work, 2))}
        if (os.cpu_count() or 1) >= 8:
            peers["pillow_8"] = stack.enter_context(view_peers.pillow_workers(work, 8))
        for name, needs in (("torchvision_v2", "torchvision"), ("dali", "nvidia.dali"), ("kornia", "kornia")):
            if work.jpeg and name in ("torchvision_v2", "kornia"):
                continue  # they decode no files
            try:
                __import__(needs)
            except ImportError:
                benchmark.extra_info[f"without_{name}"] = f"{needs} is not installed"
                continue
            peers[name] = getattr(view_peers, name)(work, device)
        for name, peer in peers.items():
            check_peer(peer(), work, name)
        calls = {"ours": ours, **peers}
        times = interleaved({name: Job(call, 1, lambda: None) for name, call in calls.items()}, timer_of(device), ROUNDS, warmup=2)
    count = len(work.kinds)
    benchmark.extra_info.update(
        rounds=ROUNDS, threads=torch.get_num_threads(), images_per_second=count / statistics.median(times["ours"]) * 1e6
    )
    for name in peers:
        ratios = [theirs / own for theirs, own in zip(times[name], times["ours"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        benchmark.extra_info[f"{name}_images_per_second"] = count / statistics.median(times[name]) * 1e6
        benchmark.extra_info.update({f"ratio_to_{name}": middle, f"ratio_to_{name}_low": low, f"ratio_to_{name}_high": high})
        policy = POLICY.get(name)
        if policy and "strong" in work.kinds:
            benchmark.extra_info[f"policy_of_{name}"] = policy
    benchmark.pedantic(ours, rounds=ROUNDS, warmup_rounds=1)


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("the rows for a GPU need a CUDA device, and torch sees none here")
    return request.param


@pytest.mark.parametrize("kind", ["weak", "strong"])
def bench_cifar(benchmark, kind, device):
    work = Work(photographs(448, 32), (kind,) * 448, 32, 32, 4, 16)
    pipeline = resident(work, Views((kind,)), 448, device=device)
    compare(benchmark, lambda: pipeline.draw().labelled[0], work, pipeline.augmenter, device)


def bench_cifar_step(benchmark, device):
    work = Work(photographs(960, 32), ("weak",) * 512 + ("strong",) * 448, 32, 32, 4, 16)
    pipeline = resident(work, Views(("weak",), ("weak", "strong")), 64, 7, device=device)
    compare(benchmark, pipeline.draw, work, pipeline.augmenter, device)


@pytest.mark.parametrize("kind", ["weak", "strong"])
def bench_finessl(benchmark, kind, device):
    work = Work(photographs(128, 32), (kind,) * 128, 224, 256, 28, 16)
    pipeline = resident(work, Views((kind,)), 128, policy="finessl", resize=256, interpolation="bilinear", device=device)
    compare(benchmark, lambda: pipeline.draw().labelled[0], work, pipeline.augmenter, device)


def bench_jpeg_folder(benchmark, tmp_path):
    from PIL import Image

    paths = []
    for i, image in enumerate(photographs(64, 500)):
        paths.append(tmp_path / f"{i:02d}.jpg")
        Image.fromarray(image.transpose(1, 2, 0)).save(paths[-1], quality=90)
    files = tuple(path.read_bytes() for path in paths)
    held = image_files.decode_files(paths, 256, interpolation="bilinear")[0]
    work = Work(held, ("strong",) * 64, 224, 256, 28, 16, files)
    pipeline = resident(work, Views(("strong",)), 64, policy="finessl", resize=256, interpolation="bilinear")

    def decoded_each_time() -> None:
        pipeline.images.copy_(torch.from_numpy(image_files.decode_files(paths, 256, interpolation="bilinear")[0]))
        pipeline.draw()

    compare(benchmark, decoded_each_time, work, pipeline.augmenter)
    later = interleaved({"draw": Job(pipeline.draw, 1, lambda: None)}, cpu_wall_clock_us, ROUNDS)["draw"]
    benchmark.extra_info["later_epochs_images_per_second"] = 64 / statistics.median(later) * 1e6
