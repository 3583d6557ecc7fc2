"""Tables of a cohort's evaluation: CSV, JSON and Markdown of one set of results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmreg_jax._records import plain, versions
from lmreg_jax.cohort.cohort import Cohort
from lmreg_jax.evaluation.metrics import PairResult, Summary
from lmreg_jax.io.tables import replacing

COLUMNS = {
    "tre_initial_mm": "target registration error on the training landmarks before registration "
    "(after the affine alignment), mm",
    "tre_mm": "the same after registration",
    "tre_unseen_initial_mm": "error on the further points, of kinds never trained on, before, mm",
    "tre_unseen_mm": "the same after registration",
    "dice_initial": "Dice of the lung masks (both lungs as one) before",
    "dice": "the same after, the moving mask warped by nearest neighbour",
    "folding_percent": "share of all voxels of the grid with a Jacobian determinant <= 0, %",
    "sd_log_jacobian": "standard deviation of the logarithm of the determinant where positive, "
    "in the fixed lungs (without a lung mask: in the whole grid)",
    "seconds": "median time of a call after a warm-up, from the two images to displacement and "
    "warped image in host memory, s",
}


HEADS = [
    *("TRE initial (mm)", "TRE (mm)", "unseen TRE initial (mm)", "unseen TRE (mm)"),
    *("Dice initial", "Dice", "folding (%)", "sd log J", "time (s)"),
]


def row(result: PairResult) -> dict[str, Summary]:
    """A pair's row, keyed as COLUMNS: of errors, mean and sd over its landmarks or points."""
    return {column: Summary.of(getattr(result, column)) for column in COLUMNS}


def summarise(results: Sequence[PairResult]) -> dict[str, Summary]:
    """The row "All": errors pooled over the landmarks of all pairs, the rest over pairs.

    Keyed as COLUMNS; [Hu, Table I] pools in the same way.
    """
    return {
        column: Summary.of(np.hstack([[], *(getattr(result, column) for result in results)]))
        for column in COLUMNS
    }


def write_tables(folder: str | Path, results: Sequence[PairResult], cohort: Cohort) -> None:
    """`evaluation.csv`, `evaluation.json` and `evaluation.md`, each written whole or not at all."""
    folder = Path(folder)
    texts = {
        "evaluation.csv": _as_csv(results),
        "evaluation.json": json.dumps(_as_json(results, cohort), indent=2) + "\n",
        "evaluation.md": _as_markdown(results, cohort),
    }
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _as_csv(results: Sequence[PairResult]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["pair", *COLUMNS])
    for result in results:
        writer.writerow([result.name, *(_cell(value.mean) for value in row(result).values())])
    total = summarise(results).values()
    writer.writerow(["All", *(_cell(value.mean) for value in total)])
    writer.writerow(["All sd", *(_cell(value.sd) for value in total)])
    return text.getvalue()


def _cell(value: float) -> str:
    """Six significant digits; what is not known is an empty cell, never 0."""
    return "" if np.isnan(value) else f"{value:.6g}"


def _as_json(results: Sequence[PairResult], cohort: Cohort) -> dict[str, Any]:
    return plain(
        {
            "cohort": {
                "cases": len(cohort.cases),
                "alignment": cohort.alignment,
                "reference": cohort.reference,
                "shape": cohort.shape,
                "spacing_mm": cohort.spacing_mm,
            },
            "versions": versions(),
            "columns": COLUMNS,
            "all": {key: value._asdict() for key, value in summarise(results).items()},
            "pairs": [_pair_json(result, cohort) for result in results],
        }
    )


def _pair_json(result: PairResult, cohort: Cohort) -> dict[str, Any]:
    """One pair at full precision: the table's row, each landmark by its name, and the rest."""
    landmarks = ("tre_before_affine_mm", "tre_initial_mm", "tre_mm")
    points = ("tre_unseen_initial_mm", "tre_unseen_mm")
    return {
        "fixed": result.fixed,
        "moving": result.moving,
        **{key: value._asdict() for key, value in row(result).items()},
        "tre_before_affine_mm": Summary.of(result.tre_before_affine_mm)._asdict(),
        "landmarks": {
            name: {key: getattr(result, key)[i] for key in landmarks}
            for i, name in enumerate(cohort.landmark_names)
        },
        "points": {
            name: {key: getattr(result, key)[i] for key in points}
            for i, name in enumerate(cohort.point_names)
        },
        "dice_labels": {
            name: {"dice_initial": before, "dice": after}
            for name, (before, after) in result.dice_labels.items()
        },
        "dice_lungs_mean": dict(zip(("dice_initial", "dice"), result.dice_lungs_mean, strict=True)),
        "hausdorff95_initial_mm": result.hausdorff95_mm[0],
        "hausdorff95_mm": result.hausdorff95_mm[1],
    }


def _as_markdown(results: Sequence[PairResult], cohort: Cohort) -> str:
    rows: list[tuple[str, ...]] = [("pair", *HEADS), ("---", *["---:"] * len(HEADS))]
    for result in results:
        rows.append((result.name, *(_mean_sd(c, v) for c, v in row(result).items())))
    rows.append(("**All**", *(_mean_sd(c, v) for c, v in summarise(results).items())))
    size = " x ".join(str(n) for n in cohort.shape)
    spacing = " x ".join(f"{s:g}" for s in cohort.spacing_mm)
    lines = ["# Evaluation", "", *("| " + " | ".join(cells) + " |" for cells in rows), ""]
    lines += [
        f"{len(results)} pairs (moving -> fixed) on a grid of {size} voxels of {spacing} mm; "
        f"affine alignment: {cohort.alignment}. Mean ± sd: in a pair's row over its landmarks or "
        'points; in the row "All" over the landmarks of all pairs, else over the pairs. '
        "An empty cell: not annotated.",
        "",
        *(f"- {head}: {text}." for head, text in zip(HEADS, COLUMNS.values(), strict=True)),
        "",
    ]
    return "\n".join(lines)


def _mean_sd(column: str, value: Summary) -> str:
    digits = 3 if column in ("dice_initial", "dice", "sd_log_jacobian", "folding_percent") else 2
    if np.isnan(value.mean):
        return ""
    sd = "" if np.isnan(value.sd) else f" ± {value.sd:.{digits}f}"
    return f"{value.mean:.{digits}f}{sd}"
