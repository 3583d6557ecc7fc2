"""Scans and masks from whatever file holds them: NIfTI, MetaImage, NRRD, a DICOM series."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume, shear_notes, spacing
from lmreg_jax.io import headers
from lmreg_jax.io.dicom import read_series
from lmreg_jax.io.nifti import read_volume, unit_mm
from lmreg_jax.io.nifti_stream import NIFTI
from lmreg_jax.io.scan import (
    ITK_IMAGES,
    SERIES_MARK,
    Scan,
    _triple,
    itk_affine,
    itk_reason,
    make_scan,
    simpleitk,
    storage,
)

Array = NDArray[Any]


def read_scan(path: str | os.PathLike[str]) -> Scan:
    """A 3-D image: .nii, .nii.gz; .mha, .mhd, .nrrd or a folder with one DICOM series by SimpleITK.

    `FOLDER::SERIES_UID` picks one of several series. Raises InputError, naming the file, where it
    cannot be read, is not 3-D, is not finite, or its geometry cannot be trusted.
    """
    name = os.fspath(path)
    folder, _, series = name.partition(SERIES_MARK)
    if Path(folder).is_dir():
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


def read_mask(source: str | os.PathLike[str] | Scan, scan: Scan) -> Volume:
    """A mask or label map on the grid of `scan`, RAS+, whole numbers; of a file, or read already.

    Raises InputError where it lies on another grid, holds fractions or negative numbers, or nothing.
    """
    mask = source if isinstance(source, Scan) else read_scan(source)
    path = mask.path
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


def _read_nifti(path: str) -> Scan:
    volume = read_volume(path)  # checks all there is to check
    image: Any = nib.load(path)
    affine = np.array(image.affine, np.float64)
    affine[:3] *= unit_mm(image)
    proxy = image.dataobj
    scaled = proxy.slope != 1 or proxy.inter != 0
    dtype = storage(volume.data) if scaled else np.dtype(image.get_data_dtype().newbyteorder("="))
    return Scan(volume, path, _triple(image.shape), affine, dtype, shear_notes(affine))


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
