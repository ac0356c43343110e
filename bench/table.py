"""The table of the README, from bench/results.json alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tfjoint import files
from tfjoint.errors import UserError

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"

Row = tuple[str, str]
Section = Mapping[str, Any]


def text(results: Mapping[str, Any]) -> str:
    """Return what was measured as lines "what  value" for a block of plain text."""
    rows = [
        row for name, make in _SECTIONS.items() if name in results for row in make(results[name])
    ]
    if not rows:
        return "nothing measured yet"
    width = max(len(what) for what, value in rows if value)
    lines = [f"{what:<{width}}  {value}".rstrip() for what, value in rows]
    return "\n".join([_header(results), *lines])


def replace(readme: Path, results: Mapping[str, Any]) -> None:
    """Put the results' table between the two marks of a file.

    Raises `UserError` where it does not have them.
    """
    before = readme.read_text(encoding="utf-8")
    block = f"{BEGIN}\n\n```text\n{text(results)}\n```\n\n{END}"
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(before)) != 1:
        raise UserError(f"{readme} has no place for the table: put {BEGIN} and {END} into it")
    with files.replacing(readme) as temporary:
        temporary.write_text(pattern.sub(lambda _: block, before), encoding="utf-8")


def _header(results: Mapping[str, Any]) -> str:
    made = [results[name]["provenance"] for name in _SECTIONS if name in results]
    machines = {f"{m['cores']} cores of {m['processor']}" for p in made if (m := p["machine"])}
    names = ("tensorflow", "torch", "numpy")
    versions = sorted(
        {f"{n} {p['versions'][n]}" for p in made for n in names if n in p["versions"]}
    )
    return f"{'; '.join(sorted(machines))}; {', '.join(versions)}"


def _train_step(found: Section) -> Iterator[Row]:
    yield f"-- training step, {found['profile']}, B = {found['objects']}, V = {found['views']}", ""
    for precision, peak in found["peak"].items():
        yield f"best product, {precision}", f"{peak['gflops']:.0f} GFLOP/s ({peak['by']})"
    for model in ("reconstruction", "implicit"):
        for precision in ("float32", "bfloat16"):
            one = found[model] if precision == "float32" else found[model].get(precision)
            if one:
                yield from _train_step_of(f"{model}, {precision}", one)
    if "bfloat16" not in found["peak"]:
        yield "bfloat16", "not measured: the processor has no instructions for it"


def _train_step_of(name: str, one: Section) -> Iterator[Row]:
    fraction = one["fraction_of_matmul_peak"]
    done = f"{one['executed_gflop']:.0f} GFLOP, {fraction:.2f} of the best product"
    yield name, f"{one['medians']['step']:.3f} s; {done}"
    kinds = {
        "port": "(a) public port",
        "peer": "(b) PyTorch",
        "folded_peer": "(c) PyTorch, same folded decoder",
    }
    for kind, label in kinds.items():
        if f"speedup_vs_best_{kind}" in one:
            best, speedup = one[f"best_{kind}"], one[f"speedup_vs_best_{kind}"]
            way = best.partition(".")[2].replace("_", ", ")
            way = f" ({way})" if way else ""
            yield f"  {label}{way}", f"{one['medians'][best]:.3f} s; {speedup:.2f} x"


def _compression(found: Section) -> Iterator[Row]:
    table = found["table"]
    shape = f"T = {table['iterations']}, V = {table['views']}, B = {table['objects']}"
    yield f"-- cost relative to compression (original), then reconstruction; {shape}", ""
    for system in ("sequential", "direct", "implicit", "small", "original", "reconstruction"):
        passes = [f"{p[system]:.2f}" for p in table["relative"].values()]
        paper = table["paper_forward"].get(system)
        said = f" (paper {paper:.2f})" if paper else ""
        yield f"{system}", f"forward {passes[0]}{said}, with backward {passes[1]}"
    if "codec" in found:
        codec = found["codec"]
        seconds = codec["seconds_per_iteration"]
        shown = f"{seconds['ours']:.3f} s; public PyTorch {seconds['peer']:.3f} s"
        yield (
            f"original codec, one iteration of {codec['rows']} images",
            f"{shown}; {codec['speedup']:.2f} x",
        )


def _serving(found: Section) -> Iterator[Row]:
    yield "-- what a user waits for", ""
    for model in ("direct", "implicit"):
        for name, milliseconds in found[model]["milliseconds"].items():
            signature, batch = name.split(".")
            what = {"encode": "one view to bits", "reconstruct": "codes of 5 views to a grid"}
            yield f"{model}, {what[signature]}, batch {batch}", f"{milliseconds:.1f} ms"
    coded = found["jpeg2000"]["milliseconds"]
    yield "JPEG 2000, one view", f"encode {coded['encode']:.1f} ms, decode {coded['decode']:.1f} ms"
    for name, seconds in found["processes"]["medians"].items():
        yield name, f"{seconds:.2f} s"


def _scaling(found: Section) -> Iterator[Row]:
    yield "-- cost of forward and backward by size, as size to the power of", ""
    for name, one in found["sweeps"].items():
        memory = one["peak_megabytes"]
        values = one["values"]
        first, last = (memory[str(values[i])] / 1e3 for i in (0, -1))
        yield (
            f"{name}, {values[0]} to {values[-1]}",
            f"{one['exponent']:.2f}; {first:.1f} to {last:.1f} GB",
        )
    weak = found["weak"]
    yield "two workers, a core each, beside one", f"{weak['efficiency']:.2f} of twice its speed"
    gpus = found["paper"]["gpus"]
    for name in found["paper"]:
        one = found["paper"][name]
        if isinstance(one, Mapping) and "bytes_all_reduced" in one:
            efficiency = one.get("efficiency_at_the_assumed_gpu")
            expected = f", expected efficiency {efficiency:.2f}" if efficiency else ""
            yield (
                f"{name}, {gpus} GPUs, on paper",
                f"{one['bytes_all_reduced'] / 1e6:.0f} MB per step and GPU{expected}",
            )


def _data(found: Section) -> Iterator[Row]:
    yield "-- records", ""
    reading = found["reading"]
    rates = f"{reading['objects_per_second']:.0f} objects/s"
    yield "minibatches read", f"{rates}; {reading['ratio']:.0f} x what training takes"
    yield "records written", f"{found['writing']['objects_per_second']:.0f} objects/s"
    verified = found["verify"]["megabytes_per_second_and_core"]
    yield "records verified", f"{verified:.0f} MB/s and core"
    fraction = found["jpeg2000"]["fraction_of_bare_times_cores"]
    yield "JPEG 2000 builder", f"{fraction:.2f} of the bare loop times the cores"


_SECTIONS: dict[str, Callable[[Section], Iterator[Row]]] = {
    "train_step": _train_step,
    "compression": _compression,
    "serving_latency": _serving,
    "scaling": _scaling,
    "data": _data,
}
