"""`lmreg evaluate` on pairs whose errors, overlaps and distances are known in closed form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmreg_jax.cli.main import main
from lmreg_jax.evaluation import transform
from lmreg_jax.imaging.transforms import affine_transform, identity_transform, transform_points
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.points import write_points
from lmreg_jax.io.read import read_scan
from lmreg_jax.io.transforms import write_displacement, write_itk
from tests import spaces

pytest.importorskip("SimpleITK")

SHIFT = np.array([7.0, -14.0, 8.5])  # mm: whole voxels are not needed for points
MATRIX = np.eye(4)
MATRIX[:3, 3] = SHIFT


def evaluate(folder: Path, **options: Any) -> dict[str, Any]:
    """The JSON of lmreg evaluate --NAME VALUE ..."""
    output = folder / "figures.json"
    words = ["evaluate", "--output", str(output), "--force"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    main(words)
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def refused(capsys: pytest.CaptureFixture[str], folder: Path, **options: Any) -> str:
    with pytest.raises(SystemExit) as caught:
        evaluate(folder, **options)
    assert caught.value.code == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and "\n" not in line
    assert not (folder / "figures.json").exists()
    return line


def scans(folder: Path, number: int = 41) -> dict[str, Path]:
    """A fixed scan and the moving one in which everything lies SHIFT further on."""
    fixed = spaces.ct()
    moved = spaces.grid()
    moved[:3, 3] += SHIFT
    return {
        "fixed": spaces.save(folder / "fixed.nii.gz", fixed, spaces.ORIENTATIONS[number]),
        "moving": spaces.save(
            folder / "moving.nii.gz", Volume(fixed.data, moved), spaces.ORIENTATIONS[47 - number]
        ),
    }


def some_points(count: int) -> dict[str, Any]:
    values = np.random.default_rng(1).uniform(-60, 60, (count, 3))
    return {f"p{i}": value for i, value in enumerate(values)}


@pytest.mark.parametrize(
    "matrix",
    [MATRIX, spaces.rotation((5, -8, 12)), np.diag([1.1, 0.9, 1.05, 1])],
    ids=["translation", "rotation", "scaling"],
)
def test_tre_of_a_known_motion(matrix: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: the motion's own length at each point; after: nothing. mm, voxels, LPS and RAS alike."""
    pair = scans(tmp_path)
    t = affine_transform(matrix)
    write_itk(tmp_path / "t.h5", t)
    fixed_points = some_points(40)
    values = np.array(list(fixed_points.values()))
    moving_values = transform_points(t, values)
    moving_points = dict(zip(fixed_points, moving_values, strict=True))
    write_points(tmp_path / "f.fcsv", fixed_points)
    write_points(tmp_path / "m.csv", moving_points)
    for side, points in (("fixed", values), ("moving", moving_values)):
        voxels = apply_affine(np.linalg.inv(read_scan(pair[side]).affine), points)
        np.savetxt(tmp_path / f"{side}.csv", voxels, delimiter=",")
    length = np.linalg.norm(moving_values - values, axis=1)
    for files in (("f.fcsv", "m.csv"), ("fixed.csv", "moving.csv")):
        found = evaluate(
            tmp_path,
            **pair,
            transform=tmp_path / "t.h5",
            fixed_landmarks=tmp_path / files[0],
            moving_landmarks=tmp_path / files[1],
        )
        before, after = found["identity"]["tre_mm"], found["transform"]["tre_mm"]
        assert before["n"] == 40
        assert before["mean"] == pytest.approx(length.mean(), abs=1e-3)
        assert before["sd"] == pytest.approx(length.std(ddof=1), abs=1e-3)
        assert before["median"] == pytest.approx(np.median(length), abs=1e-3)
        assert before["percentile_95"] == pytest.approx(np.percentile(length, 95), abs=1e-3)
        assert before["hardest_30"] == pytest.approx(np.sort(length)[10:].mean(), abs=1e-3)
        assert after["maximum"] < 1e-3
        determinant = np.linalg.det(matrix)
        assert found["transform"]["sd_log_jacobian"] == pytest.approx(0, abs=1e-6), determinant
        assert found["transform"]["folding_percent"] == 0
    table = capsys.readouterr().out
    assert f"{length.mean():.2f}" in table and "TRE, mean of the hardest 30 (mm)" in table
    assert "40 points" in table


