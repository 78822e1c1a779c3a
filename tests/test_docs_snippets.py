"""docs/losses.md keeps its word: every Python block runs as it stands, and what it is there to show has happened."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fastssl.kernels as public

Names = dict[str, Any]
PAGE = Path(__file__).resolve().parent.parent / "docs" / "losses.md"


def python_blocks(text: str) -> dict[str, str]:
    """Heading, with a number from a section's second block on -> the block, its lines numbered as in the page."""
    found: dict[str, str] = {}
    heading = ""
    for part in re.finditer(r"^#+ (?P<heading>[^\n]*)$|^```python\n(?P<code>.*?)^```$|^```.*?^```$", text, flags=re.M | re.S):
        heading = part["heading"] or heading
        if part["code"] is not None:
            number = sum(name.startswith(heading) for name in found) + 1
            found[heading if number == 1 else f"{heading} {number}"] = "\n" * text.count("\n", 0, part.start("code")) + part["code"]
    return found


BLOCKS = python_blocks(PAGE.read_text(encoding="utf-8"))


def kekmodel(names: Names) -> None:
    torch.testing.assert_close(names["new"], names["old"])
    assert 0 < names["new_kept"] < 1 and names["new"] > 0
    moved = [not torch.equal(a, b) for a, b in zip(names["model"].parameters(), names["start"].parameters(), strict=True)]
    assert all(moved)
    rows = torch.arange(names["GROUPS"] * 2)
    spread = names["interleave"](rows)
    assert not torch.equal(spread, rows) and torch.equal(names["deinterleave"](spread), rows)
    # The pseudo-label block matters: without it the step goes elsewhere.
    alone = names["copy"].deepcopy(names["start"])
    names["train_step"](alone, names["images"], names["targets"], lambda s, w: (s.sum() * 0, 0))
    assert not all(torch.allclose(a, b) for a, b in zip(alone.parameters(), names["model"].parameters(), strict=True))


def plain_loop(names: Names) -> None:
    history, kept = torch.stack(names["history"]), torch.stack(names["kept"])
    assert kept[0] < 0.5 < kept[-50:].mean()
    assert history[-20:].mean() < history[0] / 4
    assert names["accuracy"] > 0.95


def hf_trainer(names: Names) -> None:
    trainer, losses = names["trainer"], names["losses"]
    assert trainer.state.global_step == 150 and len(losses) == 6 and losses[-1] < losses[0] / 2
    batch = torch.utils.data.default_collate(names["data"][:4])
    # Ours is the model's own labelled loss, outside training nothing else.
    model = trainer.model.eval()
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(model, dict(batch), return_outputs=True)
        theirs = model(input_ids=batch["input_ids"], labels=batch["labels"])
    torch.testing.assert_close((loss, outputs.logits), (theirs.loss, theirs.logits))
    # In training there is more, and the Trainer divides it by the accumulation steps.
    model.train()
    torch.manual_seed(0)
    whole = trainer.compute_loss(model, dict(batch)).detach()
    trainer.current_gradient_accumulation_steps = 4
    torch.manual_seed(0)
    torch.testing.assert_close(trainer.training_step(model, dict(batch), num_items_in_batch=torch.tensor(16)), whole / 4)
    # The weak view teaches, the strong one learns. Same seed, so the same dropout.
    torch.manual_seed(0)
    labelled = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    confidence, label = model(input_ids=batch["weak_ids"].flatten(0, 1)).logits.softmax(1).max(1)
    rows = F.cross_entropy(model(input_ids=batch["strong_ids"].flatten(0, 1)).logits, label, reduction="none")
    unlabelled = (rows * (confidence >= 0.7)).mean()
    assert unlabelled > 0
    torch.testing.assert_close(whole, (labelled + unlabelled).detach())


def loss_and_gradient(names: Names) -> None:
    torch.testing.assert_close(names["rows"].loss.mean(), names["autograd_loss"].detach())
    assert 0 < names["rows"].weight.mean() < 1
    images, targets, model = names["images"], names["targets"], names["model"]
    labelled = torch.autograd.grad(F.cross_entropy(model(images), targets), list(model.parameters()))
    torch.testing.assert_close(names["joint"], [a + b for a, b in zip(names["alone"], labelled, strict=True)])
    assert all(gradient.abs().sum() > 0 for gradient in names["alone"])
    assert names["loss"] > names["autograd_loss"]


def finessl(names: Names) -> None:
    assert 0 < names["kept"].sum() < len(names["kept"]) and names["margin"].max() == 8
    leaves = [names[name] for name in ("z_x", "a_x", "z_s", "a_s")]
    ours, theirs = (torch.autograd.grad(names[name], leaves) for name in ("loss", "by_hand"))
    torch.testing.assert_close(ours, theirs)
    assert all(gradient.abs().sum() > 0 for gradient in ours)
    torch.testing.assert_close(names["counts"].sum(), 21 + names["kept"].sum().float())


