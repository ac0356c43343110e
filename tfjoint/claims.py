"""The paper's seven claims, held against the study's results by rules that came before them.

A claim has parts. A part is statements "the mean over test objects of d is above 0", where d is a
difference of two systems on the same object, views and seeds, perhaps with a margin or a factor.
Each is tested both ways by flipping signs at random: where n of 10,000 sign patterns, drawn with a
fixed seed, have at least the mean that was found, p is (n + 1) / 10,001.

    holds            every part is shown at p < 0.05, and so all of them at once
    does not hold    the opposite of a part is shown at p < 0.05 / number of parts
    undecided        neither; or the opposite of none, and a run is missing

A part is shown with the largest p of its statements, and its opposite with the smallest times
their number. "At almost every rate" asks for three quarters of the statements: p is that of the
partial conjunction, (n - k + 1) p_(k), for k of n statements and for n - k + 1 of their opposites.
"The best other" is the hardest to beat of several, and p of its opposite is times their number.
What is not measured shows nothing, for a statement or against it.

    near, as good as    at most 0.02 below in mIoU, at most 10 % above in L_comp
    keeps most          more than 0.75 of the uncompressed network's mIoU
    still useful        above half way from the mean shape to the uncompressed network
    collapses           at most 0.02 above the mean shape
    about half          0.35 to 0.65
    inside bins         the five differences at 384:1, in the middle bin of Fig. 9
    costs less          a forward pass takes at most the paper's share + 0.05; implicit at most
                        1.1 of plain reconstruction. Times of one machine, no test
    cheaper             the mean training step of the codec at T = 1 to 8 takes less than one at
                        T = 8; likewise

The levels of mIoU that the paper names are of ShapeNet. They are translated to what a data set has
to say of itself: the mean shape, which needs no network and whose mIoU counts as exact, and the
uncompressed network. With one or two seeds a test tells trained networks apart, not systems:
objects are what varies in it, and the evidence has the difference of each seed. Objects count as
independent, although a few of them resemble each other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfjoint.points import Pair, Results, greedy_bins, mean_values, paired

HOLDS, DOES_NOT_HOLD, UNDECIDED = "holds", "does not hold", "undecided"
SIGNIFICANT = 0.05
NEAR = 0.02
"""In mIoU."""
AS_GOOD = 0.1
"""Of L_comp, relative."""
ALMOST = 0.75
KEPT = 0.75
"""What "mIoU > 0.5 at 384:1" means elsewhere: the paper's 0.5 is 78 % of its uncompressed 0.64, and
"most" is rounded down."""
HALF = (0.35, 0.65)
"""What "about half the L_comp" means."""
BIN_STD = 0.04
RATES = (384.0, 192.0, 96.0, 48.0)
"""At which all learned systems of the paper have points."""
PATTERNS = 10_000

ASKED, PAYLOAD = "JPEG 2000, asked", "JPEG 2000, payload"
UNCOMPRESSED = ("reconstruction", None)
IN_BINS = (
    *(("implicit", other) for other in ("sequential", "direct", ASKED)),
    *((system, ASKED) for system in ("sequential", "direct")),
)
"""The differences at 384:1 that are to be significant inside a bin, the better system first."""


class Statement(NamedTuple):
    """The mean of `values` is above 0; or which run is missing."""

    text: str
    values: np.ndarray | None
    """[S, N], of every seed and test object."""
    seeds: Sequence[int] = (0,)
    rivals: int = 1
    """Of how many statements this is the hardest."""


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
    lines: list[str] = []
    p_for, p_against = [], []
    for part in parts:
        tested = [_test(statement) for statement in part.statements]
        lines += map(_line, part.statements, tested)
        count, needed = len(tested), math.ceil(part.fraction * len(tested))
        p_for.append(partial_conjunction([t.p_for for t in tested], needed))
        p_against.append(partial_conjunction([t.p_against for t in tested], count - needed + 1))
    # Of several parts any may refute the claim: Bonferroni.
    against = min(1.0, min(p_against) * len(parts))
    if against < SIGNIFICANT:
        return DOES_NOT_HOLD, round(against, 5), lines
    if any(statement.values is None for part in parts for statement in part.statements):
        return UNDECIDED, None, lines
    return (HOLDS if max(p_for) < SIGNIFICANT else UNDECIDED), round(max(p_for), 5), lines


def _test(statement: Statement) -> Tested:
    if statement.values is None:
        return Tested(math.nan, 1.0, 1.0)
    found = sign_flip(np.atleast_2d(statement.values).mean(axis=0))
    # For the hardest of several no correction is needed: all of them hold if it does.
    return found._replace(p_against=min(1.0, statement.rivals * found.p_against))


def _line(statement: Statement, found: Tested) -> str:
    if statement.values is None:
        return f"{statement.text}: not measured"
    values = np.atleast_2d(statement.values)
    of_seeds = f"seed {statement.seeds[0]}"
    if len(values) > 1:
        means = (f"{n}: {each.mean():+.4f}" for n, each in zip(statement.seeds, values))
        of_seeds = f"seeds {', '.join(means)}"
    return (
        f"{statement.text}: {found.mean:+.4f}, p = {_p(found.p_for)} "
        f"({values.shape[1]} objects, {of_seeds})"
    )


def partial_conjunction(p_values: Sequence[float], needed: int) -> float:
    """Return the p-value of "at least `needed` of these statements hold" (Benjamini and Heller)."""
    ordered = sorted(p_values)
    return min(1.0, (len(ordered) - needed + 1) * ordered[needed - 1])


def _p(value: float) -> str:
    return "< 0.0002" if value < 2 / PATTERNS else f"{value:.4f}"


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
            lambda: _claim_6(results, bench),
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
    return {
        "claim": f"{number}. {text}",
        "verdict": outcome,
        "evidence": evidence,
        "p_value": p_value,
        "files": [name for name in files if name.startswith(_FILES[number])]
        + _MEASURED.get(number, []),
    }


_FILES: dict[int, tuple[str, ...]] = {
    1: ("reconstruction.", "implicit-480.", "implicit-384.", "implicit-192.", "implicit-96.",
        "implicit-48.", "implicit-floats-12.", "direct.", "sequential.", "separate.",
        "jpeg2000-asked.", "jpeg2000-payload."),
    2: ("reconstruction.", "sequential.", "direct.", "jpeg2000-asked."),
    3: ("reconstruction.", "implicit-384.", "sequential.", "direct.", "jpeg2000-asked."),
    4: (),
    5: ("compression-small-random.", "sequential.", "direct."),
    6: ("compression-small-random.", "compression-small-constant.", "compression-original-"),
    7: ("reconstruction.", "implicit-floats-", "direct-floats.", "sequential-floats.",
        "separate-floats.", "jpeg2000-low."),
}  # fmt: skip
"""How the names of the runs that a claim rests on begin."""
_MEASURED = {number: ["bench/results.json"] for number in (4, 6)}


def _above(
    results: Results,
    first: tuple[str, float | None],
    second: tuple[str, float | None],
    margin: float = 0.0,
    factor: float = 1.0,
    objects: np.ndarray | None = None,
) -> Statement:
    """Return the statement "IoU of first is above factor x that of second - margin".

    Args:
      results: of the study.
      first: curve and rate.
      second: likewise.
      margin: added to the first.
      factor: of the second.
      objects: positions of those that count, in the order of their ids; None is all.
    """
    pair = paired(results, first, second, objects=objects)
    text = _compared(first, "above", factor, second, pair) + (f" less {margin:g}" if margin else "")
    if pair is None:
        return Statement(text, None)
    return Statement(text, pair.first + margin - factor * pair.second, pair.seeds)


def _l_comp(
    results: Results,
    first: tuple[str, float | None],
    relation: str,
    second: tuple[str, float | None],
    factor: float = 1.0,
) -> Statement:
    """Return the statement "L_comp of first is below (or above) factor x that of second"."""
    pair = paired(results, first, second, "l_comp")
    text = f"L_comp of {_compared(first, relation, factor, second, pair)}"
    if pair is None:
        return Statement(text, None)
    above = pair.first - factor * pair.second
    return Statement(text, above if relation == "above" else -above, pair.seeds)


def _compared(
    first: tuple[str, float | None],
    relation: str,
    factor: float,
    second: tuple[str, float | None],
    pair: Pair | None,
) -> str:
    names = _called(first, pair and pair.first), _called(second, pair and pair.second)
    return f"{names[0]} {relation} {'' if factor == 1 else f'{factor:g} x '}{names[1]}"


def _called(point: tuple[str, float | None], values: np.ndarray | None) -> str:
    curve, rate = point
    mean = "" if values is None else f" ({values.mean():.4f})"
    return f"{curve}{'' if rate is None else f' at {rate:.4g}:1'}{mean}"


def _hardest(text: str, statements: Sequence[Statement]) -> Statement:
    """Return the hardest of several statements, of which all have to hold."""
    if any(statement.values is None for statement in statements):
        return Statement(text, None)
    tested = [(_test(s), s) for s in statements]
    _, hardest = max(tested, key=lambda pair: (pair[0].p_for, -pair[0].mean))
    count = len(statements)
    return hardest._replace(text=f"{hardest.text}, the hardest of {count}", rivals=count)


def _claim_1(results: Results) -> list[Part]:
    others = {rate: ["direct", "sequential", "separate", ASKED, PAYLOAD] for rate in RATES}
    best = [
        _hardest(
            f"implicit at {rate:g}:1 above the best other system",
            [_above(results, ("implicit", rate), (other, rate)) for other in systems],
        )
        for rate, systems in {480.0: [ASKED, PAYLOAD], **others}.items()
    ]
    near = [
        _above(results, ("implicit", rate), UNCOMPRESSED, margin=NEAR) for rate in RATES
    ] + [_above(results, ("implicit, floats", 12.0), UNCOMPRESSED, margin=NEAR)]  # fmt: skip
    return [Part(best, ALMOST), Part(near), Part([_useful(results)])]


def _useful(results: Results) -> Statement:
    text = "implicit at 480:1 above half way from the mean shape to the uncompressed network"
    pair, shape = paired(results, ("implicit", 480.0), UNCOMPRESSED), results.baseline("mean_shape")
    if pair is None or shape is None:
        return Statement(text, None)
    return Statement(text, pair.first - (pair.second + shape["mean"]) / 2, pair.seeds)


def _claim_2(results: Results) -> list[Part]:
    beats = [_above(results, ("sequential", rate), (ASKED, rate)) for rate in (128.0, 192.0, 384.0)]
    kept = [
        _above(results, (system, 384.0), UNCOMPRESSED, factor=KEPT)
        for system in ("sequential", "direct")
    ]
    return [Part(beats), Part(kept), Part([_collapsed(results)])]


def _collapsed(results: Results) -> Statement:
    points, shape = results.on(ASKED, 384.0), results.baseline("mean_shape")
    if not points or shape is None:
        return Statement(f"the mean shape + {NEAR:g} above {ASKED} at 384:1", None)
    found = np.stack([point.values("iou") for point in points])
    return Statement(
        f"the mean shape ({shape['mean']:.4f}) + {NEAR:g} above {_called((ASKED, 384.0), found)}",
        shape["mean"] + NEAR - found,
        [point.seed for point in points],
    )


def difficulty_bins(results: Results) -> list[np.ndarray]:
    """Return the bins of Fig. 9: positions of objects in id order, the hardest objects first.

    Empty where the uncompressed network has no results, whose IoU says how hard an object is.
    """
    points = results.on(UNCOMPRESSED[0])
    return greedy_bins(mean_values(points, "iou"), BIN_STD) if points else []


def middle_bin(results: Results) -> np.ndarray | None:
    """Return the bin that Fig. 9 shows; None where there are no bins."""
    bins = difficulty_bins(results)
    return bins[len(bins) // 2] if bins else None


def _claim_3(results: Results) -> list[Part]:
    chosen = middle_bin(results)
    return [
        Part([
            _above(results, (first, 384.0), (second, 384.0), objects=chosen)
            for first, second in IN_BINS
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
    if "compression small" in table:
        small = table["compression small"] + table["reconstruction"]
        shares = (f"{name} {table[name] / small - 1:+.0%}" for name in limits)
        lines.append(f"of compression small + reconstruction: {', '.join(shares)}; no rule")
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
        _l_comp(results, ("sequential", rate), "below", (codec, rate), 1 + AS_GOOD)
        for rate in rates
    ]
    worse = [_l_comp(results, ("direct", r), "above", ("sequential", r)) for r in rates]
    return [Part(as_good, ALMOST), Part(worse, ALMOST)]


def _claim_6(
    results: Results, bench: Mapping[str, Any] | None
) -> tuple[str, float | None, list[str]]:
    small, original = (f"compression, {codec}, random T" for codec in ("small", "original"))
    least, most = HALF
    halves = [
        _hardest(
            f"L_comp of {original} at {rate:g}:1 between {least:g} and {most:g} x {small}",
            [
                _l_comp(results, (original, rate), "below", (small, rate), most),
                _l_comp(results, (original, rate), "above", (small, rate), least),
            ],
        )
        for rate in (192.0, 96.0, 64.0, 48.0)
    ]
    as_good = [
        _l_comp(
            results,
            (f"compression, {codec}, random T", rate),
            "below",
            (f"compression, {codec}, constant T", rate),
            1 + AS_GOOD,
        )
        for codec, first in (("small", 384.0), ("original", 192.0))
        for rate in (first / t for t in range(1, 9))
    ]
    outcome, p_value, lines = verdict([Part(halves, ALMOST), Part(as_good, ALMOST)])
    share = _share_of_random_iterations(bench)
    if share is None:
        lines.append("no times of T = 1 to 8 in bench/results.json")
        return (outcome if outcome == DOES_NOT_HOLD else UNDECIDED), p_value, lines
    lines.append(f"a training step with random T takes {share:.2f} of one with T = 8; no test")
    if share >= 1:
        return DOES_NOT_HOLD, None, lines
    return outcome, p_value, lines


def _share_of_random_iterations(bench: Mapping[str, Any] | None) -> float | None:
    """Return the time of a training step of the codec at T drawn from 1 to 8, over that at 8.

    Measured on an idle machine; the trainings of the study share theirs.
    """
    sweeps = ((bench or {}).get("scaling") or {}).get("sweeps") or {}
    seconds = {int(t): value for t, value in sweeps.get("T", {}).get("medians", {}).items()}
    if not {1, 8} <= seconds.keys():
        return None
    measured = sorted(seconds)
    drawn = np.interp(range(1, 9), measured, [seconds[t] for t in measured])
    return float(drawn.mean() / drawn[-1])


def _claim_7(results: Results) -> list[Part]:
    near = [
        _above(results, (curve, float(rate)), UNCOMPRESSED, margin=NEAR)
        for curve in ("implicit, floats", "direct, floats", "sequential, floats",
                      "separate, floats", "JPEG 2000, asked, low")
        for rate in (12, 6)
    ]  # fmt: skip
    return [Part(near)]
