"""Planes through a volume as pictures, in mm: what the figures and the report are made of.

Planes follow radiological convention: the patient's right is on the picture's left, anterior is up
in axial planes, superior is up in coronal and sagittal ones, and sagittal planes face left.
Arrays [X, Y, Z] are RAS+, so that a picture is a plane's two axes, both reversed. Positions in a
picture are (right, down) in mm from its upper left corner; points [K, 3] and displacements in
voxels. matplotlib's `Figure` is used directly: no display, no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from lmreg_jax.io.tables import replacing

Array = NDArray[Any]
Spacing = Sequence[float] | Array

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis that a plane is normal to
ENDS = (("R", "L"), ("A", "P"), ("S", "I"))  # of each axis: at its last index, at its first
BEFORE, AFTER, MATCH = "#e69f00", "#56b4e9", "#ff5fd2"  # told apart by colour-blind eyes too
ARROW_MM = 16.0  # distance between arrows


class View(NamedTuple):
    """The plane `position` normal to `axis` of a grid, and how it lies in a picture."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    axis: int
    position: int = 0

    @property
    def kept(self) -> list[int]:
        """The two axes that one sees: across and up the picture."""
        return [axis for axis in range(3) if axis != self.axis]

    @property
    def size_mm(self) -> tuple[float, float]:
        across, up = self.kept
        return self.shape[across] * self.spacing_mm[across], self.shape[up] * self.spacing_mm[up]

    def picture(self, volume: Array) -> Array:
        """[rows, columns] of a volume [X, Y, Z]."""
        return upright(np.take(volume, self.position, self.axis))

    def at(self, points: ArrayLike) -> Array:
        """(right, down) mm [..., 2] of points [..., 3] (voxels), on the plane or off it."""
        reversed_ = np.asarray(self.shape) - 0.5 - np.asarray(points, np.float64)
        return (reversed_ * self.spacing_mm)[..., self.kept]

    def carried(self, displacement: Array) -> Array:
        """Where the plane's voxels go, (right, down) mm [columns, rows, 2] in the array's order."""
        points = np.moveaxis(np.indices(self.shape), 0, -1) + displacement
        return self.at(np.take(points, self.position, self.axis))


def upright(plane: Array) -> Array:
    """A plane [first axis, second axis] of a RAS+ image as a picture [rows, columns]."""
    return plane[::-1, ::-1].T


def cut(shape: Sequence[int], points: Array | None = None) -> tuple[int, int, int]:
    """The voxel where three planes cross: the mean of the known points, else the grid's centre."""
    known = np.zeros((0, 3)) if points is None else points[np.isfinite(points).all(axis=-1)]
    centre = known.mean(axis=0) if len(known) else (np.asarray(shape) - 1) / 2
    x, y, z = np.clip(np.rint(centre), 0, np.asarray(shape) - 1).astype(int)
    return int(x), int(y), int(z)


def view_of(shape: Sequence[int], spacing_mm: Spacing, axis: int, position: int = 0) -> View:
    """The plane `position` normal to `axis`, of a grid of any sequence of numbers."""
    x, y, z = (int(n) for n in shape)
    a, b, c = (float(s) for s in spacing_mm)
    return View((x, y, z), (a, b, c), axis, position)


def planes_figure(
    shape: Sequence[int],
    spacing_mm: Spacing,
    where: tuple[int, int, int] | None,
    heads: Sequence[str],
    title: str,
    inches: float | None = None,
) -> tuple[Figure, list[tuple[View, list[Axes]]]]:
    """A figure with a column for each of `heads` and a line for each of PLANES, at one scale.

    inches: the width of a column.
    """
    where = cut(shape) if where is None else where
    views = [view_of(shape, spacing_mm, axis, where[axis]) for axis in PLANES.values()]
    heights = [view.size_mm[1] for view in views]
    width = max(view.size_mm[0] for view in views)
    inches = inches or (2.9 if len(heads) > 3 else 3.6)
    size = len(heads) * inches + 0.3, sum(heights) * inches / width + 1.2
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(views), len(heads), height_ratios=heights, squeeze=False)
    for name, view, line in zip(PLANES, views, axes, strict=True):
        line[0].set_ylabel(f"{name}, {'xyz'[view.axis]} = {view.position}", fontsize=9)
    for column, head in zip(axes[0], heads, strict=True):
        column.set_title(head, fontsize=9)
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure, [(view, list(line)) for view, line in zip(views, axes, strict=True)]


def show(axes: Axes, view: View, picture: Array, **look: Any) -> AxesImage:
    """A picture in mm, with the letters of its four sides; grey from 0 to 1 unless told."""
    across, up = view.size_mm
    grey = {} if "cmap" in look else {"cmap": "gray", "vmin": 0, "vmax": look.pop("vmax", 1)}
    image = axes.imshow(picture, extent=(0, across, up, 0), **{"interpolation": "nearest"} | grey | look)
    axes.set(xticks=[], yticks=[], xlim=(0, across), ylim=(up, 0))
    (left, right), (top, bottom) = (ENDS[axis] for axis in view.kept)
    for x, y, letter in [
        (0.03, 0.5, left),
        (0.97, 0.5, right),
        (0.5, 0.97, top),
        (0.5, 0.03, bottom),
    ]:
        axes.text(
            x,
            y,
            letter,
            color="lime",
            fontsize=8,
            ha="center",
            va="center",
            transform=axes.transAxes,
        )
    return image


def arrows(axes: Axes, view: View, displacement: Array) -> None:
    """In-plane displacement, at its true length, every ARROW_MM."""
    start = view.at(np.moveaxis(np.indices(view.shape), 0, -1).take(view.position, view.axis))
    end = view.carried(displacement)
    steps = [max(1, round(ARROW_MM / view.spacing_mm[axis])) for axis in view.kept]
    every = tuple(slice(step // 2, None, step) for step in steps)
    (x, y), (dx, dy) = (np.moveaxis(v[every], -1, 0) for v in (start, end - start))
    axes.quiver(x, y, dx, dy, color="white", angles="xy", scale_units="xy", scale=1, width=0.005)


def outline(axes: Axes, view: View, picture: Array) -> None:
    """The contours of body and lungs, for orientation."""
    across, up = view.size_mm
    smooth = ndimage.gaussian_filter(picture.astype(np.float64), 1)
    axes.contour(smooth, [0.4], colors="black", linewidths=0.5, extent=(0, across, 0, up))


def colour_bar(figure: Figure, column: Sequence[Axes], cmap: str, norm: Normalize, label: str) -> Colorbar:
    """A colour bar below a column of axes."""
    scale = ScalarMappable(norm, cmap)
    bar = figure.colorbar(scale, ax=list(column), location="bottom", shrink=0.8, aspect=35, pad=0.01)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return bar


def save(figure: Figure, path: str | Path) -> Path:
    """PNG, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return Path(path)
