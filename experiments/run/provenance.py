"""What a run was made with, in `WORKDIR/versions.json`: seeds, versions, devices, source.

A list: each program's first start, and each later one under other versions, with the step that it
began at.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import lmreg_jax
from lmreg_jax._records import version
from lmreg_jax.io.tables import replacing

FILE = "versions.json"
TRAINING = "train"
NOT_RESULTS = ":(exclude)benchmarks/results"  # as git writes paths that it is to leave out
PACKAGES = (
    *("lmreg_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "scipy"),
    *("nibabel", "chex", "ml-collections", "itk-elastix", "h5py"),
)
VARYING = ("program", "step", "time", "host", "command")  # differ between starts that are otherwise the same
DETERMINISTIC = {
    # One thread a product: sums in one order, whatever the number of cores.
    "cpu": "--xla_cpu_multi_thread_eigen=false",
    # No atomics, no choice of algorithm by timing.
    "gpu": "--xla_gpu_deterministic_ops=true",
}

log = logging.getLogger(__name__)


def make_deterministic() -> None:
    """Asks XLA for the same bits in every run on one kind of machine; before jax starts its devices."""
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = " ".join([given, *DETERMINISTIC.values()]).strip()


def record(workdir: Path, config: ConfigDict, step: int | None = None, program: str = TRAINING) -> None:
    """Adds this start to the file, unless the program's last one there was the same.

    step: of a training, at which it goes on. Warns where it does so under other versions.
    """
    file = workdir / FILE
    starts = _read(file)
    now = current(config) | {"program": program, "step": step}
    earlier = [start for start in starts if start.get("program", program) == program]
    if earlier:
        changed = _changes(earlier[-1], now)
        if not changed:
            return
        if step and program == TRAINING:
            log.warning(
                "resumed at step %d with other versions than before (%s): the bits may differ from those"
                " of a run without the change",
                step,
                ", ".join(changed),
            )
    with replacing(file) as temporary:
        temporary.write_text(json.dumps([*starts, now], indent=2) + "\n", encoding="utf-8")


def current(config: ConfigDict) -> dict[str, Any]:
    """All of it, as JSON holds it."""
    kinds = [device.device_kind for device in jax.devices()]
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "host": socket.gethostname(),
        "command": " ".join(sys.argv),
        "seeds": {"data": config.data.seed, "train": config.train.seed},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "processes": jax.process_count(),
        "packages": {name: version(name) for name in PACKAGES},
        "git_commit": git_commit(Path(lmreg_jax.__file__).parents[1]),
        "environment": {k: os.environ[k] for k in ("XLA_FLAGS", "JAX_PLATFORMS") if os.environ.get(k)},
        "initial_weights_sha256": _sha256(config.init.weights),
    }


def processor() -> str:
    """The processor's name as Linux tells it, else what Python knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_commit(folder: Path) -> str | None:
    """The commit checked out in `folder`, "+changes" where files differ from it; None without git.

    Tables of benchmarks that were written anew do not count: no result depends on them.
    """
    if not (folder / ".git").exists():  # An installed package may lie inside somebody else's repository.
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".", NOT_RESULTS)
        return commit + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=10, check=True, encoding="utf-8"
    ).stdout.strip()


def _sha256(weights: str) -> str | None:
    """Of a file of weights; a training's folder has sums of its own."""
    path = Path(weights)
    return hashlib.sha256(path.read_bytes()).hexdigest() if weights and path.is_file() else None


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        starts = json.loads(file.read_text(encoding="utf-8"))
        return [dict(start) for start in starts]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, RecursionError) as error:
        log.warning("%s: damaged (%s); begun anew", file, error)
        return []


def _changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Names of what differs: "python 3.11.7 -> 3.12.1"."""
    found: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        if name in VARYING:
            continue
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _changes(old, new, f"{prefix}{name} ")
        elif old != new:
            found.append(f"{prefix}{name} {old} -> {new}")
    return found
