"""Where results go: nobody's files are touched, nothing done is lost, and the place is tried first."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lmreg_jax.cli import host, register
from lmreg_jax.errors import InputError, exits_cleanly
from lmreg_jax.imaging.transforms import affine_transform
from lmreg_jax.io import outputs, tables
from lmreg_jax.io.outputs import check_output, new_file, new_folder, resolved
from lmreg_jax.io.tables import replacing
from lmreg_jax.io.transforms import read_transform, write_itk
from lmreg_jax.report import output as report
from lmreg_jax.report.drawing import attempt, printable
from lmreg_jax.report.page import page

KNOWN = ("a.txt", "b.txt", "images/*.png")


def write(output: Path, text: str, *, force: bool = False) -> None:
    """What a command does: two files and one in a folder."""
    with new_folder(output, force=force, known=KNOWN) as folder:
        (folder / "images").mkdir()
        for name in ("a.txt", "b.txt", "images/c.png"):
            (folder / name).write_text(text, encoding="utf-8")


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in files}


def results(text: str) -> dict[str, str]:
    return dict.fromkeys(("a.txt", "b.txt", "images/c.png"), text)


def test_a_new_folder_appears_whole_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(OSError, match="full"), new_folder(out, force=False, known=KNOWN) as folder:
        (folder / "a.txt").write_bytes(b"half")
        assert not out.exists()
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []
    write(out, "first")
    assert content(tmp_path) == {f"deep/out/{name}": text for name, text in results("first").items()}


def test_force_replaces_results_and_a_failure_leaves_the_old_ones(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "first")
    with pytest.raises(InputError, match="exists already.*--force"):
        write(out, "second")
    with pytest.raises(OSError, match="full"), new_folder(out, force=True, known=KNOWN):
        raise OSError("full")
    assert content(out) == results("first")
    write(out, "second", force=True)
    assert content(tmp_path) == {f"out/{name}": text for name, text in results("second").items()}


@pytest.mark.parametrize("broken", range(6))
def test_a_failure_between_two_renames_puts_the_old_results_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    out = tmp_path / "out"
    write(out, "first")
    count, rename = iter(range(99)), os.rename

    def fails(source: Path, place: Path) -> None:
        if next(count) == broken:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, place)

    monkeypatch.setattr(outputs.os, "rename", fails)
    with pytest.raises(InputError, match=r"Input/output error.*The results are in (?P<kept>.*)") as caught:
        write(out, "second", force=True)
    kept = Path(str(caught.value).rpartition(" are in ")[2])
    assert content(kept) == results("second")
    shutil.rmtree(kept)
    assert content(out) == results("first")


@pytest.mark.parametrize("force", [False, True])
def test_what_somebody_writes_meanwhile_stays_and_the_results_are_kept(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "out"
    if force:
        write(out, "old")
    with (
        pytest.raises(InputError, match="meanwhile.*The results are in") as caught,
        new_folder(out, force=force, known=KNOWN) as folder,
    ):
        (folder / "a.txt").write_text("ours", encoding="utf-8")
        out.mkdir(exist_ok=True)
        (out / "notes.txt").write_text("mine", encoding="utf-8")
    kept = Path(str(caught.value).rpartition(" are in ")[2])
    assert not kept.name.startswith(".") and content(kept) == {"a.txt": "ours"}
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert not force or (out / "a.txt").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_of_two_runs_with_one_output_both_results_are_kept(tmp_path: Path, force: bool, exists: bool) -> None:
    out = tmp_path / "out"
    if exists:
        write(out, "old", force=True) if force else out.mkdir()
    with (
        pytest.raises(InputError, match="meanwhile") as caught,
        new_folder(out, force=force, known=KNOWN) as folder,
    ):
        (folder / "a.txt").write_text("slow", encoding="utf-8")
        write(out, "fast", force=force)
    kept = Path(str(caught.value).rpartition(" are in ")[2])
    assert content(kept) == {"a.txt": "slow"}
    shutil.rmtree(kept)
    assert content(out) == results("fast")


def test_an_empty_folder_made_meanwhile_is_not_taken(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="meanwhile"), new_folder(out, force=False, known=KNOWN):
        out.mkdir()


def test_an_existing_empty_folder_and_a_link_stay_what_they_are(tmp_path: Path) -> None:
    """A mount point cannot be renamed, nor removed: files are moved into it."""
    target, link = tmp_path / "disk" / "target", tmp_path / "link"
    target.mkdir(parents=True)
    link.symlink_to(target)
    number = target.stat().st_ino
    for text in ("first", "second"):
        write(link, text, force=text == "second")
        assert content(target) == results(text)
    assert link.is_symlink() and target.stat().st_ino == number
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "disk" / "new")
    write(dangling, "third")
    assert dangling.is_symlink() and content(tmp_path / "disk" / "new") == results("third")


def test_files_of_others_are_refused_at_any_depth(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "first")
    (out / "images" / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(InputError, match=r"images/thesis.tex.*did not write"):
        check_output(out, force=True, known=KNOWN)
    with pytest.raises(InputError, match="is a file"):
        check_output(out / "a.txt", force=True, known=KNOWN)


@pytest.mark.parametrize("kind", ["long", "file above", "loop", "read-only"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    place = {"long": "x" * 300, "file above": "file/out", "loop": "loop", "read-only": "closed/out"}[kind]
    (tmp_path / "closed").mkdir(mode=0o500)
    if kind == "read-only" and os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("root writes anywhere")
    for opened in (
        new_folder(tmp_path / place, force=True, known=KNOWN),
        new_file(tmp_path / f"{place}.csv" if kind == "long" else tmp_path / place, force=True),
    ):
        with pytest.raises(InputError, match=r"cannot be written|is a file|not a regular"), opened:
            pytest.fail("the work has begun")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "file", "loop"]


def test_the_longest_name_is_written(tmp_path: Path) -> None:
    write(tmp_path / ("x" * 255), "text")
    with new_file(tmp_path / ("y" * 248 + ".nii.gz"), force=False) as file:
        file.touch()
    with replacing(tmp_path / ("z" * 251 + ".csv")) as file:
        file.touch()
    assert sorted(len(path.name) for path in tmp_path.iterdir()) == [255, 255, 255]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolved("~/x") == tmp_path / "x"
    with pytest.raises(InputError, match="no such home"):
        resolved("~nobody-of-this-name/x")
    assert host.expanded(["--output=~/x", "~/f", "a~b", "--x=a~", "--y=/~/b"]) == [
        *(f"--output={tmp_path}/x", f"{tmp_path}/f", "a~b", "--x=a~", "--y=/~/b")
    ]


def test_one_file_by_the_same_rules(tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    with pytest.raises(InputError, match="meanwhile") as caught, new_file(out, force=False) as file:
        assert file.name.endswith(".nii.gz")
        file.write_text("ours", encoding="utf-8")
        out.write_text("mine", encoding="utf-8")
    kept = Path(str(caught.value).rpartition(" are in ")[2])
    assert kept.name.endswith(".nii.gz") and kept.read_text(encoding="utf-8") == "ours"
    assert out.read_text(encoding="utf-8") == "mine"
    with pytest.raises(InputError, match="exists.*--force"), new_file(out, force=False):
        pass
    link = tmp_path / "link.nii"
    link.symlink_to(out)
    with new_file(link, force=True) as file:
        assert file.suffix == ".nii"
        file.write_text("new", encoding="utf-8")
    assert link.is_symlink() and out.read_text(encoding="utf-8") == "new"
    with pytest.raises(InputError, match="is a folder"), new_file(tmp_path, force=True):
        pass


def test_no_device_is_replaced_and_a_mounted_file_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    for opened in (replacing(tmp_path / "fifo"), new_file(tmp_path / "fifo", force=True)):
        with pytest.raises(InputError, match="not a regular file"), opened as file:
            file.touch()

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    (tmp_path / "mounted").write_text("old", encoding="utf-8")
    monkeypatch.setattr(tables.os, "replace", busy)
    with replacing(tmp_path / "mounted") as file:
        file.write_text("new", encoding="utf-8")
    assert content(tmp_path)["mounted"] == "new"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_picture_that_fails_costs_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("latex was not found\nmore")

    assert attempt(broken) == (
        None,
        ["a picture or page of the report is missing (RuntimeError: latex was not found)"],
    )
    monkeypatch.setattr(report, "_draw", broken)
    monkeypatch.setattr(report, "headline", lambda *_: [])
    side = argparse.Namespace(scan=argparse.Namespace(path="a\udcff.nii"))
    numbers = {"notes": [], "files": {}, "command": "lmreg a\udcff.nii"}
    got = report.write_page(tmp_path, report.Written(numbers, object()), side, side)  # type: ignore[arg-type]
    assert "latex was not found" in got["notes"][0] and "report.png" not in got["files"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert "latex was not found" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert printable("a\udcff.nii") == "a?.nii"
    assert "a\udcff" in page("a\udcff", numbers, tmp_path / "none.png")


def test_the_command_refuses_its_output_before_it_reads_a_scan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    register.add(parser.add_subparsers())
    (tmp_path / "file").touch()
    args = parser.parse_args(["register", "f.nii", "m.nii", "--output", str(tmp_path / "file" / "out")])
    with pytest.raises(SystemExit):
        exits_cleanly(register.run)(args)
    assert "file/out: cannot be written" in capsys.readouterr().err


def test_a_folder_whose_name_is_not_utf8_gets_its_transforms(tmp_path: Path) -> None:
    """SimpleITK would end the process."""
    pytest.importorskip("SimpleITK")
    folder = tmp_path / "d\udcff"
    folder.mkdir()
    shifted = np.eye(4)
    shifted[0, 3] = 3.0
    write_itk(folder / "transform.h5", affine_transform(shifted))
    with pytest.raises(InputError, match="UTF-8"):
        read_transform(folder / "transform.h5")
    os.rename(folder, tmp_path / "d")
    read = read_transform(tmp_path / "d" / "transform.h5")
    np.testing.assert_allclose(read.pre @ read.post, shifted)
