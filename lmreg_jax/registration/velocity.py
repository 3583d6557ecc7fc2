"""Two raw scans to one transform: affine step, common grid, network, refinement, integration.

    pair = prepare(fixed, moving, affine, frame, window)     both scans on one grid, in fixed RAS mm
    field = start(pair) | predicted(pair, register)          a velocity, RAS mm, on a coarser grid
    field, outcome = refined(field, ...)                     optional
    forward, backward = transforms_of(field, affine.pull)    both directions, in mm

The common grid lies in the fixed scan's RAS space, along its axes: only its spacing differs from the
model's, so that the fixed lungs get the place and size that the network knows from its training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.affine import moments as alignment
from lmreg_jax.affine.reference import ReferenceLungs
from lmreg_jax.core import fields
from lmreg_jax.core.objective import Objective, field_stride
from lmreg_jax.core.posterior import Posterior, draw
from lmreg_jax.imaging import intensity
from lmreg_jax.imaging.resampling import downsample, inside, resample
from lmreg_jax.imaging.transforms import Transform, affine_transform, transform_points
from lmreg_jax.imaging.volume import Volume, bounding_box_mm, centred_grid, lung_centred_grid
from lmreg_jax.registration import refinement

Array = NDArray[Any]

STRIDE = 2  # image voxels for each velocity voxel where no model says otherwise
REFINE_MM = 4.0  # grid of the refinement, unless the model's is finer
FREE_MARGIN_MM = 40.0  # around the lungs, where no model sets the grid: chest wall and diaphragm
SIZES = 16  # such grids have multiples of this many voxels along each axis
SCALE_LIMITS = (0.6, 1.6)  # of the grid's spacing over the model's; adults differ less
TAPER_MM = (40.0, 120.0)  # width of the margin in which a velocity falls to zero
INTEGRATION_MM = 4.0  # displacements are kept on a grid no coarser than this,
FINE_INTEGRATION_MM = 2.7  # or than this, where on the former the two directions miss each other by
INVERSE_MM = 0.18  # more than this (95th percentile of |T^-1(T(x)) - x|)
INVERSE_WANTED_MM = 0.2  # what forward and inverse may differ by (95th percentile); more is said
SQUARINGS = 9  # 2^-9 of |v| |grad v| is the error: 0.01 mm for 20 mm at a strain of 0.3
WALL_MM = 8.0  # around a lung that only one scan shows: its pleura and the ribs that follow it
SAMPLES = 8  # draws of the velocity for its standard deviation in mm


class Frame(NamedTuple):
    """A grid in fixed space: shape, and affine [4, 4] voxel -> fixed RAS mm (diagonal, RAS+)."""

    shape: tuple[int, int, int]
    affine: Array

    @property
    def spacing(self) -> Array:
        return np.asarray(self.affine.diagonal()[:3])


class Field(NamedTuple):
    """A velocity [x, y, z, 3] in RAS mm on its own grid `affine`; log_variance in (its voxels)^2."""

    velocity: Array
    affine: Array
    log_variance: Array | None = None

    @property
    def spacing(self) -> Array:
        return np.asarray(self.affine.diagonal()[:3])


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
    measured: tuple[Array | None, Array | None] = (None, None),
    lost: tuple[Volume | None, Volume | None] = (None, None),
) -> refinement.Pair:
    """Both windowed scans on one grid, each shown where the other has no data.

    measured: see `field_of_view.measured`. lost: lungs, on each scan's grid, that the other scan lacks:
    nothing is compared there.

    Comparing a scan's end with the other's lung would pull the lung onto it; see
    `preprocess.fill_missing`.
    """
    images, known = [], []
    for volume, shown, matrix in ((fixed, measured[0], np.eye(4)), (moving, measured[1], pull)):
        images.append(downsample(volume, frame.shape, frame.affine, fill=0.0, pull=matrix))
        known.append(inside(volume, frame.shape, frame.affine, pull=matrix))
        if shown is not None:  # no voxel that the filter mixes with padding
            share = Volume(shown.astype(np.float32), volume.affine)
            known[-1] &= downsample(share, frame.shape, frame.affine, fill=1.0, pull=matrix) > 0.98
    for lung, other, matrix in zip(lost, known[::-1], (np.eye(4), pull), strict=True):
        if lung is not None:
            gone = resample(lung, frame.shape, frame.affine, order=0, fill=0, pull=matrix) > 0
            steps = max(1, round(WALL_MM / float(frame.spacing.min())))
            other &= ~ndimage.binary_dilation(gone, iterations=steps)
    images = list(intensity.fill_missing(images[0], images[1], known[0], known[1]))
    f, m = (jnp.asarray(image, jnp.float32) for image in images)
    return refinement.Pair(f, m, jnp.asarray(known[0]), jnp.asarray(known[1]))


def predicted(pair: refinement.Pair, frame: Frame, register: Any) -> Field:
    """The network's velocity for a pair on the model's frame, in mm."""
    result = register(pair.fixed, pair.moving)
    mean, log_variance = (np.asarray(result.velocity_mean), np.asarray(result.velocity_log_variance))
    stride = field_stride(frame.shape, mean.shape[:3])
    affine = frame.affine @ np.diag([stride, stride, stride, 1.0])
    return Field((mean * affine.diagonal()[:3]).astype(np.float32), affine, log_variance)


def no_motion(frame: Frame, stride: int = STRIDE) -> Field:
    """The velocity zero on the grid that belongs to `frame`."""
    shape = tuple(-(-n // stride) for n in frame.shape)
    return Field(np.zeros((*shape, 3), np.float32), frame.affine @ np.diag([stride, stride, stride, 1.0]))


def resampled(field: Field, like: Field) -> Array:
    """The velocity, mm, on the (axis-aligned) grid of `like`; trilinear, extended by the edge."""
    shape, step = like.velocity.shape[:3], like.spacing / field.spacing
    offset = (like.affine[:3, 3] - field.affine[:3, 3]) / field.spacing
    channels = [
        ndimage.affine_transform(
            field.velocity[..., c], np.diag(step), offset, shape, order=1, mode="nearest"
        )
        for c in range(3)
    ]
    return np.stack(channels, axis=-1).astype(np.float32)


def refined(
    images: Callable[[Frame], refinement.Pair],
    frame: Frame,
    field: Field,
    objective: Objective,
    steps: int,
    progress: refinement.Progress = iter,
    *,
    around_start: bool = False,
) -> tuple[Field, refinement.Outcome]:
    """`steps` of instance optimisation of `field`, coarse to fine; see `refinement.refine`.

    around_start: the prior is on what is added to the field, else on the whole velocity.

    images: gives the pair on any frame. The first half of the steps sees a grid twice as coarse, for
    an eighth of the time; what they add is added to the field, which keeps its details. The outcome
    compares start and end on `frame` alone. The result has the variance that images and prior leave
    (`refinement.laplace_log_variance`), since the network's belongs to another grid.
    """
    fine = no_motion(frame)
    start = resampled(field, fine)
    velocity, history = start, []
    if steps > 1:
        coarse_frame = coarser(frame)
        coarse = no_motion(coarse_frame)
        pair, before = images(coarse_frame), resampled(field, coarse)
        coarse_start = jnp.asarray(before / coarse.spacing)
        found = refinement.refine(
            pair,
            coarse_start,
            objective=objective,
            steps=steps // 2,
            centre=coarse_start if around_start else 0.0,
            progress=progress,
        )
        added = np.asarray(found.velocity) * coarse.spacing - before
        velocity = start + resampled(Field(added, coarse.affine), fine)
        history = found.history
    pair, fine_start = images(frame), jnp.asarray(start / fine.spacing)
    centre = fine_start if around_start else 0.0
    outcome = refinement.refine(
        pair,
        jnp.asarray(velocity / fine.spacing),
        objective=objective,
        steps=steps - steps // 2,
        centre=centre,
        progress=progress,
    )
    outcome = refinement.compared(objective, pair, fine_start, outcome, history, centre)
    log_variance = refinement.laplace_log_variance(pair, outcome.velocity, objective)
    velocity = np.asarray(outcome.velocity) * fine.spacing
    return Field(velocity.astype(np.float32), fine.affine, np.asarray(log_variance)), outcome


def padded(field: Field) -> Field:
    """The velocity with a margin in which it falls smoothly to zero, so that its flow ends there.

    The margin is four times as wide as the largest motion at the border (within TAPER_MM): the fall
    then strains the tissue by less than one half.
    """
    v = field.velocity
    border = max(float(np.abs(v.take(end, axis)).max()) for axis in range(3) for end in (0, -1))
    # In steps of 20 mm: few different sizes, so that compiled programs fit again.
    margin = np.ceil(20 * np.ceil(np.clip(4 * border, *TAPER_MM) / 20) / field.spacing).astype(int)
    out = np.pad(v, [*((int(m), int(m)) for m in margin), (0, 0)], mode="edge")
    for axis, m in enumerate(margin):
        ramp = np.sin(np.linspace(0, np.pi / 2, m + 1)[:-1]) ** 2
        profile = np.concatenate([ramp, np.ones(v.shape[axis]), ramp[::-1]]).astype(np.float32)
        out *= profile.reshape([-1 if a == axis else 1 for a in range(4)])
    affine = field.affine.copy()
    affine[:3, 3] -= margin * field.spacing
    return Field(out, affine)


def transforms_of(field: Field, pull: Array, points: Array | None = None) -> tuple[Transform, Transform]:
    """(fixed -> moving, moving -> fixed) of exp(velocity) and the affine; both diffeomorphic.

    The velocity is padded (`padded`), read trilinearly on a grid of at most INTEGRATION_MM and
    integrated there forwards and backwards, so that the two are each other's inverse but for what
    trilinear reading between the voxels leaves. Where that is more than INVERSE_MM at `points`
    [K, 3], fixed RAS mm, a finer grid is taken, for three times the room and time.
    """
    forward, backward = _integrated(field, pull, INTEGRATION_MM)
    if points is not None:
        gap = transform_points(backward, transform_points(forward, points)) - points
        if np.percentile(np.linalg.norm(gap, axis=1), 95) > INVERSE_MM:
            return _integrated(field, pull, FINE_INTEGRATION_MM)
    return forward, backward


def _integrated(field: Field, pull: Array, spacing_mm: float) -> tuple[Transform, Transform]:
    """Both directions, with displacements on a grid of at most `spacing_mm`."""
    wide = padded(field)
    frame = finer(Frame(wide.velocity.shape[:3], wide.affine), spacing_mm)
    # The last velocity voxel ends the grid: what lies beyond would only repeat its zero.
    factor = np.rint(wide.spacing / frame.spacing).astype(int)
    x, y, z = (int(n) for n in (np.array(wide.velocity.shape[:3]) - 1) * factor + 1)
    v = resampled(wide, Field(np.empty((x, y, z, 3), np.float32), frame.affine)) / frame.spacing
    flow = jax.jit(lambda w: fields.integrate(w, steps=SQUARINGS))
    forward, backward = (
        (np.asarray(flow(jnp.asarray(w, jnp.float32))) * frame.spacing).astype(np.float32) for w in (v, -v)
    )
    back = np.linalg.inv(pull)
    return (
        Transform(np.eye(4), forward, frame.affine, pull),
        Transform(back, backward, frame.affine, np.eye(4)),
    )


def affine_transforms(pull: Array) -> tuple[Transform, Transform]:
    """(fixed -> moving, moving -> fixed) of the affine step alone."""
    return affine_transform(pull), affine_transform(np.linalg.inv(pull))


def uncertainty(field: Field, seed: int = 0, samples: int = SAMPLES) -> Volume | None:
    """Standard deviation of the displacement, mm, [x, y, z] on the velocity's own grid.

    The root of the three components' summed variances over draws of the velocity; None without a
    variance. It is the model's own: not calibrated against errors.
    """
    if field.log_variance is None:
        return None
    posterior = Posterior(
        jnp.asarray(field.velocity / field.spacing, jnp.float32), jnp.asarray(field.log_variance)
    )

    @jax.jit
    def moved(key: jax.Array) -> jax.Array:
        return fields.integrate(draw(key, posterior)) * jnp.asarray(field.spacing, jnp.float32)

    draws = np.stack([np.asarray(moved(key)) for key in jax.random.split(jax.random.key(seed), samples)])
    return Volume(np.sqrt(draws.var(axis=0, ddof=1).sum(axis=-1)), field.affine)
