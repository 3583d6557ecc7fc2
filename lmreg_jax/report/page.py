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
.verdict { font-size: 1.2em; padding: 0.5em 0.8em; border-left: 8px solid #888; background: #f4f4f4 }
.good { border-color: #2e7d32 } .check { border-color: #e0a800 } .poor { border-color: #c62828 }
summary { cursor: pointer; margin: 1em 0 }
.warning { background: #fff3cd; border-left: 4px solid #e0a800; padding: 0.4em 0.8em; margin: 0.3em 0 }
""".strip()


def page(title: str, report: Mapping[str, Any], picture: Path) -> str:
    """The page: verdict with reasons, the numbers that matter, doubts, the picture; folded away, every number
    of `report` (nested dicts) in tables.

    picture: a PNG, which becomes part of the page where it exists. Whatever comes from outside (names of
    files, landmarks, the command) is escaped.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", *_verdict(report)]
    parts += [f'<p class="warning">{html.escape(text)}</p>' for text in report.get("notes", ())]
    if picture.exists():
        embedded = base64.b64encode(picture.read_bytes()).decode("ascii")
        parts.append(f'<img alt="overlays, deformation and Jacobian" src="data:image/png;base64,{embedded}">')
    parts.append("<details><summary>All numbers, settings and versions</summary>")
    for name, value in report.items():
        if name in ("notes", "verdict", "reasons"):
            continue
        parts.append(f"<h2>{html.escape(_words(name))}</h2>")
        parts.append(_table(value) if isinstance(value, Mapping) else f"<p><code>{_text(value)}</code></p>")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
            *parts,
            "</details></body></html>",
            "",
        ]
    )


def _verdict(report: Mapping[str, Any]) -> list[str]:
    """The verdict, its reasons, and the numbers that matter most, as pieces of HTML."""
    if "verdict" not in report:
        return []
    value = str(report["verdict"])
    reasons = "; ".join(map(str, report.get("reasons", ()))) or "nothing speaks against it"
    judged = report.get("judged_by", {})
    overlap = report.get("dice", {}).get("both", {})
    motion = report.get("motion", {})
    shown = {
        "airways apart after registration, mm": judged.get("airway_mm"),
        "Dice of the lungs, affine step": overlap.get("affine"),
        "Dice of the lungs, after": overlap.get("after"),
        "folding, % of all voxels": judged.get("folding_percent"),
        "sd of the log Jacobian in the lungs": judged.get("sd_log_jacobian"),
        "motion in the lungs beyond the affine step, mean, mm": motion.get("deformation", {}).get("mean_mm"),
    }
    return [
        f'<p class="verdict {html.escape(value)}"><b>{html.escape(value)}</b>: {html.escape(reasons)}</p>',
        _table({name: number for name, number in shown.items() if number is not None}),
    ]


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
