"""What the experiments' command lines share: the config flag, the workdir, clean endings."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from lmreg_jax.errors import InputError
from lmreg_jax.io.tables import replacing
from lmreg_jax.model import checkpoint
from lmreg_jax.model import config as configuration


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
    """The --config flag: a file, with ':variant'; single values by --config.NAME=VALUE.

    `parse` gives it the default: a default of absl's would read the file, and stumble over wrong
    values on the command line, at import.
    """
    flags.DEFINE_string("default_config", default, "Config file where --config names none.")
    return config_flags.DEFINE_config_file("config", None, f"Config file[:variant]; else {default}.")


def parse(arguments: Sequence[str]) -> list[str]:
    """absl's flags; a value that cannot be used ends with one line and exit status 2."""
    arguments = list(arguments)
    if "config" in flags.FLAGS and not any(re.match(r"--?config(=|$)", a) for a in arguments):
        arguments.insert(1, f"--config={flags.FLAGS['default_config'].default}")
    try:
        rest = flags.FLAGS(arguments, known_only=False)
        if "config" in flags.FLAGS:
            value: Any = flags.FLAGS["config"].value
            _ = value.train  # A file that is not there is told on first use only.
        return rest
    except InputError as error:
        message = str(error)
    except (AttributeError, KeyError) as error:
        inner = error.args[0] if error.args else ""  # ml_collections wraps one error in the other.
        text = str(inner.args[0] if isinstance(inner, Exception) and inner.args else inner)
        message = f"the config has no value {text}{_valid_names(text, arguments)}"
    except (flags.Error, TypeError, ValueError) as error:
        # ml_collections puts the traceback of a config file into the message: its last line counts.
        lines = str(error).strip().splitlines()
        text = lines[-1].partition(": ")[2] if "Traceback" in str(error) else str(error)
        message = f"{text}{_valid_names(text, arguments)}"
    except (OSError, SyntaxError, ImportError) as error:
        message = f"the config cannot be read: {error}"
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _valid_names(message: str, arguments: Sequence[str]) -> str:
    """The names and types that the section of an unknown or ill-typed value does have."""
    given = next((a for a in arguments if re.match(r"--?config\.", a) and _blamed(a, message)), None)
    if given is None:
        return ""
    section = given.partition("=")[0].split(".")[1:-1]
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
    name = argument.lstrip("-").partition("=")[0]
    return name in message or any(f"'{part}'" in message for part in name.split(".")[1:])


def default_workdir() -> Path:
    """runs/lung, or runs/lung_paper for a config `experiments/lung.py:paper`."""
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    file, _, variant = name.partition(":")
    return Path("runs") / "_".join(filter(None, [Path(file).stem, variant]))


def open_workdir(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Makes the folder and writes the config there; refuses a folder of another run's config.

    A folder without a checkpoint (its run was refused, or cut off early) may get another config.
    """
    file = workdir / configuration.FILE
    if file.exists():
        differences = configuration.differences(configuration.read(file), config)
        if not differences:
            return
        if checkpoint.exists(workdir):
            raise InputError(
                f"{workdir} holds a run with another config ({', '.join(differences)} differ);"
                " give another --workdir, or the values of that run to go on with it"
            )
    try:
        with replacing(file) as temporary:
            temporary.write_text(configuration.to_json(config), encoding="utf-8")
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
