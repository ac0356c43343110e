"""The benchmarks: what they count and compare, and that every section runs; no time is tested."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import runs
import tensorflow as tf
from bench import compression, flops, latency, processor, scaling, table, timing, train_step, worker

from tfjoint.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "bench" / "results.json"
TORCH = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is not installed: `make bench` has it",
)
PROVENANCE = {
    "code_revision": "0",
    "machine": {"cores": 2, "processor": "a processor"},
    "versions": {"tensorflow": "2.17.1", "numpy": "1.26.4"},
}


# --- Counting and timing --------------------------------------------------------------------------


def count(function, *shapes: tuple[int, ...], trips: int = 1) -> float:
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    graph = tf.function(function).get_concrete_function(*specs).graph
    return flops.of_graph(graph, trips)


def test_a_matrix_product_counts_two_for_every_pair_it_multiplies():
    assert count(tf.matmul, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    transposed = count(lambda a, b: tf.matmul(a, b, transpose_a=True), (5, 3), (5, 7))
    assert transposed == 2 * 3 * 5 * 7
    assert count(lambda a, b: tf.einsum("abc,cd->abd", a, b), (2, 3, 5), (5, 7)) == 2 * 6 * 5 * 7


@pytest.mark.parametrize("sides", [(6, 6), (4, 4, 4)])
def test_gradients_of_a_convolution_count_as_much_as_itself(sides):
    convolve = {2: tf.nn.conv2d, 3: tf.nn.conv3d}[len(sides)]
    images, kernel = (2, *sides, 3), (*[3] * len(sides), 3, 5)
    once = 2 * 2 * np.prod(sides) * 3 ** len(sides) * 3 * 5

    def forward(x, k):
        return convolve(x, k, [1] * (len(sides) + 2), "SAME")

    def backward(x, k):
        return tf.gradients(forward(x, k), [x, k])

    assert count(forward, images, kernel) == once
    assert count(backward, images, kernel) in (2 * once, 3 * once)  # pruned or not


def test_a_transposed_convolution_counts_the_positions_of_its_input():
    def double(x, k):
        return tf.nn.conv3d_transpose(x, k, (2, 8, 8, 8, 5), 2, "SAME")

    assert count(double, (2, 4, 4, 4, 3), (4, 4, 4, 5, 3)) == 2 * 2 * 4**3 * 4**3 * 3 * 5


def test_a_loop_counts_as_often_as_it_runs():
    def loop(a, b):
        return tf.while_loop(lambda i, x: i < 4, lambda i, x: (i + 1, x @ b), (0, a))

    assert count(loop, (3, 5), (5, 5), trips=4) == 4 * 2 * 3 * 5 * 5


def test_an_unknown_shape_is_not_counted_as_nothing():
    with pytest.raises(flops.UncountedError, match="has the shape"):
        count(tf.matmul, (None, 5), (5, 7))


def test_actions_take_turns():
    order: list[str] = []
    seconds = timing.alternate({n: lambda n=n: order.append(n) for n in "ab"}, 2, warmups=1)
    assert "".join(order) == "ababab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_an_action_that_tries_patience_is_called_no_more():
    seconds = timing.alternate({"slow": lambda: time.sleep(0.02), "quick": int}, 3, patience=0.01)
    assert {name: len(values) for name, values in seconds.items()} == {"slow": 1, "quick": 3}


def test_fits_find_the_power_and_the_line_that_made_the_costs():
    sizes = [1, 2, 4, 8]
    assert timing.exponent(sizes, [3 * s**1.5 for s in sizes]) == pytest.approx(1.5)
    assert timing.line(sizes, [3 * s + 2 for s in sizes]) == pytest.approx((3, 2))


# --- Processes ------------------------------------------------------------------------------------

SMOKE = {"settings": {"model": "reconstruction", "profile": "smoke"}, "objects": 2, "views": 2}


def test_a_worker_answers_and_says_what_went_wrong():
    with worker.Worker("bench.ours:subject", SMOKE) as ask:
        assert ask("gradients") == pytest.approx(ask("step"))  # the same loss, before any step
        assert ask("step") < ask("gradients") + 1
        assert ask("peak_megabytes") > 100
        with pytest.raises(RuntimeError, match="KeyError: 'sing'"):
            ask("sing")
        assert ask("parameters") > 0  # it is still there
    with pytest.raises(RuntimeError, match="profile must be one of"):
        worker.Worker("bench.ours:subject", {**SMOKE, "settings": {"profile": "vast"}})


@TORCH
@pytest.mark.parametrize("implicit", [False, True])
def test_the_peer_is_the_same_network(implicit, tmp_path):
    model = "implicit" if implicit else "reconstruction"
    ours = {**SMOKE, "settings": {"model": model, "profile": "smoke"}}
    peer = {"weights": str(tmp_path / "weights.npz"), "objects": 2, "views": 2}
    peer |= {"side": 32, "voxel_size": 32, "implicit": implicit}
    with worker.Worker("bench.ours:subject", ours) as ask:
        ask("save", peer["weights"])
        with worker.Worker("bench.peers.reconstruction:subject", peer) as other:
            train_step._require_equal(ask, other, tmp_path)
            changed = dict(np.load(peer["weights"]))
        changed["hidden.kernel"] = changed["hidden.kernel"][::-1]
        np.savez(peer["weights"], **changed)
        with worker.Worker("bench.peers.reconstruction:subject", peer) as other:
            with pytest.raises(UserError, match="another network"):
                train_step._require_equal(ask, other, tmp_path)


# --- Sections -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> dict:
    """The sections but `data`, as small as they get and without PyTorch."""
    sweeps = {
        "V": scaling.SWEEPS["V"]._replace(values=(1, 2)),
        "side": scaling.SWEEPS["side"]._replace(values=(32, 64)),
    }
    small = {"objects": 1, "views": 2, "profile": "smoke"}
    sections = {
        "train_step": train_step.measure(False, None, 1, sides=(32, 64), **small),
        "compression": compression.measure(None, 1, iterations=2, **small),
        "serving_latency": latency.measure(1, "smoke", (1, 2)),
        "scaling": scaling.measure(1, "smoke", sweeps, steps=3),
    }
    assert json.loads(json.dumps(sections, allow_nan=False))
    return {name: {**found, "provenance": PROVENANCE} for name, found in sections.items()}


@pytest.mark.long
def test_sections_hold_what_was_promised(measured):
    step = measured["train_step"]
    assert ("bfloat16" in step["implicit"]) == processor.has_bfloat16()
    for one in (step["reconstruction"], step["implicit"]):
        rate = one["executed_gflop"] / one["medians"]["step"]
        share = rate / step["peak"]["float32"]["gflops"]
        assert one["fraction_of_matmul_peak"] == pytest.approx(share)
    relative = measured["compression"]["table"]["relative"]
    for shares in relative.values():
        assert shares["original"] + shares["reconstruction"] == pytest.approx(1)
    weak = measured["scaling"]["weak"]
    assert weak["loss"]["two"] == pytest.approx(weak["loss"]["alone"], abs=2e-4)  # printed digits
    bytes_of = measured["scaling"]["paper"]["implicit"]
    assert bytes_of["bytes_all_reduced"] == pytest.approx(bytes_of["parameters"] * 8 * 63 / 64)


@pytest.mark.long
def test_the_table_names_every_section_and_replaces_the_old_one(measured, tmp_path):
    shown = table.text(measured)
    for part in ("training step", "sequential", "JPEG 2000", "side, 32 to 64", "a processor"):
        assert part in shown
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n", encoding="utf-8")
    for _ in range(2):
        table.replace(readme, measured)
    text = readme.read_text(encoding="utf-8")
    assert shown in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    readme.write_text("no marks", encoding="utf-8")
    with pytest.raises(UserError, match="no place for the table"):
        table.replace(readme, measured)


def test_the_readme_shows_the_committed_results():
    if not RESULTS.exists():
        pytest.skip("nothing has been measured yet")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert f"{table.BEGIN}\n\n```text\n{table.text(results)}\n```\n\n{table.END}" in README


def test_the_best_peer_is_the_fastest_of_its_kind():
    median = {"step": 1.0, "peer.eager": 3.0, "peer.compiled": 2.0, "peer.eager_folded": 1.5}
    found = train_step._speedups({**median, "port": 4.0})
    assert found["speedup_vs_best_peer"] == 2 and found["best_peer"] == "peer.compiled"
    assert found["speedup_vs_best_folded_peer"] == 1.5
    assert found["speedup_vs_best_port"] == 4


# --- The command ----------------------------------------------------------------------------------


def bench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=runs.environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--sections=speed"], "no section 'speed': --sections takes train_step"),
        (["--pytorch_3d_r2n2=nowhere"], "--pytorch_3d_r2n2=nowhere is no checkout"),
    ],
)
def test_mistakes_end_in_one_line(arguments, said, tmp_path):
    done = bench("--nopeer", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_without_pytorch_peers_are_refused_in_one_line(tmp_path):
    done = bench(cwd=tmp_path)
    assert done.returncode == 2 and "--nopeer" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.long
def test_sections_are_merged_and_not_measured_again_when_resumed(tmp_path):
    flags = ["--nopeer", "--profile=smoke", "--repetitions=1", "--sections=compression"]
    output = tmp_path / "bench" / "results.json"
    output.parent.mkdir()
    output.write_text('{"older": {"kept": 1}}', encoding="utf-8")
    done = bench(*flags, cwd=tmp_path)
    assert "bench/results.json: compression" in done.stdout, done.stderr
    written = output.read_bytes()
    assert json.loads(written)["older"]["kept"] == 1
    assert set(json.loads(written)) == {"older", "compression"}
    assert "compression is there" in bench(*flags, "--resume", cwd=tmp_path).stdout
    assert output.read_bytes() == written
