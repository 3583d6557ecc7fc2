"""What the experiments' command lines share: the config flag, the workdir, clean endings."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from lmreg_jax import configuration
from lmreg_jax.errors import InputError


class NotFinite(InputError):
    """The loss stayed NaN or infinite; names the term, the step, and where the good state is."""

    def __init__(self, terms: str, step: int, workdir: Path) -> None:
        super().__init__(
            f"step {step}: {terms} not finite, several steps in a row; training stopped."
            f" The last good state is in {workdir}/checkpoints, the pairs are listed in"
            f" {workdir}/skipped_steps.jsonl. Lower config.train.learning_rate or set"
            " config.train.clip_norm"
        )


def define_config(default: str) -> Any:
    """The --config flag: a file, with ':variant'; single values by --config.NAME=VALUE."""
    return config_flags.DEFINE_config_file("config", default, "Config file[:variant].")


def parse(arguments: Sequence[str]) -> list[str]:
    """absl's flags; a value that cannot be used ends with one line and exit status 2."""
    try:
        return flags.FLAGS(list(arguments), known_only=False)
    except InputError as error:
        message = str(error)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"{error}{_valid_names(str(error), arguments)}"
    except (OSError, SyntaxError, ImportError) as error:
        message = f"the config cannot be read: {error}"
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _valid_names(message: str, arguments: Sequence[str]) -> str:
    """The names and types that the section of an unknown or ill-typed value does have."""
    given = next((a for a in arguments if a.startswith("--config.") and _blamed(a, message)), None)
    if given is None:
        return ""
    section = re.split(r"[=]", given.removeprefix("--config."))[0].split(".")[:-1]
    try:
        from experiments import lung

        config: Any = lung.get_config()
        for part in section:
            config = config[part]
    except (KeyError, AttributeError):
        config = lung.get_config()
        section = []
    names = ", ".join(
        f"{k} ({'section' if isinstance(v, ml_collections.ConfigDict) else type(v).__name__})"
        for k, v in config.items()
    )
    return f"; valid in config{''.join('.' + s for s in section)}: {names}"


def _blamed(argument: str, message: str) -> bool:
    name = argument.removeprefix("--").split("=")[0]
    return name in message or name.split(".")[-1] in message


def default_workdir() -> Path:
    """runs/lung, or runs/lung_paper for a config `experiments/lung.py:paper`."""
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    file, _, variant = name.partition(":")
    return Path("runs") / "_".join(filter(None, [Path(file).stem, variant]))


def open_workdir(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Makes the folder and writes the config there; refuses a folder of another run's config."""
    file = workdir / configuration.FILE
    if file.exists():
        differences = configuration.differences(configuration.from_json(file.read_text()), config)
        if differences:
            raise InputError(
                f"{workdir} holds a run with another config ({', '.join(differences)} differ);"
                " give another --workdir, or the values of that run to go on with it"
            )
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(configuration.to_json(config))
        os.replace(temporary, file)
    except OSError as error:
        raise InputError(
            f"{workdir}: cannot be written ({error.strerror}); give another --workdir"
        ) from error


def no_arguments(arguments: Sequence[str]) -> None:
    """InputError on stray words, such as a flag without its dashes."""
    if len(arguments) > 1:
        raise InputError(f"unexpected argument {arguments[1]!r}; values are given as --name=value")


def run(main: Callable[[list[str]], None]) -> None:
    """`app.run` with `parse` and a quiet log."""
    app.run(main, flags_parser=parse)


def quiet_log() -> None:
    """This package's messages at INFO; the libraries' (orbax tells every file) at WARNING.

    Called inside main: absl sets its own levels when it has parsed the flags.
    """
    logging.getLogger().setLevel(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in ("lmreg_jax", "experiments"):
        logging.getLogger(name).setLevel(logging.INFO)
