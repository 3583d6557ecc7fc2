"""--deterministic: two runs of the command, each compiling anew, end with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmreg_jax.model import checkpoint
from tests import tiny_cohort
from tests.tiny_training import rows, saved_state

ROOT = Path(__file__).parents[2]
VALUES = {
    "data.shape": "(14,10,16)",
    "data.spacing_mm": 22,
    "data.alignment": "moments",
    "model.encoder": "(4,6)",
    "model.decoder": "(6,5)",
    "model.final": "()",
    "model.passes": 1,
    "train.steps": 4,
    "train.pairs_per_batch": 2,
    "train.validate_every": 2,
}


@pytest.mark.slow
def test_two_runs_end_with_the_same_bits(tmp_path: Path) -> None:
    root = tiny_cohort.write_cohort(tmp_path / "cohort", ("train",) * 3 + ("validation",) * 2)
    given = [f"--config.{name}={value}" for name, value in VALUES.items()]
    quick = "--xla_backend_optimization_level=0"  # It compiles in half the time.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick, "LMREG_COMPILATION_CACHE": "off"}
    for name in ("one", "other"):  # The cohort is prepared twice, too: each has a cache of its own.
        command = [
            sys.executable,
            "-m",
            "experiments.train",
            "--deterministic",
            f"--workdir={tmp_path / name}",
        ]
        command += [*given, f"--config.data.root={root}", f"--config.data.cache={tmp_path / name}_cache"]
        answer = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8"
        )
        assert answer.returncode == 0, answer.stderr
    for store in (checkpoint.LATEST, checkpoint.BEST):
        states = [saved_state(tmp_path / name, store) for name in ("one", "other")]
        assert states[0][0] == states[1][0]
        for one, other in zip(states[0][1], states[1][1], strict=True):
            np.testing.assert_array_equal(one, other)
    assert rows(tmp_path / "one") == rows(tmp_path / "other")
    (start,) = json.loads((tmp_path / "one/versions.json").read_text(encoding="utf-8"))
    assert "--xla_gpu_deterministic_ops=true" in start["environment"]["XLA_FLAGS"]
    assert start["seeds"] == {"data": 0, "train": 0} and start["packages"]["jaxlib"]
