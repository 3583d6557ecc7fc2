"""What the verdict says of registrations that went well and of ones spoilt on purpose, against the truth.

    python -m benchmarks.verdict --scans=FOLDER [--output=benchmarks/results]

FOLDER holds chest CT and landmarks/NAME.csv (name, x_mm, y_mm, z_mm), points set by hand that neither guide
nor judge. Each ordered pair of them is registered as `lmreg register` does it, and worse: without guidance,
with few steps, without an affine step, the moving scan mirrored. Then each good result is spoilt: shifted,
and bent where no lung surface shows it. Writes verdict.md.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from lmreg_jax.anatomy.chest import Side, read_side
from lmreg_jax.anatomy.landmarks import Landmarks, find_landmarks
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.transforms import Transform, transform_points
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.images import as_scan
from lmreg_jax.model.weights import DEFAULT
from lmreg_jax.registration import measures
from lmreg_jax.registration.scans import Model, Registered, load_model, register_sides
from lmreg_jax.registration.verdict import Verdict, judged

Array = NDArray[Any]

SHIFTS_MM = (5.0, 10.0, 20.0)
BUMPS_MM = (10.0, 20.0)  # of the mediastinum, along z
BUMP_SD_MM = 40.0
AIRWAY = ("carina", "bronchus", "trachea")  # in the names of points that lie on airways
HEADS = ("spoilt by", "fixed", "moving", "airways off (mm)", "worst point (mm)", "verdict", "first reason")


class Subject(NamedTuple):
    side: Side
    found: Landmarks
    truth: dict[str, Array]


def subject(path: Path) -> Subject:
    side = read_side(as_scan(path, "scan"))
    rows = csv.DictReader((path.parent / "landmarks" / f"{stem(path)}.csv").open(encoding="utf-8"))
    truth = {row["name"]: np.array([float(row[f"{axis}_mm"]) for axis in "xyz"]) for row in rows}
    return Subject(side, find_landmarks(side.scan.volume, side.lungs), truth)


def mirrored(one: Subject) -> Subject:
    """Left and right exchanged in the voxels, and not in the header: what a lost flip does."""
    volume = one.side.scan.volume
    scan = one.side.scan._replace(volume=Volume(volume.data[::-1].copy(), volume.affine))
    side = read_side(scan)
    flip = volume.affine @ np.diag([-1.0, 1, 1, 1])
    flip[:3, 3] = apply_affine(volume.affine, np.array([volume.data.shape[0] - 1.0, 0, 0]))
    to = flip @ np.linalg.inv(volume.affine)
    truth = {name: apply_affine(to, point) for name, point in one.truth.items()}
    return Subject(side, find_landmarks(side.scan.volume, side.lungs), truth)


def registered(fixed: Subject, moving: Subject, model: Model, **settings: Any) -> Registered:
    guide = fixed.found.weighted(), moving.found.weighted()
    return register_sides(fixed.side, moving.side, model, **{"refine": 60, "guide": guide, **settings})


def moved(found: Registered, add: Array) -> Registered:
    """The same with `add` [X, Y, Z, 3] or [3], mm, on the displacement; the inverse is not asked for it."""
    forward = found.forward._replace(displacement=(found.forward.displacement + add).astype(np.float32))
    return found._replace(forward=forward)


def bump(transform: Transform, centre: Array, mm: float) -> Array:
    """A Gaussian hill of motion along z around a point, RAS mm, on the grid of a transform."""
    grid = np.moveaxis(np.indices(transform.displacement.shape[:3]), 0, -1)
    away = apply_affine(transform.grid, grid) - centre
    hill = np.exp(-0.5 * np.sum(away**2, axis=-1) / BUMP_SD_MM**2)
    return hill[..., None] * np.array([0, 0, mm])


def said(found: Registered, fixed: Subject, moving: Subject) -> tuple[Verdict, float, float]:
    """The verdict, and by points set by hand the mean error on the airways and the largest of all, mm."""
    summary = measures.summary(found, fixed.side, moving.side)
    airways = fixed.found.centreline(), moving.found.centreline()
    verdict = judged(summary, found, fixed.side, moving.side, airways)
    names = [name for name in fixed.truth if name in moving.truth]
    there = transform_points(found.forward, np.array([fixed.truth[name] for name in names]))
    error = np.linalg.norm(there - np.array([moving.truth[name] for name in names]), axis=1)
    inner = [any(word in name for word in AIRWAY) for name in names]
    return verdict, float(error[inner].mean()), float(error.max())


def cases(fixed: Subject, moving: Subject, model: Model) -> Iterator[tuple[str, Registered, Subject]]:
    found = registered(fixed, moving, model)
    yield "nothing", found, moving
    for mm in SHIFTS_MM:
        yield f"a shift of {mm:.0f} mm", moved(found, np.array([0, mm, 0])), moving
    for mm in BUMPS_MM:
        spoilt = moved(found, bump(found.forward, fixed.truth["carina"], mm))
        yield f"a mediastinum bent by {mm:.0f} mm", spoilt, moving
    yield "no guidance", registered(fixed, moving, model, guide=None), moving
    yield "no affine step, no guidance", registered(fixed, moving, model, guide=None, affine="none"), moving
    yield "network alone, no guidance", registered(fixed, moving, model, guide=None, refine=0), moving
    yield "5 steps", registered(fixed, moving, model, refine=5), moving
    flipped = mirrored(moving)
    try:
        yield "a mirrored moving scan", registered(fixed, flipped, model), flipped
    except InputError as error:
        print(f"mirrored: {error}")


def stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--scans", type=Path, required=True)
    given = parser.parse_args()
    names = sorted(path.stem for path in (given.scans / "landmarks").glob("*.csv"))
    people = {name: subject(given.scans / f"{name}.nii.gz") for name in names}
    model, rows = load_model(DEFAULT), []
    where = common.environment("benchmarks.verdict")
    for f, m in itertools.permutations(names, 2):
        for spoilt, found, moving in cases(people[f], people[m], model):
            verdict, airways, worst = said(found, people[f], moving)
            reason = verdict.reasons[0] if verdict.reasons else ""
            rows.append([spoilt, f, m, f"{airways:.1f}", f"{worst:.1f}", verdict.value, reason])
            print(" | ".join(rows[-1]), flush=True)
    rows.sort(key=lambda row: float(row[3]))
    wrong = [row for row in rows if row[5] == "good" and float(row[3]) > 10]
    low = [row for row in rows if row[5] == "poor" and float(row[3]) < 4]
    lines = [
        "# The verdict against the truth",
        "",
        f"{common.heading(where)} All ordered pairs of {len(names)} people with points set by hand, ours by"
        " default and spoilt on purpose, by the error on the airways. Above 10 mm and called good:"
        f" {len(wrong)}. Below 4 mm and called poor: {len(low)} of {sum(float(row[3]) < 4 for row in rows)}.",
        "",
        *common.table(HEADS, rows, words=3),
    ]
    common.write(given.output / "verdict", where, None, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
