"""What goes wrong in the middle of a run: disk full, disk read-only, a case's file gone bad."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

import experiments.train as program
from experiments.run import lock, provenance, scalars, supply, tensorboard
from lmreg_jax.cli.main import main as lmreg
from lmreg_jax.cohort import batches
from lmreg_jax.errors import InputError
from lmreg_jax.io.nifti import write_volume
from lmreg_jax.model import checkpoint
from tests import tiny_cohort
from tests.tiny_training import compiled_once, rows, saved_state, settings  # noqa: F401

STEPS = 6
BAD_AT = 3  # the step before which things go wrong; the last checkpoint is then that of step 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> ConfigDict:
    """A cohort of its own, cached in a folder of its own: both are damaged."""
    splits = ("train",) * 4 + ("validation",) * 2
    root = tiny_cohort.write_cohort(tmp_path / "cohort", splits)
    made = settings(root, tmp_path)
    made.train.steps = STEPS
    made.data.memory_gb = 0.0  # Every case is read again when its turn comes.
    return made


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """The same training without trouble. Read only."""
    root = tiny_cohort.write_cohort(folder / "cohort", ("train",) * 4 + ("validation",) * 2)
    config = settings(root, folder)
    config.train.steps, config.data.memory_gb = STEPS, 0.0
    program.train(config, folder / "finished", evaluate=False)
    return folder / "finished"


@contextmanager
def before_step(step: int, happens: Callable[[], None]) -> Iterator[None]:
    """Something happens to the world when that step is about to be assembled, once."""
    original = batches.pairs_of_step
    todo = [happens]

    def pairs_of_step(pairs: Any, count: int, number: int, **options: Any) -> Any:
        if number == step and todo:
            todo.pop()()
        return original(pairs, count, number, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "pairs_of_step", pairs_of_step)
        patch.setattr(batches, "prefetch", lambda make, steps: ((s, make(s)) for s in steps))
        yield


def is_the_run_without_trouble(workdir: Path, finished: Path) -> None:
    found, wanted = saved_state(workdir), saved_state(finished)
    assert found[0] == wanted[0]
    for one, other in zip(found[1], wanted[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert rows(workdir) == rows(finished)


def mount(*arguments: str) -> None:
    """mount(8), or a skip where this user may not."""
    if shutil.which("mount") is None:
        pytest.skip("needs mount(8)")
    answer = subprocess.run(["mount", *arguments], capture_output=True, text=True, encoding="utf-8")
    if answer.returncode:
        pytest.skip(f"may not mount here: {answer.stderr.strip()}")


@contextmanager
def unmounted_after(path: Path) -> Iterator[Path]:
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path))
    with unmounted_after(path):
        yield path


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves `leave` bytes free."""
    state = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(b"\0" * (state.f_bavail * state.f_frsize - leave))
    return filler


def test_a_row_that_finds_no_space_is_an_error_with_a_remedy() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(InputError, match=r"/dev/full: .*No space left on device.*make space"):
        scalars._append(Path("/dev/full"), "1,2,3")


@pytest.mark.parametrize("leave", [0, 60_000], ids=["for nothing", "for a row, not for a checkpoint"])
def test_a_full_disk_stops_with_a_message_and_nothing_lost(
    leave: int, config: ConfigDict, finished: Path, small_disk: Path
) -> None:
    workdir = small_disk / "run"
    with (
        before_step(BAD_AT, lambda: (fill(small_disk, leave), None)[1]),
        pytest.raises(InputError, match=rf"{workdir}.*No space left on device.*ake space there"),
    ):
        program.train(config, workdir, evaluate=False)
    assert saved_state(workdir)[0] == 2
    (small_disk / "filler").unlink()
    program.train(config, workdir, evaluate=False)
    is_the_run_without_trouble(workdir, finished)


