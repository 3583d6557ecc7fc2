"""One subject on the common grid: image, labels and landmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.affine.pairwise import Affine
from lmreg_jax.cohort.options import Options
from lmreg_jax.cohort.subject import Points, Subject
from lmreg_jax.errors import InputError
from lmreg_jax.imaging import intensity
from lmreg_jax.imaging.resampling import inside, resample
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.read import read_scan, whole_labels
from lmreg_jax.io.scan import Scan

Array = NDArray[Any]
Names = tuple[tuple[str, ...], tuple[str, ...]]  # of landmarks, of points


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

    See `intensity.fill_missing`. The network sees every pair, in training and after, in this way.
    """
    if fixed.inside is None and moving.inside is None:
        return fixed.image, moving.image
    everywhere = np.ones(fixed.image.shape, bool)
    masks = (everywhere if case.inside is None else case.inside for case in (fixed, moving))
    return intensity.fill_missing(fixed.image, moving.image, *masks)


class Stored(NamedTuple):
    """A file that holds one of a case's arrays, as it was written (see `cache.fresh`)."""

    path: Path
    size: int
    crc32: int


def windowed(volume: Volume, options: Options) -> Volume:
    """The scan in [0, 1]. Before any interpolation, so that metal and padding cannot bleed.

    Raises InputError on values that cannot be in the window's unit.
    """
    if options.window_kind == "percentile":
        return Volume(intensity.window_percentile(volume.data, options.window), volume.affine)
    _check_unit(volume.data, options.window)
    return Volume(intensity.window(volume.data, options.window), volume.affine)


def windowed_scan(scan: Scan, options: Options) -> Volume:
    """`windowed`, its errors with the file's name."""
    try:
        return windowed(scan.volume, options)
    except InputError as error:
        raise InputError(f"{scan.path}: {error}") from error


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


def on_grid(
    subject: Subject,
    image: Volume,
    affine: Affine,
    grid: Array,
    names: Names,
    shape: tuple[int, int, int],
    *,
    fill: float,
) -> Case:
    """The subject resampled once, from its own voxels; landmarks and points move along.

    image: the scan as it is to be shown, outside of it `fill`; grid [4, 4]: voxel -> RAS mm of the
    reference; names: the order of landmarks and points. Raises InputError on lobes that are no labels.
    """
    row, pull = subject.row, affine.pull
    from_grid = pull @ grid

    def labels(volume: Volume) -> Array:
        moved = resample(volume, shape, grid, order=0, fill=0, pull=pull)
        return np.asarray(moved.astype(np.uint8))

    mm = [_in_order(*pair) for pair in zip((subject.landmarks, subject.points), names, strict=True)]
    voxels = [apply_affine(np.linalg.inv(from_grid), points).astype(np.float32) for points in mm]
    covered = inside(image, shape, grid, pull=pull)
    return Case(
        name=row.name,
        split=row.split,
        image=resample(image, shape, grid, fill=fill, pull=pull),
        lungs=None if subject.lungs is None else labels(subject.lungs.mask()),
        lobes=None if row.lobes is None else labels(_read_lobes(row.lobes)),
        landmarks=voxels[0],
        points=voxels[1],
        landmarks_mm=mm[0],
        points_mm=mm[1],
        scan_from_grid=from_grid,
        alignment=affine.method,
        inside=None if covered.all() else covered,
    )


def _read_lobes(path: Path) -> Volume:
    lobes = whole_labels(path, read_scan(path).volume)
    if lobes.data.max() > 255:
        raise InputError(f"{path}: lobe labels up to {lobes.data.max()}; expected 0 to 255")
    return lobes


def _in_order(points: Points, names: Sequence[str]) -> Array:
    """[K, 3] RAS mm in the order of `names`, NaN where a point is missing."""
    return np.array([points.get(name, np.full(3, np.nan)) for name in names]).reshape(-1, 3)
