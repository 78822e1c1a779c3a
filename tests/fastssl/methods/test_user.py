"""A method of the user's own: docs/your_method.md's as it stands, by command from a folder of its own; and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fastssl import methods
from fastssl.cli import main
from fastssl.pipelines.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "your_method.md").read_text(encoding="utf-8")
(SOURCE,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S)
SMALL = ["--labels-per-class", "2", "--batch-size", "4", "--ratio", "1", "--device", "cpu", "--quiet"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The user's working folder, holding my_file.py; what was imported from it is forgotten afterwards."""
    (tmp_path / "my_file.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def fastssl(folder, *words):
    """The installed command as a shell would run it: nothing but the package is on Python's path, not the folder that it runs in."""
    code = "import sys; from fastssl.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_page_holds_a_whole_method_in_under_forty_lines():
    lines = [line for line in SOURCE.splitlines() if line.strip()]
    assert len(SOURCE.splitlines()) < 40 and len(lines) > 20
    assert re.search(r"^fastssl train --method my_file:MyMethod --steps 3 ", PAGE, flags=re.M)


def test_the_pages_commands_run_from_the_users_folder(folder):
    commands = re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.M | re.S)[0].splitlines()
    shown, trained, judged = (fastssl(folder, *command.split()[1:]) for command in commands)
    assert (shown.returncode, trained.returncode, judged.returncode) == (0, 0, 0), shown.stderr + trained.stderr + judged.stderr
    assert shown.stdout.startswith("my_file:MyMethod: predictions more confident") and "--set method.momentum=0.99" in shown.stdout
    assert "unlabelled weak, strong" in shown.stdout
    config = yaml.safe_load((folder / "my_run" / "config.yaml").read_text())
    assert config["method"] == {"name": "my_file:MyMethod", "lambda_u": 2.0, "momentum": 0.99}
    assert "unlabelled kept" in trained.stdout and json.loads((folder / "my_run" / "STATUS.json").read_text())["state"] == "finished"
    assert judged.stdout.startswith("accuracy")


def test_a_run_resumes_bit_for_bit_and_is_judged_without_the_method(folder, capsys):
    train = ["train", "--method", "my_file:MyMethod", "--steps", "4", *SMALL]
    assert main([*train, "--out", "whole"]) == 0
    assert main([*train, "--set", "train.stop_at=2"]) == 0
    assert "run: runs/MyMethod-digits-1" in capsys.readouterr().out
    run = folder / "runs" / "MyMethod-digits-1"
    assert main(["train", "--resume", str(run), "--quiet"]) == 0
    from fastssl.engine import checkpoint

    whole, parts = (checkpoint.newest(at / "checkpoints")[0]["method"] for at in (folder / "whole", run))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    assert whole["confidence"] != 0.1, "memory was written"

    (folder / "my_file.py").write_text("raise RuntimeError('nobody may ask for me')")
    del sys.modules["my_file"]
    assert main(["eval", str(run)]) == 0
    assert main(["export", str(run), "--out", str(folder / "net.safetensors")]) == 0 and "my_file" not in sys.modules
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 2
    assert "RuntimeError: nobody may ask for me (my_file.py, line 1)" in capsys.readouterr().err


def test_another_method_is_no_resume(folder, capsys):
    assert main(["train", "--method", "my_file:MyMethod", "--steps", "2", *SMALL, "--set", "train.stop_at=1", "--out", "run"]) == 0
    assert main(["train", "--resume", "run", "--method", "fixmatch"]) == 6
    assert "holds a run of my_file:MyMethod, not fixmatch" in capsys.readouterr().err


def test_the_options_are_checked_like_ours(folder, capsys):
    for setting, said in (("lamda_u=1", "did you mean method.lambda_u"), ("momentum=2", "at most 1"), ("lambda_u=x", "must be a number")):
        assert main(["train", "--method", "my_file:MyMethod", "--set", f"method.{setting}"]) == 2
        assert said in capsys.readouterr().err
    assert main(["methods", "show", "my_file:MyMethod", "--json"]) == 0
    assert [option["option"] for option in json.loads(capsys.readouterr().out)["options"]] == ["method.lambda_u", "method.momentum"]


def test_loss_and_state_are_those_of_the_equations(folder, toy):
    kind = methods.find("my_file:MyMethod")
    m = kind(kind.Config(lambda_u=3.0), toy.network(), toy.spec(), unlabelled_batch=6).double()
    batch = toy.batch(kind.views)
    with torch.no_grad():
        known, weak, strong = (m.network(v).logits for v in (batch.labelled[0], *batch.unlabelled))
        sure = weak.softmax(1).max(1)
        rows = torch.nn.functional.cross_entropy(strong, sure.indices, reduction="none") * (sure.values >= 1 / 5)
        wanted = torch.nn.functional.cross_entropy(known, batch.label) + 3 * rows.mean()
        terms = m.loss(batch, toy.clock())
        m.remember(batch, terms, toy.clock())
    assert terms.total.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert m.confidence.item() == pytest.approx(0.99 / 5 + 0.01 * sure.values.mean().item(), rel=1e-5)


