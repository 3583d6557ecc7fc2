"""The one-page picture of a registered pair (PNG): does it fit, how far did it move, is it plausible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lmreg_jax.anatomy.chest import Side
from lmreg_jax.imaging import intensity
from lmreg_jax.imaging.resampling import resample
from lmreg_jax.imaging.transforms import (
    Transform,
    affine_transform,
    dense_displacement,
    jacobian,
    warp_image,
    warp_labels,
)
from lmreg_jax.imaging.volume import Volume, apply_affine, bounding_box_mm
from lmreg_jax.registration.measures import uncertainty_on
from lmreg_jax.registration.scans import Registered
from lmreg_jax.registration.velocity import Frame
from lmreg_jax.report import planes
from lmreg_jax.report.planes import AFTER, BEFORE, PLANES, View

Array = NDArray[Any]

PICTURE_MM = 2.0
MARGIN_MM = 35.0  # around the lungs: the chest wall
SHOWN_HU = (-1000.0, 300.0)
COLUMN_INCHES = 2.45
UNSEEN = np.array([0.35, 0.35, 0.42])  # of the fixed scan's grey, where the moving scan ends
SIDES = ("x (right)", "y (front)", "z (head)")  # RAS mm grow towards


class Picture(NamedTuple):
    """All that the page shows, on one grid of PICTURE_MM around the fixed lungs.

    fixed, affine, warped: [X, Y, Z] in [0, 1]; lungs_*: bool; seen_*: bool, where the moving scan has
    data; deformation: [X, Y, Z, 3] mm beyond the affine step; determinant; uncertainty: mm, -1 where
    unknown.
    """

    frame: Frame
    fixed: Array
    affine: Array
    warped: Array
    lungs_fixed: Array
    lungs_affine: Array
    lungs_warped: Array
    seen_affine: Array
    seen_warped: Array
    deformation: Array
    determinant: Array
    uncertainty: Array


def picture_frame(fixed: Side) -> Frame:
    """A grid of PICTURE_MM around the fixed lungs, within the fixed scan."""
    shape = np.array(fixed.scan.volume.data.shape)
    corners = apply_affine(fixed.scan.volume.affine, np.indices((2, 2, 2)).reshape(3, -1).T * (shape - 1))
    low, high = bounding_box_mm(fixed.lungs)
    low = np.maximum(low - MARGIN_MM, corners.min(axis=0))
    high = np.minimum(high + MARGIN_MM, corners.max(axis=0))
    x, y, z = np.maximum(np.floor((high - low) / PICTURE_MM).astype(int) + 1, 8)
    grid = np.diag([PICTURE_MM, PICTURE_MM, PICTURE_MM, 1.0])
    grid[:3, 3] = low
    return Frame((int(x), int(y), int(z)), grid)


def pictured(fixed: Side, moving: Side, found: Registered) -> Picture:
    """Scans, lungs and fields of a pair on the page's grid."""
    frame = picture_frame(fixed)
    step = affine_transform(found.affine.pull)
    back = affine_transform(np.linalg.inv(found.affine.pull))

    def image(transform: Transform) -> Array:
        hu = warp_image(transform, moving.scan.volume, frame.shape, frame.affine, fill=-1000.0)
        return intensity.window(hu, SHOWN_HU)

    def lungs(transform: Transform) -> Array:
        return warp_labels(transform, moving.lungs, frame.shape, frame.affine) > 0

    frame_of_moving = Volume(np.ones(moving.lungs.data.shape, np.uint8), moving.lungs.affine)

    def seen(transform: Transform) -> Array:
        return warp_labels(transform, frame_of_moving, frame.shape, frame.affine) > 0

    beyond = found.forward._replace(post=back.post @ found.forward.post)
    own = fixed.scan.volume
    return Picture(
        frame=frame,
        fixed=intensity.window(resample(own, frame.shape, frame.affine, fill=-1000.0), SHOWN_HU),
        affine=image(step),
        warped=image(found.forward),
        lungs_fixed=resample(fixed.lungs, frame.shape, frame.affine, order=0, fill=0) > 0,
        lungs_affine=lungs(step),
        lungs_warped=lungs(found.forward),
        seen_affine=seen(step),
        seen_warped=seen(found.forward),
        deformation=np.concatenate(list(dense_displacement(beyond, frame.shape, frame.affine)), axis=2),
        determinant=jacobian(found.forward, frame.shape, frame.affine),
        uncertainty=uncertainty_on(found, frame.shape, frame.affine),
    )


