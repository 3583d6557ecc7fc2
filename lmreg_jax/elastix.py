"""Affine alignment between subjects by elastix: a [4, 4] that takes fixed RAS mm to moving RAS mm.

elastix runs in a process of its own (`elastix_program`), which is kept until `stop`: loading ITK takes
ten seconds, which `start` lets pass while scans are read, and 1.3 GB, which a training need not hold.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.errors import InputError
from lmreg_jax.volumes import Volume, apply_affine, inside, resample

Array = NDArray[Any]

MODULE = "itkElastixRegistrationMethodPython.py"
GRID_MM = 3.0  # an affine map has 12 numbers: finer images make it slower, not better
SCHEDULE = (4, 2, 1)  # coarse to fine, in voxels of GRID_MM
WORST_LOSS = 0.05  # of lung Dice: elastix also sees ribs and skin, so a little may be right
MARGIN_MM = 20.0  # the chest wall, ribs included
SETTINGS = {
    "Metric": "AdvancedMattesMutualInformation",
    "MaximumNumberOfIterations": 250,
    "NumberOfSpatialSamples": 4096,
    "NewSamplesEveryIteration": "true",
    "RandomSeed": 1,
    "AutomaticTransformInitialization": "false",  # the images are aligned to begin with
    "WriteResultImage": "false",
    "ImagePyramidSchedule": [f for f in SCHEDULE for _ in range(3)],
}
PROGRAM = Path(__file__).with_name("elastix_program.py")
LAST_WORDS = 300  # characters of what a program that died has said


def installed() -> bool:
    """Whether itk-elastix is there, found without importing it (which takes seconds)."""
    itk = importlib.util.find_spec("itk")
    folders = itk.submodule_search_locations if itk else None
    return any((Path(folder) / MODULE).exists() for folder in folders or ())


def align(
    fixed: Volume,
    moving: Volume,
    fixed_mask: Volume | None,
    moving_mask: Volume | None,
    initial: Array,
) -> Array:
    """Fixed RAS mm -> moving RAS mm, [4, 4]: elastix's affine (mutual information) after `initial`.

    Images in [0, 1]; the masks tell where to look, widened by the chest wall. Deterministic.
    Raises RuntimeError where elastix fails or returns what no two people can differ by, InputError
    where itk-elastix is not installed.
    """
    if not installed():
        raise InputError("itk-elastix is not installed (pip install itk-elastix)")
    shape, affine = _grid_around(fixed, fixed_mask)
    pair = [
        resample(fixed, shape, affine, fill=0.0),
        resample(moving, shape, affine, fill=0.0, pull=initial),
    ]
    mask = None
    if fixed_mask is not None:
        mask = resample(fixed_mask, shape, affine, order=0, fill=0) > 0
        if moving_mask is not None:
            mask |= resample(moving_mask, shape, affine, order=0, fill=0, pull=initial) > 0
        mask = ndimage.distance_transform_edt(~mask) * GRID_MM <= MARGIN_MM
        # What one scan does not show must not be compared with air.
        mask &= inside(fixed, shape, affine) & inside(moving, shape, affine, pull=initial)
    residual = _by_program(pair[0], pair[1], mask, affine)
    stretch = np.linalg.svd(residual[:3, :3], compute_uv=False)
    if not np.isfinite(residual).all() or stretch.min() < 0.5 or stretch.max() > 2.0:
        raise RuntimeError(f"implausible result, it stretches by {stretch.round(2).tolist()}")
    pull = initial @ residual
    if fixed_mask is not None and moving_mask is not None:
        before, after = (_overlap(fixed_mask, moving_mask, p) for p in (initial, pull))
        if after < before - WORST_LOSS:
            raise RuntimeError(f"the masks' Dice fell from {before:.2f} to {after:.2f}")
    return np.asarray(pull)


def _overlap(fixed: Volume, moving: Volume, pull: Array) -> float:
    """Dice of two masks after a pull, on the fixed mask's box: good enough to see a failure."""
    moved = resample(moving, fixed.data.shape, fixed.affine, order=0, fill=0, pull=pull) > 0
    inside = np.count_nonzero(moved & (fixed.data > 0))
    whole = np.count_nonzero(moving.data) * np.linalg.det(np.linalg.inv(pull) @ moving.affine)
    size = np.count_nonzero(fixed.data) + whole / np.linalg.det(fixed.affine)
    return float(2 * inside / size)


