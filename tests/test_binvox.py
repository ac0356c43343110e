"""Binvox files, whole and damaged."""

from __future__ import annotations

import numpy as np
import pytest

from tfjoint import binvox
from tfjoint.binvox import Grid


@pytest.fixture
def grid():
    voxels = np.random.default_rng(1).random((32, 32, 32)) < 0.3
    voxels[:8] = False  # runs longer than a byte counts
    voxels[8:16] = True
    return Grid(voxels, np.array([-0.25, 0.125, -0.3]), 0.875)


def test_binvox_round_trip(grid, tmp_path):
    binvox.write_binvox(tmp_path / "a.binvox", grid)
    read = binvox.read_binvox(tmp_path / "a.binvox")
    np.testing.assert_array_equal(read.voxels, grid.voxels)
    np.testing.assert_allclose(read.translate, grid.translate)
    assert read.scale == grid.scale


def test_binvox_runs_along_y_then_z_then_x(tmp_path):
    voxels = np.zeros((2, 2, 2), bool)
    voxels[0, 1, 0] = voxels[1, 0, 1] = True  # flat indices 1 and 6
    path = tmp_path / "a.binvox"
    binvox.write_binvox(path, Grid(voxels, np.zeros(3), 1.0))
    head, _, data = path.read_bytes().partition(b"data\n")
    assert head == b"#binvox 1\ndim 2 2 2\ntranslate 0 0 0\nscale 1\n"
    assert data == bytes([0, 1, 1, 1, 0, 4, 1, 1, 0, 1])


def test_binvox_counts_end_at_255(tmp_path):
    path = tmp_path / "a.binvox"
    binvox.write_binvox(path, Grid(np.ones((8, 8, 8), bool), np.zeros(3), 1.0))
    assert path.read_bytes().endswith(b"data\n" + bytes([1, 255, 1, 255, 1, 2]))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "is not binvox"),
        (lambda data: b"#obj" + data, "is not binvox"),
        (lambda data: data.partition(b"data")[0], "is not binvox"),
        (lambda data: data.replace(b"dim 32 32 32", b"dim 32 32 16"), "damaged binvox header"),
        (lambda data: data.replace(b"dim 32 32 32", b"dim 32 32 x2"), "damaged binvox header"),
        (lambda data: data.replace(b"scale", b"scall"), "damaged binvox header"),
        (lambda data: data.replace(b"translate -0.25", b"translate"), "damaged binvox header"),
        (lambda data: data.replace(b"dim 32 32 32", b"dim 16 16 16"), "of 4096"),
        (lambda data: data[:-2], "is damaged"),
        (lambda data: data[:-1], "is damaged"),
        (lambda data: data + b"\x01\x01", "is damaged"),
        (lambda data: data[:-2] + b"\x07" + data[-1:], "is damaged"),
    ],
)
def test_damaged_binvox_files_are_one_clear_error(damage, reason, grid, tmp_path):
    path = tmp_path / "a.binvox"
    binvox.write_binvox(path, grid)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(binvox.BinvoxError, match=reason) as caught:
        binvox.read_binvox(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_binvox_file_is_one_clear_error(tmp_path):
    with pytest.raises(binvox.BinvoxError, match="no binvox file at"):
        binvox.read_binvox(tmp_path / "absent.binvox")
