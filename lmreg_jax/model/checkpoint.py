"""Checkpoints of a training through orbax (the only file that knows it).

`WORKDIR/checkpoints/STEP`: the latest few; `WORKDIR/best/STEP`: the best by validation TRE.
A checkpoint appears under its number only when it is complete, and holds a SHA-256 of its arrays:
one that was damaged later is noticed when it is read, named, and the one before it is used. Arrays
are all that is in it; nothing is pickled.
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
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging
from orbax.checkpoint import checkpoint_manager
from orbax.checkpoint import v1 as ocp

from lmreg_jax.errors import InputError
from lmreg_jax.io.tables import reason

LATEST, BEST, DAMAGED = "checkpoints", "best", "damaged"
UNFINISHED = ".orbax-checkpoint-tmp"
DIGEST, METRICS = "sha256", "metrics"
SPARE_BYTES = 2**18  # of metadata and rounding up, beside the arrays

log = logging.getLogger(__name__)


class Damaged(InputError):
    """A checkpoint that cannot be read, or whose arrays are not those that were written."""


@contextmanager
def store(workdir: Path, name: str, keep: int) -> Iterator[ocp.training.Checkpointer]:
    """The orbax store `WORKDIR/name` that keeps the latest `keep` checkpoints."""
    policy = ocp.training.preservation_policies.LatestN(n=keep)
    always = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
    folder = (workdir / name).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _of_this_process() as context:
            checkpointer = ocp.training.Checkpointer(
                folder,
                save_decision_policy=always,
                preservation_policy=policy,
                cleanup_tmp_directories=True,
                context=context,
            )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: cannot be opened as a folder of checkpoints ({reason(error)})"
        ) from error
    try:
        yield checkpointer
    except BaseException:
        # After a failed save orbax raises that save's error once more; ours is on its way already.
        with _quiet():
            try:
                checkpointer.close()
            except (OSError, ValueError) as error:
                log.debug("%s: %s", folder, error)
        raise
    checkpointer.close()


def save(
    checkpointer: ocp.training.Checkpointer, step: int, state: Any, metrics: dict[str, float] | None = None
) -> None:
    """Writes the state of `step` (its steps done so far) and waits until it is whole on disk.

    Raises InputError where the disk is full or cannot be written; earlier checkpoints stay.
    """
    if any(c.step == step for c in checkpointer.checkpoints):
        return  # A resumed run reaches the same state at the same step: bit for bit what is there.
    arrays = jax.tree.map(np.asarray, jax.device_get(state))
    tree = {
        "state": arrays,
        DIGEST: digest(arrays),
        METRICS: {k: np.array(v, np.float64) for k, v in (metrics or {}).items()},
    }
    folder = Path(checkpointer.directory)
    try:
        _reserve(folder, sum(a.nbytes for a in jax.tree.leaves(arrays)))
        with _quiet():
            checkpointer.save(step, tree, force=True)
            checkpointer.wait()
    except (OSError, ValueError) as error:
        _remove_unfinished(folder)
        raise InputError(
            f"{folder}: the checkpoint of step {step} could not be written ({reason(error)[:300]});"
            " earlier ones are untouched. Make space there (or let it be written to) and give the same"
            " command again"
        ) from error


def _reserve(folder: Path, size: int) -> None:
    """OSError where `size` bytes (and SPARE_BYTES) cannot be written: found out before orbax starts.

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
    """What a failed save has left takes the space that the next one needs."""
    for path in folder.glob(f"*{UNFINISHED}"):
        shutil.rmtree(path, ignore_errors=True)


def restore(checkpointer: ocp.training.Checkpointer, like: Any) -> tuple[int, Any] | None:
    """Step and state of the latest whole checkpoint, in the structure of `like`; None without any.

    Damaged ones are named in a warning and moved to `WORKDIR/damaged`, the one before is used.
    Raises InputError where all are damaged, and where it is of another architecture.
    """
    found = _latest_whole(checkpointer)
    if found is None:
        return None
    step, content = found
    return step, _fit(content["state"], like, f"{checkpointer.directory}/{step}")


def best_metrics(checkpointer: ocp.training.Checkpointer) -> dict[str, float]:
    """The metrics that the latest whole checkpoint was saved with; empty where there is none."""
    found = _latest_whole(checkpointer, or_anew=True)
    return {} if found is None else {k: float(v) for k, v in found[1][METRICS].items()}


def _latest_whole(
    checkpointer: ocp.training.Checkpointer, *, or_anew: bool = False
) -> tuple[int, dict[str, Any]] | None:
    """Step and content of the latest checkpoint that can be used; those after it are set aside.

    or_anew: without any whole one, all are set aside, else Damaged is raised and they stay.
    """
    folder = Path(checkpointer.directory)
    problems: dict[int, Damaged] = {}
    found = None
    for step in sorted((c.step for c in checkpointer.checkpoints), reverse=True):
        try:
            found = step, _read(checkpointer, step)
            break
        except Damaged as error:
            problems[step] = error
    if not problems:
        return found
    if found is None and not or_anew:
        raise Damaged(
            f"{next(iter(problems.values()))}; there is no whole checkpoint before it. Remove {folder}"
            " to start anew"
        )
    instead = f"the checkpoint of step {found[0]} is used" if found else "a new one will be made"
    for step, problem in problems.items():
        log.warning("%s; moved to %s, %s", problem, _set_aside(folder, step), instead)
    checkpointer.reload()
    return found


