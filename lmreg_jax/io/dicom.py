"""A folder with a DICOM series as one volume, its slices checked one by one.

ITK stacks what it is given with the spacing of the first two slices; a missing slice, two series in
one folder or a tilted gantry then bend the body without a word. So the positions are looked at here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.errors import InputError
from lmreg_jax.io.nifti import MAX_INFLATION, MAX_VOXELS
from lmreg_jax.io.scan import LPS, SERIES_MARK, Scan, itk_reason, make_scan, simpleitk, storage

log = logging.getLogger(__name__)

Array = NDArray[Any]

POSITION, ORIENTATION, PIXELS = "0020|0032", "0020|0037", "0028|0030"
DESCRIPTION = "0008|103e"
OFF_GRID = 0.1  # of a slice's spacing: positions are rounded in files, and further off is no stack
TILT_MM = 0.01  # a slice; less is rounding
AIR_HU = -1000
LISTED = 12  # series; more are counted only


class Slice(NamedTuple):
    """One file's place in space, LPS mm."""

    file: str
    position: Array  # [3], centre of the first pixel
    orientation: Array  # [2, 3], unit vectors along a row (columns grow) and down a column
    pixel_mm: Array  # [2], between columns, between rows
    size: tuple[int, int]  # columns, rows


def read_series(folder: Path, series: str | None = None) -> Scan:
    """The one DICOM series of a folder, or the one with the UID `series`, in HU.

    A tilted gantry is undone: slices are shifted in their plane (linearly) to an upright grid. Raises
    InputError where there are several series, missing or doubled slices, or mixed sizes.
    """
    sitk = simpleitk(f"{folder}: reading DICOM")
    files = _files(sitk, folder, series)
    slices = [_slice(sitk, file) for file in files]
    slices, step = _stacked(folder, slices)
    data = _pixels(sitk, folder, [s.file for s in slices])
    first = slices[0]
    across, down = first.orientation
    normal = np.cross(across, down)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([across * first.pixel_mm[0], down * first.pixel_mm[1], step])
    affine[:3, 3] = first.position
    notes: tuple[str, ...] = ()
    drift = step - normal * (step @ normal)
    if np.linalg.norm(drift) > TILT_MM:
        degrees = np.degrees(np.arctan2(np.linalg.norm(drift), step @ normal))
        notes = (f"gantry tilted by {degrees:.1f} degrees: resampled to upright slices",)
        log.warning("%s: %s", folder, notes[0])
        data, affine = _upright(data, affine, normal * (step @ normal))
    return make_scan(str(folder), data, LPS @ affine, storage(data), notes)


def _files(sitk: Any, folder: Path, series: str | None) -> list[str]:
    found = {
        uid: list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid))
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    }
    if not found:
        raise InputError(f"{folder}: no DICOM series in this folder (its subfolders are not searched)")
    if series is None and len(found) == 1:
        return next(iter(found.values()))
    if series in found:
        return found[series]
    listed = "; ".join(
        f"{uid} ({len(files)} slices, {_header(sitk, files[0]).get(DESCRIPTION, 'no description').strip()})"
        for uid, files in list(found.items())[:LISTED]
    )
    if len(found) > LISTED:
        listed += f"; and {len(found) - LISTED} more"
    problem = f"no series {series}" if series else f"{len(found)} DICOM series"
    raise InputError(f"{folder}: {problem}; name one as {folder}{SERIES_MARK}UID, of {listed}")


def _header(sitk: Any, file: str) -> dict[str, str]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{file}: not a readable DICOM file ({itk_reason(error)})") from error
    header = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    return header | {"size": " ".join(str(n) for n in reader.GetSize())}


def _slice(sitk: Any, file: str) -> Slice:
    header = _header(sitk, file)
    size = [int(n) for n in header["size"].split()]
    if len(size) > 2 and size[2] > 1:
        raise InputError(f"{file}: several slices in one file; convert the series to .nii.gz (dcm2niix)")
    held = Path(file).stat().st_size
    if 2 * size[0] * size[1] > MAX_INFLATION * held:
        raise InputError(
            f"{file}: the header claims {size[0]} x {size[1]} pixels, more than the {held} bytes of the file"
            " can hold; it is damaged: export it again"
        )
    try:
        position = _numbers(header[POSITION], 3)
        orientation = _numbers(header[ORIENTATION], 6).reshape(2, 3)
        between_rows, between_columns = _numbers(header[PIXELS], 2)
    except (KeyError, ValueError):
        raise InputError(
            f"{file}: no position, orientation or pixel spacing in the DICOM header; leave out what is "
            "no slice of a CT (scouts, reports), or export the series again"
        ) from None
    if between_rows <= 0 or between_columns <= 0:
        raise InputError(
            f"{file}: pixel spacing {between_rows:g} x {between_columns:g} mm; it must be above 0"
        )
    orientation /= np.linalg.norm(orientation, axis=1, keepdims=True)
    return Slice(file, position, orientation, np.array([between_columns, between_rows]), (size[0], size[1]))


