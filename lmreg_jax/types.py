"""Types that several packages share."""

from __future__ import annotations

from typing import NamedTuple

from jax import Array


class Batch(NamedTuple):
    """Pairs on one grid. Images `[B, X, Y, Z]` in [0, 1]; points `[B, K, 3]` voxels; mask `[B, K]`."""

    fixed: Array
    moving: Array
    fixed_points: Array
    moving_points: Array
    point_mask: Array
