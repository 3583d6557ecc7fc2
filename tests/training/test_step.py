"""The train step on a tiny problem: 4 virtual devices against one, draws, steps that are skipped."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmreg_jax.core.objective import Objective
from lmreg_jax.core.posterior import Posterior
from lmreg_jax.model.unet import UNet
from lmreg_jax.training import step as training
from lmreg_jax.training.step import TrainState
from lmreg_jax.types import Batch
from tests import numerics

SHAPE = (8, 6, 8)
PAIRS = 4
MODEL = UNet(encoder=(4,), decoder=(4,), final=())
# A momentum of 0 in front keeps the gradient, as it came, in the optimiser's state.
OPTIMISER = optax.chain(optax.trace(decay=0.0), optax.adam(1e-2))
OBJECTIVE = Objective(image_sigma=0.05, landmark_weight=10, integration_steps=4)
KEY = jax.random.key(7)


def step(
    state: TrainState, batch: Batch, key: jax.Array, weight: float = 10, brighter: float = 0
) -> tuple[TrainState, dict[str, jax.Array]]:
    """On one device. One compilation serves nearly all tests: what they vary is an argument."""
    return compiled_step(state, batch, key, jnp.float32(weight), jnp.float32(brighter))


@jax.jit
def compiled_step(
    state: TrainState, batch: Batch, key: jax.Array, weight: jax.Array, brighter: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    def brighten(key: jax.Array, pair: Batch) -> Batch:
        assert pair.fixed.shape == SHAPE  # one pair at a time
        part = jax.random.uniform(key, (), minval=1, maxval=2)
        return pair._replace(fixed=pair.fixed + brighter * part)

    objective = OBJECTIVE._replace(landmark_weight=weight)
    return training.train_step(
        state,
        batch,
        key,
        apply=MODEL.apply,
        optimiser=OPTIMISER,
        objective=objective,
        augment=brighten,
    )


@pytest.fixture(scope="module")
def parallel() -> Any:
    """The step over 4 devices."""
    assert jax.local_device_count() == 4
    return training.parallel_train_step(apply=MODEL.apply, optimiser=OPTIMISER, objective=OBJECTIVE)


def initial(dtype: Any) -> TrainState:
    """He-normal kernels, from NumPy (to compile jax's random numbers takes longer than a test)."""
    image = jax.ShapeDtypeStruct((1, 4, 4, 4), jnp.float32)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), image, image)
    random = np.random.default_rng(0)

    def array(leaf: Any) -> jax.Array:
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0
        return jnp.asarray(scale * random.normal(size=leaf.shape), dtype)

    params = jax.tree.map(array, shapes)
    # A variance of e^-4, not e^-10: a draw that is felt.
    params["params"]["log_variance"]["bias"] = jnp.full(3, -4, dtype)
    return training.initial_state(params, OPTIMISER)


def shifted_pairs(count: int, dtype: Any) -> Batch:
    """Each pair a shift of a smooth image, with 5 landmarks, one of them missing in pair 2."""
    random = np.random.default_rng(1)
    fixed = np.stack([numerics.smooth_image(SHAPE, s) for s in range(count)])
    moving = np.roll(fixed, 1, axis=1)
    points = random.uniform(1, np.array(SHAPE) - 2, (count, 5, 3))
    mask = np.ones((count, 5), bool)
    mask[2, 1] = False
    others = np.where(mask[..., None], points + np.array([1, 0, 0]), np.nan)
    arrays = (jnp.asarray(a, dtype) for a in (fixed, moving, points, others))
    return Batch(*arrays, jnp.asarray(mask))


@pytest.fixture(scope="module")
def state() -> TrainState:
    return initial(jnp.float32)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return shifted_pairs(PAIRS, jnp.float32)


def gradient(state: TrainState) -> np.ndarray:
    """The last step's gradient, as one vector."""
    return vector(state.optimiser[0].trace)


def vector(tree: Any) -> np.ndarray:
    """All arrays of a tree, one behind the other."""
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)])


