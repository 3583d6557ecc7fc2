"""Trainings that are really killed: SIGKILL at random moments, SIGTERM once and twice.

The processes are forked from one that has imported everything (multiprocessing's forkserver), and
what they compile is kept on disk: so a start takes a second or two, not ten.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.run import lock, preemption
from lmreg_jax.errors import InputError
from lmreg_jax.model import checkpoint
from tests import tiny_cohort
from tests.tiny_training import rows, saved_state, settings

ROOT = Path(__file__).parents[2]
KILLS = 8
STEPS = 48
PATIENCE_SECONDS = 900.0  # of a loaded machine, before a test gives up

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals"),
]


def run(root: Path, folder: Path, workdir: Path, changes: dict[str, Any]) -> None:
    """In a process of its own: one CPU device, compiled programs from `folder`/compiled."""
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    import experiments.train as program

    config = settings(root, folder)
    config.train.steps = STEPS
    config.train.pairs_per_batch = 2
    config.model.passes = 1  # Each start traces the step anew; a cascade's takes twice the time.
    config.train.validate_every = 6
    for name, value in changes.items():
        config.train[name] = value
    program.train(config, workdir, evaluate=False)


class Runs:
    """Starts trainings of one cohort, ends those that a test leaves behind."""

    def __init__(self, folder: Path) -> None:
        splits = ("train",) * 3 + ("validation",) * 2
        self.root = tiny_cohort.write_cohort(folder / "cohort", splits)
        self.folder = folder
        self._context = multiprocessing.get_context("forkserver")
        # The last two a run would import by itself, later: seconds in each start.
        self._context.set_forkserver_preload(
            ["experiments.train", "tests.tiny_training", "tensorboardX", "matplotlib.figure"]
        )
        self._started: list[Any] = []

    def start(self, workdir: Path, **changes: Any) -> Any:
        process = self._context.Process(target=run, args=(self.root, self.folder, workdir, changes))
        process.start()
        self._started.append(process)
        return process

    def to_the_end(self, workdir: Path, **changes: Any) -> Path:
        process = self.start(workdir, **changes)
        process.join(PATIENCE_SECONDS)
        assert process.exitcode == 0
        return workdir

    def end(self) -> None:
        for process in self._started:
            if process.is_alive():
                process.kill()
            process.join()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("killed"))
    yield made
    made.end()


@pytest.fixture(scope="module")
def uninterrupted(runs: Runs) -> Path:
    return runs.to_the_end(runs.folder / "uninterrupted")


def wait(process: Any, happened: Callable[[], bool]) -> bool:
    """Until it has happened; False where the process has ended before."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        if not process.is_alive():
            return False
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.0005)
    return True


def being_written(workdir: Path) -> set[str]:
    """Checkpoints that are not whole yet."""
    found = (workdir / checkpoint.LATEST).glob("*" + checkpoint.UNFINISHED)
    return {path.name for path in found}


def logged(workdir: Path) -> int:
    """Lines of scalars.csv: grows by one a step, starts anew where a run resumes."""
    try:
        return (workdir / "scalars.csv").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def moment(kind: int, process: Any, workdir: Path, chance: random.Random) -> bool:
    """Waits for a random moment: of the start, between steps, or within a checkpoint's writing."""
    if kind == 0:
        time.sleep(chance.uniform(0, 2))
    elif kind == 1:
        seen = logged(workdir)
        if not wait(process, lambda: logged(workdir) != seen):
            return False
        time.sleep(chance.uniform(0, 0.5))
    else:
        for _ in range(chance.randint(1, 3)):
            before = being_written(workdir)
            if not wait(process, lambda before=before: bool(being_written(workdir) - before)):
                return False
        time.sleep(chance.uniform(0, 0.03))
    return bool(process.is_alive())


