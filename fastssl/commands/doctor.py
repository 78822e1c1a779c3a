"""`fastssl doctor`: what this machine has, what it lacks, what that costs, and the command that mends it."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .. import __version__, environment
from ..pipelines.errors import SetupError
from ..pipelines.set_facts import default_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output: one JSON object")
    parser.add_argument("--model", help="foresee the memory of training this network")
    parser.add_argument("--batch", type=int, metavar="B", help="labelled images or texts a step of that run; the method's own if left out")
    parser.add_argument("--method", help="its method; finessl if left out")
    parser.add_argument("--amp", help="its mixed precision: off, bf16 or fp16")
    parser.add_argument("--size", type=int, metavar="S", help="side of its images in pixels; the network's own, else 32")
    parser.add_argument("--max-length", type=int, metavar="L", help="tokens of its texts; as many as the encoder takes if left out")


def run(args: argparse.Namespace) -> int:
    """Prints the report, as one JSON object where `args.json` is set. 0, or 4 where a package that every run needs is missing."""
    report = examine()
    if any(getattr(args, name, None) is not None for name in ("model", "batch", "method", "amp", "size", "max_length")):
        from .foresight import foreseen

        report["run"] = foreseen(args)
    if args.json:
        print(json.dumps(report))
    else:
        print("\n".join(render(report)))
    return SetupError.exit_code if _absent(report) else 0


def examine() -> dict[str, Any]:
    """Everything the report says, as plain values: versions, devices, build tools, memory and disk in bytes, caches, advice."""
    disk = shutil.disk_usage(Path.cwd())
    memory = environment.memory()
    report: dict[str, Any] = {
        "fastssl": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: environment.package_version(name) for name in environment.PACKAGES},
        "cpu": {"cores": environment.cpu_count(), "bf16": environment.bf16_in_hardware()},
        "memory": None if memory is None else {"total": memory[0], "available": memory[1]},
        "disk": {"path": str(Path.cwd()), "free": disk.free},
        "compiler": environment.compiler(),
        "caches": {**environment.caches(), "published sets": str(default_root())},
    }
    report["packages"]["triton"] = environment.package_version("triton")
    report["torch"] = _torch() if report["packages"]["torch"] else None
    report["serves"] = _serves(report)
    report["advice"] = _advice(report)
    return report


def _torch() -> dict[str, Any]:
    import torch

    devices = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            devices.append(
                {
                    "name": properties.name,
                    "capability": f"{properties.major}.{properties.minor}",
                    "memory": properties.total_memory,
                    "bf16": (properties.major, properties.minor) >= (8, 0),
                }
            )
    return {"cuda": torch.version.cuda, "driver": _driver(), "threads": torch.get_num_threads(), "devices": devices}


def _driver() -> str | None:
    """The NVIDIA driver's version, by nvidia-smi; None where there is none."""
    if not (smi := shutil.which("nvidia-smi")):
        return None
    try:
        query = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return answer[0] if answer else None


def _serves(report: dict[str, Any]) -> dict[str, str]:
    """What a run would use on this machine as it is: device, losses, step, --amp bf16."""
    cuda = bool(report["torch"] and report["torch"]["devices"])
    if cuda:
        bf16 = "in hardware" if all(d["bf16"] for d in report["torch"]["devices"]) else "not in hardware: --amp bf16 is refused, take fp16"
    else:
        bf16 = {True: "in hardware", False: "emulated, no faster than fp32", None: "yes"}[report["cpu"]["bf16"]]
    return {
        "device": "cuda" if cuda else "cpu",
        "losses": _losses("cuda" if cuda else "cpu") if report["torch"] else "none: torch is missing",
        "step": _step("cuda" if cuda else "cpu", report),
        "pipelines": _pipelines(cuda),
        "bf16": bf16,
    }


def _step(device: str, report: dict[str, Any]) -> str:
    """The step mode that `auto` takes, and why."""
    if not report["torch"]:
        return "none: torch is missing"
    if report["compiler"] is None:
        return "eager: without build tools no step can be compiled"
    from torch import device as torch_device

    from ..engine.modes import wanted

    mode = wanted("auto", torch_device(device))[0]
    return {
        "graph": "graph: on CUDA a step is compiled and captured as one CUDA graph",
        "compile": "compile",
        "eager": "eager: there are no CUDA graphs on the CPU (--step-mode compile compiles all the same)",
    }[mode]


