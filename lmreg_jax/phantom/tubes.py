"""Branches, vessels and ribs as straight pieces of tube, and their way into the subject's space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from lmreg_jax.phantom.raster import Tubes, join
from lmreg_jax.phantom.subject import Subject, push
from lmreg_jax.phantom.trees import Points, Tree


def curves(tree: Tree, *, last: int = 99) -> Tubes:
    """Every branch up to order `last` as a curve: of 4 straight pieces, later 2, last 1."""
    return join(
        *(
            _curves(tree, (tree.order > after) & (tree.order <= min(until, last)), pieces)
            for after, until, pieces in ((-9, 2, 4), (2, 5, 2), (5, 99, 1))
        )
    )


def branch_curve(tree: Tree, index: int) -> Tubes:
    """One branch as `curves` draws the wide ones: four straight pieces, from its start to its end."""
    return _curves(tree, np.arange(len(tree.parent)) == index, 4)


def _curves(tree: Tree, keep: NDArray[np.bool_], pieces: int) -> Tubes:
    """Branches as curves that leave in their parents' direction: `pieces` straight tubes each.

    Quadratic Bezier; the radius falls from 1.06 to 0.96 of the branch's over its first third.
    """
    start, end = tree.start[keep], tree.end[keep]
    along = end - start
    above = np.maximum(tree.parent[keep], 0)
    heading = tree.end[above] - tree.start[above]
    heading[tree.parent[keep] < 0] = along[tree.parent[keep] < 0]
    length = np.linalg.norm(along, axis=1, keepdims=True)
    heading = heading / (np.linalg.norm(heading, axis=1, keepdims=True) + 1e-9) * length
    control = start + 0.5 * (0.65 * along + 0.35 * heading)
    t = np.linspace(0, 1, pieces + 1)[:, None, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    flare = np.where(tree.parent[keep] < 0, 1.0, 1.06)
    radius = tree.radius[keep] * np.linspace(flare, np.full_like(flare, 0.96), pieces + 1)
    return Tubes(
        points[:-1].reshape(-1, 3),
        points[1:].reshape(-1, 3),
        np.stack([radius[:-1].ravel(), radius[1:].ravel()], -1),
    )


def chains(lines: list[Points], radii: list[NDArray[np.float64]]) -> Tubes:
    """Centrelines [N, 3] with radii [N] as straight pieces."""
    return Tubes(
        np.concatenate([line[:-1] for line in lines]),
        np.concatenate([line[1:] for line in lines]),
        np.concatenate([np.stack([r[:-1], r[1:]], -1) for r in radii]),
    )


def smooth_chain(rows: NDArray[np.float64], step: float = 6.0) -> NDArray[np.float64]:
    """A chain's rows (x, y, z, radius) resampled along a cubic through them."""
    way = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(rows[:, :3], axis=0), axis=1))])
    return CubicSpline(way, rows)(np.linspace(0, way[-1], int(way[-1] / step) + 2))


def moved(who: Subject, tubes: Tubes) -> Tubes:
    """Template tubes in the subject's space, radii by its size and calibre."""
    ends = push(who, np.concatenate([tubes.start, tubes.end]))
    start, end = np.split(ends, 2)
    return Tubes(start, end, tubes.radius * who.calibre)
