"""Fetching, checking and reading furniture libraries."""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile

import furniture
import numpy as np
import pytest

from data_tools import categories, sweethome3d
from tfjoint.errors import UserError


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "furniture.deb"
    furniture.write_package(path, {"One.sh3f": furniture.library_bytes()})
    return path


@pytest.fixture(scope="module")
def library(package, tmp_path_factory):
    return sweethome3d.unpack(package, tmp_path_factory.mktemp("libraries"))[0]


def test_properties_know_comments_escapes_and_continued_lines():
    text = "# no=1\n! no=2\n\nname#1 = Caf\\u00e9 \\: table\nlong=a\\\n   b=c\n"
    assert sweethome3d.parse_properties(text) == {"name#1": "Café : table", "long": "ab=c"}


def test_a_package_gives_the_libraries_byte_for_byte(package, tmp_path):
    (library,) = sweethome3d.unpack(package, tmp_path)
    assert library.name == "One.sh3f"
    assert library.read_bytes() == furniture.library_bytes()


def test_a_zip_a_directory_and_a_library_give_the_same_as_the_package(package, library, tmp_path):
    with zipfile.ZipFile(tmp_path / "upstream.zip", "w") as archive:
        archive.write(library, "some/folder/One.sh3f")
        archive.writestr("README", "text")
    expected = library.read_bytes()
    for source in (tmp_path / "upstream.zip", library.parent, library):
        (found,) = sweethome3d.unpack(source, tmp_path / "out")
        assert found.read_bytes() == expected


def test_the_catalogue_holds_name_creator_licence_and_rotation(tmp_path):
    turned = furniture.chair("turned", 1, 1)._replace(extra="modelRotation##=0 0 1 0 1 0 -1 0 0\n")
    path = tmp_path / "Two.sh3f"
    path.write_bytes(furniture.library_bytes([turned, furniture.PIECES[7]]))
    first, second = sweethome3d.read_catalogue(path)
    assert first.object_id == "two_turned"
    assert (first.name, first.creator, first.licence) == ("Chair", "René", "CC0")
    np.testing.assert_array_equal(
        sweethome3d.catalogue_matrix(first), [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    )
    np.testing.assert_array_equal(sweethome3d.catalogue_matrix(second), np.eye(3))
    assert second.door_or_window and not first.door_or_window


@pytest.mark.parametrize(
    ("words", "licence"),
    [
        ("Public domain", "CC0"),
        ("Creative Commons Attribution 3.0 Unported license © Somebody", "CC-BY-3.0"),
        ("All rights reserved", "All rights reserved"),
        ("", ""),
    ],
)
def test_licences_are_recognised_and_others_kept_as_they_are(words, licence, tmp_path):
    path = tmp_path / "L.sh3f"
    path.write_bytes(furniture.library_bytes(licence=words))
    assert {model.licence for model in sweethome3d.read_catalogue(path)} == {licence}


def test_the_files_of_a_model_are_those_of_its_folder(library):
    assert set(sweethome3d.read_folder(library, "test/low/low.obj")) == {"low.obj", "m.mtl"}


def test_a_source_with_another_digest_is_refused(package, tmp_path):
    with pytest.raises(UserError, match=r"sha256 .* expected 3ccb90c63f95"):
        sweethome3d.fetch(str(package), None, tmp_path)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    source = sweethome3d.fetch(str(package), digest, tmp_path)
    assert source == (package, "furniture.deb", digest)


def test_a_url_is_downloaded_once_and_checked(package, tmp_path):
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    url = package.as_uri()
    first = sweethome3d.fetch(url, digest, tmp_path)
    assert first.path.read_bytes() == package.read_bytes()
    first.path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="remove it and fetch it again"):
        sweethome3d.fetch(url, digest, tmp_path)


