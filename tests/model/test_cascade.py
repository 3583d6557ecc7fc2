"""Several passes: the recursion written out, the gradient of the last one, the step that draws one."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmreg_jax.core.objective import Objective
from lmreg_jax.core.posterior import Posterior
from lmreg_jax.model.cascade import cascade
from lmreg_jax.training import step
from lmreg_jax.types import Batch
from tests import numerics

SHAPE = (8, 6, 10)  # of the images; the field's grid is twice as coarse
STEPS = 3


def apply(params: Any, moving: jax.Array, fixed: jax.Array) -> Posterior:
    """A "network" that can be written out in NumPy: differences, scaled, at every second voxel."""
    difference = (fixed - moving)[:, ::2, ::2, ::2, None]
    return Posterior(params["gain"] * difference, params["spread"] * difference**2)


def velocity_after(params: Any, moving: np.ndarray, fixed: np.ndarray, passes: int) -> np.ndarray:
    """v_k = v_{k-1} + gain * (f - m o exp(v_{k-1})), one pair, in NumPy and SciPy."""
    velocity = np.zeros((*(n // 2 for n in SHAPE), 3))
    for _ in range(passes):
        positions = numerics.grid(SHAPE) / 2
        displacement = 2 * numerics.sample(numerics.integrate(velocity, STEPS), positions)
        warped = numerics.sample(moving, numerics.grid(SHAPE) + displacement)
        velocity = velocity + params["gain"] * (fixed - warped)[::2, ::2, ::2, None]
    return velocity


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    return numerics.smooth_image(SHAPE, 0), numerics.smooth_image(SHAPE, 1)


PARAMS = {"gain": np.array([0.7, -0.4, 0.5]), "spread": np.array([1.0, 2.0, 3.0])}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("passes", [1, 2, 4])
@pytest.mark.parametrize("traced", [False, True])
def test_the_recursion(pair: tuple[np.ndarray, np.ndarray], passes: int, traced: bool) -> None:
    moving, fixed = pair
    batch = np.stack([moving, fixed]), np.stack([fixed, moving])  # Both orders: pairs do not mix.

    def run(count: Any) -> Posterior:
        return cascade(apply, count, integration_steps=STEPS)(PARAMS, *batch)

    found = jax.jit(run)(passes) if traced else run(passes)
    for i, (m, f) in enumerate(zip(*batch, strict=True)):
        expected = velocity_after(PARAMS, m, f, passes)
        np.testing.assert_allclose(found.mean[i], expected, atol=1e-12)
        change = expected - velocity_after(PARAMS, m, f, passes - 1)  # of the last pass
        spread = PARAMS["spread"] * (change / PARAMS["gain"]) ** 2
        np.testing.assert_allclose(found.log_variance[i], spread, atol=1e-12)


def test_one_pass_is_the_network_itself() -> None:
    assert cascade(apply, 1) is apply


@pytest.mark.usefixtures("float64")
def test_the_gradient_is_that_of_the_last_pass(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """The sum over v_3 = v_2 + gain * d, with v_2 held: its slope in the gain is the sum of d."""
    moving, fixed = pair

    def total(params: Any) -> jax.Array:
        return jnp.sum(cascade(apply, 3, integration_steps=STEPS)(params, moving[None], fixed[None]).mean)

    found = jax.jit(jax.grad(total))(PARAMS)
    last = velocity_after(PARAMS, moving, fixed, 3) - velocity_after(PARAMS, moving, fixed, 2)
    np.testing.assert_allclose(found["gain"], (last / PARAMS["gain"]).sum((0, 1, 2)), rtol=1e-10)
    np.testing.assert_array_equal(found["spread"], 0)


def some_batch(pairs: int) -> Batch:
    fixed = np.stack([numerics.smooth_image(SHAPE, s) for s in range(pairs)])
    points, shift = np.full((pairs, 2, 3), 2.0), np.array([1.0, 0, 0])
    arrays = [jnp.float32(a) for a in (fixed, np.roll(fixed, 1, axis=1), points, points + shift)]
    return Batch(*arrays, jnp.ones((pairs, 2), bool))


OPTIMISER = optax.sgd(1.0)  # the change of the parameters is the gradient
OBJECTIVE = Objective(image_sigma=0.1, integration_steps=STEPS)


@partial(jax.jit, static_argnames=("passes", "drawn"))
def gradient(number: int, *, passes: int, drawn: bool) -> jax.Array:
    """Of step `number`, as one vector: of one of `passes` passes, or of the last of them."""
    params = jax.tree.map(jnp.float32, PARAMS)
    state = step.initial_state(params, OPTIMISER)._replace(step=jnp.int32(number))
    after, _ = step.train_step(
        state,
        some_batch(2),
        jax.random.key(0),
        apply=apply if drawn else cascade(apply, passes, integration_steps=STEPS),
        objective=OBJECTIVE,
        optimiser=OPTIMISER,
        passes=passes if drawn else 1,
    )
    return jnp.concatenate(jax.tree.leaves(jax.tree.map(jnp.subtract, params, after.params)))


def test_a_step_teaches_the_one_pass_that_its_key_draws() -> None:
    """Each step's gradient is that of one of the three passes; all three have their turn in 12 steps
    (the chance that one is missed is 2 %, and the key is fixed)."""
    turns = set()
    for number in range(12):
        found = gradient(number, passes=3, drawn=True)
        errors = [numerics.relative(found, gradient(number, passes=k, drawn=False)) for k in (1, 2, 3)]
        assert min(errors) < 1e-4  # float32; the parameters, which it is taken from, are of its size
        assert sorted(errors)[1] > 1e-2  # The three do differ.
        turns.add(int(np.argmin(errors)))
    assert turns == {0, 1, 2}
