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
from lmreg_jax.cohort.case import images_of_pair
from lmreg_jax.cohort.cohort import Cohort
from lmreg_jax.errors import InputError
from lmreg_jax.evaluation import baselines, metrics
from lmreg_jax.io.tables import replacing
from lmreg_jax.model.registrar import Registrar
from lmreg_jax.report.planes import cut

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
    first = next(iter(results.values()))
    initial = report.values(first, "tre_initial_mm")
    hardest = 0
    if np.isfinite(initial).any():
        written.append(figures.against_initial(folder / "tre_against_initial.png", results))
        written.append(figures.landmark_bars(folder / "landmarks.png", results, cohort.landmark_names))
        hardest = int(np.nanargmax(initial))
    fixed, moving = (cohort.case(name) for name in (first[hardest].fixed, first[hardest].moving))
    images = images_of_pair(fixed, moving)
    index = np.moveaxis(np.indices(cohort.shape), 0, -1)
    warped = {}
    for method in methods:
        measured = results[method.name][hardest].measured
        if measured is not None:
            at = np.moveaxis(index + method.answer(fixed, moving).displacement, -1, 0)  # from the cache
            head = f"{method.title}\nTRE {metrics.Summary.of(measured.tre_mm).mean:.2f} mm"
            warped[head] = ndimage.map_coordinates(images[1], at, order=1, mode="nearest")
    title = f"{moving.name} -> {fixed.name}, the pair with the largest initial TRE"
    where = cut(cohort.shape, fixed.landmarks)
    return [
        *written,
        figures.overlays(folder / "overlays.png", title, images[0], where, cohort.spacing_mm, warped),
    ]


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


MEASURED = ("tre_mm", "tre_unseen_mm", "dice", "folding_percent", "sd_log_jacobian", "seconds")


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """A method's results at full precision."""

    def numbers(measured: metrics.PairResult | None) -> dict[str, Any]:
        if measured is None:
            return {}
        return {c: getattr(measured, c) for c in MEASURED} | {"hausdorff95_mm": measured.hausdorff95_mm[1]}

    return {
        "all": {column: report.pooled(results, column)._asdict() for column in MEASURED},
        "pairs": [
            {"fixed": r.fixed, "moving": r.moving, "error": r.error, "cpu_seconds": r.cpu_seconds}
            | numbers(r.measured)
            for r in results
        ],
    }


def _flat(difference: Any) -> dict[str, Any]:
    return difference._asdict() | {"difference": difference.difference._asdict()}
