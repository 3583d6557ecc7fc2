"""Pictures of a registration (PNG): what moved where, how far, and whether it fits afterwards.

Planes follow radiological convention: the patient's right is on the picture's left, anterior is up
in axial planes, superior is up in coronal and sagittal ones, and sagittal planes face left.
Arrays [X, Y, Z] are RAS+, so that a picture is a plane's two axes, both reversed. Positions in a
picture are (right, down) in mm from its upper left corner; points [K, 3] and displacements in
voxels. matplotlib's `Figure` is used directly: no display, no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from lmreg_jax import metrics
from lmreg_jax.errors import InputError
from lmreg_jax.volumes import read_table, replacing

if TYPE_CHECKING:
    from lmreg_jax.metrics import PairResult

Array = NDArray[Any]
Spacing = Sequence[float] | Array

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis that a plane is normal to
ENDS = (("R", "L"), ("A", "P"), ("S", "I"))  # of each axis: at its last index, at its first
BEFORE, AFTER, MATCH = "#e69f00", "#56b4e9", "#ff5fd2"  # told apart by colour-blind eyes too
NEAR_MM = 8.0  # a point this close to a plane is drawn on it
GRID_MM, ARROW_MM = 10.0, 16.0  # distance between lines of the deformed grid, between arrows


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


def pair(
    stem: str | Path,
    *,
    fixed: Array,
    moving: Array,
    warped: Array,
    displacement: Array,
    spacing_mm: Spacing,
    fixed_points: Array,
    moving_points: Array,
    names: Sequence[str],
    title: str = "",
) -> list[Path]:
    """`overview`, `field` and, of known ones, `landmarks`, as STEM_overview.png and so on."""
    points = fixed_points, moving_points
    where = cut(fixed.shape, fixed_points)
    a, b, c = (Path(f"{stem}_{kind}.png") for kind in ("overview", "field", "landmarks"))
    files = [
        overview(a, fixed, moving, warped, spacing_mm, *points, where=where, title=title),
        field(b, displacement, fixed, spacing_mm, moving=moving, where=where, title=title),
    ]
    if np.isfinite(fixed_points + moving_points).all(axis=1).any():
        landmarks(c, moving, displacement, spacing_mm, *points, names, title=title)
        files.append(c)
    return files


def overview(
    path: str | Path,
    fixed: Array,
    moving: Array,
    warped: Array,
    spacing_mm: Spacing,
    fixed_points: Array | None = None,
    moving_points: Array | None = None,
    *,
    where: tuple[int, int, int] | None = None,
    title: str = "",
) -> Path:
    """Three planes of fixed, moving and warped image, and red-cyan overlays before and after.

    Images in [0, 1]. Where the overlaid images agree the picture is grey; red is brighter in the
    fixed image only, cyan in the other only. Points within NEAR_MM of a plane are drawn on it.
    """
    heads = [
        *("fixed", "moving", "moving warped onto fixed"),
        f"before: mean |difference| {np.abs(fixed - moving).mean():.3f}",
        f"after: mean |difference| {np.abs(fixed - warped).mean():.3f}",
    ]
    figure, lines = planes_figure(fixed.shape, spacing_mm, where, heads, title)
    for view, line in lines:
        f, m, w = (np.clip(view.picture(volume), 0, 1) for volume in (fixed, moving, warped))
        pictures = [f, m, w, np.stack([f, m, m], -1), np.stack([f, w, w], -1)]
        for axes, picture in zip(line, pictures, strict=True):
            show(axes, view, picture)
        _near_points(line[0], view, fixed_points, BEFORE)
        _near_points(line[1], view, moving_points, MATCH)
        _near_points(line[2], view, fixed_points, BEFORE)
    note = "overlays: grey where the images agree, red where fixed is brighter, cyan where the other"
    if fixed_points is not None and np.isfinite(fixed_points).any():
        note += f"; circles: landmarks within {NEAR_MM:g} mm of the plane, of fixed and of moving"
    figure.supxlabel(note, fontsize=9)
    return save(figure, path)


def field(
    path: str | Path,
    displacement: Array,
    fixed: Array,
    spacing_mm: Spacing,
    *,
    moving: Array | None = None,
    where: tuple[int, int, int] | None = None,
    title: str = "",
) -> Path:
    """Three planes of |u| in mm with arrows, of the grid id + u, and of the Jacobian determinant.

    The deformed grid lies over the moving image (without one, the fixed), which u points into.
    """
    length = np.linalg.norm(displacement * np.asarray(spacing_mm), axis=-1)
    determinant = metrics.jacobian_determinant(displacement)
    top = max(float(np.percentile(length, 99)), 1e-3)
    heads = [
        f"displacement: mean {length.mean():.1f} mm, largest {length.max():.1f} mm",
        f"the fixed image's {GRID_MM:g} mm grid carried into moving",
        f"Jacobian determinant; folded (yellow) {metrics.folding_percent(determinant):.3g} %",
    ]
    figure, lines = planes_figure(fixed.shape, spacing_mm, where, heads, title)
    for view, (far, grid, volume) in lines:
        f = view.picture(fixed)
        # Colour times brightness: unlike transparency it keeps the hue that the bar explains.
        colour = colormaps["turbo"](np.clip(view.picture(length) / top, 0, 1))[..., :3]
        show(far, view, colour * (0.5 + 0.5 * np.clip(f, 0, 1))[..., None])
        arrows(far, view, displacement)
        show(grid, view, f if moving is None else view.picture(moving), vmax=1.3)
        _deformed_grid(grid, view, displacement)
        det = np.ma.masked_less_equal(view.picture(determinant), 0)
        show(volume, view, det, cmap="RdBu_r", norm=LogNorm(0.25, 4))
        volume.set_facecolor("yellow")
        outline(volume, view, f)
    columns = list(zip(*(line for _, line in lines), strict=True))
    colour_bar(figure, columns[0], "turbo", Normalize(0, top), "displacement, mm")
    bar = colour_bar(figure, columns[2], "RdBu_r", LogNorm(0.25, 4), "volume in moving / volume in fixed")
    bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["1/4", "1/2", "1", "2", "4"])
    bar.minorticks_off()
    note = "an arrow runs from a point of the fixed image to its match in the moving image"
    figure.supxlabel(note, fontsize=9)
    return save(figure, path)


def landmarks(
    path: str | Path,
    moving: Array,
    displacement: Array,
    spacing_mm: Spacing,
    fixed_points: Array,
    moving_points: Array,
    names: Sequence[str],
    *,
    title: str = "",
) -> Path:
    """Landmarks on radiographs (mean projections) of the moving image, and each one's error.

    x: the expert's point in the moving image; o: the fixed image's point before (p) and after
    registration (p + u(p)). The line between the two is the error. Missing landmarks are left out.
    """
    known = np.asarray(np.isfinite(fixed_points + moving_points).all(axis=1))
    p, q = fixed_points[known], moving_points[known]
    kept = [name for name, k in zip(names, known, strict=True) if k]
    carried = p + metrics.sample_displacement(displacement, p)
    before, after = (metrics.target_registration_error(u, p, q, spacing_mm) for u in (None, displacement))
    figure = Figure(figsize=(13, max(8.5, 0.25 * len(p) + 1)), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(8, 5))
    pictures, chart = parts
    for axis, line in zip((1, 0), pictures.subplots(2, 2), strict=True):
        view = _view(moving.shape, spacing_mm, axis)
        seen = np.concatenate([view.at(points) for points in (p, carried, q)])
        for axes, points, colour in zip(line, (p, carried), (BEFORE, AFTER), strict=True):
            show(axes, view, _radiograph(view, moving), interpolation="bilinear")
            _errors(axes, view.at(points), view.at(q), colour)
            _zoom(axes, view, seen)
            if axis == 1:
                errors, head = (before, "before") if colour == BEFORE else (after, "after")
                mean = f": mean error {errors.mean():.2f} mm" if len(p) else ""
                axes.set_title(head + mean, fontsize=9, parse_math=False)
    _dumbbells(chart.subplots(), [f"{name}  {i}" for i, name in enumerate(kept, 1)], before, after)
    figure.suptitle(title, fontsize=11, parse_math=False)
    note = "x: landmark in the moving image; o: the fixed image's landmark, before and carried over"
    figure.supxlabel(note, fontsize=9)
    return save(figure, path)


def tre_plot(path: str | Path, results: Sequence[PairResult]) -> Path:
    """Errors (dots) and their means (joined) before and after: a row a pair, and All."""
    kinds = {"training landmarks": ("tre_initial_mm", "tre_mm")}
    if any(np.isfinite(result.tre_unseen_mm).any() for result in results):
        kinds["unseen points"] = ("tre_unseen_initial_mm", "tre_unseen_mm")
    height = min(1.6 + 0.34 * (len(results) + 1), 60)
    figure = Figure(figsize=(1.5 + 5 * len(kinds), height), layout="constrained")
    columns = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, (kind, fields) in zip(columns, kinds.items(), strict=True):
        before, after = ([getattr(result, name) for result in results] for name in fields)
        rows = [[*values, np.hstack([[], *values])] for values in (before, after)]
        names = [*(result.name for result in results), "All"]
        _dumbbells(axes, names, *([metrics.Summary.of(v).mean for v in side] for side in rows))
        for side, colour, offset in zip(rows, (BEFORE, AFTER), (-0.14, 0.14), strict=True):
            for y, values in enumerate(side[:-1]):
                axes.plot(values, np.full(len(values), y + offset), ".", color=colour, alpha=0.6, zorder=1)
        axes.axhline(len(results) - 0.5, color="black", linewidth=0.8)
        axes.set_title(kind, fontsize=10, loc="left")
    return save(figure, path)


def loss_curves(path: str | Path, csv_path: str | Path) -> Path:
    """One small plot for each column of a CSV with the columns step, ...; cells may be empty.

    Dense columns are faint with their running mean in full colour; positive ones that span more
    than a decade get a logarithmic axis. Raises InputError where the file is not such a table.
    """
    columns = _read_scalars(Path(csv_path))
    step = columns.pop("step")
    shown = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    across = min(4, max(len(shown), 1))
    down = -(-max(len(shown), 1) // across)
    figure = Figure(figsize=(3.4 * across, 2.3 * down + 0.3), layout="constrained")
    all_axes = figure.subplots(down, across, squeeze=False).ravel()
    for axes in all_axes[len(shown) :]:
        axes.set_axis_off()
    for axes, (name, values) in zip(all_axes, shown.items(), strict=False):
        known = np.isfinite(values)
        x, y = step[known], values[known]
        dense = len(y) > 60
        axes.plot(x, y, "-" if dense else ".-", color="#0072b2", alpha=0.25 if dense else 1)
        if dense:
            smooth = ndimage.uniform_filter1d(y, max(len(y) // 40, 5), mode="nearest")
            axes.plot(x, smooth, color="#0072b2")
        if y.min() > 0 and y.max() > 10 * y.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{name}: last {y[-1]:.4g}", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.supxlabel("step", fontsize=9)
    return save(figure, path)


def _read_scalars(path: Path) -> dict[str, Array]:
    rows = read_table(path, required=("step",))
    try:
        return {
            name: np.array([float(row[name] or "nan") for _, row in rows])
            for name in (rows[0][1] if rows else {"step": ""})
        }
    except ValueError as error:
        raise InputError(f"{path}: a cell is no number ({error}); empty cells are allowed") from None


def _view(shape: Sequence[int], spacing_mm: Spacing, axis: int, position: int = 0) -> View:
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
    views = [_view(shape, spacing_mm, axis, where[axis]) for axis in PLANES.values()]
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


def _near_points(axes: Axes, view: View, points: Array | None, colour: str) -> None:
    if points is None:
        return
    distance = np.abs(points[:, view.axis] - view.position) * view.spacing_mm[view.axis]
    near = view.at(points[distance <= NEAR_MM])
    axes.plot(*near.T, "o", color=colour, markersize=6, fillstyle="none", markeredgewidth=1.2)


def arrows(axes: Axes, view: View, displacement: Array) -> None:
    """In-plane displacement, at its true length, every ARROW_MM."""
    start = view.at(np.moveaxis(np.indices(view.shape), 0, -1).take(view.position, view.axis))
    end = view.carried(displacement)
    steps = [max(1, round(ARROW_MM / view.spacing_mm[axis])) for axis in view.kept]
    every = tuple(slice(step // 2, None, step) for step in steps)
    (x, y), (dx, dy) = (np.moveaxis(v[every], -1, 0) for v in (start, end - start))
    axes.quiver(x, y, dx, dy, color="white", angles="xy", scale_units="xy", scale=1, width=0.005)


def _deformed_grid(axes: Axes, view: View, displacement: Array) -> None:
    carried = view.carried(displacement)
    steps = [max(1, round(GRID_MM / view.spacing_mm[axis])) for axis in view.kept]
    for lines in (carried[:: steps[0]], carried[:, :: steps[1]].swapaxes(0, 1)):
        for line in lines:
            axes.plot(*line.T, color="#7fffd4", linewidth=0.6)


def _radiograph(view: View, volume: Array) -> Array:
    """The mean along the view's axis, stretched to [0, 1]: what a chest film shows."""
    film = upright(volume.mean(axis=view.axis, dtype=np.float64))
    low, high = np.percentile(film, (1, 99.5))
    return np.clip((film - low) / max(high - low, 1e-9), 0, 1)


