"""Random affine and smooth maps for training pairs; pure, one pair, on the device."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lmreg_jax.core import fields
from lmreg_jax.types import Batch


class Augmentation(NamedTuple):
    """Standard deviations of the random changes; 0 switches one off. All 0 in [Hu].

    rotation_deg: about each axis. scale: of the log of each axis' scaling. translation_mm: along
    each axis. elastic_mm: of a smooth displacement, at nodes NODE_MM apart, along each axis.
    shared: both images of a pair get one change: another anatomy, seen twice, and no misalignment
    in addition to that of the two subjects.
    """

    rotation_deg: float = 0.0
    scale: float = 0.0
    translation_mm: float = 0.0
    elastic_mm: float = 0.0
    shared: bool = False
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


NODE_MM = 60.0  # about a lobe's width; at sd 5 mm the slope stays near 0.1, far from folding
INVERSIONS = 8  # iterations; each shrinks the error by that slope: below 1e-6 of a voxel


def is_off(options: Augmentation) -> bool:
    """True where nothing would change."""
    return not any(options[:4])


def random_affine(key: Array, options: Augmentation) -> tuple[Array, Array]:
    """Matrix `[3, 3]` and shift `[3]` in voxels about the grid's centre: rotation, scaling, shift."""
    rotation_key, scale_key, shift_key = jax.random.split(key, 3)
    x, y, z = jnp.deg2rad(options.rotation_deg) * jax.random.normal(rotation_key, (3,), jnp.float32)
    skew = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]], jnp.float32)
    scaling = jnp.exp(options.scale * jax.random.normal(scale_key, (3,), jnp.float32))
    spacing = jnp.array(options.spacing_mm, jnp.float32)
    matrix_mm = jax.scipy.linalg.expm(skew) * scaling
    matrix = matrix_mm * spacing / spacing[:, None]
    return matrix, options.translation_mm * jax.random.normal(shift_key, (3,), jnp.float32) / spacing


def random_nodes(key: Array, shape: tuple[int, ...], options: Augmentation) -> Array:
    """Displacements in voxels, `[i, j, k, 3]`, on a grid of nodes about NODE_MM apart."""
    extents = [n * mm for n, mm in zip(shape, options.spacing_mm, strict=True)]
    nodes = tuple(max(2, round(extent / NODE_MM) + 1) for extent in extents)
    return (
        options.elastic_mm
        / jnp.array(options.spacing_mm, jnp.float32)
        * jax.random.normal(key, (*nodes, 3), jnp.float32)
    )


def augment_image(key: Array, image: Array, points: Array, options: Augmentation) -> tuple[Array, Array]:
    """`image` `[X, Y, Z]` and its `points` `[K, 3]` voxels, moved together.

    New image(x) = image(A (x - c) + c + t + w(x)); a point p of the old image lies in the new one
    at the q with A (q - c) + c + t + w(q) = p, by fixed-point iteration.
    """
    affine_key, elastic_key = jax.random.split(key)
    if options.rotation_deg or options.scale or options.translation_mm or options.elastic_mm:
        matrix, shift = random_affine(affine_key, options)
        centre = (jnp.array(image.shape, jnp.float32) - 1) / 2
        nodes = random_nodes(elastic_key, image.shape, options)
        per_voxel = (jnp.array(nodes.shape[:3], jnp.float32) - 1) / (jnp.array(image.shape, jnp.float32) - 1)

        def elastic(positions: Array) -> Array:
            return fields.sample(nodes, positions * per_voxel) if options.elastic_mm else 0 * positions

        def back(_: int, found: Array) -> Array:
            residual = points - shift - centre - elastic(found)
            return jnp.linalg.solve(matrix, residual.T).T + centre

        grid = fields.identity_grid(image.shape)
        image = fields.sample(image, (grid - centre) @ matrix.T + centre + shift + elastic(grid))
        points = jax.lax.fori_loop(0, INVERSIONS if options.elastic_mm else 1, back, points)
    return image, points


def augment_pair(key: Array, pair: Batch, options: Augmentation) -> Batch:
    """Both images of a pair (one example of a `Batch`) changed at random, see `Augmentation`."""
    fixed_key, moving_key = jax.random.split(key)
    if options.shared:
        moving_key = fixed_key
    fixed, fixed_points = augment_image(fixed_key, pair.fixed, pair.fixed_points, options)
    moving, moving_points = augment_image(moving_key, pair.moving, pair.moving_points, options)
    return Batch(fixed, moving, fixed_points, moving_points, pair.point_mask)
