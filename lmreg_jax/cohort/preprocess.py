"""Raw scans, or a cohort of them, to a cohort on one grid; every step recorded, to be repeated and undone.

DIR/cases.csv, pairs.csv    the cohort that training reads (data.alignment=identity)
DIR/images/CASE.nii.gz      HU, on the common grid
DIR/lungs/CASE.nii.gz       1 left, 2 right (or all 1 where the mask's file does not tell); lobes likewise
DIR/landmarks/CASE.csv, points/CASE.csv   name,x,y,z in RAS mm of the common grid
DIR/qc/CASE.png             three planes with the lungs' outlines
DIR/transforms/CASE.h5, CASE_inverse.h5   common grid's mm -> scan's mm, and back (ITK, LPS)
DIR/steps.json              what was done to each scan
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.cohort.options import checked_options
from lmreg_jax.cohort.prepare import AIR_HU, CLIPPED_HU, Placed, place_all, plan
from lmreg_jax.cohort.table import FILES, TABLE, Row, case_name, is_cohort, read_cases, read_pairs
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.intensity import WINDOW
from lmreg_jax.imaging.resampling import smoothing
from lmreg_jax.imaging.transforms import affine_transform
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.nifti import write_volume
from lmreg_jax.io.points import in_frame, write_points
from lmreg_jax.io.transforms import write_itk

Array = NDArray[Any]
Say = Callable[[str], None]
Picture = Callable[[Path, Volume, Volume, str], object]  # file, image in HU, lungs, text

PAIRS = "pairs.csv"
FOLDERS = {name: name + "s" * (name == "image") for name in FILES}
KNOWN = (  # files below the folder, as patterns
    *(TABLE, PAIRS, "steps.json", "qc/*.png", "transforms/*.h5"),
    *(f"{folder}/*" for folder in FOLDERS.values()),
)

Pairs = tuple[tuple[str, str], ...]


def sources(
    paths: Sequence[str],
    masks: Sequence[str] = (),
    landmarks: Sequence[str] = (),
    points: Sequence[str] = (),
) -> tuple[list[Row], Pairs | None]:
    """Scans named after their files, or the cases and pairs of a cohort (its folder or its cases.csv).

    masks, landmarks, points: empty, or a file for each path, "-" for none. Raises InputError where
    their number differs, where two names are equal, and where a cohort comes with anything else.
    """
    columns: dict[str, Sequence[str]] = {"lungs": masks, "landmarks": landmarks, "points": points}
    columns = {column: files for column, files in columns.items() if files}
    options = {"lungs": "--masks", "landmarks": "--landmarks", "points": "--points"}
    cohort = next((path for path in paths if is_cohort(path)), None)
    if cohort is not None:
        if len(paths) > 1:
            raise InputError(f"{cohort}: a cohort; expected no other scan next to it, got {len(paths) - 1}")
        if columns:
            raise InputError(f"{options[min(columns)]}: {cohort} is a cohort, its table names these files")
        root = Path(cohort) if os.path.isdir(cohort) else Path(cohort).parent
        rows = read_cases(root, allow_outside_root=True)
        return rows, read_pairs(root, rows)
    named: dict[str, Row] = {}
    for column, files in columns.items():
        if len(files) != len(paths):
            raise InputError(
                f"{options[column]}: {len(files)} for {len(paths)} scans; expected one for each, in their"
                " order, - for none"
            )
    for i, path in enumerate(paths):
        name = case_name(path)
        if name in named:
            raise InputError(f"{named[name].image} and {path}: both are named {name!r}; rename one")
        own = {column: Path(files[i]) for column, files in columns.items() if files[i] != "-"}
        named[name] = Row(name, "train", Path(path), **own)
    return list(named.values()), None


def preprocess(
    rows: list[Row],
    pairs: Pairs | None,
    folder: Path,
    *,
    reference: str = "",
    shape: tuple[int, int, int] = (160, 112, 208),
    spacing_mm: float = 2.0,
    affine: str = "auto",
    say: Say = lambda _: None,
    picture: Picture = lambda *_: None,
    progress: bool = False,
) -> dict[str, Any]:
    """Writes the cohort of `rows` into `folder`; returns what steps.json holds.

    reference: a case's name; by default the training case whose lungs are most like all others' and
    not cut off. Raises InputError, naming the file, on the first scan that cannot be used.
    """
    if min(shape) < 16 or not 0.1 <= spacing_mm <= 20:
        raise InputError(
            f"grid of {' x '.join(map(str, shape))} voxels of {spacing_mm:g} mm: expected at least 16 voxels"
            " an axis, of 0.1 to 20 mm"
        )
    names = [row.name for row in rows]
    if reference and reference not in names:
        raise InputError(f"--reference {reference}: no such case; there are {', '.join(names)}")
    options = checked_options(shape, spacing_mm, WINDOW, "hu", (), affine, reference, "required")
    say(f"lungs of {len(names)} scans")
    cohort = plan(rows, options, progress)
    first: dict[tuple[Any, ...], Row] = {}
    for subject in cohort.subjects:
        row, same = subject.row, first.setdefault(subject.digest, subject.row)
        if same is not row:
            raise InputError(f"{same.image} and {row.image}: identical images; give each scan once")
    say(f"alignment to {cohort.reference.subject.name}, resampling")
    grid = cohort.reference.affine
    tables: dict[str, dict[str, str]] = {}
    steps: dict[str, Any] = {}
    for placed in place_all(cohort, options, progress, in_hu=True):
        name, lungs = placed.subject.name, placed.case.lungs
        assert lungs is not None  # They are required.
        tables[name], left_out = _write_case(folder, placed, grid, cohort.names)
        steps[name] = _record(folder, placed, left_out)
        shown = Volume(placed.case.image, grid), Volume(lungs, grid)
        picture(folder / "qc" / f"{name}.png", *shown, _title(placed, steps[name]["warnings"]))
    record = {
        "reference": cohort.reference.subject.name,
        "grid": {"shape": list(shape), "spacing_mm": spacing_mm, "affine_voxel_to_ras_mm": grid.tolist()},
        "window_of_training_hu": list(WINDOW),
        "read_with": {"data.alignment": "identity", "data.shape": list(shape), "data.spacing_mm": spacing_mm},
        "cases": steps,
    }
    (folder / "steps.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    header = ("case", "split", *FILES)
    lines = [[row.name, row.split, *(tables[row.name].get(c, "") for c in FILES)] for row in rows]
    _write_table(folder / TABLE, header, lines)
    if pairs:
        _write_table(folder / PAIRS, ("fixed", "moving"), pairs)
    return record


def _write_case(
    folder: Path, placed: Placed, grid: Array, names: tuple[tuple[str, ...], tuple[str, ...]]
) -> tuple[dict[str, str], list[str]]:
    """Writes a case's images and points; their names by column, and the points outside the grid."""
    case, image = placed.case, Volume(placed.case.image, grid)
    written, left_out = {}, []
    for column, data in (("image", case.image), ("lungs", case.lungs), ("lobes", case.lobes)):
        if data is not None:
            written[column] = f"{FOLDERS[column]}/{case.name}.nii.gz"
            dtype = np.int16 if column == "image" else None
            write_volume(folder / written[column], Volume(data, grid), dtype)
    to_grid = np.linalg.inv(placed.affine.pull)
    for column, order, mm in zip(
        ("landmarks", "points"), names, (case.landmarks_mm, case.points_mm), strict=True
    ):
        moved = dict(zip(order, apply_affine(to_grid, mm), strict=True))
        inside = {name: bool(in_frame(point, image)) for name, point in moved.items()}
        left_out += [name for name, point in moved.items() if np.isfinite(point).all() and not inside[name]]
        kept = {name: point for name, point in moved.items() if inside[name]}
        if kept:
            written[column] = f"{FOLDERS[column]}/{case.name}.csv"
            write_points(folder / written[column], kept)
    return written, left_out


