"""What importing wakes, and what the bare names `kernels` and `pipelines` mean from the repository's root."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

OPTIONAL = ("triton", "nvidia", "transformers", "timm", "open_clip", "torchvision", "matplotlib", "jinja2", "tensorboard", "wandb")
HEAVY = (*OPTIONAL, "sklearn", "PIL", "yaml", "rich", "safetensors", "fastssl.pipelines", "fastssl.models")

# BERT of two tiny random layers: its module is among those that ask transformers for the package named `kernels`.
BERT = """
import torch
from transformers import BertConfig, BertModel
config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
out = BertModel(config).eval()(torch.arange(6)[None]).last_hidden_state
assert out.shape == (1, 6, 16) and out.isfinite().all()
"""


def test_import_fastssl_wakes_nothing(python) -> None:
    done = python("-c", f"import sys, fastssl; print(sorted(set(sys.modules) & set({(*HEAVY, 'torch', 'numpy')!r})))")
    assert done.stdout.strip() == "[]"


def test_import_kernels_needs_torch_alone(python) -> None:
    """numpy is left out of the list: torch imports it by itself where it finds it. So is triton: torch may look for it."""
    heavy = tuple(name for name in HEAVY if name != "triton")
    code = f"import sys, torch, fastssl.kernels; print(sorted(set(sys.modules) & set({heavy!r})), torch.cuda.is_initialized())"
    assert python("-c", code).stdout.split() == ["[]", "False"]


def test_lazy_names(python) -> None:
    code = "import fastssl; assert fastssl.kernels.__name__ == 'fastssl.kernels'; assert 'pipelines' in dir(fastssl); fastssl.attic"
    assert "has no attribute 'attic'" in python("-c", code, code=1).stderr


def behind_triton(folder: Path) -> set[str]:
    """The modules of kernels/ that import triton at their top, or one that does."""
    imports: dict[str, set[str]] = {}
    for path in folder.glob("*.py"):
        body = ast.parse(path.read_text()).body
        names = {a.name.split(".")[0] for n in body if isinstance(n, ast.Import) for a in n.names}
        local = [n for n in body if isinstance(n, ast.ImportFrom) and n.level == 1]
        names |= {n.module for n in local if n.module} | {a.name for n in local if not n.module for a in n.names}
        imports[path.stem] = names
    behind = {"triton"}
    while more := {name for name, names in imports.items() if names & behind} - behind:
        behind |= more
    return behind - {"triton"}


def test_every_module_imports_without_the_optional_packages(root: Path, python) -> None:
    """Doors open inside functions: only files of Triton kernels may import their optional package at the top."""
    folders = {"kernels": "fastssl.kernels", "pipelines": "fastssl.pipelines", "fastssl": "fastssl"}
    behind = behind_triton(root / "kernels")
    modules = []
    for folder, package in folders.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if parts[-1] != "__main__" and not (folder == "kernels" and path.stem in behind):
                modules.append(".".join([package, *parts]).removesuffix(".__init__"))
    assert {"_dispatch", "_closed_form", "modules", "reference", "method_losses"}.isdisjoint(behind)
    assert len(modules) > 20
    code = f"""
import importlib, importlib.abc, sys
class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Wall())
for name in {modules!r}:
    importlib.import_module(name)
"""
    python("-c", code)


def test_bare_kernels_is_fastssl_kernels(python) -> None:
    """One copy, whichever name comes first, and no version by which another package could take it for the hub's `kernels`."""
    python("-c", "import kernels, fastssl.kernels, sys; assert kernels is fastssl.kernels is sys.modules['kernels']")
    python("-c", "import fastssl.kernels, kernels; assert kernels is fastssl.kernels; assert not hasattr(kernels, '__version__')")
    code = "import kernels, fastssl.kernels; from kernels import cross_entropy as f; assert f is fastssl.kernels.cross_entropy"
    python("-c", code)
    # No half of a second copy either: what `kernels/` imports from itself is loaded under fastssl's name alone.
    python("-c", "import sys, kernels; assert not [name for name in sys.modules if name.startswith('kernels.')]")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["before", "after", "bare"])
def test_transformers_bert_beside_the_folder_kernels(order: str, python) -> None:
    pytest.importorskip("transformers", reason="transformers comes with the test extra: pip install '.[test]'")
    import_ours = "import fastssl.kernels\n" if order != "bare" else "import kernels, fastssl.kernels\n"
    python("-c", BERT + import_ours if order == "before" else import_ours + BERT)


def test_python_m_fastssl(python) -> None:
    assert "train" in python("-m", "fastssl", "--help").stdout


@pytest.mark.slow
def test_torchrun_from_the_root(python) -> None:
    done = python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "fastssl", "--help", OMP_NUM_THREADS="1")
    assert "train" in done.stdout
