"""Checkpoints: back as they were, the latest kept, other architectures and torn files refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmreg_jax import checkpoint
from lmreg_jax.errors import InputError
from lmreg_jax.training import TrainState, initial_state


def state(width: int = 3, value: float = 0.0, step: int = 0) -> TrainState:
    layer = {"kernel": jnp.full((2, width), value), "bias": jnp.arange(width, dtype=jnp.float32)}
    made = initial_state({"params": {"mean": layer}}, optax.adam(1e-3))
    return made._replace(step=jnp.int32(step))


def saved(workdir: Path, *steps: int, name: str = checkpoint.LATEST, keep: int = 2) -> Path:
    with checkpoint.store(workdir, name, keep) as store:
        for step in steps:
            checkpoint.save(store, step, state(value=step / 7, step=step))
    return workdir


def restored(workdir: Path, like: Any) -> Any:
    with checkpoint.store(workdir, checkpoint.LATEST, 2) as store:
        return checkpoint.restore(store, like)


def test_the_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    step, found = restored(saved(tmp_path, 3), state())
    wanted = state(value=3 / 7, step=3)
    assert step == 3
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_nothing_to_restore_is_none(tmp_path: Path) -> None:
    assert restored(tmp_path, state()) is None
    assert not checkpoint.exists(tmp_path)


def test_the_latest_few_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 5, 9)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["5", "9"]
    assert restored(tmp_path, state())[0] == 9
    assert checkpoint.exists(tmp_path)


def test_a_step_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    with checkpoint.store(tmp_path, checkpoint.LATEST, 2) as store:
        checkpoint.save(store, 4, state(value=99.0))
    kernel = restored(tmp_path, state())[1].params["params"]["mean"]["kernel"]
    np.testing.assert_array_equal(kernel, np.float32(4 / 7))


def test_metrics_come_back(tmp_path: Path) -> None:
    with checkpoint.store(tmp_path, checkpoint.BEST, 1) as store:
        assert checkpoint.best_metrics(store) == {}
        checkpoint.save(store, 2, state(), {"tre_mm": 4.25})
    with checkpoint.store(tmp_path, checkpoint.BEST, 1) as store:
        assert checkpoint.best_metrics(store) == {"tre_mm": 4.25}


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (state(width=4), r"mean/bias: \(3,\) instead of \(4,\)"),
        (state()._replace(params={"params": {"other": {}}}), "params/params/mean"),
        (state()._replace(optimiser=optax.sgd(1.0).init(state().params)), "optimiser/0"),
    ],
)
def test_another_architecture_or_optimiser_is_refused(
    like: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"another architecture.*" + message):
        restored(saved(tmp_path, 1), like)


def test_parameters_are_those_of_the_best_else_of_the_latest(tmp_path: Path) -> None:
    like = jax.eval_shape(lambda: state().params)
    with pytest.raises(InputError, match=r"no checkpoint below best/ or checkpoints/"):
        checkpoint.load_params(tmp_path, like)
    source, params = checkpoint.load_params(saved(tmp_path, 3), like)
    assert source == "checkpoints/3"
    np.testing.assert_array_equal(params["params"]["mean"]["kernel"], np.float32(3 / 7))
    assert checkpoint.load_params(saved(tmp_path, 2, name="best"), like)[0] == "best/2"


# orbax leaves a thread behind where a file that it reads is gone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["emptied", "arrays", "cut"])
def test_a_damaged_checkpoint_is_named(damage: str, tmp_path: Path) -> None:
    """Its folder is named in one readable sentence, and the one before it serves when it is gone."""
    saved(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints/2"
    if damage == "arrays":
        for name in ("d", "ocdbt.process_0"):
            for path in folder.rglob(name):
                shutil.rmtree(path)
    else:
        for path in [p for p in folder.rglob("*") if p.is_file()]:
            path.write_bytes(path.read_bytes()[: 0 if damage == "emptied" else 10])
    with pytest.raises(InputError, match=r"checkpoints/2: cannot be read as a checkpoint"):
        restored(tmp_path, state())
    with pytest.raises(InputError, match=r"checkpoints/2: cannot be read as a checkpoint"):
        checkpoint.load_params(tmp_path, state().params)
    shutil.rmtree(folder)
    assert restored(tmp_path, state())[0] == 1
