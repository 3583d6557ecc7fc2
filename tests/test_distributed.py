"""Two processes with half of the pairs each train the parameters of one process with all of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def run(folder: Path, count: int, devices: int = 1) -> list[dict[str, np.ndarray]]:
    port = free_port()
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    files = [folder / f"{count}_{devices}_{i}.npz" for i in range(count)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed_worker", str(file), port, str(count), str(i)],
            env=env,
            cwd=Path(__file__).parents[1],
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for i, file in enumerate(files)
    ]
    errors = [process.communicate(timeout=240)[1] for process in started]
    assert all(process.returncode == 0 for process in started), errors
    return [dict(np.load(file)) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(2, 1), (2, 2), (1, 4)])
def test_processes_and_devices_make_no_difference(tmp_path: Path, count: int, devices: int) -> None:
    """Sums over pairs are taken in another order: 1e-5 of the gradient a step, and three steps."""
    (alone,) = run(tmp_path, 1)
    assert alone["losses"][-1] < alone["losses"][0]
    for found in run(tmp_path, count, devices):
        for name, expected in alone.items():
            np.testing.assert_allclose(found[name], expected, atol=1e-4 * np.abs(expected).max())
