"""A pair's velocity field in mm: predicted or zero, integrated to both transforms, and its spread.

images = grid.on_frame(fixed, moving, pull, frame)       both scans on one grid, in fixed RAS mm
field = no_motion(frame) | predicted(images, frame, register)     a velocity on a coarser grid
field, outcome = refinement.refined(field, ...)          optional
forward, backward = transforms_of(field, pull)           both directions, in mm
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lmreg_jax.core import fields
from lmreg_jax.core.objective import field_stride
from lmreg_jax.core.posterior import Posterior, draw
from lmreg_jax.imaging.transforms import Transform, affine_transform, transform_points
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.registration.grid import Frame, Pair, finer

Array = NDArray[Any]

STRIDE = 2  # image voxels for each velocity voxel where no model says otherwise
TAPER, TAPER_MM = 3.0, (30.0, 80.0)  # width of the margin in which a velocity falls to zero
INTEGRATION_MM = 4.0  # displacements are kept on a grid no coarser than this,
FINE_INTEGRATION_MM = 2.7  # or than this, where on the former the two directions miss each other by
INVERSE_MM = 0.18  # more than this (95th percentile of |T^-1(T(x)) - x|)
INVERSE_WANTED_MM = 0.2  # what forward and inverse may differ by (95th percentile); more is noted
SQUARINGS = 9  # 2^-9 of |v| |grad v| is the error: 0.01 mm for 20 mm at a strain of 0.3
WALL_MM = 8.0  # around a lung that only one scan shows: its pleura and the ribs that follow it
SAMPLES = 8  # draws of the velocity for its standard deviation in mm


class Field(NamedTuple):
    """A velocity [x, y, z, 3] in RAS mm on its own grid `affine`; log_variance in (its voxels)^2."""

    velocity: Array
    affine: Array
    log_variance: Array | None = None

    @property
    def spacing(self) -> Array:
        return np.asarray(self.affine.diagonal()[:3])


def predicted(pair: Pair, frame: Frame, register: Any) -> Field:
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
    out = field.velocity
    for axis in range(3):
        index = offset[axis] + step[axis] * np.arange(shape[axis])
        each = np.eye(out.shape[axis], dtype=np.float32)
        weights = np.stack([np.interp(index, np.arange(len(each)), row) for row in each])
        out = np.moveaxis(np.tensordot(out, weights.astype(np.float32), (axis, 0)), -1, axis)
    return np.ascontiguousarray(out, np.float32)


def padded(field: Field) -> Field:
    """The velocity with a margin in which it falls smoothly to zero, so that its flow ends there.

    The margin is TAPER times as wide as the largest motion at the border (within TAPER_MM): the fall
    then strains what lies there, outside the grid, by about one half.
    """
    v = field.velocity
    border = max(float(np.abs(v.take(end, axis)).max()) for axis in range(3) for end in (0, -1))
    # In steps of 20 mm: few different sizes, so that compiled programs fit again.
    margin = np.ceil(20 * np.ceil(np.clip(TAPER * border, *TAPER_MM) / 20) / field.spacing).astype(int)
    out = np.pad(v, [*((int(m), int(m)) for m in margin), (0, 0)], mode="edge")
    for axis, m in enumerate(margin):
        ramp = np.sin(np.linspace(0, np.pi / 2, m + 1)[:-1]) ** 2
        profile = np.concatenate([ramp, np.ones(v.shape[axis]), ramp[::-1]]).astype(np.float32)
        out *= profile.reshape([-1 if a == axis else 1 for a in range(4)])
    affine = field.affine.copy()
    affine[:3, 3] -= margin * field.spacing
    return Field(out, affine)


def transforms_of(
    field: Field, pull: Array, points: Array | None = None, spacing_mm: float = INTEGRATION_MM
) -> tuple[Transform, Transform]:
    """(fixed -> moving, moving -> fixed) of exp(velocity) and the affine; both diffeomorphic.

    The velocity is padded (`padded`), read trilinearly on a grid of at most `spacing_mm` and
    integrated there forwards and backwards, so that the two are each other's inverse but for what
    trilinear reading between the voxels leaves. Where that is more than INVERSE_MM at `points`
    [K, 3], fixed RAS mm, a finer grid is taken, for three times the room and time.
    """
    forward, backward = _integrated(field, pull, spacing_mm)
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
    forward, backward = (
        (np.asarray(_flow(jnp.asarray(w, jnp.float32))) * frame.spacing).astype(np.float32) for w in (v, -v)
    )
    back = np.linalg.inv(pull)
    return (
        Transform(np.eye(4), forward, frame.affine, pull),
        Transform(back, backward, frame.affine, np.eye(4)),
    )


@jax.jit
def _flow(velocity: jax.Array) -> jax.Array:
    return fields.integrate(velocity, steps=SQUARINGS)


def affine_transforms(pull: Array) -> tuple[Transform, Transform]:
    """(fixed -> moving, moving -> fixed) of the affine step alone."""
    return affine_transform(pull), affine_transform(np.linalg.inv(pull))


def uncertainty(field: Field, pull: Array, seed: int = 0, samples: int = SAMPLES) -> Volume | None:
    """Standard deviation of T(x) in mm of the moving scan, [x, y, z] at x of the velocity's own grid.

    T(x) = pull (x + u(x)): each draw's u is taken through the affine's linear part, as the TRE, which
    is measured in the moving scan, is. The root of the three components' summed variances over draws of
    the velocity; None without a variance. It is the model's own: not calibrated against errors.
    """
    if field.log_variance is None:
        return None
    posterior = Posterior(
        jnp.asarray(field.velocity / field.spacing, jnp.float32), jnp.asarray(field.log_variance)
    )
    to_moving = (pull[:3, :3] * field.spacing).astype(np.float32)
    keys = jax.random.split(jax.random.key(seed), samples)
    draws = np.stack([np.asarray(_flow(_drawn(key, posterior))) @ to_moving.T for key in keys])
    return Volume(np.sqrt(draws.var(axis=0, ddof=1).sum(axis=-1)), field.affine)


# Apart from the flow: fused into its first squaring, the random numbers are made again for each of the
# voxels that it reads, and XLA's CPU compiler takes minutes over it.
_drawn = jax.jit(draw)
