"""Files and directories that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import pytest

from tfjoint import files
from tfjoint.errors import UserError


def contents(directory: Path) -> dict[str, str | None]:
    """Everything below a directory: the text of its files, None for a directory."""
    paths = sorted(directory.rglob("*"))
    return {str(p.relative_to(directory)): p.read_text() if p.is_file() else None for p in paths}


def write(path: Path, text: str, as_directory: bool) -> None:
    if as_directory:
        path.mkdir()
        path = path / "inner"
    path.write_text(text)


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("old", [None, False, True])
def test_success_replaces_what_was_there_and_leaves_nothing_else(tmp_path, old, new):
    target = tmp_path / "deep" / "target"
    if old is not None:
        target.parent.mkdir()
        write(target, "old", as_directory=old)
    with files.replacing(target) as temporary:
        write(temporary, "new", as_directory=new)
        assert temporary.parent == target.parent  # a rename must not cross file systems
    expected = {"target": None, "target/inner": "new"} if new else {"target": "new"}
    assert contents(target.parent) == expected


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_a_failing_block_leaves_what_was_there_and_nothing_else(tmp_path, old, new):
    target = tmp_path / "target"
    write(target, "old", as_directory=old)
    before = contents(tmp_path)
    with pytest.raises(ZeroDivisionError), files.replacing(target) as temporary:
        write(temporary, "new", as_directory=new)
        raise ZeroDivisionError
    assert contents(tmp_path) == before


def test_a_full_disk_is_told_by_the_name_of_the_file(tmp_path):
    target = tmp_path / "target"
    for name in (None, "temporary"):
        with pytest.raises(OSError) as caught, files.replacing(target) as temporary:
            raise OSError(errno.ENOSPC, "No space left", name and str(temporary))
        assert str(caught.value).endswith(f"No space left: {str(target)!r}")
    with pytest.raises(OSError) as caught, files.replacing(target):
        raise OSError(errno.ECONNREFUSED, "Connection refused")  # of something else
    assert caught.value.filename is None


def test_a_block_that_writes_nothing_fails_and_leaves_what_was_there(tmp_path):
    target = tmp_path / "target"
    write(target, "old", as_directory=False)
    with pytest.raises(FileNotFoundError), files.replacing(target):
        pass
    assert contents(tmp_path) == {"target": "old"}


@pytest.mark.parametrize("as_directory", [False, True])
def test_until_the_block_ends_the_target_is_untouched(tmp_path, as_directory):
    target = tmp_path / "target"
    write(target, "old", as_directory)
    before = contents(tmp_path)
    with files.replacing(target) as temporary:
        write(temporary, "new", as_directory)
        seen = {k: v for k, v in contents(tmp_path).items() if not k.startswith(temporary.name)}
        assert seen == before


@pytest.mark.parametrize("as_directory", [False, True])
def test_two_writers_at_once_share_no_temporary_name_and_the_last_one_stays(tmp_path, as_directory):
    target = tmp_path / "target"
    with files.replacing(target) as late:
        write(late, "late", as_directory)
        with files.replacing(target) as early:
            write(early, "early", as_directory)
        name = "target/inner" if as_directory else "target"
        assert contents(tmp_path)[name] == "early"
    assert contents(tmp_path)[name] == "late"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_temporary_name_is_told_from_others(tmp_path):
    with files.replacing(tmp_path / "config.json") as temporary:
        assert files.is_temporary(temporary)
        temporary.touch()
    for name in ("config.json", ".config.json", "config.tmp", "events.tmp"):
        assert not files.is_temporary(tmp_path / name)


def test_json_is_indented_and_in_a_stable_order(tmp_path):
    path = tmp_path / "value.json"
    value = {"b": [1, 2.5, None], "a": {"z": "\u00e9", "y": True}}
    files.write_json(path, value)
    text = path.read_text()
    assert json.loads(text) == value
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n") and "\n " in text
    files.write_json(path, dict(reversed(value.items())))
    assert path.read_text() == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_what_is_no_json_is_refused_and_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "value.json"
    files.write_json(path, 1)
    with pytest.raises((ValueError, TypeError)):
        files.write_json(path, {"value": value})
    assert contents(tmp_path) == {"value.json": "1\n"}


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1])
def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path, size):
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert files.sha256(path) == hashlib.sha256(data).hexdigest()


def test_a_directory_has_one_writer_at_a_time(tmp_path):
    with files.only_writer(tmp_path):
        with pytest.raises(UserError, match=r"another process writes to .*wait for its end"):
            with files.only_writer(tmp_path):
                pass
        (tmp_path / "written").touch()
    with files.only_writer(tmp_path):
        assert (tmp_path / "written").is_file()
