"""`landmarks`: the field at points, eq. 8-11 of [Hu], with landmarks that are missing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmreg_jax.core import fields, landmarks
from tests import numerics

pytestmark = pytest.mark.usefixtures("float64")

SHAPE = (6, 7, 9)
SPACING = np.array([2.0, 1.5, 3.0])
move_points = jax.jit(landmarks.move_points)
EXACT = 1e-12  # float64 sums of a few terms of size 10


@pytest.fixture
def displacement() -> np.ndarray:
    return numerics.smooth_field(SHAPE, 0, 2)


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, np.array(SHAPE) - 1, (5, 3))


def test_points_move_by_the_field_read_between_voxels(displacement: np.ndarray, points: np.ndarray) -> None:
    expected = points + numerics.sample(displacement, points)
    np.testing.assert_allclose(move_points(displacement, points), expected, atol=EXACT)


def test_a_point_on_a_voxel_moves_by_that_voxels_displacement(displacement: np.ndarray) -> None:
    last = np.array(SHAPE) - 1
    for voxel in ([0, 0, 0], [2, 3, 4], last):
        moved = move_points(displacement, np.array([voxel], float))[0]
        np.testing.assert_array_equal(moved, voxel + displacement[tuple(voxel)])


def test_a_fixed_landmark_lands_where_the_moving_image_shows_it(displacement: np.ndarray) -> None:
    """warped(p) = moving(p + u(p)): with an image that is its own coordinate, read both ways."""
    voxel = np.array([[3.0, 2.0, 5.0]])
    coordinate = numerics.grid((20, 20, 20))  # [..., c] is the position along axis c
    warped = fields.warp(coordinate, 5 + displacement)  # 5: keeps all positions inside
    moved = move_points(5 + displacement, voxel)
    np.testing.assert_allclose(warped[3, 2, 5], moved[0], atol=EXACT)


def test_distance_is_the_mean_over_the_present_ones(points: np.ndarray) -> None:
    others = points + np.arange(15).reshape(5, 3) / 10
    mask = np.array([True, False, True, True, False])
    squared = ((SPACING * (points - others)) ** 2).sum(-1)
    found = landmarks.masked_mean_squared_distance(points, others, mask, SPACING)
    np.testing.assert_allclose(found, squared[mask].mean(), rtol=EXACT)
    every = landmarks.masked_mean_squared_distance(points, others, np.ones(5, bool))
    np.testing.assert_allclose(every, ((points - others) ** 2).sum(-1).mean(), rtol=EXACT)


def test_what_is_missing_has_no_effect_whatever_stands_there(
    displacement: np.ndarray, points: np.ndarray
) -> None:
    mask = np.array([True, False, True, True, False])
    others = points + 1.0

    def distance(points: jax.Array, others: jax.Array) -> jax.Array:
        return landmarks.masked_mean_squared_distance(points, others, mask)

    spoilt = others.copy()
    spoilt[~mask] = [[np.nan] * 3, [np.inf] * 3]
    clean, bad = (
        jax.value_and_grad(distance, argnums=(0, 1))(jnp.asarray(points), jnp.asarray(o))
        for o in (others, spoilt)
    )
    assert float(clean[0]) == float(bad[0]) == pytest.approx(3)
    for ours, theirs in zip(clean[1], bad[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(theirs[~mask], 0)


def test_no_landmark_at_all_is_a_distance_of_zero_with_a_derivative(points: np.ndarray) -> None:
    none = np.zeros(5, bool)
    distance = landmarks.masked_mean_squared_distance
    value, slope = jax.value_and_grad(distance)(jnp.asarray(points), points + 1, none)
    assert float(value) == 0
    np.testing.assert_array_equal(slope, 0)
    empty = jnp.zeros((0, 3))
    assert float(distance(empty, empty, jnp.zeros(0, bool))) == 0


def test_the_derivative_at_distance_zero_is_zero(points: np.ndarray) -> None:
    mask = np.ones(5, bool)
    slope = jax.grad(landmarks.masked_mean_squared_distance)(jnp.asarray(points), points, mask)
    np.testing.assert_array_equal(slope, 0)


def test_tre_is_in_millimetres_and_missing_stays_missing(
    displacement: np.ndarray, points: np.ndarray
) -> None:
    moving = np.array(move_points(displacement, points))
    moving[1] += [1.0, 0, 0]
    moving[2] += [0, 2.0, 1.0]
    moving[4] = np.nan
    found = landmarks.target_registration_error(displacement, points, moving, SPACING)
    np.testing.assert_allclose(found[:4], [0, 2, np.sqrt(3**2 + 3**2), 0], atol=EXACT)
    assert np.isnan(found[4])


def test_the_same_answer_under_jit_and_vmap(displacement: np.ndarray, points: np.ndarray) -> None:
    batch = np.stack([displacement, -displacement]), np.stack([points, points[::-1]])
    expected = [move_points(u, p) for u, p in zip(*batch, strict=True)]
    found = jax.jit(jax.vmap(landmarks.move_points))(*batch)
    np.testing.assert_allclose(found, np.stack(expected), atol=EXACT)
