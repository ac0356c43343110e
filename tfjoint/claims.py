"""The paper's seven claims, held against the study's results by rules that came before them.

A claim is a list of statements "the mean over test objects of d is above 0", where d is a
difference of two systems on the same object, views and seeds, perhaps with a margin. Each is tested
both ways by flipping signs at random: the p-value is the part of 10,000 sign patterns, drawn with a
fixed seed, whose mean is at least the one found.

    holds            all statements have p < 0.05, so all of them are shown at once
    does not hold    the opposite of one is shown at p < 0.05 / number of statements
    undecided        neither, or a run is missing

Where a claim says "at almost every rate", at least three quarters of the rates have to do so; the
p-value is that of the partial conjunction, (n - k + 1) p_(k). "Near", "as good as" is at most 0.02
below in mIoU, and at most 10 % above in L_comp. Objects are what varies here: with one seed a test
tells two trained networks apart, not two systems, and the evidence says how many seeds there were.

The levels of mIoU that the paper names are of ShapeNet. They are translated to what a data set has
to say of itself: the mean shape, which needs no network, and the uncompressed network.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfjoint.points import Results, greedy_bins, mean_values, paired

HOLDS, DOES_NOT_HOLD, UNDECIDED = "holds", "does not hold", "undecided"
SIGNIFICANT = 0.05
NEAR = 0.02
"""In mIoU."""
AS_GOOD = 0.1
"""Of L_comp, relative."""
ALMOST = 0.75
KEPT = 0.75
"""What "mIoU > 0.5 at 384:1" means elsewhere: the paper's 0.5 is 78 % of its uncompressed 0.64."""
HALF = (0.35, 0.65)
"""What "about half the L_comp" means."""
BIN_STD = 0.04
RATES = (384.0, 192.0, 96.0, 48.0)
"""At which all learned systems of the paper have points."""
PATTERNS = 10_000

ASKED, PAYLOAD = "JPEG 2000, asked", "JPEG 2000, payload"
UNCOMPRESSED = ("reconstruction", None)


class Statement(NamedTuple):
    """The mean of `values`, one per test object, is above 0; or which run is missing."""

    text: str
    values: np.ndarray | None
    seeds: int = 1


class Tested(NamedTuple):
    """What a test says of a statement: the p-values of it and of its opposite."""

    mean: float
    p_for: float
    p_against: float


def sign_flip(values: np.ndarray) -> Tested:
    """Test whether the mean of [N] differences is above, or below, 0."""
    values = np.asarray(values, np.float64)
    signs = _signs(len(values))
    found, means = values.mean(), signs @ values / len(values)
    slack = 1e-12 * np.abs(values).max(initial=0)  # equal sums in another order
    above, below = np.sum(means >= found - slack), np.sum(means <= found + slack)
    return Tested(
        float(found), float(above + 1) / (PATTERNS + 1), float(below + 1) / (PATTERNS + 1)
    )


