"""3D Slicer's point files: .fcsv and .mrk.json, {name: [3] RAS mm}.

Both say which coordinate system they hold, and that is obeyed; what is written is LPS, as Slicer
itself writes it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import apply_affine
from lmreg_jax.io.scan import LPS, Scan
from lmreg_jax.io.tables import reason

Array = NDArray[Any]
Points = dict[str, Array]

SYSTEMS = {"RAS": "RAS", "0": "RAS", "LPS": "LPS", "1": "LPS", "IJK": "IJK", "2": "IJK"}  # of Slicer
FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/"
    "Resources/Schema/markups-schema-v1.0.3.json#"
)


def read_fcsv(path: Path, image: Scan | None) -> Points:
    """The points of a .fcsv file in RAS mm; `image` is needed for IJK only. Raises InputError."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such table") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable .fcsv file ({reason(error)})") from error
    remarks = [line.lstrip("# ").partition("=") for line in lines if line.startswith("#")]
    said = {key.strip().lower(): value.strip() for key, _, value in remarks}
    columns = [c.strip() for c in said.get("columns", FCSV_COLUMNS).split(",")]
    found = []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#") or not line.strip():
            continue
        try:
            row = dict(zip(columns, next(csv.reader([line])), strict=False))
        except csv.Error as error:
            raise InputError(f"{path}, line {number}: not readable ({reason(error)})") from error
        point = checked_point(path, f"line {number}", [row.get(axis) for axis in "xyz"])
        found.append((row.get("label") or row.get("id") or "", point))
    return _to_ras(path, found, said.get("coordinatesystem"), image)


def read_markups(path: Path, image: Scan | None) -> Points:
    """The defined control points of a .mrk.json file in RAS mm. Raises InputError."""
    try:
        markups = json.loads(path.read_text("utf-8-sig"))["markups"]
        found: Points = {}
        for markup in markups:
            points = [
                (
                    str(p.get("label") or p.get("id") or ""),
                    checked_point(path, "controlPoints", p.get("position")),
                )
                for p in markup["controlPoints"]
                if p.get("positionStatus", "defined") == "defined"
            ]
            for name, point in _to_ras(path, points, markup.get("coordinateSystem"), image).items():
                if name in found:
                    raise InputError(f"{path}: point {name!r} is there twice; give each its own label")
                found[name] = point
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a Slicer markups file ({reason(error)})") from error
    if not found:
        raise InputError(f"{path}: no points in it")
    return found


def _to_ras(path: Path, found: list[tuple[str, Array]], system: str | None, image: Scan | None) -> Points:
    """Points of a Slicer file to RAS mm, by the coordinate system that the file names."""
    known = SYSTEMS.get((system or "").upper())
    if known is None:
        raise InputError(
            f"{path}: coordinate system {system or 'not given'}; the file must say RAS or LPS "
            "(CoordinateSystem): save it again with 3D Slicer"
        )
    to_ras = np.eye(4)
    if known == "LPS":
        to_ras = LPS
    elif known == "IJK":
        to_ras = needed_image(path, image).affine
    points: Points = {}
    for name, point in found:
        if not name or name in points:
            raise InputError(f"{path}: point {name!r} is there twice or has no label; give each its own")
        points[name] = apply_affine(to_ras, point)
    return points


def fcsv_text(lps: Mapping[str, Array]) -> str:
    """The .fcsv file of points in LPS mm."""
    lines = ["# Markups fiducial file version = 5.0", "# CoordinateSystem = LPS"]
    lines.append(f"# columns = {FCSV_COLUMNS}")
    for number, (name, point) in enumerate(lps.items(), start=1):
        label = '"' + name.replace('"', '""') + '"' if "," in name or '"' in name else name
        lines.append(f"{number},{','.join(f'{v:.4f}' for v in point)},0,0,0,1,1,1,0,{label},,")
    return "\n".join(lines) + "\n"


def markups_text(lps: Mapping[str, Array]) -> str:
    """The .mrk.json file of points in LPS mm."""
    control = [
        {"id": str(i), "label": name, "position": [round(float(v), 4) for v in point]}
        for i, (name, point) in enumerate(lps.items(), start=1)
    ]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": control}
    return json.dumps({"@schema": SCHEMA, "markups": [markup]}, indent=1) + "\n"


def checked_point(path: Path, where: str, values: Any) -> Array:
    """Three finite numbers as [3]; InputError, naming file and place, where they are none."""
    try:
        point = np.array([float(value) for value in values])
    except (TypeError, ValueError, OverflowError):
        point = np.zeros(0)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise InputError(f"{path}, {where}: {values}; three finite numbers are needed")
    return point


def needed_image(path: Path, image: Scan | None) -> Scan:
    """The image whose voxels a file counts; InputError where none was named."""
    if image is None:
        raise InputError(f"{path}: holds voxel indices; name the image that they count the voxels of")
    return image
