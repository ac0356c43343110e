"""The seven claims on results whose truth is known, and the tests behind them."""

from __future__ import annotations

import itertools
import json

import made_up
import numpy as np
import pytest

from tfjoint import claims, points
from tfjoint.claims import DOES_NOT_HOLD, HOLDS, UNDECIDED

UNCOMPRESSED = 0.5


def as_the_paper(curve: str, rate: float | None) -> float:
    """mIoU of a world in which all of the paper's claims about it are true."""
    if curve.startswith("reconstruction"):
        return UNCOMPRESSED
    if rate is not None and rate < 20:
        return UNCOMPRESSED - 0.002
    if curve == "implicit":
        return UNCOMPRESSED - 0.005 if (rate or 0) < 500 else 0.4
    if curve.startswith("JPEG"):
        return {48: 0.45, 96: 0.43, 128: 0.35, 192: 0.28, 256: 0.25}.get(int(rate or 0), 0.18)
    return 0.45 if curve == "direct" else 0.46


def codecs_as_the_paper(curve: str, rate: float | None) -> float:
    base = 0.1 * np.sqrt((rate or 384) / 384)
    if "original" in curve:
        return 0.5 * base
    return 1.3 * base if curve == "direct" else base


BENCH = {
    "compression": {"table": {"medians": {
        f"{name}.{action}": share * seconds
        for name, seconds in {"original": 0.8, "small": 0.6, "reconstruction": 0.2,
                              "sequential": 0.85, "direct": 0.7, "implicit": 0.2}.items()
        for action, share in {"forward": 1, "gradients": 3}.items()
    }}},
    "scaling": {"sweeps": {"T": {"medians": {"1": 1.0, "2": 2.0, "4": 4.0, "8": 8.0}}}},
}  # fmt: skip


@pytest.fixture(scope="module")
def true(tmp_path_factory):
    directory = tmp_path_factory.mktemp("true") / "results" / "study"
    made_up.make(directory, as_the_paper, codecs_as_the_paper)
    return points.read_results(directory)


# --- Tests ----------------------------------------------------------------------------------------


def test_the_sign_flip_test_counts_what_all_sign_patterns_give():
    values = np.array([0.3, 0.1, -0.2, 0.4, 0.05, 0.2, -0.1, 0.15])
    means = [np.mean(values * signs) for signs in itertools.product((-1, 1), repeat=8)]
    found = claims.sign_flip(values)
    assert found.mean == pytest.approx(values.mean())
    above = np.mean([mean >= values.mean() - 1e-12 for mean in means])
    below = np.mean([mean <= values.mean() + 1e-12 for mean in means])
    assert found.p_for == pytest.approx(above, abs=0.015)
    assert found.p_against == pytest.approx(below, abs=0.015)


def test_the_sign_flip_test_is_repeatable_and_symmetric():
    values = np.random.default_rng(0).normal(0.1, 1, 150)
    first, again, opposite = (claims.sign_flip(v) for v in (values, values.copy(), -values))
    assert first == again
    assert first.p_for == pytest.approx(opposite.p_against, abs=0.02)


def test_under_no_difference_few_p_values_are_small():
    rng = np.random.default_rng(1)
    p_values = np.array([claims.sign_flip(rng.normal(0, 1, 40)).p_for for _ in range(200)])
    assert 0.01 < np.mean(p_values < 0.05) < 0.10
    assert 0.4 < np.median(p_values) < 0.6


def test_differences_of_exactly_zero_show_nothing():
    found = claims.sign_flip(np.zeros(30))
    assert found.p_for == found.p_against == 1


def test_partial_conjunction_is_the_largest_for_all_and_bonferroni_for_one():
    p_values = [0.03, 0.001, 0.2, 0.01]
    assert claims.partial_conjunction(p_values, 4) == 0.2
    assert claims.partial_conjunction(p_values, 3) == pytest.approx(2 * 0.03)
    assert claims.partial_conjunction(p_values, 1) == pytest.approx(4 * 0.001)


@pytest.mark.parametrize(
    ("shift", "expected"), [(0.1, HOLDS), (-0.1, DOES_NOT_HOLD), (0.0, UNDECIDED)]
)
def test_a_verdict_follows_the_sign_of_what_is_shown(shift, expected):
    noise = np.random.default_rng(2).normal(0, 0.1, 100)
    part = claims.Part([claims.Statement("d", noise - noise.mean() + shift)])
    outcome, p_value, (line,) = claims.verdict([part])
    assert outcome == expected
    assert (p_value < 0.05) == (expected != UNDECIDED)
    assert "100 objects, seed 0)" in line


