"""A subject's scan: surfaces on a fixed lattice, the painters in order, blur, labels.

The surfaces are evaluated at template positions on a lattice of 4 mm tied to the subject (so that
no image grid changes the anatomy), made distances, and interpolated to the image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.phantom import organs
from lmreg_jax.phantom.centrelines import OESOPHAGUS
from lmreg_jax.phantom.painting import (
    HU,
    Scene,
    paint,
    paint_belly,
    paint_bones,
    paint_lungs,
    paint_mediastinum,
    paint_trunk,
)
from lmreg_jax.phantom.profiles import Array, cage, ellipsoid, polyline, trunk
from lmreg_jax.phantom.raster import (
    Grid,
    block_mean,
    interpolate,
    join,
    render_tubes,
    signed_distance,
)
from lmreg_jax.phantom.subject import (
    LATTICE_HIGH,
    LATTICE_LOW,
    Subject,
    pull,
    stream,
    vary,
    vary_arteries,
)
from lmreg_jax.phantom.trees import AIRWAY_GENERATIONS, Tree, airways, arteries, veins
from lmreg_jax.phantom.tubes import curves, moved, smooth_chain

LATTICE_MM = 4.0
MAP_MM = 12.0  # lattice of the inverse map, smooth enough to be read linearly (error 0.05 mm)
FINEST_MM = 4.0  # coarser images are block means of a rendering at this voxel size or below
BLUR_MM = 0.8  # standard deviation of the scanner's point spread


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
    return [
        interpolate(np.ascontiguousarray(template[..., a], np.float32), coarse, lattice) for a in range(3)
    ]


def surfaces(who: Subject, x: Array, y: Array, z: Array) -> dict[str, Array]:
    """Signed distances (mm, negative inside) of all that is smooth at 4 mm, on the lattice."""
    chest = organs.chest(x, y, z)
    wall = cage(x, y, z)
    flesh = trunk(x, y, z)
    breast = np.minimum(
        ellipsoid(x, y, z, (75, 112, -22), (48, 30, 46)), ellipsoid(x, y, z, (-75, 112, -22), (48, 30, 46))
    )
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
        "gullet": polyline(x, y, z, smooth_chain(OESOPHAGUS, 12)),
        "thyroid": np.minimum(
            ellipsoid(x, y, z, (17, 36, 126), (8, 9, 22)), ellipsoid(x, y, z, (-17, 36, 126), (8, 9, 22))
        ),
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


def render(who: Subject, trees: Trees, grid: Grid, index: int, seed: int) -> Scan:
    """The subject on `grid` without noise; labels by voxel centres."""
    factor = int(np.ceil(grid.spacing / FINEST_MM - 1e-9))
    fine = Grid(
        grid.low - grid.spacing * (factor - 1) / (2 * factor),
        grid.spacing / factor,
        (grid.shape[0] * factor, grid.shape[1] * factor, grid.shape[2] * factor),
    )
    lattice = lattice_of(fine)
    template = template_positions(who, lattice)
    scene = Scene(who, fine, lattice, template, surfaces(who, *template))
    grain = interpolate(_grain(lattice, index, seed), lattice, fine)
    left = interpolate(template[0], lattice, fine) < 0

    image = np.full(fine.shape, HU["air"], np.float32)
    paint_trunk(scene, image, grain)
    paint_belly(scene, image, grain)
    paint_bones(scene, image, grain)
    paint_lungs(scene, image, grain, left)
    paint_mediastinum(scene, image)
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


def _labels(scene: Scene, trees: Trees, grid: Grid) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Lungs (1 left, 2 right) and lobes; large airways, hilar vessels are no lung."""
    at = Scene(scene.who, grid, scene.lattice, scene.template, scene.surfaces)
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
