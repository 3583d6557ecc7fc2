"""`lmreg`: one command, a subcommand for each thing to be done.

Subcommands live in modules of their own, with `add(subparsers)` and `run(args)`; what takes time to
import is imported in `run`, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import metadata

from lmreg_jax.cli import evaluate, host, landmarks, preprocess, register, warp
from lmreg_jax.errors import exits_cleanly

SUBCOMMANDS = (preprocess, landmarks, register, warp, evaluate)
DESCRIPTION = "Deformable registration of lung CT: two scans in, a transform that others can read out."
EXAMPLE = """example:
  lmreg register inhale.nii.gz exhale.nii.gz --output aligned
  lmreg warp --labels exhale_lobes.nii.gz --transform aligned/transform.h5 \\
             --reference inhale.nii.gz --output lobes_on_inhale.nii.gz

`lmreg COMMAND --help` shows the options of one command."""


def parser() -> argparse.ArgumentParser:
    """The command line of all subcommands; `args.run(args)` does what was asked for."""
    top = argparse.ArgumentParser(
        prog="lmreg",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"lmreg_jax {_version()}")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in SUBCOMMANDS:
        module.add(subparsers)
    return top


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line `argv` (by default the process's own)."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    if argv is None:  # a separate process
        host.neutralise()
        host.isolate()
    args = parser().parse_args(host.expanded(sys.argv[1:] if argv is None else argv))
    args.run(args)


def _version() -> str:
    try:
        return metadata.version("lmreg_jax")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    main()
