"""Affine alignment between subjects by elastix: a [4, 4] that takes fixed RAS mm to moving RAS mm.

elastix runs in a process of its own (`elastix_worker`), which is kept until `stop`: loading ITK takes
ten seconds, which `start` lets pass while scans are read, and 1.3 GB, which a training need not hold.
(`baselines` has elastix' B-splines, which a comparison needs.)
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.affine import images
from lmreg_jax.errors import InputError, undo_at_end
from lmreg_jax.imaging.volume import Volume

Array = NDArray[Any]

ELASTIX_MODULE = "itkElastixRegistrationMethodPython.py"
SETTINGS = {
    "Metric": "AdvancedMattesMutualInformation",
    "AutomaticTransformInitialization": "false",  # the images are aligned to begin with
    "WriteResultImage": "false",
    "RandomSeed": 1,
}
# From far: stochastic, from coarse to fine. It ends some tenths of a millimetre from the optimum, by
# chance: with another seed, or the same pair in other voxels, elsewhere.
SEARCH = SETTINGS | {
    "NumberOfResolutions": 3,
    "ImagePyramidSchedule": [4, 4, 4, 2, 2, 2, 1, 1, 1],  # in voxels of images.GRID_MM
    "MaximumNumberOfIterations": 250,
    "NumberOfSpatialSamples": 4096,
    "NewSamplesEveryIteration": "true",
}
# Down to the optimum by all voxels: to 0.02 mm the same for other seeds, voxels and axes. That takes a
# joint histogram that is smooth in both images' intensities, and no sparser grid.
DESCENT = SETTINGS | {
    "NumberOfResolutions": 1,
    "ImagePyramidSchedule": [1, 1, 1],
    "Optimizer": "QuasiNewtonLBFGS",
    "MaximumNumberOfIterations": 100,
    "StopIfWolfeNotSatisfied": "false",
    "GradientMagnitudeTolerance": 1e-9,
    "LBFGSUpdateAccuracy": 10,
    "ImageSampler": "Grid",
    "SampleGridSpacing": [1, 1, 1],
    "NewSamplesEveryIteration": "false",
    "FixedKernelBSplineOrder": 3,
}
EVERYWHERE = {"SampleGridSpacing": [2, 2, 2]}  # without a mask to say where to look: an eighth of all voxels
WORKER_FILE = Path(__file__).with_name("_elastix_worker.py")
ANSWER = b"answer:"  # how the worker's own lines begin
MESSAGE_CHARS = 300  # of what a worker that died has said
PATIENCE_S = 5.0  # for a worker that has closed its output to end


class WorkerDied(RuntimeError):
    """The process ended, or cannot be started: nothing is said of the pair that it was given."""


def installed() -> bool:
    """Whether itk-elastix is there, found without importing it (which takes seconds)."""
    itk = importlib.util.find_spec("itk")
    folders = itk.submodule_search_locations if itk else None
    return any((Path(folder) / ELASTIX_MODULE).exists() for folder in folders or ())


def align(
    fixed: Volume,
    moving: Volume,
    fixed_mask: Volume | None,
    moving_mask: Volume | None,
    initial: Array,
) -> Array:
    """Fixed RAS mm -> moving RAS mm, [4, 4]: elastix's affine (mutual information) after `initial`.

    fixed, moving: [X, Y, Z], each on its own grid, in [0, 1]; the masks, on any grids, tell where to look,
    widened by the chest wall. initial [4, 4]: fixed RAS mm -> moving RAS mm. Deterministic.
    Raises RuntimeError where elastix fails or returns what no two people can differ by, WorkerDied (one,
    too) where its process ends, InputError where itk-elastix is not installed.
    Klein et al., elastix: a toolbox for intensity-based medical image registration, IEEE TMI 29, 2010;
    mutual information by Mattes et al., IEEE TMI 22, 2003.
    """
    if not installed():
        raise InputError("itk-elastix is not installed (pip install itk-elastix)")
    pair = images.paired(fixed, moving, fixed_mask, moving_mask, initial)
    return images.accepted(pair, _ask_worker(pair.fixed, pair.moving, pair.mask, pair.affine))


class Worker:
    """`elastix_worker` as a running process. Raises WorkerDied where it cannot be started, or dies."""

    def __init__(self) -> None:
        # ITK may lie anywhere on our path, but not in the working folder: what has a library's name there
        # would be run. -P: nor may our own modules hide others' by their names.
        command = [sys.executable, "-P", str(WORKER_FILE)]
        try:
            here = os.getcwd()
            path = os.pathsep.join(f for f in sys.path if f and os.path.realpath(f) != here)
            self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=os.environ | {"PYTHONPATH": path},
            )
        except (OSError, TypeError, ValueError) as error:
            raise WorkerDied(f"its process cannot be started: {error}") from error
        undo_at_end.append(self.process.kill)

    def ask(self, job: Mapping[str, Any], images: list[Array]) -> dict[str, Any]:
        """The worker's answer to a job; see there."""
        assert self.process.stdin is not None and self.process.stdout is not None
        begun = os.fstat(self.errors.fileno()).st_size
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            for image in images:
                self.process.stdin.write(image.tobytes())
            self.process.stdin.flush()
            for line in self.process.stdout:
                if line.startswith(ANSWER):
                    answer: dict[str, Any] = json.loads(line[len(ANSWER) :])
                    return answer
        except (OSError, ValueError):
            pass
        raise WorkerDied(f"its process ended, {self._last_words(begun)}")

    def _last_words(self, begun: int) -> str:
        """How the process ended, and what it printed after its first `begun` bytes, in one line."""
        try:
            status = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            return "or no longer answers"
        self.errors.seek(begun)
        text = " ".join(self.errors.read().decode(errors="replace").split())
        how = f"killed by signal {-status} (no memory left?)" if status < 0 else f"exit status {status}"
        return f"{how}: {text[-MESSAGE_CHARS:]}" if text else how

    def close(self) -> None:
        """Ends the process, whatever it does."""
        undo_at_end.remove(self.process.kill)
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            if file is not None:
                with contextlib.suppress(OSError):  # what was written to a dead process
                    file.close()


