"""What each choice is worth: the same training with one thing changed, over several seeds.

    python -m experiments.ablations --config=experiments/lung.py --workdir=DIR [--seeds=0,1]
    ... --config.train.steps=150                    a smaller budget, said in the table
    ... --only=landmark_term,lambda                 some groups only
    ... --keras_weights=FILE.h5                     the imported initialisation, too

Each run is kept in DIR/NAME_seedN and resumed by the same command. Settings are to be chosen by the
validation column; the test column reports. Writes DIR/ablations.md, .csv, .tex and .json.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import train as training
from experiments.comparison import methods, tables
from experiments.comparison.report import pooled
from experiments.run import command, provenance
from experiments.run.data import load_cohort
from lmreg_jax import _compilation_cache as compilation_cache
from lmreg_jax._records import plain
from lmreg_jax.cohort.cohort import Cohort, held_out_pairs, split_names
from lmreg_jax.errors import InputError, exits_cleanly
from lmreg_jax.evaluation.metrics import Summary
from lmreg_jax.io.tables import replacing
from lmreg_jax.model import config as configuration
from lmreg_jax.model import registrar

log = logging.getLogger("experiments.ablations")

ALL_POINTS = -1
COLUMNS = {  # of a run; the first is what settings are chosen by
    "validation_tre_mm": ("validation TRE (mm)", 2),
    "validation_tre_unseen_mm": ("validation unseen (mm)", 2),
    "test_tre_mm": ("test TRE (mm)", 2),
    "test_tre_unseen_mm": ("test unseen (mm)", 2),
    "test_dice": ("test Dice", 3),
    "test_folding_percent": ("folding (%)", 3),
}


class Ablation(NamedTuple):
    """The config's values that change, by name; how many training subjects and kinds of landmarks.

    subjects, landmarks: 0 is all of them; landmarks ALL_POINTS: the unseen points are trained on, too.
    """

    group: str
    name: str
    changes: dict[str, Any] = {}  # noqa: RUF012, never changed
    subjects: int = 0
    landmarks: int = 0


GEOMETRIC = ("rotation_deg", "scale", "translation_mm", "elastic_mm")

# What the weights of [Dalca] fit. Without normalisation the quick default's rate of 3e-3 runs away.
DALCA = {
    "model.inputs": "images",
    "model.passes": 1,
    "model.normalisation": "none",
    "train.learning_rate": 1e-3,
}

# Values of the config itself are its own line, "as configured", and not repeated.
ABLATIONS = (
    Ablation("landmark_term", "off", {"objective.landmark_weight": 0.0}),
    Ablation("landmark_term", "weight 0.1", {"objective.landmark_weight": 0.1}),
    Ablation("landmark_term", "weight 1", {"objective.landmark_weight": 1.0}),
    Ablation("landmark_term", "weight 10", {"objective.landmark_weight": 10.0}),
    Ablation("reading", "exact", {"objective.reading": "exact"}),
    Ablation("reading", "voxelmorph", {"objective.reading": "voxelmorph"}),
    Ablation("lambda", "1", {"objective.precision": 1.0}),
    Ablation("lambda", "10", {"objective.precision": 10.0}),
    Ablation("lambda", "100", {"objective.precision": 100.0}),
    Ablation("image_sigma", "0.02, as [Dalca]'s code", {"objective.image_sigma": 0.02}),
    Ablation("image_sigma", "0.05", {"objective.image_sigma": 0.05}),
    Ablation("image_sigma", "0.141, the variance [Hu] prints", {"objective.image_sigma": 0.141}),
    # 1 - lncc is near 0.5 here: at 0.3 the term weighs what ssd weighs at 0.05.
    Ablation("image_term", "lncc", {"objective.image": "lncc", "objective.image_sigma": 0.3}),
    Ablation("landmarks", "3 kinds", landmarks=3),
    Ablation("landmarks", "6 kinds", landmarks=6),
    Ablation("landmarks", "all points", landmarks=ALL_POINTS),
    Ablation("subjects", "5", subjects=5),
    Ablation("subjects", "10", subjects=10),
    Ablation("network", "images alone, one pass, as [Hu]", {"model.inputs": "images", "model.passes": 1}),
    Ablation("network", "images alone", {"model.inputs": "images"}),
    Ablation("network", "one pass", {"model.passes": 1}),
    Ablation("network", "no normalisation", {"model.normalisation": "none"}),
    Ablation("augmentation", "off", {f"augment.{name}": 0.0 for name in GEOMETRIC}),
    Ablation("augmentation", "each image by itself", {"augment.shared": False}),
    Ablation("initialisation", "[Dalca]'s network, from scratch, rate 1e-3", DALCA),
)
BASE = Ablation("base", "as configured")


def ablate(
    config: ConfigDict,
    workdir: Path,
    *,
    seeds: Sequence[int] = (0,),
    only: Sequence[str] = (),
    keras_weights: str = "",
    progress: bool = True,
) -> dict[str, Any]:
    """Trains and evaluates all that is not there yet; returns what ablations.json holds.

    The data are those of `config` for all runs; a seed draws initial weights, pairs and noise. A run
    that fails is a hole in the table. Raises InputError on unknown groups and unusable configs.
    """
    groups = list(dict.fromkeys(a.group for a in ABLATIONS))
    unknown = set(only) - set(groups)
    if unknown:
        raise InputError(f"--only={','.join(only)}: the groups are {', '.join(groups)}")
    configuration.validate(config)
    cohort = load_cohort(config, progress=progress)
    provenance.record(workdir, config, program="ablations")
    wanted = list(ABLATIONS)
    if keras_weights:
        changes = {**DALCA, "init.weights": keras_weights}
        wanted.append(Ablation("initialisation", "the same, imported weights", changes))
    wanted = [BASE, *(a for a in wanted if (not only or a.group in only) and differs(a, config, cohort))]
    rows = []
    for ablation in wanted:
        runs = []
        for seed in seeds:
            folder = workdir / f"{_file_name(ablation)}_seed{seed}"
            log.info("%s, %s, seed %d", ablation.group, ablation.name, seed)
            try:
                runs.append(one(config, cohort, ablation, seed, folder, progress=progress))
            except (InputError, FloatingPointError) as error:
                log.warning("%s: %s", folder, error)
                runs.append({"error": str(error)})
        rows.append({"group": ablation.group, "name": ablation.name, "seeds": list(seeds), "runs": runs})
        write(workdir, config, cohort, rows)  # after each, so that an interrupted one has a table
    print((workdir / "ablations.md").read_text(encoding="utf-8"))
    return json.loads((workdir / "ablations.json").read_text(encoding="utf-8"))


def one(
    config: ConfigDict, cohort: Cohort, ablation: Ablation, seed: int, folder: Path, *, progress: bool
) -> dict[str, Any]:
    """One training (resumed where it was cut off) and its evaluation on the full cohort."""
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(ablation.changes)
    changed.train.seed = seed
    training.train(changed, folder, evaluate=False, cohort=training_cohort(cohort, ablation))
    register = registrar.load(folder)
    found: dict[str, Any] = {"checkpoint": register.source}
    for split in ("validation", "test"):
        pairs = held_out_pairs(cohort, split)
        method = methods.learned("ours", register, folder / "cache")
        results = methods.run(method, cohort, pairs, progress=progress)
        for column in ("tre_mm", "tre_unseen_mm", "dice", "folding_percent", "sd_log_jacobian"):
            found[f"{split}_{column}"] = pooled(results, column).mean
    return found


def differs(ablation: Ablation, config: ConfigDict, cohort: Cohort) -> bool:
    """Whether it is another training than the configured one."""
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(ablation.changes)
    fewer = 0 < ablation.subjects < len(split_names(cohort, "train"))
    kinds = 0 < ablation.landmarks < len(cohort.landmark_names)
    more = ablation.landmarks == ALL_POINTS and cohort.point_names
    return bool(fewer or kinds or more or configuration.differences(changed, config))


def training_cohort(cohort: Cohort, ablation: Ablation) -> Cohort:
    """The cohort with fewer training subjects, or with other landmarks; validation sees those, too.

    Subjects: the first of the table, and always the reference. Kinds: evenly picked from the list.
    """
    if ablation.subjects:
        names = split_names(cohort, "train")
        first = [n for n in names if n == cohort.reference] + [n for n in names if n != cohort.reference]
        dropped = set(first[ablation.subjects :])
        cohort = replace(cohort, cases=tuple(c for c in cohort.cases if c.name not in dropped))
    if ablation.landmarks == ALL_POINTS:
        cases = tuple(replace(c, **_joined(c)) for c in cohort.cases)
        names_ = (*cohort.landmark_names, *cohort.point_names)
        cohort = replace(cohort, cases=cases, landmark_names=names_)
    elif ablation.landmarks:
        last = len(cohort.landmark_names) - 1
        kept = np.unique(np.linspace(0, last, ablation.landmarks).round().astype(int))
        cases = tuple(
            replace(c, landmarks=c.landmarks[kept], landmarks_mm=c.landmarks_mm[kept]) for c in cohort.cases
        )
        cohort = replace(cohort, cases=cases, landmark_names=tuple(cohort.landmark_names[i] for i in kept))
    return cohort


def _joined(case: Any) -> dict[str, Any]:
    return {
        "landmarks": np.concatenate([case.landmarks, case.points]),
        "landmarks_mm": np.concatenate([case.landmarks_mm, case.points_mm]),
    }


def write(workdir: Path, config: ConfigDict, cohort: Cohort, rows: Sequence[dict[str, Any]]) -> None:
    """ablations.md, .csv, .tex and .json."""
    tables.write(workdir, [table(config, cohort, rows)])
    with replacing(workdir / "ablations.json") as temporary:
        text = json.dumps(plain({"config": config.to_dict(), "rows": list(rows)}), indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


def table(config: ConfigDict, cohort: Cohort, rows: Sequence[dict[str, Any]]) -> tables.Table:
    """A line a setting: mean ± sd over the seeds; the best of each column in bold."""
    found = [[run for run in row["runs"] if "error" not in run] for row in rows]
    columns: dict[str, Sequence[str | tables.Cell]] = {
        "setting": [f"{row['group'].replace('_', ' ')}: {row['name']}" for row in rows]
    }
    for column, (head, digits) in COLUMNS.items():
        cells = [tables.cell(Summary.of([run[column] for run in runs]), digits) for runs in found]
        cells = [
            c._replace(mark="" if len(runs) == len(row["runs"]) else "†")
            for c, runs, row in zip(cells, found, rows, strict=True)
        ]
        if "folding" not in column:
            cells = tables.with_best(cells, largest="dice" in column)
        columns[head] = cells
    size = " x ".join(str(n) for n in cohort.shape)
    seeds = ", ".join(map(str, rows[0]["seeds"])) if rows else ""
    failed = [
        f"† {row['group']}: {row['name']}: {run['error']}"
        for row in rows
        for run in row["runs"]
        if "error" in run
    ]
    return tables.Table.of_columns(
        "ablations",
        "Ablations",
        columns,
        [
            f"Budget: {config.train.steps} steps of {config.train.pairs_per_batch} pairs on "
            f"{size} voxels of {cohort.spacing_mm[0]:g} mm; seeds {seeds}; mean ± sd over the seeds "
            "of each run's mean over landmarks or pairs. Every line changes the configured setting in "
            "one thing, those of the initialisation in the four that [Dalca]'s weights need. Settings are "
            "chosen by the validation columns. With all points trained on, the columns of unseen points "
            "hold what was seen.",
            *failed,
        ],
    )


def _file_name(ablation: Ablation) -> str:
    text = f"{ablation.group}_{ablation.name}".lower()
    return "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in text)


def define_flags() -> None:
    """Not at import: `experiments.compare`, which may import this module, has flags of its own."""
    flags.DEFINE_list("seeds", ["0"], "Seeds; each is a training of every line.")
    flags.DEFINE_list("only", [], "Groups of ablations; default: all.")
    flags.DEFINE_string("keras_weights", "", "HDF5 file of [Dalca], for the imported initialisation.")


@exits_cleanly
def main(arguments: list[str]) -> None:
    command.no_arguments(arguments)
    command.quiet_log()
    compilation_cache.enable()
    values: Any = flags.FLAGS
    workdir = Path(values.workdir or f"{command.default_workdir()}_ablations")
    try:
        seeds = [int(seed) for seed in values.seeds]
    except ValueError:
        raise InputError(f"--seeds={','.join(values.seeds)}: whole numbers are needed") from None
    ablate(training.CONFIG.value, workdir, seeds=seeds, only=values.only, keras_weights=values.keras_weights)


if __name__ == "__main__":
    define_flags()
    command.run(main)