def test_overlap_and_distance_of_shifted_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A box of 120 x 105 x 136 mm, moved by 17 mm (2 voxels) along z: everything known by hand.

    Dice 1 - 17 / 136. Directed distances: 17 on one end face, from 0 to 17 on the strip beside it,
    less on the other end face, 0 elsewhere. More than 5 % of the surface (one end face is 17 %) lie
    17 mm off, so HD95 is 17.
    """
    pytest.importorskip("surface_distance")
    pair = scans(tmp_path)
    box = np.zeros(spaces.SHAPE, np.uint8)
    box[10:30, 8:23, 6:22] = 1
    moved = np.zeros_like(box)
    moved[10:30, 8:23, 8:24] = 1
    spaces.save(tmp_path / "f.nii.gz", Volume(box, spaces.grid()), spaces.ORIENTATIONS[5])
    affine = read_scan(pair["moving"]).volume.affine
    # Stored in the moving scan's frame; the transform's SHIFT brings it back by one voxel a step.
    spaces.save(tmp_path / "m.nii.gz", Volume(moved, affine), spaces.ORIENTATIONS[20])
    write_itk(tmp_path / "t.h5", affine_transform(MATRIX))
    found = evaluate(
        tmp_path,
        **pair,
        transform=tmp_path / "t.h5",
        fixed_mask=tmp_path / "f.nii.gz",
        moving_mask=tmp_path / "m.nii.gz",
    )["transform"]
    assert found["dice"] == pytest.approx(1 - 17 / 136, abs=1e-9)
    assert found["hausdorff95_mm"] == pytest.approx(17.0, abs=1e-6)
    # Of the box's surface: one end face (17 mm), the strip at it (8.5 mm on average), and the other
    # end face, which lies inside the moved box: min(17, distance to its sides) over 120 x 105 mm.
    x, y = np.meshgrid(np.linspace(0, 60, 601), np.linspace(0, 52.5, 526))
    inner = np.minimum(np.minimum(x, y), 17).mean()
    face, around = 120 * 105, 2 * (120 + 105)
    expected = (face * 17 + around * 17 * 8.5 + face * inner) / (2 * face + around * 136)
    # Voxel edges are bevelled in its surface, and the strips end between voxels: some per cent.
    assert found["mean_surface_mm"] == pytest.approx(expected, rel=0.06)
    assert "HD95 (mm)" in capsys.readouterr().out


def test_without_surface_distance_only_the_distances_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "surface_distance", None)
    box = Volume(np.pad(np.ones((4, 4, 4), np.uint8), 3), np.eye(4))
    found = transform.overlap(identity_transform(), box, box)
    assert found.dice == 1 and np.isnan(found.hausdorff95_mm)
    assert 'pip install "lmreg_jax[evaluate]"' in caplog.text


def test_regularity_and_labels(tmp_path: Path) -> None:
    """A map with folds in one half: seen by share, and only in the mask that covers it."""
    pair = scans(tmp_path)
    t = spaces.transform(peak_mm=90.0)
    write_itk(tmp_path / "t.h5", t)
    index = np.indices(spaces.SHAPE)
    labels = np.where(index[2] < 15, 1, 2).astype(np.uint8)
    for side in ("fixed", "moving"):
        volume = Volume(labels, read_scan(pair[side]).volume.affine)
        spaces.save(tmp_path / f"{side}_mask.nii.gz", volume)
    found = evaluate(
        tmp_path,
        **pair,
        transform=tmp_path / "t.h5",
        fixed_mask=tmp_path / "fixed_mask.nii.gz",
        moving_mask=tmp_path / "moving_mask.nii.gz",
    )
    assert 0 < found["transform"]["folding_percent"] == found["transform"]["folding_percent_mask"] < 50
    assert found["transform"]["sd_log_jacobian"] > 0.1
    assert set(found["identity"]["dice_labels"]) == {"1", "2"}
    assert found["identity"]["folding_percent"] == 0 and found["identity"]["sd_log_jacobian"] == 0


def test_fewer_than_30_points_have_no_hardest_30() -> None:
    few = transform.summarise({str(i): float(i) for i in range(29)})
    assert np.isnan(few.hardest_30) and few.maximum == 28
    assert transform.summarise({str(i): float(i) for i in range(40)}).hardest_30 == 24.5


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = scans(tmp_path)
    points = some_points(5)
    write_points(tmp_path / "p.csv", points)
    write_points(tmp_path / "others.csv", {f"q{i}": v for i, v in enumerate(points.values())})
    write_points(tmp_path / "far.csv", points | {"lost": np.array([900.0, 0, 0])})
    (tmp_path / "two.csv").write_text("20,15,12\n21,15,12\n", encoding="utf-8")
    (tmp_path / "three.csv").write_text("20,15,12\n21,15,12\n22,15,12\n", encoding="utf-8")
    volume = spaces.ct()
    spaces.save(tmp_path / "empty.nii.gz", Volume(0 * volume.data, volume.affine))
    spaces.save(tmp_path / "small.nii.gz", Volume(np.ones((9, 9, 9), np.uint8), volume.affine))
    small = (6, 6, 6)
    write_displacement(tmp_path / "d.nii.gz", affine_transform(MATRIX), small, spaces.grid(small))
    p = tmp_path / "p.csv"
    cases: list[tuple[str, dict[str, Any]]] = [
        ("nothing to evaluate", {}),
        ("--moving-landmarks is missing", {"fixed_landmarks": p}),
        ("--fixed-mask is missing", {"moving_mask": tmp_path / "small.nii.gz"}),
        ("no such image", {"fixed": tmp_path / "none.nii.gz", "transform": tmp_path / "none.h5"}),
        ("no such transform", {"transform": tmp_path / "none.h5"}),
        ("no name in common", {"fixed_landmarks": p, "moving_landmarks": tmp_path / "others.csv"}),
        ("(lost)", {"fixed_landmarks": tmp_path / "far.csv", "moving_landmarks": p}),
        (
            "must be as many",
            {"fixed_landmarks": tmp_path / "two.csv", "moving_landmarks": tmp_path / "three.csv"},
        ),
        (
            "the mask is empty",
            {"fixed_mask": tmp_path / "empty.nii.gz", "moving_mask": tmp_path / "empty.nii.gz"},
        ),
        (
            "on another grid",
            {"fixed_mask": tmp_path / "small.nii.gz", "moving_mask": tmp_path / "small.nii.gz"},
        ),
        (
            "ends before",
            {"fixed_landmarks": p, "moving_landmarks": p, "transform": tmp_path / "d.nii.gz"},
        ),
    ]
    for said, options in cases:
        assert said in refused(capsys, tmp_path, **{**pair, **options})


def test_existing_output_needs_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = scans(tmp_path)
    write_points(tmp_path / "p.csv", some_points(3))
    output = tmp_path / "figures.json"
    output.write_text("precious", encoding="utf-8")
    words = [f"--{side}={path}" for side, path in pair.items()]
    words += [f"--{side}-landmarks={tmp_path / 'p.csv'}" for side in pair]
    with pytest.raises(SystemExit):
        main(["evaluate", *words, f"--output={output}"])
    assert "--force" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == "precious"
