"""The phantom in voxels of 5 mm, and faults made in it."""

from __future__ import annotations

from functools import cache

import numpy as np

from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.phantom import Thorax, thorax


@cache
def subject(index: int) -> Thorax:
    return thorax(index, seed=0, shape=(78, 56, 96), spacing_mm=5.0)


def scan(index: int = 1) -> Volume:
    made = subject(index)
    return Volume(made.image.copy(), made.affine)


def lungs(index: int = 1) -> Volume:
    made = subject(index)
    return Volume(made.lungs.copy(), made.affine)


def beyond(shape: str, margin_mm: float) -> np.ndarray:
    """What a field of view leaves out, bool: all that is `margin_mm` or more outside of the lungs."""
    mask = lungs()
    mm = apply_affine(mask.affine, np.moveaxis(np.indices(mask.data.shape), 0, -1))
    inside = mm[mask.data > 0]
    x, y, z = np.moveaxis(mm - (inside.min(0) + inside.max(0)) / 2, -1, 0)
    distance = {
        "circle": np.hypot(x, y),
        "left": -x,
        "front": y,
        "wedge": z + 0.3 * y,
        "turned box": np.maximum(abs(x + 0.2 * y), abs(y - 0.2 * x) + 30),
    }[shape]
    return np.asarray(distance > distance[mask.data > 0].max() + margin_mm)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * np.sum(a & b) / (a.sum() + b.sum()))
