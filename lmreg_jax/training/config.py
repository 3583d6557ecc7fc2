"""The parts of a training that its configuration names: the optimiser and the augmentation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ml_collections
import optax
from jax import Array

from lmreg_jax.model.config import checked_names, spacing_mm
from lmreg_jax.training.augmentation import Augmentation, augment_pair, is_off
from lmreg_jax.types import Batch


def make_augmentation(config: ml_collections.ConfigDict) -> Callable[[Array, Batch], Batch] | None:
    """The random change of a pair that `config.augment` asks for; None where all of it is 0."""
    values = checked_names("augment", config.augment.to_dict(), Augmentation._fields)
    options = Augmentation(**values, spacing_mm=spacing_mm(config))
    return None if is_off(options) else partial(augment_pair, options=options)


def make_optimiser(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam as in [Hu]; warm-up, cosine decay and clipping of the gradient's norm where configured."""
    train = config.train
    if train.schedule == "cosine" or train.warmup_steps:
        decay = train.steps if train.schedule == "cosine" else None
        rate: Any = _schedule(train.learning_rate, train.warmup_steps, decay)
    else:
        rate = train.learning_rate
    clip = [optax.clip_by_global_norm(train.clip_norm)] if train.clip_norm else []
    return optax.chain(*clip, optax.adam(rate))


def _schedule(peak: float, warmup: int, steps: int | None) -> optax.Schedule:
    rise = optax.linear_schedule(0, peak, max(warmup, 1))
    fall = (
        optax.constant_schedule(peak)
        if steps is None
        else optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha=0.01)
    )
    return optax.join_schedules([rise, fall], [warmup])
