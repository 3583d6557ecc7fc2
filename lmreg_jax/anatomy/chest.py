"""One scan of a pair, checked: that it is a chest CT in HU, with its lungs, given or segmented."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.anatomy.lungs import LEFT, RIGHT, lung_report
from lmreg_jax.anatomy.segmentation import segment_lungs
from lmreg_jax.errors import InputError
from lmreg_jax.imaging import intensity
from lmreg_jax.imaging.volume import Volume, spacing
from lmreg_jax.io.images import as_scan
from lmreg_jax.io.read import read_mask
from lmreg_jax.io.scan import Scan

Array = NDArray[Any]

CHEST_MM = (120.0, 1500.0)  # along an axis: less shows no lungs, more is a wrong unit of length
STORED = (0.0, 4500.0)  # what scanners store before the intercept of -1024 or -1000 is added
MOST_OF_SCAN = 0.6  # lungs fill at most a third of a scan; more is a body mask, or an inverted one
AIR_INSIDE = 0.3  # of a lung mask is air at least, even where half of the lung is consolidated


class Side(NamedTuple):
    """The fixed or the moving scan; lungs on its grid (1 left, 2 right; or all 1).

    source: "given" or "segmented"; litres: (left, right), or (both,) where the sides are not told
    apart; warnings: doubts in words, for the report.
    """

    scan: Scan
    lungs: Volume
    source: str
    litres: tuple[float, ...]
    warnings: tuple[str, ...]


def read_side(image: Any, mask: Any = None) -> Side:
    """Reads and checks a chest CT; segments its lungs where no mask is given.

    image, mask: a path, nibabel or SimpleITK image, or a `Scan`.

    Raises InputError, naming the file, on what is no CT in HU, shows no lungs, or has a mask that is
    empty, on another grid or not of lungs.
    """
    scan = as_scan(image, "scan")
    path = scan.path
    check_ct(scan)
    if mask is None:
        try:
            lungs, source = segment_lungs(scan.volume), "segmented"
        except InputError:
            raise InputError(
                f"{path}: no lungs found, there is no air inside a body (a scan of head or abdomen?);"
                " a chest CT in HU is needed, or give the lungs as a mask"
            ) from None
    else:
        drawn = as_scan(mask, "mask")
        lungs, source = _sided(read_mask(drawn, scan)), "given"
        _check_lungs(drawn.path, lungs, scan)
    report = lung_report(lungs)
    if np.any(lungs.data == RIGHT):
        warnings = (*scan.notes, *report.warnings)
        return Side(scan, lungs, source, (report.left_litres, report.right_litres), warnings)
    # An unsided mask is all 1: doubts about "the left lung" and "the right lung" mean nothing.
    doubts = tuple(w for w in report.warnings if "cut off" in w or "sides of the field" in w)
    return Side(scan, lungs, source, (report.left_litres,), (*scan.notes, *doubts))


def check_ct(scan: Scan) -> None:
    """InputError where a scan cannot be a chest CT in HU, saying what it looks like instead."""
    volume, path = scan.volume, scan.path
    size = spacing(volume.affine) * volume.data.shape
    if size.min() < CHEST_MM[0] or size.max() > CHEST_MM[1]:
        raise InputError(
            f"{path}: spans {' x '.join(f'{s:.4g}' for s in size)} mm; a chest needs {CHEST_MM[0]:g} to"
            f" {CHEST_MM[1]:g} mm along each axis: is the voxel size in its header in mm?"
        )
    if intensity.looks_like_ct(volume):
        return
    low, high = float(volume.data.min()), float(volume.data.max())
    shown = f"{path}: no CT in HU: values from {low:g} to {high:g}"
    if low == high:
        raise InputError(f"{shown}; the image is empty: export it again")
    if low >= STORED[0] and 1000 < high <= STORED[1]:
        raise InputError(
            f"{shown}; they look like stored values without the rescale intercept: subtract 1024"
            " (or what the DICOM header's RescaleIntercept says), or give the DICOM folder"
        )
    if high - low <= 300 and low >= -1:
        raise InputError(f"{shown}; they look windowed or normalised: HU are needed (air -1000, water 0)")
    raise InputError(
        f"{shown}; air (below -400) and soft tissue (-150 to 200) should both be plenty: chest CT in HU"
        " is needed (air -1000, water 0)"
    )


def check_pair(fixed: Scan, moving: Scan) -> None:
    """InputError where both are one and the same image, so that nothing is left to register."""
    same_file = os.path.exists(fixed.path) and os.path.exists(moving.path)
    same_file = same_file and os.path.samefile(fixed.path, moving.path)
    if same_file or (
        fixed.volume.data.shape == moving.volume.data.shape
        and np.array_equal(fixed.volume.data, moving.volume.data)
    ):
        raise InputError(f"{fixed.path} and {moving.path}: identical images; give two different scans")


def _sided(mask: Volume) -> Volume:
    """Labels 1 left and 2 right where the mask holds just these, else 1."""
    found = np.unique(mask.data)
    sided = set(found.tolist()) == {0, LEFT, RIGHT}
    return Volume(mask.data.astype(np.uint8) if sided else (mask.data != 0).astype(np.uint8), mask.affine)


def _check_lungs(path: str, lungs: Volume, scan: Scan) -> None:
    share = np.count_nonzero(lungs.data) / lungs.data.size
    if share > MOST_OF_SCAN:
        raise InputError(
            f"{path}: marks {100 * share:.0f} % of the scan; lungs fill far less: 0 must be outside, and"
            " 1 (or 1 left, 2 right) the lungs"
        )
    values = scan.volume.data[lungs.data != 0]
    air = float(np.mean(values < -400))
    if air < AIR_INSIDE:
        raise InputError(
            f"{path}: only {100 * air:.0f} % of it is air in {scan.path} (below -400 HU); it does not lie"
            " on the lungs: is it of another scan, or flipped?"
        )
