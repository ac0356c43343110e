"""Fixtures of runs that several test modules look at and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
import tiny
from tensorflow.python.framework import config as framework

from tfjoint import export


@pytest.fixture(scope="module")
def own_determinism():
    """Training makes TensorFlow's operations deterministic; other modules choose for themselves."""
    yield
    framework.disable_op_determinism()


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """The tiny records; not to be changed."""
    return tiny.make(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory) -> Path:
    """A run of `runs.STEPS` steps without interruption; not to be changed."""
    return runs.train(data, tmp_path_factory.mktemp("finished") / "run", checkpoint_every=2)


@pytest.fixture(scope="session")
def exported(finished) -> Path:
    """The first export of `finished`; not to be changed."""
    return export.export_run(finished)
