"""One scan of a pair, checked: that it is a chest CT in HU, with its lungs, given or segmented."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.anatomy import lungs as lung_masks
from lmreg_jax.anatomy.field_of_view import measured
from lmreg_jax.anatomy.orientation import check_orientation
from lmreg_jax.anatomy.segmentation import segment_lungs
from lmreg_jax.anatomy.sides import given_lungs
from lmreg_jax.errors import InputError
from lmreg_jax.imaging import intensity
from lmreg_jax.imaging.volume import Volume, spacing
from lmreg_jax.io.images import as_scan
from lmreg_jax.io.read import read_mask
from lmreg_jax.io.scan import Scan

Array = NDArray[Any]

CHEST_MM = (60.0, 1500.0)  # in x and y, from a newborn's chest; outside is a wrong unit of length
LEAST_HEIGHT_MM = 20.0  # in z: the bases of the lungs alone
STORED = (0.0, 4500.0)  # what scanners store before the intercept of -1024 or -1000 is added


class Side(NamedTuple):
    """The fixed or the moving scan; lungs on its grid (1 left, 2 right).

    source: "given" or "segmented"; litres: (left, right); warnings: doubts for the report; measured: see
    `field_of_view.measured`, None: all.
    """

    scan: Scan
    lungs: Volume
    source: str
    litres: tuple[float, ...]
    warnings: tuple[str, ...]
    measured: Array | None = None

    @property
    def cut_off(self) -> dict[str, float]:
        """{"base" or "apex": cm^2 of lung on the last slice}, for ends that the scan cuts off."""
        return lung_masks.cut_off(self.lungs, self.measured)


def read_side(image: Any, mask: Any = None) -> Side:
    """Reads and checks a chest CT; segments its lungs where no mask is given.

    image, mask: a path, nibabel or SimpleITK image, or a `Scan`.

    Raises InputError, naming the file, on what is no CT in HU, shows no lungs, contradicts its header,
    or has a mask that is empty, on another grid or not of its lungs.
    """
    scan = as_scan(image, "scan")
    path = scan.path
    check_ct(scan, masked=mask is not None)
    shown = measured(scan.volume)
    notes = list(scan.notes)
    if shown is not None:
        missing = 100 * float(np.mean(~shown))
        notes.append(f"{missing:.0f} % of the frame was not measured (filled in): it is left out")
    if mask is None:
        try:
            lungs, source = segment_lungs(scan.volume, shown), "segmented"
        except InputError:
            raise InputError(
                f"{path}: no lungs found, there is no air inside a body (a scan of head or abdomen?);"
                " a chest CT in HU is needed, or give the lungs as a mask"
            ) from None
    else:
        drawn = as_scan(mask, "mask")
        lungs, doubts = given_lungs(drawn.path, read_mask(drawn, scan), scan.volume)
        source, notes = "given", [*notes, *doubts]
    notes += check_orientation(path, scan.volume, lungs)
    report = lung_masks.lung_report(lungs, shown)
    litres = (report.left_litres, report.right_litres)
    return Side(scan, lungs, source, litres, (*notes, *report.warnings), shown)


def check_ct(scan: Scan, *, masked: bool = False) -> None:
    """InputError where a scan cannot be a chest CT in HU, saying what it looks like instead.

    masked: its lungs are given, so that it may show little of them.
    """
    volume, path = scan.volume, scan.path
    size = spacing(volume.affine) * volume.data.shape
    if size[:2].min() < CHEST_MM[0] or size[2] < LEAST_HEIGHT_MM or size.max() > CHEST_MM[1]:
        raise InputError(
            f"{path}: spans {' x '.join(f'{s:.4g}' for s in size)} mm; a chest needs {CHEST_MM[0]:g} to"
            f" {CHEST_MM[1]:g} mm in x and y, {LEAST_HEIGHT_MM:g} mm or more in z: is the voxel size in its"
            " header in mm?"
        )
    if intensity.looks_like_ct(volume, least_air=0.003 if masked else 0.03):
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
