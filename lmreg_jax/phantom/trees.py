"""The template's bronchi, pulmonary arteries and veins as trees with the same branches for all.

Lobar and segmental branches are in `centrelines`; below them a space-filling growth
(after Tawhai 2004: each branch heads for the centre of its share of the lobe, which a plane then
halves) adds `GENERATIONS` more. Built once, with a fixed seed, in template mm.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from lmreg_jax.phantom import organs
from lmreg_jax.phantom.centrelines import (
    AIRWAYS,
    ARTERIES,
    ARTERY_OF_BRONCHUS,
    SEGMENTS,
    VEINS,
)

Points = NDArray[np.float64]
GENERATIONS = 7  # below the segmental bronchus; arteries and veins are drawn in all of them
# How far a branch of each order goes towards its territory's centre: the last come near the pleura.
PART_OF_WAY = (0.40, 0.40, 0.44, 0.50, 0.55, 0.62, 0.70, 0.75, 0.80)
THINNEST = 0.5  # mm, radius of the smallest branches
CENTRAL, N_TRACHEA = -2, 7  # order of the trachea's pieces, which no subject bends on their own
AIRWAY_GENERATIONS = 4  # thinner bronchi have a lumen below 1 mm and are not seen in CT


class Tree(NamedTuple):
    """Branches, parents first: end [N, 3] and radius [N] in template mm, parent [N] (-1: none).

    start [N, 3] differs from the parent's end only for roots; generation counts from the root and
    `order` from the segmental branch (0), negative above it.
    """

    names: tuple[str, ...]
    parent: NDArray[np.int64]
    start: Points
    end: Points
    radius: NDArray[np.float64]
    order: NDArray[np.int64]


class _Branch(NamedTuple):
    name: str
    parent: int
    start: Points
    end: Points
    radius: float
    order: int


def _tree(branches: list[_Branch]) -> Tree:
    name, parent, start, end, radius, order = zip(*branches, strict=True)
    return Tree(
        tuple(name),
        np.array(parent),
        np.array(start, float),
        np.array(end, float),
        np.array(radius, float),
        np.array(order),
    )


def _named(table: dict[str, tuple[str, float, float, float, float]]) -> list[_Branch]:
    names = list(table)
    branches: list[_Branch] = []
    for name, (parent, x, y, z, radius) in table.items():
        end = np.array((x, y, z), float)
        above = names.index(parent) if parent else -1
        start = branches[above].end if parent else end - np.array((0.0, -3.0, 12.0))
        if name == "larynx":
            start = np.array((0.0, 40.0, 212.0))
        order = CENTRAL if table is AIRWAYS and len(branches) < N_TRACHEA else -1
        branches.append(_Branch(name, above, start, end, radius, order))
    return branches


def _main_axis(spread: Points) -> Points:
    """Direction of the largest variance of centred points [M, 3], its sign settled.

    Sums without BLAS: the same bits whatever the number of its threads.
    """
    covariance = (spread[:, :, None] * spread[:, None, :]).sum(0)
    axis = np.linalg.eigh(covariance)[1][:, -1]
    return axis * (1.0 if axis @ (1.0, 0.7, 0.4) > 0 else -1.0)


def _grow(
    branches: list[_Branch],
    parent: int,
    points: Points,
    *,
    name: str,
    order: int,
    last: int,
    share: float,
    lobe: cKDTree,
    exponent: float,
) -> None:
    """Adds a branch from `parent`'s end towards the centre of `points`, then halves them.

    share: part of the parent's territory, which sets the radius (share ** exponent, falling).
    """
    above = branches[parent]
    start = above.end
    aim = points.mean(0) - start
    heading = above.end - above.start
    reach = np.linalg.norm(aim)
    aim = aim / reach + 0.3 * heading / np.linalg.norm(heading)  # a gentle turn
    aim *= reach / np.linalg.norm(aim)
    end = start + aim * np.clip(PART_OF_WAY[order], 4.0 / reach, 26.0 / reach)
    distance, nearest = lobe.query(end)
    if order > 0 and distance > 3.5:  # it would leave its lobe
        end = 0.2 * end + 0.8 * lobe.data[nearest]
    radius = above.radius * min(share**exponent, 0.9)
    if order == 0:
        radius = min(radius, 0.8 * above.radius)
    branches.append(_Branch(name, parent, start, end, max(radius, THINNEST), order))
    if order == last or len(points) < 8:
        return
    here = len(branches) - 1
    spread = points - points.mean(0)
    axis = (end - start) / np.linalg.norm(end - start)
    spread = spread - np.outer(spread @ axis, axis)
    normal = _main_axis(spread)
    side = (points - points.mean(0)) @ normal > 0
    for half, letter in ((side, "a"), (~side, "b")):
        part = points[half]
        if len(part) >= 4:
            _grow(
                branches,
                here,
                part,
                name=name + letter,
                order=order + 1,
                last=last,
                share=len(part) / len(points),
                lobe=lobe,
                exponent=exponent,
            )


@functools.cache
def lung_points(step: float = 4.0) -> tuple[Points, NDArray[np.uint8]]:
    """Places [M, 3] at least 3 mm inside the template's lungs, jittered, and their lobes [M]."""
    axes = [np.arange(low, high, step) for low, high in ((-150, 150), (-115, 115), (-230, 120))]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    grid = grid + np.random.default_rng(5).uniform(-0.4, 0.4, grid.shape) * step
    x, y, z = grid.astype(np.float32).T
    inside = organs.lungs(organs.chest(x, y, z)) < -3
    lobe = organs.lobes(organs.oblique_fissure(x, y, z), organs.horizontal_fissure(x, y, z), x < 0)
    return grid[inside], lobe[inside]


