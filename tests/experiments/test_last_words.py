"""A process that is killed is spoken for; one that ends by itself is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, signal, sys, time
from experiments.last_words import LastWords
words = LastWords("process 1 was killed; start again")
{end}
"""
ENDS = {
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", True),
    "with its whole group": ("os.killpg(os.getpid(), signal.SIGKILL)", True),
    "aborted, as the runtime does it": ("os.abort()", True),
    "taken back": ("words.take_back(); os._exit(0)", False),
    "taken back twice": ("words.take_back(); words.take_back()", False),
}


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
@pytest.mark.parametrize("how", ENDS)
def test_words_are_said_where_the_process_cannot(how: str) -> None:
    end, speaks = ENDS[how]
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(end=end)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        start_new_session=True,
    )
    assert (answer.returncode == 0) != speaks
    assert answer.stderr == ("process 1 was killed; start again\n" if speaks else "")
