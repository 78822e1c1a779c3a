"""What the compilers make of every kernel, found without a GPU: registers, spills, shared memory, occupancy, width of memory accesses.

    python -m bench.compiled_kernels [--arch 80,90,100] [--only TEXT] [--out FILE] [--check FILE]

Each call of `compiled_cases.py` is compiled for each architecture by Triton's own just-in-time path: a driver that names an architecture
and has no device stands in for CUDA's, so types, constants and divisibility are specialised as in a launch. ptxas, cuobjdump and nvdisasm
come with Triton; no C++ compiler is needed.

Exit code 1 and one line each on stderr where a kernel spills, where rows are read or written in narrower pieces than their alignment
allows, and with --check where a kernel takes over 8 registers more than in the kept table, or is not in it. Tables are kept by Triton's
minor version: with another one there is nothing to compare with, and that is said.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from fastssl.kernels._launch import Launch

from .compiled_cases import Case, cases

ARCHITECTURES = (80, 90, 100)
MORE_REGISTERS = 8  # over the kept table; ptxas gives them out in eights
# From NVIDIA's compute-capability tables, the same for 8.0, 9.0 and 10.0: registers, warps and programs of a multiprocessor.
REGISTERS, WARPS, PROGRAMS = 65536, 64, 32
SHARED = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}  # bytes of a multiprocessor
GRANULES = 256  # classes from which on rows are read by 16 bytes wherever they start
RESERVED = 1024  # bytes of shared memory that the system takes for each program
READ = ("student_ptr", "teacher_ptr", "judge_ptr", "target_ptr", "logits_ptr")  # rows of classes that kernels read
ACCESS = re.compile(r"\b(ld|st)\.global(?:\.\w+|::\w+)*?(?:\.v(\d))?\.[bufs](\d+)\b")


class Standin:
    """A driver with an architecture and no device: enough to compile, not to load."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


class Compiled(NamedTuple):
    registers: int  # a thread
    stack: int  # bytes a thread of stack and local memory: what spills take
    shared: int  # bytes a program, what the system reserves left out
    warps: int  # that fit a multiprocessor at once
    loads: dict[int, int]  # bytes of a global load -> instructions in the PTX
    stores: dict[int, int]
    cubin: bytes


