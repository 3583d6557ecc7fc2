"""Random affine maps and intensities for training pairs; pure, one pair, on the device."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lmreg_jax import fields
from lmreg_jax.training import Batch


class Augmentation(NamedTuple):
    """Standard deviations of the random changes; 0 switches one off. All 0 in [Hu].

    rotation_deg: about each axis. scale: of the log of each axis' scaling. translation_mm: along
    each axis. gamma: of the log of an exponent on the intensities. noise: added, then clipped.
    """

    rotation_deg: float = 0.0
    scale: float = 0.0
    translation_mm: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


def is_off(options: Augmentation) -> bool:
    """True where nothing would change."""
    return not any(options[:5])


def random_affine(key: Array, options: Augmentation) -> tuple[Array, Array]:
    """Matrix `[3, 3]` and shift `[3]` in voxels about the grid's centre: rotation, scaling, shift."""
    rotation_key, scale_key, shift_key = jax.random.split(key, 3)
    x, y, z = jnp.deg2rad(options.rotation_deg) * jax.random.normal(rotation_key, (3,))
    skew = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    scaling = jnp.exp(options.scale * jax.random.normal(scale_key, (3,)))
    spacing = jnp.array(options.spacing_mm)
    matrix_mm = jax.scipy.linalg.expm(skew) * scaling
    matrix = matrix_mm * spacing / spacing[:, None]
    return matrix, options.translation_mm * jax.random.normal(shift_key, (3,)) / spacing


def augment_image(
    key: Array, image: Array, points: Array, options: Augmentation
) -> tuple[Array, Array]:
    """`image` `[X, Y, Z]` in [0, 1] and its `points` `[K, 3]` voxels, moved and re-toned together.

    New image(x) = image(A (x - c) + c + t); a point p of the old image lies at
    A^-1 (p - t - c) + c in the new one.
    """
    affine_key, gamma_key, noise_key = jax.random.split(key, 3)
    if options.rotation_deg or options.scale or options.translation_mm:
        matrix, shift = random_affine(affine_key, options)
        centre = (jnp.array(image.shape) - 1) / 2
        grid = fields.identity_grid(image.shape)
        image = fields.sample(image, (grid - centre) @ matrix.T + centre + shift)
        points = jnp.linalg.solve(matrix, (points - shift - centre).T).T + centre
    if options.gamma:
        exponent = jnp.exp(options.gamma * jax.random.normal(gamma_key))
        image = jnp.clip(image, 1e-6, 1) ** exponent  # Not 0: its slope is infinite there.
    if options.noise:
        image = jnp.clip(image + options.noise * jax.random.normal(noise_key, image.shape), 0, 1)
    return image, points


def augment_pair(key: Array, pair: Batch, options: Augmentation) -> Batch:
    """Both images of a pair (one example of a `Batch`), each by its own random change."""
    fixed_key, moving_key = jax.random.split(key)
    fixed, fixed_points = augment_image(fixed_key, pair.fixed, pair.fixed_points, options)
    moving, moving_points = augment_image(moving_key, pair.moving, pair.moving_points, options)
    return Batch(fixed, moving, fixed_points, moving_points, pair.point_mask)
