"""The laws of the house, read from the source: floors, doors, names, sizes, and calls that are never made.

Each law is a function from one source to its faults, run on every file that is there and on a small breach of itself.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"kernels": "fastssl.kernels", "pipelines": "fastssl.pipelines", "fastssl": "fastssl"}  # folder -> module

# From the ground up; what shares a line is one floor. cli stands above the commands that it dispatches to.
FLOORS = (
    ("fastssl.kernels",),
    ("fastssl.pipelines",),
    ("fastssl.sections",),
    ("fastssl.config", "fastssl.averages", "fastssl.schedules", "fastssl.distributed", "fastssl.environment"),
    ("fastssl.models",),
    ("fastssl.methods",),
    ("fastssl.engine",),
    ("fastssl.presets",),
    ("fastssl.commands",),
    ("fastssl.cli",),
    ("fastssl.__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Optional package -> the only modules (or rooms) that may import it.
DOORS = {
    "triton": ("fastssl.kernels",),
    "nvidia": ("fastssl.pipelines.dali",),
    "transformers": ("fastssl.pipelines.text", "fastssl.models"),
    "timm": ("fastssl.models",),
    "open_clip": ("fastssl.models",),
    "huggingface_hub": ("fastssl.models.hub",),
    "torchvision": ("fastssl.pipelines.torchvision_sets",),
    "pyarrow": ("fastssl.pipelines.text_table",),
    "h5py": ("fastssl.pipelines.torchvision_sets",),
    "faiss": ("fastssl.methods.bricks",),
    "matplotlib": ("fastssl.engine.report", "fastssl.engine.grid_table", "fastssl.models"),
    "jinja2": ("fastssl.engine.report",),
    "torchao": ("fastssl.models.fp8",),
    "tensorboard": ("fastssl.engine.report",),
    "wandb": ("fastssl.engine.report",),
}


class Source(NamedTuple):
    path: Path  # from the root
    module: str  # "" outside the package
    package: str  # what a relative import starts from
    tree: ast.Module


def parse(path: str, text: str) -> Source:
    """A Source of `text` as if it stood at `path`, from the root."""
    first, *rest = Path(path).with_suffix("").parts
    module = ".".join([PACKAGES[first], *rest]) if first in PACKAGES and rest else ""
    if module.endswith(".__init__"):
        module = module.removesuffix(".__init__")
        return Source(Path(path), module, module, ast.parse(text))
    return Source(Path(path), module, module.rpartition(".")[0], ast.parse(text))


def files(*folders: str) -> list[Path]:
    found = (path.relative_to(ROOT) for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in found if "__pycache__" not in path.parts]


def read(paths: list[Path]) -> list[Source]:
    return [parse(str(path), (ROOT / path).read_text(encoding="utf-8")) for path in paths]


INSIDE = read(files(*PACKAGES))
EVERYWHERE = INSIDE + read([Path("setup.py"), *files("tests", "bench")])
MODULES = {source.module for source in INSIDE}
SAME = {("semikd", "finessl"), ("simclrv2", "simclr")}  # methods that are another one, with more
METHOD_NAMES = {s.path.stem for s in INSIDE if s.path.parent.as_posix() == "fastssl/methods"} - {"__init__", "base", "thresholded", "user"}


def imports(source: Source) -> Iterator[tuple[int, str, bool]]:
    """(line, dotted target, whether relative) of every import at any depth, import_module("literal") among them."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = source.package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                is_room = base == "fastssl" and inner in FLOOR
                yield node.lineno, inner if is_room or inner in MODULES else base, node.level > 0
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                relative = name.value.startswith(".")
                yield node.lineno, source.package + name.value if relative else name.value, relative


def room(module: str) -> str:
    """ "fastssl.methods.finessl" -> "fastssl.methods"."""
    return ".".join(module.split(".")[:2])


def floors(source: Source) -> Iterator[str]:
    """A room imports rooms below it, or itself."""
    own = room(source.module)
    if own == "fastssl":  # the root package wakes rooms by name only, lazily
        return
    if own not in FLOOR:
        yield f"{source.path}: {own} has no floor; add it to FLOORS in tests/test_house.py and to docs/architecture.md"
        return
    for line, target, _ in imports(source):
        if target.startswith("fastssl.") and room(target) != own and FLOOR.get(room(target), 99) >= FLOOR[own]:
            yield f"{source.path}:{line}: {own} imports {target}, which is not below it"