def assert_equal(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_four_devices_train_as_one(state: TrainState, batch: Batch, parallel: Any) -> None:
    """Twenty steps. Gradients to 1e-5: float32 sums in another order, 1e-7 a step that the next ones
    take up (6e-7 measured). Dividing wrongly, or a draw that depends on the device, would be off by 1.
    The later steps show that the count is kept on the devices."""
    alone, together = state, training.replicate(state)
    for number in range(1, 21):
        alone, scalars = step(alone, batch, KEY)
        together, theirs = parallel(together, batch, KEY)
        copies = [jax.tree.map(lambda a, d=d: a[d], together) for d in range(4)]
        for copy in copies:
            assert int(copy.step) == int(alone.step) == number
            assert_equal(copy.params, copies[0].params)
        assert numerics.relative(gradient(copies[0]), gradient(alone)) < 1e-5
        # Adam divides by the gradient's size: an element near 0 keeps fewer digits than the rest.
        # A thousandth of one step's length (1e-2).
        np.testing.assert_allclose(vector(copies[0].params), vector(alone.params), atol=1e-5)
        for name, value in scalars.items():
            assert float(theirs[name]) == pytest.approx(float(value), rel=1e-5), name
    assert float(scalars["grad_norm"]) == pytest.approx(np.linalg.norm(gradient(alone)), rel=1e-5)
    assert_equal(training.unreplicate(together), copies[0])


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [8, 12])
def test_any_batch_that_divides_trains_on_four_devices_as_on_one(pairs: int) -> None:
    """Loss curve and parameters of twenty steps, in float64, where nothing but the mistake is large.

    Rounding is 1e-16 a number; Adam keeps its size relative to the gradient, and twenty steps add up:
    1e-13 leaves room for a factor of 50 more. A draw, a weight or a pair that went to the wrong place
    would be 1e-3 and above.
    """
    with jax.enable_x64(True):
        start, batch = initial(jnp.float64), shifted_pairs(pairs, jnp.float64)
        curves, ends = [], []
        for devices in (jax.local_devices()[:1], jax.local_devices()):
            advance = training.parallel_train_step(
                devices, apply=MODEL.apply, optimiser=OPTIMISER, objective=OBJECTIVE
            )
            state, losses = training.replicate(start, devices), []
            for _ in range(20):
                state, scalars = advance(state, batch, KEY)
                losses.append(float(scalars["loss"]))
            curves.append(losses)
            ends.append(vector(training.unreplicate(state).params))
    assert numerics.relative(ends[0], vector(start.params)) > 0.1, "twenty steps should lead somewhere"
    assert curves[0][-1] < 0.5 * curves[0][0]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-13)
    assert numerics.relative(ends[1], ends[0]) < 1e-13


def test_a_batch_that_does_not_divide_is_refused(state: TrainState, batch: Batch, parallel: Any) -> None:
    three = jax.tree.map(lambda a: a[:3], batch)
    with pytest.raises(ValueError, match="3 pairs does not divide over 4 devices"):
        parallel(state, three, KEY)


def test_draws_follow_from_key_and_step_alone(state: TrainState, batch: Batch) -> None:
    first, again = (step(state, batch, KEY) for _ in range(2))
    assert_equal(first, again)
    later, _ = step(state._replace(step=jnp.int32(1)), batch, KEY)
    other, _ = step(state, batch, jax.random.key(8))
    for changed in (later, other):
        assert numerics.relative(gradient(changed), gradient(first[0])) > 1e-3


def test_each_pair_has_its_own_draw(state: TrainState, batch: Batch) -> None:
    """With one draw for all, the order of the pairs would change nothing but rounding (1e-6)."""
    backwards = jax.tree.map(lambda a: a[::-1], batch)
    found, expected = (gradient(step(state, b, KEY)[0]) for b in (backwards, batch))
    assert numerics.relative(found, expected) > 1e-3


