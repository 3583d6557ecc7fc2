"""A table once, written as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lmreg_jax.evaluation.metrics import Summary
from lmreg_jax.io.tables import replacing

HOLE = "–"  # nothing there: a method that failed, or a number that does not exist
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "–": "--", "→": r"$\to$", "≤": r"$\le$", "≥": r"$\ge$", "×": r"$\times$",
    "<": r"$<$", ">": r"$>$", "λ": r"$\lambda$", "σ": r"$\sigma$", "²": r"$^2$",
}  # fmt: skip


class Cell(NamedTuple):
    """A number and perhaps its standard deviation; NaN is a hole. `best` is set in bold."""

    mean: float
    sd: float = float("nan")
    digits: int = 2
    best: bool = False
    mark: str = ""  # of a footnote

    @property
    def text(self) -> str:
        if math.isnan(self.mean):
            return HOLE
        sd = "" if math.isnan(self.sd) else f" ± {self.sd:.{self.digits}f}"
        return f"{self.mean:.{self.digits}f}{sd}{self.mark}"


class Table(NamedTuple):
    """`name` is its file's; the first column holds the rows' names."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    notes: Sequence[str] = ()


def cell(summary: Summary, digits: int = 2) -> Cell:
    """Mean ± sd of a `metrics.Summary`."""
    return Cell(summary.mean, summary.sd, digits)


def with_best(cells: Sequence[Cell], *, largest: bool = False) -> list[Cell]:
    """The best of them (as printed: ties share it) marked; holes and marked cells cannot be best."""
    sign = -1 if largest else 1
    shown = [round(sign * c.mean, c.digits) if not c.mark else math.nan for c in cells]
    known = [value for value in shown if not math.isnan(value)]
    best = min(known) if len(known) > 1 else None
    return [c._replace(best=value == best) for c, value in zip(cells, shown, strict=True)]


def markdown(table: Table, level: int = 2) -> str:
    """Title, table, notes; bold for the best."""

    def shown(item: str | Cell) -> str:
        text = item if isinstance(item, str) else item.text
        text = text.replace("|", r"\|")
        return f"**{text}**" if isinstance(item, Cell) and item.best else text

    align = ["---", *["---:"] * (len(table.header) - 1)]
    lines = [list(table.header), align, *([shown(item) for item in row] for row in table.rows)]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "".join(f"\n\n{note}" for note in table.notes)
    return f"{'#' * level} {table.title}\n\n{body}{notes}\n"


def as_csv(table: Table) -> str:
    """Numbers at six digits, each sd in a column of its own; a hole is an empty cell."""
    columns = list(zip(*table.rows, strict=True)) if table.rows else [()] * len(table.header)
    with_sd = [any(isinstance(c, Cell) and not math.isnan(c.sd) for c in column) for column in columns]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")

    def line(row: Sequence[str | Cell]) -> list[str]:
        pairs = [(_plain(item), sd) for item, sd in zip(row, with_sd, strict=True)]
        return [text for (mean, spread), sd in pairs for text in ([mean, spread] if sd else [mean])]

    heads = zip(table.header, with_sd, strict=True)
    writer.writerow([name for head, sd in heads for name in ([head, f"{head} sd"] if sd else [head])])
    writer.writerows(line(row) for row in table.rows)
    return text.getvalue()


def _plain(item: str | Cell) -> tuple[str, str]:
    """A cell of the CSV and that of its standard deviation."""
    if isinstance(item, str):
        return ("" if item == HOLE else item), ""
    mean, sd = ("" if math.isnan(v) else f"{v:.6g}" for v in (item.mean, item.sd))
    return mean, sd


def latex(table: Table) -> str:
    r"""A `table` environment with booktabs; needs \usepackage{booktabs}."""

    def escaped(text: str) -> str:
        return "".join(LATEX.get(letter, letter) for letter in text.replace("->", "→"))

    def shown(item: str | Cell) -> str:
        text = escaped(item if isinstance(item, str) else item.text)
        bold = text.replace("$\\pm$", "$\\boldsymbol{\\pm}$")
        return rf"\textbf{{{bold}}}" if isinstance(item, Cell) and item.best else text

    lines = [" & ".join(shown(item) for item in row) + r" \\" for row in table.rows]
    notes = [rf"\par\footnotesize {escaped(note)}" for note in table.notes]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(table.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            " & ".join(map(escaped, table.header)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
            "",
        ]
    )


def write(folder: Path, tables: Sequence[Table]) -> None:
    """FOLDER/NAME.md, .csv and .tex of each, written whole or not at all."""
    for table in tables:
        for suffix, text in (("md", markdown(table)), ("csv", as_csv(table)), ("tex", latex(table))):
            with replacing(folder / f"{table.name}.{suffix}") as temporary:
                temporary.write_text(text, encoding="utf-8")
