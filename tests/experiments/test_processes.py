"""The training command on several processes of this machine: the same run, ended and resumed together."""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import jax
import numpy as np
import pytest

import experiments.train as program
from experiments import lung
from experiments.run import processes
from lmreg_jax.errors import InputError
from lmreg_jax.model import checkpoint
from tests import tiny_cohort
from tests.tiny_training import compiled_once, rows, saved_state  # noqa: F401

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 900  # of a busy machine
STEPS = 8
QUICK = "--xla_backend_optimization_level=0"
VALUES = {
    "data.shape": "(12,8,12)",
    "data.spacing_mm": 26,
    "data.alignment": "moments",
    "model.encoder": "(4,)",
    "model.decoder": "(4,)",
    "model.final": "()",
    "model.passes": 1,
    # Biases before a normalisation have no gradient but rounding, which Adam makes as large as others.
    "model.normalisation": "none",
    "objective.integration_steps": 2,
    "train.pairs_per_batch": 4,
    "train.steps": STEPS,
    "train.keep": 4,
    "train.checkpoint_every": 2,
    "train.log_every": 1,
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Command:
    """`python -m experiments.train` on a cohort of three training cases, which leaves no evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        root = tiny_cohort.write_cohort(folder / "cohort", ("train",) * 3)
        self._values = VALUES | {"data.root": root, "data.cache": folder / "cache"}
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, workdir: Path, count: int = 1, own: tuple[str, ...] = (), devices: int = 1, **changes: object
    ) -> list[subprocess.Popen[str]]:
        """`count` processes of `devices` each; own: a flag of each."""
        given = self._flags(workdir, **changes)
        variables = {"XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}"}
        team = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"] if count > 1 else []
        return [
            self.popen(
                [sys.executable, "-m", "experiments.train", *given, *team]
                + ([f"--process={index}"] if count > 1 else [])
                + list(own[index : index + 1]),
                variables,
            )
            for index in range(count)
        ]

    def local(self, workdir: Path, count: int, **changes: object) -> subprocess.Popen[str]:
        """The script of `docs` for several processes of this machine."""
        script = ["bash", "scripts/train_local.sh", str(count), *self._flags(workdir, **changes)]
        return self.popen(script, {"LMREG_PYTHON": sys.executable})

    def job(self, workdir: Path, started: Path, count: int, **changes: object) -> subprocess.Popen[str]:
        """The job script of `docs`, with stand-ins for SLURM's programs; started: see `slurm/srun`."""
        variables = {
            "PATH": f"{ROOT}/tests/slurm:{os.environ['PATH']}",
            "LMREG_PYTHON": sys.executable,
            "SLURM_JOB_ID": str(os.getpid()),  # JAX takes the port from it.
            "SLURM_NTASKS": str(count),
            "SRUN_STARTED": str(started),
        }
        return self.popen(["bash", "scripts/train_slurm.sh", *self._flags(workdir, **changes)], variables)

    def _flags(self, workdir: Path, **changes: object) -> list[str]:
        values = self._values | {f"train.{name}": value for name, value in changes.items()}
        return [f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in values.items())]

    def popen(
        self, arguments: list[str], variables: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": QUICK,
            "LMREG_COMPILATION_CACHE": str(self.folder / "compiled"),
            **variables,
        }
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def end(self) -> None:
        """What a failed test has left."""
        for process in self._started:
            process.terminate()  # A script hands it on.
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
            process.kill()

    def here(self, workdir: Path, **changes: object) -> None:
        """The same training in this process, on its four devices."""
        config = lung.get_config()
        config.update_from_flattened_dict(
            {name: config_value(str(value)) for name, value in self._values.items()}
            | {f"train.{name}": value for name, value in changes.items()}
        )
        program.train(config, workdir)

    def ends(self, started: list[subprocess.Popen[str]], status: int) -> list[str]:
        """What the processes said, which all end with `status`."""
        said = all_said(started)
        assert [process.returncode for process in started] == [status] * len(started), said
        return said


def all_said(started: list[subprocess.Popen[str]]) -> list[str]:
    """What each process said, when all have ended."""
    return [process.communicate(timeout=PATIENCE_SECONDS)[1] for process in started]


def config_value(text: str) -> object:
    """A value as it stands on the command line."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    made = Command(tmp_path_factory.mktemp("processes"))
    yield made
    made.end()


@pytest.fixture(scope="module")
def alone(command: Command) -> Path:
    """STEPS steps of one process with one device, a checkpoint every second one. Read only."""
    command.ends(command.start(command.folder / "alone"), 0)
    return command.folder / "alone"


def cut_back(workdir: Path, step: int) -> None:
    """As if the run had been cut off after that step's checkpoint."""
    for path in (workdir / checkpoint.LATEST).iterdir():
        if path.name.isdigit() and int(path.name) > step:
            shutil.rmtree(path)


def is_the_same_run(workdir: Path, alone: Path) -> None:
    """Sums in another order differ by rounding: 1e-5 of an array's largest value, 1e-4 in a log's row."""
    (found_step, found), (wanted_step, wanted) = saved_state(workdir), saved_state(alone)
    assert found_step == wanted_step == STEPS
    floats = [(a, b) for a, b in zip(found, wanted, strict=True) if a.dtype == np.float32]
    assert len(floats) > 20
    for one, other in floats:
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
    columns = ("step", "loss", "grad_norm")
    for one, other in zip(rows(workdir), rows(alone), strict=True):
        mine, theirs = ([float(row[c]) for c in columns] for row in (one, other))
        np.testing.assert_allclose(mine, theirs, rtol=1e-4)


