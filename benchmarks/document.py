"""Numbers and tables of the README and the pages, read from the files that the measuring programs write.

    python -m benchmarks.document --readme   rewrite the results table of README.md
    python -m benchmarks.document --check    status 1 where that table is out of date

The pages take single numbers by name: `{{ ours_tre }}` in a page is an entry of NUMBERS. A number that no
file holds is an error, so that a page cannot keep one that was measured again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
START = "<!-- results: written by `python -m benchmarks.document --readme` -->"
END = "<!-- end of results -->"

FIRST, SECOND, THIRD = "Table I:", "Table II:", "What Tables I and II leave out"
CLAIMS = "What is claimed, and what was found"
DIFFERENCES = "Differences between methods"
# name: file, beginning of the heading above the table, first cell of the row, column
NUMBERS = {
    "affine_tre": ("comparison", THIRD, "Affine only", "TRE (mm)"),
    "affine_unseen": ("comparison", THIRD, "Affine only", "unseen TRE (mm)"),
    "affine_dice": ("comparison", SECOND, "Affine only", "Dice"),
    "elastix_tre": ("comparison", THIRD, "Elastix", "TRE (mm)"),
    "elastix_unseen": ("comparison", THIRD, "Elastix", "unseen TRE (mm)"),
    "elastix_seconds": ("comparison", SECOND, "Elastix", "CPU (s)"),
    "ants_tre": ("comparison", THIRD, "ANTs (SyN)", "TRE (mm)"),
    "ants_unseen": ("comparison", THIRD, "ANTs (SyN)", "unseen TRE (mm)"),
    "ants_seconds": ("comparison", SECOND, "ANTs (SyN)", "CPU (s)"),
    "voxelmorph_tre": ("comparison", THIRD, "VoxelMorph", "TRE (mm)"),
    "voxelmorph_unseen": ("comparison", THIRD, "VoxelMorph", "unseen TRE (mm)"),
    "voxelmorph_dice": ("comparison", SECOND, "VoxelMorph", "Dice"),
    "voxelmorph_roughness": ("comparison", THIRD, "VoxelMorph", "sd log J"),
    "ours_tre": ("comparison", THIRD, "Ours", "TRE (mm)"),
    "ours_unseen": ("comparison", THIRD, "Ours", "unseen TRE (mm)"),
    "ours_dice": ("comparison", SECOND, "Ours", "Dice"),
    "ours_roughness": ("comparison", THIRD, "Ours", "sd log J"),
    "ours_folding": ("comparison", THIRD, "Ours", "folding (%)"),
    "ours_seconds": ("comparison", SECOND, "Ours", "CPU (s)"),
    "refined_tre": ("comparison", THIRD, "Ours + refinement", "TRE (mm)"),
    "refined_unseen": ("comparison", THIRD, "Ours + refinement", "unseen TRE (mm)"),
    "refined_dice": ("comparison", SECOND, "Ours + refinement", "Dice"),
    "refined_seconds": ("comparison", SECOND, "Ours + refinement", "CPU (s)"),
    "voxelmorph_refined_tre": ("comparison", THIRD, "VoxelMorph + refinement", "TRE (mm)"),
    "voxelmorph_refined_unseen": ("comparison", THIRD, "VoxelMorph + refinement", "unseen TRE (mm)"),
    "ratio_to_voxelmorph": ("comparison", CLAIMS, "TRE: ours / VoxelMorph, means", "found"),
    "dice_lost_to_voxelmorph": ("comparison", CLAIMS, "Dice: ours − VoxelMorph", "found"),
    "p_voxelmorph": ("comparison", DIFFERENCES, "TRE (mm): Ours − VoxelMorph", "p"),
    "pairs_voxelmorph": ("comparison", DIFFERENCES, "TRE (mm): Ours − VoxelMorph", "pairs in favour"),
    "unseen_voxelmorph": ("comparison", DIFFERENCES, "unseen TRE (mm): Ours − VoxelMorph", "mean"),
    "unseen_voxelmorph_from": ("comparison", DIFFERENCES, "unseen TRE (mm): Ours − VoxelMorph", "95 % from"),
    "unseen_voxelmorph_to": ("comparison", DIFFERENCES, "unseen TRE (mm): Ours − VoxelMorph", "to"),
    "hu_ours": ("comparison", FIRST, "[Hu], All", "Ours"),
    "hu_voxelmorph": ("comparison", FIRST, "[Hu], All", "VoxelMorph"),
    "paper_recipe_ratio": ("recipes", "Recipes tried", "paper's recipe (1 pair, lr 1e-4)", "ratio"),
    "default_recipe_ratio": ("recipes", "Recipes tried", "+ landmark weight 5 (the default)", "ratio"),
    "recipe_visits": ("recipes", "Recipes tried", "+ landmark weight 5 (the default)", "pair-visits"),
    "large_seconds": ("register_large", "`lmreg register` by stage", "whole process", "second start"),
    "large_seconds_first": ("register_large", "`lmreg register` by stage", "whole process", "first start"),
    "large_megabytes": (
        "register_large",
        "`lmreg register` by stage",
        "with elastix' process (MB)",
        "first start",
    ),
    "usual_seconds": ("register_stages", "`lmreg register` by stage", "whole process", "second start"),
    "usual_seconds_first": ("register_stages", "`lmreg register` by stage", "whole process", "first start"),
    "step_megabytes": ("step_memory_paper", "Memory of the train step", "160x112x208", "peak (MB)"),
}
METHODS = (
    "Affine only",
    "Elastix",
    "ANTs (SyN)",
    "VoxelMorph",
    "Ours",
    "VoxelMorph + refinement",
    "Ours + refinement",
)
README_COLUMNS = (  # heading in the README, heading of the table, column
    ("TRE (mm)", THIRD, "TRE (mm)"),
    ("unseen TRE (mm)", THIRD, "unseen TRE (mm)"),
    ("Dice of the lungs", SECOND, "Dice"),
    ("folding (%)", THIRD, "folding (%)"),
    ("seconds", SECOND, "CPU (s)"),
)


class Table(NamedTuple):
    """A table of a Markdown file: the heading above it, its columns, its rows."""

    heading: str
    columns: list[str]
    rows: list[list[str]]


def tables(text: str) -> Iterator[Table]:
    """All tables of a Markdown text."""
    heading, block = "", []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            continue
        if len(block) > 2:
            yield Table(heading, block[0], block[2:])
        block = []
        if line.startswith("#"):
            heading = line.lstrip("# ")


def cell(file: str, heading: str, row: str, column: str) -> str:
    """One cell of benchmarks/results/FILE.md, without emphasis; KeyError where there is none."""
    for table in tables((RESULTS / f"{file}.md").read_text(encoding="utf-8")):
        if table.heading.startswith(heading) and column in table.columns:
            for cells in table.rows:
                if cells[0] == row:
                    return cells[table.columns.index(column)].replace("**", "")
    raise KeyError(f"{file}.md: no table under {heading!r} has a row {row!r} and a column {column!r}")


def numbers() -> dict[str, str]:
    """Every entry of NUMBERS, the mean alone where the table has mean ± sd."""
    found = {name: cell(*place).partition(" ±")[0] for name, place in NUMBERS.items()}
    # MiB as they stand in the tables, GB in prose.
    for name in ("large_megabytes", "step_megabytes"):
        found[name.replace("megabytes", "gigabytes")] = f"{float(found.pop(name)) / 1000:.1f}"
    for name in ("large_seconds", "large_seconds_first", "usual_seconds", "usual_seconds_first"):
        found[name] = f"{float(found[name]):.0f}"
    return found


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    line = "| --- | " + " | ".join("---:" for _ in columns[1:]) + " |"
    return "\n".join(
        ["| " + " | ".join(columns) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)]
    )


def results_table() -> str:
    """The README's table: the main columns of benchmarks/results/comparison.md."""
    rows = [
        [method, *(cell("comparison", heading, method, column) for _, heading, column in README_COLUMNS)]
        for method in METHODS
    ]
    return markdown(["method", *(name for name, _, _ in README_COLUMNS)], rows)


