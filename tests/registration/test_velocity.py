"""Grids of a pair, and the velocity on them: integration, both directions, spread, refinement."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy import ndimage

from lmreg_jax.affine import moments as alignment
from lmreg_jax.affine.reference import ReferenceLungs
from lmreg_jax.imaging.transforms import jacobian, transform_points
from lmreg_jax.imaging.volume import apply_affine, bounding_box_mm
from lmreg_jax.registration import grid, refinement, velocity
from tests.tiny_cohort import random_pull, subject


def test_model_frame_puts_the_lungs_where_the_model_knows_them() -> None:
    _, lungs, _ = subject(random_pull(1))
    moments = alignment.mask_moments(lungs)
    reference = ReferenceLungs(np.array([150.0, 100.0, 200.0]), np.array([70.0, 40.0, 80.0]))
    frame = grid.model_frame(lungs, lungs, np.eye(4), (48, 32, 64), (7.0, 7.0, 7.0), reference)
    scale = frame.spacing / 7.0
    in_grid_mm = (moments.mean - frame.affine[:3, 3]) / scale
    np.testing.assert_allclose(in_grid_mm, reference.mean_mm)
    np.testing.assert_allclose(np.sqrt(moments.covariance.diagonal()) / scale, reference.sd_mm)
    plain = grid.model_frame(lungs, lungs, np.eye(4), (48, 32, 64), (7.0, 7.0, 7.0), None)
    np.testing.assert_allclose(plain.spacing, 7.0)
    low, high = bounding_box_mm(lungs)
    middle = plain.affine[:3, 3] + plain.spacing * (np.array(plain.shape) - 1) / 2
    np.testing.assert_allclose(middle, (low + high) / 2)


def test_finer_and_coarser_frames_share_voxel_0() -> None:
    frame = grid.Frame((10, 12, 14), np.diag([7.0, 8.0, 3.0, 1.0]))
    fine = grid.finer(frame, 4.0)
    assert fine.shape == (20, 24, 14)
    np.testing.assert_allclose(fine.spacing, [3.5, 4.0, 3.0])
    assert grid.coarser(fine).shape == (10, 12, 7)
    np.testing.assert_allclose(grid.coarser(fine).spacing, [7.0, 8.0, 6.0])


def test_a_linear_velocity_is_integrated_exactly_in_mm() -> None:
    """v(x) = B (x - c) in mm, on an anisotropic grid, flows by exp(B); far from the border."""
    shape, edges = (20, 16, 24), np.array([14.0, 10.0, 12.0])
    affine = np.diag([*edges, 1.0])
    affine[:3, 3] = (-100.0, 40.0, 7.0)
    centre = affine[:3, 3] + edges * (np.array(shape) - 1) / 2
    b = np.array([[0.05, 0.03, 0.0], [-0.02, -0.04, 0.01], [0.0, 0.02, 0.03]])
    mm = apply_affine(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))
    field = velocity.Field(((mm - centre) @ b.T).astype(np.float32), affine)
    pull = random_pull(3)
    forward, inverse = velocity.transforms_of(field, pull)
    points = centre + np.random.default_rng(0).uniform(-30, 30, (50, 3))
    values, vectors = np.linalg.eig(b)
    flow = np.real(vectors @ np.diag(np.exp(values)) @ np.linalg.inv(vectors))
    expected = apply_affine(pull, centre + (points - centre) @ flow.T)
    # Scaling and squaring errs by |B|^2 |x| / 2^10 = 0.0002 mm; float32 by 1e-5 of 100 mm.
    np.testing.assert_allclose(transform_points(forward, points), expected, atol=2e-3)
    np.testing.assert_allclose(transform_points(inverse, expected), points, atol=5e-3)


def test_transforms_end_softly_and_do_not_fold() -> None:
    rng = np.random.default_rng(1)
    rough = rng.normal(0, 14, (12, 10, 14, 3)).astype(np.float32)
    smooth = np.asarray(refinement.smooth(rough, 4))  # some 6 mm of motion, up to the grid's border
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    forward, inverse = velocity.transforms_of(velocity.Field(smooth, affine), np.eye(4))
    for transform in (forward, inverse):
        for axis in range(3):
            for end in (0, -1):
                assert not transform.displacement.take(end, axis).any()
        assert jacobian(transform, transform.displacement.shape[:3], transform.grid).min() > 0.2
    points = rng.uniform(0, 1, (500, 3)) * (np.array(smooth.shape[:3]) - 1) * 8
    back = transform_points(inverse, transform_points(forward, points))
    # Trilinear reading on 4 mm: |d''| h^2 / 8, with d'' = 6 mm / (8 mm)^2 some 0.2 mm at most.
    assert np.percentile(np.linalg.norm(back - points, axis=1), 95) < 0.2


@pytest.mark.parametrize(("sd_mm", "edges_mm"), [(2.0, 4.0), (40.0, 8 / 3)])
def test_a_rough_velocity_gets_a_finer_grid_so_that_the_inverse_holds(sd_mm: float, edges_mm: float) -> None:
    rng = np.random.default_rng(2)
    rough = np.asarray(refinement.smooth(rng.normal(0, sd_mm, (14, 14, 14, 3)).astype(np.float32), 4))
    field = velocity.Field(rough, np.diag([8.0, 8.0, 8.0, 1.0]))
    points = rng.uniform(16, 88, (2000, 3))
    forward, inverse = velocity.transforms_of(field, np.eye(4), points)
    np.testing.assert_allclose(forward.grid.diagonal()[:3], edges_mm)
    gap = np.linalg.norm(transform_points(inverse, transform_points(forward, points)) - points, axis=1)
    assert np.percentile(gap, 95) < 0.2


def spread(spacing_mm: tuple[float, float, float], size: int = 12) -> velocity.Field:
    """No motion, and an sd of 0.01 voxel: so small that exp(v) = v."""
    shape = (size, size, size, 3)
    affine = np.diag([*spacing_mm, 1.0])
    return velocity.Field(np.zeros(shape, np.float32), affine, np.full(shape, np.log(1e-4), np.float32))


@pytest.mark.parametrize("scale", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (2.0, 0.5, 1.0)])
def test_uncertainty_is_in_millimetres_of_the_moving_scan(scale: tuple[float, float, float]) -> None:
    """0.01 voxel of 2, 4, 6 mm, times the affine's scale along each axis: the root of their squares."""
    field, pull = spread((2.0, 4.0, 6.0)), random_pull(0)
    turned = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # axes of the moving scan in another order
    pull[:3, :3] = turned @ np.diag(scale)
    found = velocity.uncertainty(field, pull, samples=64)
    assert found is not None
    expected = 0.01 * np.linalg.norm(np.array([2.0, 4.0, 6.0]) * scale)
    # A standard deviation from 64 draws of three components is off by 6 %, their mean by far less.
    assert found.data.mean() == pytest.approx(expected, rel=0.02)
    assert velocity.uncertainty(field._replace(log_variance=None), pull) is None


