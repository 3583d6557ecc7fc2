"""A training's best weights as a small model that can be handed on and loaded without orbax.

python -m experiments.export --workdir=runs/lung --output=models/mine
"""

from __future__ import annotations

from pathlib import Path

from absl import app, flags

from experiments.run import command
from lmreg_jax.affine import reference
from lmreg_jax.errors import InputError, exits_cleanly
from lmreg_jax.model import registrar, weights

WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the training.")
OUTPUT = flags.DEFINE_string("output", "", "Folder of the model to write.")


@exits_cleanly
def main(arguments: list[str]) -> None:
    command.no_arguments(arguments)
    command.quiet_log()
    if not WORKDIR.value or not OUTPUT.value:
        raise InputError("--workdir and --output are needed: the training, and the folder to write")
    workdir, output = Path(WORKDIR.value), Path(OUTPUT.value)
    model = registrar.load(workdir)
    weights.save(output, model.config, model.params, reference.read(workdir))
    print(f"{workdir / model.source} -> {output}, SHA-256 {weights.verify(output)}")


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse)
