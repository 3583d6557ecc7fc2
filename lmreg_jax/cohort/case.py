"""One subject on the common grid: its mask, alignment, image and landmarks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.affine import elastix, moments
from lmreg_jax.cohort.lungs import Lungs
from lmreg_jax.cohort.options import Options
from lmreg_jax.cohort.table import Row
from lmreg_jax.errors import InputError
from lmreg_jax.imaging import intensity
from lmreg_jax.imaging.resampling import inside, resample
from lmreg_jax.imaging.volume import (
    Volume,
    apply_affine,
    bounding_box_mm,
    centred_grid,
    image_centre,
    lung_centred_grid,
)
from lmreg_jax.io.nifti import read_volume

log = logging.getLogger(__name__)

Array = NDArray[Any]
Points = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Case:
    """A subject on the cohort's common grid.

    image [X, Y, Z] float32 in [0, 1]; lungs, lobes uint8 labels or None; landmarks [K, 3] and
    points [P, 3] float32, voxels of the grid, NaN where missing; *_mm: RAS mm of the own scan.
    inside [X, Y, Z] bool: where the scan has data (the image is 0 elsewhere), None: everywhere.
    scan_from_grid [4, 4]: voxel of the grid -> RAS mm of the own scan; alignment: how it was found.
    """

    name: str
    split: str
    image: Array = field(repr=False)
    lungs: Array | None = field(repr=False)
    lobes: Array | None = field(repr=False)
    landmarks: Array = field(repr=False)
    points: Array = field(repr=False)
    landmarks_mm: Array = field(repr=False)
    points_mm: Array = field(repr=False)
    scan_from_grid: Array = field(repr=False)
    alignment: str = "none"
    inside: Array | None = field(default=None, repr=False)
    stored: Mapping[str, Stored] | None = field(default=None, repr=False)  # the images' files, by name


def images_of_pair(fixed: Case, moving: Case) -> tuple[Array, Array]:
    """Both images [X, Y, Z], each completed by the other where its own scan has no data.

    See `preprocess.fill_missing`. The network sees every pair, in training and after, in this way.
    """
    if fixed.inside is None and moving.inside is None:
        return fixed.image, moving.image
    everywhere = np.ones(fixed.image.shape, bool)
    masks = (everywhere if case.inside is None else case.inside for case in (fixed, moving))
    return intensity.fill_missing(fixed.image, moving.image, *masks)


class Stored(NamedTuple):
    """A file that holds one of a case's arrays, as it was written (see `cohort_cache.fresh`)."""

    path: Path
    size: int
    crc32: int


class Reference(NamedTuple):
    """The subject whose RAS mm the common grid lives in; affine [4, 4]: voxel of the grid -> mm."""

    name: str
    affine: Array
    centre: Array  # middle of the image, mm
    lungs: Lungs | None
    image: Volume | None  # windowed; only where elastix needs it


def windowed(volume: Volume, options: Options) -> Volume:
    """The scan in [0, 1]. Before any interpolation, so that metal and padding cannot bleed.

    Raises InputError on values that cannot be in the window's unit.
    """
    if options.window_kind == "percentile":
        return Volume(intensity.window_percentile(volume.data, options.window), volume.affine)
    _check_unit(volume.data, options.window)
    return Volume(intensity.window(volume.data, options.window), volume.affine)


def _windowed(row: Row, volume: Volume, options: Options) -> Volume:
    """The same, its errors with the file's name."""
    try:
        return windowed(volume, options)
    except InputError as error:
        raise InputError(f"{row.image}: {error}") from error


def _check_unit(data: Array, window: tuple[float, float]) -> None:
    """A window that begins among the negative numbers is one in HU: of air, or of fat at least."""
    low, high = float(data.min()), float(data.max())
    if low >= window[1] or high <= window[0]:
        raise InputError(
            f"values from {low:g} to {high:g}, all beyond the window from {window[0]:g} to {window[1]:g}:"
            " nothing would be seen; give a window of these values (data.window)"
        )
    if low >= 0 > window[0]:
        raise InputError(
            f"values from {low:g} to {high:g}, none below 0, where the window from {window[0]:g} to"
            f" {window[1]:g} expects HU (air -1000, water 0): subtract what the rescale intercept says"
            " (1024, mostly), or give a window of these values (data.window, data.window_kind)"
        )


def read_reference(row: Row, lungs: Lungs | None, options: Options) -> Reference:
    """The common grid: centred on the reference's lungs, or on its image where it has no mask."""
    image = read_volume(row.image)
    centre = image_centre(image)
    affine = (
        centred_grid(centre, options.shape, np.array(options.spacing_mm))
        if lungs is None
        else lung_centred_grid(lungs.mask, options.shape, np.array(options.spacing_mm))
    )
    keep = _windowed(row, image, options) if options.alignment == "elastix" else None
    return Reference(row.name, affine, centre, lungs, keep)