def _errors(axes: Axes, start: Array, match: Array, colour: str) -> None:
    """Numbered lines from each carried landmark (o) to its match (x), picture positions [K, 2]."""
    for number, ((x0, y0), (x1, y1)) in enumerate(zip(start, match, strict=True), 1):
        axes.plot([x0, x1], [y0, y1], color="white", linewidth=1.2)
        axes.annotate(str(number), (x1, y1), (4, 3), textcoords="offset points", color=MATCH, fontsize=8)
    axes.plot(*match.T, "x", color=MATCH, markersize=6, markeredgewidth=1.5)
    axes.plot(*start.T, "o", color=colour, markersize=7, fillstyle="none", markeredgewidth=1.5)


def _zoom(axes: Axes, view: View, seen: Array) -> None:
    """Shows the part of the picture around `seen` [K, 2], with its surroundings."""
    if not len(seen):
        return
    low, high = seen.min(axis=0), seen.max(axis=0)
    half = max(float((high - low).max()) / 2 + 25, 60)
    x, y = (low + high) / 2
    axes.set(xlim=(x - half, x + half), ylim=(y + half, y - half), facecolor="black")


def outline(axes: Axes, view: View, picture: Array) -> None:
    """The contours of body and lungs, for orientation."""
    across, up = view.size_mm
    smooth = ndimage.gaussian_filter(picture.astype(np.float64), 1)
    axes.contour(smooth, [0.4], colors="black", linewidths=0.5, extent=(0, across, 0, up))


def _dumbbells(axes: Axes, names: Sequence[str], before: Any, after: Any) -> None:
    """A row for each name, from the value before to the value after, in mm."""
    rows = np.arange(len(names))
    axes.hlines(rows, before, after, color="0.6", linewidth=1.5, zorder=2)
    for values, colour, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
        axes.plot(values, rows, "o", color=colour, markeredgecolor="black", label=label, zorder=3)
    axes.set_yticks(rows, [*names], fontsize=8, parse_math=False)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.set_xlabel("target registration error, mm", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    axes.autoscale(axis="x")
    axes.update_datalim([(0, 0)])  # so that lengths can be compared: the axis starts at 0


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
