"""The train step on a tiny problem: 4 virtual devices against one, draws, steps that must not count."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmreg_jax import training
from lmreg_jax.objective import Objective
from lmreg_jax.training import Batch, TrainState
from lmreg_jax.unet import UNet
from tests import numerics

SHAPE = (8, 6, 8)
PAIRS = 4
MODEL = UNet(encoder=(4, 4), decoder=(4, 4), final=(4,))
# Plain descent at rate 1: what a step changes is the gradient.
DESCENT = optax.sgd(1.0)
CONSTANTS: dict[str, Any] = {"apply": MODEL.apply, "optimiser": DESCENT}
KEY = jax.random.key(7)

step = jax.jit(
    partial(training.train_step, **CONSTANTS, objective=Objective(landmark_weight=0.5))
)


@pytest.fixture(scope="module")
def params() -> Any:
    """He-normal kernels, from NumPy (compiling jax's random numbers takes longer than the tests)."""
    image = jax.ShapeDtypeStruct((1, 4, 4, 4), jnp.float32)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), image, image)
    random = np.random.default_rng(0)

    def array(leaf: Any) -> jax.Array:
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0
        return jnp.asarray(scale * random.normal(size=leaf.shape), jnp.float32)

    found = jax.tree.map(array, shapes)
    # A variance of e^-4, not e^-10: a draw that is felt.
    found["params"]["log_variance"]["bias"] = jnp.full(3, -4.0)
    return found


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Each pair a shift of a smooth image, with 5 landmarks, one of them missing in pair 2."""
    random = np.random.default_rng(1)
    fixed = np.stack([numerics.smooth_image(SHAPE, s) for s in range(PAIRS)])
    moving = np.roll(fixed, 1, axis=1)
    points = random.uniform(1, np.array(SHAPE) - 2, (PAIRS, 5, 3))
    mask = np.ones((PAIRS, 5), bool)
    mask[2, 1] = False
    others = np.where(mask[..., None], points + [1, 0, 0], np.nan)
    arrays = (jnp.asarray(a, jnp.float32) for a in (fixed, moving, points, others))
    return Batch(*arrays, jnp.asarray(mask))


@pytest.fixture(scope="module")
def state(params: Any) -> TrainState:
    return training.initial_state(params, DESCENT)


@pytest.fixture(scope="module")
def parallel() -> Any:
    """The step over 4 devices, compiled once for all tests of this file."""
    assert jax.local_device_count() == 4
    return training.parallel_train_step(**CONSTANTS, objective=Objective(landmark_weight=0.5))


def change(after: TrainState, before: TrainState) -> np.ndarray:
    """All parameters' changes as one vector: minus the gradient."""
    leaves = zip(jax.tree.leaves(after.params), jax.tree.leaves(before.params), strict=True)
    return np.concatenate([np.ravel(np.float64(a) - np.float64(b)) for a, b in leaves])


