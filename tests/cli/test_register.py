"""`lmreg register` from files to files: what it writes agrees with SimpleITK, bad input ends in one line."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lmreg_jax.cli import register
from lmreg_jax.errors import exits_cleanly
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.io.nifti import read_volume, write_volume
from lmreg_jax.io.points import write_points
from lmreg_jax.model.weights import checksum
from lmreg_jax.report.output import FILES
from tests.tiny_cohort import GRID, random_pull, subject


def lmreg(*arguments: object) -> None:
    """The subcommand as the command runs it."""
    parser = argparse.ArgumentParser()
    register.add(parser.add_subparsers())
    args = parser.parse_args(["register", *map(str, arguments), "--quiet"])
    exits_cleanly(register.run)(args)


def marked(fixed: Path, moving: Path) -> list[object]:
    """The options that name landmarks."""
    return ["--fixed-landmarks", fixed, "--moving-landmarks", moving]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """f and m: CT, lungs and landmarks; f is stored left-posterior-inferior, m as float32."""
    root = tmp_path_factory.mktemp("scans")
    for name, pull in (("f", np.eye(4)), ("m", random_pull(5, 1.5))):
        ct, lungs, landmarks = subject(pull)
        noise = np.random.default_rng(len(name)).normal(0, 10, ct.data.shape)
        data = (ct.data + noise).astype(np.int16 if name == "f" else np.float32)
        if name == "f":
            data, labels = data[::-1, ::-1, ::-1], lungs.data[::-1, ::-1, ::-1]
            flip = np.diag([-1.0, -1.0, -1.0, 1.0])
            flip[:3, 3] = np.array(ct.data.shape) - 1
            affine = ct.affine @ flip
        else:
            labels, affine = lungs.data, ct.affine
        write_volume(root / f"{name}.nii.gz", Volume(np.ascontiguousarray(data), affine))
        write_volume(root / f"{name}_lungs.nii.gz", Volume(np.ascontiguousarray(labels), affine))
        write_points(root / f"{name}.csv", landmarks)
    return root


@pytest.fixture(scope="module")
def aligned(scans: Path) -> Path:
    """The results of one run with masks, landmarks and a little refinement."""
    lmreg(
        *(
            scans / "f.nii.gz",
            scans / "m.nii.gz",
            "--output",
            scans / "out",
            "--affine",
            "moments",
            "--model",
            "none",
        ),
        *("--fixed-mask", scans / "f_lungs.nii.gz", "--moving-mask", scans / "m_lungs.nii.gz"),
        *("--fixed-landmarks", scans / "f.csv", "--moving-landmarks", scans / "m.csv", "--refine", 4),
        *("--save", "displacement", "jacobian", "uncertainty"),
    )
    return scans / "out"


def test_all_files_lie_on_the_right_grids(scans: Path, aligned: Path) -> None:
    pytest.importorskip("SimpleITK")
    assert sorted(path.name for path in aligned.iterdir()) == sorted(FILES)
    assert not list(scans.glob(".writing*"))
    fixed, moving = nib.load(scans / "f.nii.gz"), nib.load(scans / "m.nii.gz")
    for name in ("warped", "jacobian", "uncertainty", "displacement"):
        image = nib.load(aligned / f"{name}.nii.gz")
        assert image.shape[:3] == fixed.shape
        np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-4)
    assert nib.load(aligned / "warped.nii.gz").get_data_dtype() == moving.get_data_dtype()
    inverse = nib.load(aligned / "inverse_displacement.nii.gz")
    assert inverse.shape == (*moving.shape, 1, 3)
    np.testing.assert_allclose(inverse.affine, moving.affine, atol=1e-4)


def test_simpleitk_gives_the_same_image_and_points(scans: Path, aligned: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    fixed, moving = (sitk.ReadImage(str(scans / f"{n}.nii.gz"), sitk.sitkFloat32) for n in "fm")
    transform = sitk.ReadTransform(str(aligned / "transform.h5"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkLinear, -1000.0))
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(aligned / "warped.nii.gz")))
    lungs = sitk.GetArrayFromImage(sitk.ReadImage(str(scans / "f_lungs.nii.gz"))) > 0
    assert np.abs(ours - theirs)[lungs].mean() < 1.0
    field = sitk.GetArrayFromImage(sitk.ReadImage(str(aligned / "displacement.nii.gz")))
    back = sitk.ReadTransform(str(aligned / "inverse_transform.h5"))
    for index in np.argwhere(lungs)[::400][:, ::-1].tolist():
        point = fixed.TransformIndexToPhysicalPoint(index)
        there = transform.TransformPoint(point)
        # Dense fields are rounded to 1/1024 mm.
        np.testing.assert_allclose(np.add(point, field[tuple(index[::-1])]), there, atol=2e-3)
        np.testing.assert_allclose(back.TransformPoint(there), point, atol=0.2)


def test_report_tells_what_was_done(aligned: Path) -> None:
    report = json.loads((aligned / "report.json").read_text(encoding="utf-8"))
    assert report["method"] == "affine, refinement"
    assert report["dice"]["both"]["after"] > 0.85
    assert set(report["dice"]) == {"both", "left", "right"}
    # The subjects are affine images of each other: the affine step alone brings landmarks home.
    assert report["landmarks"]["mean_mm"]["affine"] < 4 < report["landmarks"]["mean_mm"]["scanner"]
    assert report["regularity"]["folding_percent"] == 0
    refinement = report["refinement"]
    assert refinement["objective_after"]["total"] <= refinement["objective_before"]["total"]
    assert report["scans"]["fixed"]["litres"][1] > 1
    assert "no model" in " ".join(report["notes"])
    page = (aligned / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing that would have to be fetched


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        ("smooth", ("ssd", 100, 0.05)),
        ("correlation", ("lncc5", 100, 0.1)),
        ("trained", ("ssd", 10, 0.03)),
    ],
)
def test_with_the_shipped_network_and_a_refinement_around_it(
    objective: str, weights: tuple[str, float, float], scans: Path, tmp_path: Path
) -> None:
    """Names with dollar signs, too: they are names, no formulas."""
    f, m = (tmp_path / name for name in ("a$b_c$.nii.gz", r"$\nofoo$.nii.gz"))
    f.symlink_to(scans / "f.nii.gz")
    m.symlink_to(scans / "m.nii.gz")
    options = ("--affine", "moments", "--refine", 1, "--refine-around", "network")
    options += ("--refine-objective", objective, "--save", "uncertainty")
    masks = ("--fixed-mask", scans / "f_lungs.nii.gz", "--moving-mask", scans / "m_lungs.nii.gz")
    lmreg(f, m, "--output", tmp_path / "out", *options, *masks)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["method"] == "affine, network, refinement around it"
    assert re.fullmatch("[0-9a-f]{64}", report["model"]["sha256"])
    assert set(report["dice"]["both"]) == {"affine", "network", "after"}
    done = report["refinement"]
    assert (done["steps"], done["around"]) == (1, "network")
    assert (done["image"], done["lambda"], done["image_sigma"]) == weights
    assert done["objective_before"]["prior"] == 0
    assert done["objective_after"]["total"] <= done["objective_before"]["total"]
    assert report["motion"]["refinement"]["mean_mm"] >= 0
    assert report["regularity"]["folding_percent"] == 0
    lungs = np.asarray(nib.load(scans / "f_lungs.nii.gz").dataobj) > 0
    assert (np.asarray(nib.load(tmp_path / "out" / "uncertainty.nii.gz").dataobj)[lungs] > 0).all()


def test_bad_input_ends_in_one_line_and_status_2(
    scans: Path, aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    f, m = scans / "f.nii.gz", scans / "m.nii.gz"
    new = tmp_path / "new"
    write_points(tmp_path / "far.csv", {"a": np.array([900.0, 0.0, 0.0]), "b": np.array([0.0, 0.0, 0.0])})
    write_points(tmp_path / "other.csv", {"z": np.array([0.0, 0.0, 0.0])})
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work", encoding="utf-8")
    cases = [
        ([f, m, "--output", aligned], "exists already.*--force"),
        ([f, m, "--output", tmp_path / "foreign", "--force"], "thesis.tex.*did not write"),
        ([f, f, "--output", new], "one and the same"),
        ([f, m, "--output", new, "--refine", -1], "0 or more"),
        ([f, m, "--output", new, "--refine", 0, "--refine-around", "network"], "--refine N"),
        ([f, m, "--output", new, "--refine", 0, "--refine-objective", "trained"], "--refine N"),
        ([f, m, "--output", new, "--refine", 0, "--refine-objective", "correlation"], "--refine N"),
        ([f, m, "--output", new, "--refine", 2, "--refine-around", "network", "--model", "none"], "a model"),
        ([f, m, "--output", new, "--fixed-landmarks", scans / "f.csv"], "belong together"),
        ([f, m, "--output", new, "--guidance", "given"], "--fixed-landmarks and"),
        ([f, tmp_path / "none.nii.gz", "--output", new], "no such image"),
        ([f, m, "--output", new, "--model", tmp_path], "config.json"),
        ([f, scans / "f_lungs.nii.gz", "--output", new], "no CT in HU"),
        (
            [f, m, "--output", new, "--fixed-mask", scans / "f_lungs.nii.gz", "--moving-mask", m],
            "fractions|negative",
        ),
        (
            [f, m, "--output", new, *marked(tmp_path / "far.csv", scans / "m.csv")],
            "1 of 2 points lie outside",
        ),
        (
            [f, m, "--output", new, *marked(scans / "f.csv", tmp_path / "other.csv")],
            "share no landmark name",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(SystemExit) as stopped:
            lmreg(*arguments)
        assert stopped.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert re.search(message, error), error
        assert not new.exists()
    assert (tmp_path / "foreign" / "thesis.tex").exists()
    assert not [p for p in (*tmp_path.iterdir(), *scans.iterdir()) if p.name.startswith(".writing")]


def test_without_simpleitk_dense_fields_take_the_place_of_the_h5_files(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)  # import raises ImportError
    monkeypatch.setenv("LMREG_MODEL", "none")
    options = ("--affine", "moments", "--refine", 0, "--save", "uncertainty")
    lmreg(scans / "f.nii.gz", scans / "m.nii.gz", "--output", tmp_path / "out", *options)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == set(FILES) - {"transform.h5", "inverse_transform.h5", "jacobian.nii.gz"}
    said = capsys.readouterr()
    assert 'pip install "lmreg_jax[itk]"' in said.err
    assert "affine alignment only" in said.err
    uncertainty = read_volume(tmp_path / "out" / "uncertainty.nii.gz").data
    assert (uncertainty == -1).all()  # nothing is known of an affine step's error


def test_checksum_depends_on_values_and_names_only() -> None:
    params = {"a": np.arange(3.0, dtype=np.float32), "b": {"c": np.ones((2, 2), np.float32)}}
    same = {"b": {"c": np.ones((2, 2), np.float32)}, "a": np.arange(3.0, dtype=np.float32)}
    other = {"a": np.arange(3.0, dtype=np.float32), "b": {"c": np.full((2, 2), 2, np.float32)}}
    assert checksum(params) == checksum(same) != checksum(other)


def test_grid_of_the_synthetic_scans_is_as_assumed(scans: Path) -> None:
    assert nib.aff2axcodes(nib.load(scans / "f.nii.gz").affine) == ("L", "P", "I")
    np.testing.assert_allclose(read_volume(scans / "f.nii.gz").affine, GRID, atol=1e-4)
