"""Answers on disk, a file a pair and method, and a process of its own for what may crash."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lmreg_jax.evaluation.baselines import Answer
from lmreg_jax.io.tables import replacing

log = logging.getLogger(__name__)

Call = Callable[..., Any]


def digest(*parts: Any) -> str:
    """A name for all that an answer depends on: arrays by their values, the rest by its JSON."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).tobytes())
        else:
            found.update(json.dumps(part, sort_keys=True, default=str).encode())
        found.update(b"\n")
    return found.hexdigest()[:20]


def stored(folder: Path, name: str, key: str, make: Callable[[], Answer]) -> Answer:
    """The answer of FOLDER/NAME_KEY.npz, else that of `make`, which is written there, whole.

    What `make` raises is passed on and nothing is stored: the next run tries again.
    """
    file = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}_{key}.npz"
    if file.exists():
        try:
            with np.load(file) as found:
                u, seconds = found["displacement"], found["seconds"]
            return Answer(u, float(seconds[0]), float(seconds[1]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s: cannot be read (%s); made again", file, error)
    answer = make()
    with replacing(file) as temporary, open(temporary, "wb") as stream:
        seconds = np.array([answer.seconds, answer.cpu_seconds])
        np.savez(stream, displacement=np.asarray(answer.displacement, np.float32), seconds=seconds)
    return answer


@contextmanager
def separate_process() -> Iterator[Call]:
    """Yields `call(function, *arguments)`, which runs it in another process, the same for all calls.

    A fault in C++ that ends the process becomes a RuntimeError, and the next call gets a new one.
    It starts afresh (spawn), so that JAX's threads and elastix' and ANTs' ITK never meet.
    """
    context = multiprocessing.get_context("spawn")
    pools: list[ProcessPoolExecutor] = []

    def call(function: Call, *arguments: Any) -> Any:
        if not pools:
            pools.append(ProcessPoolExecutor(1, context, initializer=_end_with_parent))
        try:
            return pools[0].submit(function, *arguments).result()
        except BrokenProcessPool as error:
            pools.pop().shutdown()
            raise RuntimeError("its process died: a fault of the program, or out of memory") from error

    try:
        yield call
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Run in the other process: it ends when this one is killed, also in the middle of a call."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def same_process() -> Iterator[Call]:
    """As `separate_process`, but right here: for tests, and for looking into a failure."""
    yield lambda function, *arguments: function(*arguments)
