"""Scans as users have them: NIfTI, MetaImage, NRRD and DICOM series, and the grid they came on.

Inside the package a scan is RAS+ (see `volumes`); a `Scan` also remembers the file's own axes, so
that results can be given back on the very grid that the user knows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import DTypeLike, NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import (
    SPACING_LIMITS,
    Volume,
    check_axes,
    read_volume,
    shear_notes,
    spacing,
    unit_mm,
    write_volume,
)
from lmreg_jax.io import headers
from lmreg_jax.io.nifti_stream import NIFTI
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

    def to_native(self, array: Array) -> Array:
        """An array [X, Y, Z, ...] on the RAS+ grid, its axes turned to the order of the file."""
        turn = ornt_transform(RAS_ORIENTATION, io_orientation(self.affine))
        return apply_orientation(array, turn)

    def to_ras(self, array: Array) -> Array:
        """An array [i, j, k, ...] in the order of the file, its axes turned to RAS+."""
        return apply_orientation(array, io_orientation(self.affine))


def read_scan(path: str | os.PathLike[str]) -> Scan:
    """A 3-D image: .nii, .nii.gz; .mha, .mhd, .nrrd or a folder with one DICOM series by SimpleITK.

    `FOLDER::SERIES_UID` picks one of several series. Raises InputError, naming the file, where it
    cannot be read, is not 3-D, is not finite, or its geometry cannot be trusted.
    """
    name = os.fspath(path)
    folder, _, series = name.partition(SERIES_MARK)
    if Path(folder).is_dir():
        from lmreg_jax.io.dicom import read_series

        return read_series(Path(folder), series or None)
    if not Path(name).exists():
        raise InputError(f"{name}: no such image")
    if name.lower().endswith(NIFTI):
        return _read_nifti(name)
    if name.lower().endswith(ITK_IMAGES):
        return _read_itk(name)
    raise InputError(
        f"{name}: not a kind of image that can be read; .nii, .nii.gz, .mha, .mhd, .nrrd or the "
        "folder of a DICOM series is needed"
    )


def read_mask(path: str | os.PathLike[str], scan: Scan) -> Volume:
    """A mask or label map on the grid of `scan`, RAS+, whole numbers.

    Raises InputError where it lies on another grid, holds fractions or negative numbers, or nothing.
    """
    mask = read_scan(path)
    if mask.volume.data.shape != scan.volume.data.shape or not _same_place(mask, scan):
        raise InputError(
            f"{path}: a mask on another grid than its scan: {_grid(mask)}, but {scan.path} has "
            f"{_grid(scan)}; resample the mask to the scan (nearest neighbour)"
        )
    labels = whole_labels(path, mask.volume)
    if not labels.data.any():
        raise InputError(f"{path}: the mask is empty; give one that marks something, or none")
    return Volume(labels.data, scan.volume.affine)


def whole_labels(path: str | os.PathLike[str], volume: Volume) -> Volume:
    """The same with an integer type. Raises InputError on fractions and on negative numbers."""
    data = volume.data
    if data.dtype.kind not in "iu":
        if not np.array_equal(data, np.rint(data)):
            raise InputError(f"{path}: a mask with fractions; whole numbers (labels) are needed")
        data = data.astype(np.int32)
    if data.min() < 0:
        raise InputError(f"{path}: a mask with negative labels; 0 is outside, 1 and above inside")
    return Volume(data, volume.affine)


def write_native(
    path: str | os.PathLike[str], scan: Scan, array: Array, dtype: DTypeLike | None = None
) -> None:
    """Writes an array [X, Y, Z] on the RAS+ grid of `scan` to .nii[.gz], on the file's own grid.

    `dtype` as in `volumes.write_volume`.
    """
    write_volume(path, Volume(scan.to_native(array), scan.affine), dtype)


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


def _read_nifti(path: str) -> Scan:
    volume = read_volume(path)  # checks all there is to check
    image: Any = nib.load(path)
    affine = np.array(image.affine, np.float64)
    affine[:3] *= unit_mm(image)
    proxy = image.dataobj
    scaled = proxy.slope != 1 or proxy.inter != 0
    dtype = storage(volume.data) if scaled else np.dtype(image.get_data_dtype().newbyteorder("="))
    return Scan(volume, path, _triple(image.shape), affine, dtype, shear_notes(affine))


def storage(data: Array) -> np.dtype[Any]:
    """int16 where all (scaled) values are whole numbers that it holds, as HU are; else float32."""
    whole = data.min() >= -32768 and data.max() <= 32767 and np.array_equal(data, np.rint(data))
    return np.dtype(np.int16 if whole else np.float32)


def _read_itk(path: str) -> Scan:
    sitk = simpleitk(f"{path}: reading this format")
    try:
        reader = headers.information(sitk, path)
        size, channels = reader.GetSize(), reader.GetNumberOfComponents()
        if len(size) > 3 and all(n == 1 for n in size[3:]):
            reader.SetExtractSize([*size[:3], *([0] * (len(size) - 3))])
        elif len(size) != 3:
            raise InputError(f"{path}: {len(size)}-D, {size}; a 3-D image is needed")
        if channels != 1:
            raise InputError(f"{path}: {channels} values a voxel; one is needed (save one channel)")
        image = reader.Execute()
    except (RuntimeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable image ({itk_reason(error)})") from error
    data = sitk.GetArrayFromImage(image).transpose()
    return make_scan(path, data, itk_affine(image), data.dtype)


def itk_reason(error: BaseException) -> str:
    """The last line of an ITK error: the first ones name its source files."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else reason(error)


def _same_place(a: Scan, b: Scan) -> bool:
    """Whether two RAS+ grids of one shape agree within a tenth of a voxel in all corners."""
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(a.volume.data.shape) - 1)
    difference = (a.volume.affine - b.volume.affine) @ np.column_stack([corners, np.ones(8)]).T
    return bool(np.abs(difference[:3]).max() < 0.1 * spacing(b.volume.affine).min())


def _grid(scan: Scan) -> str:
    size = " x ".join(str(n) for n in scan.shape)
    edges = " x ".join(f"{s:.3g}" for s in spacing(scan.affine))
    origin = ", ".join(f"{x:.1f}" for x in scan.affine[:3, 3])
    return f"{size} voxels of {edges} mm from ({origin})"


def _triple(shape: Sequence[int]) -> tuple[int, int, int]:
    return int(shape[0]), int(shape[1]), int(shape[2])
