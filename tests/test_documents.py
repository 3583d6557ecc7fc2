"""What README and pages say exists: commands, links, flags, imports, extras, numbers.

Nothing here needs Sphinx but the last test, which builds the pages where Sphinx is installed.
"""

from __future__ import annotations

import ast
import configparser
import functools
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import lmreg_jax
from benchmarks import document
from lmreg_jax.cli import main as program

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "third_party_notes" / "README.md",
    *(file for file in sorted(DOCS.rglob("*.md")) if "_generated" not in file.parts),
]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TRAIN = "pip install -e . && python -m experiments.train --config=experiments/lung.py"
TEST = 'pip install -e ".[test]" && python -m pytest -q -n 2 --dist worksteal -m "not slow or versions"'


def blocks(language: str) -> list[Any]:
    """(page, block) of all code blocks of a language, as pytest parameters."""
    return [
        pytest.param(page, block, id=f"{page}-{i}")
        for page, text in TEXT.items()
        for i, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL))
    ]


def test_the_readme_is_short_and_names_its_two_commands() -> None:
    assert len(README.splitlines()) <= 220
    for command in (TRAIN, TEST):
        assert f"```bash\n{command}\n```" in README


def test_the_checks_run_the_readme_s_two_commands() -> None:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    checks = " ".join(text.replace("\\\n", " ").replace("pip install -q", "pip install").split())
    assert TRAIN in checks and TEST in checks


def test_the_readme_s_table_is_that_of_the_comparison() -> None:
    assert document.readme(README) == README, "run `python -m benchmarks.document --readme`"


def test_every_number_of_the_pages_is_in_a_result_file() -> None:
    named = {name for text in TEXT.values() for name in re.findall(r"\{\{ *(\w+) *\}\}", text)}
    numbers = document.numbers()
    assert named and named <= set(numbers)
    assert all(re.fullmatch(r"-?[\d.]+|\d+ of \d+", value) for value in numbers.values()), numbers


def test_the_layout_page_states_the_import_rule() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter", encoding="utf-8")
    layers = contracts["importlinter:contract:layers"]["layers"].replace("lmreg_jax.", "").split("\n")
    packages = [layer for layer in layers if layer and "errors" not in layer]
    page = TEXT["docs/development/layout.md"]
    assert " > ".join(packages) in " ".join(page.split())
    table = re.findall(r"^\| `(\w+)` \|", page.partition("```")[0], flags=re.MULTILINE)
    assert set(table) == {name for layer in packages for name in layer.split(" | ")}


@pytest.mark.parametrize("page", ["docs/development/extending.md", "docs/development/testing.md"])
def test_files_that_the_page_names_exist(page: str) -> None:
    for name in re.findall(r"`((?:lmreg_jax|experiments|tests|benchmarks|scripts)/[\w./]*)`", TEXT[page]):
        assert (ROOT / name).exists(), f"{page}: {name}"


def test_the_model_card_quotes_the_comparison() -> None:
    card = ROOT / "lmreg_jax" / "weights" / "lung" / "MODEL_CARD.md"
    text, n = card.read_text(encoding="utf-8"), document.numbers()
    for quantity in ("tre", "unseen", "dice"):
        assert f"{n[f'affine_{quantity}']} -> {n[f'ours_{quantity}']}" in text


@pytest.mark.parametrize("page", TEXT)
def test_links_lead_to_files_and_headings(page: str) -> None:
    here = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = here / name if name else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in _anchors(file), f"{page}: {target}"
    for target in re.findall(r"```\{include\} (\S+)", TEXT[page]):
        assert "_generated" in target or (here / target).exists(), f"{page}: {target}"


@functools.cache
def _anchors(file: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = [
        line.strip()
        for page in ("docs/index.md", "docs/api/index.md")
        for block in re.findall(r"```\{toctree\}\n(.*?)```", TEXT[page], flags=re.DOTALL)
        for line in block.splitlines()
    ]
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).with_suffix("").as_posix()
        if "_generated" not in name and name != "index":
            assert any(Path(name).match(line) for line in listed if line), f"{name}.md is in no toctree"