def _grid_around(fixed: Volume, mask: Volume | None) -> tuple[tuple[int, int, int], Array]:
    """A grid of GRID_MM over the mask and its surroundings, or over the image without a mask."""
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(fixed.data.shape) - 1)
    mm = apply_affine(fixed.affine, corners)
    margin = 0.0
    if mask is not None:
        mm, margin = apply_affine(mask.affine, np.argwhere(mask.data)), 2 * MARGIN_MM
    # Whole multiples of its voxels, so that the grid hardly depends on the voxels of the scan.
    low, high = (GRID_MM * np.round(mm / GRID_MM) for mm in (mm.min(0) - margin, mm.max(0) + margin))
    x, y, z = np.maximum(np.ceil((high - low) / GRID_MM).astype(int) + 1, 16)
    affine = np.diag([GRID_MM, GRID_MM, GRID_MM, 1.0])
    affine[:3, 3] = low
    return (int(x), int(y), int(z)), affine


class Program:
    """`elastix_program` as a running process. Raises RuntimeError where it dies."""

    def __init__(self) -> None:
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        command = [sys.executable, "-P", str(PROGRAM)]  # -P: our modules must not hide others' by their names
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said
        )

    def ask(self, fixed: Array, moving: Array, mask: Array | None, affine: Array) -> dict[str, Any]:
        """The program's answer for two images [X, Y, Z] on one grid: {"matrix": ...} or {"error": ...}."""
        assert self.process.stdin is not None and self.process.stdout is not None
        images = [
            fixed.astype("<f4"),
            moving.astype("<f4"),
            *([] if mask is None else [mask.astype(np.uint8)]),
        ]
        settings = {
            name: [str(v) for v in value] if isinstance(value, list) else [str(value)]
            for name, value in SETTINGS.items()
        }
        job = {
            "shape": fixed.shape,
            "masked": mask is not None,
            "origin": affine[:3, 3].tolist(),
            "spacing": affine.diagonal()[:3].tolist(),
            "levels": len(SCHEDULE),
            "settings": settings,
        }
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            for image in images:
                self.process.stdin.write(image.tobytes())
            self.process.stdin.flush()
            answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        except (OSError, ValueError) as error:
            raise RuntimeError(f"its process ended: {self.last_words()}") from error
        return answer

    def last_words(self) -> str:
        """What the process printed at its end, in one line, or its exit status."""
        status = self.process.wait()
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").split()
        return " ".join(lines)[-LAST_WORDS:] or f"exit status {status}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.said):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was written to a dead process
                    pipe.close()


_program: Program | None = None
_one_at_a_time = threading.RLock()  # elastix uses two cores by itself


def start() -> None:
    """Starts the process, if elastix is installed and it does not run yet."""
    global _program
    with _one_at_a_time:
        if _program is None and installed():
            _program = Program()


@atexit.register
def stop() -> None:
    """Ends the process, if it runs; the next `align` starts another."""
    global _program
    with _one_at_a_time:
        if _program is not None:
            _program.close()
        _program = None


def _by_program(fixed: Array, moving: Array, mask: Array | None, affine: Array) -> Array:
    """What elastix finds between two images on one grid, fixed mm -> moving mm; RuntimeError if it fails."""
    with _one_at_a_time:
        start()
        assert _program is not None
        try:
            answer = _program.ask(fixed, moving, mask, affine)
        except BaseException:
            stop()  # dead, or interrupted: the next answer would be that to this question
            raise
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return np.array(answer["matrix"], np.float64)
