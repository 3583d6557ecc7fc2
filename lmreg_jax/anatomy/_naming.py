"""Names for the branchings of one airway tree, by direction, distance and calibre.

Directions are RAS: x to the right, y to the front, z to the head. Scores are products of factors between
0 and 1; the spans in them are of adults, wide enough for what CT of different people shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.anatomy.airways import LAYER_MM, Tree, spur

Array = NDArray[Any]

CARINA, RUL, LUL, RML = (
    "carina",
    "right_upper_lobe_bronchus",
    "left_upper_lobe_bronchus",
    "right_middle_lobe_bronchus",
)
TRACHEA_MM = (15, 30, 45, 60)  # of arc above the carina's spur
MAIN_MM, MAIN_MM3 = 25.0, 1500.0  # a main bronchus and what hangs on it
MAIN_AHEAD_MM = 24.0
SEARCH_MM = 130.0  # along a main bronchus and its continuation
UPPER_MM = {1: (17.0, 36.0), -1: (36.0, 60.0)}  # carina to the upper lobe's spur, right and left
SIBLING_MM, SIBLING_SCORE = 10.0, 0.6  # branches of one lobe that leave one by one
MIDDLE_MM = (17.0, 37.0)  # right upper to middle lobe's spur


class Named(NamedTuple):
    """A point [3], RAS mm, and how much it looks like its name, 0 to 1."""

    point: Array
    score: float


class Fork(NamedTuple):
    """A branching: the front before it, and the fronts that begin its right and left branch."""

    front: int
    right: int
    left: int


class SideBranch(NamedTuple):
    """A branch off a bronchus: its spur, directions of both, angle (degrees), length and radius (mm)."""

    point: Array
    main: Array
    side: Array
    angle: float
    length: float
    radius: float


Scored = tuple[float, SideBranch, int]  # with its place among the side branches


def named(tree: Tree, right: int = 1) -> dict[str, Named]:
    """What one tree shows. right: the sign of x on the patient's right, -1 in a mirrored scan."""
    fork = bifurcation(tree, right)
    if fork is None:
        return {}
    point = spur(tree, fork.right, fork.left)
    first, second = (_main_direction(tree, fork, k) for k in (fork.right, fork.left))
    opening = _degrees(first, second)
    shape = _trachea_shape(tree, fork.front)
    score = plausible(opening, (45, 125))
    if len(shape) > 8:
        score *= _tubular(shape[4:24], (5, 11), 3)
    out = {CARINA: Named(point, score)}
    out |= _trachea_points(tree, fork.front, point, shape, score)
    upper = {1: RUL, -1: LUL}
    for side, start in ((1, fork.right), (-1, fork.left)):
        branches = list(side_branches(tree, start))
        scored = [(_upper_score(b, point, side, right * side), b, i) for i, b in enumerate(branches)]
        best = _best(scored)
        if best is None:
            continue
        best = _lowest_sibling(scored, best)
        out[upper[side]] = Named(best[1].point, best[0])
        if side == 1:
            later = branches[best[2] + 1 :]
            middle = _best([(_middle_score(b, best[1].point), b, 0) for b in later])
            if middle is not None:
                out[RML] = Named(middle[1].point, middle[0])
    return out


def bifurcation(tree: Tree, right: int = 1) -> Fork | None:
    """The first branching from above into two large branches, one to each side, neither upwards."""
    front = tree.chain(tree.root)[-1]
    while tree.children[front]:
        children = tree.children[front]
        large = [k for k in children if tree.length[k] > MAIN_MM and tree.volume[k] > MAIN_MM3]
        if len(large) >= 2:
            ways = {k: tree.direction(k, tree.centre[front], MAIN_AHEAD_MM) for k in large}
            a = max(large, key=lambda k: right * ways[k][0])
            b = min(large, key=lambda k: right * ways[k][0])
            apart = right * ways[a][0] > 0.1 and right * ways[b][0] < -0.2
            if apart and ways[a][2] < 0.1 and ways[b][2] < 0.2:
                return Fork(front, a, b)
        front = tree.chain(max(children, key=lambda k: tree.volume[k]))[-1]
    return None


def side_branches(tree: Tree, front: int) -> Iterator[SideBranch]:
    """The side branches along a bronchus; at a branching it goes on in its caudal, wide daughter."""
    gone = 0.0
    while True:
        chain = tree.chain(front)
        end, gone = chain[-1], gone + len(chain) * LAYER_MM
        children = tree.children[end]
        if not children or gone > SEARCH_MM:
            return
        here = tree.centre[end]
        ways = {k: tree.direction(k, here) for k in children}
        main = max(children, key=lambda k: _main_score(tree, k, ways[k]))
        for k in children:
            if k != main:
                yield SideBranch(
                    spur(tree, main, k),
                    ways[main],
                    ways[k],
                    _degrees(ways[main], ways[k]),
                    float(tree.length[k]),
                    tree.radius(k),
                )
        front = main


