"""Affine alignment by elastix: known answers, and the process that it runs in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from lmreg_jax.affine import elastix
from lmreg_jax.affine.moments import translation
from lmreg_jax.cli.console import Clock
from lmreg_jax.cli.main import main
from lmreg_jax.cohort.cohort import read_cohort
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.resampling import resample
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.nifti import write_volume
from tests.tiny_cohort import random_pull, subject

needs_elastix = pytest.mark.skipif(not elastix.installed(), reason="needs the extra lmreg_jax[elastix]")


def blobs_and_known_affine():
    rng = np.random.default_rng(0)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-100.0, -150.0, 20.0)
    data = ndimage.gaussian_filter(rng.standard_normal((56, 56, 56)), 4)
    data = np.clip(0.5 + 0.2 * data / data.std(), 0, 1).astype(np.float32)
    # Fading to its sides: linear interpolation, with which `moving` is made, displaces hard edges.
    fade = np.hanning(56) ** 0.3
    data *= fade[:, None, None] * fade[:, None] * fade
    centre = apply_affine(affine, np.array([28.0, 28.0, 28.0]))
    angle = np.deg2rad(7)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    truth = np.eye(4)
    truth[:3, :3] = turn @ np.diag([1.08, 0.95, 1.04])
    truth[:3, 3] = centre - truth[:3, :3] @ centre + (9.0, -6.0, 12.0)
    grid = np.diag([3.0, 3.0, 3.5, 1.0])  # holds all of the moved blobs
    grid[:3, 3] = (-125.0, -180.0, 0.0)
    fixed = Volume(data, affine)
    moving = Volume(resample(fixed, (96, 96, 84), grid, fill=0, pull=np.linalg.inv(truth)), grid)
    points = apply_affine(affine, rng.uniform(10, 46, (200, 3)))
    return fixed, moving, truth, points


@needs_elastix
@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_elastix_finds_a_known_affine_in_the_right_direction(masked):
    fixed, moving, truth, points = blobs_and_known_affine()
    mask = Volume((fixed.data > 0.02).astype(np.uint8), fixed.affine) if masked else None
    got = elastix.align(fixed, moving, mask, None, np.eye(4))
    before = np.linalg.norm(points - apply_affine(truth, points), axis=1)
    error = np.linalg.norm(apply_affine(got, points) - apply_affine(truth, points), axis=1)
    assert before.mean() > 15 and error.max() < 1.0  # mm, of 3 to 4 mm voxels
    again = elastix.align(fixed, moving, mask, None, np.eye(4))
    np.testing.assert_array_equal(got, again)


@needs_elastix
@pytest.mark.slow
def test_elastix_that_worsens_the_lungs_is_refused(monkeypatch):
    fixed, moving, _, _ = blobs_and_known_affine()
    mask = Volume((fixed.data > 0.5).astype(np.uint8), fixed.affine)
    monkeypatch.setattr(elastix, "_ask_worker", lambda *_: [translation((0, 0, 0), (60, 0, 0))] * 2)
    with pytest.raises(RuntimeError, match="Dice fell"):
        elastix.align(fixed, fixed, mask, mask, np.eye(4))
    monkeypatch.setattr(elastix, "_ask_worker", lambda *_: [np.diag([3.0, 1.0, 1.0, 1.0])] * 2)
    with pytest.raises(RuntimeError, match="implausible"):
        elastix.align(fixed, moving, mask, mask, np.eye(4))
    monkeypatch.setattr(elastix, "_ask_worker", lambda *_: [np.full((4, 4), np.nan)] * 2)
    with pytest.raises(RuntimeError, match="implausible"):
        elastix.align(fixed, moving, mask, mask, np.eye(4))


def test_elastix_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(elastix.importlib.util, "find_spec", lambda name: None)
    assert not elastix.installed()
    empty = Volume(np.zeros((4, 4, 4)), np.eye(4))
    with pytest.raises(InputError, match="pip install itk-elastix"):
        elastix.align(empty, empty, None, None, np.eye(4))


STAND_IN = """  # an ITK whose affine says what it was given, and that chatters
import os


class Image:
    def __init__(self, data): self.data = data
    def SetOrigin(self, origin): self.origin = origin
    def SetSpacing(self, spacing): self.spacing = spacing


class ParameterObject:
    New = staticmethod(lambda: ParameterObject())
    def __init__(self): self.maps = []
    GetDefaultParameterMap = staticmethod(lambda kind, levels: {"levels": levels})
    def AddParameterMap(self, settings): self.maps.append(settings)


