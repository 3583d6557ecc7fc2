"""One subject as its files have it: lungs and points checked against the scan, the image left on disk."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.affine.moments import Moments, mask_moments
from lmreg_jax.anatomy.chest import Side, read_side
from lmreg_jax.anatomy.lungs import LEFT, RIGHT
from lmreg_jax.cohort.options import Options
from lmreg_jax.cohort.table import Row
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.intensity import looks_like_ct
from lmreg_jax.imaging.resampling import resample
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.io.points import check_points, read_points
from lmreg_jax.io.read import read_scan, whole_labels
from lmreg_jax.io.scan import Scan

Array = NDArray[Any]
Points = Mapping[str, Array]

SAME_GRID_MM = 1e-4  # between affines' entries: 0.05 mm at the far end of a scan


class Lungs(NamedTuple):
    """A lung mask on its scan's RAS+ grid, compressed to a hundredth of its size or less.

    source: "given" or "segmented"; litres as in `Side`; cut_off: whether the scan cuts the lungs off.
    """

    packed: bytes
    shape: tuple[int, ...]
    affine: Array
    source: str
    litres: tuple[float, ...]
    cut_off: bool
    moments: Moments

    def mask(self) -> Volume:
        """Labels [X, Y, Z] uint8: 1 left and 2 right, or all 1."""
        data = np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.shape)
        return Volume(data, self.affine)


class Subject(NamedTuple):
    """What the pipeline keeps of a subject between its two looks at the image.

    landmarks, points: {name: [3] RAS mm}; stored: the grid of the image's file, as JSON; digest: equal
    for equal images; notes: what is doubtful about scan and lungs.
    """

    row: Row
    lungs: Lungs | None
    landmarks: Points
    points: Points
    stored: dict[str, Any]
    digest: tuple[Any, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.row.name


def read_subject(row: Row, options: Options) -> Subject:
    """Reads and checks all files of a subject; segments its lungs where `options.lungs` says so.

    Raises InputError, naming the file, on what `read_scan`, `read_side` and `check_points` refuse.
    """
    scan = read_scan(row.image)
    side, notes = _side(scan, row, options)
    data = scan.volume.data
    return Subject(
        row,
        None if side is None else _packed(side, row),
        _points(row.landmarks, scan),
        _points(row.points, scan),
        {
            "shape": list(scan.shape),
            "axes": scan.axes,
            "dtype": str(scan.dtype),
            "affine_voxel_to_ras_mm": scan.affine.tolist(),
        },
        (data.shape, zlib.crc32(np.ascontiguousarray(data).data)),
        notes,
    )


def _side(scan: Scan, row: Row, options: Options) -> tuple[Side | None, tuple[str, ...]]:
    """The scan with its lungs, None without them, and notes. What is not CT is not checked as such."""
    if options.lungs == "none" or (options.lungs == "file" and row.lungs is None):
        return None, scan.notes
    mask = None if row.lungs is None or options.lungs == "segment" else _mask_on(scan, row.lungs)
    required = options.lungs in ("segment", "required")
    if not required and not looks_like_ct(scan.volume):
        return (None if mask is None else Side(scan, _sided(mask.volume), "given", (), ())), scan.notes
    try:
        side = read_side(scan, mask)
    except InputError as error:
        if required or mask is not None:
            raise
        return None, (*scan.notes, str(error))
    return side, side.warnings


def _sided(mask: Volume) -> Volume:
    """Labels 1 left and 2 right where the mask holds just these, else 1: no picture in HU tells more."""
    if set(np.unique(mask.data).tolist()) == {0, LEFT, RIGHT}:
        return Volume(mask.data.astype(np.uint8), mask.affine)
    return Volume((mask.data != 0).astype(np.uint8), mask.affine)


def _mask_on(scan: Scan, path: Path) -> Scan:
    """The labels of a mask's file on the scan's grid; a mask on another grid is resampled to it."""
    mask = read_scan(path)
    labels, affine = whole_labels(path, mask.volume)
    if not labels.any():
        raise InputError(f"{path}: the lung mask is empty; leave its cell empty instead")
    grid = scan.volume
    same = labels.shape == grid.data.shape
    if not same or not np.allclose(affine, grid.affine, rtol=0, atol=SAME_GRID_MM):
        before = np.count_nonzero(labels) * np.linalg.det(affine)
        labels = resample(Volume(labels, affine), grid.data.shape, grid.affine, order=0, fill=0)
        inside = np.count_nonzero(labels) * np.linalg.det(grid.affine) / before
        if inside < 0.5:
            raise InputError(
                f"{path}: {100 * (1 - inside):.0f} % of it lies outside {scan.path}; its affine is of"
                " another scan, or one of the two was saved without its orientation"
            )
    return mask._replace(volume=Volume(labels, grid.affine))


def _packed(side: Side, row: Row) -> Lungs:
    data, affine = side.lungs
    try:
        moments = mask_moments(side.lungs)
    except InputError as error:
        raise InputError(f"{row.lungs or row.image}: {error}") from error
    packed = zlib.compress(np.ascontiguousarray(data, np.uint8).data, 1)
    return Lungs(packed, data.shape, affine, side.source, side.litres, bool(side.cut_off), moments)


def _points(path: Path | None, scan: Scan) -> Points:
    if path is None:
        return {}
    points = read_points(path, scan, allow_empty=True)
    if points:
        check_points(path, points, scan)
    return points