def test_a_second_pair_compiles_nothing(caplog: pytest.LogCaptureFixture) -> None:
    compiled = []
    for number in range(2):
        caplog.clear()
        field, pull = spread((8.0, 8.0, 8.0), size=6), random_pull(number)
        with jax.log_compiles():
            velocity.transforms_of(field._replace(velocity=field.velocity + number), pull)
            velocity.uncertainty(field, pull, samples=2)
        compiled.append(sum("Compiling" in record.getMessage() for record in caplog.records))
    assert compiled[0] > 0 and compiled[1] == 0


@pytest.mark.slow
def test_refinement_around_the_start_keeps_what_no_image_speaks_of() -> None:
    shape = (16, 16, 16)
    flat, everywhere = np.full(shape, 0.5, np.float32), np.ones(shape, bool)
    frame = grid.Frame(shape, np.diag([8.0, 8.0, 8.0, 1.0]))
    nothing = velocity.no_motion(frame)
    bump = np.random.default_rng(0).normal(0, 120, nothing.velocity.shape).astype(np.float32)
    start = nothing._replace(velocity=ndimage.gaussian_filter(bump, (1.5, 1.5, 1.5, 0)))

    def refined(around_start: bool) -> tuple[velocity.Field, refinement.Outcome]:
        def images(frame: grid.Frame) -> grid.Pair:
            coarser = tuple(slice(n) for n in frame.shape)
            return grid.Pair(flat[coarser], flat[coarser], everywhere[coarser], everywhere[coarser])

        objective = refinement.Objective(precision=10.0)
        return refinement.refined(images, frame, start, objective, 4, around_start=around_start)

    kept, outcome = refined(True)
    np.testing.assert_allclose(kept.velocity, start.velocity, atol=1e-5)
    assert outcome.after["total"] == outcome.before["total"] == 0
    smoothed, outcome = refined(False)
    assert outcome.after["prior"] < 0.9 * outcome.before["prior"]
    assert np.abs(smoothed.velocity - start.velocity).max() > 0.1
