"""Peak memory of preparing, opening and reading a cohort, against the number of its cases.

    python -m benchmarks.memory [--cases=100,1000] [--edge=24] [--batches=200] [--output=FOLDER]

The cases are hard links to a few small scans with lung masks and landmarks. Each row is a process of
its own. Writes memory_cases.md (default folder: benchmarks/results).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import common

DISTINCT = 8  # scans that are really written
PACKAGES = ("numpy", "scipy", "nibabel", "jax")
STAGES = ("imports", "prepare", "open", "batches")


def write_cohort(root: Path, count: int, edge: int) -> None:
    """`count` training cases of edge^3 voxels, CT in HU, two lungs, five landmarks."""
    from lmreg_jax.imaging.volume import Volume
    from lmreg_jax.io.nifti import write_volume
    from lmreg_jax.io.points import write_points

    spacing = 288.0 / edge
    affine = np.diag([spacing, spacing, spacing, 1.0])
    mm = spacing * np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1)
    lines = ["case,split,image,lungs,landmarks"]
    draw = np.random.default_rng(0)
    for i in range(count):
        files = [f"images/c{i}.nii.gz", f"lungs/c{i}.nii.gz", f"landmarks/c{i}.csv"]
        lines.append(",".join([f"c{i}", "train", *files]))
        if i >= DISTINCT:
            for file in files:
                os.link(root / file.replace(f"c{i}.", f"c{i % DISTINCT}."), root / file)
            continue
        shift = draw.uniform(-8, 8, 3)
        centres = [np.array([x, 144, 144]) + shift for x in (84, 204)]
        lungs = np.zeros((edge,) * 3, np.uint8)
        for label, centre in enumerate(centres, 1):
            lungs[np.sum(((mm - centre) / (45, 70, 95)) ** 2, axis=-1) < 1] = label
        ct = np.where(lungs > 0, -850, 40) + draw.normal(0, 20, lungs.shape)
        points = {f"p{k}": centres[k % 2] + draw.uniform(-30, 30, 3) for k in range(5)}
        write_volume(root / files[0], Volume(ct.astype(np.int16), affine))
        write_volume(root / files[1], Volume(lungs, affine))
        write_points(root / files[2], points)
    (root / "cases.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(root: Path, cache: Path, edge: int, count: int, prepared: bool) -> dict[str, list[float]]:
    """Peak in MB and seconds after each stage; prepared: the cache holds the cohort already."""
    from experiments.run.supply import Supply
    from lmreg_jax.affine import reference
    from lmreg_jax.cohort import batches
    from lmreg_jax.cohort.cohort import read_cohort, training_pairs

    found: dict[str, list[float]] = {"imports": [common.peak_mb(), 0.0]}
    start = time.perf_counter()

    def done(stage: str) -> None:
        nonlocal start
        found[stage] = [common.peak_mb(), time.perf_counter() - start]
        start = time.perf_counter()

    cohort = read_cohort(
        root,
        shape=(edge,) * 3,
        spacing_mm=288 / edge,
        alignment="moments",
        cache=cache,
        progress=False,
    )
    done("open" if prepared else "prepare")
    if prepared:
        supply, pairs = Supply(cohort, "strict"), training_pairs(cohort)
        masks = (c.lungs for c in supply.each("train", ["lungs"]) if c.lungs is not None)
        reference.of_masks(masks, cohort.spacing_mm)
        for step in range(count):

            def draw(usable: object, step: int = step) -> list[batches.Pair]:
                return batches.pairs_of_step(usable, 4, step, seed=0, both_orders=True)  # type: ignore[arg-type]

            supply.batch(pairs, draw)
        done("batches")
    return found


def row(count: int, edge: int, stages: dict[str, list[float]]) -> list[str]:
    """Megabytes above those after the imports, and seconds."""
    mb = [f"{stages[stage][0] - stages[stage + ' imports'][0]:.1f}" for stage in STAGES[1:]]
    seconds = [f"{stages[stage][1]:.1f}" for stage in STAGES[1:]]
    arrays = count * edge**3 * 6 / 2**20  # float32 image, two masks of a byte
    return [str(count), f"{arrays:.0f}", *mb, *seconds]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--cases", default="100,1000")
    parser.add_argument("--edge", type=int, default=24)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--worker", type=Path, help="for the processes that it starts")
    parser.add_argument("--prepared", action="store_true", help="for the processes that it starts")
    given = parser.parse_args()
    if given.worker:
        folder = given.worker
        answer = measure(folder, folder / "cache", given.edge, given.batches, given.prepared)
        print(json.dumps(answer))
        return
    rows = []
    for count in map(int, given.cases.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            for name in ("images", "lungs", "landmarks"):
                (root / name).mkdir()
            write_cohort(root, count, given.edge)
            words = [f"--worker={root}", f"--edge={given.edge}", f"--batches={given.batches}"]
            first = common.answer_of("benchmarks.memory", *words)
            second = common.answer_of("benchmarks.memory", *words, "--prepared")
        if failed := first.get("error") or second.get("error"):
            raise SystemExit(failed)
        imports = {"prepare imports": first.pop("imports")}
        imports |= dict.fromkeys(("open imports", "batches imports"), second.pop("imports"))
        rows.append(row(count, given.edge, first | second | imports))
    heads = [f"cases of {given.edge}^3", "arrays of all, prepared (MB)"]
    heads += [f"{stage} ({unit})" for unit in ("MB", "s") for stage in STAGES[1:]]
    where = common.environment("benchmarks.memory", PACKAGES)
    lines = [
        "# Memory against the number of cases",
        "",
        *common.table(heads, rows, words=0),
        "",
        "Peak memory of a process, above what it held after its imports; preparing is a process of its"
        f" own. Batches: the lungs' average over all cases, then {given.batches} batches of four pairs.",
        "",
        common.heading(where),
    ]
    common.write(given.output / "memory_cases", where, None, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
