"""Checkpoints of a training through orbax (the only file that knows it).

`WORKDIR/checkpoints/STEP`: the latest few; `WORKDIR/best/STEP`: the best by validation TRE.
A checkpoint appears under its number only when it is complete, and holds a SHA-256 of its arrays:
one that was damaged later is noticed when it is read, named, and the one before it is used. Arrays
are all that is in it; nothing is pickled.

Where several processes train, all of them call `save`, `restore` and `metrics`, on one file system:
orbax counts its calls, and waits in each for the process that has counted the same. The first
process alone changes files.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging as absl_logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from lmreg_jax.errors import InputError
from lmreg_jax.io.tables import reason

LATEST, BEST, DAMAGED = "checkpoints", "best", "damaged"
UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of folders that orbax has not completed
SPARE_BYTES = 2**18  # of metadata and rounding up, in addition to the arrays

log = logging.getLogger(__name__)


class Damaged(InputError):
    """A checkpoint that cannot be read, or whose arrays are not those that were written."""


class Store(NamedTuple):
    """A folder of checkpoints, named by their steps, which keeps the latest `keep`."""

    folder: Path
    keep: int = 1

    @property
    def steps(self) -> list[int]:
        """The steps of its complete checkpoints, ascending."""
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdecimal())


def store(workdir: Path, name: str, keep: int) -> Store:
    """`WORKDIR/name`, made where missing; what an interrupted save left there is removed."""
    folder = (workdir / name).absolute()
    if _first_process():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be used for checkpoints ({reason(error)})") from error
        _remove_unfinished(folder)
    return Store(folder, keep)


def save(store: Store, step: int, state: Any, metrics: dict[str, float] | None = None) -> None:
    """Writes the state of `step` (its steps done so far) and waits until it is whole on disk.

    A step that is there is not written again: a resumed run reaches it bit for bit.
    Raises InputError where the disk is full or cannot be written; earlier checkpoints stay.
    """
    if step in store.steps:
        return
    arrays = jax.tree.map(np.asarray, jax.device_get(state))
    values = {name: np.array(value, np.float64) for name, value in (metrics or {}).items()}
    try:
        if _first_process():
            _reserve(store.folder, sum(a.nbytes for a in jax.tree.leaves(arrays)))
        with _quiet():
            ocp.save(store.folder / str(step), {"state": arrays, "sha256": digest(arrays), "metrics": values})
        if _first_process():
            for old in store.steps[: -store.keep]:  # Renamed first: half of one must not look whole.
                os.rename(store.folder / str(old), store.folder / f"{old}{UNFINISHED}")
            _remove_unfinished(store.folder)
    except (OSError, ValueError) as error:
        _remove_unfinished(store.folder)
        raise InputError(
            f"{store.folder}: the checkpoint of step {step} could not be written ({reason(error)[:300]});"
            " earlier ones are untouched. Make space there (or let it be written to) and give the same"
            " command again"
        ) from error


def _first_process() -> bool:
    return jax.process_index() == 0


def _reserve(folder: Path, size: int) -> None:
    """OSError where `size` bytes (and SPARE_BYTES) cannot be written: noticed before orbax starts.

    Orbax writes from threads; their failure comes with a screenful of tracebacks.
    """
    probe = folder / f".room-{os.getpid()}-{secrets.token_hex(4)}"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size + SPARE_BYTES)
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)


def _remove_unfinished(folder: Path) -> None:
    """What an interrupted save has left takes the space that the next one needs."""
    for path in (*folder.glob(f"*{UNFINISHED}*"), *folder.glob(".room-*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def restore(store: Store, like: Any) -> tuple[int, Any] | None:
    """Step and state of the latest whole checkpoint, in the structure of `like`; None without any.

    Damaged ones are named in a warning and moved to `WORKDIR/damaged`, the one before is used.
    Raises InputError where all are damaged, and where it is of another architecture.
    """
    path, content, problems = _latest_whole(store)
    if content is None and problems:
        raise Damaged(
            f"{next(iter(problems.values()))}; there is no whole checkpoint before it. Remove"
            f" {store.folder} to start again from step 0"
        )
    _set_aside(problems)
    return None if content is None else (int(path.name), _fit(content["state"], like, path))


def metrics(store: Store) -> dict[str, float]:
    """The metrics of the latest whole checkpoint; empty without one. Damaged ones are moved away."""
    _, content, problems = _latest_whole(store)
    _set_aside(problems)
    return {} if content is None else {name: float(v) for name, v in content["metrics"].items()}


def load_params(workdir: Path, like: Any) -> tuple[str, Any]:
    """The parameters to use from a training's folder: the best checkpoint, else the latest.

    like: parameters of the network in the folder's config. Returns the checkpoint's name
    ("best/1200") and the parameters. A damaged one is named in a warning and passed over, nothing
    is changed on disk. Raises InputError where there is no whole checkpoint or it does not fit.
    """
    path, content, problems = _latest_whole(*(Store((workdir / name).absolute()) for name in (BEST, LATEST)))
    name = f"{path.parent.name}/{path.name}"
    for problem in problems.values():
        if content is None:
            raise Damaged(f"{problem}; copy the folder again, there is no other checkpoint in it")
        log.warning("%s; %s is used instead", problem, name)
    if content is None:
        raise InputError(
            f"{workdir}: no checkpoint below {BEST}/ or {LATEST}/; train one with"
            f" python -m experiments.train --workdir={workdir}"
        )
    return name, _fit(content["state"]["params"], like, path)


def exists(workdir: Path) -> bool:
    """Whether any checkpoint, latest or best, lies in a training's folder."""
    return any(Store(workdir / name).steps for name in (LATEST, BEST))


