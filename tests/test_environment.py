"""The three environments hold what they promise."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

ROOT = Path(__file__).resolve().parents[1]
TENSORFLOW = ".".join(tf.__version__.split(".")[:2])
PIN = re.compile(r"[a-z0-9][a-z0-9.-]*==[0-9][\w.!+]*(?:; python_version (?:<|>=) \"3\.\d+\")?")


def _pins(name: str) -> dict[str, set[str]]:
    pins: dict[str, set[str]] = {}
    for line in (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        package, _, version = line.partition(";")[0].partition("==")
        pins.setdefault(package, set()).add(version)
    return pins


@pytest.mark.parametrize("name", ["default", "tf221", "tf214", "serving", "bench"])
def test_constraints_are_versions_and_nothing_else(name):
    lines = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 30
    assert not [line for line in lines if not PIN.fullmatch(line)]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("name", "tensorflow"), [("default", "2.17.1"), ("tf221", "2.21.0"), ("tf214", "2.14.1")]
)
def test_constraints_choose_the_tensorflow_of_their_environment(name, tensorflow):
    pins = _pins(name)
    assert pins["tensorflow"] == {tensorflow}
    assert pins["tensorboard"] == {tensorflow.rpartition(".")[0] + _TENSORBOARD_PATCH[name]}
    # pkg_resources, which tensorboard 2.14 and 2.17 import, ended with setuptools 81.
    assert all(int(version.split(".")[0]) < 81 for version in pins["setuptools"])


_TENSORBOARD_PATCH = {"default": ".1", "tf221": ".0", "tf214": ".1"}


def test_nothing_that_is_installed_has_moved_from_its_pin():
    """Not even for Apache Beam, where that was added."""
    pins = _pins({"2.14": "tf214", "2.17": "default", "2.21": "tf221"}[TENSORFLOW])
    installed = {
        re.sub(r"[_.]", "-", found.metadata["Name"].lower()): found.version
        # Where pip installs: setuptools brings packages of its own, elsewhere.
        for found in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
    }
    assert not {n: v for n, v in installed.items() if n in pins and v not in pins[n]}
    assert len(set(pins) & set(installed)) > 30


def test_what_is_measured_is_what_is_tested():
    """`make bench` adds PyTorch to the default environment, without moving a pin."""
    default, bench = _pins("default"), _pins("bench")
    assert not {name for name in set(default) & set(bench) if default[name] != bench[name]}
    assert "torch" in set(bench) - set(default)
    assert {"tensorflow", "keras", "numpy"} <= set(bench)


def test_whatever_apache_beam_requires_is_pinned():
    lines = (ROOT / "constraints" / "default.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("apache-beam==")]
    try:
        required = importlib.metadata.requires("apache-beam") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("Apache Beam is not installed: make test-beam installs it")
    names = {re.split(r"[^\w.-]", line)[0].lower() for line in required if "extra ==" not in line}
    assert len(names) > 10
    assert not {re.sub(r"[_.]", "-", name) for name in names} - set(_pins("default"))


def test_this_is_one_of_the_three_environments():
    assert TENSORFLOW in ("2.14", "2.17", "2.21")
    assert (3, 9) <= sys.version_info < (3, 12 if TENSORFLOW == "2.14" else 13)


def test_tensorboard_is_there_whether_or_not_tensorflow_brings_it():
    from tensorboard.plugins.mesh import summary_v2

    assert callable(summary_v2.mesh)


def _range_coder() -> Any:
    if TENSORFLOW == "2.17":
        import tensorflow_compression_ops as ops
    elif TENSORFLOW == "2.14":
        import tensorflow_compression as ops
    else:
        pytest.skip(f"no release of tensorflow-compression exists for TensorFlow {TENSORFLOW}")
    return ops


def test_the_range_coder_returns_every_bit():
    ops = _range_coder()
    bits = np.random.default_rng(7).random((3, 400)) < np.array([[0.02], [0.5], [0.9]])
    precision = 12
    ones = np.round(bits.mean(1) * 2**precision).astype(np.int32)
    lookup = np.stack(
        [np.full(3, precision), np.zeros(3), 2**precision - ones, np.full(3, 2**precision)], axis=1
    ).astype(np.int32)
    symbols = bits.T.astype(np.int32)  # [400, 3]: the last axis chooses the distribution

    handle = ops.create_range_encoder([], lookup)
    code = ops.entropy_encode_finalize(ops.entropy_encode_channel(handle, symbols))
    handle = ops.create_range_decoder(code, lookup)
    handle, decoded = ops.entropy_decode_channel(handle, [400, 3], tf.int32)

    assert bool(ops.entropy_decode_finalize(handle))
    np.testing.assert_array_equal(decoded, symbols)
    # The length follows the entropy of the source, so it is a range coder and not a copy.
    p = ones / 2**precision
    entropy_bytes = 400 * np.sum(-p * np.log2(p) - (1 - p) * np.log2(1 - p)) / 8
    assert entropy_bytes - 1 < len(code.numpy()) < entropy_bytes + 4


def test_a_lamb_optimizer_takes_a_step():
    if TENSORFLOW == "2.14":
        # Its one role; Keras 3 has the optimizer itself.
        import tensorflow_addons as tfa

        optimizer = tfa.optimizers.LAMB(learning_rate=0.1)
    else:
        optimizer = tf.keras.optimizers.Lamb(learning_rate=0.1)
    weight = tf.Variable([3.0, 4.0])
    optimizer.apply_gradients([(tf.constant([1.0, 1.0]), weight)])
    # The first step is the sign of the gradient, scaled to the norm of the weight: 5 / sqrt(2).
    np.testing.assert_allclose(weight, [3 - 0.5 / 2**0.5, 4 - 0.5 / 2**0.5], rtol=1e-5)
