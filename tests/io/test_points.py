"""Point files of four kinds hold the same points; what is unclear about them is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import apply_affine
from lmreg_jax.io.points import check_points, holds_voxels, read_points, write_points
from lmreg_jax.io.read import read_scan
from lmreg_jax.io.scan import Scan
from tests import spaces

POINTS = {
    "carina": np.array([4.25, -12.5, 30.0]),
    "apex, left": np.array([-51.125, 3.0, 88.75]),
    "dome": np.array([48.0, -20.0, -61.5]),
}


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """Stored along other axes than RAS, oblique, anisotropic: voxel and mm are well apart."""
    volume = spaces.ct(affine=spaces.rotation((8, 3, -12)) @ spaces.grid())
    return read_scan(spaces.save(tmp_path / "scan.nii.gz", volume, spaces.ORIENTATIONS[38]))


@pytest.mark.parametrize("name", ["p.csv", "p.fcsv", "p.mrk.json"])
def test_written_points_are_read_again(name: str, tmp_path: Path) -> None:
    write_points(tmp_path / name, POINTS)
    again = read_points(tmp_path / name)
    assert list(again) == list(POINTS)
    for key, point in POINTS.items():
        np.testing.assert_allclose(again[key], point, atol=1e-4)
    assert not holds_voxels(tmp_path / name)


def test_slicer_files_are_in_lps(tmp_path: Path) -> None:
    """As Slicer writes and reads them: the signs of x and y differ from ours."""
    write_points(tmp_path / "p.fcsv", POINTS)
    lines = (tmp_path / "p.fcsv").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "# CoordinateSystem = LPS"
    assert lines[3].split(",")[1:4] == ["-4.2500", "12.5000", "30.0000"]
    write_points(tmp_path / "p.mrk.json", POINTS)
    markup = json.loads((tmp_path / "p.mrk.json").read_text(encoding="utf-8"))["markups"][0]
    assert markup["coordinateSystem"] == "LPS" and markup["type"] == "Fiducial"
    assert markup["controlPoints"][0] == {
        "id": "1",
        "label": "carina",
        "position": [-4.25, 12.5, 30.0],
    }


@pytest.mark.parametrize(
    ("system", "signs"), [("RAS", (1, 1)), ("0", (1, 1)), ("LPS", (-1, -1)), ("1", (-1, -1))]
)
def test_slicers_coordinate_system_is_obeyed(system: str, signs: Any, tmp_path: Path) -> None:
    """A file as Slicer 4.6 to 5 leave it, ids and labels, commas in quotes."""
    text = (
        "# Markups fiducial file version = 4.11\n"
        f"# CoordinateSystem = {system}\n"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        'vtkMRMLMarkupsFiducialNode_0,10.5,-20,30,0,0,0,1,1,1,0,"F, 1",,\n'
        "vtkMRMLMarkupsFiducialNode_1,1,2,3,0,0,0,1,1,1,0,F-2,,\n"
    )
    (tmp_path / "p.fcsv").write_text(text, encoding="utf-8")
    points = read_points(tmp_path / "p.fcsv")
    assert list(points) == ["F, 1", "F-2"]
    np.testing.assert_allclose(points["F, 1"], [10.5 * signs[0], -20 * signs[1], 30])
    if system.isdigit():
        return
    control = [
        {"id": "1", "label": "a", "position": [10.5, -20, 30], "positionStatus": "defined"},
        {"id": "2", "label": "gone", "position": [0, 0, 0], "positionStatus": "undefined"},
    ]
    markups = {"markups": [{"coordinateSystem": system, "controlPoints": control}]}
    (tmp_path / "p.mrk.json").write_text(json.dumps(markups), encoding="utf-8")
    points = read_points(tmp_path / "p.mrk.json")
    assert list(points) == ["a"]
    np.testing.assert_allclose(points["a"], [10.5 * signs[0], -20 * signs[1], 30])


def test_voxels_count_the_axes_as_stored(scan: Scan, tmp_path: Path) -> None:
    """The stored array's value at the voxel is the RAS image's value at the point."""
    voxels = np.array([[20, 10, 15], [9.5, 22, 11.25], [17, 15, 20]])
    text = "".join(",".join(f"{v:g}" for v in row) + "\n" for row in voxels)
    (tmp_path / "l2r.csv").write_text(text, encoding="utf-8")
    assert holds_voxels(tmp_path / "l2r.csv")
    points = read_points(tmp_path / "l2r.csv", scan)
    assert list(points) == ["1", "2", "3"]
    index = np.rint(apply_affine(np.linalg.inv(scan.volume.affine), points["1"])).astype(int)
    assert scan.volume.data[tuple(index)] == scan.to_native(scan.volume.data)[20, 10, 15]
    write_points(tmp_path / "again.csv", points, scan, "voxel")
    np.testing.assert_allclose(np.loadtxt(tmp_path / "again.csv", delimiter=","), voxels, atol=1e-4)
    write_points(tmp_path / "named.csv", POINTS, scan, "voxel")
    again = read_points(tmp_path / "named.csv", scan, "voxel")
    for key, point in POINTS.items():
        np.testing.assert_allclose(again[key], point, atol=1e-3)
    (tmp_path / "header.csv").write_text("x,y,z\n" + text, encoding="utf-8")
    same = read_points(tmp_path / "header.csv", scan, "voxel")
    np.testing.assert_allclose(same["2"], points["2"])
    as_mm = read_points(tmp_path / "header.csv", unit="mm")
    np.testing.assert_allclose(as_mm["2"], [9.5, 22, 11.25])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", "x,y,z\n1,2,3\n", "could be mm or voxels"),
        ("p.csv", "1,2,3\n", "name the image"),
        ("p.csv", "name,x,y\na,1,2\n", "column z is missing"),
        ("p.csv", "name,x,y,z\na,1,2,nan\n", "three finite numbers"),
        ("p.csv", "", "missing"),
        ("p.fcsv", "1,2,3,4\n", "coordinate system not given"),
        ("p.fcsv", "# CoordinateSystem = XYZ\n1,2,3,4\n", "coordinate system XYZ"),
        ("p.fcsv", "# CoordinateSystem = LPS\n1,2,x,4\n", "line 2"),
        ("p.fcsv", "# CoordinateSystem = LPS\na,1,2,3\na,1,2,3\n", "'a' is there twice"),
        ("p.mrk.json", "{}", "not a Slicer markups file"),
        ("p.mrk.json", '{"markups": []}', "no points"),
        ("p.mrk.json", "[1", "not a Slicer markups file"),
        ("p.txt", "1 2 3", "not a kind of points"),
    ],
)
def test_unclear_files_are_refused(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said) as caught:
        read_points(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["p.csv", "p.fcsv", "p.mrk.json"])
def test_a_missing_file_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{name}: no such"):
        read_points(tmp_path / name)


def test_voxels_are_for_csv_only(scan: Scan, tmp_path: Path) -> None:
    write_points(tmp_path / "p.fcsv", POINTS)
    with pytest.raises(InputError, match="says itself"):
        read_points(tmp_path / "p.fcsv", scan, "voxel")
    with pytest.raises(InputError, match="written as"):
        write_points(tmp_path / "p.json", POINTS)


def test_points_in_lps_are_told_from_points_elsewhere(tmp_path: Path) -> None:
    """A scan off to one side of the scanner's origin: there the mix-up can be seen."""
    affine, shift = spaces.grid(), np.array([150.0, 210, 0])
    volume = spaces.ct(affine=affine)
    moved = affine.copy()
    moved[:3, 3] += shift  # body and all: nothing of it is left where its mirror image lies
    scan = read_scan(spaces.save(tmp_path / "s.nii.gz", volume._replace(affine=moved)))
    right = {name: point + shift for name, point in POINTS.items()}
    check_points("p.csv", right, scan)
    mirrored = {name: point * spaces.LPS_SIGNS for name, point in right.items()}
    with pytest.raises(InputError, match=r"p\.csv: 100 % of the points lie outside.*LPS"):
        check_points("p.csv", mirrored, scan)
    top = affine[:3, 3] + shift + 20  # in the frame, in the air beside the body, mirrored elsewhere
    in_air = {"a": top, "b": top + 5, "c": top + 9}
    with pytest.raises(InputError, match=r"100 % of the points lie outside the body"):
        check_points("p.csv", in_air, scan)
    lost = right | {"far": np.array([900.0, 0, 0])}
    with pytest.raises(InputError, match=r"1 of 4 points lie outside .*\(far\)"):
        check_points("p.csv", lost, scan)
