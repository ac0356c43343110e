"""Train a system of the paper and export it.

    python -m tfjoint.train --model=direct --flagfile=configs/direct.cfg

Repeating the command resumes the run, or does nothing where it is finished.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from tfjoint import entry
from tfjoint.config import Config, ConfigError, describe, resolve

COMMAND_LINE = "command line"
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
SETTINGS = {field.name: field for field in dataclasses.fields(Config)}


def define_flags() -> None:
    """Define one flag for every setting of `Config`."""
    define: dict[type, Callable] = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        tuple: flags.DEFINE_list,
    }
    for name, field in SETTINGS.items():
        value = field.default
        shown = list(map(str, value)) if isinstance(value, tuple) else value
        define[type(value)](name, shown, _help(field))


def flag_origins(argv: Sequence[str]) -> dict[str, str]:
    """Return where each given flag is from: "command line" or the flagfile's name.

    absl reads from left to right, so a flag before --flagfile loses to the file without a word.
    Here a flag may be given twice only where a command-line flag after the file overrides it.

    Raises `ConfigError` for any other pair of unequal values.
    """
    origins: dict[str, str] = {}
    values: dict[str, str] = {}
    for name, value, origin in _tokens(argv[1:]):
        if name in values and values[name] != value:
            if not (origin == COMMAND_LINE and origins[name] != COMMAND_LINE):
                raise ConfigError(
                    f"--{name} is given twice: {values[name]} ({origins[name]}), then {value} "
                    f"({origin}). Give it once; to override a flagfile, put it after --flagfile"
                )
        values[name], origins[name] = value, origin
    return origins


def main(argv: Sequence[str]) -> None:
    """Resolve the config, train, export."""
    origins = flag_origins(sys.argv)
    given = {name: _value(name) for name in SETTINGS if flags.FLAGS[name].present}
    if "model" not in given:
        models = ", ".join(SETTINGS["model"].metadata["choices"])
        raise ConfigError(f"no --model is given. Give --model=NAME, one of {models}")
    config, origins = resolve(given, origins)
    print(describe(config, origins))

    choose_kernels(config)
    # TensorFlow takes seconds to import; a mistake above should not wait for it.
    from tfjoint import export, trainer, workers

    strategy = workers.select_strategy()
    run = trainer.train(config, strategy, origins)
    if workers.is_chief(strategy):
        export.export_run(run)
    workers.wait_for_all(strategy, run)


def choose_kernels(config: Config) -> None:
    """Have TensorFlow, before it is imported, use oneDNN where that is faster for the system.

    By itself it does where the processor has AVX-512 alone. With AVX2 oneDNN takes two thirds of
    the time for the 3D convolutions and a sixth more for the codec's 2D ones (bench/NOTES.md).
    """
    if not config.uses("codec"):
        os.environ.setdefault(ONEDNN, "1")


def _tokens(arguments: Sequence[str], origin: str = COMMAND_LINE) -> Iterator[tuple[str, str, str]]:
    """Yield (flag name, value, origin) of every argument, flagfiles read in place."""
    arguments = list(arguments)
    while arguments:
        token = arguments.pop(0)
        name, equals, value = token.lstrip("-").partition("=")
        if not token.startswith("-"):  # the value of a flag that is none of ours
            continue
        if name == "flagfile":
            value = value if equals else arguments.pop(0)
            if not value:
                raise ConfigError("--flagfile has no file name: leave it out, or name a file")
            inner = flags.FLAGS.read_flags_from_files([f"--flagfile={value}"])
            yield from _tokens(inner, value)
        elif name in SETTINGS and isinstance(SETTINGS[name].default, bool):
            yield name, value or "true", origin
        elif name.startswith("no") and name[2:] in SETTINGS:
            yield name[2:], "false", origin
        elif name in SETTINGS:
            yield name, value if equals or not arguments else arguments.pop(0), origin


def _value(name: str):
    value = flags.FLAGS[name].value
    if not isinstance(value, list):
        return value
    wanted = SETTINGS[name].metadata["type"]
    try:
        return tuple(wanted(item) for item in value)
    except ValueError as error:
        numbers = {int: "integers", float: "numbers"}[wanted]
        raise ConfigError(
            f"{name} must be {numbers} with commas between. Received: {','.join(value)}"
        ) from error


def _help(field: dataclasses.Field) -> str:
    choices = field.metadata["choices"]
    return field.metadata["help"] + (f" ({', '.join(choices)})" if choices else "")


if __name__ == "__main__":
    define_flags()
    entry.run(main)