@functools.cache
def airways() -> Tree:
    """Trachea to the subsegmental bronchi of `GENERATIONS` orders (the deepest carry arteries)."""
    points, lobe = lung_points()
    branches = _named(AIRWAYS)
    names = list(AIRWAYS)
    for segment, (parent, label, _) in SEGMENTS.items():
        rivals = [(n, c) for n, (_, other, c) in SEGMENTS.items() if other == label]
        mine = points[lobe == label]
        nearest = cKDTree([c for _, c in rivals]).query(mine)[1]
        mine = mine[nearest == [n for n, _ in rivals].index(segment)]
        _grow(
            branches,
            names.index(parent),
            mine,
            name=segment,
            order=0,
            last=GENERATIONS,
            share=0.25,
            lobe=cKDTree(points[lobe == label]),
            exponent=0.33,
        )
    return _tree(branches)


@functools.cache
def arteries() -> Tree:
    """Pulmonary trunk, its named branches, then one artery beside each bronchus."""
    air = airways()
    branches = _named(ARTERIES)
    index = {name: i for i, name in enumerate(ARTERIES)}
    for i, name in enumerate(air.names):
        if air.order[i] < 0:
            continue
        bronchus = air.names[air.parent[i]]
        above = index[ARTERY_OF_BRONCHUS.get(bronchus, bronchus)]
        radius = min(1.02 * air.radius[i] + 0.1, 0.92 * branches[above].radius)
        along = air.end[i] - air.start[i]
        along /= np.linalg.norm(along)
        side = np.array((np.sign(air.end[i, 0]) * 0.6, 0.45, 0.65))
        side -= (side @ along) * along
        gap = radius + 1.25 * air.radius[i] + 0.5
        end = air.end[i] + gap * side / np.linalg.norm(side)
        index[name] = len(branches)
        branches.append(_Branch(name, above, branches[above].end, end, radius, air.order[i]))
    return _tree(branches)


@functools.cache
def veins() -> Tree:
    """Four pulmonary veins from the left atrium, growing where the bronchi are far."""
    air = airways()
    drawn = air.order <= 3
    samples = np.concatenate(
        [air.start[drawn] + t * (air.end - air.start)[drawn] for t in (0.25, 0.5, 0.75, 1.0)]
    )
    points, lobe = lung_points()
    far = cKDTree(samples).query(points)[0]
    branches: list[_Branch] = []
    for name, (start, end, radius, drained) in VEINS.items():
        mine = np.isin(lobe, drained)
        whole = cKDTree(points[mine])
        mine &= far > np.quantile(far[mine], 0.35)
        stem = _Branch(name, -1, np.array(start, float), np.array(end, float), radius, -1)
        branches.append(stem)
        root = len(branches) - 1
        centre = points[mine].mean(0)
        side = (points[mine] - centre) @ _main_axis(points[mine] - centre) > 0
        for half, letter in ((side, "a"), (~side, "b")):
            _grow(
                branches,
                root,
                points[mine][half],
                name=f"{name}_{letter}",
                order=0,
                last=GENERATIONS + 1,
                share=0.45,
                lobe=whole,
                exponent=0.38,
            )
    return _tree(branches)
