"""Tissues painted in order onto a scan: trunk, belly, bones, lungs, mediastinum.

Each painter lays its tissues over what is there by the part of each voxel that they fill.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.phantom import skeleton
from lmreg_jax.phantom.centrelines import SYSTEMIC
from lmreg_jax.phantom.profiles import Array
from lmreg_jax.phantom.raster import Grid, Tubes, interpolate, occupancy, render_tubes
from lmreg_jax.phantom.subject import Subject
from lmreg_jax.phantom.tubes import chains, moved, smooth_chain

# HU of the tissues at 120 kV without contrast.
HU = {
    "air": -1000,
    "skin": 0,
    "fat": -104,
    "muscle": 52,
    "bone": 560,
    "marrow": 190,
    "disc": 85,
    "cord": 30,
    "cartilage": 95,
    "lumen": -1000,
    "wall": 20,
    "liver": 58,
    "spleen": 50,
    "kidney": 34,
    "stomach": 30,
    "diaphragm": 45,
    "myocardium": 48,
    "gullet": 32,
    "thyroid": 105,
    "fissure": -380,
}


def paint(image: Array, part: Array | float, hu: Array | float) -> None:
    """image <- image + part (hu - image): `part` of each voxel is now of that tissue."""
    image += part * (hu - image)


class Scene(NamedTuple):
    """What the painters share: subject, grids, template positions, surfaces, tubes."""

    who: Subject
    grid: Grid
    lattice: Grid
    template: list[Array]
    surfaces: dict[str, Array]

    def at(self, name: str) -> Array:
        """A surface's signed distance at the grid's voxels."""
        return interpolate(self.surfaces[name], self.lattice, self.grid)

    def inside(self, name: str, *, grow: float = 0.0) -> Array:
        """A solid's occupancy, its surface moved outward by `grow` mm."""
        return occupancy(self.at(name) - np.float32(grow), self.grid.spacing)


def paint_trunk(scene: Scene, image: Array, grain: Array) -> None:
    """Skin, fat, muscle with the fat between its layers, the contents of the rib cage as fat."""
    width = scene.grid.spacing
    skin = scene.at("skin")
    paint(image, occupancy(skin, width), HU["skin"])
    paint(image, occupancy(skin + 2, width), HU["fat"] + 8 * grain)
    part = scene.inside("muscle")
    wall = scene.at("wall")
    outer = scene.at("outer")
    seam = 1.0 + np.clip(grain, -1, 1.5)  # fat between the intercostals and the outer muscles
    y = scene.grid.axes()[1].astype(np.float32)[None, :, None]
    pectorals = np.abs(wall - 11 - 0.55 * outer) + 4 * ((outer < 10) | (y < 30))
    split = np.minimum(np.abs(wall - 11), pectorals)
    part *= 1 - occupancy(split - seam, width) * (outer > 3)
    paint(image, part, HU["muscle"] + 6 * grain)
    paint(image, scene.inside("cavity"), HU["fat"] + 10 * grain)


def paint_belly(scene: Scene, image: Array, grain: Array) -> None:
    """Diaphragm and what lies below it."""
    width = scene.grid.spacing
    above = scene.at("above")
    within = scene.inside("wall", grow=1)
    sheet = within * occupancy(np.abs(above + 2) - 2, width)
    paint(image, sheet, HU["diaphragm"])
    for organ, tissue in (("kidneys", "kidney"), ("liver", "liver"), ("spleen", "spleen")):
        paint(image, scene.inside(organ), HU[tissue] + 4 * grain)
    colon = scene.at("colon")
    paint(image, occupancy(colon, width), HU["stomach"])
    paint(image, occupancy(colon + 3, width) * np.clip(1.5 * grain - 0.3, 0, 1), HU["air"] + 150)
    stomach = scene.at("stomach")
    paint(image, occupancy(stomach, width), HU["diaphragm"])
    inner = occupancy(stomach + 4, width)
    paint(image, inner, HU["stomach"])
    y = scene.grid.axes()[1].astype(np.float32)[None, :, None]
    paint(image, inner * occupancy(np.float32(scene.who.gas_level) - y, width), HU["air"] + 40)


