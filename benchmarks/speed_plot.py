"""Time and memory against voxels, ours and PyTorch's, from a table of `benchmarks.speed`.

    python -m benchmarks.speed --grids=64x64x64,96x96x96,128x128x128,192x192x192,256x256x256 \\
        --batches=1 --items=register --rounds=1 --repeats=2 --name=voxels
    python -m benchmarks.speed_plot benchmarks/results/speed_voxels.json docs/figures/speed.png
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lmreg_jax.io.tables import replacing

SIDES = {"ours": ("lmreg_jax", "C0", "o"), "theirs": ("PyTorch", "C1", "s")}


def draw(table: dict[str, Any], path: Path) -> dict[str, float]:
    """Writes the picture; returns the exponent of each side's growth, 1 for proportional."""
    rows = [r for r in table["rows"] if r["item"] == "register"]
    voxels = np.array([math.prod(map(int, r["grid"].split("x"))) for r in rows], float)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    exponents = {}
    for side, (name, colour, marker) in SIDES.items():
        there = [i for i, r in enumerate(rows) if "error" not in r[side]]
        x = voxels[there]
        seconds, megabytes = (np.array([rows[i][side][k] for i in there]) for k in ("seconds", "peak_mb"))
        exponents[side] = float(np.polyfit(np.log(x), np.log(seconds), 1)[0])
        time.loglog(
            x / 1e6, seconds, marker + "-", color=colour, label=f"{name}: voxels^{exponents[side]:.2f}"
        )
        memory.plot(x / 1e6, megabytes / 1e3, marker + "-", color=colour, label=name)
    time.loglog(
        voxels / 1e6, rows[0]["ours"]["seconds"] * voxels / voxels[0], "k:", lw=1, label="proportional"
    )
    time.set(xlabel="million voxels", ylabel="seconds a pair")
    memory.set(xlabel="million voxels", ylabel="peak memory of the process (GB)", ylim=(0, None))
    for axes in (time, memory):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    versions = ", ".join(f"{k} {table['versions'][k]}" for k in ("jax", "torch"))
    figure.suptitle(
        f"register, both directions, float32: {table['processor']}, {table['cores']} cores, {versions}"
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return exponents


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    print(draw(json.loads(source.read_text(encoding="utf-8")), target))
