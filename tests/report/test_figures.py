"""Which side is where in a picture, what moved where, and that figures are whole and not blank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.run.curves import loss_curves
from lmreg_jax.errors import InputError
from lmreg_jax.evaluation.metrics import PairResult
from lmreg_jax.report import figures, planes

SHAPE, SPACING = (20, 16, 12), (2.0, 3.0, 4.0)
SIDES = {  # one voxel near the end of an axis, as [axis, position along it]
    "right": (0, 17), "left": (0, 2), "anterior": (1, 13), "posterior": (1, 2),
    "superior": (2, 9), "inferior": (2, 2),
}  # fmt: skip
# Radiological convention: (across, down) that each side has in each plane.
SHOWN = {
    "axial": {"right": "left", "left": "right", "anterior": "top", "posterior": "bottom"},
    "coronal": {"right": "left", "left": "right", "superior": "top", "inferior": "bottom"},
    "sagittal": {"anterior": "left", "posterior": "right", "superior": "top", "inferior": "bottom"},
}


def marked(side: str) -> tuple[np.ndarray, np.ndarray]:
    """A volume with one bright voxel towards `side` of the centre, and that voxel's index."""
    point = np.array(SHAPE) // 2
    axis, position = SIDES[side]
    point[axis] = position
    volume = np.zeros(SHAPE)
    volume[tuple(point)] = 1
    return volume, point


