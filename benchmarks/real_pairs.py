"""`lmreg register` on all ordered pairs of some scans: does it hold without help, on real data?

    python -m benchmarks.real_pairs SCAN SCAN... --work=DIR [--refine=60] [--output=benchmarks/results]

Each pair is a process of its own, as a user would start it; results that are in DIR already are not
made again. Writes real_pairs.md: lung Dice after the affine step, the network and the refinement (own
masks, common field of view), folding, the inverse's error, time and peak memory. Look at the
reports in DIR, too: no number says whether a picture is plausible.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import common
from lmreg_jax.io.tables import replacing

HEADS = (
    *("fixed", "moving", "Dice affine", "Dice network", "Dice refined", "folding (%)"),
    *("smallest J", "sd log J", "inverse, p95 (mm)", "time (s)", "peak (MB)"),
)


def register(fixed: str, moving: str, folder: Path, refine: int) -> dict[str, Any]:
    """The report of one pair, with "wall_s" and "peak_mb" of its processes."""
    file = folder / "process.json"
    if not file.exists():
        words = [fixed, moving, "--output", str(folder), "--refine", str(refine), "--force", "--quiet"]
        command = [sys.executable, "-m", "lmreg_jax.cli.main", "register", *words]
        _, seconds, most = common.watched(command)
        own = {"wall_s": seconds, "peak_mb": most}
        file.write_text(json.dumps(own), encoding="utf-8")
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report | json.loads(file.read_text(encoding="utf-8"))


def row(report: dict[str, Any]) -> str:
    dice, regular = report["dice"]["both"], report["regularity"]
    cells = [
        *(_name(report["scans"][role]["path"]) for role in ("fixed", "moving")),
        *(f"{dice[kind]:.3f}" for kind in ("affine", "network", "after")),
        f"{regular['folding_percent']:.3f}",
        f"{regular['smallest_jacobian']:.2f}",
        f"{regular['sd_log_jacobian_lungs']:.2f}",
        f"{report['motion']['inverse_error']['p95_mm']:.2f}",
        f"{report['wall_s']:.0f}",
        f"{report['peak_mb']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _name(path: str) -> str:
    return Path(path).name.removesuffix(".gz").removesuffix(".nii")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scans", nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--refine", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    reports = []
    for fixed, moving in itertools.permutations(given.scans, 2):
        folder = given.work / f"{_name(moving)}_onto_{_name(fixed)}"
        reports.append(register(fixed, moving, folder, given.refine))
        print(row(reports[-1]), flush=True)
    versions = ", ".join(f"{name} {version}" for name, version in reports[0]["versions"].items())
    where = common.environment("benchmarks.real_pairs", ())
    lines = [
        "# `lmreg register` on real chest CT, all ordered pairs",
        "",
        f"`python -m benchmarks.real_pairs ... --refine={given.refine}` with the shipped weights;"
        f" {where['processor']}, {where['cores']} cores, {versions}; commit {where['commit']}, load"
        f" {where['load_at_start']:.1f} at the end. Lungs segmented by the program, Dice in the common"
        " field of view; J: Jacobian determinant, sd of its log in the lungs; inverse: |T^-1(T(x)) - x| in"
        " the lungs. Time and memory are of the whole command, start-up and elastix' process included.",
        "",
        f"| {' | '.join(HEADS)} |",
        "| --- | --- |" + " ---: |" * (len(HEADS) - 2),
        *map(row, reports),
    ]
    with replacing(given.output / "real_pairs.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