def grounds(source: Source) -> Iterator[str]:
    """kernels/ and pipelines/ import relatively; kernels/ otherwise torch, triton and the standard library alone."""
    own = room(source.module)
    if own not in ("fastssl.kernels", "fastssl.pipelines"):
        return
    for line, target, relative in imports(source):
        top = target.split(".")[0]
        # kernels/__init__.py hands fastssl.kernels to whoever imports it by its bare name.
        handover = source.module == own == target == "fastssl.kernels"
        if not relative and top == "fastssl" and not handover:
            yield f"{source.path}:{line}: import {target} relatively"
        if own == "fastssl.kernels" and top not in {"fastssl", "torch", "triton", *sys.stdlib_module_names}:
            yield f"{source.path}:{line}: kernels import {target}; torch and triton alone are allowed"


def methods_apart(source: Source) -> Iterator[str]:
    """Of its own room a method imports the two bases and bricks; a brick imports bricks."""
    if room(source.module) != "fastssl.methods" or source.module == "fastssl.methods":
        return
    bricks = source.module.startswith("fastssl.methods.bricks")
    bases = ("fastssl.methods.base", "fastssl.methods.thresholded", "fastssl.methods.bricks")
    allowed = ("fastssl.methods.bricks",) if bricks else bases
    for line, target, _ in imports(source):
        if target == "fastssl.methods" and not bricks:
            continue  # the registry: a method that carries another one asks for it by name
        if (source.module.removeprefix("fastssl.methods."), target.removeprefix("fastssl.methods.")) in SAME:
            continue  # is FineSSL, with a teacher
        if room(target) == "fastssl.methods" and not target.startswith(allowed):
            yield f"{source.path}:{line}: imports {target}; what two methods share belongs in bricks/"


def nameless_engine(source: Source) -> Iterator[str]:
    """The engine knows no method by name."""
    if room(source.module) == "fastssl.engine":
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Constant) and node.value in METHOD_NAMES:
                yield f"{source.path}:{node.lineno}: the engine names the method '{node.value}'"


def doors(source: Source) -> Iterator[str]:
    """An optional package is imported behind its one door."""
    for line, target, _ in imports(source):
        allowed = DOORS.get(target.split(".")[0])
        if source.module and allowed is not None and not any(f"{source.module}.".startswith(f"{door}.") for door in allowed):
            yield f"{source.path}:{line}: imports {target}; only {', '.join(allowed)} may"


def bare_names(source: Source) -> Iterator[str]:
    """Nobody imports kernels or pipelines by their folder's name."""
    for line, target, relative in imports(source):
        if not relative and target.split(".")[0] in ("kernels", "pipelines"):
            yield f"{source.path}:{line}: write fastssl.{target}"


def dangers(source: Source) -> Iterator[str]:
    """No call runs what a file, a configuration or a name holds."""
    if not source.module:
        return
    calls = {"pickle.load", "pickle.loads", "pickle.Unpickler", "torch.export.load", "torch.hub.load", "joblib.load", "eval", "exec"}
    calls |= {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "marshal.loads", "shelve.open"}
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        what = None
        if name == "torch.load" and options.get("weights_only") is not True:
            what = "torch.load without weights_only=True"
        elif name in calls or name.endswith(".extractall"):
            what = f"{name}()"
        else:
            what = next((f"{key}=True" for key in ("shell", "allow_pickle", "trust_remote_code") if options.get(key) is True), None)
        if what:
            yield f"{source.path}:{node.lineno}: {what}"


def names(source: Source) -> Iterator[str]:
    """No drawer for everything."""
    if source.path.stem in ("utils", "util", "helpers", "misc", "common"):
        yield f"{source.path}: name it by what it does"


