"""A second process finds what the first one compiled; nobody else's folder is trusted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmreg_jax import _compilation_cache as compilation_cache

PROGRAM = """
import jax, jax.numpy as jnp
from lmreg_jax import compilation_cache
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
print("folder", compilation_cache.enable())
print(float(jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)(jnp.ones((8, 8))).sum()))
print("hits", sum(event.endswith("/cache_hits") for event in found))
"""


def run(**environment: str) -> dict[str, str]:
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("JAX_COMPILATION_CACHE_DIR", "LMREG_COMPILATION_CACHE")
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**env, **environment},
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line) | {
        "stderr": done.stderr
    }


@pytest.mark.slow
def test_the_second_process_compiles_nothing(tmp_path: Path) -> None:
    first, second = (run(XDG_CACHE_HOME=str(tmp_path)) for _ in range(2))
    folder = Path(first["folder"])
    assert folder.is_relative_to(tmp_path / "lmreg_jax")
    assert folder.stat().st_mode & 0o077 == 0
    assert int(first["hits"]) == 0 and int(second["hits"]) >= 1


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(["new", "old", "older"]):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", 25)
    compilation_cache._prune(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new", "old"]


@pytest.mark.slow
def test_it_can_be_turned_off_and_distrusts_open_folders(tmp_path: Path) -> None:
    assert run(XDG_CACHE_HOME=str(tmp_path), LMREG_COMPILATION_CACHE="off")["folder"] == "None"
    assert not any(tmp_path.iterdir())
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    answer = run(LMREG_COMPILATION_CACHE=str(shared))
    assert answer["folder"] == "None" and "not yours alone" in answer["stderr"]