def _set_aside(folder: Path, step: int) -> Path:
    """Moves a damaged checkpoint out of the store, so that its step can be saved again."""
    target = folder.parent / DAMAGED / f"{folder.name}-{step}-{secrets.token_hex(2)}"
    try:
        target.parent.mkdir(exist_ok=True)
        os.rename(folder / str(step), target)
        return target
    except OSError as error:
        raise InputError(
            f"{folder / str(step)}: damaged, and cannot be moved away ({error.strerror}); remove it"
        ) from error


def _read(checkpointer: ocp.training.Checkpointer, step: int) -> dict[str, Any]:
    """A checkpoint's "state", as nested dicts of arrays, and "metrics". Raises Damaged."""
    where = f"{checkpointer.directory}/{step}"
    try:
        with _quiet():
            content = jax.tree.map(np.asarray, checkpointer.load(step))
        if DIGEST not in content:  # Of a time before there were sums.
            recorded = checkpointer.checkpoints[-1].metrics if checkpointer.checkpoints else None
            return {"state": content, METRICS: dict(recorded or {})}
        whole = np.array_equal(content[DIGEST], digest(content["state"]))
        content.setdefault(METRICS, {})
    except Exception as error:  # Whatever orbax and tensorstore think of: it cannot be read.
        raise Damaged(
            f"{where}: cannot be read as a checkpoint ({type(error).__name__}:"
            f" {' '.join(str(error).split())[:200]})"
        ) from error
    if not whole:
        raise Damaged(f"{where}: damaged: its arrays are not those that were written (their SHA-256 differs)")
    return content


def digest(state: Any) -> np.ndarray:
    """SHA-256 `[32]` uint8 of every array's name, type, shape and bytes, in the order of names."""
    total = hashlib.sha256()
    for name, leaf in sorted((_name(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(state)):
        array = np.asarray(leaf)
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return np.frombuffer(total.digest(), np.uint8)


def exists(workdir: Path) -> bool:
    """Whether any checkpoint, latest or best, lies in a training's folder."""
    return any(
        step.name.isdigit()
        for name in (LATEST, BEST)
        if (workdir / name).is_dir()
        for step in (workdir / name).iterdir()
    )


def load_params(workdir: Path, like: Any) -> tuple[str, Any]:
    """The parameters to use from a training's folder: the best checkpoint, else the latest.

    like: parameters of the network in the folder's config. Returns the checkpoint's name
    ("best/1200") and the parameters. A damaged one is named in a warning and passed over, nothing
    is changed on disk. Raises InputError where there is no whole checkpoint or it does not fit.
    """
    problems: list[Damaged] = []
    for name in (BEST, LATEST):
        folder = workdir / name
        if not folder.is_dir():
            continue
        with _opened(folder) as checkpointer:
            for step in sorted((c.step for c in checkpointer.checkpoints), reverse=True):
                try:
                    params = _read(checkpointer, step)["state"]["params"]
                except Damaged as error:
                    problems.append(error)
                    continue
                for problem in problems:
                    log.warning("%s; %s/%d is used instead", problem, name, step)
                return f"{name}/{step}", _fit(params, like, f"{folder}/{step}")
    if problems:
        raise Damaged(f"{problems[0]}; copy the folder again, there is no other checkpoint in it")
    raise InputError(
        f"{workdir}: no checkpoint below {BEST}/ or {LATEST}/; train one with"
        f" python -m experiments.train --workdir={workdir}"
    )


@contextmanager
def _opened(folder: Path) -> Iterator[ocp.training.Checkpointer]:
    """For reading only."""
    try:
        with _of_this_process() as context:
            checkpointer = ocp.training.Checkpointer(folder.absolute(), context=context)
        with checkpointer:
            yield checkpointer
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise Damaged(f"{folder}: cannot be opened as a folder of checkpoints ({reason(error)})") from error


@contextmanager
def _of_this_process() -> Iterator[ocp.Context]:
    """For a store of this process alone: where several train, orbax would wait for all of them.

    Orbax 0.12 has no way to say that the folder is there already, and refuses to make it for some of
    the processes only; so that step is left out while a store is opened.
    """
    context = ocp.Context()
    if jax.process_count() == 1:
        yield context
        return
    this = jax.process_index()
    context.multiprocessing_options.primary_host = this
    context.multiprocessing_options.active_processes = {this}
    context.multiprocessing_options.barrier_sync_key_prefix = f"process_{this}"
    making = checkpoint_manager._create_root_directory
    checkpoint_manager._create_root_directory = lambda *_: None
    try:
        yield context
    finally:
        checkpoint_manager._create_root_directory = making


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs each failing thread with its traceback; the error itself tells enough."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.FATAL)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)


def _fit(saved: Any, like: Any, where: str) -> Any:
    """`saved` (nested dicts, as orbax gives it back) in the structure of `like`, shapes checked."""
    found = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
    wanted = jax.tree_util.tree_leaves_with_path(like)
    names = [_name(path) for path, _ in wanted]
    problems = sorted(set(names) ^ set(found)) + [
        f"{name}: {found[name].shape} instead of {np.shape(leaf)}"
        for name, (_, leaf) in zip(names, wanted, strict=True)
        if name in found and found[name].shape != np.shape(leaf)
    ]
    if problems:
        raise InputError(
            f"{where}: the checkpoint is of another architecture or optimiser than the config"
            f" ({problems[0]}{', ...' if len(problems) > 1 else ''});"
            " give another --workdir, or the config that it was trained with"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in names])


def _name(path: tuple[Any, ...]) -> str:
    """A path such as params/mean/kernel, the same for dicts, tuples and named tuples."""
    parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(str(part) for part in parts)
