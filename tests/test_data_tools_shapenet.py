"""ShapeNet: its splits, its archives and trees, what is bad in them, and what becomes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import furniture
import numpy as np
import pytest
import shapenet_sample
from PIL import Image
from shapenet_sample import CHAIR, CHAIRS, RIFLE, RIFLES, SIZE, VIEWS, VOXEL_SIZE

from data_tools import integrity, layout, records_from_layout, render, shapenet, splits, voxelize
from data_tools.layout import LayoutError, Model
from data_tools.records_from_layout import RecordsConfig
from data_tools.tar_stream import ArchiveError
from tfjoint import records
from tfjoint.errors import UserError

# What is said of the distribution, written down a second time.
COUNTS = {
    "airplane": 4045,
    "bench": 1816,
    "cabinet": 1572,
    "car": 7497,
    "chair": 6778,
    "display": 1095,
    "lamp": 2318,
    "loudspeaker": 1618,
    "rifle": 2372,
    "sofa": 3173,
    "table": 8509,
    "telephone": 1052,
    "vessel": 1939,
}
CAR, BAD_CAR = "02958343", "f9c1d7748c15499c6f2bd1c4e9adb41"
BAD_RIFLE = "4a32519f44dc84aabafe26e2eb69ebf4"
CONFIG = RecordsConfig("sample", VIEWS, SIZE, VOXEL_SIZE, records_per_shard=2)


# --- Splits ---------------------------------------------------------------------------------------


def _keys(selection, side):
    return list(selection.sides[side])


def test_the_categories_are_those_of_the_distribution():
    found = {layout.SYNSETS[key]: value.objects for key, value in shapenet.CATEGORIES.items()}
    assert found == COUNTS and sum(COUNTS.values()) == 43_784


def test_the_rule_of_3d_r2n2_leaves_8762_objects_for_testing():
    test = 0
    for count in COUNTS.values():
        names = [f"{number:032x}" for number in range(count)]
        first = shapenet.first_test(reversed(names))
        test += sum(name >= first for name in names)
    assert test == 8762


def test_objects_lie_where_the_whole_data_would_put_them_however_few_are_there():
    for grids in (CHAIRS + RIFLES, CHAIRS[2:5] + RIFLES[1:], CHAIRS[4:] + RIFLES[:1]):
        selection = shapenet.select(grids, "r2n2")
        train = [m.key for m in grids if m.name < {CHAIR: "cbc47", RIFLE: "ca25a"}[m.category]]
        assert _keys(selection, "train") == train
        assert _keys(selection, "test") == [m.key for m in grids if m.key not in train]
        assert selection.sha256 == shapenet.select(CHAIRS, "r2n2").sha256
        assert selection.absent[CHAIR] == 6778 - sum(m.category == CHAIR for m in grids)


@pytest.fixture
def five_cars(monkeypatch):
    # A distribution of five cars, the bad one among them; by the rule the fifth is for testing.
    names = ["10", "20", "30", "ea", BAD_CAR]
    monkeypatch.setattr(shapenet, "CATEGORIES", {CAR: shapenet.Category(5, BAD_CAR)})
    return [Model(CAR, name) for name in names]


def test_a_whole_category_is_checked_against_the_rule(five_cars):
    assert not shapenet.select(five_cars, "r2n2").absent
    others = [Model(CAR, name) for name in ("10", "fa", "fb", "fc")]
    with pytest.raises(UserError, match=r"are not those of 3D-R2N2.*begin with fc, not with f9c1"):
        shapenet.select(others, "r2n2")


def test_the_bad_car_counts_in_the_split_and_is_in_no_side(five_cars):
    for grids in (five_cars, five_cars[:4]):
        selection = shapenet.select(grids, "r2n2")
        assert _keys(selection, "train") == [f"{CAR}/{n}" for n in ("10", "20", "30", "ea")]
        assert not selection.sides["test"] and not selection.absent
    assert shapenet.select(five_cars, "r2n2").known_bad == {
        f"{CAR}/{BAD_CAR}": "it has no renderings"
    }
    assert not shapenet.select(five_cars[:4], "r2n2").known_bad


def test_the_bad_rifle_does_not_count_and_is_in_no_side():
    with_it, without = (
        shapenet.select([*RIFLES, *more], "r2n2") for more in ([Model(RIFLE, BAD_RIFLE)], [])
    )
    assert (with_it.sides, with_it.absent) == (without.sides, without.absent)
    assert with_it.known_bad == {f"{RIFLE}/{BAD_RIFLE}": "its mesh is empty"}


def test_a_category_that_3d_r2n2_does_not_have_is_one_clear_error():
    grids = [*CHAIRS, Model("teapot", "a")]
    with pytest.raises(UserError, match=r"no category 'teapot'.*--categories"):
        shapenet.select(grids, "r2n2")
    assert _keys(shapenet.select(grids, "r2n2", categories=["chair"]), "train")


PIX2VOX = [
    {
        "taxonomy_id": CHAIR,
        "taxonomy_name": "chair",
        "train": ["ff12", "00a1"],
        "val": ["cc00"],
        "test": ["1b2c", "absent"],
    },
    {
        "taxonomy_id": CAR,
        "taxonomy_name": "car",
        "train": [BAD_CAR],
        "val": [],
        "test": [],
    },
]


@pytest.fixture
def pix2vox(tmp_path):
    path = tmp_path / "ShapeNet.json"
    path.write_text(json.dumps(PIX2VOX))
    return path


def test_the_lists_of_pix2vox_have_three_sides(pix2vox):
    selection = shapenet.select(CHAIRS, "pix2vox", pix2vox)
    assert {side: set(keys) for side, keys in selection.sides.items()} == {
        "train": {f"{CHAIR}/ff12", f"{CHAIR}/00a1"},
        "val": {f"{CHAIR}/cc00"},
        "test": {f"{CHAIR}/1b2c", f"{CHAIR}/absent"},
    }
    assert selection.name == "pix2vox"
    assert selection.sha256 == splits.split_sha256(pix2vox)
    assert list(selection.known_bad) == [f"{CAR}/{BAD_CAR}"]


def test_a_list_of_the_same_kind_goes_by_its_own_name(pix2vox):
    path = pix2vox.rename(pix2vox.with_name("mine.json"))
    selection = shapenet.select(CHAIRS, str(path))
    assert selection.name == "mine"
    assert selection.sides == shapenet.select(CHAIRS, "pix2vox", path).sides


def test_a_list_of_this_project_goes_by_the_name_in_it(tmp_path):
    sides = {"train": {CHAIRS[0].key: "a"}, "val": {CHAIRS[1].key: "b"}, "test": {"x/y": "c"}}
    splits.write_split_list(tmp_path / "list", splits.SplitList("my split", sides))
    selection = shapenet.select(CHAIRS, str(tmp_path / "list"))
    assert (selection.name, selection.sides) == ("my split", sides)
    assert selection.sha256 == splits.split_sha256(tmp_path / "list")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lists: {"train": lists}, "is not a list of Pix2Vox's kind"),
        (lambda lists: [1], "is not a list of Pix2Vox's kind"),
        (lambda lists: [{**lists[0], "taxonomy_id": 3001627}], "not a text: 3001627"),
        (lambda lists: [{**lists[0], "train": [["a"]]}], "not a text"),
        (lambda lists: [{**lists[0], "val": None}], "is not a list of Pix2Vox's kind"),
        (lambda lists: [{"taxonomy_id": CHAIR}], "KeyError: 'train'"),
        (lambda lists: [{**lists[0], "val": ["ff12"]}], f"{CHAIR}/ff12 lies in train and in val"),
        (lambda lists: [{**lists[0], "train": []}], "split 'train' is empty"),
        (lambda lists: [], "split 'train' is empty"),
    ],
)
def test_wrong_lists_of_pix2vox_are_one_clear_error(change, reason, pix2vox):
    pix2vox.write_text(json.dumps(change(PIX2VOX)))
    with pytest.raises(UserError, match=reason) as caught:
        shapenet.select(CHAIRS, "pix2vox", pix2vox)
    assert "\n" not in str(caught.value)


def test_lists_that_are_not_there_are_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="no split list at"):
        shapenet.select(CHAIRS, "pix2vox", tmp_path / "absent")
    with pytest.raises(UserError, match="no split list at r2n3"):
        shapenet.select(CHAIRS, "r2n3")
    with pytest.raises(UserError, match=r"--split_list belongs to --split=pix2vox.*no --split"):
        shapenet.select(CHAIRS, "pix2vox")
    with pytest.raises(UserError, match="--split_list belongs to --split=pix2vox"):
        shapenet.select(CHAIRS, "r2n2", tmp_path / "absent")


def test_categories_go_by_name_or_synset_and_keep_their_sides(pix2vox):
    whole = shapenet.select(CHAIRS + RIFLES, "r2n2")
    for categories in (["rifle"], [RIFLE], ["rifle", RIFLE]):
        part = shapenet.select(CHAIRS + RIFLES, "r2n2", categories=categories)
        assert part.name == "r2n2" and set(part.absent) == {RIFLE}
        for side, keys in part.sides.items():
            assert list(keys) == [key for key in whole.sides[side] if key.startswith(RIFLE)]
    assert shapenet.select([], "pix2vox", pix2vox, ["chair"]).known_bad == {}


def test_objects_go_by_name_with_or_without_category_and_are_called_a_part():
    for objects in (["1b2c", "cc00"], [f"{CHAIR}/1b2c", f"{CHAIR}/cc00"]):
        part = shapenet.select(CHAIRS + RIFLES, "r2n2", objects=objects)
        assert part.name == "r2n2 (part)" and not part.absent
        assert _keys(part, "train") + _keys(part, "test") == [f"{CHAIR}/1b2c", f"{CHAIR}/cc00"]


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"categories": ["boat"]}, "no category 'boat'.*airplane, bench.*vessel"),
        ({"objects": ["1b2c", "nobody"]}, "no object 'nobody'"),
        ({"categories": ["rifle"], "objects": ["1b2c"]}, "no object '1b2c'"),
    ],
)
def test_what_is_in_no_list_is_one_clear_error(wanted, reason):
    with pytest.raises(UserError, match=reason):
        shapenet.select(CHAIRS + RIFLES, "r2n2", **wanted)


# --- Records --------------------------------------------------------------------------------------


def _build(halves, output, config=CONFIG, processes=1, split="r2n2", **wanted):
    work = output.with_name(f"{output.name}-work")
    with records_from_layout.opened(*map(Path, halves), work) as data:
        selection = shapenet.select(data.grids, split, **wanted)
        return records_from_layout.build_records(data, selection, output, config, processes)


def _bytes(directory):
    return {path.name: path.read_bytes() for path in directory.glob("*.tfrecord")}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return shapenet_sample.make(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def built(root, tmp_path_factory):
    output = tmp_path_factory.mktemp("built") / "records"
    _build((root, root), output)
    return output


@pytest.fixture
def mine(root, tmp_path):
    """A copy of the layout to damage."""
    return Path(shutil.copytree(root, tmp_path / "mine"))


def _objects(directory, side):
    opened = records.RecordSet(directory, side)
    return [opened.record(index) for index in range(len(opened))]


def test_records_hold_what_the_tree_holds_in_sorted_order(root, built):
    manifest = records.read_manifest(built)
    assert (manifest.split_name, manifest.left_out) == ("r2n2 (part)", {})
    assert manifest.settings["absent"]["chair"] == 6778 - 6
    found = {side: _objects(built, side) for side in ("train", "test")}
    assert [(o.category, o.object_id) for o in found["train"]] == [
        *(("chair", name) for name in ("00a1", "1b2c", "77aa", "cb00")),
        *(("rifle", name) for name in ("05aa", "9f00")),
    ]
    assert [o.object_id for o in found["test"]] == ["cc00", "ff12", "ca30"]
    for found_record in found["train"]:
        synset = {"chair": CHAIR, "rifle": RIFLE}[found_record.category]
        folder = root / "ShapeNetRendering" / synset / found_record.object_id / "rendering"
        names = [f"{view:02d}.png" for view in range(VIEWS)]
        assert [(folder / name).read_bytes() for name in names] == list(found_record.views)
        rows = np.loadtxt(folder / "rendering_metadata.txt", np.float32)
        np.testing.assert_array_equal(found_record.cameras, rows[:, :4])
        grid = (
            root / "ShapeNetVox32" / synset / found_record.object_id / "model.binvox"
        ).read_bytes()
        runs = np.frombuffer(grid.partition(b"data\n")[2], np.uint8)
        flat = np.repeat(runs[::2], runs[1::2])
        voxels = flat.reshape((VOXEL_SIZE,) * 3).transpose(0, 2, 1)
        np.testing.assert_array_equal(found_record.voxels, voxels)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "w:gz"},
        {"mode": "w", "order": 1},
        {"mode": "w:gz", "order": 2},
        {"mode": "w:gz", "form": tarfile.GNU_FORMAT, "order": 3},
    ],
    ids=str,
)
def test_archives_give_the_bytes_of_trees_in_whatever_order_they_are(
    options, root, built, tmp_path
):
    halves = shapenet_sample.packed(root, tmp_path / "archives", **options)
    manifest = _build(halves, tmp_path / "records")
    assert _bytes(tmp_path / "records") == _bytes(built)
    tree = records.read_manifest(built)
    assert set(manifest.sources) == {"ShapeNetRendering.tgz", "ShapeNetVox32.tgz"}
    assert dataclasses.replace(manifest, sources={}) == tree
    assert not (tmp_path / "records-work" / "spool").exists()


def test_two_processes_give_the_same_bytes(root, built, tmp_path):
    renderings, _ = shapenet_sample.packed(root, tmp_path / "archives", order=4)
    _build((renderings, root), tmp_path / "r", processes=2)
    assert _bytes(tmp_path / "r") == _bytes(built)


def test_halves_may_be_of_either_kind_and_go_by_any_name(root, built, tmp_path):
    archives = shapenet_sample.packed(root, tmp_path / "archives")
    both = tmp_path / "archives" / "both.tar"
    with tarfile.open(both, "w") as archive:
        archive.add(root, "some/where")
    trees = root / "ShapeNetRendering", root / "ShapeNetVox32"
    for index, halves in enumerate(
        [trees, (archives[0], trees[1]), (trees[0], archives[1]), (both, both)]
    ):
        _build(halves, tmp_path / str(index))
        assert _bytes(tmp_path / str(index)) == _bytes(built)


def test_fewer_views_are_the_first_ones(root, built, tmp_path):
    halves = shapenet_sample.packed(root, tmp_path / "archives", order=5)
    _build(halves, tmp_path / "r", dataclasses.replace(CONFIG, views=2))
    few, all_of_them = _objects(tmp_path / "r", "test"), _objects(built, "test")
    assert [o.views for o in few] == [o.views[:2] for o in all_of_them]
    np.testing.assert_array_equal(few[0].cameras, all_of_them[0].cameras[:2])


def test_the_lists_of_pix2vox_become_three_splits(root, pix2vox, tmp_path):
    manifest = _build((root, root), tmp_path / "r", split="pix2vox", split_list=pix2vox)
    found = {
        side: [o.object_id for o in _objects(tmp_path / "r", side)] for side in manifest.splits
    }
    assert found == {"train": ["00a1", "ff12"], "val": ["cc00"], "test": ["1b2c"]}
    assert manifest.split_name == "pix2vox (part)"
    assert manifest.settings["absent"] == {"chair": 1}
    assert manifest.left_out == {f"{CAR}/{BAD_CAR}": "it has no renderings"}


def test_a_whole_split_goes_by_its_name_alone(five_cars, tmp_path):
    root = shapenet_sample.make(tmp_path / "tree", five_cars[:4])
    manifest = _build((root, root), tmp_path / "r")
    assert manifest.split_name == "r2n2" and "absent" not in manifest.settings
    assert list(manifest.splits) == ["train"]


def test_objects_that_the_data_lacks_do_not_move_the_others_to_other_shards(root, mine, tmp_path):
    keys = [model.key for model in CHAIRS]
    sides = {"train": {key: key for key in keys[:5]}, "test": {keys[5]: "t"}}
    splits.write_split_list(tmp_path / "list", splits.SplitList("mine", sides))
    shutil.rmtree(mine / "ShapeNetVox32" / keys[1])
    for name, tree in (("whole", root), ("part", mine)):
        _build((tree, tree), tmp_path / name, split=str(tmp_path / "list"))
    whole, part = _bytes(tmp_path / "whole"), _bytes(tmp_path / "part")
    assert list(whole) == list(part)
    assert {name for name in whole if whole[name] != part[name]} == {
        "train-00000-of-00003.tfrecord"
    }


# --- What is bad ----------------------------------------------------------------------------------


def _edit(name, change):
    def damage(rendering, grid):
        path = grid.parent / name if name == "model.binvox" else rendering / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def _remove(name):
    return lambda rendering, grid: (
        grid.unlink() if name == grid.name else (rendering / name).unlink()
    )


def _half_of_the_pixels(png):
    """A PNG of half the rows in which every checksum is right."""
    end = png.index(b"IDAT") - 4
    length = int.from_bytes(png[end : end + 4], "big")
    rows = zlib.decompress(png[end + 8 : end + 8 + length])
    data = zlib.compress(rows[: len(rows) // 2])
    chunk = b"IDAT" + data
    return (
        png[:end]
        + struct.pack(">I", len(data))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + png[end + 12 + length :]
    )


def _flip(data):
    at = data.index(b"IDAT") + 40
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _png(width=SIZE, height=SIZE, mode="RGBA"):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return lambda data: buffer.getvalue()


DAMAGES = {
    "no view": (_remove("01.png"), r"rendering/01\.png is missing"),
    "no bytes": (_edit("01.png", lambda d: b""), r"01\.png is bad: it does not begin"),
    "no png": (_edit("01.png", lambda d: b"GIF89a" + d), r"01\.png is bad: it does not begin"),
    "cut off": (_edit("02.png", lambda d: d[:-200]), r"02\.png is bad: it ends after"),
    "half the pixels": (_edit("00.png", _half_of_the_pixels), r"00\.png is bad: its pixels"),
    "a flipped bit": (_edit("00.png", _flip), r"00\.png is bad: the checksum"),
    "another size": (
        _edit("01.png", _png(20, 20)),
        r"01\.png is bad: it has 20 x 20 pixels, not 16",
    ),
    "not square": (_edit("01.png", _png(height=9)), r"01\.png is bad: it has 16 x 9 pixels"),
    "grey": (_edit("01.png", _png(mode="L")), r"01\.png is bad: it has 8 bits of colour type 0"),
    "huge": (
        _edit("01.png", lambda d: d + bytes(layout.MOST_BYTES)),
        r"01\.png has more than 4194304 bytes",
    ),
    "no cameras": (_remove("rendering_metadata.txt"), r"metadata\.txt is missing"),
    "few cameras": (
        _edit("rendering_metadata.txt", lambda d: d.partition(b"\n")[0]),
        r"metadata\.txt is damaged: it must have 3 lines",
    ),
    "short lines": (
        _edit("rendering_metadata.txt", lambda d: d.replace(b" 25\n", b"\n")),
        r"metadata\.txt is damaged",
    ),
    "words": (
        _edit("rendering_metadata.txt", lambda d: d.replace(b" 25\n", b" far\n")),
        r"metadata\.txt is damaged .*'far'",
    ),
    "not a number": (
        _edit("rendering_metadata.txt", lambda d: d.replace(b" 25\n", b" nan\n")),
        r"metadata\.txt is damaged",
    ),
    "binary": (_edit("rendering_metadata.txt", lambda d: b"\xff" + d), r"metadata\.txt is damaged"),
    "no list": (_remove("renderings.txt"), r"renderings\.txt is missing"),
    "other names": (
        _edit("renderings.txt", lambda d: d.replace(b"00", b"07")),
        r"renderings\.txt does not begin with 3 images from 00\.png on",
    ),
    "a run too few": (_edit("model.binvox", lambda d: d[:-2]), r"model\.binvox is damaged"),
    "half a run": (_edit("model.binvox", lambda d: d[:-1]), r"model\.binvox is damaged"),
    "no binvox": (_edit("model.binvox", lambda d: b"#obj"), r"model\.binvox is not binvox"),
    "another grid": (
        _edit("model.binvox", lambda d: d.replace(b"dim 8 8 8", b"dim 4 4 4")),
        r"model\.binvox has a grid of 4 cells a side, not of 8",
    ),
    "an empty grid": (
        _edit("model.binvox", lambda d: d.partition(b"data\n")[0] + b"data\n\0\xff\0\xff\0\2"),
        r"model\.binvox is an empty grid",
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["tree", "archive"])
def test_bad_objects_are_left_out_by_name_and_no_others(packed, built, tmp_path):
    models = {name: Model(CHAIR, f"{number:03x}") for number, name in enumerate(DAMAGES)}
    root = shapenet_sample.make(tmp_path / "tree", [*models.values(), *CHAIRS])
    for name, model in models.items():
        DAMAGES[name][0](layout.rendering_directory(root, model), layout.voxel_file(root, model))
    halves = (root, root)
    if packed:
        halves = shapenet_sample.packed(root, tmp_path / "archives", order=6)
    manifest = _build(halves, tmp_path / "r")
    assert set(manifest.left_out) == {model.key for model in models.values()}
    for name, model in models.items():
        reason = manifest.left_out[model.key]
        assert re.search(DAMAGES[name][1], reason), (name, reason)
        assert model.key in reason and str(tmp_path) not in reason and "\n" not in reason
    assert [o.object_id for o in _objects(tmp_path / "r", "train")] == [m.name for m in CHAIRS[:4]]
    assert records.read_manifest(tmp_path / "r") == manifest


@pytest.mark.parametrize("name", ["no view", "half the pixels", "a run too few"])
def test_strict_stops_at_the_first_bad_object_in_one_line(name, mine, tmp_path):
    damage, reason = DAMAGES[name]
    damage(layout.rendering_directory(mine, CHAIRS[1]), layout.voxel_file(mine, CHAIRS[1]))
    archives = shapenet_sample.packed(mine, tmp_path / "archives")
    strict = dataclasses.replace(CONFIG, strict=True)
    for halves in ((mine, mine), archives):
        with pytest.raises(LayoutError, match=f"^{CHAIRS[1].key}: .*{reason}") as caught:
            _build(halves, tmp_path / "r", strict, objects=["1b2c", "77aa"])
        assert "\n" not in str(caught.value)
        # No records; what was begun stays, so that nothing else is put in its place.
        assert [path.name for path in (tmp_path / "r").iterdir()] == ["unfinished.json"]


def test_strict_stops_when_a_part_of_the_split_is_not_there(root, tmp_path):
    strict = dataclasses.replace(CONFIG, strict=True)
    with pytest.raises(LayoutError, match=r"lacks objects of split 'r2n2' \(6772 of chair\)"):
        _build((root, root), tmp_path / "r", strict, categories=["chair"])


def test_strict_passes_over_what_is_known_to_be_bad(five_cars, tmp_path):
    root = shapenet_sample.make(tmp_path / "tree", five_cars)
    shutil.rmtree(layout.rendering_directory(root, five_cars[4]))
    manifest = _build((root, root), tmp_path / "r", dataclasses.replace(CONFIG, strict=True))
    assert manifest.left_out == {f"{CAR}/{BAD_CAR}": "it has no renderings"}
    assert [o.object_id for o in _objects(tmp_path / "r", "train")] == ["10", "20", "30", "ea"]


def test_a_shard_of_bad_objects_alone_is_not_written(mine, tmp_path):
    for model in CHAIRS[:2]:
        shutil.rmtree(layout.rendering_directory(mine, model))
    manifest = _build((mine, mine), tmp_path / "r")
    assert [shard.file[:11] for shard in manifest.splits["train"]] == ["train-00001", "train-00002"]
    with pytest.raises(
        LayoutError, match=r"no object .* 2 were left out; first, .*/00a1: .*missing"
    ):
        _build((mine, mine), tmp_path / "r", objects=["00a1", "1b2c"])


# --- Archives made to do harm ---------------------------------------------------------------------


def test_an_archive_writes_nothing_but_records(root, built, tmp_path, capsys):
    name = f"ShapeNetRendering/{CHAIR}/00a1/rendering/00.png"

    def harm(archive):
        outside = str(tmp_path / "outside")
        for path in (outside, "../../outside", f"ShapeNetRendering/../../../{name}", f"/{name}"):
            shapenet_sample.add(archive, path, b"harm")
        shapenet_sample.add(archive, name, type=tarfile.SYMTYPE, linkname=outside)
        shapenet_sample.add(archive, name, type=tarfile.LNKTYPE, linkname=outside)
        shapenet_sample.add(archive, name, type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        shapenet_sample.add(archive, f"x/{CHAIR}/../rendering/00.png", b"harm")
        shapenet_sample.add(archive, f"x/{CHAIR}/a b/rendering/00.png", b"harm")
        copy = (root / name).read_bytes()
        shapenet_sample.add(archive, f"again/{CHAIR}/00a1/rendering/00.png", copy)

    halves = shapenet_sample.packed(root, tmp_path / "archives", more=harm)
    _build(halves, tmp_path / "r")
    assert _bytes(tmp_path / "r") == _bytes(built)
    assert {path.name for path in tmp_path.iterdir()} == {"archives", "r", "r-work"}
    said = capsys.readouterr().err
    assert "ShapeNetRendering.tgz: passed over 1 devices\n" in said
    assert "ShapeNetRendering.tgz: passed over 2 links\n" in said
    assert "ShapeNetRendering.tgz: passed over 5 names that lead out of the archive\n" in said
    assert "ShapeNetRendering.tgz: passed over 1 files that are there twice\n" in said


@pytest.mark.parametrize("half", ["rendering/01.png", "model.binvox"])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_a_file_twice_with_two_contents_is_refused_even_when_its_shard_is_whole(
    half, last, root, tmp_path
):
    def twice(archive):
        shapenet_sample.add(archive, f"x/{CHAIR}/00a1/{half}", b"other")

    more = {} if last else {"more": twice}
    halves = shapenet_sample.packed(root, tmp_path / "archives", mode="w", **more)
    if last:
        for path in halves:
            with tarfile.open(path, "a") as archive:
                twice(archive)
    for _ in range(2):
        with pytest.raises(ArchiveError, match=f"holds .*{CHAIR}/00a1/{half} twice, with diff"):
            _build(halves, tmp_path / "r")
        assert not (tmp_path / "r" / "manifest.json").exists()


def test_an_archive_cut_off_behind_its_last_file_is_refused_every_time(root, tmp_path):
    halves = shapenet_sample.packed(root, tmp_path / "archives")
    halves[0].write_bytes(halves[0].read_bytes()[:-8])  # gzip's checksum
    for _ in range(2):
        with pytest.raises(ArchiveError, match="is cut off"):
            _build(halves, tmp_path / "r")
        assert not (tmp_path / "r" / "manifest.json").exists()


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda data: data[:-300], "is cut off|is damaged"),
        (lambda data: b"something else " * 99, "is not a tar archive"),
        (lambda data: b"", "is cut off"),
        (None, "no ShapeNet.* at .*/absent"),
    ],
)
def test_a_wrong_archive_is_one_clear_error_and_no_records(half, content, reason, root, tmp_path):
    halves = list(shapenet_sample.packed(root, tmp_path / "archives"))
    if content is None:
        halves[half] = tmp_path / "absent"
    else:
        halves[half].write_bytes(content(halves[half].read_bytes()))
    with pytest.raises(UserError, match=reason) as caught:
        _build(halves, tmp_path / "r")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r" / "manifest.json").exists()
    assert not (tmp_path / "r-work" / "spool").exists()


def test_halves_that_were_swapped_are_one_clear_error(root, tmp_path):
    archives = shapenet_sample.packed(root, tmp_path / "archives")
    trees = root / "ShapeNetRendering", root / "ShapeNetVox32"
    for renderings, voxels in (archives, trees):
        with pytest.raises(LayoutError, match=r"holds no <category>/<model>/model\.binvox"):
            _build((renderings, renderings), tmp_path / "r")
        with pytest.raises(LayoutError, match="holds no <category>/<model>/rendering"):
            _build((voxels, voxels), tmp_path / "r")


# --- Going on -------------------------------------------------------------------------------------


@pytest.fixture
def converted(monkeypatch):
    """The names of the shards that are converted; `stop_at` ends the work before one of them."""
    convert, names = records_from_layout.convert_shard, []

    def watched(job):
        if len(names) == watched.stop_at:
            raise KeyboardInterrupt
        names.append(job.path.name)
        return convert(job)

    watched.stop_at, watched.names = None, names
    monkeypatch.setattr(records_from_layout, "convert_shard", watched)
    return watched


@pytest.mark.parametrize("packed", [False, True], ids=["tree", "archive"])
def test_a_stopped_run_goes_on_from_whole_shards_and_ends_in_the_same_bytes(
    packed, root, built, converted, tmp_path
):
    halves = (root, root)
    if packed:
        halves = shapenet_sample.packed(root, tmp_path / "archives", order=7)
    converted.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        _build(halves, tmp_path / "r")
    assert set(_bytes(tmp_path / "r")) == set(converted.names)
    assert not (tmp_path / "r" / "manifest.json").exists()
    (tmp_path / "r" / ".train-00001-of-00003.tfrecord.1.tmp").write_bytes(b"killed")
    (tmp_path / "r-work" / "spool").mkdir()
    (tmp_path / "r-work" / "spool" / "train-00001-of-00003.tfrecord.renderings").write_bytes(b"\1")

    converted.stop_at = None
    _build(halves, tmp_path / "r")
    assert sorted(converted.names) == sorted(_bytes(built))  # each of them once
    assert _bytes(tmp_path / "r") == _bytes(built)
    assert {p.name for p in (tmp_path / "r").iterdir()} == {p.name for p in built.iterdir()}

    manifest = (tmp_path / "r" / "manifest.json").read_bytes()
    converted.stop_at = len(converted.names)
    _build(halves, tmp_path / "r")
    assert (tmp_path / "r" / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize("change", ["shard", "missing", "note", "tree"])
def test_only_what_is_no_longer_so_is_made_again(change, mine, converted, tmp_path):
    _build((mine, mine), tmp_path / "r")
    before = _bytes(tmp_path / "r")
    converted.names.clear()
    path = tmp_path / "r" / "train-00001-of-00003.tfrecord"
    if change == "shard":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif change == "missing":
        path.unlink()
    elif change == "note":
        (tmp_path / "r-work" / "shards" / f"{path.name}.json").write_text("{}")
    else:
        view = layout.rendering_directory(mine, CHAIRS[2]) / "00.png"
        os.utime(view, ns=(1, 1))
    _build((mine, mine), tmp_path / "r")
    assert converted.names == [path.name]
    assert _bytes(tmp_path / "r") == before


OTHERS = {
    "name": ({"name": "cars"}, "name shapes", "name cars"),
    "views": ({"views": 2}, "views 3", "views 2"),
    "settings": ({"settings": {"categories": ["car"]}}, "categories none", "categories car"),
    "split": ({}, "split r2n2", "split mine"),
}


@pytest.mark.parametrize("stopped", [False, True], ids=["finished", "stopped"])
@pytest.mark.parametrize("other", OTHERS)
def test_other_records_in_the_output_are_left_alone(other, stopped, root, tmp_path, converted):
    config = dataclasses.replace(CONFIG, name="shapes", settings={"categories": []})
    converted.stop_at = 2 if stopped else None
    with pytest.raises(KeyboardInterrupt) if stopped else contextlib.nullcontext():
        _build((root, root), tmp_path / "r", config)
    converted.stop_at = None
    there = {path: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    changes, was, now = OTHERS[other]
    split = "r2n2"
    if other == "split":
        split = str(tmp_path / "list")
        sides = {"train": {CHAIRS[0].key: "a"}, "test": {CHAIRS[1].key: "b"}}
        splits.write_split_list(split, splits.SplitList("mine", sides))
    with pytest.raises(UserError, match=f"{was}.* than are asked for .*{now}.*another") as caught:
        _build((root, root), tmp_path / "r", dataclasses.replace(config, **changes), split=split)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in (tmp_path / "r").iterdir()} == there
    _build((root, root), tmp_path / "r", config)  # goes on as before
    assert not (tmp_path / "r" / "unfinished.json").exists()


def test_shards_of_somebody_else_and_sets_in_sub_directories_are_left_alone(root, built, tmp_path):
    (tmp_path / "r").mkdir()
    other = tmp_path / "r" / "train-00000-of-01024.tfrecord"
    other.write_bytes(b"of somebody else")
    with pytest.raises(UserError, match=r"holds train-00000-of-01024.tfrecord, which no manifest"):
        _build((root, root), tmp_path / "r")
    assert other.read_bytes() == b"of somebody else"
    shutil.copytree(built, tmp_path / "data" / "shapenet")
    with pytest.raises(UserError, match=r"data holds record sets in directories .* shapenet: ch"):
        _build((root, root), tmp_path / "data")


def test_an_object_name_in_two_categories_is_two_objects_on_their_own_sides(tmp_path):
    twice = [Model(CHAIR, "cb00"), Model(RIFLE, "cb00"), Model(RIFLE, "ca30")]
    root = shapenet_sample.make(tmp_path / "tree", twice)
    _build((root, root), tmp_path / "r")
    found = {
        side: [(o.category, o.object_id) for o in _objects(tmp_path / "r", side)]
        for side in ("train", "test")
    }
    assert found == {"train": [("chair", "cb00")], "test": [("rifle", "ca30"), ("rifle", "cb00")]}
    (report,) = integrity.verify([tmp_path / "r"])
    assert not report.faults


def test_an_object_that_was_restored_comes_back(mine, built, converted, tmp_path):
    view = layout.rendering_directory(mine, CHAIRS[2]) / "00.png"
    whole = view.read_bytes()
    view.write_bytes(whole[:-50])
    manifest = _build((mine, mine), tmp_path / "r")
    assert list(manifest.left_out) == [CHAIRS[2].key]
    converted.names.clear()
    assert _build((mine, mine), tmp_path / "r") == manifest
    assert converted.names == []
    view.write_bytes(whole)
    assert not _build((mine, mine), tmp_path / "r").left_out
    assert _bytes(tmp_path / "r") == _bytes(built)


def test_another_archive_is_not_taken_for_the_one_before(mine, root, built, tmp_path):
    shapenet_sample.write(mine, CHAIRS[0])
    view = layout.rendering_directory(mine, CHAIRS[0]) / "00.png"
    Image.new("RGBA", (SIZE, SIZE)).save(view)
    _build(shapenet_sample.packed(mine, tmp_path / "archives"), tmp_path / "r")
    assert _bytes(tmp_path / "r") != _bytes(built)
    halves = shapenet_sample.packed(root, tmp_path / "archives")
    with pytest.raises(UserError, match=r"other records \(sources .*another --output, or remove"):
        _build(halves, tmp_path / "r")
    # On its way it may get a better one: what is done of the other is not kept.
    (tmp_path / "r" / "manifest.json").replace(tmp_path / "r" / "unfinished.json")
    _build(halves, tmp_path / "r")
    assert _bytes(tmp_path / "r") == _bytes(built)


def test_two_conversions_do_not_share_a_directory(root, tmp_path):
    with records_from_layout.opened(root, root, tmp_path / "r-work"):
        with pytest.raises(UserError, match=r"another process writes to .*r-work"):
            _build((root, root), tmp_path / "r")


# --- Conventions ----------------------------------------------------------------------------------

# One unit long in x, short in the other axes, and without symmetry.
STEPS = (
    ((-8, -5, -4), (8, -3, 3)),
    ((-8, -3, -4), (-5, 5, 0)),
    ((2, -3, -4), (5, 0, -1)),
)


def _silhouette_ious(record):
    """IoU of the views' silhouettes with those of the record's own cells, one by one.

    A record does not say where its grid lies. The data set's meshes have their bounding boxes in
    the middle and diagonals of 1, and so must the occupied cells.
    """
    cells = np.argwhere(record.voxels)
    low, high = cells.min(0), cells.max(0) + 1
    side = 1 / np.linalg.norm(high - low)
    middles = (cells + 0.5 - (low + high) / 2) * side
    boxes = [(middle - side / 2, middle + side / 2) for middle in middles]
    renderer = render.Renderer(furniture.box_mesh(*boxes))
    for png, camera in zip(record.views, record.cameras):
        seen = np.array(Image.open(io.BytesIO(png)))[..., 3] > 127
        cast = renderer.render(camera, seen.shape[0])[..., 3] > 127
        yield (seen & cast).sum() / (seen | cast).sum()


def test_cells_and_cameras_of_a_record_give_the_silhouettes_of_its_views(tmp_path):
    boxes = [tuple(tuple(value / 16 for value in corner) for corner in box) for box in STEPS]
    corners = np.array(boxes)
    middle = (corners.min((0, 1)) + corners.max((0, 1))) / 2
    diagonal = np.linalg.norm(np.ptp(corners, axis=(0, 1)))
    mesh = furniture.box_mesh(
        *[tuple((corner - middle) / diagonal for corner in b) for b in corners]
    )
    model = CHAIRS[0]
    cameras = render.cameras(0, "steps", 6)
    renderer = render.Renderer(mesh)
    images = [renderer.render(camera, 137) for camera in cameras]
    layout.write_model(tmp_path, model, images, cameras, voxelize.voxelize(mesh.corners, 32))

    archives = shapenet_sample.packed(tmp_path, tmp_path / "archives")
    config = RecordsConfig("steps", views=6, image_size=137, voxel_size=32)
    _build(archives, tmp_path / "r", config)
    (record,) = _objects(tmp_path / "r", "train")
    ious = list(_silhouette_ious(record))
    assert len(ious) == 6 and min(ious) > 0.9
    for axis in range(3):
        turned = dataclasses.replace(record, voxels=np.flip(record.voxels, axis))
        assert np.mean(list(_silhouette_ious(turned))) < 0.85
    turned = dataclasses.replace(record, voxels=record.voxels.transpose(0, 2, 1))
    assert np.mean(list(_silhouette_ious(turned))) < 0.85
