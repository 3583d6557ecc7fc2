"""The report of a registered pair as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

STYLE = """
body { font-family: system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
img { width: 100% } table { border-collapse: collapse; margin: 0.5em 0 1.5em }
td, th { border-bottom: 1px solid #ddd; padding: 0.25em 0.8em; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
code { background: #f4f4f4; padding: 0.1em 0.3em; overflow-wrap: anywhere }
.warning { background: #fff3cd; border-left: 4px solid #e0a800; padding: 0.4em 0.8em; margin: 0.3em 0 }
""".strip()


def page(title: str, report: Mapping[str, Any], picture: Path) -> str:
    """The page: doubts first, then the picture, then every number of `report` (nested dicts) in tables.

    picture: a PNG, which becomes part of the page. Whatever comes from outside (names of files,
    landmarks, the command) is escaped.
    """
    embedded = base64.b64encode(picture.read_bytes()).decode("ascii")
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f'<p class="warning">{html.escape(text)}</p>' for text in report.get("notes", ())]
    parts.append(f'<img alt="overlays, deformation and Jacobian" src="data:image/png;base64,{embedded}">')
    for name, value in report.items():
        if name == "notes":
            continue
        parts.append(f"<h2>{html.escape(_words(name))}</h2>")
        parts.append(_table(value) if isinstance(value, Mapping) else f"<p><code>{_text(value)}</code></p>")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
            *parts,
            "</body></html>",
            "",
        ]
    )


def _table(values: Mapping[str, Any]) -> str:
    """A table of two columns, or, where all values are dicts of the same keys, one with a head."""
    inner = list(values.values())
    if inner and all(isinstance(v, Mapping) and list(v) == list(inner[0]) for v in inner):
        head = _row(["", *map(_words, inner[0])], "th")
        rows = [_row([_words(name), *value.values()]) for name, value in values.items()]
        return "<table>" + head + "".join(rows) + "</table>"
    rows = [f"<tr><th>{html.escape(_words(name))}</th>{_cell(value)}</tr>" for name, value in values.items()]
    return "<table>" + "".join(rows) + "</table>"


def _row(cells: Iterable[Any], kind: str = "td") -> str:
    if kind == "th":
        return "<tr>" + "".join(f"<th>{html.escape(str(cell))}</th>" for cell in cells) + "</tr>"
    first, *others = cells
    return f"<tr><th>{html.escape(str(first))}</th>" + "".join(map(_cell, others)) + "</tr>"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"<td>{_table(value)}</td>"
    kind = ' class="number"' if isinstance(value, (int, float)) and not isinstance(value, bool) else ""
    return f"<td{kind}>{_text(value)}</td>"


def _text(value: Any) -> str:
    """A value as escaped text: numbers to four digits, lists row by row."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        separator = "<br>" if any(isinstance(v, (str, list, tuple)) for v in value) else ", "
        return separator.join(map(_text, value))
    return html.escape(str(value))


def _words(name: str) -> str:
    return name.replace("_", " ").replace(" mm", ", mm").replace(" percent", ", %")