@pytest.mark.slow
def test_two_processes_train_as_one_by_the_script_for_one_machine(command: Command, alone: Path) -> None:
    workdir = command.folder / "together"
    command.ends([command.local(workdir, 2)], 0)
    is_the_same_run(workdir, alone)
    written = [p.name for p in (workdir / checkpoint.LATEST).iterdir()]
    assert sorted(name for name in written if name.isdigit()) == ["2", "4", "6", "8"]


@pytest.mark.slow
def test_a_checkpoint_goes_on_with_any_number_of_devices_and_processes(
    command: Command, alone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two steps of one device, two of two processes of two devices, two of four devices, two of two."""
    workdir = command.folder / "handed_on"
    shutil.copytree(alone, workdir)
    cut_back(workdir, 2)
    lead, _ = command.ends(command.start(workdir, 2, devices=2), 0)
    assert "resumed at step 2" in lead and "processes 1 -> 2" in lead
    cut_back(workdir, 4)
    command.here(workdir)
    assert "resumed at step 4" in caplog.text and "processes 2 -> 1" in caplog.text
    cut_back(workdir, 6)
    (said,) = command.ends(command.start(workdir, devices=2), 0)
    assert "resumed at step 6" in said and "devices cpu 4 -> 2" in said
    is_the_same_run(workdir, alone)


def wait_for_rows(started: list[subprocess.Popen[str]], workdir: Path) -> None:
    """Until three steps are done."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (workdir / "scalars.csv").is_file() or len(rows(workdir)) < 3:
        assert all(process.poll() is None for process in started) and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_the_job_is_queued_again(command: Command) -> None:
    """By the job script. Process 1, which writes nothing, is told: process 0 saves."""
    workdir, started = command.folder / "stopped", command.folder / "started"
    job = command.job(workdir, started, 2, steps=100_000, checkpoint_every=100_000)
    wait_for_rows([job], workdir)
    os.kill(int(started.read_text(encoding="utf-8").split()[1]), signal.SIGTERM)
    (said,) = command.ends([job], 0)
    assert f"scontrol requeue {os.getpid()}" in said
    step, _ = saved_state(workdir)
    assert step == int(rows(workdir)[-1]["step"]) < 100_000


SIGNALLED = """\
#!{python}
import os, signal, sys, time
seen = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: seen.append(number))
os.write(2, b"ready " + sys.argv[-1].encode() + b"\\n")
while not seen:
    time.sleep(0.01)
time.sleep(0.5)
os.write(2, repr(seen).encode() + b"\\n")
sys.exit(75 if seen == [signal.SIGTERM] else 1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_script_for_one_machine_hands_a_signal_on_once(number: int, tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the script's whole group; a second signal would end without saving."""
    program = tmp_path / "python"
    program.write_text(SIGNALLED.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    # A shell cannot trap what it was started to ignore, as Ctrl-C is in what runs in the background.
    before = signal.signal(number, signal.default_int_handler)
    try:
        script = subprocess.Popen(
            ["bash", "scripts/train_local.sh", "2"],
            cwd=ROOT,
            env={**os.environ, "LMREG_PYTHON": str(program), "LMREG_PORT": "1"},
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
    finally:
        signal.signal(number, before)
    try:
        assert script.stderr is not None
        ready = {script.stderr.readline() for _ in range(2)}
        assert ready == {"ready --process=0\n", "ready --process=1\n"}
        os.killpg(script.pid, number)
        _, said = script.communicate(timeout=PATIENCE_SECONDS)
    finally:
        script.terminate()
    assert (script.returncode, said) == (75, f"[{int(signal.SIGTERM)}]\n" * 2)


@pytest.mark.slow
def test_an_error_in_one_ends_both(command: Command) -> None:
    """Process 1 finds that it has another seed than the lead, which need not wait for ever."""
    own = ("--config.train.seed=0", "--config.train.seed=1")
    started = command.start(command.folder / "unlike", 2, own)
    lead, second = all_said(started)
    assert started[0].returncode != 0 and started[1].returncode == 2
    assert "error: process 1 would train on other pairs" in second
    assert "start all again by the same command" in second and "start all again" in lead


@pytest.mark.slow
@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.versions), 1])
def test_a_process_that_is_killed_ends_the_other_which_says_what_to_do(command: Command, killed: int) -> None:
    workdir = command.folder / f"killed_{killed}"
    started = command.start(workdir, 2, steps=100_000)
    wait_for_rows(started, workdir)
    started[killed].kill()
    said = all_said(started)
    assert started[killed].returncode == -signal.SIGKILL and started[1 - killed].returncode != 0
    assert "start all again by the same command" in said[1 - killed]
    assert saved_state(workdir)[0] >= 2


def test_one_process_is_a_team_by_itself() -> None:
    team = processes.Team()
    assert team.lead and team.devices == jax.local_devices()
    assert team.share([1, 2, 3]) == [1, 2, 3]
    assert team.any(True) and not team.any(False)
    assert team.from_lead(3) == team.lead_first(lambda: 3) == 3


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
        ({"coordinator": "a", "processes": 2, "process": 0}, "expected HOST:PORT"),
        ({"coordinator": "a:1", "distributed": True}, "omit one of the two"),
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
