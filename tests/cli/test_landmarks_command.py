"""`lmreg landmarks`: points, table and picture of a folder of scans, and its refusals."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import pytest

from lmreg_jax.cli import landmarks
from lmreg_jax.errors import exits_cleanly
from lmreg_jax.io.nifti import write_volume
from lmreg_jax.io.points import read_points
from tests import airway_tubes


def lmreg(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    landmarks.add(parser.add_subparsers())
    args = parser.parse_args(["landmarks", *map(str, arguments), "--quiet"])
    exits_cleanly(landmarks.run)(args)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scans") / "chest.nii.gz"
    write_volume(path, airway_tubes.chest()[0])
    return path


@pytest.fixture(scope="module")
def folder(scan: Path) -> Path:
    """Results of one good scan and one broken one."""
    broken = scan.with_name("broken.nii.gz")
    broken.write_bytes(b"no image")
    with pytest.raises(SystemExit) as ended:
        lmreg(scan, broken, "--output", scan.parent / "out", "--format", "csv", "mrk.json", "fcsv")
    assert ended.value.code == 2  # one scan failed; the other one is done
    return scan.parent / "out"


def test_points_are_written_in_three_formats_and_agree_with_the_truth(folder: Path) -> None:
    points = read_points(folder / "chest.csv")
    for ending in ("mrk.json", "fcsv"):
        other = read_points(folder / f"chest.{ending}")
        assert list(other) == list(points)
        assert max(np.abs(other[n] - points[n]).max() for n in points) < 0.01
    for name, exact in airway_tubes.truth().items():
        assert np.linalg.norm(points[name] - exact) < 1.6, name
    header = (folder / "chest.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "name,x,y,z,confidence"


def test_the_table_names_what_was_not_found_and_why(folder: Path) -> None:
    with open(folder / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["scan"] for row in rows} == {"chest", "broken"}
    assert all(row["reason"] for row in rows if not row["x"])
    summary = (folder / "table.md").read_text(encoding="utf-8")
    assert "| chest |" in summary and "broken.nii.gz: not a readable" in summary


def test_the_picture_is_a_png(folder: Path) -> None:
    assert (folder / "chest.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "broken.png").exists()


def test_a_folder_that_exists_is_replaced_by_force_only(
    folder: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        lmreg(scan, "--output", folder)
    assert "exists already" in capsys.readouterr().err
    (folder / "own_notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit):
        lmreg(scan, "--output", folder, "--force")
    assert "own_notes.txt" in capsys.readouterr().err
    (folder / "own_notes.txt").unlink()


def test_wrong_values_and_scans_leave_nothing_behind(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        lmreg(scan, "--output", tmp_path / "out", "--confidence", 3)
    assert ended.value.code == 2 and "0 to 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        lmreg(tmp_path / "none.nii.gz", "--output", tmp_path / "out")
    assert "no such image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