def test_a_url_that_leads_nowhere_is_one_clear_error(tmp_path):
    url = (tmp_path / "absent.deb").as_uri()
    with pytest.raises(UserError, match=r"cannot download .*absent.deb"):
        sweethome3d.fetch(url, None, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_the_digest_of_a_directory_is_that_of_its_list_of_digests(library, tmp_path):
    (tmp_path / "b.sh3f").write_bytes(b"b")
    (tmp_path / "a.sh3f").write_bytes(b"a")
    (tmp_path / "readme.txt").write_bytes(b"ignored")
    lines = "".join(f"{hashlib.sha256(x.encode()).hexdigest()}  {x}.sh3f\n" for x in "ab")
    assert sweethome3d.source_sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()


def test_without_a_source_the_package_manager_is_asked(package, tmp_path, monkeypatch):
    def download(command, cwd, **_):
        assert command == ["apt-get", "download", "sweethome3d-furniture=1.8-1"]
        shutil.copy(package, cwd)

    monkeypatch.setattr(sweethome3d.subprocess, "run", download)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    source = sweethome3d.fetch(None, digest, tmp_path / "download")
    assert source.path.read_bytes() == package.read_bytes()


def test_a_machine_without_the_package_manager_is_told_of_source(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--source"):
        sweethome3d.fetch(None, None, tmp_path / "download")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"!<arch>\n", "no data.tar inside"),
        (b"!<arch>\n" + b"x" * 60, "cannot be unpacked"),
        (b"neither zip nor ar", "cannot be unpacked"),
    ],
)
def test_a_damaged_archive_is_one_clear_error(content, reason, tmp_path):
    path = tmp_path / "bad.deb"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        sweethome3d.unpack(path, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_truncated_package_is_one_clear_error(package, tmp_path):
    path = tmp_path / "short.deb"
    path.write_bytes(package.read_bytes()[:-500])
    with pytest.raises(UserError, match="cannot be unpacked"):
        sweethome3d.unpack(path, tmp_path / "out")


def test_sources_without_libraries_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no .sh3f library"):
        sweethome3d.unpack(tmp_path / "empty", tmp_path)
    with pytest.raises(UserError, match="no source at"):
        sweethome3d.fetch(str(tmp_path / "absent"), None, tmp_path)


def test_damaged_libraries_are_refused(library, tmp_path):
    path = tmp_path / "bad.sh3f"
    path.write_bytes(b"not a zip")
    with pytest.raises(UserError, match="is not a furniture library"):
        sweethome3d.read_catalogue(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other", "")
    with pytest.raises(UserError, match="holds no PluginFurnitureCatalog"):
        sweethome3d.read_catalogue(path)
    with pytest.raises(UserError, match=r"holds no test/absent/absent\.obj"):
        sweethome3d.read_folder(library, "test/absent/absent.obj")


@pytest.mark.parametrize("kind", ["package", "library"])
def test_flipped_bytes_inside_are_one_clear_error(kind, package, library, tmp_path):
    original = {"package": package, "library": library}[kind]
    before_damage = {"package": b"\xfd7zXZ", "library": b"v -1.0"}[kind]
    data = bytearray(original.read_bytes())
    at = data.index(before_damage) + 60
    data[at : at + 8] = b"\x00\xff" * 4
    damaged = tmp_path / original.name
    damaged.write_bytes(data)
    with pytest.raises(UserError, match="fetch it again") as caught:
        library = sweethome3d.unpack(damaged, tmp_path / "out")[0]
        sweethome3d.read_folder(library, "test/low/low.obj")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "lines", ["modelRotation##=1 0 0\n", "modelRotation##=a b c d e f g h i\n"]
)
def test_a_damaged_catalogue_is_refused(lines, tmp_path):
    path = tmp_path / "bad.sh3f"
    path.write_bytes(furniture.library_bytes([furniture.PIECES[0]._replace(extra=lines)]))
    with pytest.raises(UserError, match="its catalogue is damaged"):
        sweethome3d.read_catalogue(path)


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("Coffee table", "table"),
        ("Table with tablecloth", "table"),
        ("Winchester armchair", "chair"),
        ("Chair with cushion", "chair"),
        ("Bedside table", "cabinet"),
        ("Upper shelves cabinet", "cabinet"),
        ("Oriental rug", categories.DROPPED),
        ("Shower door", categories.DROPPED),
        ("Cup cake", "food"),
        ("Coffee cup", "kitchenware"),
        ("Plate, glasses and cutlery", "kitchenware"),
        ("Rounded type A plug", "switch"),
        ("Socket", "clothing"),
        ("Wall socket", "switch"),
        ("Indoor bike", "sport"),
        ("Bill 10€", categories.DROPPED),
        ("Rail crossing", categories.OTHER),
        ("", categories.OTHER),
    ],
)
def test_catalogue_names_have_readable_categories(name, category):
    assert categories.category_of(name) == category


def test_a_word_belongs_to_one_category_only():
    words = [word for words in categories._WORDS.values() for word in words.split()]
    assert len(words) == len(set(words))


def test_a_name_is_listed_once_and_only_where_its_last_word_says_something_else():
    names = [name for found in categories._NAMES.values() for name in found]
    assert len(names) == len(set(names))
    for category, found in categories._NAMES.items():
        for name in found:
            last = re.sub(r" (with|and|on) .*", "", name.lower()).split()[-1].strip(",")
            assert categories._CATEGORY_OF_WORD.get(last, categories.OTHER) != category, name


def test_small_categories_become_other():
    found = {"a": "chair", "b": "chair", "c": "rock"}
    assert categories.merge_small(found, 2) == {"a": "chair", "b": "chair", "c": "other"}
