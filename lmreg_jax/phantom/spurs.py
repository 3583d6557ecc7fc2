"""Exact spurs of a subject's airways: the points that a reader of CT marks, from the tubes' geometry.

`Thorax.landmarks` are nodes of centrelines. The spur, the edge of the septum between two daughter
lumens, lies 8 to 13 mm below its node. Both sets carry the same names: never mix them in one table.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.phantom.compose import trees_of
from lmreg_jax.phantom.raster import Tubes
from lmreg_jax.phantom.scan import places
from lmreg_jax.phantom.subject import Subject, subject
from lmreg_jax.phantom.trees import AIRWAY_GENERATIONS, Points, Tree
from lmreg_jax.phantom.tubes import branch_curve, curves, moved

# name: the two daughters of the branching
DAUGHTERS = {
    "carina": ("right_upper_lobe_bronchus", "left_upper_lobe_bronchus"),
    "right_upper_lobe_bronchus": ("right_upper", "right_middle_lobe_bronchus"),
    "left_upper_lobe_bronchus": ("left_upper", "left_superior_segment"),
    "right_middle_lobe_bronchus": ("right_middle", "right_superior_segment"),
}
TRACHEA_MM = (15, 30, 45, 60)  # of arc above the carina's spur
STEP_MM = 0.1
REACH_MM = 24.0  # along the daughters: no septum begins later


def spurs(index: int, *, seed: int = 0) -> dict[str, Points]:
    """{name: [3] RAS mm} of subject `index` of the cohort `seed`: four spurs, four trachea points.

    Follows from (seed, index) alone, as the subject does; the frame is that of `thorax`.
    """
    who = subject(index, seed)
    tree = trees_of(who, index, seed).airways
    _, origin = places(who, index, seed)
    lumen = moved(who, curves(tree, last=AIRWAY_GENERATIONS))
    found = {
        name: spur(_way(who, tree, first), _way(who, tree, second), lumen)
        for name, (first, second) in DAUGHTERS.items()
    }
    trachea = np.concatenate([found["carina"][None], _trachea(who, tree)])
    found |= {f"trachea_{mm}mm": along(trachea, mm) for mm in TRACHEA_MM}
    return {name: point + origin for name, point in found.items()}


def spur(first: Points, second: Points, lumen: Tubes) -> Points:
    """Where two daughter lumens part: the first point of the line between them that no tube holds.

    first, second [N, 3]: points of the daughters' axes, mm, from the common node at equal steps. The
    line from first[i] to second[i] is tried for growing i; its point furthest outside is the answer.
    """
    share = np.linspace(0, 1, 101)[:, None]
    for a, b in zip(first, second, strict=True):
        line = a + share * (b - a)
        outside = clearance(line, lumen)
        if outside.max() > 0:
            return np.asarray(line[np.argmax(outside)])
    raise ValueError("the two lumens never part")


def clearance(points: Points, tubes: Tubes) -> NDArray[np.float64]:
    """Distance [N] mm from points [N, 3] to the nearest tube's surface, negative inside a tube."""
    axis = tubes.end - tubes.start
    offset = points[:, None] - tubes.start
    t = np.clip((offset * axis).sum(-1) / np.maximum((axis**2).sum(-1), 1e-9), 0, 1)
    distance = np.linalg.norm(offset - t[..., None] * axis, axis=-1)
    radius = tubes.radius[:, 0] + t * (tubes.radius[:, 1] - tubes.radius[:, 0])
    return np.asarray((distance - radius).min(1))


def along(line: Points, mm: float) -> Points:
    """The point [3] of a line [N, 3] `mm` of arc from its start."""
    arc = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    return np.array([np.interp(mm, arc, line[:, axis]) for axis in range(3)])


def _way(who: Subject, tree: Tree, name: str) -> Points:
    """Points [N, 3] of a branch's axis every STEP_MM over REACH_MM, continued in its widest child."""
    i, corners = tree.names.index(name), []
    for _ in range(3):
        tubes = moved(who, branch_curve(tree, i))
        corners += [*tubes.start, tubes.end[-1]]
        children = np.flatnonzero(tree.parent == i)
        i = int(children[np.argmax(tree.radius[children])])
    line = np.array(corners)
    return np.stack([along(line, mm) for mm in np.arange(0, REACH_MM, STEP_MM)])


def _trachea(who: Subject, tree: Tree) -> Points:
    """The trachea's axis [N, 3] from the carina's node upwards."""
    i, corners = tree.names.index("carina"), []
    while tree.parent[i] >= 0:
        tubes = moved(who, branch_curve(tree, i))
        corners += [*tubes.end[::-1]]
        i = int(tree.parent[i])
    return np.array(corners)
