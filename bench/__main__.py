"""Measure tfjoint on this machine, beside its peers, and write what was found.

    python -m bench --sections=train_step --pytorch_3d_r2n2=CHECKOUT

writes bench/results.json; sections that are not named stay in it as they were. `make bench` runs
all of them. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from bench import processor
from tfjoint import entry, files, provenance
from tfjoint.errors import UserError

SECTIONS = ("train_step", "compression", "serving_latency", "scaling", "data")

_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), f"Some of {', '.join(SECTIONS)}.")
_OUTPUT = flags.DEFINE_string("output", "bench/results.json", "File of the results.")
_README = flags.DEFINE_string("readme", "", "File whose table is replaced by the results'.")
_RESUME = flags.DEFINE_bool(
    "resume", False, "Leave out sections that the output has from this very code."
)
_DATA = flags.DEFINE_string(
    "data", "data/open", "Records of 137 pixels; those of 68 lie in <data>-68. From `make data`."
)
_PORT = flags.DEFINE_string(
    "pytorch_3d_r2n2", "", "Checkout of alex-golts/Pytorch-3D-R2N2; without, it is left out."
)
_CODEC = flags.DEFINE_string(
    "pytorch_image_comp_rnn", "", "Checkout of 1zb/pytorch-image-comp-rnn; without, it is left out."
)
_PEER = flags.DEFINE_bool("peer", True, "Measure the PyTorch peers; they need PyTorch.")
_PROFILE = flags.DEFINE_string("profile", "paper", "Widths of the networks.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Of every measurement.", lower_bound=1)


def main(_: Sequence[str]) -> None:
    """Measure the sections, one after another, and write each as soon as it is there."""
    unknown = sorted(set(_SECTIONS.value) - set(SECTIONS))
    if unknown:
        raise UserError(f"no section {unknown[0]!r}: --sections takes {', '.join(SECTIONS)}")
    port, codec = (_checkout(flag) for flag in (_PORT, _CODEC))
    if (_PEER.value or port or codec) and not importlib.util.find_spec("torch"):
        raise UserError(
            "PyTorch is not installed: install the extra `bench`, as `make bench` does, or leave "
            "the peers out with --nopeer"
        )
    output = Path(_OUTPUT.value)
    results = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    for section in _SECTIONS.value:
        if _RESUME.value and _is_of_this_code(results.get(section)):
            print(f"{output}: {section} is there")
            continue
        results[section] = {**_measures(port, codec)[section](), "provenance": _provenance()}
        files.write_json(output, results)
        print(f"{output}: {section}", flush=True)

    from bench import table

    print(table.text(results))
    if _README.value:
        table.replace(Path(_README.value), results)


def _measures(port: Path | None, codec: Path | None) -> dict[str, Callable[[], dict[str, Any]]]:
    # Imported here so that --help and a wrong flag answer at once.
    from bench import compression, data, latency, scaling, train_step

    repetitions, profile = _REPETITIONS.value, _PROFILE.value
    return {
        "train_step": lambda: train_step.measure(_PEER.value, port, repetitions, profile=profile),
        "compression": lambda: compression.measure(codec, repetitions, profile=profile),
        "serving_latency": lambda: latency.measure(repetitions, profile),
        "scaling": lambda: scaling.measure(repetitions, profile),
        "data": lambda: data.measure(Path(_DATA.value), repetitions),
    }


def _checkout(flag: flags.FlagHolder) -> Path | None:
    if not flag.value:
        return None
    path = Path(flag.value).resolve()
    if not (path / "network.py").is_file():
        raise UserError(f"--{flag.name}={flag.value} is no checkout: it has no network.py")
    return path


def _is_of_this_code(section: dict[str, Any] | None) -> bool:
    return section is not None and (
        section["provenance"]["code_revision"] == provenance.code_revision()
    )


def _provenance() -> dict[str, Any]:
    versions = provenance.versions()
    if importlib.util.find_spec("torch"):
        versions["torch"] = importlib.metadata.version("torch")
    return {
        "code_revision": provenance.code_revision(),
        "versions": versions,
        "machine": {**provenance.machine(), "processor": processor.describe()},
        "repetitions": _REPETITIONS.value,
    }


if __name__ == "__main__":
    entry.run(main)