def draw(path: str | Path, picture: Picture, lines: Sequence[str]) -> Path:
    """The page, written whole or not at all; `lines`: the text above the pictures."""
    where = _cut(picture)
    known = picture.uncertainty >= 0
    heads = [
        *("fixed", "moving, affine step only", "moving, warped"),
        *("before: red fixed, cyan moving", "after: grey where they agree"),
        *("deformation", "Jacobian determinant", "predicted sd"),
    ][: 8 if known.any() else 7]
    figure, rows = planes.planes_figure(
        picture.frame.shape, picture.frame.spacing, where, heads, "", inches=COLUMN_INCHES
    )
    length = np.linalg.norm(picture.deformation, axis=-1)
    far = max(float(np.percentile(length, 99.5)), 1.0)
    wide = max(float(np.percentile(picture.uncertainty[known], 99.5)), 0.1) if known.any() else 1.0
    for (view, axes), name in zip(rows, PLANES, strict=True):
        _images(axes, view, picture)
        middle = picture.frame.affine[view.axis, 3] + PICTURE_MM * view.position
        axes[0].set_ylabel(f"{name}, {SIDES[view.axis]} {middle:.0f} mm", fontsize=9)
        _colours(axes[5], view, length / far, picture.fixed, "turbo")
        planes.arrows(axes[5], view, picture.deformation / picture.frame.spacing)
        determinant = np.ma.masked_less_equal(view.picture(picture.determinant), 0)
        planes.show(axes[6], view, determinant, cmap="RdBu_r", norm=LogNorm(0.25, 4))
        axes[6].set_facecolor("yellow")
        _contour(axes[6], view, picture.lungs_fixed, "black")
        if known.any():
            _colours(axes[7], view, picture.uncertainty / wide, picture.fixed, "viridis")
    columns = list(zip(*(axes for _, axes in rows), strict=True))
    planes.colour_bar(figure, columns[5], "turbo", Normalize(0, far), "beyond the affine step, mm")
    bar = planes.colour_bar(figure, columns[6], "RdBu_r", LogNorm(0.25, 4), "moving / fixed volume")
    bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["1/4", "1/2", "1", "2", "4"])
    bar.minorticks_off()
    if known.any():
        planes.colour_bar(figure, columns[7], "viridis", Normalize(0, wide), "not calibrated, mm")
    figure.suptitle("\n".join(lines), fontsize=10, ha="left", x=0.01, parse_math=False)
    figure.supxlabel(
        "lines: lungs of the fixed scan (orange) and of the moving one (blue); arrows from a point of the"
        " fixed scan to its match in the affinely aligned moving scan; folding in yellow;\n"
        "in the overlays dim grey where the moving scan has no data: what is said of the motion there only"
        " continues its surroundings",
        fontsize=9,
    )
    return planes.save(figure, path)


def _cut(picture: Picture) -> tuple[int, int, int]:
    """Where the planes cross: in height and depth the lungs' middle, in x the middle of the right lung."""
    x, y, z = np.argwhere(picture.lungs_fixed).mean(axis=0)
    right = np.argwhere(picture.lungs_fixed[int(x) :])
    return int(x + right[:, 0].mean()) if len(right) else int(x), int(y), int(z)


def _images(axes: Sequence[Axes], view: View, picture: Picture) -> None:
    """The first five columns: three grey images with the lungs' outlines, two overlays."""
    f, a, w = (view.picture(image) for image in (picture.fixed, picture.affine, picture.warped))
    seen = [view.picture(known)[..., None] for known in (picture.seen_affine, picture.seen_warped)]
    # Where the moving scan ends, red would cry of a difference that nobody knows: the fixed scan, dim.
    overlays = [
        np.where(known, np.stack([f, m, m], -1), UNSEEN * f[..., None])
        for known, m in zip(seen, (a, w), strict=True)
    ]
    for one, shown in zip(axes, [f, a, w, *overlays], strict=False):
        planes.show(one, view, shown)
    for one, lungs in zip(axes[1:3], (picture.lungs_affine, picture.lungs_warped), strict=True):
        _contour(one, view, picture.lungs_fixed, BEFORE)
        _contour(one, view, lungs, AFTER)


def _colours(axes: Axes, view: View, share: Array, fixed: Array, cmap: str) -> None:
    """A map of [0, 1] in colour, darkened where the fixed image is dark; below 0 (unknown) black."""
    values = view.picture(share)
    colour = colormaps[cmap](np.clip(values, 0, 1))[..., :3] * (values >= 0)[..., None]
    planes.show(axes, view, colour * (0.5 + 0.5 * view.picture(fixed))[..., None])


def _contour(axes: Axes, view: View, mask: Array, colour: str) -> None:
    across, up = view.size_mm
    plane = view.picture(mask)
    # "lower": row 0 at y = 0, which `planes.show` has at the top.
    if plane.any() and not plane.all():
        axes.contour(plane, [0.5], colors=colour, linewidths=0.8, extent=(0, across, 0, up), origin="lower")


def quality_picture(path: str | Path, image: Volume, lungs: Volume, title: str) -> Path:
    """Three planes of a CT in HU with the outlines of its lungs: left and right by colour."""
    where = planes.cut(image.data.shape, np.argwhere(lungs.data).astype(np.float64))
    edges = np.linalg.norm(image.affine[:3, :3], axis=0)
    figure = Figure(figsize=(13, 5), layout="constrained")
    shape, shown = image.data.shape, intensity.window(image.data, SHOWN_HU)
    sizes = [shape[a] * edges[a] for a in (0, 0, 1)]
    for axes, (name, axis) in zip(figure.subplots(1, 3, width_ratios=sizes), PLANES.items(), strict=True):
        view = View((shape[0], shape[1], shape[2]), tuple(edges), axis, where[axis])
        planes.show(axes, view, view.picture(shown))
        for label, colour in ((1, BEFORE), (2, AFTER)):
            _contour(axes, view, lungs.data == label, colour)
        axes.set_title(name, fontsize=9, parse_math=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    return planes.save(figure, path)
