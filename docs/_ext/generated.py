"""Pages that are made before the others are read: the API, by package; tables, from the result files.

They go to `_generated` (tables, included by pages) and `api/_generated` (pages); both are rewritten only
where they change, so that a second build reads little.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from benchmarks import document

ROOT = document.ROOT
PACKAGE = ROOT / "lmreg_jax"
LEFT_OUT = ("_", "elastix_worker")  # private modules, and the program of a worker process
LIST = re.compile(r"^(\s*)([-*]|\d+\.) ")
CODE = re.compile(r"(``.+?``|`[^`]+`)")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", lambda app, _: write_pages(Path(app.srcdir)))
    app.connect("autodoc-process-docstring", _as_rst)
    app.connect("autodoc-skip-member", _skipped)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(docs: Path) -> None:
    """Tables and API pages; pages of packages that are gone are removed."""
    _write(docs / "_generated" / "results.md", document.results_table())
    _write(docs / "_generated" / "speed.md", document.speed_table())
    card = PACKAGE / "weights" / "lung" / "MODEL_CARD.md"
    _write(docs / "_generated" / "model_card.md", card.read_text(encoding="utf-8"))
    pages = dict(api_pages())
    folder = docs / "api" / "_generated"
    for name, text in pages.items():
        _write(folder / f"{name}.md", text)
    for file in folder.glob("*.md"):
        if file.stem not in pages:
            file.unlink()


def api_pages() -> list[tuple[str, str]]:
    """A page for each package below lmreg_jax, and one for the modules at its top: (name, MyST text)."""
    folders = [PACKAGE, *(f for f in sorted(PACKAGE.iterdir()) if (f / "__init__.py").exists())]
    pages = []
    for folder in folders:
        name = ".".join(folder.relative_to(ROOT).parts)
        modules = [file.stem for file in sorted(folder.glob("*.py")) if not file.stem.startswith(LEFT_OUT)]
        if folder.name.startswith("_"):
            continue
        parts = [f"# {name}", "", _directive(name)]
        for module in modules:
            parts += [f"## {name}.{module}", "", _directive(f"{name}.{module}")]
        pages.append((name, "\n".join(parts)))
    return pages


def _directive(module: str) -> str:
    return f"```{{eval-rst}}\n.. automodule:: {module}\n```\n"


def _write(file: Path, text: str) -> None:
    text = text.rstrip("\n") + "\n"
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def _skipped(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """A NamedTuple's fields and methods say nothing that its docstring does not."""
    doc = getattr(obj, "__doc__", None) or ""
    return True if doc.startswith("Alias for field number") or name in ("count", "index", "_asdict") else None


def _as_rst(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with Markdown's backticks: indented blocks become literal ones, lists get
    their blank lines, and what RST would read as markup outside backticks is escaped."""
    out: list[str] = []
    literal = examples = False
    for line in lines:
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        previous = out[-1].strip() if out else ""
        if not text:
            examples = False
            out.append("")
            continue
        if text.startswith(">>>"):
            examples = True
        if examples:
            out.append(line)
            continue
        item = LIST.match(line)
        if literal and indent == 0:
            literal = False
        if not literal and indent >= 4 and not item and not previous and not _in_list(out):
            out += ["::", ""]
            literal = True
        if literal:
            out.append(line)
            continue
        within = bool(out) and _in_list(out)
        starts = bool(item) and not within
        ends = not item and indent == 0 and within
        if previous and (starts or ends):
            out.append("")
        out.append(_escaped(line))
    lines[:] = out


def _in_list(lines: list[str]) -> bool:
    """Whether the last line belongs to a list's item."""
    for line in reversed(lines):
        if LIST.match(line):
            return True
        if not line.strip() or not line.startswith(" "):
            return False
    return False


def _escaped(line: str) -> str:
    parts = CODE.split(line)
    mark = LIST.match(line)
    for i in range(0, len(parts), 2):
        start = mark.end() if mark and i == 0 else 0
        head, rest = parts[i][:start], parts[i][start:]
        parts[i] = head + re.sub(r"(?<!\\)([*|]|(?<=\w)_(?=\W|$))", r"\\\1", rest)
    for i in range(1, len(parts), 2):
        if not parts[i].startswith("``"):
            parts[i] = f"`{parts[i]}`"
        if parts[i + 1][:1].isalnum():  # `warp`s: RST ends a literal only before a space or a mark
            parts[i] += "\\ "
    return "".join(parts)
