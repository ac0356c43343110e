"""The 3D-R2N2 layout, and the records made of it."""

from __future__ import annotations

import dataclasses
import io
import shutil

import numpy as np
import pytest
import shapenet_sample
from PIL import Image
from shapenet_sample import SIZE, VIEWS, VOXEL_SIZE

from data_tools import layout, records_from_layout, splits
from data_tools.layout import LayoutError, Model
from data_tools.records_from_layout import RecordsConfig
from tfjoint import records
from tfjoint.errors import UserError

CHAIRS = [Model("03001627", name) for name in ("a", "b", "c")]
COPIES = [CHAIRS[0].copy(1), CHAIRS[0].copy(2), CHAIRS[1].copy(1), CHAIRS[2].copy(1)]


STRICT = RecordsConfig("mine", VIEWS, SIZE, VOXEL_SIZE, strict=True)


def _config(**changes):
    return dataclasses.replace(STRICT, **changes)


def _build(root, split_list, output, config=STRICT):
    with records_from_layout.opened(root, root, output.with_name("work")) as data:
        selection = splits.select_listed(split_list)
        return records_from_layout.build_records(data, selection, output, config)


def _read_views(root, model, views=VIEWS):
    with layout.tree(root, layout.RENDERINGS).reading() as read:
        return layout.read_views(read, model, views, SIZE)


@pytest.fixture
def root(tmp_path):
    return shapenet_sample.make(tmp_path / "layout", CHAIRS + COPIES)


@pytest.fixture
def split_list(tmp_path):
    sides = {"train": {m.key: f"group-{m.name}" for m in CHAIRS[:2]}, "test": {CHAIRS[2].key: "t"}}
    splits.write_split_list(tmp_path / "split.json", splits.SplitList("mine", sides))
    return tmp_path / "split.json"


def test_views_may_be_packed_in_less_time_or_in_fewer_bytes():
    image = np.random.default_rng(0).integers(0, 9, (68, 68, 4), np.uint8)
    fast, small = (layout.encode_png(image, optimize) for optimize in (False, True))
    assert len(small) < len(fast)
    for png in (fast, small):
        np.testing.assert_array_equal(Image.open(io.BytesIO(png)), image)


def test_the_layout_is_that_of_the_data_set(tmp_path):
    _, cameras, _ = shapenet_sample.write(tmp_path, CHAIRS[0])
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
    images, cameras, _ = shapenet_sample.write(tmp_path, CHAIRS[0])
    views = _read_views(tmp_path, CHAIRS[0])
    for png, image in zip(views.images, images):
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(png))), image)
    np.testing.assert_array_equal(views.cameras, cameras)
    assert len(_read_views(tmp_path, CHAIRS[0], 2).images) == 2


def test_an_object_is_complete_only_with_both_halves(tmp_path):
    assert not layout.is_complete(tmp_path, CHAIRS[0])
    shapenet_sample.write(tmp_path, CHAIRS[0])
    assert layout.is_complete(tmp_path, CHAIRS[0])
    layout.voxel_file(tmp_path, CHAIRS[0]).unlink()
    assert not layout.is_complete(tmp_path, CHAIRS[0])
    shapenet_sample.write(tmp_path, CHAIRS[0], views=1)
    assert not (layout.rendering_directory(tmp_path, CHAIRS[0]) / "01.png").exists()


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
        (lambda d: (d / "01.png").unlink(), r"01\.png is missing"),
        (_damage_png, r"01\.png is bad"),
        (lambda d: (d / "renderings.txt").unlink(), r"renderings\.txt is missing"),
        (_shorten_cameras, r"metadata\.txt is damaged: it must have 3 lines"),
        (_break_cameras, r"metadata\.txt is damaged"),
        (_word_in_cameras, r"metadata\.txt is damaged"),
    ],
)
def test_a_damaged_object_is_one_clear_error(damage, reason, root, split_list, tmp_path):
    damage(layout.rendering_directory(root, CHAIRS[1]))
    with pytest.raises(LayoutError, match=reason) as caught:
        _build(root, split_list, tmp_path / "r")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r" / "manifest.json").exists()


@pytest.mark.parametrize(
    "make", [lambda root: None, lambda root: (root / "ShapeNetRendering").mkdir()]
)
def test_a_directory_without_a_layout_is_one_clear_error(make, tmp_path):
    make(tmp_path)
    with pytest.raises(LayoutError, match=r"model\.binvox: give ShapeNetVox32"):
        layout.tree(tmp_path, layout.VOXELS).list_grids()


# --- Records --------------------------------------------------------------------------------------


def test_records_hold_what_the_layout_holds(root, split_list, tmp_path):
    config = _config(views=2, sources={"a.deb": "0" * 64}, settings={"seed": 0})
    manifest = _build(root, split_list, tmp_path / "r", config)
    assert (manifest.image_size, manifest.views, manifest.voxel_size) == (16, 2, 8)
    assert (manifest.name, manifest.split_name) == ("mine", "mine")
    assert manifest.split_sha256 == splits.split_sha256(split_list)
    assert records.read_manifest(tmp_path / "r").sources == {"a.deb": "0" * 64}
    train = records.RecordSet(tmp_path / "r", "train")
    record = train.record(0)
    views = _read_views(root, CHAIRS[0], 2)
    assert (record.category, record.object_id, record.source) == ("chair", "a", "group-a")
    assert tuple(record.views) == views.images
    np.testing.assert_array_equal(record.cameras, views.cameras.astype(np.float32))
    assert [o.object_id for o in train.objects] == ["a", "b"]


def test_copies_go_to_training_only_and_no_more_than_asked(root, split_list, tmp_path):
    for copies, names in ((1, ["a", "a.copy1", "b", "b.copy1"]), (9, ["a", "a.copy1", "a.copy2"])):
        config = _config(views=1, copies=copies)
        _build(root, split_list, tmp_path / "r", config)
        train = records.RecordSet(tmp_path / "r", "train")
        assert [o.object_id for o in train.objects][: len(names)] == names
        assert {o.source for o in train.objects} == {"group-a", "group-b"}
        assert [o.object_id for o in records.RecordSet(tmp_path / "r", "test").objects] == ["c"]


def test_shards_of_an_earlier_run_do_not_stay(root, split_list, tmp_path):
    for per_shard in (1, 512):
        config = _config(views=1, records_per_shard=per_shard)
        _build(root, split_list, tmp_path / "r", config)
    names = sorted(path.name for path in (tmp_path / "r").iterdir())
    assert names == [
        "manifest.json",
        "manifest.json.sha256",
        "test-00000-of-00001.tfrecord",
        "train-00000-of-00001.tfrecord",
    ]


def test_an_object_of_the_list_that_is_not_there_is_one_clear_error(root, split_list, tmp_path):
    shutil.rmtree(layout.rendering_directory(root, CHAIRS[2]).parent)
    with pytest.raises(LayoutError, match=r"03001627/c: .*renderings\.txt is missing"):
        _build(root, split_list, tmp_path / "r")
    shutil.rmtree(layout.voxel_file(root, CHAIRS[2]).parent)
    with pytest.raises(LayoutError, match=r"lacks objects of split 'mine' \(1 of chair\)"):
        _build(root, split_list, tmp_path / "r")


@pytest.mark.parametrize("change", [{"size": 20}, {"cells": 4}, {"views": 2}])
def test_an_object_unlike_the_others_is_one_clear_error(change, root, split_list, tmp_path):
    shapenet_sample.write(root, CHAIRS[2], **change)
    with pytest.raises(UserError, match=f"{CHAIRS[2].name}"):
        _build(root, split_list, tmp_path / "r")
