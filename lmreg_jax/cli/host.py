"""What surrounds a command: variables that would change what it computes, devices that are not there."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from lmreg_jax.errors import InputError

# For other programs, notebooks above all: JAX's and matplotlib's defaults are what was tested.
FOREIGN = (
    "MPLBACKEND",  # of a notebook: `import matplotlib` refuses a back end that is not installed
    *("JAX_ENABLE_X64", "JAX_NUMPY_RANK_PROMOTION", "JAX_NUMPY_DTYPE_PROMOTION", "JAX_DEFAULT_DTYPE_BITS"),
    *("JAX_DEBUG_NANS", "JAX_DEBUG_INFS", "JAX_DISABLE_JIT", "JAX_CHECK_TRACER_LEAKS"),
    "JAX_TRANSFER_GUARD",
    *(f"JAX_TRANSFER_GUARD_{way}" for way in ("HOST_TO_DEVICE", "DEVICE_TO_DEVICE", "DEVICE_TO_HOST")),
)
CHOICES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES")  # the user's own
PROGRAM = "import jax; jax.devices()"


def neutralise() -> None:
    """Takes FOREIGN out of this process's environment, before JAX and matplotlib read it."""
    for name in FOREIGN:
        os.environ.pop(name, None)


def isolate() -> None:
    """Python processes that this one starts never import from the working folder."""
    os.environ["PYTHONSAFEPATH"] = "1"


def expanded(arguments: Sequence[str]) -> list[str]:
    """The command line with `~` as a home folder in `--name=~/path`, too, where no shell does it."""

    def home(match: re.Match[str]) -> str:
        return (match[1] or "") + os.path.expanduser(match[2])

    return [re.sub(r"^(--[\w.-]+=)?(~[^/]*)", home, argument) for argument in arguments]


@functools.cache
def check_devices() -> None:
    """InputError where JAX cannot start with the user's CHOICES; costs a second where there are any.

    In a separate process: XLA ends the process that has flags it does not know.
    """
    given = [f"{name}={os.environ[name]}" for name in CHOICES if os.environ.get(name)]
    if not given:
        return
    answer = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True)
    if answer.returncode:
        lines = answer.stderr.decode(errors="replace").strip().splitlines()
        said = lines[-1].partition("] ")[2] or lines[-1] if lines else f"status {answer.returncode}"
        raise InputError(f"{' '.join(given)}: JAX does not start with it ({said[:300]}); change or unset it")