def read_case(
    row: Row,
    lungs: Lungs | None,
    landmarks: Points,
    points: Points,
    names: tuple[tuple[str, ...], tuple[str, ...]],
    reference: Reference,
    options: Options,
) -> Case:
    """Reads, aligns and resamples one case. names: those of the landmarks and of the points.

    Raises InputError, naming the file, on what `read_volume` refuses, on masks beside the image and
    on landmarks outside the scan.
    """
    scan = read_volume(row.image)
    if lungs is not None:
        _check_overlap(row, lungs.mask, scan)
    image = _windowed(row, scan, options)
    pull, method = align(row, image, lungs, reference, options)
    shape, affine = options.shape, reference.affine
    from_grid = pull @ affine

    def labels(volume: Volume) -> Array:
        moved = resample(volume, shape, affine, order=0, fill=0, pull=pull)
        return np.asarray(moved.astype(np.uint8))

    places = [
        _place(found, wanted, scan, path)
        for found, wanted, path in zip((landmarks, points), names, (row.landmarks, row.points), strict=True)
    ]
    voxels = [apply_affine(np.linalg.inv(from_grid), mm).astype(np.float32) for mm in places]
    covered = inside(image, shape, affine, pull=pull)
    return Case(
        name=row.name,
        split=row.split,
        image=resample(image, shape, affine, fill=0.0, pull=pull),
        lungs=None if lungs is None else labels(lungs.mask),
        lobes=None if row.lobes is None else labels(_read_lobes(row.lobes)),
        landmarks=voxels[0],
        points=voxels[1],
        landmarks_mm=places[0],
        points_mm=places[1],
        scan_from_grid=from_grid,
        alignment=method,
        inside=None if covered.all() else covered,
    )


def _read_lobes(path: Path) -> Volume:
    lobes = read_volume(path)
    if lobes.data.min() < 0 or lobes.data.max() > 255 or np.any(lobes.data % 1):
        raise InputError(f"{path}: lobe labels must be whole numbers from 0 to 255")
    return lobes


def align(
    row: Row, image: Volume, lungs: Lungs | None, reference: Reference, options: Options
) -> tuple[Array, str]:
    """Reference RAS mm -> the case's RAS mm, [4, 4], and the name of the method that gave it."""
    method = options.alignment
    if method == "identity" or row.name == reference.name:
        return np.eye(4), method
    initial, found = _by_lungs(image, lungs, reference, method)
    if method != "elastix" or reference.image is None:
        return initial, found
    fixed_mask, mask = (known.mask if known else None for known in (reference.lungs, lungs))
    try:
        pull = elastix.align(reference.image, image, fixed_mask, mask, initial)
        return pull, "elastix"
    except elastix.WorkerDied as error:  # says nothing of this case, and must not be kept as its alignment
        raise InputError(
            f"{row.name}: elastix: {error}; mend its installation, give it memory, or align by 'moments'"
        ) from error
    except (RuntimeError, InputError) as error:
        log.warning("%s: elastix failed (%s); aligned by %s", row.name, error, found)
        return initial, found


def _by_lungs(image: Volume, lungs: Lungs | None, reference: Reference, method: str) -> tuple[Array, str]:
    """In closed form: from both masks' moments, or by shift only ("none")."""
    if lungs is None or reference.lungs is None:
        return moments.translation(reference.centre, image_centre(image)), "none"
    if method == "none":
        middles = (_middle(known.mask) for known in (reference.lungs, lungs))
        return moments.translation(*middles), "none"
    return moments.transport(reference.lungs.moments, lungs.moments), "moments"


def _middle(mask: Volume) -> Array:
    low, high = bounding_box_mm(mask)
    return (low + high) / 2


def _check_overlap(row: Row, mask: Volume, scan: Volume) -> None:
    """A mask may have a grid of its own, but it must lie in the scan."""
    step = max(1, round((mask.data.size / 3e4) ** (1 / 3)))
    sparse = mask.data[::step, ::step, ::step]
    mm = apply_affine(mask.affine, np.argwhere(sparse) * step)
    share = _inside(scan, mm, margin=0.5).mean() if len(mm) else 1.0
    if share == 0:
        raise InputError(
            f"{row.lungs}: lies wholly outside {row.image}; its affine is of another scan, or one "
            "of the two was saved without its orientation"
        )
    if share < 0.5:
        log.warning("%s: only %.0f %% of it lies inside %s", row.lungs, 100 * share, row.image)


def _inside(scan: Volume, mm: Array, margin: float) -> Array:
    """Which points [N, 3], RAS mm, lie in the scan; margin: voxels beyond its outer centres."""
    index = apply_affine(np.linalg.inv(scan.affine), mm)
    return np.all((index >= -margin) & (index <= np.array(scan.data.shape) - 1 + margin), axis=-1)


def _place(found: Points, names: tuple[str, ...], scan: Volume, path: Path | None) -> Array:
    """The points in the order of `names`, [K, 3] RAS mm, NaN where missing.

    Raises InputError where one lies outside the scan, and tells whether the file looks LPS.
    """
    present = {name: point for name, point in found.items() if name in names}
    mm = np.full((len(names), 3), np.nan)
    for name, point in present.items():
        mm[names.index(name)] = point
    if not present:
        return mm
    all_mm = np.array(list(present.values()))
    within = _inside(scan, all_mm, margin=1.5)  # a voxel beyond the outer voxels' faces
    if not within.all():
        outside = [name for name, ok in zip(present, within, strict=True) if not ok]
        flipped = _inside(scan, all_mm * (-1, -1, 1), margin=1.5).mean()
        mixed_up = flipped >= 0.8 and flipped > within.mean()
        hint = (
            "with the signs of x and y changed they lie inside: the file seems to be LPS (ITK, 3D "
            "Slicer); write RAS mm, (-x, -y, z)"
            if mixed_up
            else "they must be RAS mm of this very scan"
        )
        corners = apply_affine(scan.affine, np.array([np.zeros(3), np.array(scan.data.shape) - 1]))
        low, high = (_numbers(corner) for corner in corners)
        raise InputError(
            f"{path}: {len(outside)} of {len(present)} landmarks lie outside the scan, first "
            f"{outside[0]!r} at ({_numbers(present[outside[0]])}); the scan spans ({low}) to "
            f"({high}); {hint}"
        )
    return mm


def _numbers(values: Array) -> str:
    return ", ".join(f"{value:.1f}" for value in values)