def _numbers(text: str, count: int) -> Array:
    values = np.array([float(part) for part in text.split("\\")])
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(text)
    return values


def _stacked(folder: Path, slices: Sequence[Slice]) -> tuple[list[Slice], Array]:
    """The slices in the order of their normal, and the step [3], LPS mm, from one to the next."""
    if len(slices) < 2:
        raise InputError(f"{folder}: a single slice; a series of two or more is needed")
    first = slices[0]
    for other in slices[1:]:
        same = other.size == first.size and np.allclose(other.pixel_mm, first.pixel_mm, rtol=1e-3)
        if not same or np.abs(other.orientation - first.orientation).max() > 1e-3:
            raise InputError(
                f"{folder}: {Path(first.file).name} and {Path(other.file).name} differ in size, pixel "
                "spacing or orientation; keep the slices of one stack (a scout among them?)"
            )
    normal = np.cross(*first.orientation)
    ordered = sorted(slices, key=lambda s: float(s.position @ normal))
    heights = np.array([s.position @ normal for s in ordered])
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    if gaps.min() < OFF_GRID * usual or usual <= 0:
        twice = int(np.argmin(gaps))
        raise InputError(
            f"{folder}: {Path(ordered[twice].file).name} and {Path(ordered[twice + 1].file).name} lie in "
            "one place; keep one acquisition or time point"
        )
    wide = np.flatnonzero(np.abs(gaps - usual) > OFF_GRID * usual)
    if len(wide):
        raise InputError(f"{folder}: {_gaps(ordered, heights, wide, usual)}")
    positions = np.array([s.position for s in ordered])
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    off = np.linalg.norm(positions - positions[0] - np.arange(len(ordered))[:, None] * step, axis=1)
    if off.max() > max(OFF_GRID * usual, 0.1):
        raise InputError(
            f"{folder}: {Path(ordered[int(off.argmax())].file).name} lies {off.max():.1f} mm off the "
            "straight stack of the others; keep the slices of one stack"
        )
    return ordered, step


def _gaps(ordered: Sequence[Slice], heights: Array, wide: Array, usual: float) -> str:
    """What is missing where: the first few gaps in words."""
    parts = []
    for k in wide[:3]:
        gap = heights[k + 1] - heights[k]
        names = f"{Path(ordered[k].file).name} and {Path(ordered[k + 1].file).name}"
        lost = round(gap / usual) - 1
        what = f"{lost} slice{'s' * (lost > 1)} missing" if lost > 0 else "uneven spacing"
        parts.append(f"{what} between {names} ({gap:.2f} mm apart, others {usual:.2f} mm)")
    more = f", and {len(wide) - 3} more" if len(wide) > 3 else ""
    return "; ".join(parts) + more + "; find the missing slices, or export the series again"


def _pixels(sitk: Any, folder: Path, files: Sequence[str]) -> Array:
    """[columns, rows, slices] after rescale slope and intercept, int16 where that loses nothing."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{folder}: cannot be read to its end ({itk_reason(error)})") from error
    if np.prod(image.GetSize(), dtype=float) > MAX_VOXELS or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{folder}: one number a pixel is needed, no colours")
    data = sitk.GetArrayFromImage(image).transpose()
    return data.astype(storage(data), copy=False)


def _upright(data: Array, affine: Array, step: Array) -> tuple[Array, Array]:
    """A sheared stack on the upright grid of the same pixels and slices, wide enough for all of it."""
    upright = affine.copy()
    upright[:3, 2] = step
    size = np.array(data.shape)
    shear = (np.linalg.inv(upright) @ affine)[:2, 2]  # pixels that each slice lies further on
    ends = np.array([np.zeros(2), shear * (size[2] - 1)])
    low = np.floor(ends.min(axis=0))
    high = np.ceil(ends.max(axis=0))
    upright[:3, 3] += upright[:3, :2] @ low
    size[:2] += (high - low).astype(int)
    fill = max(float(data.min()), AIR_HU)
    out = np.empty(tuple(size), np.float32)
    for k in range(size[2]):
        offset = low - shear * k
        out[..., k] = ndimage.affine_transform(
            data[..., k].astype(np.float32), np.eye(2), offset, size[:2], order=1, cval=fill
        )
    if data.dtype.kind in "iu":
        out = np.rint(out).astype(data.dtype)
    return out, upright
