"""Peak memory of the train step against grid and batch, ours and PyTorch's, and what of it is kept.

    python -m benchmarks.step_memory [--grids=48x32x64,160x112x208] [--batches=1,2,4] [--no-peer]

Each row is a process of its own, so that its peak is its own. Writes step_memory.md and .json.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks import common
from benchmarks.speed import measure

HEADS = (
    *("grid", "batch", "peak (MB)", "PyTorch peak (MB)", "working memory (MB)", "step (s)"),
    *("rematerialised: peak (MB)", "working memory (MB)", "step (s)"),
    *("state (MB)", "of it donated (MB)", "batch's arrays (MB)"),
)
KINDS = {"ours": ("ours",), "rematerialised": ("ours", "--rematerialise"), "theirs": ("theirs",)}


def cells(row: dict[str, Any]) -> list[str]:
    """One line of the table; of a process that failed, its last words."""
    ours, again, theirs = (row[kind] for kind in KINDS)
    name = [row["grid"], str(row["batch"])]
    for failed in (ours, again):
        if "error" in failed:
            return [*name, failed["error"], *[""] * (len(HEADS) - 3)]
    other = theirs.get("error", f"{theirs['peak_mb']:.0f}" if "peak_mb" in theirs else "")
    numbers = []
    for kept in (ours, again):
        numbers += [f"{kept['peak_mb']:.0f}", f"{kept['working_mb']:.0f}", f"{kept['seconds']:.3g}"]
    shared = [f"{ours[k]:.1f}" for k in ("state_mb", "donated_mb", "batch_mb")]
    return [*name, numbers[0], other, *numbers[1:], *shared]


def markdown(rows: list[dict[str, Any]], where: dict[str, Any]) -> str:
    """The table for people."""
    lines = [
        "# Memory of the train step",
        "",
        f"{common.heading(where)} float32; peak memory is the whole process, start-up and compilation"
        " (about 0.7 GB) included. Working memory is what XLA plans beside arguments and results. State:"
        " parameters and Adam's averages; donated: the part that the new state overwrites. The batch is"
        " not donated: no result has its shape, and the next one is loaded while it is in use."
        " Rematerialised: `config.train.rematerialise`, the features computed again in the backward pass"
        " (under jax 0.10 XLA's CPU compiler computes them again too early to spare any memory).",
        "",
        *common.table(HEADS, map(cells, rows)),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = common.parser(__doc__, "step_memory")
    parser.add_argument("--grids", default="48x32x64,160x112x208")
    parser.add_argument("--batches", default="1,2,4")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    packages = ("jax", "jaxlib", "optax", *(["torch"] if given.peer else []))
    where = common.environment("benchmarks.step_memory", packages)
    rows: list[dict[str, Any]] = []
    for grid in given.grids.split(","):
        for batch in map(int, given.batches.split(",")):
            sides = {
                kind: measure(side, "step", grid, batch, given.repeats, *more)
                if given.peer or side == "ours"
                else {}
                for kind, (side, *more) in KINDS.items()
            }
            rows.append({"grid": grid, "batch": batch, **sides})
            common.write(given.output / given.name, where, rows, markdown(rows, where))
            print(" | ".join(cells(rows[-1])), flush=True)


if __name__ == "__main__":
    main()
