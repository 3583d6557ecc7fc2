"""Two processes with half of the pairs each train the parameters of one process with all of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import distributed_worker


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def run(folder: Path, count: int, devices: int) -> list[dict[str, np.ndarray]]:
    port = free_port()
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    files = [folder / f"{i}.npz" for i in range(count)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed_worker", str(file), port, str(count), str(i)],
            env=env,
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for i, file in enumerate(files)
    ]
    errors = [process.communicate(timeout=900)[1] for process in started]
    assert all(process.returncode == 0 for process in started), errors
    return [dict(np.load(file)) for file in files]


@pytest.mark.versions
@pytest.mark.slow
def test_two_processes_of_two_devices_train_as_one_of_four(tmp_path: Path) -> None:
    """Sums over pairs are taken in another order: 1e-5 of the gradient a step, and three steps.

    (Four devices as one: `test_training`; two processes of one device as one: `test_processes`.)
    """
    assert jax.local_device_count() == 4
    distributed_worker.main(tmp_path / "alone.npz", "", 1, 0)
    alone = dict(np.load(tmp_path / "alone.npz"))
    assert alone["losses"][-1] < alone["losses"][0]
    for found in run(tmp_path, 2, 2):
        for name, expected in alone.items():
            np.testing.assert_allclose(found[name], expected, atol=1e-4 * np.abs(expected).max())
