"""Eq. 7 by terms: KL to the prior, image term, landmark term. Serves a network, one pair's own
velocity field, or a test with fixed numbers alike."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from lmreg_jax.core import fields, landmarks, prior
from lmreg_jax.core.posterior import Posterior
from lmreg_jax.core.similarity import IMAGE_TERMS


class Objective(NamedTuple):
    """The constants of eq. 7. Numbers as printed by [Hu]; `reading` by [Hu] or by [Dalca]'s code.

    precision: lambda. image_sigma: standard deviation of the intensities (in [0, 1]).
    landmark_sigma: standard deviation of a landmark, in landmark_unit ("voxel" or "mm").
    landmark_weight: 0 switches the landmark term off; it is logged all the same.
    integration_steps: squarings. spacing_mm: of the image grid, for landmark_unit "mm".
    """

    reading: str = "voxelmorph"
    precision: float = 10.0
    image: str = "ssd"
    image_sigma: float = 0.02
    landmark_sigma: float = 1.0
    landmark_weight: float = 1.0
    landmark_unit: str = "voxel"
    integration_steps: int = 7
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


def image_scale(objective: Objective, field_stride: int) -> float:
    """What the mean image term is multiplied by.

    `exact`: 1/(2 sigma^2), times the image voxels for each field voxel (all of eq. 7 is divided by
    the number of field voxels): 4 / sigma^2 at stride 2. `voxelmorph`: 1 / sigma^2.
    """
    scale = 1 / objective.image_sigma**2
    return scale * field_stride**3 / 2 if objective.reading == "exact" else scale


def field_stride(shape: tuple[int, ...], field_shape: tuple[int, ...]) -> int:
    """Image voxels for each field voxel, along an axis: the power of 2 that `field_shape` shows.

    field_shape is `ceil(shape / stride)`; on a small grid of an odd size their quotient misleads
    (17 / 5 at stride 4). ValueError where the two do not belong together.
    """
    for stride in (1, 2, 4, 8):
        if tuple(-(-n // stride) for n in shape) == tuple(field_shape):
            return stride
    raise ValueError(f"a field of {field_shape} voxels belongs to no image of {shape} voxels")


def displacement_of(velocity: Array, shape: tuple[int, ...], *, stride: int, steps: int) -> Array:
    """Full-resolution displacement `[*shape, 3]` of a velocity on a grid `stride` times coarser."""
    return fields.upsample(fields.integrate(velocity, steps=steps), shape, factor=stride)


def terms(
    objective: Objective,
    posterior: Posterior,
    displacement: Array,
    fixed: Array,
    moving: Array,
    fixed_points: Array,
    moving_points: Array,
    point_mask: Array,
) -> dict[str, Array]:
    """The three terms of eq. 7 for one pair, unweighted by name; their `total` is the loss.

    posterior: `[x, y, z, 3]`, velocity voxels; displacement: `[X, Y, Z, 3]` from a draw of it;
    fixed, moving: `[X, Y, Z]` in [0, 1]; fixed_points, moving_points: `[K, 3]` voxels;
    point_mask: `[K]`, true where the landmark exists in both (none at all is fine).

    The landmark term is normalised by the number of landmarks: a literal sum over 11, divided by
    the field's voxels like the other terms, would weigh 1e-5 of them.
    """
    stride = field_stride(fixed.shape, posterior.mean.shape[:3])
    kl = prior.kl_divergence(*posterior, precision=objective.precision, reading=objective.reading)
    mean_image = IMAGE_TERMS[objective.image](fixed, fields.warp(moving, displacement))
    scale = jnp.array(objective.spacing_mm) if objective.landmark_unit == "mm" else 1.0
    # Positions behind a false mask may be NaN; NaN coordinates must not reach the sampler.
    safe_points = jnp.where(point_mask[:, None], fixed_points, 0)
    distance = landmarks.masked_mean_squared_distance(
        landmarks.move_points(displacement, safe_points), moving_points, point_mask, scale
    )
    return {
        "kl": kl,
        "image": image_scale(objective, stride) * mean_image,
        "landmark": distance / (2 * objective.landmark_sigma**2),
    }


def total(objective: Objective, by_name: dict[str, Array]) -> Array:
    """kl + image + landmark_weight * landmark: the number that training minimises.  [Hu eq. 7]"""
    return by_name["kl"] + by_name["image"] + objective.landmark_weight * by_name["landmark"]
