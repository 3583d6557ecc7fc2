"""Corresponding points in the formats that people keep them in, as {name: [3] RAS mm}.

.csv        name,x,y,z in RAS mm; or voxels: three numbers a line without a header, as in Learn2Reg
.fcsv       3D Slicer's older markups; their CoordinateSystem line is obeyed
.mrk.json   3D Slicer's markups; their coordinateSystem is obeyed

Voxels are indices in the order in which the image's file stores its axes, counted from 0.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.intensity import looks_like_ct
from lmreg_jax.imaging.volume import Volume, apply_affine, spacing
from lmreg_jax.io.markups import checked_point, fcsv_text, markups_text, needed_image, read_fcsv, read_markups
from lmreg_jax.io.scan import LPS, Scan
from lmreg_jax.io.tables import read_table, reason, replacing

log = logging.getLogger(__name__)

Array = NDArray[Any]
Points = dict[str, Array]

UNITS = ("mm", "voxel")


def read_points(
    path: str | os.PathLike[str],
    image: Scan | None = None,
    unit: str | None = None,
    *,
    allow_empty: bool = False,
) -> Points:
    """The points of a .csv, .fcsv or .mrk.json file, {name: [3] RAS mm}, in the file's order.

    unit, for .csv only: "mm" (RAS) or "voxel" of `image`; without it, a file with names holds mm and
    one without a header voxels. Raises InputError, naming file and line, on what is not clear.
    """
    path = Path(path)
    name = path.name.lower()
    if unit == "voxel" and not name.endswith(".csv"):
        raise InputError(f"{path}: says itself what its unit is; 'voxel' can be chosen for .csv only")
    if name.endswith(".fcsv"):
        return read_fcsv(path, image)
    if name.endswith(".json"):
        return read_markups(path, image)
    if name.endswith(".csv"):
        return _read_csv(path, image, unit, allow_empty)
    raise InputError(f"{path}: not a kind of points; .csv, .fcsv or .mrk.json is needed")


def holds_voxels(path: str | os.PathLike[str], unit: str | None = None) -> bool:
    """Whether the points of a file are voxel indices, as `read_points` would take them."""
    path = Path(path)
    if not path.name.lower().endswith(".csv") or unit:
        return unit == "voxel"
    return not _has_header(path)


def write_points(
    path: str | os.PathLike[str],
    points: Mapping[str, Array],
    image: Scan | None = None,
    unit: str | None = None,
) -> None:
    """Writes {name: [3] RAS mm} as .csv (unit "mm", or "voxel" of `image`), .fcsv or .mrk.json (LPS).

    Voxels of points that came without names are written without a header again, one a line.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith((".csv", ".fcsv", ".mrk.json")):
        raise InputError(f"{path}: points are written as .csv, .fcsv or .mrk.json")
    if unit == "voxel" and name.endswith(".csv"):
        _write_voxels(path, points, needed_image(path, image))
    elif name.endswith(".csv"):
        _write_named(path, points)
    else:
        lps = {key: apply_affine(LPS, point) for key, point in points.items()}
        text = fcsv_text(lps) if name.endswith(".fcsv") else markups_text(lps)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _has_header(path: Path) -> bool:
    """Whether the first line holds anything but numbers."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = next(csv.reader(file), [])
    except FileNotFoundError:
        raise InputError(f"{path}: no such table") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file ({reason(error)})") from error
    return not first or not all(_is_number(cell) for cell in first if cell.strip())


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_csv(path: Path, image: Scan | None, unit: str | None, allow_empty: bool) -> Points:
    if not _has_header(path):
        points = _numbered(path, [(i, row) for i, row in enumerate(_rows(path), start=1) if any(row)])
        unit = unit or "voxel"
    else:
        header = [cell.strip().lower() for cell in (_rows(path) or [[]])[0]]
        if "name" in header or "x" not in header:
            points = _read_named(path)  # says what is missing
            unit = unit or "mm"
        elif unit is None:
            raise InputError(
                f"{path}: columns {','.join(header)} without names could be mm or voxels; say which "
                "(--points-unit mm or voxel)"
            )
        else:
            table = read_table(path, required=("x", "y", "z"))
            points = _numbered(path, [(line, [row[a] for a in "xyz"]) for line, row in table])
    if unit == "voxel":
        affine = needed_image(path, image).affine
        points = {name: apply_affine(affine, point) for name, point in points.items()}
    if not points and not allow_empty:
        raise InputError(f"{path}: no points in it")
    return points


def _rows(path: Path) -> list[list[str]]:
    try:
        return [[c.strip() for c in row] for row in csv.reader(path.read_text("utf-8-sig").splitlines())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file ({reason(error)})") from error


def _numbered(path: Path, lines: list[tuple[int, list[str]]]) -> Points:
    """Points without names, called by their place in the file: "1", "2", ..."""
    points: Points = {}
    for line, cells in lines:
        point = checked_point(path, f"line {line}", cells[:3])
        points[str(len(points) + 1)] = point
    if any(len(cells) > 3 for _, cells in lines):
        log.warning("%s: more than three numbers a line; the first three are taken", path)
    return points


def _write_voxels(path: Path, points: Mapping[str, Array], image: Scan) -> None:
    inverse = np.linalg.inv(image.affine)
    named = list(points) != [str(i + 1) for i in range(len(points))]
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if named:
            writer.writerow(["name", "x", "y", "z"])
        for name, point in points.items():
            cells = [f"{value:.4f}" for value in apply_affine(inverse, point)]
            writer.writerow([name, *cells] if named else cells)


def _read_named(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Landmarks of a CSV with the columns name,x,y,z: {name: [3] RAS mm}, in the file's order.

    A row with a name and no coordinates is a missing landmark. Raises InputError, naming file and
    line, on duplicates, missing columns, and coordinates that are no finite numbers.
    """
    path = Path(path)
    points: dict[str, Array] = {}
    for line, row in read_table(path, required=("name", "x", "y", "z")):
        name, cells = row["name"], [row[axis] for axis in "xyz"]
        if not name:
            raise InputError(f"{path}, line {line}: a landmark without a name")
        if name in points:
            raise InputError(f"{path}, line {line}: landmark {name!r} is there twice; keep one")
        if not any(cells):
            continue
        try:
            point = np.array([float(cell) for cell in cells])
        except ValueError:
            point = np.full(3, np.nan)
        if not np.isfinite(point).all():
            raise InputError(
                f"{path}, line {line}: landmark {name!r} has coordinates {', '.join(cells)}; three "
                "finite numbers (RAS mm) are needed; leave the row out where it is missing"
            )
        points[name] = point
    return points


