"""A subject's scan: surfaces on a fixed lattice, tissues painted in order, blur, noise, labels.

The surfaces are evaluated at template positions on a lattice of 4 mm tied to the subject (so that
no image grid changes the anatomy), made distances, and interpolated to the image.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.phantom import organs, skeleton
from lmreg_jax.phantom.profiles import Array, cage, ellipsoid, polyline, trunk
from lmreg_jax.phantom.raster import (
    Grid,
    Tubes,
    block_mean,
    interpolate,
    join,
    occupancy,
    render_tubes,
    signed_distance,
)
from lmreg_jax.phantom.subject import (
    LATTICE_HIGH,
    LATTICE_LOW,
    Subject,
    pull,
    push,
    stream,
    vary,
    vary_arteries,
)
from lmreg_jax.phantom.trees import AIRWAY_GENERATIONS, Points, Tree, airways, arteries, veins

LATTICE_MM = 4.0
MAP_MM = 12.0  # lattice of the inverse map, smooth enough to be read linearly (error 0.05 mm)
FINEST_MM = 4.0  # coarser images are block means of a rendering at this voxel size or below
BLUR_MM = 0.8  # standard deviation of the scanner's point spread
"""HU of the tissues at 120 kV without contrast."""
HU = {
    "air": -1000, "skin": 0, "fat": -104, "muscle": 52, "bone": 560, "marrow": 190, "disc": 85,
    "cord": 30, "cartilage": 95, "lumen": -1000, "wall": 20, "liver": 58, "spleen": 50,
    "kidney": 34, "stomach": 25, "diaphragm": 45, "myocardium": 48, "gullet": 32, "thyroid": 105,
    "fissure": -380,
}


class Trees(NamedTuple):
    """A subject's airways, arteries, veins, still in template mm (before `push`)."""

    airways: Tree
    arteries: Tree
    veins: Tree


def trees_of(who: Subject, index: int, seed: int) -> Trees:
    """The template's trees with this subject's angles and lengths."""
    random = stream(seed, index, 1)
    varied = vary(airways(), random, who.angles)
    beside = vary_arteries(arteries(), airways(), varied, random)
    return Trees(varied, beside, vary(veins(), random, who.angles))


def curves(tree: Tree, *, last: int = 99) -> Tubes:
    """Every branch up to order `last` as a curve: 4 straight pieces, 2 from the third order on."""
    return join(_curves(tree, tree.order <= min(last, 2), 4),
                _curves(tree, (tree.order > 2) & (tree.order <= last), 2))


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
        points[:-1].reshape(-1, 3), points[1:].reshape(-1, 3),
        np.stack([radius[:-1].ravel(), radius[1:].ravel()], -1),
    )


def chains(lines: list[Points], radii: list[NDArray[np.float64]]) -> Tubes:
    """Centrelines [N, 3] with radii [N] as straight pieces."""
    return Tubes(
        np.concatenate([line[:-1] for line in lines]), np.concatenate([line[1:] for line in lines]),
        np.concatenate([np.stack([r[:-1], r[1:]], -1) for r in radii]),
    )


def smooth_chain(rows: NDArray[np.float64], step: float = 6.0) -> NDArray[np.float64]:
    """A chain's rows (x, y, z, radius) resampled along a cubic through them."""
    from scipy.interpolate import CubicSpline

    way = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(rows[:, :3], axis=0), axis=1))])
    return CubicSpline(way, rows)(np.linspace(0, way[-1], int(way[-1] / step) + 2))


def moved(who: Subject, tubes: Tubes) -> Tubes:
    """Template tubes in the subject's space, radii by its size and calibre."""
    ends = push(who, np.concatenate([tubes.start, tubes.end]))
    return Tubes(*np.split(ends, 2), tubes.radius * who.calibre)


@functools.cache
def _bones() -> tuple[Tubes, Tubes]:
    bones, cartilage = skeleton.ribs()
    bones = bones + skeleton.clavicles()
    both = []
    for lines in (bones, cartilage):
        both.append(chains([b.points for b in lines],
                           [np.full(len(b.points), b.radius) for b in lines]))
    return both[0], both[1]


@functools.cache
def _systemic() -> Tubes:
    lines = [smooth_chain(rows) for rows in organs.SYSTEMIC.values()]
    return chains([line[:, :3] for line in lines], [line[:, 3] for line in lines])


def lattice_of(grid: Grid) -> Grid:
    """The part of the subject's 4 mm lattice that covers the grid."""
    low = np.floor(grid.low / LATTICE_MM - 1) * LATTICE_MM
    high = grid.low + grid.spacing * np.array(grid.shape)
    shape = np.ceil((high - low) / LATTICE_MM).astype(int) + 2
    return Grid(low, LATTICE_MM, (int(shape[0]), int(shape[1]), int(shape[2])))


