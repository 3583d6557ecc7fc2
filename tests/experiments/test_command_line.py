"""The commands as a user types them: mistakes end with one line, valid names and exit status 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_cohort

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Without LLVM's optimiser: what is tested is the way there, which compiles most of the time."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=900,
        encoding="utf-8",
    )


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.train.stepz=3", ["'stepz'", "config.train: ", "steps (int)", "warmup_steps"]),
        ("--config.train.steps=abc", ["'abc'", "config.train: ", "steps (int)"]),
        ("--config=missing.py", ["missing.py", "No such file"]),
        ("--config=experiments/lung.py:nosuch", ["lung.py:nosuch", "paper, paper_coarse"]),
    ],
)
def test_a_wrong_value_is_answered_in_one_line(argument: str, expected: list[str], tmp_path: Path) -> None:
    answer = run("experiments.train", f"--workdir={tmp_path}/run", argument)
    assert answer.returncode == 2
    lines = answer.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), answer.stderr
    for part in expected:
        assert part in lines[0]
    assert not (tmp_path / "run").exists()


def test_evaluate_needs_the_folder_of_a_training(tmp_path: Path) -> None:
    answer = run("experiments.evaluate", f"--workdir={tmp_path}/none")
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"error: {tmp_path}/none: no config.json there")
    assert "Traceback" not in answer.stderr


@pytest.mark.versions
@pytest.mark.slow
def test_train_then_evaluate(tmp_path: Path) -> None:
    """Single values given by name, before anything else is known of the config file."""
    root = tiny_cohort.write_cohort(tmp_path / "cohort")
    values = {
        "data.root": root,
        "data.cache": tmp_path / "cache",
        "data.shape": "(12,8,12)",
        "data.spacing_mm": 26,
        "data.alignment": "moments",
        "model.encoder": "(4,)",
        "model.decoder": "(4,)",
        "model.final": "()",
        "model.passes": 1,
        "train.steps": 2,
        "train.pairs_per_batch": 2,
    }
    workdir = tmp_path / "run"
    given = [f"--config.{name}={value}" for name, value in values.items()]
    kept = {"LMREG_COMPILATION_CACHE": str(tmp_path / "compiled")}
    answer = run("experiments.train", f"--workdir={workdir}", *given, **kept)
    assert answer.returncode == 0, answer.stderr
    assert (workdir / "evaluation.csv").is_file()
    output = tmp_path / "tables"
    answer = run(
        "experiments.evaluate", f"--workdir={workdir}", "--split=train", f"--output={output}", **kept
    )
    assert answer.returncode == 0, answer.stderr
    assert (output / "evaluation.csv").read_text(encoding="utf-8").count("c0") >= 2
