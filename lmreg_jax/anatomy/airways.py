"""The airway tree of a chest CT: branches of wave fronts, their spurs, all in RAS mm.

`lumen` finds the airways in the scan once; `trees` reads them at several thresholds of the lumen's edge.
Low thresholds resist leaks, high ones reach further: what they agree on is sure.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from lmreg_jax.anatomy._fronts import Fronts, neighbour_graph, wave_fronts
from lmreg_jax.anatomy._lumen import Lumen
from lmreg_jax.imaging.volume import apply_affine

Array = NDArray[Any]

THRESHOLDS_HU = (-850.0, -750.0, -650.0, -550.0, -450.0)
LAYER_MM = 2.0  # thickness of a front
CENTRELINE_MM = 3.0  # radius of what belongs to the centreline
BRANCH_MM, BRANCH_MM3 = 4.0, 40.0  # shorter and smaller side branches are bumps of the wall
LEAK_RATIO, LEAK_MM = 2.2, 9.0  # a front this much wider than those above it is a leak
AHEAD_MM = 14.0  # over which a branch's direction is taken
# How far along a septum its highest point is looked for: a part of the parent's radius, within limits.
RIDGE_PART, RIDGE_MM, RIDGE_STEP_MM = 0.6, (1.5, 5.5), 0.5
RIDGE_SLOPE = 2.5  # a steeper step of the ridge is another wall


class Tree(NamedTuple):
    """F fronts of the airways at one threshold, pruned of bumps and leaks.

    parent [F] (-1: root); children: kept ones, by front; centre [F, 3] RAS mm; area [F] mm^2; spread [F]
    mm, radius of a disc of the front's second moments; length [F] mm and volume [F] mm^3 of all that
    follows; places: each front's voxels [n, 3], RAS mm.
    """

    parent: Array
    children: tuple[tuple[int, ...], ...]
    centre: Array
    area: Array
    spread: Array
    length: Array
    volume: Array
    places: tuple[Array, ...]
    root: int
    lumen: Lumen
    threshold: float

    def chain(self, front: int) -> list[int]:
        """The fronts from one to the next branching or end, both included."""
        out = [front]
        while len(self.children[out[-1]]) == 1:
            out.append(self.children[out[-1]][0])
        return out

    def above(self, front: int) -> list[int]:
        """A front and its ancestors, upwards."""
        out = [front]
        while self.parent[out[-1]] >= 0:
            out.append(int(self.parent[out[-1]]))
        return out

    def direction(self, front: int, start: Array, ahead: float = AHEAD_MM) -> Array:
        """Unit vector [3] from a point (mm) to the branch's axis about `ahead` mm further on."""
        here, gone = front, LAYER_MM
        while self.children[here] and gone < ahead:
            here = max(self.children[here], key=lambda k: self.volume[k])
            gone += LAYER_MM
        way = self.centre[here] - start
        return np.asarray(way / max(float(np.linalg.norm(way)), 1e-6))

    def centreline(self, least_mm: float = CENTRELINE_MM) -> Array:
        """Centres [N, 3], RAS mm, of the kept fronts whose lumen has at least this radius: the trachea and
        the large bronchi, which scans of any slice thickness show."""
        kept, queue = [], [self.root]
        while queue:
            front = queue.pop()
            queue += self.children[front]
            if self.area[front] >= np.pi * least_mm**2:
                kept.append(front)
        return self.centre[kept]

    def radius(self, front: int) -> float:
        """mm, median of the branch's first fronts but the very first."""
        return float(np.sqrt(np.median(self.area[self.chain(front)[1:6] or [front]]) / np.pi))


def trees(lumen: Lumen) -> list[Tree]:
    """The airways at each of THRESHOLDS_HU; those where the trachea is not even reached are left out."""
    mask = lumen.inside & (lumen.hu < THRESHOLDS_HU[-1])
    if not (mask & lumen.seed).any():
        return []
    graph = neighbour_graph(mask)
    index = tuple(graph.voxels.T)
    edge = float(np.linalg.norm(lumen.affine[:3, 0]))
    hu, seed = lumen.hu[index], lumen.seed[index]
    top = graph.voxels[seed][:, 2].max()
    start = seed & (graph.voxels[:, 2] >= top - 1)
    out = []
    for threshold in THRESHOLDS_HU:
        fronts = wave_fronts(graph, hu < threshold, start, LAYER_MM / edge)
        if fronts.voxels:
            out.append(_tree(fronts, lumen, edge, threshold))
    return out


def _tree(fronts: Fronts, lumen: Lumen, edge: float, threshold: float) -> Tree:
    """Positions in mm, leaks cut off, side branches that are only bumps left out."""
    count = len(fronts.voxels)
    places = tuple(apply_affine(lumen.affine, v) for v in fronts.voxels)
    centre = np.stack([p.mean(0) for p in places])
    area = np.array([len(p) for p in places]) * edge**3 / LAYER_MM
    spread = np.sqrt([2 * ((p - c) ** 2).sum(1).mean() for p, c in zip(places, centre, strict=True)])
    order = np.argsort(fronts.layer, kind="stable")
    cut = _leaks(fronts.parent, spread, order)
    deepest, volume = np.where(cut, -1, fronts.layer), np.where(cut, 0.0, area * LAYER_MM)
    children: list[list[int]] = [[] for _ in range(count)]
    for i in order[::-1]:
        above = fronts.parent[i]
        if above < 0 or cut[i]:
            continue
        deepest[above] = max(deepest[above], deepest[i])
        volume[above] += volume[i]
        children[above].append(int(i))
    length = (deepest - fronts.layer + 1) * LAYER_MM
    kept = tuple(
        tuple(k for k in below if length[k] >= BRANCH_MM and volume[k] > BRANCH_MM3) for below in children
    )
    first = np.flatnonzero(fronts.layer == 0)
    root = int(first[np.argmax(volume[first])])
    return Tree(fronts.parent, kept, centre, area, spread, length, volume, places, root, lumen, threshold)


