"""Scans as users have them: NIfTI, MetaImage, NRRD and DICOM series, and the grid they came on.

Inside the package a scan is RAS+ (see `volumes`); a `Scan` also remembers the file's own axes, so
that results can be given back on the very grid that the user knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import DTypeLike, NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import SPACING_LIMITS, Volume, check_axes, shear_notes, spacing
from lmreg_jax.io.tables import reason

Array = NDArray[Any]

RAS_ORIENTATION = np.array([[0, 1], [1, 1], [2, 1]])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS mm <-> LPS mm: x and y change sign
ITK_IMAGES = (".mha", ".mhd", ".nrrd", ".nhdr")
SERIES_MARK = "::"  # FOLDER::SERIES_UID names one of several DICOM series


class Scan(NamedTuple):
    """An image in RAS+, and the grid that its file stores it on.

    notes: what its geometry made necessary or doubtful, in words, for the report.
    """

    volume: Volume
    path: str
    shape: tuple[int, int, int]  # of the file
    affine: Array  # [4, 4], voxel of the file -> RAS mm
    dtype: np.dtype[Any]  # of the file's values: what it takes to store the like of them
    notes: tuple[str, ...] = ()

    @property
    def axes(self) -> str:
        """The directions in which the file's axes grow, e.g. "LPS"."""
        return "".join(map(str, nib.aff2axcodes(self.affine)))

    def to_native(self, array: Array) -> Array:
        """An array [X, Y, Z, ...] on the RAS+ grid, its axes turned to the order of the file."""
        turn = ornt_transform(RAS_ORIENTATION, io_orientation(self.affine))
        return apply_orientation(array, turn)

    def to_ras(self, array: Array) -> Array:
        """An array [i, j, k, ...] in the order of the file, its axes turned to RAS+."""
        return apply_orientation(array, io_orientation(self.affine))


def simpleitk(purpose: str) -> Any:
    """The module SimpleITK, imported when it is needed; InputError with the way to install it."""
    try:
        import SimpleITK
    except ImportError:
        raise InputError(
            f'{purpose} needs SimpleITK, which is not installed: pip install "lmreg_jax[itk]"'
        ) from None
    return SimpleITK


def make_scan(path: str, data: Array, affine: Array, dtype: DTypeLike, notes: tuple[str, ...] = ()) -> Scan:
    """A checked Scan of an array [i, j, k] as stored and its affine (voxel -> RAS mm).

    notes: what was done to it before. Raises InputError on NaN, fewer than 2 voxels along an axis, and
    unusable spacings.
    """
    if data.ndim != 3 or min(data.shape) < 2:
        raise InputError(f"{path}: shape {data.shape}; a 3-D image, 2 or more voxels an axis, is needed")
    edges = spacing(affine)
    if not np.isfinite(affine).all() or edges.min() < SPACING_LIMITS[0] or edges.max() > SPACING_LIMITS[1]:
        raise InputError(f"{path}: voxel spacing {edges} mm; zero, tiny and huge spacings are refused")
    check_axes(path, affine)
    if data.dtype.kind not in "iu":
        data = data.astype(np.float32, copy=False)
        broken = data.size - int(np.isfinite(data).sum())
        if broken:
            raise InputError(f"{path}: {broken} voxels are NaN or infinite; replace them (with air)")
    turn = io_orientation(affine)
    ras = Volume(apply_orientation(data, turn), affine @ inv_ornt_aff(turn, data.shape))
    return Scan(ras, path, _triple(data.shape), affine, np.dtype(dtype), (*notes, *shear_notes(affine)))


def itk_affine(image: Any) -> Array:
    """Voxel -> RAS mm, [4, 4], of a SimpleITK image or of its reader."""
    out = np.eye(4)
    out[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    out[:3, 3] = image.GetOrigin()
    return LPS @ out


def storage(data: Array) -> np.dtype[Any]:
    """int16 where all (scaled) values are whole numbers that it holds, as HU are; else float32."""
    whole = data.min() >= -32768 and data.max() <= 32767 and np.array_equal(data, np.rint(data))
    return np.dtype(np.int16 if whole else np.float32)


def itk_reason(error: BaseException) -> str:
    """The last line of an ITK error: the first ones name its source files."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else reason(error)


def _triple(shape: Sequence[int]) -> tuple[int, int, int]:
    return int(shape[0]), int(shape[1]), int(shape[2])