def _write_named(path: str | os.PathLike[str], points: Mapping[str, Array]) -> None:
    """Writes {name: [3] RAS mm} as name,x,y,z, to 0.1 micrometres; NaN rows are left out."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "x", "y", "z"])
        for name, point in points.items():
            if np.isfinite(point).all():
                writer.writerow([name, *(f"{value:.4f}" for value in point)])


COARSE_MM = 4.0  # a body is looked for at this step
SKIN_MM = 10.0  # points may lie this far outside of it
SOLID_HU = -500  # fat and more; the lungs are filled in
FEW, MOST = 0.2, 0.8  # shares of points inside: as given, and with x and y mirrored


def check_points(path: str | os.PathLike[str], points: Mapping[str, Array], scan: Scan) -> None:
    """InputError where points (RAS mm) lie outside the scan's frame or nearly all outside the body in
    it, or were read in LPS for RAS.

    The mix-up can be told only where mirroring x and y brings nearly all points from outside the body
    to its inside.
    """
    values = np.array(list(points.values())).reshape(-1, 3)
    mirrored = apply_affine(LPS, values)
    here, there = (float(np.mean(_in_body(p, scan.volume))) for p in (values, mirrored))
    if here <= FEW and there >= MOST:
        raise InputError(
            f"{path}: {100 * (1 - here):.0f} % of the points lie outside the body of {scan.path}, but "
            f"{100 * there:.0f} % inside with the signs of x and y changed: they seem to be LPS where RAS "
            "is needed, or the other way round; change these signs"
        )
    outside = [name for name, ok in zip(points, in_frame(values, scan.volume), strict=True) if not ok]
    if outside:
        shown = ", ".join(outside[:5]) + (" ..." if len(outside) > 5 else "")
        raise InputError(
            f"{path}: {len(outside)} of {len(points)} points lie outside the scan {scan.path} ({shown}); "
            "are they in RAS mm of this scan? Mend them or leave them out"
        )
    if here <= FEW:
        raise InputError(
            f"{path}: {100 * (1 - here):.0f} % of the points lie outside the body of {scan.path}: do they"
            " belong to this scan, in RAS mm?"
        )


def in_frame(points_mm: Array, volume: Volume) -> Array:
    """Which points [K, 3] RAS mm lie in some voxel of the volume, bool [K]."""
    index = apply_affine(np.linalg.inv(volume.affine), points_mm)
    return np.all((index >= -0.5) & (index <= np.array(volume.data.shape) - 0.5), axis=-1)


def _in_body(points_mm: Array, volume: Volume) -> Array:
    """Which points lie in the body of a CT, lungs included; of other images, in the frame."""
    inside = in_frame(points_mm, volume)
    if not inside.any() or not looks_like_ct(volume):
        return inside
    stride = np.maximum(np.rint(COARSE_MM / spacing(volume.affine)), 1).astype(int)
    solid = volume.data[:: stride[0], :: stride[1], :: stride[2]] > SOLID_HU
    parts, count = ndimage.label(solid)
    if count == 0:
        return inside
    body = parts == 1 + np.argmax(ndimage.sum_labels(solid, parts, np.arange(1, count + 1)))
    for k in range(body.shape[2]):
        body[:, :, k] = ndimage.binary_fill_holes(body[:, :, k])
    near = ndimage.distance_transform_edt(~body, sampling=stride * spacing(volume.affine)) <= SKIN_MM
    index = np.rint(apply_affine(np.linalg.inv(volume.affine), points_mm) / stride)
    index = np.clip(index, 0, np.array(body.shape) - 1).astype(int)
    return inside & near[tuple(index.T)]
