"""From a scan to what the network sees: intensity windows, lung masks, the common grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume

Array = NDArray[Any]


def window(data: Array, limits: tuple[float, float]) -> Array:
    """Intensities to [0, 1], float32: (data - low) / (high - low), clipped."""
    low, high = (float(limit) for limit in limits)
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"window ({low:g}, {high:g}): two finite numbers, low < high, are needed")
    scaled = (np.asarray(data, np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0, 1, out=scaled)


def window_percentile(data: Array, percentiles: tuple[float, float]) -> Array:
    """Intensities to [0, 1] between two percentiles of the data, where they have no unit."""
    low, high = (float(value) for value in percentiles)
    if not 0 <= low < high <= 100:
        raise InputError(f"window percentiles ({low:g}, {high:g}): 0 <= low < high <= 100 is needed")
    limits = np.percentile(data, [low, high])
    if not limits[0] < limits[1]:
        raise InputError(
            f"the image has the value {limits[0]:g} at both percentiles {low:g} and {high:g}; it "
            "is (nearly) constant, or they must lie further apart"
        )
    return window(data, (limits[0], limits[1]))


def fill_missing(
    fixed: Array, moving: Array, fixed_inside: Array, moving_inside: Array
) -> tuple[Array, Array]:
    """Two affinely aligned images [X, Y, Z] on one grid, each shown where the other has no data.

    *_inside: bool [X, Y, Z], where a scan has data. A scan that ends in the lung (a base cut off)
    would show its edge as a wall of air, and the other lung would be pulled onto it; equal
    intensities ask for no motion. Where neither has data both keep what they have (air).
    """
    return (
        np.where(moving_inside & ~fixed_inside, moving, fixed),
        np.where(fixed_inside & ~moving_inside, fixed, moving),
    )


def looks_like_ct(volume: Volume, least_air: float = 0.03) -> bool:
    """Whether the intensities can be Hounsfield units: much air (share `least_air`), much soft tissue."""
    sample = volume.data[::3, ::3, ::3]
    air = np.mean((sample > -1100) & (sample < -400))
    tissue = np.mean((sample > -150) & (sample < 200))
    return bool(sample.min() < -700 and air > least_air and tissue > 0.03)


AIR_HU = -400.0  # between lung (about -850) and tissue (about 40), where half a voxel is either
WINDOW = (-1000.0, 400.0)  # HU, where no model sets it
