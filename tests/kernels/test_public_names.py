"""What `fastssl.kernels` hands out, in what signature, on what it depends, and who serves it."""

from __future__ import annotations

import inspect

import pytest
import torch

import fastssl.kernels as public
from fastssl.kernels import finessl_loss, method_losses, modules, reference

FUNCTIONS = ("pseudo_label_loss", "pseudo_label_loss_and_grad", "cross_entropy", "consistency_loss", "class_statistics")
TUPLES = {
    "PseudoLabel": ("loss", "label", "confidence", "weight"),
    "ClassStatistics": ("mean_probability", "histogram", "confidence_mean", "confidence_var"),
}
MODULES = {
    modules: ("PseudoLabelLoss", "BalancedMarginCrossEntropy", "ConsistencyLoss"),
    method_losses: ("FixMatchLoss", "SmoothFixMatchLoss", "UDALoss", "FlexMatchLoss", "FreeMatchLoss", "SoftMatchLoss", "AdaMatchLoss")
    + ("MeanTeacherLoss", "PiModelLoss"),
    finessl_loss: ("FineSSLLoss",),
}
PSEUDO = "threshold=0.95, weighting='step', power=1.0, variance=None, judge=None, temperature=None, align=None, align_for='both', "
PSEUDO += "margin=None, adjust=None, smoothing=0.0, sample_weight=None)"
SIGNATURES = {
    "pseudo_label_loss": f"(student, teacher, *, {PSEUDO}",
    "pseudo_label_loss_and_grad": f"(student, teacher, *, scale, {PSEUDO}",
    "cross_entropy": "(logits, target, *, margin=None, smoothing=0.0, class_weight=None, adjust=None, sample_weight=None)",
    "consistency_loss": "(student, teacher, *, kind='mse', temperature=1.0, sample_weight=None, teacher_grad=False, teacher_is='logits')",
    "class_statistics": "(teacher, *, threshold=None)",
}


def test_the_losses_and_their_tuples_and_nothing_else() -> None:
    assert sorted(public.__all__) == sorted((*FUNCTIONS, *TUPLES, *(name for names in MODULES.values() for name in names)))
    for name, fields in TUPLES.items():
        assert getattr(public, name)._fields == fields and getattr(public, name) is getattr(reference, name)
    for room, names in MODULES.items():
        for name in names:
            assert getattr(public, name) is getattr(room, name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures(name: str) -> None:
    for room in (public, reference):
        signature = inspect.signature(getattr(room, name))
        bare = signature.replace(
            parameters=[p.replace(annotation=p.empty) for p in signature.parameters.values()], return_annotation=signature.empty
        )
        assert str(bare) == SIGNATURES[name]
    assert getattr(public, name).__doc__


def test_the_reference_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSSL_KERNELS", "reference")
    assert public.cross_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)).item() == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "message"), [("triton", "FASTSSL_KERNELS=triton, but"), ("cuda", "must be triton or reference; got 'cuda'")]
)
def test_what_cannot_serve_is_refused(asked: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never the reference in silence, where something else was asked for."""
    monkeypatch.setenv("FASTSSL_KERNELS", asked)
    x = torch.zeros(1, 2)
    for call in (
        lambda: public.pseudo_label_loss(x, x),
        lambda: public.pseudo_label_loss_and_grad(x, x, scale=1.0),
        lambda: public.cross_entropy(x, x),
        lambda: public.consistency_loss(x, x),
        lambda: public.class_statistics(x),
        lambda: public.PseudoLabelLoss()(x, x),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


def test_torch_alone_is_needed(python) -> None:
    """With everything walled off but the standard library and torch with its own requirements, the losses import and run."""
    code = """
import importlib.abc, sys, sysconfig, torch
before = set(sys.modules)
class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in {*sys.stdlib_module_names, "fastssl", "torch"}:
            raise ModuleNotFoundError(f"walled off: {name!r}", name=name)
for name in [n for n in sys.modules if n.split(".")[0] in ("numpy", "triton")]:
    sys.modules[name] = None  # whoever imports it now fails
sys.meta_path.insert(0, Wall())
from fastssl.kernels import PseudoLabelLoss, pseudo_label_loss
x = torch.zeros(4, 3, requires_grad=True)
PseudoLabelLoss(threshold=0.1)(x, x.detach()).backward()
assert x.grad is not None
new = {n.split(".")[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names)
assert new <= {"fastssl", "torch"}, new
"""
    python("-c", code)
    # In an environment that never saw numpy, torch itself falls back; so must we.
    walled = "class Wall:\n    def find_spec(self, name, path=None, target=None):\n"
    walled += "        if name.split('.')[0] in ('numpy', 'triton', 'timm', 'transformers', 'PIL'):\n"
    walled += "            raise ModuleNotFoundError(f'walled off: {name!r}', name=name)\n"
    python(
        "-W", "ignore", "-c", f"import sys\n{walled}sys.meta_path.insert(0, Wall())\nimport fastssl.kernels as k\nassert k.cross_entropy"
    )


def test_bare_kernels_is_this_one_copy(python) -> None:
    code = "import kernels, sys, fastssl.kernels as ours; assert kernels is ours is sys.modules['kernels']; "
    code += "assert kernels.__name__ == 'fastssl.kernels' and not hasattr(kernels, '__version__'); "
    code += "from kernels import PseudoLabel; assert PseudoLabel is ours.reference.PseudoLabel; "
    code += "assert [n for n in sys.modules if n.split('.')[0] == 'kernels'] == ['kernels']"
    python("-c", code)
