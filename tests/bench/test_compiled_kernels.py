"""Every kernel compiled for sm_80, sm_90 and sm_100 without a GPU: nothing spills, rows move by 16 bytes, registers stay as kept.

The compiler runs in processes of their own, for this one may hold kernels that Triton interprets; and with an empty PATH, for it must
need no C++ compiler.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="the kernels are Triton's: pip install triton (Linux only)")

RESULTS = Path("bench/results")
MINOR = ".".join(triton.__version__.split(".")[:2])
# Everything for sm_90; for the other two rows of any length that start anywhere, and what takes most registers.
ONLY = ("augment", "C 21841, bfloat16", "every option of hard targets), C 8192", "gaussian), C 8192")
RUNS = {"sm_90": ["--arch", "90"], "others": ["--arch", "80,100", *(flag for text in ONLY for flag in ("--only", text))]}
ONE = "pseudo_label_loss (step), C 1000, bfloat16"
SPOILT = f"""
from bench import compiled_kernels
case, gradient = compiled_kernels.cases(["{ONE}"])
def told(launch, **options):
    print(*compiled_kernels.faults(case, 90, compiled_kernels.compiled(launch, 90, **options)), sep="\\n")
told(case.launch)
print("few registers")
told(case.launch, maxnreg=24)
print("unaligned")
args = case.launch.args
times = {{name: value * args["ALIGN"] for name, value in args.items() if name.endswith("_over")}}
told(case.launch._replace(args=args | times | {{"ALIGN": 1}}))
"""


@pytest.fixture(scope="module")
def compiler(python: Callable, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Python with Triton's compilers, a cache of its own, and no other program to be found."""
    bare, cache = str(tmp_path_factory.mktemp("bare")), str(tmp_path_factory.mktemp("cache"))
    env = {"PATH": bare, "CC": "", "TRITON_CACHE_DIR": cache, "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    return lambda *args, code=0, **more: python(*args, code=code, timeout=600, **env | more)


@pytest.fixture(scope="module")
def tables(compiler: Callable, root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tables of `RUNS`, compared with the kept one; a fault in a kernel fails here, with the tool's lines."""
    kept = root / RESULTS / f"compiled-kernels-triton-{MINOR}.md"
    check = ["--check", str(kept)] if kept.exists() else []
    folder = tmp_path_factory.mktemp("tables")
    with ThreadPoolExecutor(len(RUNS)) as pool:
        command = ["-m", "bench.compiled_kernels", *check, "--out"]
        runs = {name: pool.submit(compiler, *command, str(folder / name), *flags) for name, flags in RUNS.items()}
    assert all("nothing compared" not in run.result().stdout for run in runs.values())
    return {name: (folder / name).read_text(encoding="utf-8") for name in runs}


def rows(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]


@pytest.mark.slow
def test_no_kernel_spills_and_long_rows_move_by_sixteen_bytes(tables: dict[str, str], root: Path) -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (root / "kernels").glob("*.py"))
    launched = set(re.findall(r"\bLaunch\((\w+),", sources))
    assert len(launched) > 5
    for table in tables.values():
        assert {row[4] for row in rows(table)} == launched, "a kernel that is launched is not compiled here: add its call to CALLS"
        for call, options, classes, dtype, kernel, _, _, spilled, shared, warps, loads, stores in rows(table):
            where = f"{call} ({options}), C {classes}, {dtype}, {kernel}"
            assert spilled == "0", where
            assert int(shared.split(" / ")[-1]) <= 48 << 10 and min(map(int, warps.split(" / "))) > 0, where
            if int(classes) >= 1000 and kernel != "totals_kernel":
                assert re.match(r"\d+x(16|32)\b", loads), f"{where}: {loads}"
                assert "gradient" not in kernel or re.match(r"\d+x(16|32)\b", stores), f"{where}: {stores}"


@pytest.mark.slow
def test_the_newest_kept_table_holds_these_cases(tables: dict[str, str], root: Path) -> None:
    newest = max(
        root.glob(f"{RESULTS}/compiled-kernels-triton-*.md"), key=lambda path: [int(n) for n in path.stem.split("-")[-1].split(".")]
    )
    kept = newest.read_text(encoding="utf-8")
    assert {tuple(row[:5]) for row in rows(kept)} == {tuple(row[:5]) for row in rows(tables["sm_90"])}
    assert "; sm_80 / sm_90 / sm_100." in kept


@pytest.mark.slow
def test_more_registers_than_kept_and_unkept_kernels_fail(compiler: Callable, tables: dict[str, str], tmp_path: Path) -> None:
    forward, gradient = (line for line in tables["sm_90"].splitlines() if line.startswith("| pseudo_label_loss | step | 1000 | bfloat16"))
    count = int(forward.split(" | ")[6])
    file = tmp_path / "kept.md"
    call = ("-m", "bench.compiled_kernels", "--arch", "90", "--only", ONE, "--check", str(file))

    def fewer(registers: int) -> str:
        return tables["sm_90"].replace(forward, forward.replace(f" | {count} | ", f" | {count - registers} | ", 1))

    file.write_text(fewer(8), encoding="utf-8")
    assert compiler(*call).stderr == ""
    file.write_text(fewer(9).replace(gradient + "\n", ""), encoding="utf-8")
    more, unkept = compiler(*call, code=1).stderr.splitlines()
    assert more == f"{ONE}, pseudo_label_kernel, sm_90: {count} registers, {count - 9} in the kept table"
    assert unkept == f"{ONE}, gradient_kernel: not in the kept table; write it anew with --out"
    file.write_text(fewer(9).replace(f"triton {MINOR}\n", "triton 1.0\n"), encoding="utf-8")
    assert f"nothing compared: no table is kept here for triton {MINOR}; {file} is for 1.0" in compiler(*call).stdout


def test_a_spill_and_narrow_accesses_are_seen(compiler: Callable) -> None:
    found = compiler("-c", SPOILT).stdout
    sound, spilling, narrow = re.split("few registers\n|unaligned\n", found)
    assert sound.strip() == ""
    assert re.search(r"sm_90: spills: \d+ bytes of stack a thread, [1-9]\d* STL and [1-9]\d* LDL instructions", spilling)
    assert re.search(r"sm_90: narrow loads: 128 bytes a thread could go in pieces of 16 or more, and 0 do", narrow)


def test_interpreted_kernels_are_refused(compiler: Callable) -> None:
    done = compiler("-m", "bench.compiled_kernels", code=2, TRITON_INTERPRET="1")
    assert "TRITON_INTERPRET is set" in done.stderr
