"""`lmreg register --pairs`: many pairs, what is refused, and a run that goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lmreg_jax.cli.batch import read_pairs
from lmreg_jax.cli.main import main
from lmreg_jax.errors import InputError
from lmreg_jax.io.nifti import write_volume
from lmreg_jax.report.summary import write_summary
from tests.tiny_cohort import random_pull, subject


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for name, seed in (("a", 0), ("b", 1)):
        ct, lungs, _ = subject(random_pull(seed, float(seed)))
        write_volume(folder / f"{name}.nii.gz", ct)
        write_volume(folder / f"{name}_lungs.nii.gz", lungs)
    (folder / "no_ct.nii.gz").write_bytes(b"no image")
    rows = ["a.nii.gz,b.nii.gz,,a_lungs.nii.gz,b_lungs.nii.gz", "a.nii.gz,no_ct.nii.gz,broken,,"]
    head = "fixed,moving,name,fixed_mask,moving_mask"
    (folder / "pairs.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return folder


def register(study: Path) -> None:
    words = ["register", "--pairs", str(study / "pairs.csv"), "--output", str(study / "out"), "--quiet"]
    main([*words, "--model", "none", "--refine", "0", "--guidance", "none", "--affine", "moments"])


def test_a_pair_that_fails_is_told_and_the_others_go_on(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        register(study)
    assert stopped.value.code == 2
    assert "1 of 2 pairs failed" in capsys.readouterr().err
    report = study / "out" / "b_onto_a" / "report.json"
    assert json.loads(report.read_text(encoding="utf-8"))["method"] == "affine"
    with (study / "out" / "summary.csv").open(encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["broken"]["verdict"] == "failed" and "no_ct.nii.gz" in rows["broken"]["reasons"]
    assert rows["b_onto_a"]["verdict"] == "check" and float(rows["b_onto_a"]["lung_dice"]) > 0.8
    page = (study / "out" / "summary.html").read_text(encoding="utf-8")
    assert 'href="b_onto_a/report.html"' in page and "1 failed" in page
    # Again: what lies there is kept.
    before = report.stat().st_mtime_ns
    with pytest.raises(SystemExit):
        register(study)
    assert report.stat().st_mtime_ns == before and not (study / "out" / "broken").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixed,moving\n", "no pairs"),
        ("fixed\na.nii.gz\n", "column moving is missing"),
        ("fixed,moving,mask\na.nii.gz,b.nii.gz,\n", "column mask: expected"),
        ("fixed,moving\na.nii.gz,c.nii.gz\n", "line 2: moving .*c.nii.gz: no such file"),
        ("fixed,moving\na.nii.gz,\n", "line 2: moving is empty"),
        ("fixed,moving\na.nii.gz,b.nii.gz\na.nii.gz,b.nii.gz\n", "line 3: .* twice"),
        ("fixed,moving,name\na.nii.gz,b.nii.gz,../x\n", "name of a folder"),
        ("fixed,moving,fixed_landmarks\na.nii.gz,b.nii.gz,pairs.csv\n", "landmarks of one scan only"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(study: Path, text: str, message: str) -> None:
    (study / "other.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_pairs(study / "other.csv")


def test_pairs_and_scans_beside_each_other_are_refused(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["a.nii.gz", "b.nii.gz", "--pairs", "x.csv"], ["a.nii.gz"]):
        with pytest.raises(SystemExit) as stopped:
            main(["register", *words, "--output", str(study / "new")])
        assert stopped.value.code == 2
        assert "--pairs" in capsys.readouterr().err


def test_the_worst_comes_first_and_names_are_escaped(tmp_path: Path) -> None:
    def report(verdict: str, airway: float) -> dict[str, object]:
        return {"verdict": verdict, "reasons": ["<b>"], "judged_by": {"airway_mm": airway}}

    reports = {"x": report("good", 1.0), "<y>": report("poor", 9.0), "z": report("good", 2.0)}
    write_summary(tmp_path, reports, {})
    lines = (tmp_path / "summary.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["<y>", "z", "x"]
    page = (tmp_path / "summary.html").read_text(encoding="utf-8")
    assert "<y>" not in page and "&lt;y&gt;" in page and 'href="%3Cy%3E/report.html"' in page