def paint_bones(scene: Scene, image: Array, grain: Array) -> None:
    """Ribs and cartilage (tubes), spine, sternum, shoulder blades (at full resolution)."""
    grid, who = scene.grid, scene.who
    bones, cartilage = (moved(who, tubes) for tubes in _bones())
    paint(image, render_tubes(cartilage, grid)[0], HU["cartilage"])
    outer, inner = render_tubes(bones, grid, extra=(0.0, -1.3))
    paint(image, outer, HU["bone"])
    paint(image, inner, HU["marrow"])
    x, y, z = (interpolate(c, scene.lattice, grid) for c in scene.template)
    width = grid.spacing

    def local(mask: NDArray[np.bool_]) -> tuple[tuple[slice, ...], list[Array]]:
        box = ndimage.find_objects(mask.astype(np.uint8))
        where = box[0] if box else (slice(0, 0),) * 3
        return where, [np.ascontiguousarray(c[where]) for c in (x, y, z)]

    where, place = local((np.abs(x) < 42) & (y > -160) & (y < 35))
    if place[0].size:
        view, rough = image[where], grain[where]
        column = skeleton.spine(*place)
        paint(view, occupancy(column.canal - 1, width), HU["fat"])
        paint(view, occupancy(column.canal + 1.5, width), HU["cord"])
        paint(view, occupancy(column.disc, width), HU["disc"])
        paint(view, occupancy(column.bone, width), HU["bone"] - 90)
        paint(view, occupancy(column.bone + 1.9, width), HU["marrow"] + 30 * rough)
    where, place = local((np.abs(x) < 36) & (y > 25) & (z > -118) & (z < 60))
    if place[0].size:
        plate = skeleton.sternum(*place)
        paint(image[where], occupancy(plate, width), HU["bone"] - 160)
        paint(image[where], occupancy(plate + 1.8, width), HU["marrow"] - 60)
    where, place = local((np.abs(x) > 45) & (y < 12) & (z > -85) & (z < 84))
    if place[0].size:
        wall = scene.at("wall")[where]
        blade = skeleton.shoulder_blades(place[0], place[1], place[2], wall)
        paint(image[where], occupancy(blade, width), HU["bone"] - 60)


def paint_lungs(scene: Scene, image: Array, grain: Array, left: NDArray[np.bool_]) -> None:
    """Parenchyma, denser towards the back, and the fissures as sheets of 1 mm."""
    who, width = scene.who, scene.grid.spacing
    y = scene.grid.axes()[1].astype(np.float32)[None, :, None]
    slope = np.float32(who.gravity_hu / 190)  # HU per mm from front to back
    density = np.float32(who.lung_hu) - slope * y + 22 * grain
    inside = scene.inside("lungs")
    paint(image, inside, density)
    thickness = 0.45
    for name in ("oblique", "horizontal"):
        distance = scene.at(name)
        sheet = np.maximum(1 - np.abs(distance) / width, 0) * np.float32(thickness / width)
        if name == "horizontal":
            sheet *= ~left & (scene.at("oblique") > 0)
        paint(image, inside * np.minimum(sheet, 1), HU["fissure"])


def paint_mediastinum(scene: Scene, image: Array) -> None:
    """Heart, gullet, thyroid and the great vessels of the body's circulation."""
    blood = scene.who.blood_hu
    paint(image, scene.inside("heart"), HU["myocardium"])
    paint(image, scene.inside("chambers"), blood)
    paint(image, scene.inside("gullet"), HU["gullet"])
    paint(image, scene.inside("thyroid"), HU["thyroid"])
    paint(image, render_tubes(moved(scene.who, _systemic()), scene.grid)[0], blood)


@functools.cache
def _bones() -> tuple[Tubes, Tubes]:
    bones, cartilage = skeleton.ribs()
    bones = bones + skeleton.clavicles()
    both = []
    for lines in (bones, cartilage):
        both.append(chains([b.points for b in lines], [np.full(len(b.points), b.radius) for b in lines]))
    return both[0], both[1]


@functools.cache
def _systemic() -> Tubes:
    lines = [smooth_chain(rows) for rows in SYSTEMIC.values()]
    return chains([line[:, :3] for line in lines], [line[:, 3] for line in lines])