def _pipelines(cuda: bool) -> str:
    """Who may draw batches, in words."""
    from ..pipelines.choice import INSTALL, dali_version

    version = dali_version()
    if version is None:
        return f"resident alone; sets larger than memory need DALI: {INSTALL}"
    return f"resident, and dali ({version}, decoding JPEGs on the {'GPU' if cuda else 'CPU'}) for what does not fit"


def _losses(device: str) -> str:
    """Who serves the losses on a device, in words."""
    from ..kernels import _dispatch

    try:
        by = _dispatch.server(device)
    except RuntimeError as refused:
        return f"none: {refused}"
    if by == "triton":
        return "Triton kernels" if device == "cuda" else "Triton kernels, interpreted on the CPU"
    return {"closed form": "closed forms in plain torch", "reference": "plain torch (fastssl.kernels.reference)"}[by]


def _absent(report: dict[str, Any]) -> list[str]:
    """Packages that every run needs and that are not installed."""
    return [name for name, extra in environment.PACKAGES.items() if not extra and report["packages"][name] is None]


def _advice(report: dict[str, Any]) -> list[str]:
    """One sentence a fault, each with its mend."""
    advice = []
    if absent := _absent(report):
        advice.append(f"missing, and every run needs it: {', '.join(absent)}; to mend it: pip install {' '.join(absent)}")
    if report["compiler"] is None:
        advice.append(environment.mend_build_tools())
    if report["serves"]["losses"].startswith("none: FASTSSL_KERNELS"):
        advice.append(f"every loss will refuse: {report['serves']['losses'].removeprefix('none: ')}")
    torch = report["torch"]
    if torch and torch["driver"] and not torch["devices"]:
        if torch["cuda"]:
            advice.append(
                f"there is an NVIDIA driver ({torch['driver']}), but torch for CUDA {torch['cuda']} finds no device: update the driver, or "
                "install a torch built for an older CUDA (pytorch.org/get-started)"
            )
        else:
            advice.append("there is an NVIDIA driver, but this torch is built for CPU alone: pip install --force-reinstall torch")
    if report["disk"]["free"] < 1 << 30:
        advice.append(f"less than 1 GiB is free at {report['disk']['path']}: checkpoints may not fit; free some, or set --out elsewhere")
    return advice


def render(report: dict[str, Any]) -> list[str]:
    """The report as lines for people."""
    lines = [f"fastssl {report['fastssl']}   python {report['python']} ({sys.executable})   {report['system']}", "", "packages"]
    for name, version in report["packages"].items():
        extra = environment.PACKAGES.get(name, "")
        lines.append(f"  {name:<20} {version or _missing(name, extra)}")
    torch = report["torch"]
    lines += ["", "machine"]
    bf16 = {True: "bf16 in hardware", False: "bf16 emulated", None: "bf16 support unknown"}[report["cpu"]["bf16"]]
    threads = f", {torch['threads']} torch threads" if torch else ""
    lines.append(f"  {'cpu':<20} {report['cpu']['cores']} cores{threads}, {bf16}")
    for i, device in enumerate(torch["devices"] if torch else ()):
        kind = "bf16 in hardware" if device["bf16"] else "no bf16 in hardware"
        lines.append(f"  {f'cuda:{i}':<20} {device['name']}, {_gib(device['memory'])}, compute capability {device['capability']}, {kind}")
    if not (torch and torch["devices"]):
        lines.append(f"  {'cuda':<20} no device")
    if torch:
        lines.append(f"  {'cuda driver':<20} {torch['driver'] or 'none found'} (torch built for CUDA {torch['cuda'] or 'none: CPU alone'})")
    lines.append(f"  {'c++ compiler':<20} {report['compiler'] or 'none usable'}")
    if report["memory"]:
        lines.append(f"  {'memory':<20} {_gib(report['memory']['available'])} available of {_gib(report['memory']['total'])}")
    lines.append(f"  {'disk':<20} {_gib(report['disk']['free'])} free at {report['disk']['path']}")
    lines += ["", "caches", *(f"  {name:<20} {path}" for name, path in report["caches"].items())]
    lines += ["", "what a run uses here", *(f"  {name:<20} {what}" for name, what in report["serves"].items())]
    lines += ["", "the run asked about", *(f"  {what}" for what in report["run"]["said"])] if "run" in report else []
    lines += ["", *(f"! {sentence}" for sentence in report["advice"])] if report["advice"] else []
    return lines


def _missing(name: str, extra: str) -> str:
    if name == "triton":
        return "missing (comes with torch on Linux; only CUDA devices need it)"
    return f"missing: pip install {name}" + (f" (extra {extra})" if extra else "")


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