@functools.lru_cache(maxsize=4)
def _signs(count: int) -> np.ndarray:
    # Raw Philox output is the same in every version of NumPy.
    words = -(-count // 64)
    raw = np.random.Philox(key=np.array([0, 0], np.uint64)).random_raw(PATTERNS * words)
    bits = np.unpackbits(raw.astype("<u8").view(np.uint8).reshape(PATTERNS, -1), axis=1)
    return 2.0 * bits[:, :count] - 1


class Part(NamedTuple):
    """Statements of which at least a fraction has to hold."""

    statements: Sequence[Statement]
    fraction: float = 1.0


def verdict(parts: Sequence[Part]) -> tuple[str, float | None, list[str]]:
    """Return the verdict of a claim, its p-value and its evidence, a line per statement."""
    lines, p_for, p_against, missing = [], [], [], False
    for part in parts:
        tested = []
        for statement in part.statements:
            if statement.values is None:
                lines.append(f"{statement.text}: not measured")
                missing = True
                continue
            found = sign_flip(statement.values)
            tested.append(found)
            lines.append(
                f"{statement.text}: {found.mean:+.4f}, p = {_p(found.p_for)} "
                f"({len(statement.values)} objects, {_seeds(statement.seeds)})"
            )
        if not tested or len(tested) < len(part.statements):
            missing = True
            continue
        count, needed = len(tested), math.ceil(part.fraction * len(tested))
        p_for.append(partial_conjunction([t.p_for for t in tested], needed))
        p_against.append(partial_conjunction([t.p_against for t in tested], count - needed + 1))
    # Of several parts any may refute the claim: Bonferroni.
    against = min(1.0, min(p_against) * len(p_against)) if p_against else 1.0
    if against < SIGNIFICANT:
        return DOES_NOT_HOLD, round(against, 5), lines
    if missing or not p_for:
        return UNDECIDED, None, lines
    holds = max(p_for) < SIGNIFICANT
    return (HOLDS if holds else UNDECIDED), round(max(p_for), 5), lines


def partial_conjunction(p_values: Sequence[float], needed: int) -> float:
    """Return the p-value of "at least `needed` of these statements hold" (Benjamini and Heller)."""
    ordered = sorted(p_values)
    return min(1.0, (len(ordered) - needed + 1) * ordered[needed - 1])


def _p(value: float) -> str:
    return "< 0.0002" if value < 2 / PATTERNS else f"{value:.4f}"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean of {count} seeds"


# --- The claims -----------------------------------------------------------------------------------


def claims(results: Results, bench: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return {claim, verdict, evidence, p_value, files} of each of the seven claims.

    Args:
      results: of the study.
      bench: what bench/results.json holds, for the times of Table III; None where it is not there.
    """
    made: list[tuple[str, Callable[[], tuple]]] = [
        (
            "implicit is the best of all at almost every rate and stays near the uncompressed "
            "network from 12:1 to 384:1; still useful at 480:1",
            lambda: verdict(_claim_1(results)),
        ),
        (
            "sequential beats JPEG 2000 from about 128:1 on; sequential and direct keep most of "
            "the mIoU at 384:1 (the paper's > 0.5), where JPEG 2000 collapses",
            lambda: verdict(_claim_2(results)),
        ),
        (
            "the differences are significant inside bins of objects of equal difficulty",
            lambda: verdict(_claim_3(results)),
        ),
        (
            "a forward pass costs less than compression, then reconstruction: sequential -15 %, "
            "direct -26 %, implicit -75 %, the last as much as plain reconstruction",
            lambda: _claim_4(bench),
        ),
        (
            "as an image codec, sequential is as good as the small compression network alone; "
            "direct is somewhat worse",
            lambda: verdict(_claim_5(results)),
        ),
        (
            "the original compression network has about half the L_comp of the small one; a random "
            "T in training is as good as or better than a constant one, and cheaper",
            lambda: _claim_6(results),
        ),
        (
            "all systems converge towards the uncompressed network at 12:1 and 6:1",
            lambda: verdict(_claim_7(results)),
        ),
    ]
    files = [f"{name}.json" for name in results.runs]
    return [_entry(n, text, make(), files) for n, (text, make) in enumerate(made, start=1)]


def _entry(number: int, text: str, found: tuple, files: Sequence[str]) -> dict[str, Any]:
    outcome, p_value, evidence = found
    wanted = _FILES[number]
    return {
        "claim": f"{number}. {text}",
        "verdict": outcome,
        "evidence": evidence,
        "p_value": p_value,
        "files": [name for name in files if name.startswith(wanted)] if wanted else ["bench"],
    }


_SYSTEMS = ("reconstruction.", "implicit", "sequential", "direct", "separate", "jpeg2000")
_FILES: dict[int, tuple[str, ...]] = {
    **{1: _SYSTEMS, 2: _SYSTEMS, 3: _SYSTEMS, 4: (), 5: ("sequential.", "direct.", "compression")},
    **{6: ("compression-small", "compression-original"), 7: _SYSTEMS},
}


def _above(
    results: Results,
    first: tuple[str, float | None],
    second: tuple[str, float | None],
    margin: float = 0.0,
    factor: float = 1.0,
    name: str = "iou",
) -> Statement:
    """Return the statement "first + margin is above factor x second", of a figure per object."""
    text = f"{_called(first)} above {f'{factor:g} x ' if factor != 1 else ''}{_called(second)}"
    if margin:
        text = f"{text} less {margin:g}"
    both = paired(results, first, second, name)
    if both is None:
        return Statement(text, None)
    seeds = {p.seed for p in results.on(*first)} & {p.seed for p in results.on(*second)}
    return Statement(text, both[0] + margin - factor * both[1], len(seeds))


def _called(point: tuple[str, float | None]) -> str:
    curve, rate = point
    return curve if rate is None else f"{curve} at {rate:g}:1"


def _claim_1(results: Results) -> list[Part]:
    others = {rate: ["direct", "sequential", "separate", ASKED, PAYLOAD] for rate in RATES}
    best = [
        _least([_above(results, ("implicit", rate), (other, rate)) for other in systems], rate)
        for rate, systems in {480.0: [ASKED, PAYLOAD], **others}.items()
    ]
    near = [
        _above(results, ("implicit", rate), UNCOMPRESSED, margin=NEAR) for rate in RATES
    ] + [_above(results, ("implicit, floats", 12.0), UNCOMPRESSED, margin=NEAR)]  # fmt: skip
    return [Part(best, ALMOST), Part(near), Part([_useful(results)])]


def _least(statements: Sequence[Statement], rate: float) -> Statement:
    """Return the hardest of several statements: all of them hold if this one does."""
    text = f"implicit at {rate:g}:1 above the best other system"
    if any(statement.values is None for statement in statements):
        return Statement(text, None)
    # The one with the largest p-value; the intersection-union test needs no correction.
    hardest = max(statements, key=lambda s: sign_flip(s.values).p_for)  # type: ignore[arg-type]
    return hardest._replace(text=f"{text} ({hardest.text.partition(' above ')[2]})")


def _useful(results: Results) -> Statement:
    text = "implicit at 480:1 above half way from the mean shape to the uncompressed network"
    both, shape = paired(results, ("implicit", 480.0), UNCOMPRESSED), results.baseline("mean_shape")
    if both is None or shape is None:
        return Statement(text, None)
    return Statement(text, both[0] - (both[1] + shape["mean"]) / 2)


def _claim_2(results: Results) -> list[Part]:
    beats = [_above(results, ("sequential", rate), (ASKED, rate)) for rate in (128.0, 192.0, 384.0)]
    kept = [
        _above(results, (system, 384.0), UNCOMPRESSED, factor=KEPT)
        for system in ("sequential", "direct")
    ]
    return [Part(beats), Part(kept), Part([_collapsed(results)])]


def _collapsed(results: Results) -> Statement:
    text = f"the mean shape + {NEAR:g} above {ASKED} at 384:1"
    points, shape = results.on(ASKED, 384.0), results.baseline("mean_shape")
    if not points or shape is None:
        return Statement(text, None)
    return Statement(text, shape["mean"] + NEAR - mean_values(points, "iou"), len(points))


def middle_bin(results: Results) -> np.ndarray | None:
    """Return the positions of the objects in the middle bin of Fig. 9, objects in id order."""
    points = results.on(UNCOMPRESSED[0])
    if not points:
        return None
    bins = greedy_bins(mean_values(points, "iou"), BIN_STD)
    return bins[len(bins) // 2]


def _claim_3(results: Results) -> list[Part]:
    chosen = middle_bin(results)
    statements = []
    for first, second in itertools.product(("implicit",), ("sequential", "direct", ASKED)):
        statements.append(_above(results, (first, 384.0), (second, 384.0)))
    for first in ("sequential", "direct"):
        statements.append(_above(results, (first, 384.0), (ASKED, 384.0)))
    return [
        Part([
            s if s.values is None or chosen is None else s._replace(values=s.values[chosen])
            for s in statements
        ])
    ]  # fmt: skip


def _claim_4(bench: Mapping[str, Any] | None) -> tuple[str, None, list[str]]:
    table = pass_times(bench)
    wanted = ("compression original", "reconstruction", "sequential", "direct", "implicit")
    if missing := [name for name in wanted if name not in table]:
        return UNDECIDED, None, [f"no forward time of {', '.join(missing)} in bench/results.json"]
    whole = table["compression original"] + table["reconstruction"]
    limits = {"sequential": 0.85, "direct": 0.74, "implicit": 0.25}
    lines = [
        f"{name}: {table[name] / whole - 1:+.0%} of compression original + reconstruction, "
        f"the paper {limit - 1:+.0%}"
        for name, limit in limits.items()
    ]
    same = table["implicit"] / table["reconstruction"]
    lines.append(f"implicit costs {same:.2f} of reconstruction; one machine, no test")
    # Times differ from machine to machine; a twentieth is not a difference.
    good = all(table[name] / whole <= limit + 0.05 for name, limit in limits.items())
    return (HOLDS if good and same <= 1.1 else DOES_NOT_HOLD), None, lines


def pass_times(bench: Mapping[str, Any] | None, which: str = "forward") -> dict[str, float]:
    """Return the seconds of a pass by Table III's names, from the section that measured them.

    Args:
      bench: what bench/results.json holds.
      which: "forward" or "backward".
    """
    table = ((bench or {}).get("compression") or {}).get("table") or {}
    seconds = table.get("medians") or {}
    codecs = {"original": "compression original", "small": "compression small"}
    found = {}
    for action, forward in seconds.items():
        system, _, kind = action.partition(".")
        if kind == "forward":
            both = seconds[f"{system}.gradients"]
            found[codecs.get(system, system)] = forward if which == "forward" else both - forward
    return found


def _claim_5(results: Results) -> list[Part]:
    codec = "compression, small, random T"
    rates = [384.0 / t for t in range(1, 9)]
    as_good = [
        _above(results, (codec, r), ("sequential", r), factor=1 / (1 + AS_GOOD), name="l_comp")
        for r in rates
    ]
    worse = [_above(results, ("direct", r), ("sequential", r), name="l_comp") for r in rates]
    return [Part(as_good, ALMOST), Part(worse, ALMOST)]


def _claim_6(results: Results) -> tuple[str, float | None, list[str]]:
    small, original = (f"compression, {codec}, random T" for codec in ("small", "original"))
    rates = (192.0, 96.0, 64.0, 48.0)
    halves = []
    for rate in rates:
        both = paired(results, (small, rate), (original, rate), "l_comp")
        for where, sign, factor in (("below", 1, HALF[1]), ("above", -1, HALF[0])):
            values = None if both is None else sign * (factor * both[0] - both[1])
            said = f"L_comp of original at {rate:g}:1 {where} {factor:g} x that of small"
            halves.append(Statement(said, values))
    as_good = [
        _above(
            results,
            (f"compression, {codec}, constant T", rate),
            (f"compression, {codec}, random T", rate),
            factor=1 / (1 + AS_GOOD),
            name="l_comp",
        )
        for codec, first in (("small", 384.0), ("original", 192.0))
        for rate in (first / t for t in range(1, 9))
    ]
    outcome, p_value, lines = verdict([Part(halves, ALMOST), Part(as_good, ALMOST)])
    cheaper, times = _is_cheaper(results)
    if outcome == HOLDS and not cheaper:
        outcome = DOES_NOT_HOLD if cheaper is False else UNDECIDED
    return outcome, p_value, [*lines, *times]


def _is_cheaper(results: Results) -> tuple[bool | None, list[str]]:
    lines: list[str] = []
    all_cheaper = True
    for codec in ("small", "original"):
        runs = [results.runs.get(f"compression-{codec}-{kind}.seed0") for kind in
                ("random", "constant")]  # fmt: skip
        if None in runs:
            return None, [*lines, f"{codec}: training times not measured"]
        drawn, fixed = (run["study"]["train_seconds"] for run in runs if run)
        lines.append(f"{codec}: training with random T took {drawn / fixed:.2f} of constant T")
        all_cheaper &= drawn < fixed
    return all_cheaper, lines


def _claim_7(results: Results) -> list[Part]:
    near = [
        _above(results, (curve, float(rate)), UNCOMPRESSED, margin=NEAR)
        for curve in ("implicit, floats", "direct, floats", "sequential, floats",
                      "separate, floats", "JPEG 2000, asked, low")
        for rate in (12, 6)
    ]  # fmt: skip
    return [Part(near)]
