"""Compiled programs kept on disk, so that the second start of a command compiles nothing.

On by default in the commands, never on import of the package. `LMREG_COMPILATION_CACHE=off` turns
it off, any other value is the folder; a folder that the user gave to JAX itself is left alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from pathlib import Path

import jax

VARIABLE = "LMREG_COMPILATION_CACHE"
SHORTEST_SECONDS = 0.0  # All: `lmreg register` has twenty programs, and small ones add up.
MAX_BYTES = 2**30  # The oldest go first. (JAX's own limit needs one more package, filelock.)

log = logging.getLogger(__name__)


def enable() -> Path | None:
    """Turns JAX's persistent cache on; its folder, or None where it stays off.

    The folder is made readable for its owner alone: whoever can write there can make the program
    run what he likes. A folder of somebody else, or one that others may write to, is not used.
    """
    wanted = os.environ.get(VARIABLE, "")
    given = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if given or wanted.lower() in ("off", "0", "no", "false"):
        return None
    folder = Path(wanted) if wanted else _default()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
        if hasattr(os, "getuid") and (state.st_uid != os.getuid() or state.st_mode & 0o022):
            log.warning("%s: not yours alone; compiled programs are not kept there", folder)
            return None
    except OSError as error:
        log.warning("%s: compiled programs cannot be kept there (%s)", folder, error.strerror)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_SECONDS)
    _prune(folder)
    return folder


def _prune(folder: Path) -> None:
    """Removes the oldest files beyond MAX_BYTES; one that another process took first is fine."""
    sizes = [(file.stat(), file) for file in folder.iterdir() if file.is_file()]
    total = sum(state.st_size for state, _ in sizes)
    for state, file in sorted(sizes, key=lambda pair: pair[0].st_mtime):
        if total <= MAX_BYTES:
            return
        file.unlink(missing_ok=True)
        total -= state.st_size


def _default() -> Path:
    """In the user's cache folder, one for each kind of processor.

    A home that several machines share would else hand one of them instructions that it lacks.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lmreg_jax" / "compiled" / _processor()


def _processor() -> str:
    """A short name for the instruction set: the flags that Linux lists, else the machine's name."""
    text = platform.machine() + platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        text += next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        pass
    return f"{platform.machine() or 'any'}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
