"""Tables and figures of a trained model on pairs that training has not seen.

    python -m experiments.evaluate --workdir=DIR [--split=validation] [--output=FOLDER]

Writes evaluation.csv, evaluation.json, evaluation.md and figures/*.png, and prints the table.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.run import command, provenance, scalars
from experiments.run.curves import loss_curves
from experiments.run.data import load_cohort
from experiments.run.supply import Supply
from lmreg_jax import _compilation_cache as compilation_cache
from lmreg_jax.cohort.cohort import Cohort, held_out_pairs
from lmreg_jax.errors import InputError, exits_cleanly
from lmreg_jax.evaluation import cohort as evaluation
from lmreg_jax.evaluation.tables import write_tables
from lmreg_jax.model import config as configuration
from lmreg_jax.model import registrar
from lmreg_jax.report.cohort import write_figures


def held_out_evaluation(
    cohort: Cohort,
    workdir: Path,
    split: str = "test",
    output: Path | None = None,
    *,
    policy: str,
) -> dict[str, Any]:
    """Evaluates the best checkpoint of `workdir`; files go to `output` (default: `workdir`).

    policy: of `config.data`, for a case whose prepared file goes bad in the meantime.
    Returns what evaluation.json holds; empty, with a warning, where the split has no pairs.
    """
    pairs = held_out_pairs(cohort, split)
    if not pairs:
        logging.warning("%s: no %s pairs, so no held-out table", cohort.root, split)
        return {}
    output = workdir if output is None else output
    register = registrar.load(workdir)

    def write(usable: Sequence[tuple[str, str]]) -> None:
        results = evaluation.evaluate_pairs(register, cohort, usable)
        write_tables(output, results, cohort)
        write_figures(output / "figures", register, cohort, usable, results)

    Supply(cohort, policy).scored(write, pairs)
    provenance.record(output, register.config, program="evaluate")
    if (workdir / scalars.FILE).exists():
        loss_curves(output / "figures" / "loss_curves.png", workdir / scalars.FILE)
    print((output / "evaluation.md").read_text(encoding="utf-8"))
    print(f"checkpoint {register.source} of {workdir}; tables and figures are in {output}")
    return json.loads((output / "evaluation.json").read_text(encoding="utf-8"))


def define_flags() -> None:
    """Not at import: `experiments.train`, which imports this module, has a --workdir of its own."""
    flags.DEFINE_string("workdir", None, "Folder of a training.", required=True)
    flags.DEFINE_enum("split", "test", ("train", "validation", "test"), "Whose pairs.")
    flags.DEFINE_string("output", "", "Folder for tables and figures; default: the workdir.")


@exits_cleanly
def main(arguments: list[str]) -> None:
    command.no_arguments(arguments)
    values: Any = flags.FLAGS
    workdir, split, output = values.workdir, values.split, values.output
    compilation_cache.enable()
    config = configuration.read(Path(workdir) / configuration.FILE)
    cohort = load_cohort(config)
    folder = Path(output) if output else None
    if not held_out_evaluation(cohort, Path(workdir), split, folder, policy=config.data.policy):
        raise InputError(
            f"{cohort.root}: no {split} cases to evaluate on; mark at least two of them "
            f"'{split}' in cases.csv, or give another --split"
        )


if __name__ == "__main__":
    define_flags()
    command.run(main)
