"""The train step: pure, one example first, batched by vmap, sharded by pmap (only here)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from lmreg_jax.core import objective as eq7
from lmreg_jax.core.posterior import Posterior, draw
from lmreg_jax.model.cascade import cascade
from lmreg_jax.types import Batch

Parameters = Any
DEVICES = "devices"
PASSES = 2**32 - 1  # folded into a step's key for what is drawn once a step; no pair has this number


class TrainState(NamedTuple):
    """All that a training is: the next step's number, the network's and the optimiser's arrays."""

    step: Array
    params: Parameters
    optimiser: Any


def loss_terms(
    params: Parameters,
    batch: Batch,
    keys: Array,
    *,
    apply: Callable[..., Posterior],
    objective: eq7.Objective,
) -> tuple[Array, dict[str, Array]]:
    """Mean of eq. 7 over the batch and its terms by name, by one draw of the velocity a pair.

    keys: `[B]`, one a pair. The draw estimates the expectation in eq. 6 (the re-parameterisation).
    AssertionError, while tracing, where shapes disagree.
    """
    size = batch.fixed.shape[0]
    chex.assert_rank([batch.fixed, batch.moving, batch.fixed_points, batch.point_mask], [4, 4, 3, 2])
    chex.assert_equal_shape([batch.fixed, batch.moving])
    chex.assert_equal_shape([batch.fixed_points, batch.moving_points])
    chex.assert_shape(batch.fixed_points, (size, batch.point_mask.shape[1], 3))
    chex.assert_shape(keys, (size,))
    posterior = apply(params, batch.moving, batch.fixed)
    shape = batch.fixed.shape[1:]
    stride = eq7.field_stride(shape, posterior.mean.shape[1:4])

    def one(key: Array, posterior: Posterior, pair: Batch) -> dict[str, Array]:
        displacement = eq7.displacement_of(
            draw(key, posterior), shape, stride=stride, steps=objective.integration_steps
        )
        return eq7.terms(objective, posterior, displacement, *pair)

    by_name = jax.tree.map(jnp.mean, jax.vmap(one)(keys, posterior, batch))
    return eq7.total(objective, by_name), by_name


def train_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    *,
    apply: Callable[..., Posterior],
    objective: eq7.Objective,
    optimiser: optax.GradientTransformation,
    augment: Callable[[Array, Batch], Batch] | None = None,
    passes: int = 1,
    rematerialise: bool = False,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One Adam step. Returns the new state and scalars: `loss`, its terms, `grad_norm`.

    key: of the run; the draw of pair i in step s uses fold_in(fold_in(key, s), i), i counted over
    all devices, so that neither a restart nor the number of devices changes a training.
    augment: changes one pair by a key, or None.
    passes: of the network (see `cascade`). Each step teaches one of them, the k-th, k from 1 to
    `passes` by the step's key: so the network learns to go on from wherever it may stand.
    rematerialise: the network's features are not kept for the backward pass but computed again: the
    same gradients, a third more operations, a quarter less memory (but not on the CPU under jax 0.10).
    A step whose loss or gradient is not finite is not applied (`skipped` is 1).
    """
    size = batch.fixed.shape[0]
    first = 0 if axis_name is None else lax.axis_index(axis_name) * size
    step_key = jax.random.fold_in(key, state.step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, first + jnp.arange(size, dtype=jnp.int32))
    if rematerialise:
        apply = jax.checkpoint(apply)
    if passes > 1:
        drawn = jax.random.randint(jax.random.fold_in(step_key, PASSES), (), 1, passes + 1, jnp.int32)
        apply = cascade(apply, drawn, integration_steps=objective.integration_steps)
    if augment is not None:
        batch = jax.vmap(augment)(jax.vmap(jax.random.fold_in, (0, None))(keys, 1), batch)
    (loss, by_name), gradients = jax.value_and_grad(loss_terms, has_aux=True)(
        state.params, batch, keys, apply=apply, objective=objective
    )
    scalars = {"loss": loss, **by_name}
    if axis_name is not None:
        gradients, scalars = lax.pmean((gradients, scalars), axis_name)
    norm = optax.tree.norm(gradients)
    updates, optimiser_state = optimiser.update(gradients, state.optimiser, state.params)
    proposed = TrainState(state.step + 1, optax.apply_updates(state.params, updates), optimiser_state)
    finite = jnp.isfinite(scalars["loss"]) & jnp.isfinite(norm)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposed, state)
    kept = kept._replace(step=state.step + 1)
    return kept, {**scalars, "grad_norm": norm, "skipped": 1 - finite.astype(jnp.float32)}


def parallel_train_step(
    devices: list[jax.Device] | None = None, **constants: Any
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]:
    """`train_step` over devices: `step(state, batch, key)` with a plain batch.

    devices: local ones, or None for all devices of all processes (`jax.distributed`): `batch` is
    then this process's share of the global one, shares standing in the order of the processes.
    The batch is split along its first axis (its size must be a multiple of this process's devices),
    the gradients are averaged, the state stays replicated on the devices between calls: give it
    through `replicate`, read it through `unreplicate`. constants: the keywords of `train_step`.
    """
    count = jax.local_device_count() if devices is None else len(devices)

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        return train_step(state, batch, key, axis_name=DEVICES, **constants)

    mapped = jax.pmap(
        step, axis_name=DEVICES, in_axes=(0, 0, None), out_axes=(0, None), devices=devices, donate_argnums=0
    )

    def sharded(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
        return mapped(state, shard(batch, count), key)

    return sharded


def any_process() -> Callable[[bool], Array]:
    """Whether a flag is set in any process (all must ask): a scalar that the devices hold.

    It stands in the devices' queue like a step, so that whoever looks at it waits for what was
    launched before, and for nothing after.
    """
    largest = jax.pmap(lambda flag: lax.pmax(flag, DEVICES), axis_name=DEVICES, out_axes=None)
    return lambda flag: largest(np.full(jax.local_device_count(), flag, np.int32))


def shard(batch: Batch, count: int) -> Batch:
    """`[B, ...]` to `[count, B / count, ...]`; ValueError with the sizes where it does not divide."""
    size = batch.fixed.shape[0]
    if size % count:
        raise ValueError(f"a batch of {size} pairs does not divide over {count} devices")
    return jax.tree.map(lambda a: a.reshape(count, size // count, *a.shape[1:]), batch)


def replicate(state: TrainState, devices: list[jax.Device] | None = None) -> TrainState:
    """The state once on each device, along a new first axis, laid out as the step gives it back.

    devices: as for `parallel_train_step`. (Through a pmap over an axis of the same name: an array of
    another layout, the name being part of it, would compile the step a second time.)
    """
    count = jax.local_device_count() if devices is None else len(devices)
    copies = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *jnp.shape(a))), state)
    return jax.pmap(lambda state: state, axis_name=DEVICES, devices=devices)(copies)


def unreplicate(state: TrainState) -> TrainState:
    """The first device's copy."""
    return jax.tree.map(lambda a: a[0], state)


def initial_state(params: Parameters, optimiser: optax.GradientTransformation) -> TrainState:
    """Step 0."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimiser.init(params))
