"""Checkpoints of a training through orbax (the only file that knows it).

`WORKDIR/checkpoints/STEP`: the latest few; `WORKDIR/best/STEP`: the best by validation TRE.
A checkpoint appears under its number only when it is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from lmreg_jax.errors import InputError

LATEST, BEST = "checkpoints", "best"


@contextmanager
def store(workdir: Path, name: str, keep: int) -> Iterator[ocp.training.Checkpointer]:
    """The orbax store `WORKDIR/name` that keeps the latest `keep` checkpoints."""
    policy = ocp.training.preservation_policies.LatestN(n=keep)
    always = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
    with ocp.training.Checkpointer(
        (workdir / name).absolute(),
        save_decision_policy=always,
        preservation_policy=policy,
        cleanup_tmp_directories=True,
    ) as checkpointer:
        yield checkpointer


def save(
    checkpointer: ocp.training.Checkpointer, step: int, state: Any, metrics: dict[str, float] | None = None
) -> None:
    """Writes the state of `step` (its steps done so far) and waits until it is whole on disk."""
    if any(c.step == step for c in checkpointer.checkpoints):
        return  # A resumed run reaches the same state at the same step: bit for bit what is there.
    try:
        checkpointer.save(step, jax.device_get(state), force=True, metrics=metrics)
        checkpointer.wait()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{checkpointer.directory}: the checkpoint of step {step} could not be written ({error});"
            " earlier ones are untouched. Make space or give another --workdir"
        ) from error


def restore(checkpointer: ocp.training.Checkpointer, like: Any) -> tuple[int, Any] | None:
    """Step and state of the latest checkpoint, in the structure of `like`; None where there is none.

    Raises InputError where the checkpoint is of another architecture or cannot be read.
    """
    if checkpointer.latest is None:
        return None
    step = checkpointer.latest.step
    where = f"{checkpointer.directory}/{step}"
    return step, _fit(_read(checkpointer, step, where), like, where)


def _read(checkpointer: ocp.training.Checkpointer, step: int, where: str) -> Any:
    try:
        return jax.tree.map(np.asarray, checkpointer.load(step))
    except (OSError, ValueError, KeyError) as error:
        problem = " ".join(str(error).split())[:300]
        raise InputError(
            f"{where}: cannot be read as a checkpoint ({type(error).__name__}: {problem});"
            " remove this folder to go on from the one before it"
        ) from error


def exists(workdir: Path) -> bool:
    """Whether any checkpoint, latest or best, lies in a training's folder."""
    return any(
        step.name.isdigit()
        for name in (LATEST, BEST)
        if (workdir / name).is_dir()
        for step in (workdir / name).iterdir()
    )


def best_metrics(checkpointer: ocp.training.Checkpointer) -> dict[str, float]:
    """The metrics that the latest checkpoint was saved with; empty where there is none."""
    if checkpointer.latest is None:
        return {}
    return dict(checkpointer.latest.metrics or {})


def load_params(workdir: Path, like: Any) -> tuple[str, Any]:
    """The parameters to use from a training's folder: the best checkpoint, else the latest.

    like: parameters of the network in the folder's config. Returns the checkpoint's name
    ("best/1200") and the parameters. Raises InputError where there is no checkpoint or it does
    not fit.
    """
    for name in (BEST, LATEST):
        if not (workdir / name).is_dir():
            continue
        with ocp.training.Checkpointer((workdir / name).absolute()) as checkpointer:
            if checkpointer.latest is None:
                continue
            step = checkpointer.latest.step
            where = f"{workdir}/{name}/{step}"
            params = _read(checkpointer, step, where)["params"]
            return f"{name}/{step}", _fit(params, like, where)
    raise InputError(
        f"{workdir}: no checkpoint below {BEST}/ or {LATEST}/; train one with"
        f" python -m experiments.train --workdir={workdir}"
    )


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
