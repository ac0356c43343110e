"""Files of what there is to look at: whole, incomplete, damaged and hostile."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tfjoint import gallery, metrics
from tfjoint.gallery import Gallery, GalleryError

RNG = np.random.default_rng(0)
SHAPE = RNG.random((4, 4, 4)).astype(np.float32)
EVERYTHING = {
    "percent": RNG.integers(0, 101, (2, 3, 2, 4, 4, 4), np.uint8),
    "threshold": 0.3,
    "truth": RNG.random((2, 4, 4, 4)) < 0.5,
    "images": RNG.integers(0, 256, (2, 5, 6, 7, 3), np.uint8),
    "decoded": RNG.integers(0, 256, (2, 3, 5, 6, 7, 3), np.uint8),
    "names": ("a chair", "</script>"),
    "categories": ("chair", "Tür"),
    "rates": ("384:1", "192:1", "128:1"),
    "views": (1, 5),
    "title": "direct",
    "weights_sha256": "00ff",
}


def assert_equal(found: Gallery, expected: Gallery) -> None:
    for name, value in expected._asdict().items():
        other = getattr(found, name)
        if isinstance(value, np.ndarray):
            assert other.dtype == value.dtype, name
            np.testing.assert_array_equal(other, value, name)
        else:
            assert type(other) is type(value) and other == value, name


def write(path: Path, **arrays) -> Path:
    """An .npz file as anybody would write it."""
    np.savez(path, **arrays)
    return path


# --- Whole ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["percent", "probabilities", "voxels"])
def test_what_was_written_is_read_again(tmp_path, kind):
    arrays = dict(EVERYTHING)
    percent = arrays.pop("percent")
    made = {"probabilities": (percent / 100).astype(np.float32), "voxels": percent >= 40}
    written = gallery.from_arrays({**arrays, kind: made.get(kind, percent)})
    assert (written.threshold, written.views, written.title) == (0.3, (1, 5), "direct")
    assert written.names == EVERYTHING["names"]
    gallery.write_gallery(tmp_path / "deep" / "a.npz", written)
    assert_equal(gallery.read_gallery(tmp_path / "deep" / "a.npz"), written)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.npz"]


def test_one_grid_is_a_whole_file(tmp_path):
    found = gallery.read_gallery(write(tmp_path / "a.npz", probabilities=SHAPE, other=np.ones(9)))
    expected = Gallery(SHAPE[None, None, None])
    assert_equal(found, expected)
    gallery.write_gallery(tmp_path / "b.npz", found)
    assert_equal(gallery.read_gallery(tmp_path / "b.npz"), expected)


@pytest.mark.parametrize(
    ("axes", "filled"),
    [
        ((), (1, 1, 1)),
        ((2,), (2, 1, 1)),
        ((2, 3), (2, 3, 1)),
        ((2, 3, 5), (2, 3, 5)),
    ],
)
def test_axes_are_objects_rates_and_numbers_of_views_in_this_order(axes, filled):
    grids = RNG.random((*axes, 4, 4, 4))
    found = gallery.from_arrays({"probabilities": grids}).occupancy
    assert found.shape == (*filled, 4, 4, 4)
    np.testing.assert_array_equal(found.ravel(), grids.ravel())


def test_what_belongs_to_one_object_needs_no_axis_of_objects():
    one = {name: EVERYTHING[name][0] for name in ("truth", "images", "names", "categories")}
    decoded = EVERYTHING["decoded"][0, 0]
    found = gallery.from_arrays({"voxels": SHAPE > 0.5, **one, "decoded": decoded, "rates": 48})
    assert found.truth.shape == (1, 4, 4, 4)
    assert found.images.shape == (1, 5, 6, 7, 3)
    assert found.decoded.shape == (1, 1, 5, 6, 7, 3)
    assert (found.names, found.categories, found.rates) == (("a chair",), ("chair",), ("48:1",))


def test_kinds_of_numbers_are_brought_to_one():
    arrays = {
        "voxels": np.eye(4, dtype=np.int64)[None] * np.ones((4, 1, 1)),
        "truth": np.ones((4, 4, 4), np.uint8),
        "images": np.array([0, 0.5, 1])[None, None, None].astype(np.float32),
        "rates": np.array([54.857]),
    }
    found = gallery.from_arrays(arrays)
    assert found.occupancy.dtype == found.truth.dtype == bool
    assert found.occupancy.sum() == 16
    assert found.images.ravel().tolist() == [0, 128, 255]
    assert found.rates == ("54.86:1",)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_an_iou_in_whole_percent_is_the_one_in_probabilities(kind):
    thresholds = np.arange(1, 101) / 100
    near = np.concatenate([thresholds, thresholds - 1e-7, thresholds + 1e-7, RNG.random(3796)])
    grids = np.clip(near, 0, 1).astype(kind).reshape(1, 1, 1, 16, 16, 16)
    truth = RNG.random((16, 16, 16)) < 0.3
    percent = gallery.from_arrays({"probabilities": grids}).percent()
    assert percent.dtype == np.uint8 and percent.shape == grids.shape
    for whole in range(1, 101):
        threshold = float(f"0.{whole:02d}") if whole < 100 else 1.0
        np.testing.assert_array_equal(percent >= whole, grids >= threshold)
        expected = metrics.iou(grids[0, 0, 0], truth, threshold)
        assert metrics.iou(percent[0, 0, 0], truth, whole) == expected


def test_voxels_are_nought_or_a_hundred_percent_and_percent_stays():
    voxels = SHAPE > 0.5
    np.testing.assert_array_equal(
        gallery.from_arrays({"voxels": voxels}).percent()[0, 0, 0], np.where(voxels, 100, 0)
    )
    found = gallery.from_arrays({"percent": EVERYTHING["percent"]}).percent()
    np.testing.assert_array_equal(found, EVERYTHING["percent"])


# --- Arrays that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "held"),
    [
        ((), "no arrays"),
        (("x", "grid"), "grid, x"),
        ([f"array{n}" for n in range(9)], "array0, array1, array2, array3, .*array7, ..."),
    ],
)
def test_a_file_without_grids_is_refused_by_what_it_holds(tmp_path, names, held):
    np.savez(tmp_path / "a.npz", **dict.fromkeys(names, SHAPE))
    wanted = f"a file of shapes holds one of probabilities, percent, voxels; it holds {held}: save"
    with pytest.raises(GalleryError, match=wanted):
        gallery.read_gallery(tmp_path / "a.npz")


def test_decoded_views_need_no_shapes(tmp_path):
    views = np.arange(2 * 3 * 4 * 5 * 6 * 3, dtype=np.uint8).reshape(2, 3, 4, 5, 6, 3)
    gallery.write_gallery(tmp_path / "a.npz", gallery.Gallery(None, decoded=views, title="codec"))
    found = gallery.read_gallery(tmp_path / "a.npz")
    assert found.occupancy is None and found.title == "codec"
    np.testing.assert_array_equal(found.decoded, views)
    with pytest.raises(GalleryError, match="and no shapes"):
        found.percent()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"percent": None, "decoded": None},
            "holds one of probabilities, percent, voxels; it holds categories",
        ),
        ({"voxels": SHAPE > 0}, "it holds percent, voxels: save the grids under one"),
        ({"percent": np.full((4, 4, 4), 101, np.uint8)}, "received uint8 from 101 to 101"),
        ({"percent": np.zeros((4, 4, 4), int)}, "percent must be uint8"),
        ({"percent": np.zeros((4, 4), np.uint8)}, "percent has 2 axes, not those of"),
        ({"percent": np.zeros((1,) * 7, np.uint8)}, "percent has 7 axes"),
        ({"percent": np.zeros((4, 4, 5), np.uint8)}, "4 and 5 cells a side: one is needed"),
        ({"percent": np.zeros((0, 4, 4, 4), np.uint8)}, "percent has no objects"),
        ({"percent": np.zeros((0, 0, 0), np.uint8)}, "percent has no cells a side"),
        ({"truth": np.ones((3, 4, 4, 4), bool)}, "truth has 3 objects, percent has 2"),
        ({"truth": np.ones((2, 5, 5, 5), bool)}, "truth has 5 cells a side, percent has 4"),
        ({"truth": np.full((2, 4, 4, 4), 0.5)}, "truth must be bool, or 0 and 1"),
        ({"truth": np.full((2, 4, 4, 4), "x")}, "truth must be bool"),
        ({"images": np.ones((2, 5, 6, 7, 4), np.uint8)}, "images has 4 channels, a colour has 3"),
        ({"images": np.full((2, 5, 6, 7, 3), 1.1)}, "floating point in"),
        ({"images": np.full((2, 5, 6, 7, 3), np.nan)}, "from nan to nan"),
        ({"images": np.ones((2, 5, 6, 7, 3), int)}, "images must be uint8"),
        ({"images": np.ones((2, 4, 6, 7, 3), np.uint8)}, "decoded has 5 views, images has 4"),
        ({"decoded": np.ones((2, 2, 5, 6, 7, 3), "u1")}, "decoded has 2 rates, percent has 3"),
        ({"names": ("one",)}, "names has 1 objects, percent has 2"),
        ({"names": np.array([1, 2])}, "names must be text; received int64"),
        ({"names": np.array([b"a", b"b"])}, "names must be text"),
        ({"rates": ("a", "b")}, "rates has 2 rates, percent has 3"),
        ({"rates": np.array([True] * 3)}, "rates must be text"),
        ({"views": (1, 2, 3)}, "views has 3 numbers of views, percent has 2"),
        ({"views": (0, 1)}, "whole numbers from 1 on; received int64 from 0 to 1"),
        ({"views": (1.0, 2.0)}, "whole numbers from 1 on"),
        ({"views": (1, 6)}, "views is up to 6, but images has 5 views"),
        ({"threshold": 0}, "a number above 0, 1 at most; received int64 from 0 to 0"),
        ({"threshold": float("nan")}, "received float64 from nan"),
        ({"threshold": "0.4"}, "threshold must be a number"),
        ({"threshold": (0.3, 0.4)}, "threshold has 1 axes"),
        ({"title": 3}, "title must be text"),
    ],
)
def test_an_array_that_does_not_fit_is_one_line(tmp_path, changes, reason):
    given = {name: array for name, array in {**EVERYTHING, **changes}.items() if array is not None}
    path = write(tmp_path / "a.npz", **given)
    with pytest.raises(GalleryError) as caught:
        gallery.read_gallery(path)
    assert reason in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, np.inf])
def test_probabilities_beyond_0_and_1_are_refused(value):
    grid = SHAPE.copy()
    grid[1, 2, 3] = value
    with pytest.raises(GalleryError, match="probabilities must be floating point in"):
        gallery.from_arrays({"probabilities": grid})


# --- Files that are damaged or hostile ------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(GalleryError) as caught:
        gallery.read_gallery(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin-1")
    size = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + size + text + data


def archive(path: Path, content: bytes, name: str = "voxels.npy") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr(name, content)
    return path


def test_a_missing_file_or_a_directory_is_one_line(tmp_path):
    assert "no file at" in refusal(tmp_path / "absent.npz")
    assert "no file at" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"{}", bytes(1000)])
def test_a_file_of_another_kind_is_one_line(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    assert "is damaged or no .npz file" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY\x01",
        npy("{'descr': '|b1', 'fortran_order': False, 'shape': (4, 4, 4), }\n", bytes(63)),
        npy("{'descr': '|b1', 'fortran_order': False, 'shape': (99999, 99999, 99999), }\n"),
        npy("{'descr': '|b1', 'fortran_order': False, 'shape': (-1, 4, 4), }\n", bytes(64)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 1), }\n", b"cos\nsystem\n."),
        npy("{'descr': '|b1', 'shape': (1, 1, 1), }\n", bytes(1)),
        npy("{'descr': '" + "(" * 300, bytes(1)),
        npy("__import__('os').getcwd()\n", bytes(1)),
        npy("{'descr': '|b1', 'fortran_order': False, 'shape': (1, 1, 1), }\n", version=b"\x09\0"),
        npy("[" * 5000, version=b"\x02\x00"),
    ],
)
def test_an_array_that_lies_about_itself_is_one_line(tmp_path, content):
    assert "is damaged or no .npz file" in refusal(archive(tmp_path / "a.npz", content))


def test_python_objects_are_not_read(tmp_path):
    names = np.array([{"a": 1}], object)
    path = write(tmp_path / "a.npz", voxels=SHAPE > 0, names=names)
    assert "Python objects" in refusal(path)


def test_a_file_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    header = "{'descr': '|b1', 'fortran_order': False, 'shape': (100, 100, 100), }\n"
    path = archive(tmp_path / "a.npz", npy(header, bytes(1_000_000)))
    assert path.stat().st_size < 10_000
    assert not gallery.read_gallery(path).occupancy.any()
    monkeypatch.setattr(gallery, "MOST_BYTES", 1_000_000)
    assert "holds more than 0 MiB" in refusal(path)


def test_every_cut_and_flipped_bit_is_one_line_or_changes_nothing(tmp_path):
    whole = gallery.from_arrays(
        {**EVERYTHING, "percent": np.ones((2, 3, 2, 2, 2, 2), "u1"), "truth": np.ones((2, 2, 2, 2))}
    )
    path = tmp_path / "a.npz"
    gallery.write_gallery(path, whole)
    content = path.read_bytes()
    damaged = [content[:end] for end in RNG.choice(len(content), 100, replace=False)]
    for position in RNG.choice(len(content), 400, replace=False):
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(RNG.integers(8))
        damaged.append(bytes(flipped))
    refused = 0
    for case in damaged:
        path.write_bytes(case)
        try:
            found = gallery.read_gallery(path)
        except GalleryError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        # A name in the archive's index may change, and its array be one of those left alone.
        for name, value in found._asdict().items():
            if value is not None and not np.array_equal(value, getattr(whole, name)):
                assert np.array_equal(value, Gallery._field_defaults[name]), name
    assert refused > 400


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    path.write_bytes(b"before")

    def fail(handle: io.BufferedWriter, **arrays) -> None:
        handle.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        gallery.write_gallery(path, gallery.from_arrays({"voxels": SHAPE > 0}))
    assert path.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1