def template_positions(who: Subject, lattice: Grid) -> list[Array]:
    """x, y, z in the template of every lattice point: `pull` on a 12 mm lattice, interpolated."""
    low = np.floor(lattice.low / MAP_MM) * MAP_MM
    high = lattice.low + lattice.spacing * np.array(lattice.shape)
    shape = np.ceil((high - low) / MAP_MM).astype(int) + 2
    coarse = Grid(low, MAP_MM, (int(shape[0]), int(shape[1]), int(shape[2])))
    places = np.stack(np.meshgrid(*coarse.axes(), indexing="ij"), -1).reshape(-1, 3)
    template = pull(who, places).reshape(*coarse.shape, 3)
    return [interpolate(np.ascontiguousarray(template[..., a], np.float32), coarse, lattice)
            for a in range(3)]


def surfaces(who: Subject, x: Array, y: Array, z: Array) -> dict[str, Array]:
    """Signed distances (mm, negative inside) of all that is smooth at 4 mm, on the lattice."""
    chest = organs.chest(x, y, z)
    wall = cage(x, y, z)
    flesh = trunk(x, y, z)
    breast = np.minimum(ellipsoid(x, y, z, (75, 112, -22), (48, 30, 46)),
                        ellipsoid(x, y, z, (-75, 112, -22), (48, 30, 46)))
    muscle, outer = organs.muscles(x, y, z, wall, who.muscle)
    values = {
        "flesh": flesh,
        "muscle": np.maximum(muscle, flesh),
        "wall": wall,
        "cavity": np.maximum(wall, -organs.behind_spine(x, y, z)),
        "pleura": chest.pleura,
        "above": chest.above_diaphragm,
        "lungs": organs.lungs(chest),
        "heart": organs.heart(x, y, z),
        "chambers": organs.chambers(x, y, z),
        "oblique": organs.oblique_fissure(x, y, z),
        "horizontal": organs.horizontal_fissure(x, y, z),
        "gullet": polyline(x, y, z, smooth_chain(organs.OESOPHAGUS, 12)),
        "thyroid": np.minimum(ellipsoid(x, y, z, (17, 36, 126), (8, 9, 22)),
                              ellipsoid(x, y, z, (-17, 36, 126), (8, 9, 22))),
        **organs.belly(x, y, z, chest.above_diaphragm),
    }
    distances = {name: signed_distance(value, LATTICE_MM) for name, value in values.items()}
    thickness = who.fat_mm * (1 + 0.25 * np.tanh((y - 20) / 60) - 0.002 * np.clip(z, -150, 150))
    skin = distances["flesh"] - np.maximum(thickness, 3).astype(np.float32)
    if who.breast_mm > 0:
        skin = np.minimum(skin, signed_distance(breast, LATTICE_MM) + 22 - who.breast_mm)
    distances["skin"] = skin
    distances["outer"] = outer
    return distances


class Scan(NamedTuple):
    """A subject rendered on a grid: HU before noise float32, lung and lobe labels uint8."""

    image: Array
    lungs: NDArray[np.uint8]
    lobes: NDArray[np.uint8]


def paint(image: Array, part: Array | float, hu: Array | float) -> None:
    """image <- image + part (hu - image): `part` of each voxel is now of that tissue."""
    image += part * (hu - image)


class _Scene(NamedTuple):
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


def _paint_trunk(scene: _Scene, image: Array, grain: Array) -> None:
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


def _paint_belly(scene: _Scene, image: Array, grain: Array) -> None:
    """Diaphragm and what lies below it."""
    width = scene.grid.spacing
    above = scene.at("above")
    within = scene.inside("wall", grow=1)
    sheet = within * occupancy(np.abs(above + 2) - 2, width)
    paint(image, sheet, HU["diaphragm"])
    for organ, tissue in (("kidneys", "kidney"), ("liver", "liver"), ("spleen", "spleen")):
        paint(image, scene.inside(organ), HU[tissue] + 4 * grain)
    stomach = scene.at("stomach")
    paint(image, occupancy(stomach, width), HU["myocardium"])
    inner = occupancy(stomach + 4, width)
    paint(image, inner, HU["stomach"])
    y = scene.grid.axes()[1].astype(np.float32)[None, :, None]
    paint(image, inner * occupancy(np.float32(scene.who.gas_level) - y, width), HU["air"] + 40)


def _paint_bones(scene: _Scene, image: Array, grain: Array) -> None:
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

    depth = np.abs(y - skeleton.SPINE_Y(np.float32([0]))[0] + 15)
    where, place = local((np.abs(x) < 42) & (depth < 95))
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
        blade = skeleton.shoulder_blades(*place, wall)
        paint(image[where], occupancy(blade, width), HU["bone"] - 60)


