"""Corresponding points in the formats that people keep them in, as {name: [3] RAS mm}.

    .csv        name,x,y,z in RAS mm; label,l,p,s or label,r,a,s (Slicer's tables); name,i,j,k (voxels);
                or voxels: three numbers a line without a header, as in Learn2Reg; further columns are free
    .fcsv       3D Slicer's older markups; their CoordinateSystem line is obeyed
    .mrk.json   3D Slicer's markups; their coordinateSystem and coordinateUnits are obeyed

Voxels are indices in the order in which the image's file stores its axes, counted from 0.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.intensity import looks_like_ct
from lmreg_jax.imaging.volume import Volume, apply_affine, spacing
from lmreg_jax.io.markups import (
    checked_point,
    fcsv_text,
    log_left_out,
    markups_text,
    needed_image,
    read_fcsv,
    read_markups,
)
from lmreg_jax.io.scan import LPS, Scan
from lmreg_jax.io.tables import read_rows, read_table, replacing

Array = NDArray[Any]
Points = dict[str, Array]

NAMES = ("name", "label")
AXES = {"xyz": None, "ras": "mm", "lps": "mm", "ijk": "voxel"}  # columns and their unit
NUMBERED_HEADERS = ([0, 1, 2], [1, 2, 3])  # what tables without names are saved with


def read_points(
    path: str | os.PathLike[str],
    image: Scan | None = None,
    unit: str | None = None,
    *,
    allow_empty: bool = False,
) -> Points:
    """The points of a .csv, .fcsv or .mrk.json file, {name: [3] RAS mm}, in the file's order.

    unit, for .csv only: "mm" (RAS) or "voxel" of `image`; without it, columns x,y,z with names hold mm,
    and a file without a header voxels. Points that were never placed are left out, and logged.
    Raises InputError, naming file and line, on what is not clear.
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
    raise InputError(f"{path}: not a kind of points; expected .csv, .fcsv or .mrk.json")


def holds_voxels(path: str | os.PathLike[str], unit: str | None = None) -> bool:
    """Whether the points of a file are voxel indices, as `read_points` would take them."""
    path = Path(path)
    if not path.name.lower().endswith(".csv"):
        return unit == "voxel"
    return _columns(path, unit).unit == "voxel"


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


class Columns(NamedTuple):
    """How a .csv holds its points. name: the names' column; axes: "" without a header."""

    name: str | None
    axes: str
    unit: str


def _columns(path: Path, unit: str | None) -> Columns:
    """What the first line says; InputError where it does not say enough, or contradicts `unit`."""
    header = [cell.lower() for cell in (read_rows(path) or [[]])[0]]
    if header and all(_is_number(cell) for cell in header if cell):
        if [float(cell) for cell in header if cell][:3] in NUMBERED_HEADERS:
            raise InputError(
                f"{path}: its first line, {','.join(header)}, seems to name the columns by number; name them "
                "name,x,y,z (RAS mm) or i,j,k (voxels), or delete the line"
            )
        return Columns(None, "", unit or "voxel")
    name = next((column for column in NAMES if column in header), None)
    axes = [letters for letters in AXES if set(letters) <= set(header)]
    if len(axes) > 1:
        raise InputError(f"{path}: coordinates twice, {' and '.join(axes)}, in {','.join(header)}; keep one")
    if not axes:
        read_table(path, ("name", "x", "y", "z"))  # raises: says what is missing
        raise InputError(f"{path}: no coordinates in {','.join(header)}")
    meant = AXES[axes[0]] or unit or ("mm" if name else None)
    if meant is None:
        raise InputError(
            f"{path}: columns {','.join(header)} without names could be mm or voxels; say which "
            "(--points-unit mm or voxel)"
        )
    if unit and unit != meant:
        raise InputError(f"{path}: columns {','.join(axes[0])} hold {meant}, not {unit}")
    return Columns(name, axes[0], meant)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_csv(path: Path, image: Scan | None, unit: str | None, allow_empty: bool) -> Points:
    columns = _columns(path, unit)
    points = _read_named(path, columns) if columns.axes else _read_bare(path)
    if columns.unit == "voxel":
        affine = needed_image(path, image).affine
    else:
        affine = LPS if columns.axes == "lps" else np.eye(4)
    if not points and not allow_empty:
        raise InputError(f"{path}: no points in it")
    return {name: apply_affine(affine, point) for name, point in points.items()}


def _read_bare(path: Path) -> Points:
    """Three numbers a line, called by their place in the file: "1", "2", ..."""
    points: Points = {}
    for line, cells in enumerate(read_rows(path), start=1):
        if not any(cells):
            continue
        while cells and not cells[-1]:
            cells.pop()
        if len(cells) > 3:
            raise InputError(
                f"{path}, line {line}: {len(cells)} numbers, and no header that says which three are the "
                "point: write one (name,x,y,z)"
            )
        points[str(len(points) + 1)] = checked_point(path, f"line {line}", cells)
    return points


def _read_named(path: Path, columns: Columns) -> Points:
    """Points of a CSV with a header, in its own coordinates and the file's order.

    Without a column of names they are called by their place. A row with a name and no coordinates, or
    "defined" 0 (Slicer), is a missing landmark. Raises InputError, naming file and line, on duplicates
    and on coordinates that are no finite numbers.
    """
    points: Points = {}
    undefined = []
    for line, row in read_table(path, required=tuple(columns.axes)):
        cells = [row[axis] for axis in columns.axes]
        name = row[columns.name] if columns.name else str(len(points) + 1)
        if not name:
            raise InputError(f"{path}, line {line}: a landmark without a name")
        if name in points:
            raise InputError(f"{path}, line {line}: landmark {name!r} is there twice; keep one")
        if row.get("defined", "1") == "0":
            undefined.append(name)
        elif any(cells):
            points[name] = checked_point(path, f"line {line}: landmark {name!r}", cells)
    log_left_out(path, undefined)
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
