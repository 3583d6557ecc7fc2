"""Instance optimisation: one pair's own velocity field, on the objective that the network learned by.

    minimise over v   image_scale * D(f, m o exp(v)) + prior(v - c) + landmarks(exp(v)),

started from the network's mean. The terms are those of `objective` and `prior`. c, the prior's mean, is
0 as in training, or the network's mean: then only the change has to be smooth, and what the network
knows from landmarks stays. Landmarks, where the pair has some, enter as in eq. 4, but robustly. Grids and
units as in `fields`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from lmreg_jax.core import fields, landmarks, prior
from lmreg_jax.core.objective import Objective, displacement_of, field_stride, image_scale
from lmreg_jax.core.similarity import IMAGE_TERMS
from lmreg_jax.registration.grid import Frame, Pair, coarser
from lmreg_jax.registration.guidance import Points
from lmreg_jax.registration.variance import laplace_log_variance
from lmreg_jax.registration.velocity import Field, no_motion, resampled

Progress = Callable[[Iterable[int]], Iterable[int]]

COARSE_SHARE = 0.75  # of the steps; half of them cost 2.5 times the time for 0.001 of Dice
LEARNING_RATE = 0.2  # of Adam, field voxels a step
SMOOTHINGS = 3  # binomial filters over what Adam changes: single nodes must not run ahead of the rest
FILTER = (0.25, 0.5, 0.25)
LEAST_JACOBIAN = 0.02  # below it counts as folding: between voxels a field is a little worse than on them
ADAM = optax.scale_by_adam()
ROBUST_MM = 10.0  # landmark distances beyond this count linearly: one wrong pair cannot tear the field


class Outcome(NamedTuple):
    """velocity `[x, y, z, 3]`: the best iterate. before, after: terms by name, of the start and of it.

    smallest_jacobian: likewise, on the image grid. history: the total of each iterate, the start
    first; step: which of them was best, 0 where nothing was better than the start.
    """

    velocity: Array
    before: dict[str, float]
    after: dict[str, float]
    smallest_jacobian: tuple[float, float]
    history: list[float]
    step: int


def _image(objective: Objective, stride: int, displacement: Array, pair: Pair) -> Array:
    """The image term, weighted. Where a scan has no data the warped image is compared with itself, and
    fixed: no value there, and no slope, not by a neighbour's window (local correlation) either."""
    warped = fields.warp(pair.moving, displacement)
    inside = fields.warp_nearest(pair.moving_inside, lax.stop_gradient(displacement))
    known, still = pair.fixed_inside & inside, lax.stop_gradient(warped)
    fixed, warped = jnp.where(known, pair.fixed, still), jnp.where(known, warped, still)
    return image_scale(objective, stride) * IMAGE_TERMS[objective.image](fixed, warped)


def _prior(objective: Objective, velocity: Array) -> Array:
    """The part of the KL divergence that depends on the mean, for a velocity seen from the prior's own
    mean: 0 for 0."""
    kl = partial(prior.kl_divergence, precision=objective.precision, reading=objective.reading)
    flat = jnp.zeros_like(velocity)
    return kl(velocity, flat) - kl(flat, flat)


def _landmark(objective: Objective, displacement: Array, points: Points) -> Array:
    """weight / (2 sigma^2) times the weighted mean of 2 d^2 (sqrt(1 + r^2 / d^2) - 1), r the distance in mm.

    [Hu eq. 4] with a pseudo-Huber distance, d = ROBUST_MM [Charbonnier 1997]; 0 without landmarks.
    """
    moved = landmarks.move_points(displacement, points.fixed)
    squared = jnp.sum(((moved - points.moving) * points.spacing_mm) ** 2, axis=-1)
    robust = 2 * ROBUST_MM**2 * (jnp.sqrt(1 + squared / ROBUST_MM**2) - 1)
    mean = jnp.sum(points.weights * robust) / jnp.maximum(jnp.sum(points.weights), 1e-6)
    return objective.landmark_weight / (2 * objective.landmark_sigma**2) * mean