def plausible(value: float, span: tuple[float, float]) -> float:
    """1 inside the span, falling linearly to 0 at half the span's width outside."""
    low, high = span
    return float(max(0.0, 1.0 - max(low - value, value - high, 0.0) / (0.5 * (high - low))))


def _main_score(tree: Tree, front: int, way: Array) -> float:
    return float(-way[2] + 0.08 * tree.radius(front) + 0.0075 * min(tree.length[front], 40.0))


def _upper_score(branch: SideBranch, carina: Array, side: int, outward: int) -> float:
    """An upper lobe's bronchus: to the side, more cranial than the one that goes on.

    On the left it also leaves to the front; to the back leaves the superior segment of the lower lobe.
    """
    lateral = outward * (branch.point - carina)[0]
    if lateral < 5 or branch.side[2] < branch.main[2] + 0.15 or outward * branch.side[0] < -0.1:
        return 0.0
    score = plausible(float(np.linalg.norm(branch.point - carina)), UPPER_MM[side])
    score *= plausible(branch.angle, (45, 160)) * min(1.0, branch.length / 9) * min(1.0, branch.radius / 2.2)
    if side < 0:
        score *= plausible((branch.side - branch.main)[1], (-0.2, 1.8)) * plausible(
            branch.side[1], (-0.15, 1.0)
        )
    return score


def _middle_score(branch: SideBranch, upper: Array) -> float:
    """The middle lobe's bronchus: below the upper lobe's, to the front (basal and superior ones do not)."""
    forward = float((branch.side - branch.main)[1])
    if upper[2] - branch.point[2] < 8 or forward < 0.2 or branch.side[1] < 0.1:
        return 0.0
    score = plausible(float(np.linalg.norm(branch.point - upper)), MIDDLE_MM)
    score *= plausible(branch.angle, (30, 110)) * min(1.0, branch.length / 8) * min(1.0, forward / 0.4)
    return score * plausible(branch.side[1], (0.5, 1.0))


def _best(scored: list[Scored]) -> Scored | None:
    best = max(scored, key=lambda item: item[0], default=None)
    return best if best is not None and best[0] > 0 else None


def _lowest_sibling(scored: list[Scored], best: Scored) -> Scored:
    """The last of the branches that leave next to the best one: a lobe's bronchus that divides at once.

    Its segments then leave one by one, and the lobe's spur is the one before the bronchus that goes on.
    """
    for score, branch, i in scored[best[2] + 1 :]:
        apart = float(np.linalg.norm(branch.point - best[1].point))
        if apart < SIBLING_MM and score >= SIBLING_SCORE * best[0]:
            best = (score, branch, i)
    return best


def _main_direction(tree: Tree, fork: Fork, front: int) -> Array:
    return tree.direction(front, tree.centre[fork.front], MAIN_AHEAD_MM)


def _degrees(a: Array, b: Array) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


def _trachea_shape(tree: Tree, front: int) -> Array:
    """[n, 2] from the carina upwards: a front's spread and the radius of a disc of its area, mm."""
    fronts = tree.above(front)
    return np.stack([tree.spread[fronts], np.sqrt(tree.area[fronts] / np.pi)], -1)


def _tubular(shape: Array, wide: tuple[float, float], gap: float) -> float:
    """Whether fronts are as wide as a trachea and compact: spread and area give the same radius."""
    spread = float(np.median(shape[:, 0]))
    return plausible(spread, wide) * plausible(float(np.median(np.abs(np.diff(shape, axis=1)))), (0, gap))


def _trachea_points(tree: Tree, front: int, carina: Array, shape: Array, score: float) -> dict[str, Named]:
    """Points of the trachea's axis by arc length from the carina's spur, as far as it is in the scan."""
    path = tree.centre[tree.above(front)]
    upper = path[path[:, 2] > carina[2] + 6]  # lower fronts are pulled apart by the two bronchi
    if len(upper) < 4:
        return {}
    line = ndimage.gaussian_filter1d(np.concatenate([carina[None], upper]), 2.0, axis=0, mode="nearest")
    line[0] = carina
    arc = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    out = {}
    for mm in TRACHEA_MM:
        if arc[-1] < mm:
            break
        point = np.array([np.interp(mm, arc, line[:, axis]) for axis in range(3)])
        k = int(np.argmin(np.linalg.norm(path - point, axis=1)))
        here = _tubular(shape[max(k - 2, 0) : k + 3], (5, 11.5), 2.5)
        out[f"trachea_{mm}mm"] = Named(point, here * min(1.0, score + 0.3))
    return out
