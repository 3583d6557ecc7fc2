"""A folder with a DICOM series as one volume, its slices checked one by one.

ITK stacks what it is given with the spacing of the first two slices; a missing slice, two series in
one folder or a tilted gantry then bend the body without a word. So each position is compared with the
straight line through all of them (least squares): files round positions, often to 0.1 mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.transforms import identity_transform, warp_image
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.io.scan import LPS, SERIES_MARK, Scan, itk_reason, make_scan, simpleitk, storage

Array = NDArray[Any]

POSITION, ORIENTATION, PIXELS = "0020|0032", "0020|0037", "0028|0030"
DESCRIPTION = "0008|103e"
OFF_LINE = 0.1  # mm, or of a slice's spacing: positions are rounded in files, further off is no stack
DOUBLED, MISSING = 0.1, 1.6  # of the usual gap; rounding to 0.1 mm makes 0.3 of 0.25, not more
SCOUT = 3  # slices at most: a localiser next to the scan
RIGHT_ANGLE = 0.02  # cosine of rows and columns: directions are rounded to 2 decimals at worst
TILT_MM = 0.01  # a slice; less is rounding
AIR_BELOW_HU, PADDING_HU = -200, -2000.0  # in a CT; what was not measured, below all HU
LISTED = 12  # series or gaps at most in a message


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
    files, notes = _files(sitk, folder, series)
    slices, origin, step = _stacked(folder, [_slice(sitk, file) for file in files])
    data = _pixels(sitk, folder, [s.file for s in slices])
    first = slices[0]
    across, down = first.orientation
    normal = np.cross(across, down)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([across * first.pixel_mm[0], down * first.pixel_mm[1], step])
    affine[:3, 3] = origin
    drift = step - normal * (step @ normal)
    if np.linalg.norm(drift) > TILT_MM:
        degrees = np.degrees(np.arctan2(np.linalg.norm(drift), step @ normal))
        notes = (*notes, f"gantry tilted by {degrees:.1f} degrees: resampled to upright slices")
        data, affine = _upright(data, affine, normal * (step @ normal))
    return make_scan(str(folder), data, LPS @ affine, storage(data), notes)


def _files(sitk: Any, folder: Path, series: str | None) -> tuple[list[str], tuple[str, ...]]:
    """The files of the series, and a note where scouts in the folder were left out."""
    found = {
        uid: list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid))
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    }
    if not found:
        raise InputError(f"{folder}: no DICOM series in this folder (its subfolders are not searched)")
    if series in found:
        return found[series], ()
    stacks = [uid for uid, files in found.items() if len(files) > SCOUT] if len(found) > 1 else list(found)
    if series is None and len(stacks) == 1:
        rest = len(found) - 1
        note = f"{rest} series of at most {SCOUT} slices (scouts?) in its folder left out"
        return found[stacks[0]], (note,) * (rest > 0)
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
    lengths = np.linalg.norm(orientation, axis=1, keepdims=True)
    if lengths.min() < 0.9 or abs(orientation[0] @ orientation[1]) > RIGHT_ANGLE:
        raise InputError(
            f"{file}: rows and columns (ImageOrientationPatient) are not at right angles; export it again"
        )
    across = orientation[0] / lengths[0]
    down = orientation[1] - across * (across @ orientation[1])
    orientation = np.stack([across, down / np.linalg.norm(down)])
    return Slice(file, position, orientation, np.array([between_columns, between_rows]), (size[0], size[1]))


def _numbers(text: str, count: int) -> Array:
    values = np.array([float(part) for part in text.split("\\")])
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ValueError(text)
    return values


def _stacked(folder: Path, slices: Sequence[Slice]) -> tuple[list[Slice], Array, Array]:
    """The slices in the order of their normal, and the line through them.

    The line's begin [3] and step [3] from one slice to the next, LPS mm, by least squares.
    """
    if len(slices) < 2:
        raise InputError(f"{folder}: a single slice; expected a series of two or more")
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
    names = [Path(s.file).name for s in ordered]
    positions = np.array([s.position for s in ordered])
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    twice = np.flatnonzero(gaps <= DOUBLED * usual)
    if len(twice):
        k = twice[0]
        raise InputError(
            f"{folder}: {names[k]} and {names[k + 1]} lie in one place{_more(twice)}; keep one acquisition or"
            " time point"
        )
    wide = np.flatnonzero(gaps > MISSING * usual)
    if len(wide):
        shown = "; ".join(
            f"{_slices(round(gaps[k] / usual) - 1)} missing between {names[k]} and {names[k + 1]} "
            f"({gaps[k]:.2f} mm apart, others {usual:.2f} mm)"
            for k in wide[:LISTED]
        )
        raise InputError(f"{folder}: {shown}; find the missing slices, or export the series again")
    index = np.arange(len(ordered))[:, None]
    step = ((index - index.mean()) * positions).sum(axis=0) / ((index - index.mean()) ** 2).sum()
    origin = positions.mean(axis=0) - index.mean() * step
    off = np.linalg.norm(positions - origin - index * step, axis=1)
    if off.max() > OFF_LINE * max(usual, 1.0):
        raise InputError(
            f"{folder}: uneven spacing: {names[int(off.argmax())]} lies {off.max():.2f} mm off its place in"
            f" an even, straight stack of {usual:.2f} mm; export the series again, or resample it"
        )
    return ordered, origin, step


def _more(places: Array) -> str:
    return f", and {len(places) - 1} more pairs" if len(places) > 1 else ""


def _slices(count: int) -> str:
    return f"{count} slice{'s' * (count > 1)}"


def _pixels(sitk: Any, folder: Path, files: Sequence[str]) -> Array:
    """[columns, rows, slices] after rescale slope and intercept, int16 where that loses nothing."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{folder}: cannot be read to its end ({itk_reason(error)})") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{folder}: colours; expected one number a pixel")
    data = sitk.GetArrayFromImage(image).transpose()
    return data.astype(storage(data), copy=False)


def _upright(data: Array, affine: Array, step: Array) -> tuple[Array, Array]:
    """A sheared stack on the upright grid of the same pixels and slices, wide enough for all of it.

    Linear within each slice. The wedges that no slice reaches get PADDING_HU in a CT: not measured.
    """
    upright = affine.copy()
    upright[:3, 2] = step
    size = np.array(data.shape)
    shear = (np.linalg.inv(upright) @ affine)[:2, 2]  # pixels that each slice lies further on
    ends = np.array([np.zeros(2), shear * (size[2] - 1)])
    low = np.floor(ends.min(axis=0))
    upright[:3, 3] += upright[:3, :2] @ low
    size[:2] += (np.ceil(ends.max(axis=0)) - low).astype(int)
    lowest = float(data.min())
    fill = min(PADDING_HU, lowest) if lowest < AIR_BELOW_HU else lowest
    out = warp_image(identity_transform(), Volume(data, affine), size.tolist(), upright, fill=fill)
    return (np.rint(out).astype(data.dtype) if data.dtype.kind in "iu" else out), upright
