"""Affine alignment by elastix: known answers, and the process that it runs in."""

from __future__ import annotations

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

from lmreg_jax import elastix
from lmreg_jax.alignment import translation
from lmreg_jax.errors import InputError
from lmreg_jax.volumes import Volume, apply_affine, resample

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
    monkeypatch.setattr(elastix, "_by_program", lambda *_: translation((0, 0, 0), (60, 0, 0)))
    with pytest.raises(RuntimeError, match="Dice fell"):
        elastix.align(fixed, fixed, mask, mask, np.eye(4))
    monkeypatch.setattr(elastix, "_by_program", lambda *_: np.diag([3.0, 1.0, 1.0, 1.0]))
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
import sys


class Image:
    def __init__(self, data): self.data = data
    def SetOrigin(self, origin): self.origin = origin
    def SetSpacing(self, spacing): self.spacing = spacing


class ParameterObject:
    New = staticmethod(lambda: ParameterObject())
    GetDefaultParameterMap = staticmethod(lambda kind, levels: {"levels": levels})
    def AddParameterMap(self, settings): self.settings = settings


class Result:
    def __init__(self, numbers): self.numbers = numbers
    def GetParameterMap(self, _):
        return {"TransformParameters": self.numbers, "CenterOfRotationPoint": [0, 0, 0]}


def image_from_array(data): return Image(data)


def elastix_registration_method(fixed, moving, parameter_object, number_of_threads, log_to_console, **masks):
    print("chatter", flush=True)
    os.write(1, b"of C++\\n")
    if fixed.data.max() == 7:
        raise RuntimeError("too few samples")
    if fixed.data.max() == 8:
        os.write(2, b"Segmentation fault")
        os.kill(os.getpid(), 9)
    mask = masks["fixed_mask"].data.sum() if masks else -1
    settings = parameter_object.settings
    first = [*fixed.data.shape, fixed.data[3, 2, 1], moving.data[3, 2, 1], mask]
    return None, Result([*first, *moving.origin, settings["levels"], float(settings["RandomSeed"][0]), 0])
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`elastix_program` with an ITK that is ours."""
    (tmp_path / "itk.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(elastix, "installed", lambda: True)
    elastix.stop()
    yield tmp_path
    elastix.stop()


def pid() -> int:
    assert elastix._program is not None
    return elastix._program.process.pid


def images(value: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    fixed = np.full((4, 5, 6), value)
    moving = np.arange(120.0).reshape(4, 5, 6)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    return fixed, moving, moving > 50, affine


def test_the_program_gets_what_it_was_sent(stand_in: Path) -> None:
    fixed, moving, mask, affine = images()
    found = elastix._by_program(fixed, moving, mask, affine)
    expected = [6, 5, 4, 1, moving[1, 2, 3], mask.sum(), 10, 20, 30, len(elastix.SCHEDULE), 1, 0]
    np.testing.assert_array_equal(np.hstack([found[:3, :3].ravel(), found[:3, 3]]), expected)
    first = pid()
    found = elastix._by_program(fixed, moving, None, affine)
    assert found[1, 2] == -1 and pid() == first


def test_what_elastix_fails_at_is_said_and_the_process_kept(stand_in: Path) -> None:
    elastix._by_program(*images())
    first = pid()
    with pytest.raises(RuntimeError, match="too few samples"):
        elastix._by_program(*images(7))
    elastix._by_program(*images())
    assert pid() == first


def test_a_process_that_dies_is_said_and_the_next_pair_gets_another(stand_in: Path) -> None:
    with pytest.raises(RuntimeError, match="its process ended: .*Segmentation fault"):
        elastix._by_program(*images(8))
    assert elastix._program is None
    assert elastix._by_program(*images())[0, 0] == 6
    os.kill(pid(), signal.SIGKILL)  # while it waits
    with pytest.raises(RuntimeError, match="its process ended"):
        elastix._by_program(*images())
    assert elastix._by_program(*images())[0, 0] == 6


def test_an_itk_that_cannot_be_loaded_is_said(stand_in: Path) -> None:
    (stand_in / "itk.py").write_text("raise ImportError('libGL.so.1: no such file')", encoding="utf-8")
    with pytest.raises(RuntimeError, match="libGL.so.1"):
        elastix._by_program(*images())


@pytest.mark.parametrize("end", ["pass", "os._exit(3)", "os.kill(os.getpid(), 9)", "raise SystemExit(2)"])
def test_the_process_ends_with_its_parent(stand_in: Path, end: str) -> None:
    program = (
        "import os\nfrom lmreg_jax import elastix\nelastix.installed = lambda: True\nelastix.start()\n"
        f"print(elastix._program.process.pid, flush=True)\n{end}"
    )
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, str(stand_in)])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    child, until = int(done.stdout), time.monotonic() + 20
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(child)


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # one that nobody waits for