def view(name: str) -> planes.View:
    axis = planes.PLANES[name]
    return planes.View(SHAPE, SPACING, axis, SHAPE[axis] // 2)


@pytest.mark.parametrize(("name", "side"), [(n, s) for n, sides in SHOWN.items() for s in sides])
def test_pictures_and_points_follow_radiological_convention(name: str, side: str) -> None:
    volume, point = marked(side)
    plane = view(name)
    picture = plane.picture(volume)
    (row,), (column,) = np.nonzero(picture)
    rows, columns = picture.shape
    where = {
        "left": column < columns / 3,
        "right": column > columns / 1.5,
        "top": row < rows / 3,
        "bottom": row > rows / 1.5,
    }
    assert where[SHOWN[name][side]]

    # A point drawn at that voxel lands on the middle of its pixel.
    across, down = plane.at(point)
    assert (across, down) == pytest.approx(
        ((column + 0.5) * plane.size_mm[0] / columns, (row + 0.5) * plane.size_mm[1] / rows)
    )


def test_letters_name_the_sides_that_are_shown() -> None:
    for name, sides in SHOWN.items():
        seen = {place: side[0].upper() for side, place in sides.items()}
        (left, right), (top, bottom) = (planes.ENDS[axis] for axis in view(name).kept)
        assert seen == {"left": left, "right": right, "top": top, "bottom": bottom}


def test_a_displacement_to_the_patients_head_points_up() -> None:
    displacement = np.zeros((*SHAPE, 3))
    displacement[..., 2] = 1.5
    coronal = view("coronal")
    moved = coronal.carried(displacement) - coronal.carried(np.zeros_like(displacement))
    np.testing.assert_allclose(moved, np.broadcast_to([0, -1.5 * SPACING[2]], moved.shape))


def test_planes_cross_at_the_known_points() -> None:
    points = np.array([[4.0, 5, 6], [6, 7, 8], [np.nan] * 3])
    assert planes.cut(SHAPE, points) == (5, 6, 7)
    assert planes.cut(SHAPE, np.full((2, 3), np.nan)) == planes.cut(SHAPE)
    assert planes.cut(SHAPE, np.array([[99.0, -5, 3]])) == (19, 0, 3)


def drawn(path: Path, count: int = 1) -> np.ndarray:
    """The picture read back, after checking that it is one of `count` whole files and not blank."""
    assert len(list(path.parent.iterdir())) == count
    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 150 and pixels.std() > 0.05
    return pixels


def example() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    fixed, moving = rng.random((2, *SHAPE)).astype(np.float32)
    points = rng.uniform(3, 9, (3, 3))
    points[1] = np.nan
    return {
        "fixed": fixed, "moving": moving, "warped": fixed,
        "displacement": rng.normal(size=(*SHAPE, 3)).astype(np.float32),
        "fixed_points": points, "moving_points": points + 1,
    }  # fmt: skip


def test_a_pair_makes_three_figures(tmp_path: Path) -> None:
    files = figures.pair(tmp_path / "new" / "median", **example(), spacing_mm=SPACING, names=("a", "b", "c"))
    assert [file.name for file in files] == [
        "median_overview.png", "median_field.png", "median_landmarks.png"
    ]  # fmt: skip
    for file in files:
        drawn(file, count=3)


def test_many_landmarks_stay_on_one_page(tmp_path: Path) -> None:
    """The 40 largest errors of 300: as high as a figure of 40, not seven times as high."""
    few, many = (np.random.default_rng(1).uniform(2, 9, (count, 3)) for count in (40, 300))
    pages = []
    for points in (few, many):
        volumes = example() | {"fixed_points": points, "moving_points": points + 0.5}
        names = [str(i) for i in range(len(points))]
        files = figures.pair(tmp_path / str(len(points)) / "x", **volumes, spacing_mm=SPACING, names=names)
        pages.append(drawn(files[-1], count=3))
    assert abs(pages[1].shape[0] - pages[0].shape[0]) < 0.1 * pages[0].shape[0]


def test_a_pair_without_landmarks_or_motion_still_draws(tmp_path: Path) -> None:
    none = {"fixed_points": np.zeros((0, 3)), "moving_points": np.zeros((0, 3))}
    still = {"displacement": np.zeros((*SHAPE, 3))}
    for file in figures.pair(tmp_path / "x", **(example() | none | still), spacing_mm=SPACING, names=()):
        drawn(file, count=2)  # no figure of landmarks


def test_overlays_are_grey_only_where_images_agree(tmp_path: Path) -> None:
    volumes = example()
    same, other = volumes["fixed"], volumes["moving"]
    before = drawn(figures.overview(tmp_path / "a.png", same, other, same, SPACING))
    coloured = np.ptp(before, axis=-1) > 0.3
    middle = before.shape[1] * 4 // 5  # columns: fixed, moving, warped, before | after
    assert coloured[:, middle - before.shape[1] // 5 : middle].mean() > 0.2
    assert coloured[:, middle:].mean() < 0.02


def result(fixed: str, before: float, after: float) -> PairResult:
    error = np.array([before, np.nan])
    return PairResult(
        fixed, "m", error, error * after / before, error, error, *[0.9] * 5, error, {},
        (0.9, 0.9), (1.0, 1.0),
    )  # fmt: skip


def test_tre_plot(tmp_path: Path) -> None:
    """Names are no formulas, whatever they hold."""
    drawn(figures.tre_plot(tmp_path / "tre.png", [result(r"$\nofoo$", 9, 3), result("b", 7, 8)]))


def test_loss_curves_skip_empty_cells(tmp_path: Path) -> None:
    table = tmp_path / "scalars.csv"
    rows = [f"{i},{100 / (i + 1)},{'' if i % 50 else 5},," for i in range(200)]
    table.write_text("\n".join(["step,loss,val_tre_mm,val_dice,", *rows]), encoding="utf-8")
    drawn(loss_curves(tmp_path / "loss.png", table), count=2)


@pytest.mark.parametrize("text", ["loss\n1\n", "step,loss\n1,abc\n"])
def test_a_table_that_is_none_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "scalars.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"scalars\.csv"):
        loss_curves(tmp_path / "loss.png", tmp_path / "scalars.csv")


def test_a_table_without_rows_draws_an_empty_figure(tmp_path: Path) -> None:
    (tmp_path / "scalars.csv").write_text("step,loss\n", encoding="utf-8")
    assert loss_curves(tmp_path / "loss.png", tmp_path / "scalars.csv").exists()