@pytest.mark.parametrize("spoilt", ["fixed", "moving_points"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(
    spoilt: str, state: TrainState, batch: Batch, parallel: Any
) -> None:
    """One bad pair, on one device, is seen by all: the devices' copies must not part."""
    bad = batch._replace(**{spoilt: getattr(batch, spoilt).at[1].set(jnp.nan)})
    after, scalars = step(state, bad, KEY)
    together, theirs = parallel(training.replicate(state), bad, KEY)
    assert float(scalars["skipped"]) == float(theirs["skipped"]) == 1
    expected = state._replace(step=jnp.int32(1))
    assert_equal(after, expected)
    for device in range(4):
        assert_equal(jax.tree.map(lambda a, d=device: a[d], together), expected)


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_not_applied(
    state: TrainState, batch: Batch
) -> None:
    """The square root of 0 has a value and no slope: the loss shows nothing, the norm does."""

    def apply(params: Any, *images: jax.Array) -> Posterior:
        mean, log_variance = MODEL.apply(params, *images)
        return Posterior(mean + jnp.sqrt(0 * jax.tree.leaves(params)[0].sum() ** 2), log_variance)

    after, scalars = training.train_step(
        state, batch, KEY, apply=apply, optimiser=OPTIMISER, objective=OBJECTIVE
    )
    assert np.isfinite(float(scalars["loss"])) and not np.isfinite(float(scalars["grad_norm"]))
    assert float(scalars["skipped"]) == 1
    assert_equal(after, state._replace(step=jnp.int32(1)))


def test_the_step_gives_its_state_s_memory_to_the_next(
    state: TrainState, batch: Batch, parallel: Any
) -> None:
    given = training.replicate(state)
    parallel(given, batch, KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))


def test_features_computed_again_give_the_same_step(state: TrainState, batch: Batch) -> None:
    """Through several passes, of which the last is the one that is differentiated."""
    steps = [
        training.train_step(
            state,
            batch,
            KEY,
            apply=MODEL.apply,
            optimiser=OPTIMISER,
            objective=OBJECTIVE,
            passes=3,
            rematerialise=again,
        )
        for again in (False, True)
    ]
    assert np.linalg.norm(gradient(steps[0][0])) > 0
    assert numerics.relative(gradient(steps[1][0]), gradient(steps[0][0])) < 1e-6  # float32 sums


def test_a_weight_of_zero_is_a_training_without_landmarks(state: TrainState, batch: Batch) -> None:
    """The same gradient, by two ways; the distance is logged all the same."""
    masked, by_mask = step(state, batch._replace(point_mask=jnp.zeros_like(batch.point_mask)), KEY)
    weightless, by_weight = step(state, batch, KEY, weight=0)
    assert numerics.relative(gradient(masked), gradient(weightless)) < 1e-6
    assert float(by_mask["landmark"]) == 0
    assert float(by_weight["landmark"]) > 0.1
    assert float(by_mask["loss"]) == pytest.approx(float(by_weight["loss"]), rel=1e-6)
    full, _ = step(state, batch, KEY)
    assert numerics.relative(gradient(full), gradient(masked)) > 1e-3


def test_loss_and_landmark_distance_fall_over_a_few_steps(state: TrainState, batch: Batch) -> None:
    """Every pair is the same shift by one voxel: to learn it takes little more than a bias."""
    history = []
    for _ in range(60):
        state, scalars = step(state, batch, KEY)
        history.append(jax.tree.map(float, scalars))
    assert int(state.step) == 60
    assert all(np.isfinite(value) for scalars in history for value in scalars.values())
    assert sum(scalars["skipped"] for scalars in history) == 0
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["landmark"] < 0.5 * history[0]["landmark"]


def test_augmentation_changes_each_pair_before_the_loss_sees_it(state: TrainState, batch: Batch) -> None:
    """Brighter by 1 to 2 in the fixed image only: the mean square rises by 1 to 4, give or take
    twice that times the images' own mean difference (0.1 or so)."""
    plain, changed = (step(state, batch, KEY, brighter=b)[1]["image"] for b in (0, 1))
    assert 0.5 < float(changed - plain) * OBJECTIVE.image_sigma**2 < 5