def _latest_whole(*stores: Store) -> tuple[Path, dict[str, Any] | None, dict[Path, Damaged]]:
    """The latest checkpoint of the first store that has a whole one, and the damaged ones met before."""
    problems: dict[Path, Damaged] = {}
    for path in (store.folder / str(step) for store in stores for step in reversed(store.steps)):
        try:
            return path, _read(path), problems
        except Damaged as error:
            problems[path] = error
    return Path(), None, problems


def _set_aside(problems: dict[Path, Damaged]) -> None:
    """Moves damaged checkpoints out of the store, so that their steps can be saved again."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all have read the same checkpoints")
    if not _first_process():
        return
    for path, problem in problems.items():
        target = path.parents[1] / DAMAGED / f"{path.parent.name}-{path.name}-{secrets.token_hex(2)}"
        try:
            target.parent.mkdir(exist_ok=True)
            os.rename(path, target)
        except OSError as error:
            raise InputError(f"{path}: damaged, not movable ({error.strerror}); remove it") from error
        log.warning("%s; moved to %s, the one before it is used", problem, target)


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint's "state", as nested dicts of arrays, and "metrics". Raises Damaged."""
    context = ocp.Context()  # Of this process alone: none waits for the others' reading.
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{jax.process_index()}"
    try:
        with _quiet(), context:
            content: dict[str, Any] = jax.tree.map(np.asarray, ocp.load(path))
        whole = np.array_equal(content["sha256"], digest(content["state"]))
        content.setdefault("metrics", {})
    except Exception as error:  # Whatever orbax and tensorstore raise: it cannot be read.
        raise Damaged(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}:"
            f" {' '.join(str(error).split())[:200]})"
        ) from error
    if not whole:
        raise Damaged(f"{path}: damaged: its arrays are not those that were written (their SHA-256 differs)")
    return content


def digest(state: Any) -> np.ndarray:
    """SHA-256 `[32]` uint8 of every array's name, type, shape and bytes, in the order of names."""
    total = hashlib.sha256()
    for name, leaf in sorted((_name(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(state)):
        array = np.asarray(leaf)
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return np.frombuffer(total.digest(), np.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs each failing thread with its traceback; the error itself is enough."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.FATAL)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)


def _fit(saved: Any, like: Any, where: Path) -> Any:
    """`saved` (nested dicts, as orbax gives it back) in the structure of `like`, shapes checked."""
    arrays = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
    wanted = {_name(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    problems = sorted(wanted.keys() ^ arrays.keys()) + [
        f"{name}: {arrays[name].shape} instead of {shape}"
        for name, shape in wanted.items()
        if name in arrays and arrays[name].shape != shape
    ]
    if problems:
        raise InputError(
            f"{where}: the checkpoint is of another architecture or optimiser than the config"
            f" ({problems[0]}{', ...' if len(problems) > 1 else ''});"
            " give another --workdir, or the config that it was trained with"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])


def _name(path: tuple[Any, ...]) -> str:
    """A path such as params/mean/kernel, the same for dicts, tuples and named tuples."""
    parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(str(part) for part in parts)
