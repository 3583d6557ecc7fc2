"""The affine step of lungs and points together, against closed forms."""

from __future__ import annotations

import numpy as np

from lmreg_jax.affine.landmarks import with_landmarks
from lmreg_jax.imaging.volume import apply_affine

RNG = np.random.default_rng(3)
LUNGS = RNG.uniform((-120, -90, -150), (120, 90, 150), (400, 3))
PULL = np.array([[1.05, 0.02, 0, 3], [0, 0.95, 0.01, -8], [0.03, 0, 1.1, 12], [0, 0, 0, 1]])
POINTS = RNG.uniform(-60, 60, (7, 3))


def test_points_that_agree_with_the_lungs_change_nothing() -> None:
    found = with_landmarks(PULL, LUNGS, POINTS, apply_affine(PULL, POINTS), np.ones(7))
    np.testing.assert_allclose(found, PULL, atol=1e-9)


def test_without_points_the_map_stays() -> None:
    assert with_landmarks(PULL, LUNGS, POINTS[:0], POINTS[:0], np.zeros(0)) is PULL
    assert with_landmarks(PULL, LUNGS, POINTS, POINTS, np.zeros(7)) is PULL


def test_a_shift_of_all_points_is_shared_by_weight() -> None:
    """Points at the lungs' own places, shifted by s, of equal total weight: the least squares give s / 2."""
    shift = np.array([4.0, -6.0, 2.0])
    moving = apply_affine(PULL, LUNGS) + shift
    found = with_landmarks(PULL, LUNGS, LUNGS, moving, np.ones(len(LUNGS)))
    np.testing.assert_allclose(found[:3, 3], PULL[:3, 3] + shift / 2, atol=1e-6)
    np.testing.assert_allclose(found[:3, :3], PULL[:3, :3], atol=1e-9)


def test_one_wrong_point_moves_the_map_by_a_bounded_amount() -> None:
    """Huber: beyond ROBUST_MM twice the error has the same pull, where least squares would double it."""
    moved = []
    for far in (100.0, 200.0):
        moving = apply_affine(PULL, POINTS)
        moving[0] += (far, 0, 0)
        found = with_landmarks(PULL, LUNGS, POINTS, moving, np.ones(7))
        moved.append(np.linalg.norm(apply_affine(found, LUNGS) - apply_affine(PULL, LUNGS), axis=1).mean())
    assert moved[1] < 1.1 * moved[0] < 6.0
