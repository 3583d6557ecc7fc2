"""The summary of many registered pairs: a table, and a page with pictures, the worst first."""

from __future__ import annotations

import csv
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lmreg_jax.io.tables import replacing
from lmreg_jax.registration.verdict import ORDER
from lmreg_jax.report.page import STYLE

COLUMNS = {
    "airways_mm": "airways apart, mm",
    "lung_dice": "Dice of the lungs",
    "folding_percent": "folding, %",
    "sd_log_jacobian": "sd of log J",
    "landmarks_mm": "landmarks apart, mm",
}
THUMBNAILS = "td img { width: 22em }"


def write_summary(root: Path, reports: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str]) -> None:
    """Writes summary.csv and summary.html into `root`, which holds a folder each pair.

    reports: what `report.json` holds, by the pair's name; failed: reasons by name.
    """
    rows = {name: _figures(report) for name, report in reports.items()}
    order = sorted(rows, key=lambda name: (-ORDER.index(reports[name]["verdict"]), -_severity(rows[name])))
    said = {name: (reports[name]["verdict"], "; ".join(reports[name]["reasons"])) for name in order}
    with (
        replacing(root / "summary.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="replace") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["name", "verdict", "reasons", *COLUMNS])
        for name, reason in failed.items():
            table.writerow([name, "failed", reason, *[""] * len(COLUMNS)])
        for name in order:
            numbers = ["" if value is None else f"{value:.6g}" for value in rows[name].values()]
            table.writerow([name, *said[name], *numbers])
    with replacing(root / "summary.html") as temporary:
        temporary.write_text(_page(said, rows, failed), encoding="utf-8", errors="replace")


def _figures(report: Mapping[str, Any]) -> dict[str, float | None]:
    judged = report["judged_by"]
    return {
        "airways_mm": judged.get("airway_mm"),
        "lung_dice": judged.get("lung_dice"),
        "folding_percent": judged.get("folding_percent"),
        "sd_log_jacobian": judged.get("sd_log_jacobian"),
        "landmarks_mm": report.get("landmarks", {}).get("mean_mm", {}).get("after"),
    }


def _severity(figures: Mapping[str, float | None]) -> float:
    """Orders pairs of one verdict: the distance of the airways, unknown first."""
    return float("inf") if figures["airways_mm"] is None else figures["airways_mm"]


def _page(
    said: Mapping[str, tuple[str, str]],
    rows: Mapping[str, Mapping[str, float | None]],
    failed: Mapping[str, str],
) -> str:
    counts = ", ".join(f"{sum(verdict == v for verdict, _ in said.values())} {v}" for v in ORDER)
    parts = [f"<h1>{len(said)} pairs: {counts}" + (f", {len(failed)} failed" if failed else "") + "</h1>"]
    parts += [
        f'<p class="verdict poor"><b>{html.escape(name)}</b> failed: {html.escape(reason)}</p>'
        for name, reason in failed.items()
    ]
    heads = "".join(f"<th>{text}</th>" for text in ("pair", "verdict", *COLUMNS.values(), "picture"))
    parts.append(f"<table><tr>{heads}</tr>")
    for name, (verdict, reasons) in said.items():
        link, place = f'<a href="{quote(name)}/report.html">', quote(name)
        numbers = ("" if value is None else f"{value:.3g}" for value in rows[name].values())
        parts += [
            f"<tr><td>{link}{html.escape(name)}</a></td>",
            f'<td class="verdict {verdict}"><b>{verdict}</b> {html.escape(reasons)}</td>',
            *(f'<td class="number">{number}</td>' for number in numbers),
            f'<td>{link}<img loading="lazy" alt="overlays" src="{place}/report.png"></a></td></tr>',
        ]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>Registered pairs</title><style>{STYLE} {THUMBNAILS}</style></head><body>",
            *parts,
            "</table></body></html>",
            "",
        ]
    )
