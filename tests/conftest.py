"""What every test may rely on: quiet TensorFlow, two logical CPU devices, and Ctrl-C."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

# Read when TensorFlow is loaded; the same as `tfjoint.entry` sets.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Tests run in as many processes as there are cores.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import pytest
import tensorflow as tf

# Devices can only be split before TensorFlow's first operation, so all tests run with two. Whoever
# names no device is placed on CPU:0 as before.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

# Whoever runs these tests in a shell's background has them ignore Ctrl-C, and so the commands that
# they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files that take long first, so that the cores have work until the end."""
    longest = ("conformance", "trainer", "distribution", "export", "readme", "command", "overfit")
    rank = {f"test_{name}.py": position for position, name in enumerate(longest)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="module", autouse=True)
def _leave_behind() -> Iterator[None]:
    """Keep what TensorFlow never frees of a file's graphs out of the garbage collections after it.

    There are gigabytes of it, and a collection that looks through them takes seconds.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def two_cpus() -> list[str]:
    """Two devices for a `tf.distribute.MirroredStrategy` in this process."""
    names = ["CPU:0", "CPU:1"]
    assert [d.name.rpartition("device:")[2] for d in tf.config.list_logical_devices("CPU")] == names
    return names
