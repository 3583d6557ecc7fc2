"""3D Slicer's point files: .fcsv and .mrk.json, {name: [3] RAS mm}.

Both say which coordinate system they hold, and that is obeyed; what is written is LPS, as Slicer
itself writes it.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import apply_affine
from lmreg_jax.io.scan import LPS, Scan
from lmreg_jax.io.tables import reason, text_of

log = logging.getLogger(__name__)

Array = NDArray[Any]
Points = dict[str, Array]

SYSTEMS = {"RAS": "RAS", "0": "RAS", "LPS": "LPS", "1": "LPS", "IJK": "IJK", "2": "IJK"}  # of Slicer
PLACED = "2"  # a point's status in a .fcsv; 0 never placed, 1 preview, 3 marked as missing
POINT_LIST = "Fiducial"  # the type of a .mrk.json
LENGTHS = {"mm": 1.0, "um": 1e-3, "µm": 1e-3, "micrometer": 1e-3, "cm": 10.0, "m": 1e3}
FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/"
    "Resources/Schema/markups-schema-v1.0.3.json#"
)


def read_fcsv(path: Path, image: Scan | None) -> Points:
    """The placed points of a .fcsv file in RAS mm; `image` is needed for IJK only. Raises InputError.

    Slicer 5 writes each point's status (PLACED or not) behind the columns that it names.
    """
    lines = text_of(path, ".fcsv").splitlines()
    remarks = [line.lstrip("# ").partition("=") for line in lines if line.startswith("#")]
    said = {key.strip().lower(): value.strip() for key, _, value in remarks}
    columns = [c.strip() for c in said.get("columns", FCSV_COLUMNS).split(",")]
    found, unplaced = [], []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#") or not line.strip():
            continue
        try:
            cells = next(csv.reader([line]))
        except csv.Error as error:
            raise InputError(f"{path}, line {number}: not readable ({reason(error)})") from error
        row = dict(zip(columns, cells, strict=False))
        name = row.get("label") or row.get("id") or ""
        status = next(iter(cells[len(columns) :]), "").strip()
        if status not in ("", PLACED):
            unplaced.append(name)
            continue
        found.append((name, checked_point(path, f"line {number}", [row.get(axis) for axis in "xyz"])))
    log_left_out(path, unplaced)
    if not found:
        raise InputError(f"{path}: no points in it")
    return _to_ras(path, found, said.get("coordinatesystem"), 1.0, image)


def read_markups(path: Path, image: Scan | None) -> Points:
    """The defined control points of a .mrk.json file in RAS mm. Raises InputError.

    Of point lists only: the control points of a line, a curve or a box are not landmarks.
    """
    text = text_of(path, ".mrk.json")
    found: Points = {}
    unplaced = []
    try:
        for markup in json.loads(text)["markups"]:
            kind = markup.get("type", POINT_LIST)
            if kind != POINT_LIST:
                raise InputError(
                    f"{path}: holds a markup of the type {kind}, whose control points are not landmarks;"
                    " save a point list alone"
                )
            points = []
            for p in markup["controlPoints"]:
                name = str(p.get("label") or p.get("id") or "")
                if p.get("positionStatus", "defined") != "defined":
                    unplaced.append(name)
                    continue
                points.append((name, checked_point(path, f"control point {name!r}", p.get("position"))))
            unit = _unit_mm(path, markup.get("coordinateUnits", "mm"))
            system = markup.get("coordinateSystem")
            for name, point in _to_ras(path, points, system, unit, image).items():
                if name in found:
                    raise InputError(f"{path}: point {name!r} is there twice; give each its own label")
                found[name] = point
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a Slicer markups file ({reason(error)})") from error
    log_left_out(path, unplaced)
    if not found:
        raise InputError(f"{path}: no points in it")
    return found


def log_left_out(path: Path, names: Sequence[str]) -> None:
    """Warns of points that were never placed, or marked as missing."""
    if names:
        log.warning("%s: not placed, left out: %s", path, ", ".join(names))


def _unit_mm(path: Path, unit: Any) -> float:
    """A markup's unit of length in mm; a coded entry [code, scheme, meaning] counts by its code."""
    code = unit[0] if isinstance(unit, list) and unit else unit
    if code not in LENGTHS:
        raise InputError(f"{path}: coordinateUnits {unit}; expected one of {', '.join(LENGTHS)}")
    return LENGTHS[code]


def _to_ras(
    path: Path, found: list[tuple[str, Array]], system: Any, unit_mm: float, image: Scan | None
) -> Points:
    """Points of a Slicer file to RAS mm, by the coordinate system that the file names."""
    frame = None if system is None else SYSTEMS.get(str(system).upper())
    if frame is None:
        raise InputError(
            f"{path}: coordinate system {'not given' if system is None else system}; the file must say RAS"
            " or LPS (CoordinateSystem): save it again with 3D Slicer"
        )
    to_ras = np.diag([unit_mm, unit_mm, unit_mm, 1.0])
    if frame == "LPS":
        to_ras = LPS @ to_ras
    elif frame == "IJK":
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
        raise InputError(f"{path}, {where}: {values}; expected three finite numbers")
    return point


def needed_image(path: Path, image: Scan | None) -> Scan:
    """The image whose voxels a file counts; InputError where none was named."""
    if image is None:
        raise InputError(f"{path}: holds voxel indices; name the image that they count the voxels of")
    return image
