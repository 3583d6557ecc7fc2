"""What holds for every file of the source: nothing is written half, nothing pickled, text is UTF-8."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "lmreg_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])
WRITING = {"write_text", "write_bytes", "savefig", "save", "savez", "savez_compressed", "WriteTransform"}
WRITING |= {"WriteImage", "to_filename", "ftruncate", "pwrite"}
# Where a file is written without `replacing`, and why that leaves nothing half under its name.
OTHERWISE = {
    "cohort/cache.py": "a folder under another name, renamed when whole",
    "phantom/writer.py": "the same",
    "checkpoint.py": "orbax: a folder under another name, renamed when whole",
    "scalars.py": "a log that grows by lines; one cut short is dropped on resuming",
    "tensorboard.py": "TFRecord, a log of the same kind, each record with its sum",
    "lock.py": "a note of who holds the lock, not a result",
    "lmreg_jax/errors.py": "the null device",
    "io/outputs.py": "tries out a place, then removes what it wrote",
    "cohort/preprocess.py": "into a folder under another name, renamed when whole",
    "cli/landmarks.py": "into a folder that `new_folder` puts in place",
    "phantom_figure.py": "draws a figure for the documentation",
    "io/transforms.py": "into the file object that `replacing` named",
}


def calls(tree: ast.AST, safe: bool = False) -> Iterator[tuple[str, int]]:
    """Calls that write, outside of `with replacing(...)`: name and line."""
    for node in ast.iter_child_nodes(tree):
        inner = safe
        if isinstance(node, ast.With):
            inner = safe or any(
                re.match(r"(replacing|new_file)\(", ast.unparse(item.context_expr)) for item in node.items
            )
        if isinstance(node, ast.Call) and not safe:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            opened = name == "open" and any(
                isinstance(a, ast.Constant) and isinstance(a.value, str) and a.value[:1] in ("w", "a", "x")
                for a in [*node.args, *(k.value for k in node.keywords)]
            )
            method = isinstance(node.func, ast.Attribute)  # A bare `save` is a function of this package.
            if (name in WRITING and method) or opened:
                yield ast.unparse(node.func), node.lineno
        yield from calls(node, inner)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_appear_whole(path: Path) -> None:
    known = any(str(path).endswith(name) for name in OTHERWISE)
    found = [
        f"{name}, line {line}"
        for name, line in calls(ast.parse(path.read_text(encoding="utf-8")))
        # Saving a checkpoint, a model: functions of ours that take care themselves.
        if name.split(".")[0] not in ("checkpoint", "weights", "planes", "writer")
    ]
    assert known or not found, f"{path.name}: {found}: write through lmreg_jax.io.tables.replacing"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_pickled_or_run(path: Path) -> None:
    """A file of weights, of a cohort or of a run must not be able to carry code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
            assert not names & {m.split(".")[0] for m in modules}, f"{path.name}: {ast.unparse(node)}"
        if isinstance(node, ast.Call):
            function, keywords = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            assert function not in ("eval", "exec"), f"{path.name}, line {node.lineno}: {function}"
            if function in ("np.load", "numpy.load"):
                allowed = keywords.get("allow_pickle")
                # Without the keyword numpy refuses too, since 1.16.3.
                assert allowed is None or ast.unparse(allowed) == "False", f"{path.name}: {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_text_files_name_their_encoding(path: Path) -> None:
    """Libraries may set the process's locale to plain C, and then text without a named encoding is ASCII."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        words = [a.value for a in node.args if isinstance(a, ast.Constant)]
        text = name in ("read_text", "write_text")
        text |= name == "open" and not any("b" in str(w) for w in words[-1:])
        text &= ast.unparse(node.func) not in ("os.open", "gzip.open")
        named = "encoding" in {k.arg for k in node.keywords} or any("utf-8" in str(w) for w in words)
        assert named or not text, f"{path.name}, line {node.lineno}: {ast.unparse(node)}"
