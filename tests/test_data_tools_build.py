"""The whole way from a package to records, its commands, and the embedded demo set."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import furniture
import numpy as np
import pytest
from PIL import Image
from stderr import own_lines

from data_tools import categories, layout, mesh_set, open_set, splits, sweethome3d
from data_tools.open_set import OpenSetConfig
from tfjoint import errors, files, records

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "tfjoint" / "demo"
CONFIG = OpenSetConfig(
    name="mini",
    licences=("CC0",),
    image_size=20,
    smaller_sizes=(10,),
    views=2,
    copies=1,
    voxel_size=8,
    train_fraction=0.6,
    least_per_category=2,
    records_per_shard=3,
)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "furniture.deb"
    by = furniture.library_bytes(
        [furniture.chair("paid", 1, 1)], "Creative Commons Attribution 3.0"
    )
    furniture.write_package(path, {"Free.sh3f": furniture.library_bytes(), "By.sh3f": by})
    return path


@pytest.fixture(scope="module")
def source(package):
    return sweethome3d.Source(package, package.name, sweethome3d.source_sha256(package))


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    directory = tmp_path_factory.mktemp("built")
    open_set.build(CONFIG, source, directory / "work", directory / "records")
    return directory


def _bytes(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_doors_rugs_and_other_licences_are_left_out(built):
    grids = layout.tree(built / "work/layout", layout.VOXELS).list_grids()
    originals = [model for model in grids if model.copy_number == 0]
    assert [m.key for m in originals] == [
        "chair/free_low",
        "chair/free_tall",
        "chair/free_wide",
        "table/free_long",
        "table/free_narrow",
        "table/free_square",
        "table/free_twin",
    ]


def test_records_hold_every_object_once_and_copies_of_training_objects(built):
    train = records.RecordSet(built / "records", "train")
    test = records.RecordSet(built / "records", "test")
    originals = {o.object_id for o in train.objects if ".copy" not in o.object_id}
    tests = {o.object_id for o in test.objects}
    assert len(originals | tests) == 7 and not originals & tests
    assert {o.object_id for o in train.objects} - originals == {f"{o}.copy1" for o in originals}
    assert {o.category for o in train.objects} == {"chair", "table"}
    assert len(train.manifest.splits["train"]) > 1


def test_twins_share_a_source_and_a_side(built):
    split = splits.read_split_list(built / "records" / "split.json")
    sources = {**split.sides["train"], **split.sides["test"]}
    assert sources["table/free_square"] == sources["table/free_twin"] == "free_square"
    assert len(set(sources.values())) == 6


def test_the_manifest_says_where_everything_came_from(built, source):
    manifest = records.read_manifest(built / "records")
    assert manifest.sources == {"furniture.deb": source.sha256}
    assert manifest.settings["seed"] == 0 and manifest.settings["copies"] == 1
    assert (manifest.image_size, manifest.views, manifest.voxel_size) == (20, 2, 8)


def test_the_credits_name_every_creator_and_the_licence(built, source):
    text = (built / "records" / "CREDITS.md").read_text(encoding="utf-8")
    assert "publicdomain/zero" in text and source.sha256 in text
    assert "| free_low | Chair | René | CC0 |" in text
    assert text.count("René") == 7


def test_the_same_command_with_any_number_of_processes_gives_the_same_bytes(
    built, source, tmp_path
):
    open_set.build(CONFIG, source, tmp_path / "work", tmp_path / "records", processes=2)
    for name in ("records", "records-10", "work/layout", "work/layout-10"):
        assert _bytes(tmp_path / name) == _bytes(built / name)


def test_a_stopped_run_resumes_with_what_is_missing_and_ends_in_the_same_bytes(
    built, source, tmp_path, monkeypatch
):
    shutil.copytree(built / "work", tmp_path / "work")
    root = tmp_path / "work/layout"
    shutil.rmtree(layout.rendering_directory(root, layout.Model("chair", "free_low")))
    layout.voxel_file(root, layout.Model("table", "free_square")).unlink()
    rendered = []
    build_model = mesh_set.build_model
    monkeypatch.setattr(
        mesh_set,
        "build_model",
        lambda roots, config, job: (
            rendered.append((job.entry.model.name, job.copies)) or build_model(roots, config, job)
        ),
    )
    open_set.build(CONFIG, source, tmp_path / "work", tmp_path / "records")
    # What has no surface left nothing behind, so it is looked at again.
    assert rendered == [(name, (0,)) for name in ("free_low", "free_glow", "free_square")]
    assert _bytes(tmp_path / "records") == _bytes(built / "records")


def test_a_layout_of_other_settings_is_not_resumed(built, source, tmp_path):
    shutil.copytree(built / "work", tmp_path / "work")
    other = dataclasses.replace(CONFIG, image_size=24)
    with pytest.raises(
        errors.UserError, match=r"other settings .*image_size 20; now image_size 24.*--work_dir"
    ):
        open_set.build(other, source, tmp_path / "work", tmp_path / "records")


def test_a_library_without_a_wanted_licence_is_one_clear_error(source, tmp_path):
    other = dataclasses.replace(CONFIG, licences=("GPL",))
    with pytest.raises(errors.UserError, match=r"no model under GPL in By.sh3f, Free.sh3f"):
        open_set.build(other, source, tmp_path / "work", tmp_path / "records")


def test_a_split_list_of_other_data_is_one_clear_error(built, source, tmp_path):
    shutil.copytree(built / "work", tmp_path / "work")
    path = tmp_path / "split.json"
    for test, reason in (
        ("chair/free_tall", r"does not name 5 of 7 objects.*split_list=new"),
        ("chair/absent", r"names 1 objects that are not among .*, first chair/absent"),
    ):
        sides = {"train": {"chair/free_low": "a"}, "test": {test: "b"}}
        splits.write_split_list(path, splits.SplitList("x", sides))
        with pytest.raises(errors.UserError, match=reason):
            open_set.build(CONFIG, source, tmp_path / "work", tmp_path / "r", split_list=path)


def test_the_split_list_has_the_last_word_on_categories_and_on_what_is_dropped(source, tmp_path):
    names = ("free_low", "free_tall", "free_wide", "free_long", "free_narrow", "free_square")
    sides = {
        "train": {f"seat/{name}": name for name in names},
        "test": {"rug/free_carpet": "c", "table/free_twin": "t"},
    }
    listed = splits.SplitList("x", sides)
    libraries = sweethome3d.unpack(source.path, tmp_path)
    keys = {entry.model.key for entry in open_set.select(libraries, CONFIG, listed)}
    assert keys == {*sides["train"], *sides["test"], "other/free_glow"}


def test_a_smaller_size_shows_the_same_objects_from_the_same_cameras(built):
    for side in ("train", "test"):
        large, small = (records.RecordSet(built / n, side) for n in ("records", "records-10"))
        assert small.manifest.image_size == 10
        assert small.manifest.settings == large.manifest.settings
        assert [o[:3] for o in small.objects] == [o[:3] for o in large.objects]
        for index in range(len(large)):
            one, other = large.record(index), small.record(index)
            np.testing.assert_array_equal(one.voxels, other.voxels)
            np.testing.assert_array_equal(one.cameras, other.cameras)
            for png, smaller in zip(one.views, other.views):
                view = np.asarray(Image.open(io.BytesIO(png))).astype(float)[..., 3]
                halved = view.reshape(10, 2, 10, 2).mean((1, 3))
                found = np.asarray(Image.open(io.BytesIO(smaller)))[..., 3]
                np.testing.assert_allclose(found, halved, atol=1)


def test_what_was_skipped_is_written_down_with_the_reason(built):
    text = (built / "records" / mesh_set.SKIPPED).read_text(encoding="utf-8")
    assert json.loads(text) == {"other/free_glow": "no faces"}


@pytest.mark.parametrize(
    ("texts", "reason"),
    [(["137", "x"], "whole numbers"), ([], "whole numbers")],
)
def test_image_sizes_that_are_none_are_one_clear_error(texts, reason):
    with pytest.raises(errors.UserError, match=reason):
        mesh_set.read_sizes(texts)


@pytest.mark.parametrize("texts", [["68", "137"], ["68", "68"], ["68", "4"]])
def test_image_sizes_must_fall(texts):
    with pytest.raises(errors.UserError, match="fall from the largest"):
        dataclasses.replace(CONFIG, **mesh_set.read_sizes(texts))


def test_two_builds_do_not_work_in_one_directory(source, tmp_path):
    (tmp_path / "work").mkdir()
    with files.only_writer(tmp_path / "work"):
        with pytest.raises(errors.UserError, match="another process"):
            open_set.build(CONFIG, source, tmp_path / "work", tmp_path / "records")


def test_chairs_stand_upright_with_their_backs_to_minus_x(built):
    for side in ("train", "test"):
        opened = records.RecordSet(built / "records", side)
        for index in range(len(opened)):
            record = opened.record(index)
            if record.category == "chair":
                cells = np.argwhere(record.voxels)
                top = cells[cells[:, 1] == cells[:, 1].max()]
                assert top[:, 0].mean() < cells[:, 0].mean() - 0.5, record.object_id


# --- Commands -------------------------------------------------------------------------------------


def _run(module, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", f"data_tools.{module}", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def _assert_one_line(result, reason):
    lines = own_lines(result.stderr.strip())
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1 and re.search(reason, lines[0]), result.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--output"),
        (["--output=x", "--views=none"], "views"),
        (["--output=x", "--colour=red"], "colour"),
        (["--output=x", "stray"], "stray"),
        (["--output={0}/r", "--source={0}/absent"], "no source at .*absent"),
        (["--output={0}/r", "--source={1}"], "sha256"),
        (
            ["--output={0}/r", "--source={1}", "--source_sha256={2}", "--split_list={0}/no.json"],
            "no split list",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(
    arguments, reason, source, tmp_path
):
    filled = [a.format(tmp_path, source.path, source.sha256) for a in arguments]
    _assert_one_line(_run("build_open", *filled), reason)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--layout=x"], "--output"),
        (["--output={0}/r", "--views=0"], "views"),
        (["--output={0}/r"], "give --renderings and --voxels, or --layout alone"),
        (["--output={0}/r", "--layout=x", "--voxels=y"], "or --layout alone"),
        (["--output={0}/r", "--layout=x", "--work_dir={0}/r"], "--work_dir and --output are both"),
        (["--output={0}/r", "--layout={0}/absent"], "no ShapeNetRendering at .*absent"),
        (["--output={0}/r", "--layout={1}", "--split=no.json"], "no split list at no.json"),
    ],
)
def test_a_mistake_with_shapenet_is_one_line_and_exit_code_2(arguments, reason, built, tmp_path):
    filled = [a.format(tmp_path, built / "work" / "layout") for a in arguments]
    _assert_one_line(_run("build_shapenet", *filled), reason)


@pytest.mark.slow
def test_the_commands_build_check_and_rebuild(source, tmp_path):
    common = (f"--source={source.path}", f"--source_sha256={source.sha256}", "--split_list=new")
    flags = ("--image_sizes=16", "--views=1", "--copies=1", "--voxel_size=8", "--processes=2")
    result = _run("build_open", f"--output={tmp_path / 'r'}", *common, *flags)
    assert result.returncode == 0, result.stderr
    assert re.search(r"train: \d+ objects", result.stderr)

    result = _run("verify", f"--records={tmp_path / 'r'}")
    assert result.returncode == 0, result.stderr
    assert "16 pixels, grid 8" in result.stdout and "intact" in result.stdout

    # The layout alone, taken the way ShapeNet goes, gives the same shards.
    result = _run(
        "build_shapenet",
        f"--layout={tmp_path / 'r-work' / 'layout'}",
        f"--split={tmp_path / 'r' / 'split.json'}",
        f"--output={tmp_path / 'again'}",
        "--image_size=16",
        "--voxel_size=8",
        "--views=1",
        "--copies=1",
        "--processes=1",
    )
    assert result.returncode == 0, result.stderr
    first, again = (records.read_manifest(tmp_path / name).splits for name in ("r", "again"))
    assert first == again

    (shard,) = (tmp_path / "again").glob("test-*.tfrecord")
    shard.write_bytes(shard.read_bytes()[:-20])
    _assert_one_line(_run("verify", f"--records={tmp_path / 'again'}"), "ends inside its data")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: shutil.rmtree(d), "no record directory"),
        (lambda d: (d / "manifest.json").unlink(), r"has no manifest\.json"),
        (lambda d: (d / "manifest.json").write_text("{"), "is not a manifest"),
        (
            lambda d: (d / "manifest.json").write_text(
                (d / "manifest.json").read_text().replace('"schema": 1', '"schema": 7')
            ),
            "has schema 7",
        ),
        (lambda d: next(d.glob("train-*")).unlink(), "is missing"),
        (lambda d: next(d.glob("train-*")).write_bytes(b""), "is damaged"),
    ],
)
def test_records_that_do_not_match_their_manifest_are_one_line_and_exit_code_2(
    damage, reason, built, tmp_path, capsys
):
    directory = tmp_path / "records"
    shutil.copytree(built / "records", directory)
    damage(directory)
    with pytest.raises(SystemExit) as caught:
        errors.run_or_exit(lambda: records.RecordSet(directory, "train"))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(reason, line)


def test_help_answers_without_loading_tensorflow():
    for module in ("build_open", "build_meshes", "build_shapenet", "verify", "card"):
        code = f"import sys, data_tools.{module}; print('tensorflow' in sys.modules)"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert result.stdout == "False\n", result.stderr


def test_processes_that_render_do_not_load_tensorflow():
    modules = "open_set, mesh_folder, mesh_set, contact_sheet"
    code = f"import sys; from data_tools import {modules}; print('tensorflow' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.stdout == "False\n", result.stderr


# --- The embedded demo set ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    return {side: records.RecordSet(DEMO, side) for side in ("train", "test")}


def test_the_demo_set_is_whole_and_small(demo):
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 8_000_000
    manifest = demo["train"].manifest
    assert (manifest.name, manifest.image_size, manifest.voxel_size) == ("open-demo", 68, 32)
    assert manifest.sources == {sweethome3d.PACKAGE_FILE: sweethome3d.PACKAGE_SHA256}


def test_no_source_of_the_demo_set_lies_on_both_sides(demo):
    train, test = ({o.source for o in demo[side].objects} for side in ("train", "test"))
    assert len(train) > 100 and len(test) > 30
    assert not train & test


def test_the_demo_set_was_made_with_the_committed_split_list(demo):
    path = ROOT / "data_tools" / "open-demo.json"
    assert demo["train"].manifest.split_sha256 == splits.split_sha256(path)
    split = splits.read_split_list(path)
    assert {f"{o.category}/{o.object_id}" for o in demo["test"].objects} == set(split.sides["test"])
    originals = {f"{o.category}/{o.object_id.partition('.copy')[0]}" for o in demo["train"].objects}
    assert originals == set(split.sides["train"])


def test_every_object_of_the_demo_set_is_credited(demo):
    text = (DEMO / "CREDITS.md").read_text(encoding="utf-8")
    for side in demo.values():
        for found in side.objects:
            assert f"| {found.object_id.partition('.copy')[0]} |" in text
    assert "CC-BY" not in text


def test_the_settings_of_the_demo_set_are_those_of_its_preset(demo):
    stored = demo["train"].manifest.settings
    preset = open_set.PRESETS["demo"].settings()
    assert {**stored, "licences": tuple(stored["licences"])} == preset
    digests = {hashlib.sha256(p.read_bytes()).hexdigest() for p in DEMO.glob("*.tfrecord")}
    shards = [shard for shards in demo["train"].manifest.splits.values() for shard in shards]
    assert digests == {shard.sha256 for shard in shards}


# --- The whole open set ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_list():
    return splits.read_split_list(ROOT / "data_tools" / "open.json")


def test_the_committed_list_of_the_whole_set_is_large_and_divided_four_to_one(open_list):
    train, test = (open_list.sides[side] for side in ("train", "test"))
    assert len(train) + len(test) > 725
    assert len(test) / (len(train) + len(test)) == pytest.approx(0.2, abs=0.02)
    preset = open_set.PRESETS["full"]
    assert open_list.name == preset.name
    for name, value in open_list.settings.items():
        assert getattr(preset, name) == value


def test_every_category_of_the_whole_set_has_objects_on_both_sides(open_list):
    train, test = (
        Counter(key.partition("/")[0] for key in open_list.sides[side])
        for side in ("train", "test")
    )
    assert set(train) == set(test)
    for category in train:
        count = train[category] + test[category]
        assert count >= open_set.PRESETS["full"].least_per_category
        assert test[category] == pytest.approx(0.2 * count, abs=2), category
    assert (train + test)[categories.OTHER] < 0.1 * sum((train + test).values())


def test_the_categories_of_the_whole_set_are_those_of_the_map(open_list):
    """Checked by the names that the credits of the demo set give."""
    credits = (DEMO / "CREDITS.md").read_text(encoding="utf-8")
    names = dict(re.findall(r"^\| (blendswap-\S+) \| (.+?) \| .+ \| CC0 \|$", credits, re.M))
    assert len(names) == 171
    listed = {
        key.partition("/")[2]: key.partition("/")[0] for s in open_list.sides.values() for key in s
    }
    for object_id, name in names.items():
        assert listed[object_id] == categories.category_of(name), name
