"""One run a workdir: a lock that the system itself lets go of when its process ends, however it ends.

`WORKDIR/lock` names the process; the file stays, the lock on it does not, so nothing goes stale.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmreg_jax.errors import InputError

FILE = "lock"
BUSY = (errno.EACCES, errno.EAGAIN)

log = logging.getLogger(__name__)


@contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Holds the workdir (made where missing) for this process.

    Raises InputError where another process holds it, naming that one, and where the folder cannot
    be written. A file system without locks is told of, and used all the same.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(workdir / FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(
            f"{workdir}: cannot be written ({error.strerror}); give another --workdir"
        ) from error
    try:
        if _locked(descriptor, workdir):
            _sign(descriptor, workdir)
        yield
    finally:
        os.close(descriptor)  # The lock goes with it.


def _locked(descriptor: int, workdir: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        log.warning("%s: no file locks here; see to it that no second run uses this folder", workdir)
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in BUSY:
            raise InputError(
                f"{workdir}: in use by another run, {_holder(descriptor)}; stop that one first, or give"
                " another --workdir"
            ) from None
        log.warning(
            "%s: its file system has no locks (%s); see to it that no second run uses it",
            workdir,
            error.strerror,
        )
        return False


def _sign(descriptor: int, workdir: Path) -> None:
    text = json.dumps(
        {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
    )
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode() + b"\n", 0)
    except OSError as error:  # A full disk: the lock holds without its holder's name.
        log.warning("%s: %s", workdir / FILE, error.strerror)


def _holder(descriptor: int) -> str:
    try:
        holder: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        return "a process that has not written its name"
