"""What the documents and messages name exists: the README's imports, the extras, examples in the help."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lmreg_jax.cli import main as program
from lmreg_jax.io.nifti import write_volume
from lmreg_jax.model import weights
from tests.tiny_cohort import random_pull, subject

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_what_the_readme_imports_can_be_imported(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lmreg_jax"):
            module = importlib.import_module(node.module)
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            assert not missing, f"{node.module} has no {missing}"


@pytest.mark.parametrize("block", BLOCKS)
def test_the_readme_calls_functions_with_what_they_take(block: str) -> None:
    tree = ast.parse(block)
    functions = {
        name.asname or name.name: getattr(importlib.import_module(node.module), name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lmreg_jax")
        for name in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
            keywords = {word.arg: None for word in node.keywords if word.arg}
            inspect.signature(functions[node.func.id]).bind(*node.args, **keywords)


@pytest.mark.slow
def test_the_readme_s_registration_in_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in BLOCKS if "register_sides" in block)
    pytest.importorskip("SimpleITK")
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("fixed", "moving")):
        write_volume(f"{name}.nii.gz", subject(random_pull(i))[0])
    shutil.copytree(weights.DEFAULT, tmp_path / "runs" / "lung")
    names: dict[str, Any] = {}
    exec(block.replace("refine=60", "refine=2"), names)
    assert (tmp_path / "transform.h5").exists()
    assert names["warped"].shape == names["grid"].data.shape


def test_every_extra_that_is_named_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    files = [*(ROOT / "lmreg_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py"), ROOT / "README.md"]
    named = {
        extra
        for file in files
        for group in re.findall(r"(?:lmreg_jax|-e \"?\.)\[([a-z, ]+)\]", file.read_text(encoding="utf-8"))
        for extra in group.replace(" ", "").split(",")
    }
    assert {"elastix", "itk"} <= named <= extras
    table = README.split("| extra | what for")[1]
    assert set(re.findall(r"^\| `([a-z]+)` \|", table, flags=re.MULTILINE)) == extras


@pytest.mark.parametrize("module", program.SUBCOMMANDS, ids=lambda module: module.__name__.split(".")[-1])
def test_every_command_shows_an_example(module: object, capsys: pytest.CaptureFixture[str]) -> None:
    name = module.__name__.split(".")[-1]  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as ended:
        program.main([name, "--help"])
    assert ended.value.code == 0
    assert re.search(rf"example:\n +lmreg {name} ", capsys.readouterr().out)