@pytest.mark.parametrize("leave", [0, 30_000], ids=["for nothing", "for some of the files"])
@pytest.mark.parametrize("command", ["register", "preprocess"])
def test_a_full_disk_leaves_the_earlier_results_and_nothing_half(
    command: str, leave: int, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = []
    for i in range(2):
        ct, lungs, _ = tiny_cohort.subject(tiny_cohort.random_pull(i))
        scans += [str(tmp_path / f"s{i}.nii.gz"), str(tmp_path / f"m{i}.nii.gz")]
        write_volume(scans[-2], ct)
        write_volume(scans[-1], lungs)
    output = small_disk / "out"
    masks = {
        "register": ["--model", "none", "--refine", "0", "--fixed-mask", scans[1], "--moving-mask", scans[3]],
        "preprocess": ["--masks", scans[1], scans[3], "--spacing", "8", "--shape", "40", "30", "40"],
    }
    words = [command, scans[0], scans[2], *masks[command], "--affine", "moments", "--quiet"]
    lmreg([*words, "--output", str(output)])

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()}

    before = files()
    filler = fill(small_disk, leave)
    for arguments in ([*words, "--output", str(output), "--force"], [*words, "--output", f"{output}2"]):
        with pytest.raises(SystemExit) as stopped:
            lmreg(arguments)
        assert stopped.value.code == 2
        assert "No space left on device" in capsys.readouterr().err
    filler.unlink()
    assert files() == before
    lmreg([*words, "--output", f"{output}2"])