def test_a_training_killed_many_times_ends_bit_for_bit_as_if_never(runs: Runs, uninterrupted: Path) -> None:
    chance = random.Random(2020)
    workdir = runs.folder / "killed"
    torn, reached = 0, []
    for number in range(KILLS):
        process = runs.start(workdir)
        kind = (2, 1, 2, 0)[number % 4]
        assert moment(kind, process, workdir, chance), f"it ended by itself ({process.exitcode}): more steps"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        torn += bool(being_written(workdir))
        numbers = [int(p.name) for p in (workdir / checkpoint.LATEST).glob("*") if p.name.isdigit()]
        reached.append(max(numbers, default=0))
    print(f"{torn} of {KILLS} kills within a checkpoint's writing; steps reached: {reached}")
    assert torn >= 1
    assert 0 < reached[-1] < STEPS
    runs.to_the_end(workdir)
    for name in (checkpoint.LATEST, checkpoint.BEST):
        (found_step, found), (wanted_step, wanted) = (
            saved_state(folder, name) for folder in (workdir, uninterrupted)
        )
        assert found_step == wanted_step
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    assert rows(workdir) == rows(uninterrupted)
    assert not being_written(workdir)
    assert not list(workdir.rglob(".writing-*")) and not list(workdir.rglob(".room-*"))
    assert not (workdir / "damaged").exists()


def test_sigterm_saves_and_exits_with_resume_me(runs: Runs, uninterrupted: Path) -> None:
    """No other checkpoint is due before the end: what is there after the signal is its doing."""
    workdir = runs.folder / "preempted"
    process = runs.start(workdir, checkpoint_every=1000)
    assert wait(process, lambda: logged(workdir) > 5)
    process.terminate()
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == preemption.RESUME_STATUS == 75
    step, _ = saved_state(workdir)
    assert 4 <= step < STEPS
    assert max(int(row["step"]) for row in rows(workdir)) == step
    runs.to_the_end(workdir, checkpoint_every=1000)
    for one, other in zip(saved_state(workdir)[1], saved_state(uninterrupted)[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert rows(workdir) == rows(uninterrupted)


def test_two_runs_on_one_workdir_the_second_refuses(runs: Runs) -> None:
    workdir = runs.folder / "shared"
    first = runs.start(workdir, steps=100_000)
    assert wait(first, lambda: logged(workdir) > 2)
    refused = pytest.raises(InputError, match=rf"shared: in use by another run, process {first.pid} on ")
    with refused, lock.held(workdir):
        pytest.fail("two runs hold one folder")
    second = runs.start(workdir, steps=100_000)
    second.join(PATIENCE_SECONDS)
    assert second.exitcode == 1 and first.is_alive()  # (2 by the command; `run` has no main around it.)
    first.kill()
    first.join()
    with lock.held(workdir):  # Nothing stale is left of a killed run.
        pass


WATCHED = """
import hashlib, sys, time
from experiments.run import preemption
with preemption.watched() as stop:
    with stop.deferred():
        print("ready", flush=True)
        {work}
        print("asked", stop.asked, flush=True)
    {after}
"""
IN_C = "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 500_000_000)"  # minutes, and no way back to Python
IN_PYTHON = "[time.sleep(0.01) for _ in iter(lambda: stop.asked, True)]"


def watched(work: str, after: str = "pass") -> subprocess.Popen[str]:
    program = WATCHED.format(work=work, after=after)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_second_signal_ends_at_once_even_within_a_long_call() -> None:
    process = watched(IN_C)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "second signal" in errors


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_waits_where_it_is_deferred_and_ends_elsewhere(number: int) -> None:
    process = watched(IN_PYTHON, "stop.at_once().__enter__(); print('not reached')")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert output == "asked True\n"
    assert signal.Signals(number).name in errors and "status 75" in errors


def test_without_a_signal_nothing_changes() -> None:
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    with preemption.watched() as stop, stop.deferred(), stop.at_once():
        assert not stop.asked
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in preemption.SIGNALS} == before


def test_a_signal_ends_the_writing_of_the_embedded_cohort_which_then_continues(tmp_path: Path) -> None:
    """Of 300 cases some are there when the signal comes; the next start leaves those as they are."""
    command = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path}/run"]
    values = {"shape": "(16,12,16)", "spacing_mm": 20, "cases": 300, "cache": tmp_path / "cache"}
    command += [f"--config.data.{name}={value}" for name, value in values.items()]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "LMREG_CACHE": str(tmp_path)}

    def finished() -> dict[str, int]:
        files = tmp_path.glob(".thorax_*.partial/points/*.csv")
        return {path.name: path.stat().st_mtime_ns for path in files if not path.name.startswith(".")}

    for number in (signal.SIGTERM, signal.SIGINT):
        before = finished()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(finished()) < len(before) + 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        # A terminal sends Ctrl-C to the workers as well.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == preemption.RESUME_STATUS and "Traceback" not in said
        after = finished()
        assert before.items() <= after.items() and len(before) < len(after) < 300
        time.sleep(2)
        assert finished() == after  # No worker goes on.