_worker: Worker | None = None
_one_at_a_time = threading.RLock()  # elastix uses two cores by itself


def start() -> None:
    """Starts the process ahead of its first pair, if elastix is installed and it does not run yet.

    That it cannot be started is said by the first pair.
    """
    global _worker
    with _one_at_a_time:
        if _worker is None and installed():
            with contextlib.suppress(WorkerDied):
                _worker = Worker()


@atexit.register
def stop() -> None:
    """Ends the process, if it runs, after the pair at which it works; the next `align` starts another."""
    global _worker
    with _one_at_a_time:
        if _worker is not None:
            _worker.close()
        _worker = None


def _ask_worker(fixed: Array, moving: Array, mask: Array | None, affine: Array) -> list[Array]:
    """What elastix finds between two images on one grid, fixed mm -> moving mm: by SEARCH, and by DESCENT.

    One only where the descent fails.

    Raises RuntimeError where elastix fails, WorkerDied where its process dies twice.
    """
    images = [fixed.astype("<f4"), moving.astype("<f4"), *([] if mask is None else [mask.astype(np.uint8)])]
    job = {
        "shape": fixed.shape,
        "masked": mask is not None,
        "origin": affine[:3, 3].tolist(),
        "spacing": affine.diagonal()[:3].tolist(),
        "maps": [_in_words(SEARCH), _in_words(DESCENT | ({} if mask is not None else EVERYWHERE))],
    }
    with _one_at_a_time:
        try:
            answer = _asked(job, images)
        except WorkerDied:
            answer = _asked(job, images)  # in a new process: the old one may have been killed while it waited
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return [np.array(matrix, np.float64) for matrix in answer["matrices"]]


def _asked(job: Mapping[str, Any], images: list[Array]) -> dict[str, Any]:
    global _worker
    if _worker is None:
        _worker = Worker()
    try:
        return _worker.ask(job, images)
    except BaseException:
        stop()  # dead, or interrupted: the next answer would be that to this question
        raise


def _in_words(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """elastix' parameter map: lists of strings."""
    return {
        name: [str(v) for v in (value if isinstance(value, list) else [value])]
        for name, value in settings.items()
    }