def tool(name: str, *flags: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        path = getattr(knobs.nvidia, name).path
        return subprocess.run([path, *flags, file.name], capture_output=True, text=True, check=True).stdout


def warps_on_multiprocessor(registers: int, shared: int, warps: int, arch: int) -> int:
    """By the rules of NVIDIA's occupancy calculator: registers go to a warp by 256, to each quarter of a multiprocessor by itself."""
    by_registers = REGISTERS // 4 // (-(-registers // 8) * 8 * 32) * 4 // warps
    by_shared = SHARED[arch] // (-(-(shared + RESERVED) // 128) * 128)
    return min(PROGRAMS, WARPS // warps, by_registers, by_shared) * warps


def compiled(launch: Launch, arch: int, **options: Any) -> Compiled:
    """A launch compiled as `Launch.run` would have it, with further compiler options."""
    made: list = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda **given: made.append(launch.kernel.warmup(grid=grid, **given, **options))

    driver.set_active(Standin(arch))
    launch._replace(kernel=Recorder()).run(torch.device("cpu"))
    (kernel,) = made
    cubin, ptx = kernel.asm["cubin"], kernel.asm["ptx"]
    usage = dict(re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", tool("cuobjdump", "-res-usage", cubin=cubin)))
    registers, stack, local, static = (int(usage[name]) for name in ("REG", "STACK", "LOCAL", "SHARED"))
    shared = kernel.metadata.shared + max(0, static - (RESERVED if arch >= 90 else 0))
    pieces = {"ld": Counter(), "st": Counter()}
    for kind, vector, bits in ACCESS.findall(ptx):
        pieces[kind][int(vector or 1) * int(bits) // 8] += 1
    fit = warps_on_multiprocessor(registers, shared, launch.warps, arch)
    return Compiled(registers, stack + local, shared, fit, dict(pieces["ld"]), dict(pieces["st"]), cubin)


def wanted_pieces(launch: Launch, classes: int) -> dict[str, dict[int, int]]:
    """{"loads" | "stores": {bytes of an access: bytes a thread that must at least be moved by accesses of this size}}.

    Logits and targets are read, gradients written, at least once. A row's pieces are the largest up to 16 bytes that
    start at a border of their size in every row, and 16 bytes from `GRANULES` classes on; but a soft target has the former always.
    """
    wanted = {"loads": Counter(), "stores": Counter()}
    for name, tensor in launch.args.items():
        if tensor is None or not (name in READ or name.endswith("gradient_ptr")) or tensor.stride(-1) != 1:
            continue
        size = tensor.element_size()
        width = math.gcd(16, tensor.data_ptr(), *(stride * size for stride in tensor.stride()[:-1]))
        if classes >= GRANULES and tensor.is_contiguous() and name != "target_ptr":
            width = 16
        bytes_a_thread = launch.args["BLOCK_N"] * launch.args["BLOCK_C"] * size // (32 * launch.warps)
        wanted["loads" if name in READ else "stores"][min(width, bytes_a_thread)] += bytes_a_thread
    return wanted


def faults(case: Case, arch: int, result: Compiled) -> list[str]:
    """What is wrong with a kernel by itself, one line each."""
    found = []
    if result.stack:
        code = tool("nvdisasm", "-c", cubin=result.cubin)
        stores, loads = (len(re.findall(rf"\b{name}\b", code)) for name in ("STL", "LDL"))
        found.append(f"spills: {result.stack} bytes of stack a thread, {stores} STL and {loads} LDL instructions")
    for kind, wanted in wanted_pieces(case.launch, case.classes).items():
        had = result.loads if kind == "loads" else result.stores
        for width in wanted:
            need = sum(size for piece, size in wanted.items() if piece >= width)
            have = sum(piece * count for piece, count in had.items() if piece >= width)
            if have < need:
                found.append(f"narrow {kind}: {need} bytes a thread could go in pieces of {width} or more, and {have} do")
    return [f"{case.name}, sm_{arch}: {line}" for line in found]


def pieces(counts: dict[int, int]) -> str:
    return ", ".join(f"{count}x{size}" for size, count in sorted(counts.items(), reverse=True)) or "none"


def joined(values: list) -> str:
    """One value for all architectures, or each in turn."""
    texts = [str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


COLUMNS = ("call", "options", "C", "dtype", "kernel", "tile", "registers", "spilled", "shared", "warps on an SM", "loads", "stores")


def row(case: Case, results: list[Compiled]) -> list[str]:
    a = case.launch.args
    tile = f"{a.get('BLOCK_N') or a['BLOCK_G']}x{a['BLOCK_C']}{' looped' if a.get('LOOPED') else ''}, {case.launch.warps} warps"
    numbers = [joined([getattr(result, name) for result in results]) for name in ("registers", "stack", "shared", "warps")]
    accesses = [joined([pieces(getattr(result, name)) for result in results]) for name in ("loads", "stores")]
    return [case.call, case.options, str(case.classes), case.dtype, case.launch.kernel.__name__, tile, *numbers, *accesses]


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def heading(architectures: list[int]) -> str:
    names = " / ".join(f"sm_{arch}" for arch in architectures)
    ptxas = {path: subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout for path in (
        knobs.nvidia.ptxas.path, knobs.nvidia.ptxas_blackwell.path,
    )}  # fmt: skip
    versions = ", ".join(re.search(r"V([\d.]+)", text)[1] for text in ptxas.values())
    return f"""# Compiled kernels, triton {minor(triton.__version__)}

triton {triton.__version__}, torch {torch.__version__}, its ptxas {versions}; {names}. Written by `python -m bench.compiled_kernels`.
Where architectures differ a cell holds one value for each, in this order. Registers are a thread's, spilled bytes too, shared bytes a
program's; loads and stores are global memory instructions in the PTX, count x bytes, loops counted once.
"""


def read_table(text: str) -> tuple[str, list[int], dict[tuple[str, ...], dict[str, str]]]:
    """(Triton's minor version, architectures, first five columns -> the row) of a kept table."""
    version = re.search(r"^# Compiled kernels, triton (\S+)$", text, re.M)
    names = re.search(r"; (sm_\d+(?: / sm_\d+)*)\.", text)
    if version is None or names is None:
        raise SystemExit("--check: this is no table of compiled kernels")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = {tuple(line[:5]): dict(zip(COLUMNS, line, strict=True)) for line in lines[1:]}
    return version[1], [int(arch) for arch in re.findall(r"sm_(\d+)", names[1])], rows


def compare(kept: dict[str, str] | None, was: list[int], case: Case, results: dict[int, Compiled]) -> list[str]:
    """What has become worse than in the kept row, one line for each architecture of both."""
    if kept is None:
        return [f"{case.name}: not in the kept table; write it anew with --out"]
    before = kept["registers"].split(" / ")
    before = dict(zip(was, before * len(was) if len(before) == 1 else before, strict=True))
    return [
        f"{case.name}, sm_{arch}: {result.registers} registers, {before[arch]} in the kept table"
        for arch, result in results.items()
        if arch in before and result.registers > int(before[arch]) + MORE_REGISTERS
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m bench.compiled_kernels")
    parser.add_argument("--arch", default=",".join(map(str, ARCHITECTURES)), help="compute capabilities, of 80, 90 and 100")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="calls whose title holds this; may be repeated")
    parser.add_argument("--check", type=Path, metavar="FILE", help="a kept table to compare with")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the table")
    options = parser.parse_args()
    if knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: interpreted kernels are not compiled; unset it")
    architectures = [int(arch) for arch in options.arch.split(",")]
    if not set(architectures) <= set(ARCHITECTURES):
        parser.error(f"--arch must name some of {ARCHITECTURES}; got {options.arch}")
    version, was, kept = read_table(options.check.read_text(encoding="utf-8")) if options.check else ("", [], {})
    same = version == minor(triton.__version__)

    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    wrong: list[str] = []
    for case in cases(options.only):
        results = {arch: compiled(case.launch, arch) for arch in architectures}
        line = row(case, list(results.values()))
        lines.append(line)
        wrong += [fault for arch, result in results.items() for fault in faults(case, arch, result)]
        if same:
            wrong += compare(kept.get(tuple(line[:5])), was, case, results)
    table = heading(architectures) + "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    print(table)
    if options.out:
        options.out.write_text(table, encoding="utf-8")
    if options.check and not same:
        print(f"nothing compared: no table is kept here for triton {minor(triton.__version__)}; {options.check} is for {version}")
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
