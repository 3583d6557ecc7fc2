"""Random affine maps move image and points together; 0 changes nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmreg_jax.core import fields
from lmreg_jax.training.augmentation import (
    Augmentation,
    augment_image,
    augment_pair,
    is_off,
    random_affine,
    random_nodes,
)
from lmreg_jax.types import Batch

SHAPE = (24, 20, 22)
POINTS = jnp.array([[11.0, 9.0, 10.0], [9.5, 11.0, 12.25], [13.0, 8.0, 9.0]])
MOVING = Augmentation(rotation_deg=8, scale=0.05, translation_mm=2, spacing_mm=(2.0, 1.0, 1.5))


def ramp() -> jax.Array:
    """Linear in x, y, z: linear sampling is exact, so that the comparison is as well."""
    grid = fields.identity_grid(SHAPE)
    return 0.1 + grid @ jnp.array([0.011, 0.013, 0.009])


@pytest.mark.parametrize("options", [MOVING, MOVING._replace(elastic_mm=2.0), Augmentation(elastic_mm=2)])
@pytest.mark.parametrize("seed", range(4))
def test_the_new_image_at_the_new_points_is_the_old_at_the_old(seed: int, options: Augmentation) -> None:
    """The elastic part bends the ramp within a voxel of the new image: by its slope's change, 1e-3."""
    image, points = augment_image(jax.random.key(seed), ramp(), POINTS, options)
    assert float(jnp.abs(points - POINTS).max()) > 0.1
    np.testing.assert_allclose(
        fields.sample(image, points), fields.sample(ramp(), POINTS), atol=1e-3 if options.elastic_mm else 2e-5
    )


def test_a_rotation_is_rigid_in_mm_not_in_voxels() -> None:
    options = MOVING._replace(scale=0, translation_mm=0, rotation_deg=20)
    matrix, shift = random_affine(jax.random.key(1), options)
    spacing = np.array(options.spacing_mm)
    matrix_mm = np.diag(spacing) @ np.asarray(matrix) @ np.diag(1 / spacing)
    np.testing.assert_allclose(matrix_mm @ matrix_mm.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(matrix_mm) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(shift, 0)


def test_the_changes_have_the_standard_deviations_asked_for() -> None:
    options = Augmentation(translation_mm=3, scale=0.1, spacing_mm=(2.0, 1.0, 1.5))
    keys = jax.random.split(jax.random.key(0), 2000)
    matrices, shifts = jax.jit(jax.vmap(lambda key: random_affine(key, options)))(keys)
    np.testing.assert_allclose(np.std(shifts, axis=0), [1.5, 3, 2], rtol=0.08)
    scales = np.diagonal(matrices, axis1=1, axis2=2)
    np.testing.assert_allclose(np.std(np.log(scales), axis=0), 0.1, rtol=0.08)


def test_all_zero_changes_nothing() -> None:
    off = Augmentation()
    assert is_off(off) and not is_off(MOVING)
    image, points = augment_image(jax.random.key(0), ramp(), POINTS, off)
    np.testing.assert_array_equal(image, ramp())
    np.testing.assert_array_equal(points, POINTS)


def test_both_images_of_a_pair_change_each_in_its_own_way() -> None:
    pair = Batch(ramp(), ramp(), POINTS, POINTS, jnp.ones(3, bool))
    changed = augment_pair(jax.random.key(0), pair, MOVING)
    assert float(jnp.abs(changed.fixed_points - changed.moving_points).max()) > 0.1
    again = augment_pair(jax.random.key(0), pair, MOVING)
    jax.tree.map(np.testing.assert_array_equal, changed, again)
    np.testing.assert_array_equal(changed.point_mask, pair.point_mask)


def test_shared_geometry_keeps_the_points_of_a_pair_together() -> None:
    options = MOVING._replace(shared=True, elastic_mm=2.0)
    pair = Batch(ramp(), ramp(), POINTS, POINTS + 0.0, jnp.ones(3, bool))
    changed = augment_pair(jax.random.key(0), pair, options)
    np.testing.assert_array_equal(changed.fixed_points, changed.moving_points)
    assert float(jnp.abs(changed.fixed_points - POINTS).max()) > 0.1
    np.testing.assert_array_equal(changed.fixed, changed.moving)


def test_the_elastic_change_has_the_size_asked_for_and_does_not_fold() -> None:
    shape, spacing = (48, 32, 64), (7.0, 7.0, 7.0)
    options = Augmentation(elastic_mm=5.0, spacing_mm=spacing)
    found = [random_nodes(jax.random.key(seed), shape, options) for seed in range(20)]
    assert found[0].shape == (7, 5, 8, 3)  # 336 x 224 x 448 mm, a node every 60 mm or so
    np.testing.assert_allclose(np.std(found) * 7.0, 5.0, rtol=0.05)
    scale = (jnp.array(found[0].shape[:3]) - 1) / (jnp.array(shape) - 1)
    u = fields.sample(found[0], fields.identity_grid(shape) * scale)
    assert float(fields.jacobian_determinant(u).min()) > 0.3