def _paint_lungs(scene: _Scene, image: Array, grain: Array, left: NDArray[np.bool_]) -> None:
    """Parenchyma, denser towards the back, and the fissures as sheets of 1 mm."""
    who, width = scene.who, scene.grid.spacing
    y = scene.grid.axes()[1].astype(np.float32)[None, :, None]
    density = who.lung_hu - who.gravity_hu * y / 190 + 22 * grain
    inside = scene.inside("lungs")
    paint(image, inside, density)
    thickness = 0.45
    for name in ("oblique", "horizontal"):
        distance = scene.at(name)
        sheet = np.maximum(1 - np.abs(distance) / width, 0) * np.float32(thickness / width)
        if name == "horizontal":
            sheet *= ~left & (scene.at("oblique") > 0)
        paint(image, inside * np.minimum(sheet, 1), HU["fissure"])


def _paint_mediastinum(scene: _Scene, image: Array) -> None:
    """Heart, gullet, thyroid and the great vessels of the body's circulation."""
    blood = scene.who.blood_hu
    paint(image, scene.inside("heart"), HU["myocardium"])
    paint(image, scene.inside("chambers"), blood)
    paint(image, scene.inside("gullet"), HU["gullet"])
    paint(image, scene.inside("thyroid"), HU["thyroid"])
    paint(image, render_tubes(moved(scene.who, _systemic()), scene.grid)[0], blood)


def render(who: Subject, trees: Trees, grid: Grid, index: int, seed: int) -> Scan:
    """The subject on `grid` without noise; labels by voxel centres."""
    factor = int(np.ceil(grid.spacing / FINEST_MM - 1e-9))
    fine = Grid(
        grid.low - grid.spacing * (factor - 1) / (2 * factor), grid.spacing / factor,
        (grid.shape[0] * factor, grid.shape[1] * factor, grid.shape[2] * factor),
    )
    lattice = lattice_of(fine)
    template = template_positions(who, lattice)
    scene = _Scene(who, fine, lattice, template, surfaces(who, *template))
    grain = interpolate(_grain(lattice, index, seed), lattice, fine)
    left = interpolate(template[0], lattice, fine) < 0

    image = np.full(fine.shape, HU["air"], np.float32)
    _paint_trunk(scene, image, grain)
    _paint_belly(scene, image, grain)
    _paint_bones(scene, image, grain)
    _paint_lungs(scene, image, grain, left)
    _paint_mediastinum(scene, image)
    paint(image, render_tubes(moved(who, curves(trees.veins)), fine)[0], who.blood_hu)
    paint(image, render_tubes(moved(who, curves(trees.arteries)), fine)[0], who.blood_hu)
    bronchi = moved(who, curves(trees.airways, last=AIRWAY_GENERATIONS))
    lumen, wall = render_tubes(bronchi, fine, extra=(0.0, 0.5), relative=0.12)
    paint(image, wall, HU["wall"])
    paint(image, lumen, HU["lumen"])
    image = block_mean(image, factor)
    sigma = BLUR_MM / grid.spacing
    if sigma > 0.2:
        image = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3)
    return Scan(image, *_labels(scene, trees, grid))


def _labels(scene: _Scene, trees: Trees, grid: Grid) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Lungs (1 left, 2 right) and lobes; large airways, hilar vessels are no lung."""
    at = _Scene(scene.who, grid, scene.lattice, scene.template, scene.surfaces)
    inside = at.at("lungs") < 0
    large = join(
        curves(trees.airways, last=-1),
        curves(trees.arteries, last=-1),
        curves(trees.veins, last=-1),
    )
    tubes = moved(scene.who, large)
    inside &= render_tubes(tubes, grid, extra=(0.8,))[0] < 0.5
    left = interpolate(scene.template[0], scene.lattice, grid) < 0
    lungs = np.where(inside, np.where(left, 1, 2), 0).astype(np.uint8)
    lobe = organs.lobes(at.at("oblique"), at.at("horizontal"), left)
    return lungs, np.where(inside, lobe, 0).astype(np.uint8)


def _grain(lattice: Grid, index: int, seed: int) -> Array:
    """Texture of unit variance tied to the subject: noise of 6 and 14 mm on a 4 mm lattice."""
    low = np.array(LATTICE_LOW) / LATTICE_MM
    size = np.ceil((np.array(LATTICE_HIGH) - LATTICE_LOW) / LATTICE_MM).astype(int)
    noise = stream(seed, index, 2).standard_normal(size, dtype=np.float32)
    fine = ndimage.gaussian_filter(noise, 0.6, mode="wrap", truncate=3)
    broad = ndimage.gaussian_filter(noise, 2.5, mode="wrap", truncate=3)
    texture = 0.8 * fine / fine.std() + 0.6 * broad / broad.std()
    first = np.round(lattice.low / LATTICE_MM - low).astype(int)
    picks = [np.arange(f, f + n) % s for f, n, s in zip(first, lattice.shape, size, strict=True)]
    return texture[np.ix_(*picks)]
