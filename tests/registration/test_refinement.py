"""Instance optimisation: known motions are found, the objective falls, nothing folds, gaps do not pull."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmreg_jax.core import fields, landmarks, prior
from lmreg_jax.core.objective import Objective, displacement_of, image_scale
from lmreg_jax.core.objective import terms as training_terms
from lmreg_jax.core.posterior import Posterior
from lmreg_jax.registration import guidance, refinement
from lmreg_jax.registration.grid import Pair
from lmreg_jax.registration.variance import laplace_log_variance

SHAPE = (24, 20, 28)
OBJECTIVE = Objective(precision=1.0, image_sigma=0.05, integration_steps=5)


def blobs(seed: int = 0) -> jax.Array:
    """A smooth random image in [0, 1]."""
    noise = jax.random.normal(jax.random.key(seed), (*SHAPE, 1))
    smooth = refinement.smooth(noise, 6)[..., 0]
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def bump(size: float) -> jax.Array:
    """A velocity `[x, y, z, 3]` on the grid of stride 2: along x, largest in the middle."""
    shape = tuple(n // 2 for n in SHAPE)
    centre = (jnp.array(shape) - 1) / 2
    squared = jnp.sum(((fields.identity_grid(shape) - centre) / 3.5) ** 2, axis=-1)
    return jnp.stack([size * jnp.exp(-squared / 2), 0 * squared, 0 * squared], axis=-1)


def moved_pair(size: float) -> tuple[Pair, jax.Array]:
    """fixed(x) = moving(x + u(x)) for the displacement u of `bump(size)`."""
    moving = blobs()
    u = displacement_of(bump(size), SHAPE, stride=2, steps=5)
    inside = jnp.ones(SHAPE, bool)
    return Pair(fields.warp(moving, u), moving, inside, inside), u


def terms(
    objective: Objective, velocity: jax.Array, pair: Pair, centre: jax.Array | float = 0.0
) -> dict[str, jax.Array]:
    """{"image", "prior", "landmark", "total"} that a refinement minimises."""
    u = displacement_of(velocity, SHAPE, stride=2, steps=objective.integration_steps)
    image = refinement._image(objective, 2, u, pair)
    landmark = refinement._landmark(objective, u, pair.points)
    return refinement._with_total(image, refinement._prior(objective, velocity - centre), landmark)


def test_terms_are_those_of_training() -> None:
    pair, _ = moved_pair(1.0)
    velocity = bump(0.4)
    found = terms(OBJECTIVE, velocity, pair)
    u = displacement_of(velocity, SHAPE, stride=2, steps=5)
    none = jnp.zeros((1, 3))
    trained = training_terms(
        OBJECTIVE,
        Posterior(velocity, jnp.zeros_like(velocity)),
        u,
        pair.fixed,
        pair.moving,
        none,
        none,
        jnp.zeros(1, bool),
    )
    assert float(found["image"]) == pytest.approx(float(trained["image"]), rel=1e-5)
    # The variance's part of the KL does not depend on the mean.
    constant = prior.kl_divergence(jnp.zeros_like(velocity), jnp.zeros_like(velocity), precision=1.0)
    # (16.5 - 16.4 in float32: an absolute error of 1e-5)
    assert float(found["prior"]) == pytest.approx(float(trained["kl"] - constant), abs=2e-5)
    assert float(found["total"]) == pytest.approx(float(found["image"] + found["prior"]))


@pytest.mark.slow
def test_contrast_medium_moves_nothing_by_local_correlation() -> None:
    """No motion, but intensities scaled by a factor that falls from 1 to 0.5 across the image: squared
    differences take that for motion, local correlation does not, and it finds a known motion beneath."""
    image = blobs()
    factor = jnp.linspace(1, 0.5, SHAPE[0])[:, None, None]
    inside = jnp.ones(SHAPE, bool)
    pair = Pair(image, image * factor, inside, inside)
    still = jnp.zeros_like(bump(0.0))
    moved = {}
    for image_term, sigma in (("ssd", 0.05), ("lncc5", 0.1)):
        objective = OBJECTIVE._replace(image=image_term, image_sigma=sigma)
        outcome = refinement.refine(pair, still, objective=objective, steps=20)
        u = displacement_of(outcome.velocity, SHAPE, stride=2, steps=5)
        moved[image_term] = float(jnp.linalg.norm(u, axis=-1).mean())
    assert moved["lncc5"] < 0.25 * moved["ssd"]  # within 5 voxels the factor falls, too, by a tenth

    pair, truth = moved_pair(0.5)
    pair = pair._replace(moving=pair.moving * factor)
    objective = OBJECTIVE._replace(image="lncc5", image_sigma=0.1)
    outcome = refinement.refine(pair, still, objective=objective, steps=40)
    found = displacement_of(outcome.velocity, SHAPE, stride=2, steps=5)
    inner = (slice(6, -6),) * 3
    error = np.linalg.norm(np.asarray(found - truth)[inner], axis=-1)
    size = np.linalg.norm(np.asarray(truth)[inner], axis=-1)
    assert error.mean() < 0.5 * size.mean()


def test_known_motion_is_found() -> None:
    pair, truth = moved_pair(1.5)
    outcome = refinement.refine(pair, jnp.zeros_like(bump(0.0)), objective=OBJECTIVE, steps=40)
    assert outcome.after["total"] < 0.2 * outcome.before["total"]
    assert outcome.history[0] == outcome.before["total"]
    assert outcome.history[outcome.step] == outcome.after["total"] == min(outcome.history)
    assert outcome.smallest_jacobian[1] > 0.02
    found = displacement_of(outcome.velocity, SHAPE, stride=2, steps=5)
    inner = (slice(6, -6),) * 3
    error = np.linalg.norm(np.asarray(found - truth)[inner], axis=-1)
    size = np.linalg.norm(np.asarray(truth)[inner], axis=-1)
    assert error.mean() < 0.35 * size.mean()  # the prior holds back, flat places tell nothing


def test_nothing_to_gain_keeps_the_start() -> None:
    image = blobs()
    inside = jnp.ones(SHAPE, bool)
    pair = Pair(image, image, inside, inside)
    outcome = refinement.refine(pair, bump(0.0), objective=OBJECTIVE, steps=3)
    assert outcome.step == 0
    assert float(jnp.abs(outcome.velocity).max()) == 0
    no_steps = refinement.refine(pair, bump(0.3), objective=OBJECTIVE, steps=0)
    assert jnp.array_equal(no_steps.velocity, bump(0.3))


def test_a_prior_around_the_start_asks_for_no_change() -> None:
    flat = jnp.full(SHAPE, 0.5)
    inside = jnp.ones(SHAPE, bool)
    pair, start = Pair(flat, flat, inside, inside), bump(0.8)
    smoothed = refinement.refine(pair, start, objective=OBJECTIVE, steps=3)
    assert smoothed.after["prior"] < smoothed.before["prior"]  # around zero: less motion is better
    kept = refinement.refine(pair, start, objective=OBJECTIVE, steps=3, centre=start)
    assert kept.step == 0
    assert kept.before["total"] == 0
    np.testing.assert_array_equal(kept.velocity, start)
    # Away from the centre it is the prior of the difference.
    around = terms(OBJECTIVE, bump(1.1), pair, centre=start)["prior"]
    difference = terms(OBJECTIVE, bump(1.1) - start, pair)["prior"]
    assert float(around) == float(difference) > 0
    seen = refinement.compared(OBJECTIVE, pair, bump(1.1), kept, [], centre=start)
    assert seen.before["prior"] == pytest.approx(float(around), rel=1e-5)
    assert seen.after["prior"] == 0


def test_what_a_scan_does_not_show_has_no_value_and_no_slope() -> None:
    pair, _ = moved_pair(1.0)
    upper = jnp.arange(SHAPE[2]) >= 12
    known = jnp.broadcast_to(upper, SHAPE)
    # Below, the moving scan is said to have no data; whatever stands there must not matter.
    here = pair._replace(moving_inside=known)
    there = here._replace(moving=jnp.where(known, pair.moving, 0.0))
    velocity = jnp.zeros_like(bump(0.0))
    one, other = (jax.grad(lambda v, p=p: terms(OBJECTIVE, v, p)["image"])(velocity) for p in (here, there))
    # A voxel at the seam has its forward neighbour above it, so even there no unknown voxel is read.
    np.testing.assert_array_equal(one, other)
    assert float(jnp.abs(one[:, :, :5]).max()) == 0  # field voxels whose reach ends below the seam
    assert float(jnp.abs(one[:, :, 7:]).max()) > 0
    half = terms(OBJECTIVE, velocity, here)["image"]
    scale = image_scale(OBJECTIVE, 2)
    expected = scale * jnp.mean(jnp.where(known, pair.fixed - pair.moving, 0) ** 2)
    assert float(half) == pytest.approx(float(expected), rel=1e-5)


def test_what_a_scan_does_not_show_has_no_slope_by_a_neighbours_window_either() -> None:
    """Windows across the seam hold voxels of both sides; only what is shown may be moved by them."""
    pair, _ = moved_pair(1.0)
    known = jnp.broadcast_to(jnp.arange(SHAPE[2]) >= 12, SHAPE)
    objective = OBJECTIVE._replace(image="lncc5")
    slope = jax.grad(lambda v: terms(objective, v, pair._replace(moving_inside=known))["image"])(
        jnp.zeros_like(bump(0.0))
    )
    assert float(jnp.abs(slope[:, :, :6]).max()) == 0  # field voxel 5 reaches to image voxel 11
    assert float(jnp.abs(slope[:, :, 7:]).max()) > 0


def test_worse_outcomes_give_the_start_back() -> None:
    pair, _ = moved_pair(1.0)
    start = bump(0.9)  # nearly right already
    outcome = refinement.refine(pair, bump(-3.0), objective=OBJECTIVE, steps=1)
    kept = refinement.compared(OBJECTIVE, pair, start, outcome, [5.0, 4.0])
    assert kept.step == 0
    assert jnp.array_equal(kept.velocity, start)
    assert kept.before == kept.after


def test_a_better_fit_that_folds_is_refused() -> None:
    """Two unlike patterns and next to no prior: the best fit there is tears the image apart."""
    fixed, moving = jax.random.uniform(jax.random.key(3), (2, *SHAPE))
    inside = jnp.ones(SHAPE, bool)
    loose = OBJECTIVE._replace(precision=1e-4)
    pair = Pair(fixed, moving, inside, inside)
    outcome = refinement.refine(pair, bump(0.0), objective=loose, steps=15, learning_rate=6.0)
    assert min(outcome.history) < outcome.after["total"] < outcome.before["total"]
    assert outcome.smallest_jacobian[1] >= refinement.LEAST_JACOBIAN
    u = displacement_of(outcome.velocity, SHAPE, stride=2, steps=5)
    assert float(fields.jacobian_determinant(u).min()) == pytest.approx(
        outcome.smallest_jacobian[1], abs=1e-5
    )


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        ((1.0, 0.5), (2.0, 0.5), True),
        ((2.0, 0.5), (1.0, 0.5), False),
        ((1.0, -0.1), (2.0, 0.5), False),  # lower, but it folds
        ((2.0, 0.5), (1.0, -0.1), True),  # higher, but it folds no more
        ((2.0, -0.1), (1.0, -0.5), True),  # it folds less
        ((1.0, -0.5), (2.0, -0.1), False),
        ((math.nan, 0.5), (1.0, 0.5), False),
        ((math.nan, 0.5), (1.0, -0.5), False),
        ((1.0, math.nan), (2.0, -0.5), False),
    ],
)
def test_not_folding_comes_before_the_total(
    new: tuple[float, float], old: tuple[float, float], better: bool
) -> None:
    assert refinement._better(*(({"total": total}, jacobian) for total, jacobian in (new, old))) is better


def test_smoothing_keeps_constants_and_the_sum() -> None:
    constant = jnp.full((5, 4, 6, 3), 2.5)
    np.testing.assert_allclose(refinement.smooth(constant), constant, rtol=1e-6)
    point = jnp.zeros((11, 11, 11, 1)).at[5, 5, 5].set(1.0)
    smooth = np.asarray(refinement.smooth(point, 2))[..., 0]
    assert smooth.sum() == pytest.approx(1.0, rel=1e-5)
    assert smooth[5, 5, 5] == pytest.approx((6 / 16) ** 3, rel=1e-5)  # (1 4 6 4 1) / 16 along each axis


def test_laplace_variance_minimises_the_expected_objective() -> None:
    """Against the second derivative of the image term, taken by differences in float64."""
    with jax.enable_x64(True):
        moving = jnp.asarray(np.asarray(blobs()), jnp.float64)
        inside = jnp.ones(SHAPE, bool)
        # At v = 0 with no residual the Gauss-Newton second derivative is exact.
        pair = Pair(moving, moving, inside, inside)
        velocity = jnp.zeros((12, 10, 14, 3), jnp.float64)
        log_variance = laplace_log_variance(pair, velocity, OBJECTIVE)
        voxels = velocity.size // 3
        degree = prior.degree((12, 10, 14), jnp.float64)

        @jax.jit
        def image(v: jax.Array) -> jax.Array:
            return terms(OBJECTIVE, v, pair)["image"]

        step = 0.02
        for index in [(5, 5, 7, 0), (3, 6, 9, 1), (8, 4, 4, 2)]:
            up, down = (image(velocity.at[index].set(s)) for s in (step, -step))
            curvature = float(up + down - 2 * image(velocity)) / step**2
            expected = 1 / (OBJECTIVE.precision * float(degree[index[:3]]) + voxels * curvature)
            # Central differences of the image against its one-sided ones: the mean of their squares.
            assert float(jnp.exp(log_variance[index])) == pytest.approx(expected, rel=0.25)


def test_a_flat_image_leaves_the_variance_of_the_prior() -> None:
    flat = jnp.full(SHAPE, 0.5)
    inside = jnp.ones(SHAPE, bool)
    pair = Pair(flat, flat, inside, inside)
    found = laplace_log_variance(pair, bump(0.0), OBJECTIVE)
    assert float(jnp.exp(found[5, 5, 5, 0])) == pytest.approx(1 / 6, rel=1e-5)
    assert float(jnp.exp(found[0, 0, 0, 0])) == pytest.approx(1 / 3, rel=1e-5)


def with_points(pair: Pair, fixed: np.ndarray, moving: np.ndarray, weights: np.ndarray) -> Pair:
    """The pair with points in voxels of 2 mm."""
    room = guidance.MOST - len(weights)
    padded = [jnp.asarray(np.pad(p, [(0, room), (0, 0)]), jnp.float32) for p in (fixed, moving)]
    weight = jnp.asarray(np.pad(weights, (0, room)), jnp.float32)
    return pair._replace(points=guidance.Points(*padded, weight, jnp.full(3, 2.0)))


def test_the_landmark_term_is_that_of_training_near_its_minimum() -> None:
    """Pseudo-Huber: squares up to a hundredth where points lie 1 mm apart."""
    pair, u = moved_pair(1.0)
    fixed = np.random.default_rng(0).uniform(4, 15, (5, 3))
    near = np.add(landmarks.move_points(u, jnp.asarray(fixed, jnp.float32)), (0.5, 0, 0))
    objective = OBJECTIVE._replace(landmark_weight=5.0, landmark_sigma=4.0)
    marked = with_points(pair, fixed, near, np.ones(5))
    found = float(refinement._landmark(objective, u, marked.points))
    assert found == pytest.approx(5.0 / (2 * 16) * 1.0**2, rel=0.01)
    assert float(refinement._landmark(objective, u, pair.points)) == 0


def test_points_pull_the_field_and_a_wrong_one_is_bounded() -> None:
    """Flat images: the points alone move. Ten times as far away, a point pulls no more than linearly."""
    flat, inside = jnp.full(SHAPE, 0.5), jnp.ones(SHAPE, bool)
    pair, start = Pair(flat, flat, inside, inside), bump(0.0)
    point = np.array([[12.0, 10.0, 14.0]])
    objective = OBJECTIVE._replace(landmark_weight=5.0, landmark_sigma=4.0)
    moved = []
    for far in (2.0, 20.0):
        marked = with_points(pair, point, np.add(point, (far, 0, 0)), np.ones(1))
        outcome = refinement.refine(marked, start, objective=objective, steps=25)
        u = displacement_of(outcome.velocity, SHAPE, stride=2, steps=5)
        moved.append(float(landmarks.displacement_at(u, jnp.asarray(point, jnp.float32))[0, 0]))
        assert outcome.smallest_jacobian[1] > 0
    assert 1.5 < moved[0] < 2.5 and moved[0] < moved[1] < 10 * moved[0]
    slope = jax.grad(lambda u: refinement._landmark(objective, u, marked.points))(jnp.zeros((*SHAPE, 3)))
    steepest = 5.0 / (2 * 16) * 2 * refinement.ROBUST_MM * 2.0  # of a pseudo-Huber distance, a voxel of 2 mm
    assert float(jnp.abs(slope).max()) < steepest
