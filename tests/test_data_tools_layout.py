"""The 3D-R2N2 layout, and the records made of it."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from data_tools import layout, records_from_layout, render, splits
from data_tools.layout import LayoutError, Model
from data_tools.records_from_layout import RecordsConfig
from data_tools.voxelize import Grid
from tfjoint import records
from tfjoint.errors import UserError

CHAIRS = [Model("03001627", name) for name in ("a", "b", "c")]
COPIES = [CHAIRS[0].copy(1), CHAIRS[0].copy(2), CHAIRS[1].copy(1), CHAIRS[2].copy(1)]


def _write(root, model, views=3, size=16, voxel_size=8):
    rng = np.random.default_rng(len(model.name) + ord(model.name[-1]))
    images = list(rng.integers(0, 256, (views, size, size, 4), np.uint8))
    grid = Grid(rng.random((voxel_size,) * 3) < 0.5, np.zeros(3), 1.0)
    cameras = render.cameras(0, model.name, views)
    layout.write_model(root, model, images, cameras, grid)
    return images, cameras, grid


@pytest.fixture
def root(tmp_path):
    for model in CHAIRS + COPIES:
        _write(tmp_path / "layout", model)
    return tmp_path / "layout"


@pytest.fixture
def split_list(tmp_path):
    sides = {"train": {m.key: f"group-{m.name}" for m in CHAIRS[:2]}, "test": {CHAIRS[2].key: "t"}}
    splits.write_split_list(tmp_path / "split.json", splits.SplitList("mine", sides))
    return tmp_path / "split.json"


def test_the_layout_is_that_of_the_data_set(tmp_path):
    _, cameras, _ = _write(tmp_path, CHAIRS[0])
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    folder = "ShapeNetRendering/03001627/a/rendering"
    names = ("00.png", "01.png", "02.png", "rendering_metadata.txt", "renderings.txt")
    assert files == [f"{folder}/{n}" for n in names] + ["ShapeNetVox32/03001627/a/model.binvox"]
    assert (tmp_path / folder / "renderings.txt").read_text() == "00.png\n01.png\n02.png\n"
    lines = (tmp_path / folder / "rendering_metadata.txt").read_text().splitlines()
    numbers = np.array([line.split() for line in lines], float)
    np.testing.assert_array_equal(numbers[:, :4], cameras)
    assert (numbers[:, 4] == 25).all()


def test_views_come_back_pixel_for_pixel(tmp_path):
    images, cameras, _ = _write(tmp_path, CHAIRS[0])
    views = layout.read_views(tmp_path, CHAIRS[0])
    for png, image in zip(views.images, images):
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(png))), image)
    np.testing.assert_array_equal(views.cameras, cameras)
    assert len(layout.read_views(tmp_path, CHAIRS[0], 2).images) == 2


def test_an_object_is_complete_only_with_both_halves(tmp_path):
    assert not layout.is_complete(tmp_path, CHAIRS[0])
    _write(tmp_path, CHAIRS[0])
    assert layout.is_complete(tmp_path, CHAIRS[0])
    layout.voxel_file(tmp_path, CHAIRS[0]).unlink()
    assert not layout.is_complete(tmp_path, CHAIRS[0])
    _write(tmp_path, CHAIRS[0], views=1)
    assert len(layout.read_views(tmp_path, CHAIRS[0]).images) == 1


def test_copies_know_their_original_and_number():
    copy = Model("chair", "lib_a").copy(12)
    assert (copy.original, copy.copy_number) == (Model("chair", "lib_a"), 12)
    assert (copy.original.original, copy.original.copy_number) == (copy.original, 0)


def _damage_png(directory):
    (directory / "01.png").write_bytes((directory / "01.png").read_bytes()[:60])


def _shorten_cameras(directory):
    (directory / "rendering_metadata.txt").write_text("1 2 0 0.7 25\n")


def _break_cameras(directory):
    (directory / "rendering_metadata.txt").write_text("1 2 0 0.7\n" * 3)


def _word_in_cameras(directory):
    (directory / "rendering_metadata.txt").write_text("1 2 0 far 25\n" * 3)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: (d / "01.png").unlink(), r"01\.png is missing or damaged"),
        (_damage_png, r"01\.png is missing or damaged"),
        (lambda d: (d / "renderings.txt").unlink(), r"renderings\.txt is missing"),
        (_shorten_cameras, "3 images and 1 cameras"),
        (_break_cameras, r"metadata\.txt is damaged"),
        (_word_in_cameras, r"metadata\.txt is damaged"),
    ],
)
def test_a_damaged_object_is_one_clear_error(damage, reason, root, split_list, tmp_path):
    damage(layout.rendering_directory(root, CHAIRS[1]))
    with pytest.raises(LayoutError, match=reason) as caught:
        records_from_layout.build_records(root, split_list, tmp_path / "r", RecordsConfig("x", 3))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r" / "manifest.json").exists()


@pytest.mark.parametrize(
    "make", [lambda root: None, lambda root: (root / "ShapeNetRendering").mkdir()]
)
def test_a_directory_without_a_layout_is_one_clear_error(make, tmp_path):
    make(tmp_path)
    with pytest.raises(LayoutError, match="ShapeNetRendering"):
        layout.list_models(tmp_path)


def test_images_that_are_not_square_are_refused():
    png = layout.encode_png(np.zeros((4, 5, 4), np.uint8))
    with pytest.raises(LayoutError, match="5 x 4"):
        layout.image_size(png)


# --- Records --------------------------------------------------------------------------------------


def test_records_hold_what_the_layout_holds(root, split_list, tmp_path):
    config = RecordsConfig("mine", views=2, sources={"a.deb": "0" * 64}, settings={"seed": 0})
    manifest = records_from_layout.build_records(root, split_list, tmp_path / "r", config)
    assert (manifest.image_size, manifest.views, manifest.voxel_size) == (16, 2, 8)
    assert (manifest.name, manifest.split_name) == ("mine", "mine")
    assert manifest.split_sha256 == splits.split_sha256(split_list)
    assert records.read_manifest(tmp_path / "r").sources == {"a.deb": "0" * 64}
    train = records.RecordSet(tmp_path / "r", "train")
    record = train.record(0)
    views = layout.read_views(root, CHAIRS[0], 2)
    assert (record.category, record.object_id, record.source) == ("chair", "a", "group-a")
    assert tuple(record.views) == views.images
    np.testing.assert_array_equal(record.cameras, views.cameras.astype(np.float32))
    assert [o.object_id for o in train.objects] == ["a", "b"]


def test_copies_go_to_training_only_and_no_more_than_asked(root, split_list, tmp_path):
    for copies, names in ((1, ["a", "a.copy1", "b", "b.copy1"]), (9, ["a", "a.copy1", "a.copy2"])):
        config = RecordsConfig("mine", views=1, copies=copies)
        records_from_layout.build_records(root, split_list, tmp_path / "r", config)
        train = records.RecordSet(tmp_path / "r", "train")
        assert [o.object_id for o in train.objects][: len(names)] == names
        assert {o.source for o in train.objects} == {"group-a", "group-b"}
        assert [o.object_id for o in records.RecordSet(tmp_path / "r", "test").objects] == ["c"]


def test_shards_of_an_earlier_run_do_not_stay(root, split_list, tmp_path):
    for per_shard in (1, 512):
        config = RecordsConfig("mine", views=1, records_per_shard=per_shard)
        records_from_layout.build_records(root, split_list, tmp_path / "r", config)
    names = sorted(path.name for path in (tmp_path / "r").iterdir())
    assert names == [
        "manifest.json",
        "manifest.json.sha256",
        "test-00000-of-00001.tfrecord",
        "train-00000-of-00001.tfrecord",
    ]


def test_an_object_of_the_list_that_is_not_there_is_one_clear_error(root, split_list, tmp_path):
    shutil.rmtree(layout.rendering_directory(root, CHAIRS[2]).parent)
    with pytest.raises(LayoutError, match="lacks 1 objects of split 'mine', first 03001627/c"):
        records_from_layout.build_records(root, split_list, tmp_path / "r", RecordsConfig("x", 3))


@pytest.mark.parametrize("change", [{"size": 20}, {"voxel_size": 4}, {"views": 2}])
def test_an_object_unlike_the_others_is_one_clear_error(change, root, split_list, tmp_path):
    _write(root, CHAIRS[2], **change)
    with pytest.raises(UserError, match=f"{CHAIRS[2].name}"):
        records_from_layout.build_records(root, split_list, tmp_path / "r", RecordsConfig("x", 3))
