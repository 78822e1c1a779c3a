"""The augmentation kernels on a CUDA device: equal to the CPU's views first, then images a second, as a Markdown table.

    python -m bench.gpu_augment [--rounds 21] [--check]

Workloads: 64 labelled weak views, 448 weak and 448 strong ones of CIFAR-sized images; and 128 views of 224 pixels of images stored at 32.
Times are of CUDA events, as called and replayed in a graph. Images are noise, which
costs what photographs cost: no pass depends on what it reads. Exit code 1 where a view differs from the CPU's, 2 without a CUDA device.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import NamedTuple

import torch

from fastssl.kernels.augment import Augment
from fastssl.pipelines import keyed, resident_fused
from fastssl.pipelines.policies import POLICIES
from fastssl.pipelines.views import Augmenter, normalised

from ._timing import Job, Machine, captured, interleaved, spread

STORED_IMAGES = 50_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


class Work(NamedTuple):
    name: str
    stored: int
    side: int
    weak: int
    strong: int
    policy: str


WORKS = (
    Work("CIFAR, 64 + 448 weak, 448 strong, fixmatch", 32, 32, 512, 448, "fixmatch"),
    Work("CIFAR, 64 + 448 weak, 448 strong, usb", 32, 32, 512, 448, "usb"),
    Work("32 -> 224, 64 weak, 64 strong, fixmatch", 32, 224, 64, 64, "fixmatch"),
    Work("224, 64 weak, 64 strong, usb", 224, 224, 64, 64, "usb"),
)


class Made(NamedTuple):
    """A workload on one device."""

    kernel: Augment
    images: torch.Tensor
    rows: torch.Tensor
    keys: torch.Tensor

    def __call__(self, weak: int) -> torch.Tensor:
        return self.kernel(self.images, self.rows, self.keys, weak=weak)


def augmenter(work: Work, device: torch.device | str) -> Augmenter:
    return Augmenter(POLICIES[work.policy], (work.side, work.side), flip=True, device=device, stored=work.stored)


def numbers(device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, offset) of the normalisation."""
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    return 1 / (255 * std), -mean / std


def made(work: Work, device: torch.device, dtype: torch.dtype, channels_last: bool) -> Made:
    g = torch.Generator().manual_seed(0)
    total = STORED_IMAGES if work.stored == 32 else 2_000
    images = torch.randint(0, 256, (total, 3, work.stored, work.stored), dtype=torch.uint8, generator=g)
    rows = torch.randint(0, total, (work.weak + work.strong,), generator=g)
    here = augmenter(work, device)
    scale, offset = numbers(device)
    kernel = Augment(
        (work.stored, work.stored),
        here.size,
        scale,
        offset,
        pad=here.pad,
        flip=True,
        strong=resident_fused.strong(here.sampler),
        taps=resident_fused.taps(work.stored, work.side, work.side, "bicubic", device),
        dtype=dtype,
        channels_last=channels_last,
    )
    keys = keyed.joined(keyed.key(1), torch.arange(len(rows)))
    return Made(kernel, images.to(device), rows.to(device), keys.to(device))


def expected(work: Work, given: Made) -> torch.Tensor:
    """The same views by torch on the CPU, fp32."""
    here, rows, keys = augmenter(work, "cpu"), given.rows.cpu(), given.keys.cpu()
    x, (scale, offset) = given.images.cpu()[rows], numbers("cpu")
    levels = here.views(x, keys, ("weak", "strong"), (work.weak, work.strong))
    return normalised(levels, scale.view(1, 3, 1, 1), offset.view(1, 3, 1, 1))


def difference(work: Work, device: torch.device) -> tuple[float, float]:
    """(share of pixels that differ by more than half a grey level from the CPU's, largest difference in grey levels)."""
    given = made(work, device, torch.float32, False)
    away = (given(work.weak).cpu() - expected(work, given)).abs() / numbers("cpu")[0].view(1, 3, 1, 1)
    return (away > 0.5).double().mean().item(), away.max().item()


def row(work: Work, machine: Machine, rounds: int) -> str:
    given = made(work, machine.device, torch.bfloat16, True)
    n = work.weak + work.strong
    graph = captured(lambda: given(work.weak), None)
    jobs = {
        "called": Job(lambda: given(work.weak), 1, lambda: machine.settle(False)),
        "graph": Job(graph.replay, 1, lambda: machine.settle(False)),
    }
    times = {name: spread(values) for name, values in interleaved(jobs, machine.timer, rounds).items()}
    cells = [f"{t.median:.1f} (IQR {t.iqr:.1f}) | {n / t.median:.2f}" for t in times.values()]
    return f"| {work.name} | {n} | " + " | ".join(cells) + " |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="measurements of each row, at least 2")
    parser.add_argument("--check", action="store_true", help="the comparison with the CPU alone")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("bench.gpu_augment needs a CUDA device; torch sees none", file=sys.stderr)
        return 2
    os.environ["FASTSSL_KERNELS"] = "triton"
    machine = Machine("cuda")
    wrong = []
    for work in WORKS:
        share, most = difference(work, machine.device)
        print(f"check {work.name}: {share:.2e} of the pixels differ, by {most:.2f} grey levels at most", flush=True)
        # Rotations alone may differ, where a cosine's last place moves a coordinate over a border between pixels.
        if share > 1e-4:
            wrong.append(work.name)
    if wrong:
        print(f"not timed, for views differ from the CPU's: {'; '.join(wrong)}", file=sys.stderr)
        return 1
    if not args.check:
        print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16, channels_last, {args.rounds} rounds\n")
        print("| views | images | us as called | million images/s | us in a graph | million images/s |")
        print("|---|---|---|---|---|---|")
        for work in WORKS:
            print(row(work, machine, args.rounds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