def _record(folder: Path, placed: Placed, left_out: Sequence[str]) -> dict[str, Any]:
    """What was done to a scan, for steps.json; writes its transforms."""
    subject, affine, case = placed
    lungs, stored = subject.lungs, subject.stored
    assert lungs is not None and case.lungs is not None
    warnings = [*subject.notes, *affine.notes]
    litres = np.count_nonzero(case.lungs) * abs(np.linalg.det(case.scan_from_grid)) / 1e6
    if litres < 0.99 * sum(lungs.litres):
        warnings.append(f"the grid holds {litres:.2f} of {sum(lungs.litres):.2f} litres of lung")
    if left_out:
        warnings.append(f"outside the grid, and left out: {', '.join(left_out)}")
    files: list[str] | str = [f"transforms/{case.name}.h5", f"transforms/{case.name}_inverse.h5"]
    try:
        write_itk(folder / files[0], affine_transform(affine.pull))
        write_itk(folder / files[1], affine_transform(np.linalg.inv(affine.pull)))
    except InputError:
        files = 'not written: SimpleITK is not installed (pip install "lmreg_jax[itk]")'
    stored_to_mm = np.array(stored["affine_voxel_to_ras_mm"])
    return {
        "path": os.path.abspath(subject.row.image),
        "stored": stored,
        "lungs": {
            "source": lungs.source,
            "mask": None if subject.row.lungs is None else str(subject.row.lungs),
            "litres": list(lungs.litres),
        },
        "intensities": {
            "clipped_to_hu": list(CLIPPED_HU),
            "smoothed_by_sigma_ras_voxels": smoothing(
                np.linalg.inv(lungs.affine) @ case.scan_from_grid
            ).tolist(),
            "outside_the_scan_hu": AIR_HU,
        },
        "affine": {"method": affine.method, "reference_to_scan_ras_mm": affine.pull.tolist()},
        "grid_voxel_to_scan_ras_mm": case.scan_from_grid.tolist(),
        "grid_voxel_to_stored_voxel": (np.linalg.inv(stored_to_mm) @ case.scan_from_grid).tolist(),
        "stored_voxel_to_grid_voxel": (np.linalg.inv(case.scan_from_grid) @ stored_to_mm).tolist(),
        "transforms": files,
        "warnings": warnings,
    }


def _title(placed: Placed, warnings: Sequence[str]) -> str:
    name, lungs = placed.subject.name, placed.subject.lungs
    assert lungs is not None
    litres = " + ".join(f"{value:.2f}" for value in lungs.litres)
    title = f"{name}: lungs {lungs.source}, {litres} litres, aligned by {placed.affine.method}"
    return "\n".join([title, *(f"! {warning}" for warning in warnings)])


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
