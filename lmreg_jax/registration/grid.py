"""The common grid of a pair, in fixed RAS mm, and both scans on it.

It lies along the fixed scan's RAS axes: only its spacing differs from the model's, so that the fixed
lungs get the place and size that the network knows from its training.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.affine import moments as alignment
from lmreg_jax.affine.reference import ReferenceLungs
from lmreg_jax.imaging import intensity
from lmreg_jax.imaging.resampling import downsample, inside, resample
from lmreg_jax.imaging.volume import Volume, bounding_box_mm, centred_grid, lung_centred_grid
from lmreg_jax.registration.guidance import NO_POINTS, NONE, Guidance, Points, on_grid

Array = NDArray[Any]

REFINE_MM = 4.0  # grid of the refinement, unless the model's is finer
FREE_MARGIN_MM = 40.0  # around the lungs, where no model sets the grid: chest wall and diaphragm
SIZES = 16  # such grids have multiples of this many voxels along each axis
WALL_MM = 8.0  # around a lung that only one scan shows: its pleura and the ribs that follow it
SCALE_LIMITS = (0.6, 1.6)  # of the grid's spacing over the model's; adults differ less


class Frame(NamedTuple):
    """A grid in fixed space: shape, and affine [4, 4] voxel -> fixed RAS mm (diagonal, RAS+)."""

    shape: tuple[int, int, int]
    affine: Array

    @property
    def spacing(self) -> Array:
        return np.asarray(self.affine.diagonal()[:3])


class Pair(NamedTuple):
    """Images `[X, Y, Z]` in [0, 1] on one grid, where each scan has data (bool `[X, Y, Z]`), and points."""

    fixed: jax.Array
    moving: jax.Array
    fixed_inside: jax.Array
    moving_inside: jax.Array
    points: Points = NO_POINTS


def model_frame(
    fixed_lungs: Volume,
    moving_lungs: Volume,
    pull: Array,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    reference: ReferenceLungs | None,
    scans: tuple[Volume, Volume] | None = None,
    *,
    moving_is_whole: bool = False,
) -> Frame:
    """The model's grid, placed in fixed RAS mm so that the lungs lie as they lay in its training.

    Mean and sd of the lungs along each axis are those of `reference` (grid mm); without it the grid
    keeps its spacing and is centred on them. moving_is_whole: only the fixed scan cuts the lungs off; the
    moving ones, aligned, stand for them. scans: both in HU, for the lungs' surface within a voxel.
    """
    fixed_scan, moving_scan = scans or (None, None)
    lungs, scan, place = fixed_lungs, fixed_scan, np.eye(4)
    if moving_is_whole:
        lungs, scan, place = moving_lungs, moving_scan, np.linalg.inv(pull)
    if reference is None:
        edges = np.asarray(spacing_mm, np.float64)
        aligned = Volume(lungs.data, place @ lungs.affine)
        return Frame(shape, lung_centred_grid(aligned, shape, edges))
    moments = alignment.moved(alignment.mask_moments(lungs, scan), place)
    scale = np.sqrt(moments.covariance.diagonal()) / reference.sd_mm
    scale = np.clip(scale, *SCALE_LIMITS)
    affine = np.diag([*(scale * spacing_mm), 1.0])
    affine[:3, 3] = moments.mean - scale * reference.mean_mm
    return Frame(shape, affine)


def free_frame(
    fixed_lungs: Volume, moving_lungs: Volume, pull: Array, spacing_mm: float = REFINE_MM
) -> Frame:
    """A grid for pairs without a model: the box of both lungs and FREE_MARGIN_MM around it."""
    moved = Volume(moving_lungs.data, np.linalg.inv(pull) @ moving_lungs.affine)
    boxes = [bounding_box_mm(lungs) for lungs in (fixed_lungs, moved)]
    low = np.min([box[0] for box in boxes], axis=0) - FREE_MARGIN_MM
    high = np.max([box[1] for box in boxes], axis=0) + FREE_MARGIN_MM
    # Few different sizes: a compiled program is for one, and can be kept for the next pair.
    x, y, z = (int(-(-n // SIZES) * SIZES) for n in (high - low) / spacing_mm + 1)
    edges = np.full(3, spacing_mm)
    return Frame((x, y, z), centred_grid((low + high) / 2, (x, y, z), edges))


def finer(frame: Frame, spacing_mm: float) -> Frame:
    """The same box with voxels of at most `spacing_mm`, voxel 0 on voxel 0, a whole number to one."""
    factor = np.maximum(np.ceil(frame.spacing / spacing_mm - 1e-6), 1).astype(int)
    x, y, z = (int(n) for n in np.array(frame.shape) * factor)
    return Frame((x, y, z), frame.affine @ np.diag([*(1 / factor), 1.0]))


def coarser(frame: Frame) -> Frame:
    """About the same box with voxels twice as large, voxel 0 on voxel 0."""
    x, y, z = (-(-n // 2) for n in frame.shape)
    return Frame((x, y, z), frame.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))


def on_frame(
    fixed: Volume,
    moving: Volume,
    pull: Array,
    frame: Frame,
    guidance: Guidance = NONE,
    measured: tuple[Array | None, Array | None] = (None, None),
    lost: tuple[Volume | None, Volume | None] = (None, None),
) -> Pair:
    """Both windowed scans on one grid, each shown where the other has no data; the points that guide.

    measured: see `field_of_view.measured`. lost: lungs, on each scan's grid, that the other scan lacks:
    nothing is compared there.

    Comparing a scan's end with the other's lung would pull the lung onto it; see
    `intensity.fill_missing`.
    """

    def placed(volume: Volume, shown: Array | None, matrix: Array) -> tuple[Array, Array]:
        image = downsample(volume, frame.shape, frame.affine, fill=0.0, pull=matrix)
        known = inside(volume, frame.shape, frame.affine, pull=matrix)
        if shown is not None:  # no voxel that the filter mixes with padding
            share = Volume(shown.astype(np.float32), volume.affine)
            known &= downsample(share, frame.shape, frame.affine, fill=1.0, pull=matrix) > 0.98
        return image, known

    with ThreadPoolExecutor(max_workers=2) as pool:
        images, known = zip(*pool.map(placed, (fixed, moving), measured, (np.eye(4), pull)), strict=True)
    for lung, other, matrix in zip(lost, known[::-1], (np.eye(4), pull), strict=True):
        if lung is not None:
            gone = resample(lung, frame.shape, frame.affine, order=0, fill=0, pull=matrix) > 0
            steps = max(1, round(WALL_MM / float(frame.spacing.min())))
            other &= ~ndimage.binary_dilation(gone, iterations=steps)
    filled = intensity.fill_missing(images[0], images[1], known[0], known[1])
    f, m = (jnp.asarray(image, jnp.float32) for image in filled)
    points = on_grid(guidance, pull, frame.affine)
    return Pair(f, m, jnp.asarray(known[0]), jnp.asarray(known[1]), points)
