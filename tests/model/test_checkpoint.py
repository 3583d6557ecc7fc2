"""Checkpoints: back as they were, the latest kept, other architectures and torn files refused."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmreg_jax.errors import InputError
from lmreg_jax.model import checkpoint
from lmreg_jax.training.step import TrainState, initial_state


def state(width: int = 3, value: float = 0.0, step: int = 0) -> TrainState:
    layer = {"kernel": jnp.full((2, width), value), "bias": jnp.arange(width, dtype=jnp.float32)}
    made = initial_state({"params": {"mean": layer}}, optax.adam(1e-3))
    return made._replace(step=jnp.int32(step))


def saved(workdir: Path, *steps: int, name: str = checkpoint.LATEST, keep: int = 2) -> Path:
    store = checkpoint.store(workdir, name, keep)
    for step in steps:
        checkpoint.save(store, step, state(value=step / 7, step=step))
    return workdir


def restored(workdir: Path, like: Any) -> Any:
    return checkpoint.restore(checkpoint.store(workdir, checkpoint.LATEST, 2), like)


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
    checkpoint.save(checkpoint.store(tmp_path, checkpoint.LATEST, 2), 4, state(value=99.0))
    kernel = restored(tmp_path, state())[1].params["params"]["mean"]["kernel"]
    np.testing.assert_array_equal(kernel, np.float32(4 / 7))


def test_metrics_come_back(tmp_path: Path) -> None:
    store = checkpoint.store(tmp_path, checkpoint.BEST, 1)
    assert checkpoint.metrics(store) == {}
    checkpoint.save(store, 2, state(), {"tre_mm": 4.25})
    assert checkpoint.metrics(store) == {"tre_mm": 4.25}


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (state(width=4), r"mean/bias: \(3,\) instead of \(4,\)"),
        (state()._replace(params={"params": {"other": {}}}), "params/params/mean"),
        (state()._replace(optimiser=optax.sgd(1.0).init(state().params)), "optimiser/0"),
    ],
)
def test_another_architecture_or_optimiser_is_refused(like: Any, message: str, tmp_path: Path) -> None:
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


def damage(folder: Path, how: str) -> None:
    """What a broken disk, a full one or a careless hand does to a checkpoint's folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if how == "arrays gone":
        for name in ("d", "ocdbt.process_0"):
            for path in folder.rglob(name):
                shutil.rmtree(path)
    elif how == "bits flipped":
        # Which of the files with arrays, and which of their bytes, are ever read again is orbax's own
        # affair: so one bit in every hundred bytes of all of them is changed.
        for path in (p for p in files if p.parent.name == "d"):
            content = bytearray(path.read_bytes())
            for position in range(len(content) // 2 % 100, len(content), 100):
                content[position] ^= 1
            path.write_bytes(bytes(content))
    else:
        for path in files:
            path.write_bytes(path.read_bytes()[: 0 if how == "emptied" else 10])


DAMAGES = ("emptied", "cut", "arrays gone", "bits flipped")
# orbax leaves a thread behind where a file that it reads is gone.
leaves_threads = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@leaves_threads
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 1, 2)
    damage(tmp_path / "checkpoints/2", how)
    source, params = checkpoint.load_params(tmp_path, state().params)
    assert source == "checkpoints/1"
    np.testing.assert_array_equal(params["params"]["mean"]["kernel"], np.float32(1 / 7))
    assert re.search(r"checkpoints/2: .*; checkpoints/1 is used instead", caplog.text)
    caplog.clear()
    assert restored(tmp_path, state())[0] == 1
    assert re.search(r"checkpoints/2: .*moved to .*damaged.*the one before it is used", caplog.text)
    assert len(list((tmp_path / "damaged").iterdir())) == 1
    saved(tmp_path, 2)  # Its step is free again.
    assert restored(tmp_path, state())[0] == 2


@leaves_threads
def test_without_a_whole_checkpoint_nothing_is_guessed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    damage(tmp_path / "checkpoints/1", "cut")
    for _ in range(2):  # Nothing is moved: a second start must not begin at 0 without a word.
        with pytest.raises(InputError, match=r"checkpoints/1: .*no whole checkpoint before it"):
            restored(tmp_path, state())
    with pytest.raises(InputError, match=r"checkpoints/1: .*no other checkpoint"):
        checkpoint.load_params(tmp_path, state().params)


@leaves_threads
def test_a_damaged_best_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(saved(tmp_path, 3), 2, name="best")
    damage(tmp_path / "best/2", "cut")
    assert checkpoint.load_params(tmp_path, state().params)[0] == "checkpoints/3"
    assert checkpoint.metrics(checkpoint.store(tmp_path, checkpoint.BEST, 1)) == {}
    assert "moved to" in caplog.text
    assert not (tmp_path / "best/2").exists()


def test_a_digest_knows_names_types_shapes_and_bits() -> None:
    one = {"a": np.zeros((2, 3), np.float32), "b": np.int32(1)}
    others: list[Any] = [
        {"a": np.zeros((3, 2), np.float32), "b": np.int32(1)},
        {"a": np.zeros((2, 3), np.int32), "b": np.int32(1)},
        {"c": np.zeros((2, 3), np.float32), "b": np.int32(1)},
        {"a": -np.zeros((2, 3), np.float32), "b": np.int32(1)},
    ]
    digests = [checkpoint.digest(tree).tobytes() for tree in (one, *others)]
    assert len(set(digests)) == len(digests)
    reordered = {name: one[name] for name in ("b", "a")}
    assert checkpoint.digest(reordered).tobytes() == digests[0]


def test_a_save_that_fails_names_the_reason_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full before orbax begins, or fills up while it writes."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    store = checkpoint.store(tmp_path, checkpoint.LATEST, 2)
    checkpoint.save(store, 1, state())
    for where, name in ((os, "posix_fallocate"), (checkpoint.ocp, "save")):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=r"step 2 .*No space left"):
            patch.setattr(where, name, full)
            checkpoint.save(store, 2, state())
        assert store.steps == [1] and len(list(store.folder.iterdir())) == 1
    checkpoint.save(store, 2, state(step=2))
    assert restored(tmp_path, state())[0] == 2


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    """A checkpoint half written, one half removed, room that was being reserved."""
    saved(tmp_path, 1)
    folder = tmp_path / checkpoint.LATEST
    for name in (f"2{checkpoint.UNFINISHED}", f"0{checkpoint.UNFINISHED}"):
        (folder / name / "d").mkdir(parents=True)
    (folder / ".room-1-a").touch()
    store = checkpoint.store(tmp_path, checkpoint.LATEST, 2)
    assert [path.name for path in folder.iterdir()] == ["1"] and store.steps == [1]