def test_the_working_folder_comes_first_and_shadows_nothing_later(folder):
    """`tabnanny` is a module of Python's own that nobody here imports; the user's file of that name is the one that was named."""
    assert "tabnanny" not in sys.modules
    (folder / "tabnanny.py").write_text(SOURCE)
    assert methods.find("tabnanny:MyMethod").__module__ == "tabnanny"
    assert sys.path[0] != str(folder) and sys.path[-1] == str(folder)
    package = folder / "my_pkg" / "deep"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "it.py").write_text("from my_file import MyMethod as Base\nclass Other(Base): pass\n")
    assert issubclass(methods.find("my_pkg.deep.it:Other"), methods.base.Method)
    assert sys.path.count(str(folder)) == 1


BROKEN = {
    "nowhere:MyMethod": ("no module 'nowhere' in {folder} or where Python looks",),
    "my_file.inner:MyMethod": ("my_file.inner", "my_file"),
    "my_file:MyMethid": ("unknown method 'MyMethid' in my_file ({folder}/my_file.py); did you mean MyMethod?",),
    "my_file:": ("must be like package.module:Class",),
    "my file:MyMethod": ("must be like package.module:Class",),
    "my_file:option": ("subclass of fastssl.methods.base.Method, got function",),
    "my_file:Method": ("subclass of fastssl.methods.base.Method, got the class Method",),
    "my_file:Views": ("got the class Views",),
}


@pytest.mark.parametrize("name", BROKEN)
def test_names_that_lead_nowhere(folder, capsys, name):
    assert main(["train", "--method", name]) == 2
    said = capsys.readouterr().err
    assert all(part.format(folder=folder) in said for part in BROKEN[name]), said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n1 / 0\n", "other cannot be imported: ZeroDivisionError: division by zero (other.py, line 2)"),
        ("def f(:\n", "SyntaxError: invalid syntax (other.py, line 1)"),
        ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_package' (other.py, line 1)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (other.py, line 2)"),
        ("from my_file import Gone\n", "ImportError: cannot import name 'Gone'"),
    ],
)
def test_a_module_that_breaks_keeps_its_last_line(folder, capsys, text, said):
    (folder / "other.py").write_text(text)
    assert main(["methods", "show", "other:MyMethod"]) == 2
    heard = capsys.readouterr().err
    assert said in heard and heard.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("@dataclass(frozen=True)", "@dataclass", "needs a class Config inside, with @dataclass(frozen=True)"),
        ("    @dataclass(frozen=True)\n    class Config:", "    class Options:", "needs a class Config inside"),
        ("    summary = ", "    sumary = ", "has no summary"),
        ("    paper = ", "    # ", "has no paper"),
        ("    views = ", "    # ", "has no views"),
        ("    views = Views", "    views = dict", "has no views"),
        ("def objective", "def objectiv", "defines neither objective nor loss"),
        ('option(1.0, "weight of the unlabelled term", least=0)', "1.0", "Config.lambda_u must be an option"),
        (
            "lambda_u: float",
            "lambda_u: list[float]",
            "Config.lambda_u must be bool, int, float or str, or one of them | None, got list[float]",
        ),
        ("lambda_u: float", "lambda_u: 'flaot'", "a type that cannot be read: name 'flaot' is not defined"),
        ("lambda_u: float", "name: float", "Config.name cannot be an option"),
    ],
)
def test_a_class_that_lacks_something(folder, capsys, old, new, said):
    assert SOURCE.count(old) == 1
    (folder / "other.py").write_text(SOURCE.replace(old, new))
    assert main(["train", "--method", "other:MyMethod"]) == 2
    heard = capsys.readouterr().err
    assert said in heard and heard.count("\n") == 1


def test_what_may_be_left_to_the_base(folder):
    """An option that may be None, options of a parent, and a loss of one's own in place of objective."""
    optional = SOURCE.replace("lambda_u: float = option(1.0", "lambda_u: float | None = option(None")
    child = """
class Child(MyMethod):
    @dataclass(frozen=True)
    class Config(MyMethod.Config):
        more: int = option(3, "more")


class Alone(Method):
    Config, summary, paper, views = MyMethod.Config, "its own loss", "ours", Views()

    def loss(self, batch, clock):
        return Terms(self.network(batch.labelled[0]).logits.mean())
"""
    (folder / "other.py").write_text(optional + child)
    assert [field.name for field in dataclasses.fields(methods.find("other:Child").Config)] == ["lambda_u", "momentum", "more"]
    assert methods.find("other:Alone").summary == "its own loss"


def test_names_without_a_colon_are_looked_up_as_ever():
    with pytest.raises(ConfigError, match="unknown method 'fixmatsh'; did you mean fixmatch"):
        methods.find("fixmatsh")
