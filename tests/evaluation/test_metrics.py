"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lmreg_jax.evaluation import metrics
from lmreg_jax.imaging.transforms import jacobian_determinant

SHAPE = (9, 7, 8)


def constant(vector: tuple[float, float, float], shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.broadcast_to(np.array(vector), (*shape, 3)).copy()


def linear(matrix: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """u(x) = A x."""
    return np.einsum("ij,jxyz->xyzi", matrix, np.indices(shape).astype(float))


def box(start: tuple[int, int, int], size: tuple[int, int, int], label: int = 1) -> np.ndarray:
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = label
    return mask


def test_error_is_zero_where_the_field_carries_each_point_to_its_match() -> None:
    fixed = np.array([[2.0, 3.0, 4.0], [1.5, 2.25, 3.75]])
    moving = fixed + np.array([1.0, -0.5, 2.0])
    error = metrics.target_registration_error(constant((1, -0.5, 2)), fixed, moving, (2, 2, 2))
    np.testing.assert_allclose(error, 0, atol=1e-12)


def test_error_runs_from_fixed_to_moving() -> None:
    """u pointing the other way must double the error, not remove it."""
    fixed, moving = np.array([[4.0, 3.0, 4.0]]), np.array([[5.0, 3.0, 4.0]])
    error = metrics.target_registration_error(constant((-1, 0, 0)), fixed, moving, (1, 1, 1))
    np.testing.assert_allclose(error, 2)


def test_error_uses_each_axis_own_spacing() -> None:
    fixed = np.array([[1.0, 1.0, 1.0]] * 3)
    moving = fixed + np.diag([1.0, 2.0, 1.0])
    error = metrics.target_registration_error(None, fixed, moving, (0.5, 3.0, 5.0))
    np.testing.assert_allclose(error, [0.5, 6.0, 5.0])


def test_displacement_is_read_trilinearly_and_held_beyond_the_edge() -> None:
    matrix = np.array([[0.1, 0.0, 0.2], [0.0, -0.1, 0.0], [0.3, 0.0, 0.0]])
    points = np.array([[2.25, 3.5, 4.75], [8.0, 6.0, 7.0], [20.0, 6.0, -3.0]])
    clamped = np.clip(points, 0, np.array(SHAPE) - 1)
    sampled = metrics.sample_displacement(linear(matrix), points)
    np.testing.assert_allclose(sampled, clamped @ matrix.T, atol=1e-12)


def test_missing_points_stay_missing_and_a_broken_field_does_not_hide_as_missing() -> None:
    fixed = np.array([[1.0, 1.0, 1.0], [np.nan] * 3, [2.0, 2.0, 2.0]])
    moving = np.array([[1.0, 1.0, 2.0], [1.0, 1.0, 1.0], [np.nan, 2.0, 2.0]])
    error = metrics.target_registration_error(constant((0, 0, 0)), fixed, moving, (1, 1, 3))
    np.testing.assert_array_equal(error, [3.0, np.nan, np.nan])
    broken = metrics.target_registration_error(constant((np.nan,) * 3), fixed, moving, (1, 1, 3))
    np.testing.assert_array_equal(broken, [np.inf, np.nan, np.nan])
    none = metrics.target_registration_error(None, np.zeros((0, 3)), np.zeros((0, 3)), (1, 1, 1))
    assert none.shape == (0,)


def test_dice_of_shifted_boxes() -> None:
    # 4 x 4 x 4 boxes, two voxels apart along x: they share 2 x 4 x 4 = 32 of 64 + 64 voxels.
    a, b = box((2, 2, 2), (4, 4, 4)), box((4, 2, 2), (4, 4, 4), label=2)
    assert metrics.dice(a, b) == pytest.approx(2 * 32 / 128)
    assert metrics.dice(a, b, label=1) == 0
    assert metrics.dice(a, a, label=1) == 1
    assert np.isnan(metrics.dice(a, a, label=3))


def test_labels_are_pulled_from_where_the_displacement_points() -> None:
    moving = box((6, 3, 3), (3, 3, 3), label=2)
    warped = metrics.warp_labels(moving, constant((3.2, 0.4, -0.4), (12, 12, 12)))
    np.testing.assert_array_equal(warped, box((3, 3, 3), (3, 3, 3), label=2))
    assert warped.dtype == moving.dtype


def test_labels_keep_their_edge_value_outside_the_grid() -> None:
    warped = metrics.warp_labels(box((10, 0, 0), (2, 12, 12)), constant((30, 0, 0), (12, 12, 12)))
    assert (warped == 1).all()


def test_hausdorff_of_shifted_boxes_is_the_shift_in_mm() -> None:
    a, b = box((2, 2, 2), (4, 4, 4)), box((5, 2, 2), (4, 4, 4))
    # The far faces (16 of 56 surface voxels, more than 5 %) are 3 voxels of 2.5 mm away.
    assert metrics.hausdorff95(a, b, (2.5, 1, 1)) == pytest.approx(7.5)
    assert metrics.hausdorff95(a, a, (2.5, 1, 1)) == 0
    assert np.isnan(metrics.hausdorff95(a, np.zeros_like(a), (1, 1, 1)))


def test_determinant_of_a_linear_field_is_exact_to_the_border() -> None:
    matrix = np.random.default_rng(0).normal(scale=0.3, size=(3, 3))
    expected = np.linalg.det(np.eye(3) + matrix)
    determinant = jacobian_determinant(linear(matrix))
    assert determinant.shape == SHAPE
    np.testing.assert_allclose(determinant, expected, rtol=1e-12)
    assert metrics.sd_log_jacobian(np.full(SHAPE, 2.0)) == pytest.approx(0, abs=1e-12)


def test_a_known_fold_is_counted() -> None:
    """u_x = -2 x on x >= 4: id + u runs backwards there, central differences feel it from x = 4.

    At x = 4, half of the slope is seen: (u(5) - u(3)) / 2 = -1, so det = 0, which is folded too.
    """
    displacement = np.zeros((9, 4, 4, 3))
    displacement[..., 0] = -2.0 * np.clip(np.arange(9) - 4, 0, None)[:, None, None]
    determinant = jacobian_determinant(displacement)
    assert metrics.folding_percent(determinant) == pytest.approx(100 * 5 / 9)
    mask = np.zeros((9, 4, 4))
    mask[:4] = 1
    assert metrics.folding_percent(determinant, mask) == 0
    assert metrics.folding_percent(np.full(SHAPE, np.nan)) == 100
    assert np.isnan(metrics.folding_percent(determinant, np.zeros((9, 4, 4))))


def test_sd_of_log_jacobian_leaves_folds_out() -> None:
    determinant = np.array([1.0, np.e**2, -1.0, 0.0])
    assert metrics.sd_log_jacobian(determinant) == pytest.approx(1.0)
    assert metrics.sd_log_jacobian(determinant, np.array([1, 0, 1, 1])) == 0
    assert np.isnan(metrics.sd_log_jacobian(np.array([-1.0])))