def flexmatch_memory(names: Names) -> None:
    memory, rows = names["memory"], names["rows"]
    assert 0 < (memory.last < 3).sum() < 100 and list(memory.state_dict()) == ["last"] and names["student"].grad.abs().sum() > 0
    sure = rows.confidence >= 0.95
    assert torch.equal(memory.last[names["index"]][sure], rows.label[sure])
    # The published anchors: nothing known, all pass; 40 and 10 of 100 known, 2/3 and 1/9 of tau.
    fresh = names["LastLabels"](100, 2)
    assert fresh.threshold().tolist() == [0, 0]
    fresh.last[:40], fresh.last[40:50] = 0, 1
    torch.testing.assert_close(fresh.threshold() / 0.95, torch.tensor([2 / 3, 1 / 9]))


def running_means(names: Names) -> None:
    assert all(torch.isfinite(names[name]) and names[name] > 0 for name in ("free", "soft", "ada"))
    assert 1 / 3 < names["tau"] < 1 / 3 + 0.005 and 0.99 < names["variance"] < 1
    torch.testing.assert_close(names["tau"], names["mean"])
    for marginal in ("unlabelled_marginal", "labelled_marginal"):
        assert names[marginal].sum().item() == pytest.approx(1) and names[marginal].std() > 0
    # Thresholds start low, so all rows of FreeMatch count; AdaMatch's do not.
    everything = F.cross_entropy(names["student"], names["teacher"].argmax(1))
    torch.testing.assert_close(names["free"], everything)
    assert names["ada"] < everything


def compiled(names: Names) -> None:
    assert names["compiled"] > 0 and all(gradient.abs().sum() > 0 for gradient in names["gradients"][1])
    assert names["unlabelled"](*(names["model"](view).detach() for view in names["batch"][:1:-1])) > 0


def replaced_cross_entropy(names: Names) -> None:
    values = [names[name].item() for name in ("plain", "smoothed", "weighted", "towards_soft", "ignoring")]
    assert len(set(values)) == 5 and min(values) > 0


def special_numbers(names: Names) -> None:
    assert names["rows"].weight[[0, 2]].tolist() == [0, 0] and names["rows"].weight[1].isnan() and names["rows"].weight[3] == 1


def refusals(names: Names) -> None:
    assert list(names["messages"]) == list(names["refused"])
    assert "did you mean threshold?" in names["messages"]["an unknown option"]
    assert "pass teacher.detach()" in names["messages"]["a teacher that requires grad"]


CHECKS: dict[str, Callable[[Names], None]] = {
    "FixMatch, in the style of kekmodel's trainer": kekmodel,
    "A plain PyTorch loop": plain_loop,
    "Hugging Face's Trainer": hf_trainer,
    "Loss and gradient at once": loss_and_gradient,
    "FineSSL": finessl,
    "Thresholds with a memory": flexmatch_memory,
    "Thresholds with a memory 2": running_means,
    "torch.compile": compiled,
    "In place of nn.CrossEntropyLoss": replaced_cross_entropy,
    "What to expect": special_numbers,
    "What to expect 2": refusals,
}
NEEDS_COMPILER = {"torch.compile"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Away from the repository, so that what a block writes is gone with the test; nothing asked of the kernels; seeds put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTSSL_KERNELS", raising=False)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.compiler] if name in NEEDS_COMPILER else []) for name in BLOCKS])
def test_block_runs_and_shows_what_it_says(name: str) -> None:
    names: Names = {"__name__": "snippet"}
    exec(compile(BLOCKS[name], str(PAGE), "exec"), names)
    CHECKS[name](names)


def test_no_block_is_without_its_check() -> None:
    assert list(BLOCKS) == list(CHECKS)
    assert len(re.findall(r"^ *```", PAGE.read_text(encoding="utf-8"), flags=re.M)) == 2 * (len(BLOCKS) + 1), "python blocks and one of sh"


def test_every_loss_is_named() -> None:
    """The page names every module, and its table's calls are the modules' own defaults."""
    text = PAGE.read_text(encoding="utf-8")
    modules = [
        name for name in public.__all__ if isinstance(getattr(public, name), type) and issubclass(getattr(public, name), torch.nn.Module)
    ]
    assert len(modules) >= 13 and not [name for name in modules if name not in text]
    for made in re.findall(r"`(\w+Loss\([^()]*\))\(", text):
        name, arguments = made[:-1].split("(")
        if name in modules and "=" in arguments and not name.startswith(("PseudoLabel", "Consistency")):
            module = eval(made, {name: getattr(public, name)})
            assert repr(module) == repr(getattr(public, name)()), made


def test_the_block_finder_sees_all() -> None:
    text = "# A\n```python\na\n```\n```sh\n# no heading\n```\n```python\nb\n```\n## B\n```python\nc\n```\n"
    assert {name: code.strip() for name, code in python_blocks(text).items()} == {"A": "a", "A 2": "b", "B": "c"}
