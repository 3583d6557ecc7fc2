"""`lmreg warp` as a user types it: known motions in mm, every format, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import nibabel as nib
import numpy as np
import pytest

from lmreg_jax.cli.main import main
from lmreg_jax.imaging.transforms import affine_transform, transform_points
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.points import read_points, write_points
from lmreg_jax.io.read import read_scan
from lmreg_jax.io.transforms import write_displacement, write_itk
from tests import spaces

pytest.importorskip("SimpleITK")  # reads and writes the transforms

POINTS = {
    "carina": np.array([4.0, -12.0, 20.0]),
    "left": np.array([-51.0, 3.0, 38.0]),
    "right": np.array([48.0, -20.0, -41.0]),
    "top": np.array([10.0, 8.0, 60.0]),
}


class Pair(NamedTuple):
    """Paths of a fixed and a moving scan, stored in different ways, and of their transform."""

    fixed: Path
    moving: Path
    transform: Path


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Two scans, oblique and anisotropic, along different axes; transform.h5 between them."""
    fixed = spaces.ct(affine=spaces.rotation((6, -4, 9)) @ spaces.grid())
    moving = spaces.ct((44, 36, 28), spaces.grid((44, 36, 28), (5.5, 7.5, 9)), seed=1)
    write_itk(tmp_path / "transform.h5", spaces.transform())
    return Pair(
        spaces.save(tmp_path / "fixed.nii.gz", fixed, spaces.ORIENTATIONS[41]),
        spaces.save(tmp_path / "moving.nii.gz", moving, spaces.ORIENTATIONS[12]),
        tmp_path / "transform.h5",
    )


