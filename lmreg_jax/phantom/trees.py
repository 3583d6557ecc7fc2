"""The template's bronchi, pulmonary arteries and veins as trees with the same branches for all.

Lobar and segmental branches are placed by hand (Boyden's names); below them a space-filling growth
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

Points = NDArray[np.float64]
GENERATIONS = 7  # below the segmental bronchus; arteries and veins are drawn in all of them
THINNEST = 0.5  # mm, radius of the smallest branches
CENTRAL, N_TRACHEA = -2, 7  # order of the trachea's pieces, which no subject bends on their own
AIRWAY_GENERATIONS = 4  # thinner bronchi have a lumen below 1 mm and are not seen in CT

# child: (parent, end x, y, z, radius). Radii of bronchi are those of the lumen, mm.
AIRWAYS: dict[str, tuple[str, float, float, float, float]] = {
    "larynx": ("", 0, 37, 150, 8.2),
    "trachea_0": ("larynx", 0, 33, 120, 9.0),
    "trachea_1": ("trachea_0", 1, 27, 92, 9.0),
    "trachea_2": ("trachea_1", 1.5, 21, 69, 9.0),
    "trachea_3": ("trachea_2", 1.5, 14.5, 46, 9.0),
    "trachea_4": ("trachea_3", 1, 7.5, 23, 9.0),
    "carina": ("trachea_4", 0, 0, 0, 8.6),
    "right_upper_lobe_bronchus": ("carina", 14, -5, -20, 7.0),
    "right_upper": ("right_upper_lobe_bronchus", 31, -7, -14, 5.0),
    "right_middle_lobe_bronchus": ("right_upper_lobe_bronchus", 22, -6, -45, 5.6),
    "right_middle": ("right_middle_lobe_bronchus", 40, 10, -57, 3.6),
    "right_superior_segment": ("right_middle_lobe_bronchus", 25, -11, -53, 5.0),
    "right_basal": ("right_superior_segment", 34, -17, -72, 4.4),
    "left_upper_lobe_bronchus": ("carina", -38, -10, -26, 6.3),
    "left_upper": ("left_upper_lobe_bronchus", -50, -2, -22, 4.9),
    "left_upper_division": ("left_upper", -56, 2, -10, 4.0),
    "lingula": ("left_upper", -60, 16, -34, 3.5),
    "left_superior_segment": ("left_upper_lobe_bronchus", -43, -16, -38, 5.0),
    "left_basal": ("left_superior_segment", -50, -21, -62, 4.4),
}
# segment: (parent, lobe label, centre of its territory)
SEGMENTS: dict[str, tuple[str, int, tuple[float, float, float]]] = {
    "RB1": ("right_upper", 3, (56, -10, 72)),
    "RB2": ("right_upper", 3, (72, -52, 32)),
    "RB3": ("right_upper", 3, (66, 40, 6)),
    "RB4": ("right_middle", 4, (98, 30, -68)),
    "RB5": ("right_middle", 4, (58, 60, -84)),
    "RB6": ("right_superior_segment", 5, (62, -60, -20)),
    "RB7": ("right_basal", 5, (36, -14, -112)),
    "RB8": ("right_basal", 5, (92, 6, -112)),
    "RB9": ("right_basal", 5, (96, -42, -118)),
    "RB10": ("right_basal", 5, (54, -68, -126)),
    "LB1+2": ("left_upper_division", 1, (-58, -22, 64)),
    "LB3": ("left_upper_division", 1, (-66, 38, 12)),
    "LB4": ("lingula", 1, (-100, 30, -42)),
    "LB5": ("lingula", 1, (-82, 62, -74)),
    "LB6": ("left_superior_segment", 2, (-64, -60, -18)),
    "LB8": ("left_basal", 2, (-92, 4, -114)),
    "LB9": ("left_basal", 2, (-96, -42, -122)),
    "LB10": ("left_basal", 2, (-56, -68, -130)),
}
ARTERIES: dict[str, tuple[str, float, float, float, float]] = {
    "outflow": ("", -14, 58, -52, 14.0),
    "trunk": ("outflow", -22, 46, -32, 13.5),
    "pulmonary_trunk": ("trunk", -16, 24, -16, 13.0),
    "right_behind_aorta": ("pulmonary_trunk", 4, 14, -20, 10.5),
    "right_pulmonary_artery": ("right_behind_aorta", 24, 10, -21, 9.5),
    "right_anterior_trunk": ("right_pulmonary_artery", 38, 5, -8, 5.4),
    "right_interlobar": ("right_pulmonary_artery", 38, 2, -36, 8.0),
    "right_middle_artery": ("right_interlobar", 49, 13, -50, 4.0),
    "right_lower_artery": ("right_interlobar", 38, -6, -54, 7.0),
    "right_basal_artery": ("right_lower_artery", 45, -8, -66, 6.0),
    "left_pulmonary_artery": ("pulmonary_trunk", -37, -2, -3, 10.0),
    "left_upper_artery": ("left_pulmonary_artery", -48, -8, 9, 5.2),
    "left_interlobar": ("left_pulmonary_artery", -51, -19, -16, 8.0),
    "left_lingular_artery": ("left_interlobar", -66, 10, -32, 4.0),
    "left_lower_artery": ("left_interlobar", -58, -16, -42, 7.0),
    "left_basal_artery": ("left_lower_artery", -62, -15, -60, 6.0),
}
ARTERY_OF_BRONCHUS = {
    "right_upper": "right_anterior_trunk", "right_middle": "right_middle_artery",
    "right_superior_segment": "right_lower_artery", "right_basal": "right_basal_artery",
    "left_upper_division": "left_upper_artery", "lingula": "left_lingular_artery",
    "left_superior_segment": "left_lower_artery", "left_basal": "left_basal_artery",
}
# stem: (start, end, radius, lobes drained)
VEINS: dict[str, tuple[tuple[float, ...], tuple[float, ...], float, tuple[int, ...]]] = {
    "right_superior_vein": ((10, 6, -48), (43, 17, -37), 6.2, (3, 4)),
    "right_inferior_vein": ((8, -4, -60), (26, -26, -82), 6.6, (5,)),
    "left_superior_vein": ((-18, 6, -48), (-46, 17, -30), 6.2, (1,)),
    "left_inferior_vein": ((-16, -4, -60), (-36, -28, -80), 6.6, (2,)),
}


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
        tuple(name), np.array(parent), np.array(start, float), np.array(end, float),
        np.array(radius, float), np.array(order),
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


def _grow(
    branches: list[_Branch], parent: int, points: Points, *, name: str, order: int, last: int,
    share: float, lobe: cKDTree, exponent: float,
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
    way = (0.40, 0.40, 0.44, 0.50, 0.55, 0.62, 0.70, 0.75, 0.8)[order]  # later branches reach the pleura
    end = start + aim * np.clip(way, 4.0 / reach, 26.0 / reach)
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
    _, _, directions = np.linalg.svd(spread, full_matrices=False)
    normal = directions[0] * (1.0 if directions[0] @ (1.0, 0.7, 0.4) > 0 else -1.0)
    side = (points - points.mean(0)) @ normal > 0
    for half, letter in ((side, "a"), (~side, "b")):
        part = points[half]
        if len(part) >= 4:
            _grow(branches, here, part, name=name + letter, order=order + 1, last=last,
                  share=len(part) / len(points), lobe=lobe, exponent=exponent)


@functools.cache
def lung_points(step: float = 4.0) -> tuple[Points, NDArray[np.uint8]]:
    """Places [M, 3] at least 3 mm inside the template's lungs, jittered, and their lobes [M]."""
    axes = [np.arange(low, high, step) for low, high in ((-150, 150), (-115, 115), (-230, 120))]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    grid = grid + np.random.default_rng(5).uniform(-0.4, 0.4, grid.shape) * step
    x, y, z = grid.astype(np.float32).T
    inside = organs.lungs(organs.chest(x, y, z)) < -3
    lobe = organs.lobes(
        organs.oblique_fissure(x, y, z), organs.horizontal_fissure(x, y, z), x < 0
    )
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
        _grow(branches, names.index(parent), mine, name=segment, order=0, last=GENERATIONS,
              share=0.25, lobe=cKDTree(points[lobe == label]), exponent=0.33)
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
    samples = np.concatenate([
        air.start[drawn] + t * (air.end - air.start)[drawn] for t in (0.25, 0.5, 0.75, 1.0)
    ])
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
        axis = np.linalg.svd(points[mine] - centre, full_matrices=False)[2][0]
        side = (points[mine] - centre) @ (axis if axis[2] > 0 else -axis) > 0
        for half, letter in ((side, "a"), (~side, "b")):
            _grow(branches, root, points[mine][half], name=f"{name}_{letter}", order=0,
                  last=GENERATIONS + 1, share=0.45, lobe=whole, exponent=0.38)
    return _tree(branches)