# A law, the file where a breach of it would stand, the breach, and how many faults must be found in it.
BREACHES: list[tuple[Callable[[Source], Iterator[str]], str, str, int]] = [
    (floors, "fastssl/models/x.py", "from ..engine import run\nfrom ..schedules import Clock\nfrom ..methods.base import Method", 2),
    (floors, "fastssl/config.py", "def f():\n    from .schedules import Clock\n    from fastssl import environment", 2),
    (floors, "pipelines/x.py", "from ..config import RunConfig\nfrom ..kernels import cross_entropy\nfrom .batch import Batch", 1),
    (floors, "fastssl/attic.py", "", 1),
    (floors, "fastssl/commands/x.py", "import importlib\nimportlib.import_module('fastssl.cli')\nfrom ..engine import run", 1),
    (grounds, "kernels/x.py", "import numpy as np\nimport torch\nfrom .reference import f\nfrom fastssl.kernels import g", 2),
    (grounds, "pipelines/x.py", "import numpy\nfrom fastssl.kernels import f\nfrom ..kernels import g", 1),
    (methods_apart, "fastssl/methods/x.py", "from .fixmatch import FixMatch\nfrom .base import Method\nfrom ..models import Output", 1),
    (methods_apart, "fastssl/methods/bricks/x.py", "from ..base import Method\nfrom .y import f", 1),
    (nameless_engine, "fastssl/engine/x.py", "if name == 'fixmatch':\n    pass", 1),
    (doors, "fastssl/engine/x.py", "import timm\nfrom triton import language\nimport torch", 2),
    (doors, "fastssl/models/x.py", "import timm\nfrom nvidia import dali", 1),
    (bare_names, "tests/x.py", "import kernels\nfrom pipelines.batch import Batch\nfrom fastssl.kernels import f", 2),
    (dangers, "fastssl/x.py", "torch.load(f)\ntorch.load(f, weights_only=False)\ntorch.load(f, weights_only=True)\nmodel.eval()", 2),
    (
        dangers,
        "fastssl/x.py",
        "eval(s)\nyaml.load(s)\nrun(c, shell=True)\ntar.extractall()\nnp.load(f, allow_pickle=True)\nyaml.safe_load(s)",
        5,
    ),
    (names, "fastssl/utils.py", "", 1),
]
LAWS = list(dict.fromkeys(law for law, *_ in BREACHES))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law_holds(law: Callable[[Source], Iterator[str]]) -> None:
    faults = [fault for source in EVERYWHERE if source.module or law in (bare_names, names) for fault in law(source)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(("law", "path", "text", "faults"), BREACHES, ids=lambda value: getattr(value, "__name__", None))
def test_law_sees_its_breach(law: Callable[[Source], Iterator[str]], path: str, text: str, faults: int) -> None:
    assert len(list(law(parse(path, text)))) == faults


def test_the_house_was_read() -> None:
    expected = {"fastssl", "fastssl.kernels", "fastssl.kernels.reference", "fastssl.pipelines.batch", "fastssl.config", "fastssl.cli"}
    expected |= {"fastssl.models", "fastssl.methods.base", "fastssl.engine.step", "fastssl.commands.doctor", "fastssl.__main__"}
    assert expected <= MODULES
    assert {"supervised", "fixmatch", "finessl"} <= METHOD_NAMES


def test_every_folder_is_a_package() -> None:
    """A folder without __init__.py would be left out of the wheel."""
    folders = {source.path.parent for source in INSIDE}
    assert not [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").is_file()]


def test_files_stay_small() -> None:
    lengths = {source.path: len((ROOT / source.path).read_text(encoding="utf-8").splitlines()) for source in EVERYWHERE}
    assert not {str(path): length for path, length in lengths.items() if length > 300}, "300 lines is the ceiling: split by purpose"


def test_no_path_of_one_machine() -> None:
    machine = re.compile(r"/(?:work|farm)/[a-z]|/(?:home|Users)/[a-z]+/")
    texts = [ROOT / source.path for source in EVERYWHERE] + [*ROOT.glob("*.*"), *ROOT.glob("docs/*"), ROOT / ".ci" / "run"]
    texts = [path for path in texts if path.suffix in (".py", ".md", ".toml", ".in", ".cfg", "") and path.is_file()]
    assert len(texts) > len(EVERYWHERE)
    found = [f"{path.relative_to(ROOT)}: {hit.group()}" for path in texts for hit in machine.finditer(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_ruff_is_clean() -> None:
    pytest.importorskip("ruff", reason="ruff comes with the test extra: pip install '.[test]'")
    here = [name for name in ("setup.py", "fastssl", "kernels", "pipelines", "tests", "bench") if (ROOT / name).exists()]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", *here], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
