"""The whole way from a package to records, its commands, and the embedded demo set."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import furniture
import numpy as np
import pytest

from data_tools import layout, open_set, splits, sweethome3d
from data_tools.open_set import OpenSetConfig
from tfjoint import errors, records

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "tfjoint" / "demo"
CONFIG = OpenSetConfig(
    name="mini",
    image_size=20,
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
    assert _bytes(tmp_path / "records") == _bytes(built / "records")
    assert _bytes(tmp_path / "work/layout") == _bytes(built / "work/layout")


def test_a_stopped_run_resumes_with_what_is_missing_and_ends_in_the_same_bytes(
    built, source, tmp_path, monkeypatch
):
    shutil.copytree(built / "work", tmp_path / "work")
    root = tmp_path / "work/layout"
    shutil.rmtree(layout.rendering_directory(root, layout.Model("chair", "free_low")))
    layout.voxel_file(root, layout.Model("table", "free_square")).unlink()
    rendered = []
    build_model = open_set.build_model
    monkeypatch.setattr(
        open_set,
        "build_model",
        lambda root, config, job: (
            rendered.append(job[0].model.name) or build_model(root, config, job)
        ),
    )
    open_set.build(CONFIG, source, tmp_path / "work", tmp_path / "records")
    # What has no surface left nothing behind, so it is looked at again.
    assert rendered == ["free_low", "free_glow", "free_square"]
    assert _bytes(tmp_path / "records") == _bytes(built / "records")


def test_a_layout_of_other_settings_is_not_resumed(built, source, tmp_path):
    shutil.copytree(built / "work", tmp_path / "work")
    other = open_set.dataclasses.replace(CONFIG, image_size=24)
    with pytest.raises(errors.UserError, match=r"other settings .*image_size 20.*--work_dir"):
        open_set.build(other, source, tmp_path / "work", tmp_path / "records")


def test_a_library_without_a_wanted_licence_is_one_clear_error(source, tmp_path):
    other = open_set.dataclasses.replace(CONFIG, licences=("GPL",))
    with pytest.raises(errors.UserError, match=r"no model under GPL in By.sh3f, Free.sh3f"):
        open_set.build(other, source, tmp_path / "work", tmp_path / "records")


def test_a_split_list_of_other_data_is_one_clear_error(built, source, tmp_path):
    sides = {"train": {"chair/free_low": "a"}, "test": {"chair/free_tall": "b"}}
    splits.write_split_list(tmp_path / "split.json", splits.SplitList("x", sides))
    shutil.copytree(built / "work", tmp_path / "work")
    with pytest.raises(errors.UserError, match=r"does not name 5 of 7 objects.*split_list=new"):
        open_set.build(
            CONFIG, source, tmp_path / "work", tmp_path / "r", split_list=tmp_path / "split.json"
        )


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
    lines = result.stderr.strip().splitlines()
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
    _assert_one_line(_run("build_demo", *filled), reason)


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
    flags = ("--image_size=16", "--views=1", "--copies=1", "--voxel_size=8", "--processes=2")
    result = _run("build_demo", f"--output={tmp_path / 'r'}", *common, *flags)
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
    for module in ("build_demo", "build_shapenet", "verify"):
        code = f"import sys, data_tools.{module}; print('tensorflow' in sys.modules)"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert result.stdout == "False\n", result.stderr


def test_processes_that_render_do_not_load_tensorflow():
    code = "import sys, data_tools.open_set; print('tensorflow' in sys.modules)"
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


def test_the_settings_of_the_demo_set_are_the_defaults_of_the_command(demo):
    stored = demo["train"].manifest.settings
    defaults = open_set.dataclasses.asdict(OpenSetConfig())
    assert {**stored, "licences": tuple(stored["licences"])} == defaults
    digests = {hashlib.sha256(p.read_bytes()).hexdigest() for p in DEMO.glob("*.tfrecord")}
    shards = [shard for shards in demo["train"].manifest.splits.values() for shard in shards]
    assert digests == {shard.sha256 for shard in shards}
