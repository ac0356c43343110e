"""What the study of the paper's figures consists of: every run, in the order in which it is done.

A run is a training with one seed, and the evaluation of its export at every rate that it serves.
The order is such that a study that was stopped early shows the main points of Fig. 8 first. Widths
come from the profile, schedules from the settings in configs/study.cfg.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfjoint.config import PROFILES, RAW_BITS, Config, ConfigError, resolve
from tfjoint.errors import UserError

JPEG2000_RATES = (48, 96, 128, 192, 256, 384, 480)
LOW_RATES = (6, 12)
"""At these the paper takes the binarizer away and trains JPEG 2000's network again (Sec. IV-C)."""
IMPLICIT_RATES = (384, 48, 96, 192, 480, 1024, 4096)
"""The paper's up to 480, then beyond it; one model each."""
SEEDS = (0, 1)
LONG = 3
"""Of Table I: its 60 epochs are this many times the 20 of everything else."""
HALF = "half"
"""Records of half of the training meshes."""
FIRST = {name: f"{name}, first iteration alone" for name in ("direct", "sequential")}
"""Curves of systems that are trained for their first iteration alone, the highest rate."""
LONG_CURVES = {name: f"{name}, long" for name in ("reconstruction", "implicit")}
"""Curves of systems that are trained `LONG` times as long."""
HALVED = "reconstruction, half the meshes"
AS_IMPLICIT = "reconstruction, trained as implicit"
WIDE = "reconstruction, wide"
LIGHT = "sequential, L_3D weighted 0.1"
ADDITIVE = "compression, small, additive"
ORIGINAL = {"codec": "original", "gamma": 1.0}
"""Additive: predicting each image anew, it decodes black after 150 minibatches, and stays there."""

_FLOAT_BITS = 32
_DRAWN, _FIXED = "random T", "constant T"


