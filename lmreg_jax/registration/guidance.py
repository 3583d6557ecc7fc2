"""Points of two scans that guide their registration: paired by name, checked against each other.

A wrong pair of points is worse than none. So each pair is predicted from all the others (Gaussian-kernel
regression of what the affine map leaves), and those far from their prediction are dropped and reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lmreg_jax.affine.landmarks import with_landmarks
from lmreg_jax.imaging.volume import apply_affine

Array = NDArray[Any]
Weighted = Mapping[str, tuple[Array, float]]  # name: (point [3] RAS mm, confidence in [0, 1])

MOST = 16  # pairs
FEWEST = 3  # pairs; fewer do not guide
KERNEL_MM, RIDGE = 50.0, 0.15  # of the prediction by the other points
DISAGREES_MM = 25.0  # from the prediction: no pair of two people's airways lies so far from its neighbours
FAMILIES = {"trachea": 4.0, "apex": 2.0}  # names that begin so share one error: their weights are divided


class Guidance(NamedTuple):
    """K pairs of points: names; fixed, moving [K, 3] RAS mm of each scan; weights [K], confidence
    products. dropped: {name: reason} of pairs that were found and not used."""

    names: tuple[str, ...]
    fixed: Array
    moving: Array
    weights: Array
    dropped: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.names)

    def without(self, names: tuple[str, ...]) -> Guidance:
        """The same, less the pairs whose names begin with one of `names`: they are left to judge."""
        keep = [i for i, name in enumerate(self.names) if not name.startswith(names)]
        return Guidance(
            tuple(self.names[i] for i in keep),
            self.fixed[keep],
            self.moving[keep],
            self.weights[keep],
            self.dropped,
        )


class Points(NamedTuple):
    """Pairs of points for jax: fixed, moving `[MOST, 3]` in voxels of one grid, weights `[MOST]` (0: no
    pair), spacing_mm `[3]`. One compiled program serves any number of pairs."""

    fixed: jax.Array
    moving: jax.Array
    weights: jax.Array
    spacing_mm: jax.Array


NONE = Guidance((), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), {})


NO_POINTS = Points(*(np.zeros(shape, np.float32) for shape in ((MOST, 3), (MOST, 3), (MOST,), (3,))))  # type: ignore[arg-type]


def paired(fixed: Weighted, moving: Weighted, pull: Array, lungs: Array) -> Guidance:
    """The pairs that both scans have, less those that the others contradict.

    pull [4, 4]: the affine map so far, fixed RAS
    mm -> moving RAS mm; lungs [N, 3]: points of the fixed lungs, RAS mm. NONE where fewer than FEWEST
    pairs are left.
    """
    names = [name for name in fixed if name in moving][:MOST]
    if len(names) < FEWEST:
        return NONE
    p, q = (np.array([side[name][0] for name in names]) for side in (fixed, moving))
    weights = np.array([fixed[name][1] * moving[name][1] / _family(name) for name in names])
    dropped: dict[str, str] = {}
    used = np.arange(len(names))
    while len(used) >= FEWEST:
        near = with_landmarks(pull, lungs, p[used], q[used], weights[used])
        residuals = apply_affine(np.linalg.inv(near), q[used]) - p[used]
        away = np.linalg.norm(residuals - predictions(p[used], residuals, weights[used]), axis=1)
        worst = int(np.argmax(away))
        if away[worst] <= DISAGREES_MM:
            break
        dropped[names[used[worst]]] = f"{away[worst]:.0f} mm from where the other points expect it"
        used = np.delete(used, worst)
    if len(used) < FEWEST:
        return NONE._replace(dropped=dropped)
    return Guidance(tuple(names[i] for i in used), p[used], q[used], weights[used], dropped)


def on_grid(guidance: Guidance, pull: Array, affine: Array) -> Points:
    """The pairs on a grid, the moving ones through the inverse of the affine step.

    affine [4, 4]: voxel of the grid -> fixed RAS mm; pull [4, 4]: fixed RAS mm -> moving RAS mm.
    """
    room, to_voxel = MOST - len(guidance), np.linalg.inv(affine)
    places = (
        apply_affine(to_voxel, guidance.fixed),
        apply_affine(to_voxel @ np.linalg.inv(pull), guidance.moving),
    )
    fixed, moving = (jnp.asarray(np.pad(p, [(0, room), (0, 0)]), jnp.float32) for p in places)
    weights = jnp.asarray(np.pad(guidance.weights, (0, room)), jnp.float32)
    return Points(fixed, moving, weights, jnp.asarray(np.linalg.norm(affine[:3, :3], axis=0), jnp.float32))


def predictions(points: Array, vectors: Array, weights: Array) -> Array:
    """Each point's vector [K, 3] as the others predict it: a kernel mean that shrinks to 0 far from them.

    v_k = sum_j w_j g(|p_k - p_j|) v_j / (ridge + sum_j w_j g(|p_k - p_j|)),  j not k.  [Nadaraya 1964]
    """
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    kernel = weights * np.exp(-0.5 * (distance / KERNEL_MM) ** 2)
    np.fill_diagonal(kernel, 0)
    return np.asarray(kernel @ vectors / (RIDGE + kernel.sum(axis=1, keepdims=True)))


def _family(name: str) -> float:
    return next((share for start, share in FAMILIES.items() if name.startswith(start)), 1.0)