def speed_table() -> str:
    """All measurements of benchmarks/results/speed_*.md, ours against PyTorch."""
    found = {}  # a later file, measured in more turns, replaces an earlier one
    for file in sorted(RESULTS.glob("speed_*.md")):
        text = file.read_text(encoding="utf-8")
        versions = re.search(r"Python (\d+\.\d+).*?jax (\d+\.\d+)", text)
        label = versions[2] if versions else "–"
        for table in tables(text):
            if "ratio" not in table.columns:
                continue
            for row in table.rows:
                named = dict(zip(table.columns, row, strict=True))
                key = named["what"], named["grid"].replace("x", " x "), named["batch"], label
                measured = ("ours (s)", "PyTorch (s)", "ratio", "peak (MB)", "PyTorch peak (MB)")
                found[key] = [named[column] for column in measured]
    order = sorted(found, key=lambda key: (_voxels(key[1]), int(key[2]), key[0], key[3]))
    rows = [[*key, *found[key]] for key in order]
    heads = ["what", "grid", "pairs", "jax", "ours (s)", "PyTorch (s)", "ratio", "ours (MB)", "PyTorch (MB)"]
    return markdown(heads, rows)


def _voxels(grid: str) -> int:
    x, y, z = (int(n) for n in grid.split(" x "))
    return x * y * z


def readme(text: str) -> str:
    """The README `text` with its results table written again."""
    before, found, rest = text.partition(START)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"README.md: no {START} ... {END}")
    return f"{before}{START}\n\n{results_table()}\n\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--readme", action="store_true", help="rewrite the results table of README.md")
    what.add_argument("--check", action="store_true", help="status 1 where it is out of date")
    what.add_argument("--numbers", action="store_true", help="print the numbers that pages take by name")
    arguments = parser.parse_args()
    if arguments.numbers:
        print(json.dumps(numbers(), indent=2, ensure_ascii=False))
        return 0
    file = ROOT / "README.md"
    text = file.read_text(encoding="utf-8")
    new = readme(text)
    if arguments.readme:
        file.write_text(new, encoding="utf-8")
        return 0
    return int(new != text)


if __name__ == "__main__":
    sys.exit(main())