class PlanError(UserError):
    """Settings or names that do not fit the study."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and what its results are for."""

    name: str
    curve: str
    """Of which curve of a figure its points are; the same for all seeds, and for all rates."""
    model: str
    seed: int = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What makes it this run, beside model and seed."""
    views: str = "raw"
    """Which records: "raw", raw ones of `HALF`, or JPEG 2000 views in mode "asked" or "payload"."""
    after: str = ""
    """The run whose codec it takes."""
    budget: int = 1
    """How many times the epochs of the others."""


@dataclasses.dataclass(frozen=True)
class Study:
    """Where a study lies and how it is trained."""

    profile: str
    data: str
    """Directory of the raw records, or "demo"."""
    runs: str
    """Directory of the run directories."""
    results: str
    """Directory of the results files."""
    settings: Mapping[str, Mapping[str, Any]]
    """Settings by whom they are for: "all", a model, or the name of a run."""
    objects: int = 3
    """Test objects whose shapes and views are kept for Tables II, IV and V."""


def planned(study: Study) -> list[Run]:
    """Return every run of the study, the most telling ones first."""
    size = resolve({"model": "reconstruction", "profile": study.profile})[0].image_size
    main = [_with_seed(run, 0) for run in (*_core(size), *_codecs(), *_implicit(size), *_low(size))]
    repeated = [_with_seed(run, seed) for seed in SEEDS[1:] for run in _core(size)]
    limits = [_with_seed(run, 0) for run in _limits(study, size)]
    return [*main, *limits, *repeated]


def _core(size: int) -> list[Run]:
    """Return the systems that are trained with every seed."""
    return [
        Run("reconstruction", "reconstruction", "reconstruction"),
        _implicit_run(size, IMPLICIT_RATES[0]),
        Run("direct", "direct", "direct"),
        Run("sequential", "sequential", "sequential"),
        *(
            Run(f"jpeg2000-{mode}", f"JPEG 2000, {mode}", "jpeg2000",
                settings={"rates": tuple(map(float, JPEG2000_RATES))}, views=mode)
            for mode in ("asked", "payload")
        ),
    ]  # fmt: skip


def _codecs() -> list[Run]:
    """Return the codec alone (Fig. 11), and what is reconstructed from its frozen images."""
    codecs = [
        Run(f"compression-{codec}-{kind.split()[0]}", f"compression, {codec}, {kind}",
            "compression", settings={**variant, **iterations})
        for kind, iterations in ((_DRAWN, {}), (_FIXED, {"iterations_min": 8}))
        for codec, variant in (("small", {"codec": "small_a"}), ("original", ORIGINAL))
    ]  # fmt: skip
    separate = Run("separate", "separate", "separate", after="compression-small-random")
    return [codecs[0], separate, *codecs[1:]]


def _implicit(size: int) -> list[Run]:
    return [_implicit_run(size, rate) for rate in IMPLICIT_RATES[1:]]


def _low(size: int) -> list[Run]:
    """Return 12:1 and 6:1: codes are floats; of the iterative systems, of one or two iterations."""
    floats = {"binarizer": False, "iterations_max": 2}
    codec = Run("compression-floats", "compression, floats", "compression", settings=floats)
    return [
        *(_implicit_run(size, rate, binarizer=False) for rate in reversed(LOW_RATES)),
        Run("direct-floats", "direct, floats", "direct", settings=floats),
        Run("sequential-floats", "sequential, floats", "sequential", settings=floats),
        Run("jpeg2000-low", "JPEG 2000, asked, low", "jpeg2000",
            settings={"rates": tuple(map(float, LOW_RATES))}, views="asked"),
        codec,
        Run("separate-floats", "separate, floats", "separate", settings=floats, after=codec.name),
    ]  # fmt: skip


def _limits(study: Study, size: int) -> list[Run]:
    """Return runs that tell what the results depend on, each different from another in one thing.

    The uncompressed network, which every other system contains, with more steps, fewer meshes, and
    as implicit is trained; that with more weights, since a wide code needs smaller steps; implicit
    with more steps; iterative systems with one iteration, for what serving eight rates costs at
    the highest; sequential with its eye on the images; the small codec as the original is trained.
    """
    widths = PROFILES[study.profile]
    doubled = {
        name: tuple(2 * width for width in widths[name])
        if isinstance(widths[name], tuple)
        else 2 * widths[name]
        for name in ("feature_channels", "features", "grid_channels", "voxel_channels")
    }
    of_implicit = study.settings.get("implicit", {})
    return [
        Run("reconstruction-long", LONG_CURVES["reconstruction"], "reconstruction", budget=LONG),
        Run("reconstruction-wide", WIDE, "reconstruction",
            settings={**of_implicit, **doubled}),
        Run("reconstruction-half", HALVED, "reconstruction", views=HALF, budget=2),
        *([Run("reconstruction-as-implicit", AS_IMPLICIT, "reconstruction", settings=of_implicit)]
          if of_implicit else []),
        dataclasses.replace(
            _implicit_run(size, IMPLICIT_RATES[0]),
            name="implicit-long-384", curve=LONG_CURVES["implicit"], budget=LONG,
        ),
        *(Run(f"{name}-first", curve, name, settings={"iterations_max": 1})
          for name, curve in FIRST.items()),
        Run("sequential-light", LIGHT, "sequential", settings={"loss_weight": 0.1}),
        Run("compression-small-additive", ADDITIVE, "compression",
            settings={**ORIGINAL, "codec": "small_a"}),
    ]  # fmt: skip


def _implicit_run(size: int, rate: int, binarizer: bool = True) -> Run:
    bits = RAW_BITS * size**2 / rate / (1 if binarizer else _FLOAT_BITS)
    settings: dict[str, Any] = {"code_bits": 4 * max(1, round(bits / 4))}
    if binarizer:
        return Run(f"implicit-{rate}", "implicit", "implicit", settings=settings)
    settings["binarizer"] = False
    return Run(f"implicit-floats-{rate}", "implicit, floats", "implicit", settings=settings)


def candidates(study: Study, lines: Sequence[str]) -> list[Run]:
    """Return runs that try settings: what a study is to be trained with is chosen by them.

    Args:
      study: on records that were held out for it, see data_tools.hold_out.
      lines: each "<name> <run>: <setting>=<value> ...", <run> one of the study without its seed.

    Raises `PlanError`.
    """
    runs = {run.name: run for run in planned(study)}
    found = []
    for line in lines:
        (name, base), values = _read_line(line, "--candidate", "<name> <run>")
        if f"{base}.seed0" not in runs:
            raise PlanError(f"--candidate={line!r}: no run is called {base!r}; --list shows them")
        run = runs[f"{base}.seed0"]
        settings = {**run.settings, **values}
        found.append(dataclasses.replace(run, name=f"{name}.seed0", curve=name, settings=settings))
    if len({run.name for run in found}) < len(found):
        raise PlanError("--candidate: two have the same name; give each its own")
    return found


def _with_seed(run: Run, seed: int) -> Run:
    after = run.after and f"{run.after}.seed{seed}"
    return dataclasses.replace(run, name=f"{run.name}.seed{seed}", seed=seed, after=after)


def selected(runs: Sequence[Run], only: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Return the runs of the names, models or patterns in `only`, and of the seeds; () is all.

    A run whose codec another one takes comes with it. Raises `PlanError` for what fits no run.
    """
    for wanted in only:
        if not any(_is_named(run, wanted) for run in runs):
            raise PlanError(
                f"--only={wanted} fits no run: give the name of a run, a model, or a pattern such "
                "as 'implicit-*'; --list shows the names"
            )
    if unknown := set(seeds) - set(SEEDS):
        raise PlanError(
            f"--seeds={','.join(map(str, sorted(unknown)))} is not in the study: it has "
            f"{', '.join(map(str, SEEDS))}"
        )
    chosen = [
        run
        for run in runs
        if (not only or any(_is_named(run, wanted) for wanted in only))
        and (not seeds or run.seed in seeds)
    ]
    needed = {run.after for run in chosen} | {run.name for run in chosen}
    if not chosen:
        raise PlanError(
            f"no run has both --only={','.join(only)} and --seeds={seeds}: ask for less"
        )
    return [run for run in runs if run.name in needed]


