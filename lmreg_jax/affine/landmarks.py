"""The affine step of lungs and points together: a [4, 4], fixed RAS mm -> moving RAS mm.

Lung masks alone do not place the mediastinum: breathing state and diaphragm drag it along. A few points
on the airways halve its error and hardly move the lungs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.imaging.volume import apply_affine

Array = NDArray[Any]

SHARE = 1.0  # weight of all points together against that of the lungs
ROBUST_MM = 15.0  # residuals beyond this count linearly [Huber 1964]
ROUNDS = 10


def with_landmarks(
    pull: Array, lungs: Array, fixed: Array, moving: Array, weights: Array, share: float = SHARE
) -> Array:
    """The affine A near `pull` that also brings points together:

        minimise  mean_n |A x_n - pull x_n|^2 + share sum_k w_k huber(|A p_k - q_k|) / sum_k w_k.

    pull [4, 4]; lungs x [N, 3]: points of the fixed lungs, RAS mm; fixed p, moving q [K, 3] RAS mm;
    weights w [K]. By iteratively reweighted least squares. `pull` itself where all weights are 0.
    """
    weights = np.asarray(weights, np.float64)
    if not weights.sum() > 0:
        return pull
    sources = np.concatenate([lungs, fixed])
    targets = np.concatenate([apply_affine(pull, lungs), moving])
    rows = np.column_stack([sources, np.ones(len(sources))])
    out = np.array(pull, np.float64)
    for _ in range(ROUNDS):
        residual = np.linalg.norm(apply_affine(out, fixed) - moving, axis=1)
        damped = weights * np.minimum(1.0, ROBUST_MM / np.maximum(residual, 1e-6))
        each = np.concatenate([np.full(len(lungs), 1 / len(lungs)), share * damped / weights.sum()])
        root = np.sqrt(each)[:, None]
        solution, *_ = np.linalg.lstsq(rows * root, targets * root, rcond=None)
        out[:3] = solution.T
    return out