def assert_equal(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_four_devices_give_the_gradient_of_one(
    state: TrainState, batch: Batch, parallel: Any
) -> None:
    """1e-5: float32 sums in another order. Dividing wrongly or another draw would be off by 1."""
    alone, scalars = step(state, batch, KEY)
    together, theirs = parallel(training.replicate(state), batch, KEY)
    for device in range(4):
        mine = jax.tree.map(lambda a, d=device: a[d], together)
        assert numerics.relative(change(mine, state), change(alone, state)) < 1e-5
    assert int(training.unreplicate(together).step) == 1
    for name, value in scalars.items():
        assert float(theirs[name]) == pytest.approx(float(value), rel=1e-5), name
    assert float(scalars["grad_norm"]) == pytest.approx(
        np.linalg.norm(change(alone, state)), rel=1e-4
    )


def test_two_devices_and_a_second_step_are_the_same_training(
    state: TrainState, batch: Batch
) -> None:
    """The step's number stays in the state: a draw of step 1 is that of step 1 on any devices."""
    slow = optax.sgd(1e-3)  # two steps of rate 1 would leave the valley
    constants = {**CONSTANTS, "optimiser": slow, "objective": Objective()}
    devices = jax.local_devices()[:2]
    two = training.parallel_train_step(devices, **constants)
    together = training.replicate(state, devices)
    alone, one = state, jax.jit(partial(training.train_step, **constants))
    for _ in range(2):
        together, _ = two(together, batch, KEY)
        alone, _ = one(alone, batch, KEY)
    found = change(training.unreplicate(together), state)
    assert numerics.relative(found, change(alone, state)) < 1e-4  # of float32 weights, minus them


def test_a_batch_that_does_not_divide_is_refused(
    state: TrainState, batch: Batch, parallel: Any
) -> None:
    three = jax.tree.map(lambda a: a[:3], batch)
    with pytest.raises(ValueError, match="3 pairs does not divide over 4 devices"):
        parallel(training.replicate(state), three, KEY)


def test_draws_follow_from_key_and_step_alone(state: TrainState, batch: Batch) -> None:
    first, again = (step(state, batch, KEY) for _ in range(2))
    assert_equal(first, again)
    later, _ = step(state._replace(step=jnp.int32(1)), batch, KEY)
    other, _ = step(state, batch, jax.random.key(8))
    for changed in (later, other):
        assert numerics.relative(change(changed, state), change(first[0], state)) > 1e-3


def test_each_pair_has_its_own_draw(state: TrainState, batch: Batch) -> None:
    """With one draw for all, a batch of four equal pairs would give the loss of that pair alone."""
    same = jax.tree.map(lambda a: jnp.stack([a[0]] * PAIRS), batch)
    keys = jax.random.split(KEY, PAIRS)
    losses = jax.jit(
        partial(training.loss_terms, apply=MODEL.apply, objective=Objective())
    )
    mixed, single = (losses(state.params, same, k)[0] for k in (keys, keys[jnp.zeros(4, int)]))
    assert abs(float(mixed) - float(single)) > 1e-4 * abs(float(single))


@pytest.mark.parametrize("spoilt", ["fixed", "moving_points"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(
    spoilt: str, state: TrainState, batch: Batch, parallel: Any
) -> None:
    """One bad pair, on one device, is seen by all: the devices' copies must not part."""
    bad = batch._replace(**{spoilt: getattr(batch, spoilt).at[1].set(jnp.nan)})
    after, scalars = step(state, bad, KEY)
    assert float(scalars["skipped"]) == 1
    assert_equal(after, state._replace(step=jnp.int32(1)))
    together, scalars = parallel(training.replicate(state), bad, KEY)
    assert float(scalars["skipped"]) == 1
    for device in range(4):
        mine = jax.tree.map(lambda a, d=device: a[d], together)
        assert_equal(mine.params, state.params)


def test_a_weight_of_zero_is_a_training_without_landmarks(
    state: TrainState, batch: Batch
) -> None:
    """The same gradient, by two ways; the distance is logged all the same."""
    unmarked = batch._replace(point_mask=jnp.zeros_like(batch.point_mask))
    masked, by_mask = step(state, unmarked, KEY)
    weightless = jax.jit(
        partial(training.train_step, **CONSTANTS, objective=Objective(landmark_weight=0.0))
    )
    unweighted, by_weight = weightless(state, batch, KEY)
    assert numerics.relative(change(masked, state), change(unweighted, state)) < 1e-5
    assert float(by_mask["landmark"]) == 0
    assert float(by_weight["landmark"]) > 0.1
    assert float(by_mask["loss"]) == pytest.approx(float(by_weight["loss"]), rel=1e-6)
    full, _ = step(state, batch, KEY)
    assert numerics.relative(change(full, state), change(masked, state)) > 1e-3


def test_loss_and_landmark_distance_fall_over_a_few_steps(params: Any, batch: Batch) -> None:
    """Every pair is the same shift by one voxel: to learn it takes little more than a bias."""
    optimiser = optax.adam(1e-2)
    run = jax.jit(
        partial(
            training.train_step,
            apply=MODEL.apply,
            optimiser=optimiser,
            objective=Objective(image_sigma=0.05, landmark_weight=10),
        )
    )
    state, history = training.initial_state(params, optimiser), []
    for _ in range(40):
        state, scalars = run(state, batch, KEY)
        history.append(jax.tree.map(float, scalars))
    assert int(state.step) == 40
    assert sum(scalars["skipped"] for scalars in history) == 0
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["landmark"] < 0.5 * history[0]["landmark"]
    assert all(np.isfinite(value) for scalars in history for value in scalars.values())


def test_augmentation_sees_each_pair_with_its_own_key(state: TrainState, batch: Batch) -> None:
    """What it changes is what the loss sees: brighter by a random part, another in each pair."""

    def brighter(key: jax.Array, pair: Batch) -> Batch:
        assert pair.fixed.shape == SHAPE
        return pair._replace(fixed=pair.fixed + jax.random.uniform(key, (), minval=1, maxval=2))

    objective = Objective(image_sigma=1, landmark_weight=0)
    _, plain = training.train_step(state, batch, KEY, **CONSTANTS, objective=objective)
    _, changed = training.train_step(
        state, batch, KEY, **CONSTANTS, objective=objective, augment=brighter
    )
    # Brighter by 1 to 2: a mean square of 1 to 4, give or take twice the images' own difference.
    assert 0.5 < float(changed["image"] - plain["image"]) < 5