def _leaks(parent: Array, spread: Array, order: Array) -> Array:
    """Fronts [F] at and below which the airway has spread out into the lung.

    For two fronts running: one wide front alone is an airway about to branch.
    """
    wide = np.zeros(len(parent), bool)
    for i in order:
        above: list[float] = []
        j = parent[i]
        while j >= 0 and len(above) < 16:
            above.append(spread[j])
            j = parent[j]
        if len(above) >= 4:  # The longer stretch sees what widens slowly, as a lung that fills up does.
            usual = min(np.median(above[:8]), np.median(above))
            wide[i] = spread[i] > max(LEAK_RATIO * usual, LEAK_MM)
    followed = np.zeros(len(parent), bool)  # by a wide front, or by nothing
    followed[:] = True
    has_child = np.unique(parent[parent >= 0])
    followed[has_child] = False
    followed[np.unique(parent[wide & (parent >= 0)])] = True
    cut = wide & followed
    for i in order:
        if parent[i] >= 0 and cut[parent[i]]:
            cut[i] = True
    return cut


def spur(tree: Tree, first: int, second: int) -> Array:
    """The spur [3], RAS mm, between two sibling branches: the highest point of the ridge between them.

    Starts in the middle of the narrowest gap between the two first fronts. "High" is against the
    bisector of the two branches; the ridge is where rays along the bisector leave the lumen (HU at the
    tree's threshold), and it is followed sideways, from one branch to the other: on a flat septum the
    gap alone would slide along it.
    """
    middle = _gap(tree.places[first], tree.places[second])
    above = int(tree.parent[first])
    toward = _unit(tree.centre[above] - middle)
    a, b = tree.direction(first, middle, 10.0), tree.direction(second, middle, 10.0)
    up = _unit(toward - 1.5 * (a + b))
    across = _unit((a - b) - ((a - b) @ up) * up)
    radius = float(np.sqrt(np.median(tree.area[tree.above(above)[:5]]) / np.pi))
    count = int(np.clip(RIDGE_PART * radius, *RIDGE_MM) / RIDGE_STEP_MM)
    offsets = RIDGE_STEP_MM * np.arange(-count, count + 1)
    heights = _ridge(tree, middle, up, across, offsets)
    low = high = count
    while low > 0 and abs(heights[low - 1] - heights[low]) < RIDGE_SLOPE * RIDGE_STEP_MM:
        low -= 1
    while high < 2 * count and abs(heights[high + 1] - heights[high]) < RIDGE_SLOPE * RIDGE_STEP_MM:
        high += 1
    if not np.isfinite(heights[count]):
        return _backwards(tree, middle, toward)
    part = ndimage.gaussian_filter1d(heights[low : high + 1], 1.0, mode="nearest")
    best = low + int(np.argmax(part))
    if best in (0, 2 * count):  # no ridge within reach
        best = count
    return np.asarray(middle + offsets[best] * across + heights[best] * up)


def _unit(vector: Array) -> Array:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-6))


def _gap(first: Array, second: Array) -> Array:
    """The middle [3] of the narrowest gap between two sets of points [n, 3], mm."""
    distance, nearest = cKDTree(second).query(first)
    near = distance <= distance.min() + 0.6
    return np.asarray(0.5 * (first[near].mean(0) + second[nearest[near]].mean(0)))


def _ridge(tree: Tree, middle: Array, up: Array, across: Array, offsets: Array) -> Array:
    """mm along `up` to the lumen's wall, coming from inside, at each offset [K] mm along `across`.

    NaN where a ray never enters or never leaves the lumen within reach.
    """
    steps = np.arange(7.0, -4.01, -0.25)
    points = middle + offsets[:, None, None] * across + steps[:, None] * up
    outside = sampled(tree.lumen, points.reshape(-1, 3)).reshape(len(offsets), -1) - tree.threshold
    heights = np.full(len(offsets), np.nan)
    for i, ray in enumerate(outside):
        entered = int(np.argmax(ray < 0))
        left = entered + int(np.argmax(ray[entered:] >= 0))
        if left > entered and ray[entered] < 0:
            share = ray[left] / (ray[left] - ray[left - 1])
            heights[i] = steps[left] + share * (steps[left - 1] - steps[left])
    return heights


def _backwards(tree: Tree, middle: Array, toward: Array) -> Array:
    """From a point in the wall towards the parent, to where the lumen begins; 6 mm at most."""
    way = middle + np.arange(0.0, 6.01, 0.25)[:, None] * toward
    inside = np.flatnonzero(sampled(tree.lumen, way) < tree.threshold)
    return np.asarray(way[inside[0]] if len(inside) else middle)


def sampled(lumen: Lumen, points: Array) -> Array:
    """Smoothed HU [N] at points [N, 3], RAS mm, trilinear."""
    index = apply_affine(np.linalg.inv(lumen.affine), points).T
    return np.asarray(ndimage.map_coordinates(lumen.hu, index, order=1, mode="nearest"))
