"""A chest of ellipsoids and tubes whose airway spurs are known from geometry, as a CT on any grid."""

from __future__ import annotations

from functools import cache

import numpy as np

from lmreg_jax.imaging.volume import Volume
from lmreg_jax.phantom.centrelines import AIRWAYS
from lmreg_jax.phantom.raster import Grid, Tubes, render_tubes
from lmreg_jax.phantom.spurs import DAUGHTERS, along, spur

LOW, HIGH = np.array((-150.0, -120.0, -135.0)), np.array((150.0, 120.0, 165.0))
LUNG_CENTRE, LUNG_RADII = np.array((80.0, -5.0, -10.0)), np.array((58.0, 78.0, 115.0))  # of the right lung
EXTRA = {  # what follows the named bronchi: parent, end, radius
    "right_upper_on": ("right_upper", 50, -5, 8, 3.8),
    "right_middle_on": ("right_middle", 62, 32, -72, 2.8),
    "right_superior_on": ("right_superior_segment", 38, -40, -52, 3.2),
    "right_basal_on": ("right_basal", 46, -30, -112, 3.8),
    "left_upper_division_on": ("left_upper_division", -64, 4, 18, 3.4),
    "lingula_on": ("lingula", -80, 34, -56, 3.0),
    "left_superior_on": ("left_superior_segment", -56, -42, -36, 3.2),
    "left_basal_on": ("left_basal", -60, -32, -108, 3.8),
}
TABLE = AIRWAYS | {"larynx": ("", 0.0, 37.0, 150.0, 8.2)} | EXTRA


def _end(name: str) -> np.ndarray:
    return np.array(TABLE[name][1:4], float)


def _start(name: str) -> np.ndarray:
    parent = TABLE[name][0]
    return _end(parent) if parent else np.array((0.0, 40.0, 212.0))


@cache
def tubes() -> Tubes:
    radius = [TABLE[name][4] for name in TABLE]
    ends = [np.array([place(name) for name in TABLE]) for place in (_start, _end)]
    return Tubes(ends[0], ends[1], np.stack([radius, radius], -1))


@cache
def truth() -> dict[str, np.ndarray]:
    """{name: [3] RAS mm}: the four spurs and the trachea points."""
    out = {}
    for name, pair in DAUGHTERS.items():
        ways = []
        for first in pair:
            line = [_start(first), _end(first)]
            follow = [child for child, row in TABLE.items() if row[0] == first]
            line += [_end(max(follow, key=lambda child: TABLE[child][4]))]
            ways.append(np.stack([along(np.array(line), mm) for mm in np.arange(0, 24, 0.1)]))
        out[name] = spur(*ways, tubes())
    trachea = [out["carina"], *(_end(n) for n in ("carina", *(f"trachea_{i}" for i in (4, 3, 2, 1, 0))))]
    out |= {f"trachea_{mm}mm": along(np.array(trachea), mm) for mm in (15, 30, 45, 60)}
    return out


@cache
def chest(edge_mm: float = 2.5) -> tuple[Volume, Volume]:
    """The CT, int16 HU, and its lungs (1 left, 2 right)."""
    shape = tuple(int(n) for n in ((HIGH - LOW) / edge_mm).astype(int) + 1)
    grid = Grid(LOW, edge_mm, (shape[0], shape[1], shape[2]))
    x, y, z = np.meshgrid(*grid.axes(), indexing="ij", sparse=True)
    hu = np.where((x / 145) ** 2 + (y / 112) ** 2 < 1, 40.0, -1000.0) + 0 * z
    hu = np.where((np.abs(x) < 16) & (np.abs(y + 82) < 16), 500.0, hu)  # the spine
    lungs = np.zeros(shape, np.uint8)
    for label, side in ((2, 1), (1, -1)):
        place = [
            (c - m) / r for c, m, r in zip((x, y, z), LUNG_CENTRE * (side, 1, 1), LUNG_RADII, strict=True)
        ]
        inside = place[0] ** 2 + place[1] ** 2 + place[2] ** 2 < 1
        lungs[inside] = label
        hu[inside] = -850.0
    lumen, wall = render_tubes(tubes(), grid, extra=(0.0, 1.4))
    hu = hu * (1 - wall) + 20 * wall
    hu = hu * (1 - lumen) - 985 * lumen
    lungs[wall > 0.3] = 0
    hu += 15 * np.random.default_rng(1).standard_normal(shape)
    affine = np.diag((edge_mm, edge_mm, edge_mm, 1.0))
    affine[:3, 3] = LOW
    return Volume(np.rint(hu).astype(np.int16), affine), Volume(lungs, affine)


def part(volume: Volume, low_mm: float, high_mm: float) -> Volume:
    """The slices between two heights."""
    z = volume.affine[2, 3] + volume.affine[2, 2] * np.arange(volume.data.shape[2])
    keep = np.flatnonzero((z >= low_mm) & (z <= high_mm))
    affine = volume.affine.copy()
    affine[2, 3] = z[keep[0]]
    return Volume(volume.data[:, :, keep[0] : keep[-1] + 1], affine)
