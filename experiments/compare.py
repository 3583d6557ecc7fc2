"""Tables I and II: all methods on the same held-out pairs, from the same aligned inputs.

    python -m experiments.compare --config=experiments/lung.py[:variant] [--workdir=DIR]
    ... --methods=affine,elastix,ants,ours               some of them only (METHODS)
    ... --ours=runs/lung --voxelmorph=runs/voxelmorph    trainings that are there already
    ... --tuning_pairs=0                                 no tuning: the first settings
    ... --ablations                                      then `experiments.ablations`

Trains what is not trained yet (in DIR/ours and DIR/voxelmorph), tunes the baselines on validation
pairs, registers the test pairs, and writes DIR/comparison.md, DIR/comparison.json, DIR/tables and
DIR/figures. The same command goes on where it was cut off: every answer is kept in DIR/cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from absl import flags

from lmreg_jax.errors import InputError, exits_cleanly

# JAX, the trainer and matplotlib are imported where they are used: the process that Elastix and
# ANTs run in imports this module, too, and needs none of them.
if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from experiments.comparison.methods import Method
    from experiments.comparison.store import Call
    from experiments.comparison.tuning import Trial
    from lmreg_jax.cohort.cohort import Cohort
    from lmreg_jax.model.registrar import Registrar

METHODS = ("before", "affine", "elastix", "ants", "voxelmorph", "ours", "voxelmorph_refined", "refined")
USERS = {"ours": ("ours", "refined"), "voxelmorph": ("voxelmorph", "voxelmorph_refined")}  # of each training
LANDMARK_TERM = "objective.landmark_weight"  # all that the two trainings differ in


def compare(
    config: ConfigDict,
    workdir: Path,
    *,
    methods: Sequence[str] = METHODS,
    trained: Mapping[str, Path] = MappingProxyType({}),
    tuning_pairs: int = 6,
    isolated: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """The whole comparison, alone in `workdir`; returns what comparison.json holds.

    trained: folders of trainings that take the place of DIR/ours and DIR/voxelmorph. isolated:
    Elastix and ANTs run in a process of their own. Raises InputError for what a user can mend.
    """
    from experiments.run import lock

    check(config, methods, trained)
    with lock.held(workdir):
        return story(config, workdir, methods, trained, tuning_pairs, isolated, progress)


def story(
    config: ConfigDict,
    workdir: Path,
    methods: Sequence[str],
    trained: Mapping[str, Path],
    tuning_pairs: int,
    isolated: bool,
    progress: bool,
) -> dict[str, Any]:
    """Cohort, trainings, then each method: tuned where it has settings, run on the test pairs."""
    from experiments.comparison import document
    from experiments.comparison import methods as comparison_methods
    from experiments.comparison import tuning as comparison_tuning
    from experiments.comparison.store import same_process, separate_process
    from experiments.run import provenance
    from experiments.run.data import load_cohort
    from lmreg_jax.cohort.cohort import held_out_pairs

    cohort = load_cohort(config, progress=progress)
    pairs = held_out_pairs(cohort, "test")
    if not pairs:
        raise InputError(f"{cohort.root}: no test case to compare on; mark two or more in cases.csv")
    provenance.record(workdir, config, program="compare")
    registers = {
        name: network(name, config, cohort, workdir / name, trained.get(name))
        for name, users in USERS.items()
        if set(users) & set(methods)
    }
    chosen = comparison_tuning.tuning_pairs(cohort, tuning_pairs)
    used: list[Method] = []
    trials: list[Trial] = []
    results = {}
    with (separate_process if isolated else same_process)() as call:
        for name in methods:
            method, tried = build(name, cohort, registers, workdir / "cache", call, chosen, progress)
            results[name] = comparison_methods.run(method, cohort, pairs, progress=progress)
            used.append(method)
            trials += tried
    return document.write(workdir, config, cohort, used, results, trials, chosen, registers)


def check(config: ConfigDict, methods: Sequence[str], trained: Mapping[str, Path]) -> None:
    """What would otherwise be told only after hours: names, packages, trainings that do not belong."""
    from lmreg_jax.evaluation import baselines
    from lmreg_jax.model import config as configuration

    if any(set(users) & set(methods) and name not in trained for name, users in USERS.items()):
        configuration.validate(config)  # it is to be trained with; folders of older versions are not
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods or len(set(methods)) != len(methods):
        raise InputError(f"methods {','.join(methods) or 'none'}: some of {','.join(METHODS)}, each once")
    for name in set(methods) & set(baselines.REGISTER):
        try:
            baselines.version(name)
        except InputError as error:
            others = ",".join(m for m in METHODS if m != name)
            raise InputError(f"{error}; or do without: --methods={others}") from None
    for name, folder in trained.items():
        found = configuration.read(folder / configuration.FILE)
        differing = configuration.differences(found, config)
        if name == "voxelmorph":
            if found.objective.landmark_weight:
                raise InputError(
                    f"{folder}: trained with landmarks ({LANDMARK_TERM} is not 0): not VoxelMorph"
                )
            differing = [value for value in differing if value != LANDMARK_TERM]
        if differing:
            raise InputError(
                f"{folder}: trained with another config ({', '.join(differing)} differ); only"
                f" {LANDMARK_TERM} may differ between the methods that are compared"
            )


def network(name: str, config: ConfigDict, cohort: Cohort, folder: Path, given: Path | None) -> Registrar:
    """The trained network of "ours" or "voxelmorph": the folder given, or trained here (resumed)."""
    from experiments.train import train
    from lmreg_jax.model import registrar

    if given is not None:
        return registrar.load(given)
    config = config.copy_and_resolve_references()
    if name == "voxelmorph":
        config.objective.landmark_weight = 0.0
    train(config, folder, evaluate=False, cohort=cohort)
    return registrar.load(folder)


def build(
    name: str,
    cohort: Cohort,
    registers: Mapping[str, Registrar],
    cache: Path,
    call: Call,
    pairs: Sequence[tuple[str, str]],
    progress: bool,
) -> tuple[Method, list[Trial]]:
    """A method by its name, with its settings chosen on `pairs` where it has any, and what was tried."""
    from experiments.comparison import methods as make
    from experiments.comparison import settings, tuning

    if name == "before":
        return make.before_affine(cohort), []
    if name == "affine":
        return make.affine_only(cohort), []
    if name in registers:
        return make.learned(name, registers[name], cache), []

    def with_settings(values: Any) -> Method:
        for training, users in USERS.items():
            if name in users:
                return make.refined(name, registers[training], values, cache)
        return make.classical(name, values, cohort, cache, call)

    candidates = settings.CANDIDATES[name]
    trials = tuning.tune(name, candidates, with_settings, cohort, pairs, progress=progress)
    return with_settings(tuning.kept(trials)), trials


def define_flags() -> None:
    """Not at import: `experiments.train`, which is imported here, defines --config and --workdir."""
    import experiments.train  # noqa: F401

    flags.DEFINE_list("methods", list(METHODS), "Which methods, in the tables' order.")
    flags.DEFINE_string("ours", "", "Folder of a training with landmarks; its config is used.")
    flags.DEFINE_string("voxelmorph", "", "Folder of the same training without the landmark term.")
    flags.DEFINE_integer("tuning_pairs", 6, "Validation pairs to tune the baselines on.", lower_bound=0)
    flags.DEFINE_bool("ablations", False, "Also run experiments.ablations, in DIR/ablations.")


@exits_cleanly
def main(arguments: list[str]) -> None:
    from experiments import train
    from experiments.run import command
    from lmreg_jax import _compilation_cache as compilation_cache
    from lmreg_jax.model import config as configuration

    command.no_arguments(arguments)
    command.quiet_log()
    compilation_cache.enable()
    values: Any = flags.FLAGS
    workdir = Path(values.workdir or f"{command.default_workdir()}_comparison")
    trained = {name: Path(values[name].value) for name in USERS if values[name].value}
    config = train.CONFIG.value
    if "ours" in trained:
        config = configuration.read(trained["ours"] / configuration.FILE)
    compare(
        config,
        workdir,
        methods=tuple(values.methods),
        trained=trained,
        tuning_pairs=values.tuning_pairs,
    )
    if values.ablations:
        from experiments import ablations

        ablations.ablate(config, workdir / "ablations")


if __name__ == "__main__":
    from experiments.run import command

    define_flags()
    command.run(main)
