"""Ours against the same model in PyTorch, on one machine in one run, as ratios.

    python -m benchmarks.speed [--grids=48x32x64,160x112x208] [--batches=1,4] [--output=benchmarks/results]

First, whether both give the same answers from the same weights (`benchmarks.agreement`). Each
measurement is a process of its own; ours and theirs take turns, so that what else the machine does
hits both. Writes speed.md and speed.json (with --name=gpu: speed_gpu.md and so on).
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.speed_worker import ITEMS, TOLERANCE

HEADS = (
    *("what", "grid", "batch", "ours (s)", "PyTorch (s)", "ratio", "first call (s)", "peak (MB)"),
    *("PyTorch peak (MB)", "GFLOP", "GB", "of the ceiling"),
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch")

TITLES = {
    "network": "network forward",
    "integrate": "integration (7 squarings)",
    "warp": "warp",
    "register": "register (both directions)",
    "step": "train step",
}


def measure(side: str, item: str, grid: str, batch: int, repeats: int, *more: str) -> dict[str, Any]:
    """One process; {"error": ...} where it fails (out of memory, say)."""
    words = [f"--side={side}", f"--item={item}", f"--grid={grid}", f"--batch={batch}"]
    return common.answer_of("benchmarks.speed_worker", *words, f"--repeats={repeats}", *more)


def together(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the turns; the first error where there was one."""
    failed = next((a for a in answers if "error" in a), None)
    if failed:
        return failed
    return {key: statistics.median(a[key] for a in answers) for key in answers[0]}


def ceiling() -> dict[str, float]:
    """What this machine reaches at best: GFLOP/s of a matrix product, GB/s of a copy (float32)."""
    matrix = np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32)
    block = np.ones(2**26, np.float32)
    target = np.empty_like(block)

    def fastest(function: Any) -> float:
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    product = fastest(lambda: matrix @ matrix)
    copy = fastest(lambda: np.copyto(target, block))
    return {"gflops": 2 * 2048**3 / product / 1e9, "gbytes": 2 * block.nbytes / copy / 1e9}


def agreement() -> dict[str, float]:
    """The largest relative differences of both sides' answers; ends the run where they do not agree."""
    found = common.answer_of("benchmarks.agreement")
    if "error" in found:
        raise SystemExit(f"both sides could not be compared: {found['error']}")
    moved = found.pop("largest_voxels", 0.0)
    if moved < 0.5 or max(found.values()) > TOLERANCE:
        raise SystemExit(
            f"not the same model on both sides: {found}, largest displacement {moved:.2g} voxels"
        )
    return found


def row(item: str, grid: str, batch: int, rounds: int, repeats: int) -> dict[str, Any]:
    """One line of the table: both sides in turns."""
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for side, answers in sides.items():
            answers.append(measure(side, item, grid, batch, repeats))
    return {"item": item, "grid": grid, "batch": batch, **{k: together(v) for k, v in sides.items()}}


def markdown(rows: list[dict[str, Any]], where: dict[str, Any]) -> str:
    """The table for people."""
    peak = where["ceiling"]
    lines = [
        "# Speed and memory, ours against PyTorch",
        "",
        f"{common.heading(where)}"
        f" Ceiling measured here: {peak['gflops']:.0f} GFLOP/s, {peak['gbytes']:.1f} GB/s."
        f" Equal weights give equal answers on both sides, to {max(where['agreement'].values()):.0e} of the"
        " largest value. Seconds are medians; ratio = ours / PyTorch, below 1 is faster; peak memory is"
        " the whole process.",
        "",
        *common.table(HEADS, [cells(r, peak) for r in rows], words=2),
    ]
    return "\n".join(lines) + "\n"


def cells(r: dict[str, Any], peak: dict[str, float]) -> list[str]:
    """One line of the table."""
    ours, theirs = r["ours"], r["theirs"]
    name = [TITLES[r["item"]], r["grid"], str(r["batch"])]
    if "error" in ours or "error" in theirs:
        words = [side.get("error", "ok") for side in (ours, theirs)]
        return [*name, *words, *[""] * (len(HEADS) - 5)]
    gflop, gbyte = ours["flops"] / 1e9, ours["bytes"] / 1e9
    # The bound that binds: operations or bytes, whichever takes longer.
    bound = max(gflop / peak["gflops"], gbyte / peak["gbytes"])
    return [
        *name,
        *(f"{side['seconds']:.3g}" for side in (ours, theirs)),
        f"{ours['seconds'] / theirs['seconds']:.2f}",
        f"{ours['first']:.1f}",
        *(f"{side['peak_mb']:.0f}" for side in (ours, theirs)),
        f"{gflop:.3g}",
        f"{gbyte:.3g}",
        f"{100 * bound / ours['seconds']:.0f} %",
    ]


def main() -> None:
    parser = common.parser(__doc__, "speed")
    parser.add_argument("--grids", default="48x32x64,160x112x208")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--items", default=",".join(ITEMS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    where = common.environment("benchmarks.speed", PACKAGES)
    where |= {"ceiling": ceiling(), "agreement": agreement()}
    file = given.output / (given.name if given.name == "speed" else f"speed_{given.name}")
    rows = []
    for grid in given.grids.split(","):
        for batch in map(int, given.batches.split(",")):
            for item in given.items.split(","):
                rows.append(row(item, grid, batch, given.rounds, given.repeats))
                # After each: what was measured is not lost with the rest.
                common.write(file, where, rows, markdown(rows, where))
                print(markdown(rows[-1:], where).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
