"""The wheel and the editable install carry the whole house, and both import from anywhere."""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from fastssl import environment

CHECK = """
import fastssl, fastssl.kernels, fastssl.kernels.reference, fastssl.pipelines.batch, fastssl.commands.doctor
from pathlib import Path
where = Path({where!r}).resolve()
for module in (fastssl, fastssl.kernels, fastssl.kernels.reference, fastssl.pipelines.batch):
    assert where in Path(module.__file__).resolve().parents, module.__file__
weights = Path(fastssl.__file__).parent / "models" / "weights"
assert list(weights.glob("*.safetensors")), weights
print(fastssl.__version__)
"""


@pytest.fixture(scope="module")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads: building in the tree would leave build/ there, and read what an older one left."""
    copy = tmp_path_factory.mktemp("source") / "fastssl"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    for name in ("fastssl", "kernels", "pipelines"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def pip(*args: str, cwd: Path) -> None:
    """pip without the network: nothing but this project is built or installed."""
    done = subprocess.run([sys.executable, "-m", "pip", *args], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out), ".", cwd=source)
    (wheel,) = out.glob("fastssl-*.whl")
    return wheel


def test_wheel_carries_every_file(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        size = sum(entry.file_size for entry in archive.infolist() if entry.filename.endswith(".safetensors"))
    wanted = set()
    for folder, package in {"fastssl": "fastssl", "kernels": "fastssl/kernels", "pipelines": "fastssl/pipelines"}.items():
        paths = [p for pattern in ("*.py", "*.safetensors") for p in (root / folder).rglob(pattern)]
        wanted |= {f"{package}/{path.relative_to(root / folder).as_posix()}" for path in paths}
    assert len(wanted) > 20 and wanted <= inside, sorted(wanted - inside)
    assert not [name for name in inside if name.split("/")[0] in ("kernels", "pipelines", "tests", "bench")]
    assert 0 < size <= 4 << 20, "the built-in encoder is at most 4 MiB"
    assert [name for name in inside if name.endswith("/LICENSE")]


def test_wheel_imports_from_elsewhere(wheel: Path, tmp_path: Path, python) -> None:
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=elsewhere)
    code = f"import sys; sys.path.insert(0, {str(target)!r})\n" + CHECK.format(where=str(target))
    assert python("-c", code, cwd=elsewhere).stdout.strip() == wheel.name.split("-")[1]


def test_root_wins_beside_a_wheel(wheel: Path, tmp_path: Path, root: Path, python) -> None:
    """From the root, with a wheel installed too, every room comes from the root: never half of each."""
    pip("install", "--no-deps", "--no-index", "--target", str(tmp_path), str(wheel), cwd=tmp_path)
    python("-c", f"import sys; sys.path.append({str(tmp_path)!r})\n" + CHECK.format(where=str(root)), cwd=root)


def test_editable_install_imports_from_elsewhere(source: Path, tmp_path: Path, python) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site), "--editable", str(source), cwd=elsewhere)
    # site.addsitedir reads the .pth file through which setuptools hooks an editable package in, as an interpreter's start does.
    # The tests' own environment may hold a wheel, which a real editable install would have replaced: the hook goes before it.
    first = "sys.meta_path.sort(key=lambda finder: 'Editable' not in getattr(finder, '__name__', ''))"
    code = f"import site, sys; site.addsitedir({str(site)!r}); {first}\n" + CHECK.format(where=str(source))
    python("-c", code, cwd=elsewhere)


def test_help_answers_at_once(python) -> None:
    """The median of three starts takes less than half a second of a core, so that no room wakes for a question about flags."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "train" in python("-m", "fastssl", "--help").stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(seconds) < 0.5, seconds


def test_help_wakes_no_torch(python) -> None:
    code = "import sys, fastssl.cli\ntry:\n    fastssl.cli.main(['--help'])\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    assert python("-c", code).stdout.splitlines()[-1] == "False"


def test_doctor_knows_the_extras(root: Path) -> None:
    """The table that doctor prints equals pyproject.toml's dependencies and extras."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = {"": project["dependencies"]} | project["optional-dependencies"]
    told = {name: {d for d, extra in environment.PACKAGES.items() if extra == name} for name in set(environment.PACKAGES.values())}
    for extra, requirements in extras.items():
        names = {requirement.split(";")[0].split(">")[0].strip() for requirement in requirements}
        if extra in ("test", "all"):
            continue
        assert told[extra] == names - {"pytest"}, extra
    assert project["optional-dependencies"]["all"] == ["fastssl[vision,text,dali,report,track,faiss]"]
