"""Landmarks found by `find_landmarks`, against truth: synthetic spurs and hand-set points of people.

    python -m benchmarks.landmarks --work=DIR [--scans=FOLDER] [--subjects=20] [--output=benchmarks/results]

FOLDER holds chest CT and landmarks/NAME.csv (name, x_mm, y_mm, z_mm). One process, one scan at a time;
what DIR holds already is not made again, so that a run can be cut off, and --report only writes
landmarks.md from what is there. A point counts as accepted from a confidence of 0.5 on.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks import common
from lmreg_jax.anatomy._apices import apices
from lmreg_jax.anatomy.landmarks import ACCEPTED, NAMES, find_landmarks
from lmreg_jax.imaging.volume import Volume, spacing
from lmreg_jax.io.read import read_scan
from lmreg_jax.io.tables import replacing
from lmreg_jax.phantom import thorax
from lmreg_jax.phantom.spurs import spurs

Array = NDArray[Any]
Points = dict[str, Array]

SEED = 31  # of the synthetic subjects; no other program uses it


def coarser(volume: Volume, edges_mm: tuple[float, float, float]) -> Volume:
    """The scan at larger voxels: smoothed to them, then linear."""
    factor = np.array(edges_mm) / spacing(volume.affine)
    smooth = ndimage.gaussian_filter(
        volume.data.astype(np.float32), np.where(factor > 1.01, 0.35 * factor, 0)
    )
    shape = ((np.array(volume.data.shape) - 1) / factor).astype(int) + 1
    data = ndimage.affine_transform(smooth, factor, 0, tuple(shape), order=1, mode="nearest")
    return Volume(np.rint(data).astype(np.int16), volume.affine @ np.diag([*factor, 1.0]))


def noisy(volume: Volume, hu: float) -> Volume:
    """With Gaussian noise of standard deviation `hu`, correlated over neighbours as a soft kernel does."""
    noise = np.random.default_rng(0).standard_normal(volume.data.shape).astype(np.float32)
    noise = ndimage.gaussian_filter(noise, 0.5, mode="wrap")
    data = volume.data + noise * np.float32(hu / noise.std())
    return Volume(np.clip(np.rint(data), -1024, 3071).astype(np.int16), volume.affine)


def cropped(volume: Volume) -> Volume:
    """Without a tenth of the scan at each side, and without its lowest quarter."""
    x, y, z = volume.data.shape
    low = np.array([x // 10, y // 10, z // 4])
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    return Volume(volume.data[low[0] : x - low[0], low[1] : y - low[1], low[2] :], affine)


CHANGES: dict[str, Callable[[Volume], Volume]] = {
    "as it is": lambda v: v,
    "2 x 2 x 5 mm, 20 HU": lambda v: noisy(coarser(v, (2, 2, 5)), 20),
    "4.2 x 4.2 x 4 mm, 15 HU": lambda v: noisy(coarser(v, (4.2, 4.2, 4)), 15),
    "45 HU of noise": lambda v: noisy(v, 45),
}
REPEATS: dict[str, Callable[[Volume], Volume]] = {
    "as it is": lambda v: v,
    "2 mm": lambda v: coarser(v, (2.0, 2.0, 2.0)),
    "cropped": cropped,
    "30 HU of noise": lambda v: noisy(v, 30),
}


def subject(index: int, work: Path) -> tuple[Volume, Points]:
    """A synthetic subject and its truth: spurs from geometry, apices from its own lung labels."""
    file = work / f"s{SEED}_{index}.npz"
    if not file.exists():
        made = thorax(index, seed=SEED)
        with replacing(file) as temporary:
            np.savez(
                temporary, image=made.image, lungs=made.lungs, affine=made.affine, **spurs(index, seed=SEED)
            )
    with np.load(file) as held:
        truth = {name: held[name] for name in NAMES if name in held}
        volume, lungs = (Volume(held[kind], held["affine"]) for kind in ("image", "lungs"))
    truth |= {name: apex.point for name, apex in apices(volume, lungs).items() if apex.point is not None}
    return volume, truth


def people(folder: Path) -> Iterator[tuple[str, Volume, Points]]:
    for table in sorted((folder / "landmarks").glob("*.csv")):
        with open(table, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["name"] in NAMES]
        truth = {row["name"]: np.array([float(row[f"{axis}_mm"]) for axis in "xyz"]) for row in rows}
        yield table.stem, read_scan(folder / f"{table.stem}.nii.gz").volume, truth


def measured(volume: Volume, truth: Points, file: Path) -> dict[str, Any]:
    """{"points": {name: [x, y, z, confidence]}, "truth", "seconds" of processor time, "peak_mb"}; kept."""
    if not file.exists():
        start = time.process_time()
        found = find_landmarks(volume)
        seconds = time.process_time() - start
        points = {p.name: [*map(float, p.point), p.confidence] for p in found.points if p.point is not None}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row = {
            "points": points,
            "truth": {name: [float(x) for x in point] for name, point in truth.items()},
            "seconds": seconds,
            "peak_mb": peak,
            "notes": found.notes,
        }
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(row), encoding="utf-8")
    held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return held


def accepted(row: dict[str, Any]) -> Points:
    return {n: np.array(p[:3]) for n, p in row["points"].items() if p[3] >= ACCEPTED}


def errors(row: dict[str, Any], reference: Points | None = None) -> dict[str, float]:
    """mm from truth, or from other points, of the accepted points that are known there."""
    truth = {n: np.array(p) for n, p in row["truth"].items()} if reference is None else reference
    return {n: float(np.linalg.norm(p - truth[n])) for n, p in accepted(row).items() if n in truth}


def line(title: str, rows: list[dict[str, Any]]) -> list[str]:
    """scans, accepted of all, mean, median, largest error, and the mean by kind of point."""
    each = [errors(row) for row in rows]
    every = [e for one in each for e in one.values()]
    kinds = ("carina", "right_upper", "left_upper", "right_middle", "trachea", "apex")
    by_kind = [[e for one in each for n, e in one.items() if n.startswith(kind)] for kind in kinds]
    total = sum(len(row["truth"]) for row in rows)
    cells = [f"{np.mean(e):.1f} ({max(e):.1f})" if e else "-" for e in by_kind]
    share = f"{len(every)} of {total} ({100 * len(every) / total:.0f} %)"
    return [title, str(len(rows)), share, *(f"{f(every):.2f}" for f in (np.mean, np.median, max)), *cells]


HEADS = (
    "scans",
    "n",
    "accepted",
    "mean",
    "median",
    "largest",
    "carina",
    "RUL",
    "LUL",
    "RML",
    "trachea",
    "apex",
)


def report(work: Path) -> list[str]:
    """The tables of all that DIR holds."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(work.glob("*.json")):
        _, change = file.stem.split("__")
        kind = "synthetic" if file.stem.startswith("subject") else "person"
        rows.setdefault(f"{kind}: {change}", []).append(json.loads(file.read_text(encoding="utf-8")))
    lines = ["## Error against truth, mm (largest in brackets)", ""]
    lines += common.table(HEADS, [line(title, some) for title, some in sorted(rows.items(), reverse=True)])
    lines += ["", "## People: each point, mm (confidence)", ""]
    table, repeats = [], []
    for file in sorted(work.glob("person_*__as it is.json")):
        row = json.loads(file.read_text(encoding="utf-8"))
        name = file.stem.split("__")[0].removeprefix("person_")
        cells = []
        for point in NAMES:
            held = row["points"].get(point)
            off = (
                np.linalg.norm(np.subtract(held[:3], row["truth"][point]))
                if held and point in row["truth"]
                else None
            )
            cells.append("-" if held is None else f"{'' if off is None else f'{off:.1f} '}({held[3]:.2f})")
        table.append([name, *cells])
        for change in list(REPEATS)[1:]:
            other = work / f"person_{name}__{change}.json"
            if other.exists():
                again = json.loads(other.read_text(encoding="utf-8"))
                apart = errors(again, accepted(row))
                both = f"{len(apart)} of {len(accepted(row))}"
                repeats.append(
                    [
                        name,
                        change,
                        both,
                        f"{np.mean(list(apart.values())):.2f}",
                        f"{max(apart.values()):.2f}",
                        max(apart, key=lambda n: apart[n]),
                    ]
                )
    lines += common.table(("scan", *NAMES), table)
    lines += ["", "## People: repeatability, distance from the points of the scan as it is, mm", ""]
    lines += common.table(("scan", "change", "points", "mean", "largest", "at"), repeats, words=2)
    seconds = [row["seconds"] for some in rows.values() for row in some]
    peak = max(row["peak_mb"] for some in rows.values() for row in some)
    lines += ["", f"Processor time a scan: mean {np.mean(seconds):.1f} s, largest {max(seconds):.1f} s."]
    return [*lines, f"Peak memory of the process that measured them all: {peak:.0f} MB."]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scans", type=Path)
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--output", type=Path, default=common.RESULTS)
    parser.add_argument("--report", action="store_true", help="only write the report of what DIR holds")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if not given.report:
        _measure(given)
    where = common.environment("benchmarks.landmarks", ("numpy", "scipy"))
    text = ["# Landmarks found in chest CT", "", common.heading(where), "", *report(given.work), ""]
    with replacing(given.output / "landmarks.md") as temporary:
        temporary.write_text("\n".join(text), encoding="utf-8")


def _measure(given: argparse.Namespace) -> None:
    for name, volume, truth in people(given.scans) if given.scans else ():
        for title, change in REPEATS.items():
            measured(change(volume), truth, given.work / f"person_{name}__{title}.json")
            print(name, title, flush=True)
    for title, change in CHANGES.items():
        for index in range(given.subjects):
            file = given.work / f"subject{index:02d}__{title}.json"
            if not file.exists():
                volume, truth = subject(index, given.work)
                measured(change(volume), truth, file)
                print(index, title, flush=True)


if __name__ == "__main__":
    main()