class Result:
    def __init__(self, *numbers): self.numbers = numbers
    def GetParameterMap(self, k):
        return {"TransformParameters": self.numbers[k], "CenterOfRotationPoint": [0, 0, 0]}


def image_from_array(data): return Image(data)


def elastix_registration_method(fixed, moving, parameter_object, number_of_threads, log_to_console, **masks):
    print("chatter", flush=True)
    os.write(1, b"of C++\\n")
    what, maps = fixed.data.max(), parameter_object.maps
    if what == 7 or what == 6 and len(maps) == 2:
        raise RuntimeError("too few samples")
    if what == 8:
        os.write(2, b"Segmentation fault")
        os.kill(os.getpid(), 9)
    mask = masks["fixed_mask"].data.sum() if masks else -1
    first = [*fixed.data.shape, fixed.data[3, 2, 1], moving.data[3, 2, 1], mask, *moving.origin]
    first += [maps[0]["levels"], float(maps[0]["RandomSeed"][0]), float(maps[-1]["SampleGridSpacing"][0])] \
        if len(maps) == 2 else [0, 0, 0]
    return None, Result(first, [2, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 1])
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`elastix_worker` with an ITK that is ours."""
    (tmp_path / "itk.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(elastix, "installed", lambda: True)
    elastix.stop()
    yield tmp_path
    elastix.stop()


def pid() -> int:
    assert elastix._worker is not None
    return elastix._worker.process.pid


def ask(value: float = 1.0, masked: bool = True) -> np.ndarray:
    """The numbers that the stand-in answers: what it was given."""
    fixed = np.full((4, 5, 6), value)
    moving = np.arange(120.0).reshape(4, 5, 6)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    found, *polished = elastix._ask_worker(fixed, moving, moving > 50 if masked else None, affine)
    then = np.diag([2.0, 2.0, 2.0, 1.0])
    then[2, 3] = 1  # what the stand-in's second map does
    np.testing.assert_array_equal(polished, [] if value == 6 else [then @ found])
    return np.hstack([found[:3, :3].ravel(), found[:3, 3]])


def test_the_worker_gets_what_it_was_sent(stand_in: Path) -> None:
    expected = [6, 5, 4, 1, 45, 69, 10, 20, 30, 3, 1, 1]  # 45: its [1, 2, 3]; 69 numbers are above 50
    np.testing.assert_array_equal(ask(), expected)
    first = pid()
    np.testing.assert_array_equal(ask(masked=False), [6, 5, 4, 1, 45, -1, 10, 20, 30, 3, 1, 2])
    assert pid() == first


def test_what_elastix_fails_at_is_said_and_the_process_kept(stand_in: Path) -> None:
    ask()
    first = pid()
    with pytest.raises(RuntimeError, match="too few samples"):
        ask(7)
    assert ask(6)[0] == 6  # the descent fails: the search alone
    assert pid() == first


def test_a_process_that_dies_is_said_and_the_next_pair_gets_another(stand_in: Path) -> None:
    ask()
    with pytest.raises(elastix.WorkerDied, match="signal 9 .*: chatter of C.. Segmentation fault$"):
        ask(8)
    assert elastix._worker is None
    ask()
    first = pid()
    os.kill(first, signal.SIGKILL)  # while it waits, as a system short of memory would
    assert ask()[0] == 6 and pid() != first


def test_an_itk_that_cannot_be_loaded_is_said(stand_in: Path) -> None:
    (stand_in / "itk.py").write_text("raise ImportError('libGL.so.1: no such file')", encoding="utf-8")
    with pytest.raises(elastix.WorkerDied, match="exit status 1: .*libGL.so.1"):
        ask()


def test_what_others_print_is_not_taken_for_an_answer(stand_in: Path) -> None:
    (stand_in / "sitecustomize.py").write_text(
        "print('welcome to the cluster', flush=True)", encoding="utf-8"
    )
    assert ask()[0] == 6


def test_a_module_of_the_working_folder_is_not_run(
    stand_in: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path_factory.mktemp("here")
    for name in ("itk", "numpy", "json"):
        (here / f"{name}.py").write_text("raise SystemExit('run')", encoding="utf-8")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [str(here), *sys.path])  # as `python -m` has it
    assert ask()[0] == 6


@pytest.mark.parametrize("program", ["", None, "/no/such/python"])
def test_a_python_that_cannot_be_started_is_said(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, program: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    elastix.start()  # only a head start: nothing is said yet
    with pytest.raises(elastix.WorkerDied, match="cannot be started"):
        ask()


def test_an_interrupt_leaves_no_process(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask()
    child = pid()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(elastix.Worker, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask()
    assert elastix._worker is None and not is_alive(child)


def test_a_descent_that_went_astray_leaves_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving, _, _ = blobs_and_known_affine()
    mask = Volume((fixed.data > 0.5).astype(np.uint8), fixed.affine)
    monkeypatch.setattr(elastix, "installed", lambda: True)
    good, better = translation((0, 0, 0), (1, 0, 0)), translation((0, 0, 0), (1, 1, 0))
    for bad in (translation((0, 0, 0), (60, 0, 0)), np.diag([3.0, 1.0, 1.0, 1.0]), np.full((4, 4), np.nan)):
        monkeypatch.setattr(elastix, "_ask_worker", lambda *_, bad=bad: [good, bad])
        np.testing.assert_array_equal(elastix.align(fixed, moving, mask, mask, np.eye(4)), good)
    monkeypatch.setattr(elastix, "_ask_worker", lambda *_: [good, better])
    np.testing.assert_array_equal(elastix.align(fixed, moving, mask, mask, np.eye(4)), better)


def subjects(root: Path) -> Path:
    for name, strength in (("c0", 0.0), ("c1", 1.0)):
        ct, lungs, _ = subject(random_pull(1, strength))
        write_volume(root / "images" / f"{name}.nii.gz", ct)
        write_volume(root / "lungs" / f"{name}.nii.gz", lungs)
    rows = [f"{name},images/{name}.nii.gz,lungs/{name}.nii.gz" for name in ("c0", "c1")]
    (root / "cases.csv").write_text("\n".join(["case,image,lungs", *rows]) + "\n", encoding="utf-8")
    return root


def test_a_cohort_leaves_no_process_behind(stand_in: Path, caplog: pytest.LogCaptureFixture) -> None:
    subjects(stand_in)
    cohort = read_cohort(
        stand_in, shape=(24, 16, 24), spacing_mm=16.0, alignment="elastix", reference="c0", progress=False
    )
    assert "c1: affine by elastix failed (implausible" in caplog.text  # it was asked
    assert cohort.case("c1").alignment == "moments" and elastix._worker is None


def test_a_cohort_does_not_keep_what_a_dead_process_left_undone(stand_in: Path) -> None:
    subjects(stand_in)
    (stand_in / "itk.py").write_text("raise ImportError('libGL')", encoding="utf-8")
    with pytest.raises(InputError, match="c1: elastix: its process ended, .*libGL.*'images'"):
        read_cohort(
            stand_in, shape=(24, 16, 24), spacing_mm=16.0, alignment="elastix", reference="c0", progress=False
        )


def test_the_command_has_no_process_beside_it_when_it_writes(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [str(subjects(stand_in) / "images" / f"c{i}.nii.gz") for i in range(2)]
    masks = [str(stand_in / "lungs" / f"c{i}.nii.gz") for i in range(2)]
    seen = {}
    say = Clock.say

    def watched(clock: Clock, doing: str) -> None:
        seen[doing.split(",")[0]] = elastix._worker is not None
        say(clock, doing)

    monkeypatch.setattr(Clock, "say", watched)
    output = stand_in / "out"
    words = ["register", *scans, "--output", str(output), "--fixed-mask", masks[0], "--moving-mask", masks[1]]
    main([*words, "--model", "none", "--refine", "0", "--affine", "elastix", "--quiet"])
    assert seen.pop("both scans") and seen.pop("affine alignment") and not any(seen.values())
    notes = json.loads((output / "report.json").read_text(encoding="utf-8"))["notes"]
    assert any("affine by elastix failed (implausible" in note for note in notes)


@pytest.mark.parametrize("end", ["pass", "os._exit(3)", "os.kill(os.getpid(), 9)", "raise SystemExit(2)"])
def test_the_process_ends_with_its_parent(stand_in: Path, end: str) -> None:
    program = (
        "import os\nfrom lmreg_jax.affine import elastix\nelastix.installed = lambda: True\nelastix.start()\n"
        f"print(elastix._worker.process.pid, flush=True)\n{end}"
    )
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, str(stand_in)])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    child, until = int(done.stdout), time.monotonic() + 20
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(child)


def is_alive(process: int) -> bool:
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # one that nobody waits for
