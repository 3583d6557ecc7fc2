"""Writes a comparison down: comparison.md, comparison.json, tables/ and figures/."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from experiments.comparison import figures, report, tables, tuning
from experiments.comparison.methods import TITLES, Method, Result, seconds_on_cpu
from experiments.comparison.report import Results
from experiments.comparison.tables import Table
from experiments.run import provenance
from lmreg_jax._records import plain
from lmreg_jax.cohort.cohort import Cohort
from lmreg_jax.errors import InputError
from lmreg_jax.evaluation import baselines, metrics
from lmreg_jax.io.tables import replacing
from lmreg_jax.model.registrar import Registrar

SYNTHETIC = (
    "The subjects are synthetic (a procedural thorax): compare the rows with each other, not with "
    "figures of patients."
)


def write(
    workdir: Path,
    config: ConfigDict,
    cohort: Cohort,
    methods: Sequence[Method],
    results: Results,
    trials: Sequence[tuning.Trial],
    tuning_pairs: Sequence[tuple[str, str]],
    registers: Mapping[str, Registrar],
) -> dict[str, Any]:
    """All files of a comparison, each written whole; returns what comparison.json holds."""
    pair = next(iter(results.values()))[0]
    cases = cohort.case(pair.fixed), cohort.case(pair.moving)
    on_cpu = {}
    if jax.default_backend() != "cpu":
        on_cpu = {
            name: seconds_on_cpu(name, register, *cases, workdir / "cache")
            for name, register in registers.items()
            if name in results
        }
    found = [report.table_1(results), report.table_2(results, methods, on_cpu), report.table_3(results)]
    tests = report.differences(results, "ours") if "ours" in results else {}
    if tests:
        found.append(report.table_4(tests))
    if cohort.landmark_names:
        found.append(report.table_5(results, cohort.landmark_names, "ours", "voxelmorph"))
    if trials:
        found.append(tuning.table(trials, tuning_pairs))
    claimed = report.claims(results)
    if claimed:
        found.append(claimed)
    tables.write(workdir / "tables", found)
    pictures = draw(workdir / "figures", cohort, methods, results)
    facts = circumstances(config, cohort)
    text = as_markdown(config, cohort, found, pictures, facts, registers)
    summary = {
        **facts,
        "checkpoints": {name: register.source for name, register in registers.items()},
        "methods": {name: as_json(found) for name, found in results.items()},
        "tests": {column: [_flat(d) for d in family] for column, family in tests.items()},
        "tuning": [
            {"method": t.method, "name": t.name, "settings": t.settings._asdict(), "kept": t.kept}
            | {"pairs": as_json(t.results)["pairs"]}
            for t in trials
        ],
        "seconds_on_cpu": on_cpu,
    }
    for name, content in (
        ("comparison.md", text),
        ("comparison.json", json.dumps(plain(summary), indent=1) + "\n"),
    ):
        with replacing(workdir / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    for table in found[:2] + ([claimed] if claimed else []):
        print(tables.markdown(table))
    print(f"all tables: {workdir}/comparison.md; figures are in {workdir}/figures")
    return json.loads((workdir / "comparison.json").read_text(encoding="utf-8"))


def draw(folder: Path, cohort: Cohort, methods: Sequence[Method], results: Results) -> list[Path]:
    """The four figures; those of landmarks only where there are any."""
    written = [figures.boxes(folder / "boxes.png", results)]
    initial = report.values(next(iter(results.values())), "tre_initial_mm")
    if np.isfinite(initial).any():
        written.append(figures.against_initial(folder / "tre_against_initial.png", results))
        written.append(figures.landmark_bars(folder / "landmarks.png", results, cohort.landmark_names))
    hardest = int(np.nanargmax(initial)) if np.isfinite(initial).any() else 0
    pair = next(iter(results.values()))[hardest]
    fixed, moving = cohort.case(pair.fixed), cohort.case(pair.moving)
    warped, heads = {}, {}
    for method in methods:
        measured = results[method.name][hardest].measured
        if measured is None:
            continue
        u = method.answer(fixed, moving).displacement  # from the cache
        warped[method.name] = _warped(moving.image, u)
        heads[method.name] = f"TRE {metrics.Summary.of(measured.tre_mm).mean:.2f} mm"
    written.append(
        figures.overlays(folder / "overlays.png", cohort, (pair.fixed, pair.moving), warped, heads)
    )
    return written


def _warped(image: Any, displacement: Any) -> Any:
    """image(x + u(x)), trilinear, extended by its edge."""
    index = np.moveaxis(np.indices(image.shape), 0, -1)
    where = np.moveaxis(index + displacement, -1, 0)
    return ndimage.map_coordinates(image, where, order=1, mode="nearest")


def as_markdown(
    config: ConfigDict,
    cohort: Cohort,
    found: Sequence[Table],
    pictures: Sequence[Path],
    facts: Mapping[str, Any],
    registers: Mapping[str, Registrar],
) -> str:
    """One page: how it was made, all tables, all figures."""
    size = " x ".join(str(n) for n in cohort.shape)
    spacing = " x ".join(f"{s:g}" for s in cohort.spacing_mm)
    lines = [
        "# Comparison",
        "",
        f"Grid of {size} voxels of {spacing} mm; affine alignment: {cohort.alignment}. "
        + ("" if config.data.root else SYNTHETIC),
        "",
        f"- command: `{facts['command']}`",
        f"- machine: {machine(facts)}",
        f"- versions: python {facts['python']}, "
        + ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version),
        f"- commit: {facts['git_commit'] or 'not in a git checkout'}",
        *(
            f"- checkpoint of {TITLES[n]}: {r.source}, of {r.config.train.steps} steps"
            for n, r in registers.items()
        ),
        "",
        *(tables.markdown(table) for table in found),
        *(f"![{path.stem.replace('_', ' ')}](figures/{path.name})\n" for path in pictures),
    ]
    return "\n".join(lines)


def circumstances(config: ConfigDict, cohort: Cohort) -> dict[str, Any]:
    """Command, machine, versions, commit: what the figures cannot be repeated without."""
    facts = provenance.current(config)
    for name in baselines.PACKAGES:
        with contextlib.suppress(InputError):
            facts["packages"][baselines.PACKAGES[name]] = baselines.version(name)
    command = " ".join(["python -m experiments.compare", *map(shlex.quote, sys.argv[1:])])
    cohort_facts = {"alignment": cohort.alignment, "reference": cohort.reference}
    return facts | cohort_facts | {"command": command, "processor": provenance.processor()}


def machine(facts: Mapping[str, Any]) -> str:
    """Processor, cores, and the devices that JAX used."""
    devices = ", ".join(f"{count} x {kind}" for kind, count in facts["devices"].items() if kind != "cpu")
    return f"{facts['processor']}, {facts['processors']} cores" + (f"; {devices}" if devices else "")


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """A method's results at full precision."""
    columns = ("tre_mm", "tre_unseen_mm", "dice", "folding_percent", "sd_log_jacobian", "seconds")
    return {
        "all": {column: report.pooled(results, column)._asdict() for column in columns},
        "pairs": [
            {"fixed": r.fixed, "moving": r.moving, "error": r.error, "cpu_seconds": r.cpu_seconds}
            | ({} if r.measured is None else _measured(r.measured))
            for r in results
        ],
    }


def _measured(measured: metrics.PairResult) -> dict[str, Any]:
    columns = ("tre_mm", "tre_unseen_mm", "dice", "folding_percent", "sd_log_jacobian", "seconds")
    return {c: getattr(measured, c) for c in columns} | {"hausdorff95_mm": measured.hausdorff95_mm[1]}


def _flat(difference: Any) -> dict[str, Any]:
    return difference._asdict() | {"difference": difference.difference._asdict()}