def _with_total(image: Array, prior: Array, landmark: Array) -> dict[str, Array]:
    return {"image": image, "prior": prior, "landmark": landmark, "total": image + prior + landmark}


def smooth(field: Array, times: int = SMOOTHINGS) -> Array:
    """`times` binomial filters (1, 2, 1) / 4 along each axis of `[x, y, z, C]`, extended by the edge."""
    for _ in range(times):
        for axis in range(3):
            padded = jnp.pad(field, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
            size = field.shape[axis]
            field = sum(
                (w * lax.slice_in_dim(padded, i, i + size, axis=axis) for i, w in enumerate(FILTER)),
                start=jnp.zeros_like(field),
            )
    return field


def refine(
    pair: Pair,
    velocity: Array,
    *,
    objective: Objective,
    steps: int,
    learning_rate: float = LEARNING_RATE,
    centre: Array | float = 0.0,
    progress: Progress = iter,
) -> Outcome:
    """`steps` steps of Adam from `velocity` `[x, y, z, 3]`; gives the best iterate that does not fold.

    centre: the prior's mean, like `velocity`; that itself keeps what the start has.

    Adam moves a field w that is smoothed and added to the start, v = v_0 + K w: the same minimum,
    reached without ruffles for the prior to iron out. The rate falls along a cosine to a tenth.
    `progress` wraps the count of steps. A start that folds may be replaced by what folds less.
    """
    start = jnp.asarray(velocity, jnp.float32)
    rate = optax.cosine_decay_schedule(learning_rate, max(steps, 1), alpha=0.1)
    change = jnp.zeros_like(start)
    state = ADAM.init(change)
    iterates: list[tuple[dict[str, float], float]] = []
    best, best_step = change, 0
    for i in progress(range(steps + 1)):
        next_change, state, found, smallest = _step(
            objective, pair, start, centre, change, state, jnp.float32(rate(i))
        )
        iterates.append(({name: float(value) for name, value in found.items()}, float(smallest)))
        if _better(iterates[i], iterates[best_step]):
            best, best_step = change, i
        change = next_change
    (before, first), (after, last) = iterates[0], iterates[best_step]
    history = [found["total"] for found, _ in iterates]
    return Outcome(start + smooth(best), before, after, (first, last), history, best_step)


def compared(
    objective: Objective,
    pair: Pair,
    start: Array,
    outcome: Outcome,
    earlier: list[float],
    centre: Array | float = 0.0,
) -> Outcome:
    """`outcome` seen from another `start`, on the same grid: the start again where that was better.

    earlier: the history of what led to the outcome's own start (on a coarser grid, say); centre: as
    it was given to `refine`.
    """
    start = jnp.asarray(start, jnp.float32)
    none = jnp.zeros_like(start)
    _, _, found, smallest = _step(
        objective, pair, start, centre, none, ADAM.init(none), jnp.zeros((), jnp.float32)
    )
    before, jacobian = {name: float(value) for name, value in found.items()}, float(smallest)
    now = outcome.after, outcome.smallest_jacobian[1]
    if not _better(now, (before, jacobian)):
        return outcome._replace(
            velocity=start, before=before, after=before, smallest_jacobian=(jacobian, jacobian), step=0
        )
    return outcome._replace(
        before=before,
        smallest_jacobian=(jacobian, now[1]),
        history=[*earlier, *outcome.history],
        step=len(earlier) + outcome.step,
    )


def _better(new: tuple[dict[str, float], float], old: tuple[dict[str, float], float]) -> bool:
    """Not folding comes first, then the total. NaN is never better."""
    if not np.isfinite([new[0]["total"], new[1]]).all() or (new[1] < LEAST_JACOBIAN and new[1] <= old[1]):
        return False
    return old[1] < LEAST_JACOBIAN or new[0]["total"] < old[0]["total"]


def _step(
    objective: Objective,
    pair: Pair,
    start: Array,
    centre: Array | float,
    change: Array,
    state: Any,
    rate: Array,
) -> tuple[Array, Any, dict[str, Array], Array]:
    """The next change and Adam's state; the terms and the smallest Jacobian of this one.

    In pieces that are compiled separately: as one program XLA's CPU backend takes three times as
    long, since it computes the displacement anew wherever it is used.
    """
    stride = field_stride(pair.fixed.shape, start.shape[:3])
    u, pull_back = _displacement(pair.fixed.shape, stride, objective.integration_steps, start, change)
    image, by_displacement = _image_slope(objective, stride, u, pair)
    landmark, by_points = _landmark_slope(objective, u, pair.points)
    smoothness, by_change = _prior_slope(objective, start - centre, change)
    slope = _pulled(pull_back, by_displacement + by_points)
    change, state = _adam(change, state, slope, by_change, rate)
    return change, state, _with_total(image, smoothness, landmark), _smallest_jacobian(u)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _displacement(
    shape: tuple[int, ...], stride: int, steps: int, start: Array, change: Array
) -> tuple[Array, Any]:
    """The displacement `[X, Y, Z, 3]`, and the function that takes its slope to that of the change."""
    return jax.vjp(lambda w: displacement_of(start + smooth(w), shape, stride=stride, steps=steps), change)


_image_slope = jax.jit(jax.value_and_grad(_image, argnums=2), static_argnums=(0, 1))
_landmark_slope = jax.jit(jax.value_and_grad(_landmark, argnums=1), static_argnums=0)
_pulled = jax.jit(lambda pull_back, slope: pull_back(slope)[0])
_smallest_jacobian = jax.jit(lambda displacement: fields.jacobian_determinant(displacement).min())


@partial(jax.jit, static_argnums=0)
def _prior_slope(objective: Objective, from_centre: Array, change: Array) -> tuple[Array, Array]:
    return jax.value_and_grad(lambda w: _prior(objective, from_centre + smooth(w)))(change)


@jax.jit
def _adam(change: Array, state: Any, one: Array, other: Array, rate: Array) -> tuple[Array, Any]:
    updates, state = ADAM.update(one + other, state)
    return change - rate * updates, state


def refined(
    images: Callable[[Frame], Pair],
    frame: Frame,
    field: Field,
    objective: Objective,
    steps: int,
    progress: Progress = iter,
    *,
    around_start: bool = False,
) -> tuple[Field, Outcome]:
    """`steps` of instance optimisation of `field`, coarse to fine; see `refine`.

    around_start: the prior is on what is added to the field, else on the whole velocity.

    images: gives the pair on any frame. COARSE_SHARE of the steps see a grid twice as coarse, for
    an eighth of the time each; what they add is added to the field, which keeps its details. The outcome
    compares start and end on `frame` alone. The result has the variance that images and prior leave
    (`laplace_log_variance`), since the network's belongs to another grid.
    """
    fine = no_motion(frame)
    start = resampled(field, fine)
    velocity, history = start, []
    coarse_steps = int(COARSE_SHARE * steps)
    if coarse_steps:
        coarse_frame = coarser(frame)
        coarse = no_motion(coarse_frame)
        pair, before = images(coarse_frame), resampled(field, coarse)
        coarse_start = jnp.asarray(before / coarse.spacing, jnp.float32)
        found = refine(
            pair,
            coarse_start,
            objective=objective,
            steps=coarse_steps,
            centre=coarse_start if around_start else 0.0,
            progress=progress,
        )
        added = np.asarray(found.velocity) * coarse.spacing - before
        velocity = start + resampled(Field(added, coarse.affine), fine)
        history = found.history
    pair, fine_start = images(frame), jnp.asarray(start / fine.spacing, jnp.float32)
    centre = fine_start if around_start else 0.0
    outcome = refine(
        pair,
        jnp.asarray(velocity / fine.spacing, jnp.float32),
        objective=objective,
        steps=steps - coarse_steps,
        centre=centre,
        progress=progress,
    )
    outcome = compared(objective, pair, fine_start, outcome, history, centre)
    log_variance = laplace_log_variance(pair, outcome.velocity, objective)
    velocity = np.asarray(outcome.velocity) * fine.spacing
    return Field(velocity.astype(np.float32), fine.affine, np.asarray(log_variance)), outcome
