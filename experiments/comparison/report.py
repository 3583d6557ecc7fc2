"""The tables of a comparison, from its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.comparison.methods import TITLES, Method, Result
from experiments.comparison.stats import Difference, bootstrap, compare, corrected
from experiments.comparison.tables import HOLE, Cell, Table, cell, with_best
from lmreg_jax.evaluation.metrics import Summary

Results = dict[str, list[Result]]  # by the methods' names, in the tables' order

# [Hu], Tables I and II: TRE mean and sd (mm), Dice, seconds and on what.
HU = {
    "elastix": (4.47, 2.44, 0.91, "49 (CPU)"),
    "ants": (4.82, 2.56, 0.90, "443 (CPU)"),
    "voxelmorph": (5.22, 3.15, 0.92, "0.5 (GPU)"),
    "ours": (3.54, 1.68, 0.93, "0.5 (GPU)"),
}
HU_NOTE = (
    "[Hu]: as printed there, on ten pairs of 40 healthy adults' CT at 2 mm; a Tesla P40. Other subjects "
    "than ours: compare the order of the methods and their ratios, not millimetres."
)
PARTLY = "†"
TESTED = {  # what is tested, and whether larger is better
    "tre_mm": ("TRE (mm)", False),
    "tre_unseen_mm": ("unseen TRE (mm)", False),
    "dice": ("Dice", True),
}


def values(results: Sequence[Result], column: str) -> NDArray[Any]:
    """A number a pair (the mean over its landmarks); NaN for holes."""
    return np.array(
        [np.nan if r.measured is None else Summary.of(getattr(r.measured, column)).mean for r in results]
    )


def pooled(results: Sequence[Result], column: str) -> Summary:
    """Over the landmarks of all pairs that there are, as [Hu, Table I]; else over those pairs."""
    return Summary.of(np.hstack([[], *(getattr(r.measured, column) for r in results if r.measured)]))


def _all(results: Sequence[Result], column: str, digits: int = 2) -> Cell:
    """The cell of "All", marked where it stands for some of the pairs only."""
    partly = any(r.measured is None for r in results)
    return cell(pooled(results, column), digits)._replace(mark=PARTLY if partly else "")


def holes(results: Results) -> list[str]:
    """A note for each method that failed somewhere."""
    notes = []
    for name, found in results.items():
        failed = [r for r in found if r.measured is None]
        if failed:
            reasons = "; ".join(f"{r.name}: {r.error}" for r in failed)
            of = f"{len(found) - len(failed)} of {len(found)}"
            notes.append(f"{PARTLY} {TITLES[name]}: {of} pairs; a hole ({HOLE}) is a failure: {reasons}.")
    return notes


def table_1(results: Results) -> Table:
    """TRE on the landmarks, a row a pair."""
    rows: list[list[str | Cell]] = []
    for i, first in enumerate(next(iter(results.values()))):
        found = [r[i].measured for r in results.values()]
        cells = [Cell(np.nan) if m is None else cell(Summary.of(m.tre_mm)) for m in found]
        rows.append([first.name, *with_best(cells)])
    rows.append(["All", *with_best([_all(r, "tre_mm") for r in results.values()])])
    theirs = [Cell(*HU[name][:2]) if name in HU else Cell(np.nan) for name in results]
    rows.append(["[Hu], All", *with_best(theirs)])
    return Table(
        "table_1",
        "Table I: target registration error on the landmarks, mm",
        ["pair", *(TITLES[name] for name in results)],
        rows,
        [
            "Mean ± sd over a pair's landmarks; All: over the landmarks of all pairs. Bold: the least "
            "of the row. Before affine: in the scanners' own coordinates.",
            HU_NOTE,
            *holes(results),
        ],
    )


def table_2(results: Results, methods: Sequence[Method], on_cpu: dict[str, float]) -> Table:
    """Dice and time. on_cpu: seconds on the CPU of methods that otherwise ran on a GPU."""
    dice = with_best([_all(r, "dice", 3) for r in results.values()], largest=True)
    rows: list[list[str | Cell]] = []
    for method, overlap in zip(methods, dice, strict=True):
        found = results[method.name]
        seconds = Cell(Summary.of(values(found, "seconds")).mean)
        cores = Cell(Summary.of([r.cpu_seconds for r in found]).mean)
        cpu = seconds if method.device == "cpu" else Cell(on_cpu.get(method.name, np.nan))
        gpu = seconds if method.device not in ("cpu", "") else Cell(np.nan)
        all_cores = cores if method.device == "cpu" else Cell(np.nan)
        _, _, their_dice, their_time = HU.get(method.name, (0, 0, np.nan, HOLE))
        rows.append([method.title, overlap, cpu, all_cores, gpu, Cell(their_dice), their_time])
    return Table(
        "table_2",
        "Table II: Dice of the lungs, and time",
        ["method", "Dice", "CPU (s)", "CPU, cores added up (s)", "GPU (s)", "[Hu] Dice", "[Hu] time (s)"],
        rows,
        [
            "Dice: mean ± sd over the pairs, both lungs as one mask. Seconds: mean over the pairs, wall "
            "clock, from two aligned images in memory to the displacement in memory; loading programs, "
            "compiling and training not counted. Cores added up: what the time would be on one core, "
            "and the number to trust where other programs ran beside.",
            HU_NOTE,
            *holes(results),
        ],
    )


def table_3(results: Results) -> Table:
    """What [Hu] leaves out: unseen points, surfaces, lobes, regularity, the tail."""
    columns = {
        "TRE (mm)": ("tre_mm", 2),
        "unseen TRE (mm)": ("tre_unseen_mm", 2),
        "folding (%)": ("folding_percent", 3),
        "sd log J": ("sd_log_jacobian", 3),
    }
    rows: list[list[str | Cell]] = []
    for name, found in results.items():
        tail = np.hstack([[], *(r.measured.tre_mm for r in found if r.measured)])
        tail = tail[np.isfinite(tail)]
        rows.append(
            [
                TITLES[name],
                *(_all(found, column, digits) for column, digits in columns.values()),
                Cell(float(np.percentile(tail, 95)) if tail.size else np.nan),
                cell(Summary.of([r.measured.hausdorff95_mm[1] for r in found if r.measured])),
                cell(Summary.of([_lobes(r) for r in found]), 3),
            ]
        )
    for column, largest in ((1, False), (2, False), (5, False), (6, False), (7, True)):
        cells: list[Any] = with_best([row[column] for row in rows], largest=largest)  # type: ignore[misc]
        for row, item in zip(rows, cells, strict=True):
            row[column] = item
    return Table(
        "table_3",
        "What Tables I and II leave out",
        ["method", *columns, "TRE, 95th percentile (mm)", "HD95 (mm)", "lobes' Dice"],
        rows,
        [
            "Unseen: points of kinds that no training saw. Folding: voxels with a Jacobian determinant "
            "of 0 or less. sd log J: of the determinant's logarithm, in the lungs. HD95: of the lung "
            "surfaces. Means ± sd over the landmarks or points of all pairs, else over the pairs.",
            *holes(results),
        ],
    )


def _lobes(result: Result) -> float:
    """The mean Dice of the lobes after registration."""
    if result.measured is None:
        return float("nan")
    labels = {k: v for k, v in result.measured.dice_labels.items() if not k.endswith("_lung")}
    return Summary.of([after for _, after in labels.values()]).mean


def differences(results: Results, focus: str) -> dict[str, list[Difference]]:
    """`focus` minus every other method, by the columns of TESTED; Holm within a column."""
    return {
        column: corrected(
            [
                compare(focus, name, values(results[focus], column), values(other, column))
                for name, other in results.items()
                if name != focus
            ]
        )
        for column in TESTED
    }


def table_4(found: dict[str, list[Difference]]) -> Table:
    """The differences, their intervals and tests."""
    rows: list[list[str | Cell]] = []
    for column, family in found.items():
        head, largest = TESTED[column]
        digits = 3 if largest else 2
        for d in family:
            change = d.difference
            better = d.pairs - d.smaller if largest else d.smaller
            rows.append(
                [
                    f"{head}: {TITLES[d.first]} − {TITLES[d.second]}",
                    Cell(change.mean, digits=digits),
                    Cell(change.low, digits=digits),
                    Cell(change.high, digits=digits),
                    f"{better} of {d.pairs}",
                    Cell(d.p, digits=4),
                    Cell(d.p_holm, digits=4),
                ]
            )
    return Table(
        "table_4",
        "Differences between methods, and whether chance explains them",
        ["difference", "mean", "95 % from", "to", "pairs in favour", "p", "p (Holm)"],
        rows,
        [
            "The unit is the pair (the mean over its landmarks): landmarks of one pair are not "
            "independent. Intervals: BCa bootstrap, 9999 draws of pairs. p: Wilcoxon signed-rank, "
            "two-sided; Holm's correction within each quantity. With ten pairs p cannot be less than "
            "0.002. Each subject stands in two pairs of the ring, so all of this is a little optimistic."
        ],
    )


def by_landmark(results: Sequence[Result], index: int) -> NDArray[Any]:
    """The errors of one landmark, a number a pair."""
    return np.array([np.nan if r.measured is None else r.measured.tre_mm[index] for r in results])


def table_5(results: Results, names: Sequence[str], focus: str, other: str) -> Table:
    """Mean TRE of each landmark by each method; `focus` against `other`, Holm over the landmarks."""
    shown = [name for name in results if name != "before"]
    both = focus in results and other in results
    tests = []
    for i in range(len(names) if both else 0):
        tests.append(compare(focus, other, by_landmark(results[focus], i), by_landmark(results[other], i)))
    tests = corrected(tests)
    rows: list[list[str | Cell]] = []
    for i, name in enumerate(names):
        cells = [cell(Summary.of(by_landmark(results[m], i))) for m in shown]
        row: list[str | Cell] = [name, *with_best(cells)]
        if both:
            d = tests[i]
            row += [Cell(d.difference.mean), Cell(d.difference.low), Cell(d.difference.high)]
            row += [Cell(d.p_holm, digits=4)]
        rows.append(row)
    header = ["landmark", *(TITLES[m] for m in shown)]
    note = "TRE in mm, mean ± sd over the pairs."
    if both:
        header += [f"{TITLES[focus]} − {TITLES[other]}", "95 % from", "to", "p (Holm)"]
        gain = [n for n, d in zip(names, tests, strict=True) if d.difference.high < 0]
        loss = [n for n, d in zip(names, tests, strict=True) if d.difference.low > 0]
        note += (
            f" With the landmark term {len(gain)} of {len(names)} gain (interval below 0): "
            f"{', '.join(gain) or 'none'}; {len(loss)} lose: {', '.join(loss) or 'none'}."
        )
    return Table("table_5", "Which landmarks gain", header, rows, [note])


def claims(results: Results) -> Table | None:
    """What the method claims, each beside what was found; None without `ours` and `voxelmorph`."""
    if not {"ours", "voxelmorph"} <= results.keys():
        return None

    def mean(name: str, column: str) -> float:
        return pooled(results[name], column).mean if name in results else float("nan")

    ours = {c: mean("ours", c) for c in ("tre_mm", "tre_unseen_mm", "dice", "folding_percent")}
    theirs = {c: mean("voxelmorph", c) for c in ours}
    ratios = values(results["ours"], "tre_mm") / values(results["voxelmorph"], "tre_mm")
    margin = bootstrap(ratios[np.isfinite(ratios)])

    def against(name: str, other: str) -> float:
        return mean(name, "tre_mm") / mean(other, "tre_mm")

    lines = [
        ("TRE: ours / VoxelMorph, means", against("ours", "voxelmorph"), "≤", 0.68),
        ("TRE: ours / Elastix", against("ours", "elastix"), "<", 1.0),
        ("TRE: ours / ANTs", against("ours", "ants"), "<", 1.0),
        ("TRE: ours with refinement / Elastix", against("refined", "elastix"), "<", 1.0),
        ("TRE: ours with refinement / ANTs", against("refined", "ants"), "<", 1.0),
        ("TRE: ours / VoxelMorph, both with refinement", against("refined", "voxelmorph_refined"), "<", 1.0),
        ("Dice: ours − VoxelMorph", ours["dice"] - theirs["dice"], "≥", 0.0),
        ("unseen TRE: ours / VoxelMorph", ours["tre_unseen_mm"] / theirs["tre_unseen_mm"], "≤", 1.0),
        ("folding of ours (%)", ours["folding_percent"], "≤", 0.0),
    ]
    rows: list[list[str | Cell]] = [
        [what, Cell(found, digits=4 if "Dice" in what else 3), f"{sign} {bound:g}", _met(found, sign, bound)]
        for what, found, sign, bound in lines
    ]
    note = (
        f"0.68 is [Hu]'s own ratio, 3.54 / 5.22. The mean of the pairs' ratios is {margin.mean:.3f}, "
        f"95 % interval {margin.low:.3f} to {margin.high:.3f}."
    )
    return Table(
        "claims", "What is claimed, and what was found", ["claim", "found", "wanted", "met"], rows, [note]
    )


def _met(found: float, sign: str, bound: float) -> str:
    if np.isnan(found):
        return HOLE
    holds = {"≤": found <= bound, "<": found < bound, "≥": found >= bound}[sign]
    return "yes" if holds else "no"
