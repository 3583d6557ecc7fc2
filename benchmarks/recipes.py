"""Which recipe learns fast from scratch: short trainings, equal in pair-visits, on validation pairs.

    python -m benchmarks.recipes [--steps=100] [--only=TEXT] [--recipes_workdir=runs/recipes]

Every recipe starts from `experiments/lung.py:paper_coarse` (the paper's recipe on the coarse grid)
and changes some values, on one cohort (affine alignment by moments, whatever is installed). Writes
recipes.md and recipes.csv. Test subjects take no part. A recipe that has been run is not trained
again; remove its folder below --recipes_workdir for that. --only runs those whose names contain a
text; the others keep the rows that they have in recipes.csv.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import common
from experiments import lung
from experiments.run.data import load_cohort
from experiments.train import train
from lmreg_jax.cohort.cohort import held_out_pairs
from lmreg_jax.evaluation import cohort as evaluation
from lmreg_jax.evaluation.tables import summarise
from lmreg_jax.io.tables import replacing
from lmreg_jax.model import registrar

VALIDATION = 0.3  # nine of the thirty training subjects: three would be too few to tell recipes apart
BATCH: dict[str, Any] = {
    "train.pairs_per_batch": 4,
    "train.both_orders": True,
    "train.schedule": "cosine",
    "train.warmup_steps": 20,
    "train.learning_rate": 1e-3,
}
FAST = {**BATCH, "train.learning_rate": 3e-3}
NORMALISED = {**FAST, "model.normalisation": "instance"}
SOFTER = {**NORMALISED, "objective.image_sigma": 0.05}
WEIGHTED = {**SOFTER, "objective.landmark_weight": 3.0}
AUGMENTED = {
    "augment.rotation_deg": 4.0,
    "augment.scale": 0.05,
    "augment.translation_mm": 6.0,
    "augment.elastic_mm": 5.0,
    "augment.shared": True,
}
MILDLY = {
    "augment.rotation_deg": 3.0,
    "augment.scale": 0.03,
    "augment.translation_mm": 4.0,
    "augment.elastic_mm": 4.0,
    "augment.shared": True,
}
PASSES = {**WEIGHTED, "model.passes": 3}
FORCES = {**PASSES, "model.inputs": "forces"}
SHARPER = {**FORCES, "objective.image_sigma": 0.03}
SHARED = {**SHARPER, **MILDLY}
PAIR = {**SHARED, "train.pairs_per_batch": 2}
DEFAULT = {**PAIR, "objective.landmark_weight": 5.0}

COLUMNS = {  # of the Markdown table: the row's key and its format
    "recipe": ("recipe", ""),
    "steps": ("steps", ".0f"),
    "pair-visits": ("pair_visits", ".0f"),
    "TRE before (mm)": ("tre_initial_mm", ".2f"),
    "TRE after (mm)": ("tre_mm", ".2f"),
    "ratio": ("ratio", ".2f"),
    "unseen (mm)": ("tre_unseen_mm", ".2f"),
    "Dice": ("dice", ".3f"),
    "folding (%)": ("folding_percent", ".4f"),
}

# The batch of four costs four visits a step: recipes with fewer pairs a batch get more steps.
RECIPES: dict[str, dict[str, Any]] = {
    "paper's recipe (1 pair, lr 1e-4)": {},
    "paper's recipe, lr 1e-3": {"train.learning_rate": 1e-3},
    "4 pairs in both orders, warm-up, cosine, lr 1e-3": BATCH,
    "+ lr 3e-3": FAST,
    "+ instance normalisation": NORMALISED,
    "+ image sigma 0.05": SOFTER,
    "+ landmark weight 3": WEIGHTED,
    "  weight 5": {**WEIGHTED, "objective.landmark_weight": 5.0},
    "  weight 10": {**WEIGHTED, "objective.landmark_weight": 10.0},
    "  augmented, one change for both images": {**WEIGHTED, **AUGMENTED},
    "  augmented, each image by itself": {**WEIGHTED, **AUGMENTED, "augment.shared": False},
    "  lr 6e-3": {**WEIGHTED, "train.learning_rate": 6e-3},
    "  one order of 4 pairs": {**WEIGHTED, "train.both_orders": False},
    "  lncc instead of ssd": {**WEIGHTED, "objective.image": "lncc", "objective.image_sigma": 0.2},
    "+ three passes": PASSES,
    "+ the demons' force as input": FORCES,
    "+ image sigma 0.03": SHARPER,
    "+ augmented mildly, one change for both images": SHARED,
    "+ one pair in both orders a step, twice the steps": PAIR,
    "+ landmark weight 5 (the default)": DEFAULT,
    "  landmark weight 10": {**DEFAULT, "objective.landmark_weight": 10.0},
    "  one pair in one order a step, four times the steps": {
        **DEFAULT,
        "train.pairs_per_batch": 1,
        "train.both_orders": False,
    },
    "  without the landmark term": {**DEFAULT, "objective.landmark_weight": 0.0},
}


def run(name: str, values: dict[str, Any], steps: int, workdir: Path) -> dict[str, Any]:
    """Trains one recipe and returns its row: validation TRE in mm before and after, seconds."""
    config = lung.get_config("paper_coarse")
    config.data.validation = VALIDATION
    config.data.alignment = "moments"
    for key, value in values.items():
        section, item = key.split(".")
        config[section][item] = value
    config.train.steps = steps * (4 // config.train.pairs_per_batch)
    config.train.validate_every = config.train.checkpoint_every = config.train.steps
    config.train.keep = 1
    folder = workdir / "".join(c if c.isalnum() else "_" for c in name)
    started = time.perf_counter()
    train(config, folder, evaluate=False)
    seconds = time.perf_counter() - started
    cohort = load_cohort(config, progress=False)
    pairs = held_out_pairs(cohort, "validation")
    total = summarise(evaluation.evaluate_pairs(registrar.load(folder), cohort, pairs, progress=False))
    columns = ("tre_initial_mm", "tre_mm", "tre_unseen_mm", "dice", "folding_percent")
    means = {column: total[column].mean for column in columns}
    return {
        "recipe": name,
        "steps": config.train.steps,
        "pair_visits": config.train.steps * config.train.pairs_per_batch,
        **means,
        "ratio": means["tre_mm"] / means["tre_initial_mm"],
        "seconds": seconds,
    }


def kept(file: Path) -> dict[str, dict[str, Any]]:
    """The rows of an earlier table, by recipe."""
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as table:
        return {
            row["recipe"]: {k: v if k == "recipe" else float(v) for k, v in row.items()}
            for row in csv.DictReader(table)
        }


def write(rows: list[dict[str, Any]], output: Path) -> None:
    """recipes.csv and recipes.md."""
    with (
        replacing(output / "recipes.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows({k: v if k == "recipe" else f"{v:.6g}" for k, v in r.items()} for r in rows)
    where = common.environment("benchmarks.recipes")
    lines = [
        "# Recipes tried, from scratch",
        "",
        "Validation pairs (9 subjects taken out of the 30, the other 21 train), equal numbers of pair-visits,"
        " one seed.",
        "",
        *common.table(list(COLUMNS), [[f"{r[k]:{f}}" for k, f in COLUMNS.values()] for r in rows]),
        "",
        common.heading(where),
    ]
    common.write(output / "recipes", where, None, "\n".join(lines) + "\n")


def main(_: list[str]) -> None:
    workdir, output = Path(flags.FLAGS.recipes_workdir), Path(flags.FLAGS.output)
    rows = kept(output / "recipes.csv")
    for name, values in RECIPES.items():
        if flags.FLAGS.only in name:
            rows[name] = run(name, values, flags.FLAGS.steps, workdir)
            write([rows[n] for n in RECIPES if n in rows], output)
    print((output / "recipes.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 100, "Steps of a batch of four pairs.")
    flags.DEFINE_string("only", "", "Part of the names of the recipes to run; the rest of the table stays.")
    flags.DEFINE_string("recipes_workdir", "runs/recipes", "Folder of the runs.")
    flags.DEFINE_string("output", "benchmarks/results", "Folder of the tables.")
    app.run(main)