def test_one_opposite_part_is_enough_to_refute_and_one_missing_to_leave_open():
    noise = np.random.default_rng(3).normal(0, 0.1, 100)
    good, bad = (claims.Part([claims.Statement("d", noise + s)]) for s in (0.2, -0.2))
    missing = claims.Part([claims.Statement("d", None)])
    assert claims.verdict([good, good])[0] == HOLDS
    assert claims.verdict([good, bad])[0] == DOES_NOT_HOLD
    assert claims.verdict([good, missing])[:2] == (UNDECIDED, None)
    assert claims.verdict([bad, missing])[0] == DOES_NOT_HOLD


def test_what_is_not_measured_counts_for_neither_side():
    noise = np.random.default_rng(3).normal(0, 0.1, 100)
    good, bad = (claims.Statement("d", noise + s) for s in (0.2, -0.2))
    missing = claims.Statement("d", None)
    # Three quarters cannot hold any more, whatever the missing one says; or still can.
    assert claims.verdict([claims.Part([bad, bad, good, missing], 0.75)])[0] == DOES_NOT_HOLD
    assert claims.verdict([claims.Part([bad, good, good, missing], 0.75)])[0] == UNDECIDED
    assert claims.verdict([claims.Part([good, good, good, missing], 0.75)])[0] == UNDECIDED


def test_the_opposite_of_the_hardest_of_several_counts_as_often():
    rng = np.random.default_rng(8)
    values = rng.normal(0, 0.1, 100)
    values += -0.2 * 0.1 - values.mean()  # its opposite has a p-value of about .02
    one = claims.Statement("d", values)
    p_one = claims.verdict([claims.Part([one])])[1]
    assert claims.verdict([claims.Part([one])])[0] == DOES_NOT_HOLD
    several = claims.verdict([claims.Part([one._replace(rivals=4)])])
    assert several[0] == UNDECIDED and 4 * p_one > 0.05


def test_seeds_are_averaged_object_by_object_and_each_is_told():
    noise = np.random.default_rng(9).normal(0, 0.1, 100)
    both = claims.Statement("d", np.stack([noise + 0.1, -noise + 0.3]), (0, 1))
    mean = claims.Statement("d", np.full(100, 0.2))
    (_, p_both, (line,)), (_, p_mean, _) = (
        claims.verdict([claims.Part([s])]) for s in (both, mean)
    )
    assert p_both == p_mean
    assert f"seeds 0: {noise.mean() + 0.1:+.4f}, 1: {0.3 - noise.mean():+.4f})" in line


def test_almost_every_rate_may_miss_a_quarter():
    noise = np.random.default_rng(4).normal(0, 0.1, 100)
    statements = [claims.Statement("d", noise + s) for s in (0.2, 0.2, 0.2, -0.2)]
    assert claims.verdict([claims.Part(statements, 0.75)])[0] == HOLDS
    assert claims.verdict([claims.Part(statements)])[0] == DOES_NOT_HOLD
    statements[0] = claims.Statement("d", noise - 0.2)
    assert claims.verdict([claims.Part(statements, 0.75)])[0] == DOES_NOT_HOLD


def test_bins_are_cut_when_the_next_object_would_spread_them_too_far():
    values = np.array([0.5, 0.1, 0.12, 0.52, 0.9, 0.11])
    bins = [sorted(values[chosen]) for chosen in points.greedy_bins(values, 0.04)]
    assert bins == [[0.1, 0.11, 0.12], [0.5, 0.52], [0.9]]
    rng = np.random.default_rng(5)
    values = rng.random(300)
    bins = points.greedy_bins(values, 0.04)
    assert sorted(np.concatenate(bins)) == list(range(300))
    for chosen, following in zip(bins, bins[1:]):
        assert np.std(values[chosen]) <= 0.04 < np.std([*values[chosen], values[following[0]]])


# --- The claims -----------------------------------------------------------------------------------


def test_where_everything_is_as_in_the_paper_all_claims_hold(true):
    found = claims.claims(true, BENCH)
    assert [claim["verdict"] for claim in found] == [HOLDS] * 7
    assert [claim["claim"][:2] for claim in found] == [f"{n}." for n in range(1, 8)]
    for claim in found:
        assert set(claim) == {"claim", "verdict", "evidence", "p_value", "files"}
        assert claim["evidence"] and claim["files"]
        assert claim["p_value"] is None or claim["p_value"] < 0.05
    json.dumps(found, allow_nan=False)


def _worse_implicit(curve, rate):
    return 0.4 if curve == "implicit" else as_the_paper(curve, rate)


def _better_jpeg(curve, rate):
    return 0.48 if curve.startswith("JPEG") else as_the_paper(curve, rate)


