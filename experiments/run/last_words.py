"""Words of a process that is killed, said by another one that it leaves behind.

A process that gets SIGKILL runs nothing any more, nor does one that JAX's runtime ends from C++ since
its coordinator is gone. A shell beside it waits at a pipe that only this process holds: when the pipe
closes without a line in it, the shell speaks.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess

WAIT = 'trap "" HUP INT TERM USR1; read -r line || printf "%s\\n" "$1" >&2'


class LastWords:
    """Shows `text` on stderr when this process has ended, unless they were taken back.

    Silent where there is no POSIX shell.
    """

    def __init__(self, text: str) -> None:
        self._shell: subprocess.Popen[bytes] | None = None
        if shell := shutil.which("sh"):
            # A session of its own: what kills this process's group leaves the shell alone.
            self._shell = subprocess.Popen(
                [shell, "-c", WAIT, "last words", text],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def take_back(self) -> None:
        """This process has said itself why it ends."""
        if self._shell is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._shell.communicate(b"\n", timeout=5)
            self._shell = None
