"""The training command on several processes of this machine: the same run, ended and resumed together."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import jax
import numpy as np
import pytest

import experiments.train as program
from experiments import lung, processes
from lmreg_jax import checkpoint
from lmreg_jax.errors import InputError
from tests import tiny_cohort
from tests.test_distributed import free_port
from tests.tiny_training import compiled_once, rows, saved_state  # noqa: F401

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 240
VALUES = {
    "data.shape": "(12,8,12)",
    "data.spacing_mm": 26,
    "data.alignment": "moments",
    "model.encoder": "(4,)",
    "model.decoder": "(4,)",
    "model.final": "()",
    # Biases before a normalisation have no gradient but rounding, which Adam makes as large as others.
    "model.normalisation": "none",
    "objective.integration_steps": 2,
    "train.pairs_per_batch": 4,
    "train.checkpoint_every": 2,
    "train.log_every": 1,
    "train.coarse_steps": 0,
}


class Command:
    """`python -m experiments.train` on a cohort of three training cases, which leaves no evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        root = tiny_cohort.write_cohort(folder / "cohort", ("train",) * 3)
        self._values = VALUES | {"data.root": root, "data.cache": folder / "cache"}

    def start(self, workdir: Path, count: int = 1, own: tuple[str, ...] = (), **changes: object) -> list:
        """`count` processes; own: a flag of each."""
        given = self._flags(workdir, **changes)
        team = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"] if count > 1 else []
        return [
            self.popen(
                [sys.executable, "-m", "experiments.train", *given, *team]
                + ([f"--process={index}"] if count > 1 else [])
                + list(own[index : index + 1])
            )
            for index in range(count)
        ]

    def job(self, workdir: Path, started: Path, count: int, **changes: object) -> subprocess.Popen[str]:
        """The job script of `docs`, with stand-ins for SLURM's programs; started: see `slurm/srun`."""
        variables = {
            "PATH": f"{ROOT}/tests/slurm:{os.environ['PATH']}",
            "LMREG_PYTHON": sys.executable,
            "SLURM_JOB_ID": str(os.getpid()),  # JAX takes the port from it.
            "SLURM_NTASKS": str(count),
            "SRUN_STARTED": str(started),
        }
        return self.popen(["bash", "docs/slurm_train.sh", *self._flags(workdir, **changes)], variables)

    def _flags(self, workdir: Path, **changes: object) -> list[str]:
        values = self._values | {f"train.{name}": value for name, value in changes.items()}
        return [f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in values.items())]

    def popen(
        self, arguments: list[str], variables: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "LMREG_COMPILATION_CACHE": str(self.folder / "compiled"),
            **variables,
        }
        return subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def here(self, workdir: Path, **changes: object) -> None:
        """The same training in this process, on its four devices."""
        config = lung.get_config()
        config.update_from_flattened_dict(
            {name: config_value(str(value)) for name, value in self._values.items()}
            | {f"train.{name}": value for name, value in changes.items()}
        )
        program.train(config, workdir)

    def ends(self, started: list, status: int) -> list[str]:
        """What the processes said, which all end with `status`."""
        said = [process.communicate(timeout=PATIENCE_SECONDS)[1] for process in started]
        assert [process.returncode for process in started] == [status] * len(started), said
        return said


def config_value(text: str) -> object:
    """A value as it stands on the command line."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    return Command(tmp_path_factory.mktemp("processes"))


@pytest.mark.slow
def test_two_processes_train_as_one_which_resumes_them(
    command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    """One process of four devices, two of one: sums differ by rounding, 1e-5 of an array's largest value."""
    alone, together = command.folder / "alone", command.folder / "together"
    command.here(alone, steps=4)
    command.ends(command.start(together, 2, steps=4), 0)

    def agree() -> None:
        (found_step, found), (wanted_step, wanted) = saved_state(together), saved_state(alone)
        assert found_step == wanted_step == 4
        floats = [(a, b) for a, b in zip(found, wanted, strict=True) if a.dtype == np.float32]
        assert len(floats) > 20
        for one, other in floats:
            np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())

    agree()
    columns = ("step", "loss", "grad_norm")
    for one, other in zip(rows(together), rows(alone), strict=True):
        found, wanted = ([float(row[c]) for c in columns] for row in (one, other))
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert sorted(p.name for p in (together / checkpoint.LATEST).iterdir() if p.name.isdigit()) == ["2", "4"]

    shutil.rmtree(together / checkpoint.LATEST / "4")
    command.here(together, steps=4)
    assert "resumed at step 2" in caplog.text and "processes 2 -> 1" in caplog.text
    agree()


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_the_job_is_queued_again(command: Command) -> None:
    """By the job script. Process 1, which writes nothing, is told: process 0 saves."""
    workdir, started = command.folder / "stopped", command.folder / "started"
    job = command.job(workdir, started, 2, steps=100_000, checkpoint_every=100_000)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (workdir / "scalars.csv").is_file() or len(rows(workdir)) < 3:
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(int(started.read_text(encoding="utf-8").split()[1]), signal.SIGTERM)
    (said,) = command.ends([job], 0)
    assert f"scontrol requeue {os.getpid()}" in said
    step, _ = saved_state(workdir)
    assert step == int(rows(workdir)[-1]["step"]) < 100_000


@pytest.mark.slow
def test_an_error_in_one_ends_both(command: Command) -> None:
    """Nobody waits for ever: the lead finds that process 1 has another seed."""
    started = command.start(command.folder / "unlike", 2, ("--config.seed=0", "--config.seed=1"))
    lead, other = command.ends(started, 2)
    assert "error: process 1 would train on other pairs or with another config than process 0" in lead
    assert "process 0 has ended: process 1 would train on other pairs" in other


def test_one_process_is_a_team_by_itself() -> None:
    team = processes.Team()
    assert team.lead and team.devices() == jax.local_devices()
    assert team.share([1, 2, 3]) == [1, 2, 3]
    assert team.any(True) and not team.any(False)
    assert team.meet("here", "word") == ["word"]
    assert team.lead_first(lambda: 3) == 3


def test_shares_stand_in_the_order_of_the_processes() -> None:
    parts = []
    for index in range(3):
        team = processes.Team()
        team.index, team.count = index, 3
        parts.append(team.share(list("abcdef")))
    assert parts == [["a", "b"], ["c", "d"], ["e", "f"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": 2}, "need --coordinator=HOST:PORT"),
        ({"coordinator": "a:1", "processes": 2}, "--processes=2 and --process=-1"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "--processes=2 and --process=2"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "HOST:PORT is needed"),
        ({"coordinator": "a:1", "distributed": True}, "leave one of the two away"),
    ],
)
def test_flags_that_do_not_fit_together(
    changes: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = SimpleNamespace(
        **{"coordinator": "", "processes": 1, "process": -1, "distributed": False, **changes}
    )
    monkeypatch.setattr(processes.flags, "FLAGS", given)
    with pytest.raises(InputError, match=message), processes.joined():
        pytest.fail("joined")