def test_a_disk_that_fills_up_while_orbax_writes(
    config: ConfigDict, finished: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check for room and the writing; orbax fails in its own threads."""
    workdir = small_disk / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_reserve", lambda *_: None)
        with (
            before_step(BAD_AT, lambda: (fill(small_disk, 12_000), None)[1]),
            pytest.raises(InputError, match=r"checkpoint of step 4 could not be written"),
        ):
            program.train(config, workdir, evaluate=False)
    assert saved_state(workdir)[0] == 2
    (small_disk / "filler").unlink()
    program.train(config, workdir, evaluate=False)
    is_the_run_without_trouble(workdir, finished)


def image_of(config: ConfigDict, case: str) -> Path:
    """The prepared image of a case, in the one entry of the cohort's cache."""
    (entry,) = (p for p in Path(config.data.cache).iterdir() if p.is_dir())
    names = [
        described["name"]
        for described in json.loads((entry / "cohort.json").read_text(encoding="utf-8"))["cases"]
    ]
    return entry / f"image_{names.index(case):04d}.npy"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


BAD = {
    "vanished": lambda path: path.unlink(),
    "bytes of": lambda path: os.truncate(path, 1000),  # Under a memory map: SIGBUS.
    "not as it was written": flip_a_bit,
}


@pytest.mark.parametrize("how", BAD)
def test_a_case_that_goes_bad_stops_a_strict_run_which_then_goes_on(
    how: str, config: ConfigDict, finished: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    with (
        before_step(BAD_AT, lambda: BAD[how](image_of(config, "c1"))),
        pytest.raises(InputError, match=rf"image_0001.npy: the prepared file of case 'c1' .*{how}"),
    ):
        program.train(config, workdir, evaluate=False)
    program.train(config, workdir, evaluate=False)
    is_the_run_without_trouble(workdir, finished)


def test_a_case_that_goes_bad_is_skipped_and_counted(
    config: ConfigDict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config.data.policy = "skip"
    drawn: list[Any] = []
    original = batches.assemble

    def noted(pairs: Any) -> Any:
        drawn.append([(fixed.name, moving.name) for fixed, moving in pairs])
        return original(pairs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "assemble", noted)
        with before_step(BAD_AT, lambda: image_of(config, "c1").unlink()):
            program.train(config, tmp_path / "run", evaluate=False)
    assert saved_state(tmp_path / "run")[0] == STEPS
    assert all("c1" not in pair for step in drawn[BAD_AT:] for pair in step)
    skipped = json.loads((tmp_path / "run" / supply.FILE).read_text(encoding="utf-8"))
    assert list(skipped) == ["c1"] and "vanished" in skipped["c1"]
    assert "1 of 6 cases were skipped: c1" in caplog.text


def test_what_is_in_memory_no_longer_depends_on_its_file(
    config: ConfigDict, finished: Path, tmp_path: Path
) -> None:
    config.data.memory_gb = 1.0
    config.train.validate_every = STEPS  # A validation reads its own cases.

    def spoil() -> None:
        for name in ("c0", "c1", "c2", "c3"):
            flip_a_bit(image_of(config, name))

    with before_step(STEPS - 1, spoil):
        program.train(config, tmp_path / "run", evaluate=False)
    for one, other in zip(saved_state(tmp_path / "run")[1], saved_state(finished)[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_validation_case_that_goes_bad_is_skipped_too(config: ConfigDict, tmp_path: Path) -> None:
    config.data.policy = "skip"
    with (
        before_step(1, lambda: image_of(config, "c4").unlink()),
        pytest.raises(InputError, match=r"no pair of 2 is left, 1 cases cannot be read: c4"),
    ):
        program.train(config, tmp_path / "run", evaluate=False)


def test_a_line_cut_short_is_dropped_on_resuming(tmp_path: Path) -> None:
    """A full disk takes the first half of a line."""
    with scalars.Writer(tmp_path) as table:
        table.rewind(0)
        table.add(10, {"loss": 1.5})
        table.add_skipped(3, [("a", "b")], {"loss": float("nan")})
    for name, half in ((scalars.FILE, "1"), (scalars.SKIPPED, '{"step": 1, "pai')):
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write(half)
    with scalars.Writer(tmp_path) as table:
        assert [row["step"] for row in table.read()] == ["10"]
        table.rewind(12)
        table.add(20, {"loss": 2})
        assert [row["step"] for row in table.read()] == ["10", "20"]
    assert len((tmp_path / scalars.SKIPPED).read_text(encoding="utf-8").splitlines()) == 1


def test_tensorboard_gives_up_where_its_disk_is_full_and_never_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboardX")
    board = tensorboard.Board(tmp_path / "board")
    board.add(1, {"train/loss": 1.0})

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board._writer, "write_event", full)
    for step in range(100):  # tensorboardX's own queue would be full after 10.
        board.add(step, {"train/loss": 1.0})
    board.close()
    assert caplog.text.count("No space left") == 1


def test_tensorboard_drops_what_lies_after_the_step_of_a_resumed_run(tmp_path: Path) -> None:
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    board = tensorboard.Board(tmp_path, first=7)
    board.add(8, {"train/loss": 2.5})
    board.close()
    (file,) = tmp_path.iterdir()
    content, events = file.read_bytes(), []
    while content:  # TFRecord: length, its sum, the event, its sum.
        size = int.from_bytes(content[:8], "little")
        events.append(event_pb2.Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    assert (events[1].step, events[1].session_log.status) == (7, event_pb2.SessionLog.START)
    value = events[2].summary.value[0]
    assert (events[2].step, value.tag, value.simple_value) == (8, "train/loss", 2.5)


def test_seed_and_versions_are_written_once_for_each_set_of_them(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (0, 4):
        provenance.record(tmp_path, config, step)
    (start,) = json.loads((tmp_path / provenance.FILE).read_text(encoding="utf-8"))
    assert start["seeds"] == {"data": 0, "train": 0} and start["step"] == 0
    assert start["packages"]["jax"] and start["python"] and start["devices"] == {"cpu": 4}
    monkeypatch.setattr(provenance.platform, "python_version", lambda: "9.9")
    provenance.record(tmp_path, config, 8)
    starts = json.loads((tmp_path / provenance.FILE).read_text(encoding="utf-8"))
    assert [start["step"] for start in starts] == [0, 8]
    assert "-> 9.9" in caplog.text
    # Another program in the same folder has a record of its own, and changes nothing in the training's.
    for _ in range(2):
        provenance.record(tmp_path, config, program="evaluate")
    provenance.record(tmp_path, config, 8)
    starts = json.loads((tmp_path / provenance.FILE).read_text(encoding="utf-8"))
    assert [start["program"] for start in starts] == ["train", "train", "evaluate"]
    (tmp_path / provenance.FILE).write_text("{", encoding="utf-8")
    provenance.record(tmp_path, config, 8)
    assert len(json.loads((tmp_path / provenance.FILE).read_text(encoding="utf-8"))) == 1


def test_the_commit_is_that_of_the_package_and_of_nobody_else(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    (tmp_path / "inner").mkdir()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    commit = provenance.git_commit(tmp_path)
    assert commit is not None and len(commit) == 40
    assert provenance.git_commit(tmp_path / "inner") is None


def test_a_lock_holds_within_one_process_too_and_survives_garbage(tmp_path: Path) -> None:
    (tmp_path / lock.FILE).write_bytes(b"\xff\x00 not JSON")
    with lock.held(tmp_path):
        refused = pytest.raises(InputError, match=rf"in use by another run, process {os.getpid()} on ")
        with refused, lock.held(tmp_path):
            pytest.fail("held twice")
    with lock.held(tmp_path):
        pass