def warp(**options: Any) -> None:
    """lmreg warp --NAME VALUE ...; True is a flag."""
    words = ["warp"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    main(words)


def refused(capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    """The one line with which the command ends, exit status 2."""
    with pytest.raises(SystemExit) as caught:
        warp(**options)
    assert caught.value.code == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and "\n" not in line
    return line


def translation(x: float, y: float, z: float) -> spaces.Array:
    out = np.eye(4)
    out[:3, 3] = x, y, z
    return out


KNOWN = {
    "7 mm to the right, 11 back, 13 up": (translation(7, -11, 13), [17, 9, 43]),
    "30 degrees from right to front": (
        spaces.rotation((0, 0, 30)),
        [10 * np.sqrt(0.75) - 20 * 0.5, 10 * 0.5 + 20 * np.sqrt(0.75), 30],
    ),
    "a tenth wider, a fifth flatter, half as high": (np.diag([1.1, 0.8, 0.5, 1]), [11, 16, 15]),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("kind", ["transform.h5", "transform.tfm", "field.nii.gz"])
def test_known_motions_have_their_sign_axis_and_unit(name: str, kind: str, tmp_path: Path) -> None:
    """RAS mm (10, 20, 30): 10 mm to the right, 20 to the front, 30 to the head."""
    matrix, expected = KNOWN[name]
    t = affine_transform(matrix)
    if kind == "field.nii.gz":
        write_displacement(tmp_path / kind, t, spaces.SHAPE, spaces.grid())
    else:
        write_itk(tmp_path / kind, t)
    (tmp_path / "in.csv").write_text("name,x,y,z\na,10,20,30\n", encoding="utf-8")
    warp(points=tmp_path / "in.csv", transform=tmp_path / kind, output=tmp_path / "out.csv")
    found = read_points(tmp_path / "out.csv")["a"]
    np.testing.assert_allclose(found, expected, atol=2e-3)  # the field is rounded to 1/1024 mm
    warp(
        points=tmp_path / "out.csv",
        transform=tmp_path / kind,
        output=tmp_path / "back.mrk.json",
        inverse=True,
    )
    back = read_points(tmp_path / "back.mrk.json")["a"]
    np.testing.assert_allclose(back, [10, 20, 30], atol=5e-3)


def test_a_bright_spot_lands_where_its_point_lands(pair: Pair, tmp_path: Path) -> None:
    """Images are pulled, points are pushed: a spot of the moving scan appears at the fixed point."""
    fixed_point = POINTS["left"]
    moving = read_scan(pair.moving)
    target = transform_points(spaces.transform(), fixed_point)
    index = np.indices(moving.shape).reshape(3, -1).T
    distance = np.linalg.norm(apply_affine(moving.affine, index) - target, axis=1)
    spot = (1000 * np.exp(-((distance / 18) ** 2))).reshape(moving.shape).astype(np.float32)
    nib.save(nib.Nifti1Image(spot, moving.affine), tmp_path / "spot.nii.gz")
    warp(
        image=tmp_path / "spot.nii.gz",
        transform=pair.transform,
        reference=pair.fixed,
        output=tmp_path / "out.nii.gz",
    )
    out, fixed = read_scan(tmp_path / "out.nii.gz"), read_scan(pair.fixed)
    assert out.shape == fixed.shape and out.dtype == np.float32
    np.testing.assert_allclose(out.affine, fixed.affine, atol=1e-3)
    data = out.to_native(out.volume.data).astype(float)
    mm = apply_affine(out.affine, np.indices(out.shape).reshape(3, -1).T)
    weight = (data * (data > 200)).ravel()
    centre = weight @ mm / weight.sum()
    # The stretched spot is not quite symmetric; a wrong sign or axis would be off by 10 mm and more.
    np.testing.assert_allclose(centre, fixed_point, atol=2.0)


def test_image_keeps_type_and_air(pair: Pair, tmp_path: Path) -> None:
    warp(image=pair.moving, transform=pair.transform, reference=pair.fixed, output=tmp_path / "o.nii.gz")
    out = read_scan(tmp_path / "o.nii.gz")
    assert out.dtype == np.int16 and out.volume.data.min() == -1000
    assert np.mean(out.volume.data > -200) > 0.05


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_labels_there_and_back(mode: str, pair: Pair, tmp_path: Path) -> None:
    """No new label, the type kept; with --inverse back onto the moving grid, nearly as it was."""
    moving = read_scan(pair.moving)
    index = np.indices(moving.shape).reshape(3, -1).T
    mm = apply_affine(moving.affine, index).reshape(*moving.shape, 3)
    labels = np.zeros(moving.shape, np.uint8)
    labels[np.linalg.norm(mm - [-40, 0, 0], axis=-1) < 40] = 3
    labels[np.linalg.norm(mm - [50, 0, 0], axis=-1) < 40] = 200
    nib.save(nib.Nifti1Image(labels, moving.affine), tmp_path / "labels.nii.gz")
    common = {"transform": pair.transform, "label_mode": mode}
    warp(
        labels=tmp_path / "labels.nii.gz",
        reference=pair.fixed,
        output=tmp_path / "there.nii.gz",
        **common,
    )
    there = read_scan(tmp_path / "there.nii.gz")
    assert set(np.unique(there.volume.data)) == {0, 3, 200} and there.dtype == np.uint8
    warp(
        labels=tmp_path / "there.nii.gz",
        reference=pair.moving,
        output=tmp_path / "back.nii.gz",
        inverse=True,
        **common,
    )
    back = np.asarray(nib.load(tmp_path / "back.nii.gz").dataobj)  # type: ignore[attr-defined]
    for value in (3, 200):
        both = 2 * np.sum((back == value) & (labels == value))
        # Twice resampled at 5 to 9 mm a voxel, on a ball of 40 mm.
        assert both / (np.sum(back == value) + np.sum(labels == value)) > 0.9


@pytest.mark.parametrize("name", ["p.csv", "p.fcsv", "p.mrk.json"])
def test_point_formats(name: str, pair: Pair, tmp_path: Path) -> None:
    write_points(tmp_path / name, POINTS)
    warp(
        points=tmp_path / name,
        transform=pair.transform,
        source=pair.fixed,
        output=tmp_path / f"out_{name}",
    )
    out = read_points(tmp_path / f"out_{name}")
    expected = transform_points(spaces.transform(), np.array(list(POINTS.values())))
    np.testing.assert_allclose(np.array(list(out.values())), expected, atol=1e-3)
    assert list(out) == list(POINTS)


def test_voxel_points_go_from_stored_voxel_to_stored_voxel(pair: Pair, tmp_path: Path) -> None:
    fixed, moving = read_scan(pair.fixed), read_scan(pair.moving)
    voxels = apply_affine(np.linalg.inv(fixed.affine), np.array(list(POINTS.values())))
    np.savetxt(tmp_path / "in.csv", voxels, delimiter=",", fmt="%.6f")
    options = {"transform": pair.transform, "source": pair.fixed, "reference": pair.moving}
    warp(points=tmp_path / "in.csv", output=tmp_path / "out.csv", **options)
    found = apply_affine(moving.affine, np.loadtxt(tmp_path / "out.csv", delimiter=","))
    expected = transform_points(spaces.transform(), np.array(list(POINTS.values())))
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_existing_output_needs_force(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_points(tmp_path / "in.csv", POINTS)
    (tmp_path / "out.csv").write_text("precious", encoding="utf-8")
    options = {"points": tmp_path / "in.csv", "transform": pair.transform, "output": tmp_path / "out.csv"}
    assert "--force" in refused(capsys, **options)
    assert (tmp_path / "out.csv").read_text(encoding="utf-8") == "precious"
    warp(**options, force=True)
    assert len(read_points(tmp_path / "out.csv")) == len(POINTS)


def test_bad_input_is_one_line_and_leaves_nothing(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    write_points(tmp_path / "in.csv", POINTS)
    (tmp_path / "l2r.csv").write_text("1,2,3\n", encoding="utf-8")
    write_points(tmp_path / "far.csv", POINTS | {"lost": np.array([2000.0, 0, 0])})
    write_displacement(tmp_path / "d.nii.gz", spaces.transform(), spaces.SHAPE, spaces.grid())
    away = affine_transform(translation(5000, 0, 0))
    write_itk(tmp_path / "away.h5", away)
    soft = Volume(np.full(spaces.SHAPE, 0.5, np.float32), spaces.grid())
    spaces.save(tmp_path / "soft.nii.gz", soft)
    image = {"image": pair.moving, "reference": pair.fixed, "transform": pair.transform}
    points = {"points": tmp_path / "in.csv", "transform": pair.transform}
    out, csv = folder / "o.nii.gz", folder / "o.csv"
    cases: list[tuple[str, dict[str, Any]]] = [
        ("no such transform", image | {"transform": tmp_path / "none.h5", "output": out}),
        ("no such image", image | {"image": tmp_path / "none.nii.gz", "output": out}),
        ("no such image", image | {"reference": tmp_path / "none.nii.gz", "output": out}),
        ("nothing of it lies on", image | {"transform": tmp_path / "away.h5", "output": out}),
        ("written are .nii", image | {"output": folder / "o.mha"}),
        ("--reference is missing", {k: v for k, v in image.items() if k != "reference"} | {"output": out}),
        ("with fractions", {**image, "output": out, "labels": tmp_path / "soft.nii.gz"}),
        ("no such table", points | {"points": tmp_path / "none.csv", "output": csv}),
        ("--source", points | {"points": tmp_path / "l2r.csv", "output": csv}),
        ("(lost)", points | {"points": tmp_path / "far.csv", "source": pair.fixed, "output": csv}),
        (
            "ends before 1 of 5 points (lost)",
            {"points": tmp_path / "far.csv", "transform": tmp_path / "d.nii.gz", "output": csv},
        ),
        ("written are .csv", points | {"output": folder / "o.txt"}),
    ]
    for said, options in cases:
        if "labels" in options:
            del options["image"]
        assert said in refused(capsys, **options)
    assert list(folder.iterdir()) == []


def test_no_memory_and_no_disk_are_said(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"image": pair.moving, "reference": pair.fixed, "transform": pair.transform}

    def fail(error: BaseException) -> Any:
        def raises(*_: Any, **__: Any) -> None:
            raise error

        return raises

    folder = tmp_path / "results"
    monkeypatch.setattr("lmreg_jax.imaging.transforms.warp_image", fail(MemoryError()))
    assert "out of memory" in refused(capsys, **options, output=folder / "o.nii.gz")
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
    monkeypatch.setattr("lmreg_jax.imaging.transforms.warp_image", fail(full))
    assert "out of memory" in refused(capsys, **options, output=folder / "o.nii.gz")
    monkeypatch.setattr("lmreg_jax.imaging.transforms.warp_image", fail(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        refused(capsys, **options, output=folder / "o.nii.gz")
    monkeypatch.undo()
    monkeypatch.setattr("lmreg_jax.io.nifti_stream._write_gzip", fail(OSError(28, "No space left on device")))
    assert "No space left" in refused(capsys, **options, output=folder / "o.nii.gz")
    assert not folder.exists() or list(folder.iterdir()) == []


def test_help_states_the_direction(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["warp", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "images and labels of the MOVING scan are brought onto the FIXED scan's grid" in text
    assert "points of the FIXED scan are taken to the MOVING scan" in text
    assert "example:" in text