@pytest.mark.parametrize(("page", "block"), blocks("python"))
def test_python_examples_use_what_exists(page: str, block: str) -> None:
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lmreg_jax"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, name.name) for name in node.names), f"{page}: {node.module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lm":
            assert hasattr(lmreg_jax, node.attr), f"{page}: lm.{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            _check_call(page, node)


def _check_call(page: str, call: ast.Call) -> None:
    """The arguments of lm.NAME(...) and lm.MODULE.NAME(...) fit the function."""
    path = ast.unparse(call.func)
    if not path.startswith("lm."):
        return
    function = functools.reduce(getattr, path.split(".")[1:], lmreg_jax)
    keywords = {word.arg: None for word in call.keywords if word.arg}
    try:
        inspect.signature(function).bind(*call.args, **keywords)
    except TypeError as error:
        raise AssertionError(f"{page}: {ast.unparse(call)}: {error}") from None


@pytest.mark.parametrize(("page", "block"), blocks("bash"))
def test_commands_have_the_flags_that_are_given(page: str, block: str) -> None:
    for line in block.replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            words = command.split("#")[0].split()
            if words[:1] == ["lmreg"]:
                flags = {word.split("=")[0] for word in words if word.startswith("--")}
                assert flags <= _flags(words[1]), f"{page}: {command}"
            if words[:2] == ["python", "-m"]:
                assert importlib.util.find_spec(words[2]), f"{page}: {command}"


@functools.cache
def _flags(name: str) -> set[str]:
    actions = program.parser()._subparsers._group_actions  # type: ignore[union-attr]
    return set(actions[0].choices[name]._option_string_actions)  # type: ignore[index,union-attr]


@pytest.mark.parametrize("page", TEXT)
def test_config_values_exist(page: str) -> None:
    from experiments.lung import get_config

    config = get_config().to_dict()
    for section, name in re.findall(r"config\.([a-z]+)\.([a-z_]+)", TEXT[page]):
        assert name in config.get(section, {}), f"{page}: config.{section}.{name}"


@pytest.mark.parametrize("page", ["README.md", "docs/guide/register.md"])
def test_options_in_the_text_exist(page: str) -> None:
    known = set().union(*(_flags(module.__name__.rpartition(".")[2]) for module in program.SUBCOMMANDS))
    named = set(re.findall(r"`(--[a-z][a-z-]+)", TEXT[page]))
    assert named <= known | {"--config", "--workdir"}


def test_every_extra_that_is_named_exists() -> None:
    extras = set(PROJECT["optional-dependencies"])
    code = [*(ROOT / "lmreg_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    texts = [*TEXT.values(), *(file.read_text(encoding="utf-8") for file in code)]
    named = {
        extra
        for text in texts
        for group in re.findall(r"(?:lmreg_jax|-e \"?\.)\[([a-z, ]+)\]", text)
        for extra in group.replace(" ", "").split(",")
    }
    assert {"elastix", "itk"} <= named <= extras
    page = TEXT["docs/development/dependencies.md"]
    before, _, table = page.partition("| extra | what for")
    assert set(re.findall(r"^\| `([a-z]+)` \|", table, flags=re.MULTILINE)) == extras
    rows = ",".join(re.findall(r"^\| ([\w\-, ]+) \|", before, flags=re.MULTILINE)).replace(" ", "").split(",")
    required = {re.match(r"[\w\-]+", line).group() for line in PROJECT["dependencies"]}  # type: ignore[union-attr]
    assert required <= set(rows)


@pytest.mark.parametrize("module", program.SUBCOMMANDS, ids=lambda module: module.__name__.split(".")[-1])
def test_every_command_shows_an_example(module: object, capsys: pytest.CaptureFixture[str]) -> None:
    name = module.__name__.split(".")[-1]  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as ended:
        program.main([name, "--help"])
    assert ended.value.code == 0
    assert re.search(rf"example:\n +lmreg {name} ", capsys.readouterr().out)


def test_the_notebook_s_code_compiles_and_holds_no_output() -> None:
    import json

    notebook = json.loads((DOCS / "guide" / "two_scans.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            ast.parse("".join(cell["source"]))
            assert not cell["outputs"]


@pytest.mark.slow
@pytest.mark.parametrize("builder", ["html", "doctest"])
def test_the_pages_build(builder: str, tmp_path: Path) -> None:
    for name in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(name)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", builder]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "LMREG_DOCS_NOTEBOOK": "0"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