def _is_named(run: Run, wanted: str) -> bool:
    return wanted == run.model or fnmatch.fnmatchcase(run.name, wanted) or (
        run.name.rpartition(".")[0] == wanted
    )  # fmt: skip


# --- Settings -------------------------------------------------------------------------------------


def read_settings(lines: Sequence[str], profile: str) -> dict[str, dict[str, Any]]:
    """Return the settings of a profile by whom they are for.

    Args:
      lines: each "<profile> <whom>: <setting>=<value> ...", <whom> "all", a model or a run.
      profile: lines of other profiles are checked and left out.

    Raises `PlanError`.
    """
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        (of_profile, whom), values = _read_line(line, "--set", "<profile> <whom>")
        if of_profile == profile:
            found.setdefault(whom, {}).update(values)
    return found


def _read_line(line: str, flag: str, head: str) -> tuple[list[str], dict[str, Any]]:
    """Return the two words before the colon, and the settings behind it."""
    before, colon, behind = line.partition(":")
    if not colon or len(before.split()) != 2:
        raise PlanError(f"{flag}={line!r}: write '{head}: <setting>=<value> ...'")
    return before.split(), dict(_read_setting(word, flag) for word in behind.split())


def _read_setting(word: str, flag: str) -> tuple[str, Any]:
    name, _, text = word.partition("=")
    fields = {field.name: field for field in dataclasses.fields(Config)}
    if name not in fields or name in ("model", "profile", "data", "run_dir", "seed"):
        raise PlanError(f"{flag}: {name!r} is no setting of tfjoint.train that may be given here")
    default, kind = fields[name].default, fields[name].metadata["type"]
    try:
        if isinstance(default, tuple):
            return name, tuple(kind(item) for item in text.split(",") if item)
        return name, {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        raise PlanError(f"{flag}: {word!r} must be {kind.__name__}, as in {default!r}") from error


def given_settings(study: Study, run: Run) -> dict[str, Any]:
    """Return what `tfjoint.train` is given for a run. Raises `ConfigError`."""
    of_all = {n: v for n, v in study.settings.get("all", {}).items() if _has_effect(run.model, n)}
    given: dict[str, Any] = {
        "model": run.model,
        "profile": study.profile,
        "data": records_of(study, run.views),
        "run_dir": run_directory(study, run),
        "seed": run.seed,
        **of_all,
        **study.settings.get(run.model, {}),
        **run.settings,
        **study.settings.get(run.name.rpartition(".")[0], {}),
        **study.settings.get(run.name, {}),
    }
    if run.after:
        given["codec_run"] = str(Path(study.runs) / run.after)
    config = resolve(given)[0]
    if run.budget > 1:
        given["steps" if config.steps else "epochs"] = run.budget * (config.steps or config.epochs)
        given["halve_at_epochs"] = tuple(run.budget * epoch for epoch in config.halve_at_epochs)
    return given


def _has_effect(model: str, name: str) -> bool:
    return resolve({"model": model})[0].uses(name)


def run_config(study: Study, run: Run) -> Config:
    """Return the config that a run is trained with. Raises `ConfigError`."""
    return resolve(given_settings(study, run))[0]


def check(study: Study, runs: Sequence[Run]) -> None:
    """Raise `ConfigError` or `PlanError` unless all settings fit the runs."""
    known = {"all"} | {run.model for run in runs} | {run.name for run in runs}
    known |= {run.name.rpartition(".")[0] for run in runs}
    for whom in study.settings:
        if whom not in known:
            raise PlanError(f"--set: no run, model or 'all' is called {whom!r}; --list shows them")
    for run in runs:
        try:
            run_config(study, run)
        except ConfigError as error:
            raise PlanError(f"{run.name}: {error}") from error


def total_steps(config: Config, objects: int) -> int:
    """Return the minibatches of a run on so many training objects."""
    return config.steps or math.ceil(config.epochs * objects / config.batch_size)


# --- Places and commands --------------------------------------------------------------------------


def records_of(study: Study, views: str) -> str:
    """Return the directory of the records with such views."""
    if views == "raw":
        return study.data
    base = "data/demo" if study.data == "demo" else study.data
    if views == HALF:
        return f"{base}-{HALF}"
    return f"{base}-jpeg2000" + ("" if views == "asked" else f"-{views}")


def run_directory(study: Study, run: Run) -> str:
    """Return where a run is trained."""
    return str(Path(study.runs) / run.name)


def raw_records_command(study: Study) -> str:
    """Return the command that makes the raw records, where the project has one; otherwise ""."""
    return "make data" if study.data in ("data/open", "data/open-68") else ""


def records_command(study: Study, views: str) -> list[str]:
    """Return the arguments of the command that makes records other than the raw ones."""
    source = "tfjoint/demo" if study.data == "demo" else study.data
    if views == HALF:
        output = f"--output={records_of(study, views)}"
        return ["-m", "data_tools.hold_out", f"--records={source}", output, "--fraction=0.5"]
    rates = ",".join(map(str, sorted({*LOW_RATES, *JPEG2000_RATES})))
    return [
        *("-m", "data_tools.build_jpeg2000", f"--records={source}", f"--mode={views}"),
        *(f"--output={records_of(study, views)}", f"--rates={rates}"),
    ]


def train_command(study: Study, run: Run) -> list[str]:
    """Return the arguments of the command that trains and exports a run."""
    return ["-m", "tfjoint.train", *(_flag(*item) for item in given_settings(study, run).items())]


def evaluate_command(study: Study, run: Run) -> list[str]:
    """Return the arguments of the command that evaluates a run."""
    directory = run_directory(study, run)
    command = ["-m", "tfjoint.evaluate", f"--export={directory}/export"]
    if run.views == HALF:
        command.append(f"--data={study.data}")
    elif run.views != "raw":
        command.append(f"--originals={study.data}")
    if run.model != "compression":
        command.append("--view_counts")
    if run.seed == 0:
        command += [f"--examples={study.objects}", "--spread_examples"]
    return [*command, f"--output={directory}/results.json"]


def shown(command: Sequence[str]) -> str:
    """Return a command as one types it, with the Python of the project's environment."""
    return shlex.join([".venv/bin/python", *command])


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={','.join(map(_text, value)) if isinstance(value, tuple) else _text(value)}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