def _far_floats(curve, rate):
    return 0.4 if curve == "direct, floats" else as_the_paper(curve, rate)


@pytest.mark.parametrize(
    ("miou", "refuted"),
    [(_worse_implicit, {1, 3}), (_better_jpeg, {2, 3}), (_far_floats, {7})],
)
def test_what_is_not_so_is_refuted(tmp_path, miou, refuted):
    directory = made_up.make(tmp_path / "study", miou, codecs_as_the_paper, noise=0.01)
    found = claims.claims(points.read_results(directory), BENCH)
    outcomes = {n for n, claim in enumerate(found, 1) if claim["verdict"] == DOES_NOT_HOLD}
    assert outcomes == refuted


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda curve, rate: 0.1 if "compression" in curve else 0.15, 5),
        (lambda curve, rate: 0.1, 6),
    ],
)
def test_codecs_that_differ_from_the_paper_refute_its_claims(tmp_path, change, number):
    directory = made_up.make(tmp_path / "study", as_the_paper, change)
    found = claims.claims(points.read_results(directory), BENCH)
    assert found[number - 1]["verdict"] == DOES_NOT_HOLD


def test_whether_a_random_number_of_iterations_is_cheaper_is_measured(true):
    found = claims.claims(true, BENCH)[5]
    assert any("random T takes 0.56 of" in line for line in found["evidence"])  # 4.5 of 8
    assert "bench/results.json" in found["files"]
    dear = json.loads(json.dumps(BENCH))
    dear["scaling"]["sweeps"]["T"]["medians"] = {"1": 9.0, "8": 8.0}
    found = claims.claims(true, dear)[5]
    assert (found["verdict"], found["p_value"]) == (DOES_NOT_HOLD, None)
    del dear["scaling"]
    assert claims.claims(true, dear)[5]["verdict"] == UNDECIDED


def test_what_is_not_measured_yet_is_undecided(tmp_path):
    directory = made_up.make(
        tmp_path / "study", as_the_paper, only=lambda run: run.model == "reconstruction"
    )
    found = claims.claims(points.read_results(directory))
    assert {claim["verdict"] for claim in found} == {UNDECIDED}
    assert all(claim["p_value"] is None for claim in found)
    assert "not measured" in " ".join(found[0]["evidence"])


def test_times_that_are_longer_than_the_papers_refute_claim_4(true):
    slow = json.loads(json.dumps(BENCH))
    slow["compression"]["table"]["medians"]["implicit.forward"] = 0.5
    assert claims.claims(true, slow)[3]["verdict"] == DOES_NOT_HOLD
    assert claims.claims(true, None)[3]["verdict"] == UNDECIDED


def test_a_backward_pass_is_what_a_training_pass_takes_longer():
    assert claims.pass_times(BENCH)["compression small"] == 0.6
    assert claims.pass_times(BENCH, "backward")["compression small"] == pytest.approx(1.2)


def test_seeds_are_averaged_object_by_object_before_systems_are_compared(true):
    both = points.paired(true, ("implicit", 384.0), ("direct", 384.0))
    assert both is not None
    assert both.seeds == (0, 1)
    for curve, values in (("implicit", both.first), ("direct", both.second)):
        points_ = true.on(curve, 384.0)
        np.testing.assert_array_equal(values, [point.values("iou") for point in points_])
    one = points.paired(true, ("implicit", 48.0), ("direct", 48.0))  # implicit has one seed there
    assert one is not None
    assert one.seeds == (0,)
    np.testing.assert_array_equal(one.second[0], true.on("direct", 48.0, seed=0)[0].values("iou"))


def test_results_on_other_objects_are_refused(tmp_path):
    directory = made_up.make(
        tmp_path / "study", as_the_paper, only=lambda run: run.name.startswith("direct.")
    )
    path = directory / "direct.seed1.json"
    results = json.loads(path.read_text())
    results["rows"][0]["objects"][0]["views"] = [5, 6, 7, 8, 9]
    path.write_text(json.dumps(results))
    with pytest.raises(points.ResultsError, match="different objects or views"):
        points.read_results(directory)


def test_files_that_are_no_results_are_refused(tmp_path):
    with pytest.raises(points.ResultsError, match="is no plan of a study"):
        points.read_results(tmp_path / "study")
    directory = made_up.make(tmp_path / "study", as_the_paper, only=lambda run: False)
    (directory / "direct.seed0.json").parent.mkdir(exist_ok=True)
    (directory / "direct.seed0.json").write_text("{}")
    with pytest.raises(points.ResultsError, match="is not a results file"):
        points.read_results(directory)
