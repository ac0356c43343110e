"""The command `tfjoint` as a user gives it."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path

import exports
import numpy as np
import pytest
import runs
from PIL import Image

from tfjoint import __version__, binvox, bitstream, coding, command, gallery
from tfjoint.codec import Codec

pytest_plugins = ("trained",)

COMMAND = [sys.executable, "-m", "tfjoint"]
PARTS = ("compress", "decompress", "reconstruct", "info", "view")


@pytest.fixture(scope="module")
def models(data, tmp_path_factory) -> dict[str, str]:
    """The directory of exports of some systems, by name."""
    return {
        name: str(exports.make(name, data, tmp_path_factory.mktemp("exports")).path.parent)
        for name in ("direct", "compression", "implicit", "reconstruction")
    }


@pytest.fixture
def photos(tmp_path) -> list[str]:
    """Three photos of another shape than views: a box on black."""
    names = []
    for number, suffix in enumerate((".png", ".jpg", ".webp"), start=1):
        pixels = np.zeros((60, 90, 3), np.uint8)
        pixels[15:45, 30:60] = (200, 40 * number, 90)
        names.append(str(tmp_path / f"view-{number}{suffix}"))
        Image.fromarray(pixels).save(names[-1])
    return names


@pytest.fixture
def coder():
    try:
        return coding.range_coder()
    except coding.CodingError as error:
        pytest.skip(str(error))


def call(*arguments: object) -> None:
    """The command in this process; a mistake ends in SystemExit."""
    command.main([str(argument) for argument in arguments])


def mistake(capsys, *arguments: object) -> str:
    """The one line that a command ends in, which exits with 2."""
    with pytest.raises(SystemExit) as ended:
        call(*arguments)
    assert ended.value.code == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    return line


def compressed(models, photos, output: Path, *arguments: object, name: str = "direct") -> bytes:
    call("compress", *photos, "-o", output, "--model", models[name], *arguments)
    return output.read_bytes()


# --- Compress -------------------------------------------------------------------------------------


def test_photos_become_the_codes_of_their_views(models, photos, tmp_path, capsys):
    data = compressed(models, photos, tmp_path / "object.tfj")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{photos[0]}: 90 x 60, cropped to 60 x 60, resized to 32 x 32"
    assert [line.partition(":")[0] for line in lines[1:3]] == photos[1:]
    size = 17 + 3 * 4 * 64 // 8  # 3 views, 4 iterations of 64 bits
    assert len(data) == size
    raw = 3 * 32 * 32 * 3
    assert f"{size} bytes, raw; 3 views, T = 4, 96:1 nominal, {raw / size:.4g}:1 real" in lines[3]

    codec = Codec(models["direct"])
    images = [
        Image.open(name).convert("RGB").crop((15, 0, 75, 60)).resize((32, 32), Image.LANCZOS)
        for name in photos
    ]
    views = np.stack([np.asarray(image, np.float32) / 255 for image in images])
    assert codec.read(data) == codec.encode(views, 4)


@pytest.mark.parametrize(
    ("arguments", "iterations"),
    [
        (["--rate=384"], 1),
        (["--rate", "100"], 3),
        (["--rate=192:1"], 2),
        (["--iterations=2"], 2),
        (["--iterations=6"], 6),  # more than in training
        (["--max-bytes=65"], 2),  # 17 + 2 iterations of 3 x 8 bytes
        (["--max-bytes=88"], 2),
        (["--max-bytes=89"], 3),
    ],
)
def test_rate_iterations_and_most_bytes_choose_the_length(
    models, photos, tmp_path, arguments, iterations
):
    data = compressed(models, photos, tmp_path / "object.tfj", *arguments)
    assert bitstream.inspect(data).iterations == iterations
    assert len(data) == 17 + 24 * iterations


def test_more_iterations_than_in_training_are_made_with_a_line_that_says_so(
    models, photos, tmp_path, capsys
):
    said = "T = 6 is more than the model was trained for, 1 to 4: "
    compressed(models, photos, tmp_path / "a.tfj", "--iterations=6")
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith(said)]
    compressed(models, photos, tmp_path / "a.tfj", "--iterations=4")
    assert "more than" not in capsys.readouterr().err
    output = ["-o", tmp_path / "a.npz", "--model", models["direct"]]
    call("reconstruct", *photos, *output, "--iterations=6")
    assert said in capsys.readouterr().err


def test_one_view_is_not_said_to_be_several(models, photos, tmp_path, capsys):
    compressed(models, photos[:1], tmp_path / "a.tfj")
    call("decompress", tmp_path / "a.tfj", "-o", tmp_path / "v", "--model", models["direct"])
    call("reconstruct", photos[0], "-o", tmp_path / "a.npz", "--model", models["direct"])
    said = capsys.readouterr().err
    assert "; 1 view, " in said and ": 1 view of 32 x 32" in said and ", from 1 view\n" in said


def test_with_tables_the_file_is_smaller_and_gives_the_same(models, photos, tmp_path, coder):
    raw = compressed(models, photos, tmp_path / "raw.tfj")
    coded = compressed(models, photos, tmp_path / "coded.tfj", "--coding=table")
    assert len(coded) < len(raw) and bitstream.inspect(coded).coding == "table"
    codec = Codec(models["direct"])
    assert codec.read(coded) == codec.read(raw)


def test_packets_hold_the_views_of_the_file(models, photos, tmp_path):
    data = compressed(models, photos, tmp_path / "a.tfj", "--packets", tmp_path / "packets")
    codes = Codec(models["direct"]).read(data)
    names = ["view-1.packet", "view-2.packet", "view-3.packet"]
    assert sorted(path.name for path in (tmp_path / "packets").iterdir()) == names
    packets = [
        bitstream.decode_packet((tmp_path / "packets" / name).read_bytes(), codes.source)
        for name in names
    ]
    assert bitstream.join(packets) == codes
    assert [packet.last for packet in packets] == [False, False, True]


@pytest.mark.parametrize("coding", ["raw", "table"])
def test_packets_that_arrived_become_a_shape(models, photos, tmp_path, request, coding):
    if coding == "table":
        request.getfixturevalue("coder")
    model = ["--model", models["direct"]]
    packets = [tmp_path / f"view-{number}.packet" for number in (1, 2, 3)]
    compressed(models, photos, tmp_path / "a.tfj", "--packets", tmp_path, f"--coding={coding}")
    call("reconstruct", *reversed(packets), "-o", tmp_path / "all.npz", *model)
    call("reconstruct", tmp_path / "a.tfj", "-o", tmp_path / "file.npz", *model)
    call("reconstruct", packets[0], packets[2], "-o", tmp_path / "two.npz", *model)
    call("compress", photos[0], photos[2], "-o", tmp_path / "b.tfj", *model)
    call("reconstruct", tmp_path / "b.tfj", "-o", tmp_path / "those.npz", *model)
    shapes = {
        name: gallery.read_gallery(tmp_path / f"{name}.npz").occupancy
        for name in ("all", "file", "two", "those")
    }
    np.testing.assert_array_equal(shapes["all"], shapes["file"])
    np.testing.assert_allclose(shapes["two"], shapes["those"], atol=1e-6)
    assert not np.array_equal(shapes["all"], shapes["two"])


def test_packets_that_cannot_be_a_shape_are_one_line(models, photos, tmp_path, capsys):
    model = ["--model", models["direct"]]
    packets = [tmp_path / f"view-{number}.packet" for number in (1, 2, 3)]
    compressed(models, photos, tmp_path / "a.tfj", "--packets", tmp_path)
    damaged = bytearray(packets[1].read_bytes())
    damaged[7] ^= 1
    (tmp_path / "bad.packet").write_bytes(damaged)
    (tmp_path / "none.packet").touch()
    other = bitstream.decode_packet(packets[0].read_bytes(), Codec(models["direct"]).source())
    (tmp_path / "other.packet").write_bytes(
        bitstream.encode_packet(other._replace(object_number=7))
    )
    cases = {
        "bad.packet: damaged or not from": [tmp_path / "bad.packet", *model],
        "none.packet: a packet has at least": [packets[0], tmp_path / "none.packet", *model],
        "are of two objects: give packets of one": [*packets, tmp_path / "other.packet", *model],
        "no file at": [packets[0], tmp_path / "missing.packet", *model],
        "or packets, or photos, not several": [packets[0], photos[0], *model],
        "not from": [packets[0], "--model", models["implicit"]],
    }
    for words, arguments in cases.items():
        line = mistake(capsys, "reconstruct", *arguments, "-o", tmp_path / "shape.npz")
        assert words in line, line
    assert not (tmp_path / "shape.npz").exists()


def test_the_codec_alone_keeps_the_size_of_photos(models, photos, tmp_path):
    data = compressed(models, photos[:1], tmp_path / "a.tfj", "--fit=pad", name="compression")
    source = bitstream.inspect(data).source
    assert (source.height, source.width) == (64, 96)


def test_quiet_says_nothing(models, photos, tmp_path, capsys):
    compressed(models, photos, tmp_path / "a.tfj", "-q")
    assert capsys.readouterr() == ("", "")


def test_the_background_shows_behind_what_is_transparent(models, tmp_path, capsys):
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (32, 32), (18, 52, 86)).save(tmp_path / "plain.png")
    data = [
        compressed(models, [tmp_path / name], tmp_path / "a.tfj", "--background=#123456")
        for name in ("clear.png", "plain.png")
    ]
    assert data[0] == data[1]
    assert "alpha over #123456" in capsys.readouterr().err


# --- Decompress and reconstruct -------------------------------------------------------------------


def test_views_come_back_as_pictures(models, photos, tmp_path):
    data = compressed(models, photos, tmp_path / "a.tfj")
    model = ["--model", models["direct"]]
    call("decompress", tmp_path / "a.tfj", "-o", tmp_path / "views", *model)
    call("decompress", tmp_path / "a.tfj", "-o", tmp_path / "v" / "a-%02d.png", *model)
    codec = Codec(models["direct"])
    expected = np.round(codec.decode(codec.read(data))[:, -1] * 255)
    for number in (1, 2, 3):
        found = np.asarray(Image.open(tmp_path / "views" / f"view-{number}.png"))
        np.testing.assert_array_equal(found, expected[number - 1])
        again = tmp_path / "v" / f"a-0{number}.png"
        assert again.read_bytes() == (tmp_path / "views" / f"view-{number}.png").read_bytes()


def test_one_view_is_written_to_the_file_that_is_named(models, photos, tmp_path, capsys):
    compressed(models, photos, tmp_path / "a.tfj")
    model = ["--model", models["direct"]]
    call("decompress", tmp_path / "a.tfj", "-o", tmp_path / "views", *model)
    call("decompress", tmp_path / "a.tfj", "-o", tmp_path / "a.png", "--views=1", *model)
    expected = (tmp_path / "views" / "view-1.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == expected
    line = mistake(capsys, "decompress", tmp_path / "a.tfj", "-o", tmp_path / "b.png", *model)
    assert "b.png is one file, and there are 3 views: give -o the name of a directory" in line
    assert not (tmp_path / "b.png").exists()


def test_the_first_views_and_iterations_alone_come_back(models, photos, tmp_path):
    data = compressed(models, photos, tmp_path / "a.tfj")
    model = ["--model", models["direct"]]
    arguments = ["--views=1", "--iterations=2", *model]
    call("decompress", tmp_path / "a.tfj", "-o", tmp_path / "views", *arguments)
    assert [path.name for path in (tmp_path / "views").iterdir()] == ["view-1.png"]
    codec = Codec(models["direct"])
    part = codec.read(data).first(views=1, iterations=2)
    expected = np.round(codec.decode(part)[0, -1] * 255)
    found = np.asarray(Image.open(tmp_path / "views" / "view-1.png"))
    np.testing.assert_array_equal(found, expected)

    call("reconstruct", tmp_path / "a.tfj", "-o", tmp_path / "a.npz", *arguments)
    shape = gallery.read_gallery(tmp_path / "a.npz").occupancy.reshape(32, 32, 32)
    np.testing.assert_allclose(shape, codec.reconstruct(part), atol=1e-6)


def test_a_rate_that_the_codes_do_not_reach_is_refused_as_a_rate(models, photos, tmp_path, capsys):
    compressed(models, photos, tmp_path / "a.tfj", "--iterations=2")
    config = Codec(models["direct"]).config
    rate = f"--rate={config.rate(3):g}"
    output = ["-o", tmp_path / "a.obj", "--model", models["direct"]]
    line = mistake(capsys, "reconstruct", tmp_path / "a.tfj", rate, *output)
    assert f"the codes end at T = 2, {config.rate(2):.4g}:1. Received: {rate}" in line


def test_a_shape_without_a_cell_is_said(models, photos, tmp_path, capsys):
    output = ["-o", tmp_path / "a.obj", "--model", models["direct"]]
    call("reconstruct", *photos, *output, "--threshold=1")
    assert "0 of 32768 cells occupied" in (said := capsys.readouterr().err)
    assert "no cell is as probable as 1: try a lower --threshold" in said


@pytest.mark.parametrize("suffix", ["binvox", "obj", "ply", "npz", "png"])
def test_shapes_are_written_in_every_form(models, photos, tmp_path, suffix, capsys):
    compressed(models, photos, tmp_path / "a.tfj")
    shape = tmp_path / f"a.{suffix}"
    call("reconstruct", tmp_path / "a.tfj", "-o", shape, "--model", models["direct"])
    assert shape.stat().st_size > 100
    assert f"{shape}: " in capsys.readouterr().err
    codec = Codec(models["direct"])
    occupancy = codec.reconstruct(codec.read((tmp_path / "a.tfj").read_bytes()))
    if suffix == "binvox":
        grid = binvox.read_binvox(shape).voxels
        np.testing.assert_array_equal(grid, occupancy >= 0.4)


def test_photos_become_a_shape_without_a_file_between(models, photos, tmp_path):
    model = ["--model", models["direct"]]
    compressed(models, photos, tmp_path / "a.tfj", "--iterations=2")
    call("reconstruct", tmp_path / "a.tfj", "-o", tmp_path / "a.npz", *model)
    call("reconstruct", *photos, "-o", tmp_path / "b.npz", "--iterations=2", *model)
    shapes = [gallery.read_gallery(tmp_path / f"{name}.npz").occupancy for name in "ab"]
    np.testing.assert_allclose(*shapes, atol=1e-6)


def test_a_system_without_codes_makes_shapes_of_photos(models, photos, tmp_path, capsys):
    model = ["--model", models["reconstruction"]]
    call("reconstruct", *photos, "-o", tmp_path / "a.npz", "--threshold=0.5", *model)
    found = gallery.read_gallery(tmp_path / "a.npz")
    assert found.threshold == 0.5 and found.occupancy.std() > 0
    capsys.readouterr()
    line = mistake(capsys, "reconstruct", *photos, "-o", tmp_path / "b.npz", "--rate=48", *model)
    assert "has no codes, and no rate" in line
    line = mistake(capsys, "compress", *photos, "-o", tmp_path / "b.tfj", *model)
    assert "has no codes: give reconstruct the photos" in line
    assert not (tmp_path / "b.tfj").exists()


# --- Info and view --------------------------------------------------------------------------------


def test_info_of_files(models, photos, tmp_path, capsys):
    data = compressed(models, photos, tmp_path / "a.tfj", "-q")
    call("info", tmp_path / "a.tfj")
    said = capsys.readouterr().out
    digest = bitstream.inspect(data).source.digest
    assert said == (
        f"{tmp_path / 'a.tfj'}: 113 bytes, raw; 3 views, T = 4, 96:1 nominal, "
        f"{9216 / 113:.4g}:1 real; model {digest}, 32 x 32 pixels, 2 x 2 x 16 bits per iteration\n"
    )
    data = compressed(models, photos, tmp_path / "b.tfj", "-q", name="implicit")
    call("info", tmp_path / "a.tfj", tmp_path / "b.tfj")
    first, second = capsys.readouterr().out.splitlines()
    assert first == said.rstrip()
    assert f"{len(data)} bytes, raw; 3 views, 384:1 nominal" in second


def test_info_of_exports(models, capsys):
    call("info", models["direct"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{models['direct']}/1: direct, smoke profile, 0 steps"
    assert "encode" in lines[1] and "takes views of 32 x 32 pixels over black" in lines[1]
    assert lines[2].endswith(f"tables {Codec(models['direct']).tables.digest}")
    assert lines[-1] == "T = 4, 96:1, 256 bits a view; a raw file of 5 views has 177 bytes"
    call("info", models["compression"])
    assert "takes views of any multiples of 16 pixels" in capsys.readouterr().out
    call("info", models["implicit"])
    assert "\n384:1, 64 bits a view" in capsys.readouterr().out
    call("info", models["reconstruction"])
    assert "no codes" in capsys.readouterr().out


def test_view_writes_the_page_of_a_shape(models, photos, tmp_path, capsys):
    model = ["--model", models["direct"]]
    call("reconstruct", *photos, "-o", tmp_path / "a.npz", *model)
    call("view", tmp_path / "a.npz")
    assert "<html" in (tmp_path / "a.html").read_text()
    call("view", tmp_path / "a.npz", "-o", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "a.html").read_bytes()
    assert "page: " in capsys.readouterr().out


# --- Mistakes -------------------------------------------------------------------------------------


def test_without_a_model_the_line_says_what_to_do(photos, tmp_path, capsys, monkeypatch, models):
    monkeypatch.delenv("TFJOINT_MODEL", raising=False)
    line = mistake(capsys, "compress", *photos, "-o", tmp_path / "a.tfj")
    assert "no model: give --model=EXPORT" in line and "set TFJOINT_MODEL" in line
    monkeypatch.setenv("TFJOINT_MODEL", models["direct"])
    call("compress", *photos, "-o", tmp_path / "a.tfj")
    assert (tmp_path / "a.tfj").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: PART"),
        (["squeeze"], "invalid choice: 'squeeze'"),
        (["compress", "-o", "a.tfj"], "required: PHOTO"),
        (["compress", "a.png"], "required: -o/--output"),
        (["compress", "a.png", "-o", "a.tfj", "--rate=0"], "a rate is a positive number"),
        (["compress", "a.png", "-o", "a.tfj", "--rate=48:2"], "or 48:1. Received: '48:2'"),
        (
            ["decompress", "a.tfj", "-o", "v", *(f"{number}.tfj" for number in range(999))],
            "25.tfj ...; see",
        ),
        (["compress", "a.png", "-o", "a.tfj", "--iterations=1.5"], "in [1, 255]. Received: '1.5'"),
        (["compress", "a.png", "-o", "a.tfj", "--iterations=256"], "in [1, 255]. Received: '256'"),
        (["compress", "a.png", "-o", "a.tfj", "--views=1.5"], "1.5; see tfjoint compress --help"),
        (["compress", "a.png", "-o", "a.tfj", "--packets=-"], "packets are files"),
        (["reconstruct", "a.tfj", "-o", "a.obj", "--views=1.5"], "positive whole number"),
        (["compress", "a.png", "-o", "a.tfj", "--rate=9", "--max-bytes=9"], "not allowed with"),
        (["compress", "a.png", "-o", "a.tfj", "--coding=zip"], "invalid choice: 'zip'"),
        (["compress", "a.png", "-o", "a.png"], "written to a .tfj file"),
        (["reconstruct", "a.tfj", "-o", "a.stl"], "written as .binvox, .obj"),
        (["reconstruct", "a.tfj", "b.tfj", "-o", "a.obj"], "one .tfj file, or packets"),
        (["reconstruct", "a.tfj", "-o", "a.obj", "--threshold=2"], "a threshold is in"),
        (["info", "missing.tfj"], "no file at missing.tfj"),
        (["view", "missing.npz"], "no file at missing.npz"),
        (["view", "a.txt"], "a page shows"),
    ],
)
def test_wrong_arguments_are_one_line(capsys, arguments, words):
    assert words in mistake(capsys, *arguments)


def test_what_cannot_be_written_or_read_is_refused_before_a_model_is_loaded(
    models, photos, tmp_path, capsys, monkeypatch
):
    compressed(models, photos, tmp_path / "a.tfj")
    monkeypatch.setattr(command, "_codec", lambda given: pytest.fail("a model was loaded"))
    below_a_file = tmp_path / "a.tfj" / "deep" / "new"
    missing, read = tmp_path / "missing.png", tmp_path / "a.tfj"
    (tmp_path / "cut.tfj").write_bytes(read.read_bytes()[:5])
    cases = [
        ("compress", *photos, "-o", below_a_file.with_suffix(".tfj")),
        ("compress", *photos, "-o", tmp_path / "b.tfj", "--packets", below_a_file),
        ("compress", missing, "-o", tmp_path / "b.tfj"),
        ("compress", *photos, "-o", tmp_path / "b.tfj", "--background=blue"),
        ("compress", *photos * 86, "-o", tmp_path / "b.tfj"),
        ("decompress", read, "-o", below_a_file),
        ("decompress", read, "-o", tmp_path / "%d-%d.png"),
        ("decompress", read, "-o", tmp_path / "a.jpg"),
        ("decompress", missing, "-o", tmp_path / "views"),
        ("decompress", tmp_path / "cut.tfj", "-o", tmp_path / "views"),
        ("reconstruct", read, "-o", below_a_file.with_suffix(".obj")),
        ("reconstruct", read, "-o", tmp_path / "shape.unknown"),
        ("reconstruct", missing, "-o", tmp_path / "a.obj"),
        ("reconstruct", tmp_path / "missing.tfj", "-o", tmp_path / "a.obj"),
    ]
    for arguments in cases:
        assert len(mistake(capsys, *arguments)) < 300
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["a.tfj", "cut.tfj", *(Path(name).name for name in photos)]
    )


def test_a_directory_that_may_not_be_written_to_is_refused(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    line = mistake(capsys, "compress", *photos, "-o", tmp_path / "new" / "a.tfj")
    assert f"{tmp_path} may not be written to: give the name of another directory" in line


def test_what_cannot_be_is_one_line_and_leaves_nothing(models, photos, tmp_path, capsys):
    model = ["--model", models["direct"]]
    output = tmp_path / "a.tfj"
    cases = {
        "no export at": ["--model", tmp_path],
        "from 96 (T = 4) to 384 (T = 1)": ["--rate=40", *model],
        "at least 41 bytes. Received: 40": ["--max-bytes=40", *model],
        "black, white or #rrggbb": ["--background=blue", *model],
        "iterations must be in [1, 255]": ["--iterations=256", *model],
    }
    for words, arguments in cases.items():
        assert words in mistake(capsys, "compress", *photos, "-o", output, *arguments)
    (tmp_path / "bad.jpg").write_bytes(Path(photos[1]).read_bytes()[:300])
    line = mistake(capsys, "compress", photos[0], tmp_path / "bad.jpg", "-o", output, *model)
    assert "bad.jpg is damaged or cut off" in line
    assert not output.exists() and not list(tmp_path.glob(".*"))


def test_a_missing_export_is_refused_before_anything_is_loaded(
    photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tfjoint.codec", None)
    line = mistake(capsys, "compress", *photos, "-o", tmp_path / "a.tfj", "--model", tmp_path)
    assert f"no export at {tmp_path}" in line


def test_an_older_file_stays_when_the_command_fails(models, photos, tmp_path, capsys):
    output = tmp_path / "a.tfj"
    before = compressed(models, photos, output)
    mistake(capsys, "compress", *photos, "-o", output, "--max-bytes=1", "--model", models["direct"])
    assert output.read_bytes() == before


def test_a_directory_is_never_replaced_by_a_file(models, photos, tmp_path, capsys):
    for part, given, name in (
        ("compress", photos, "kept.tfj"),
        ("reconstruct", photos, "kept.obj"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
        line = mistake(capsys, part, *given, "-o", tmp_path / name, "--model", models["direct"])
        assert "is a directory" in line and (tmp_path / name / "precious").exists()
    compressed(models, photos, tmp_path / "a.tfj")
    line = mistake(
        capsys,
        *("decompress", tmp_path / "a.tfj", "-o", photos[0], "--model", models["direct"]),
    )
    assert "is one file, and there are 3 views" in line
    line = mistake(
        capsys,
        *("decompress", tmp_path / "a.tfj", "-o", tmp_path / "a.tfj", "--model", models["direct"]),
    )
    assert "is a file: give the name of a directory" in line


def test_files_of_other_models_and_damaged_ones_are_one_line(models, photos, tmp_path, capsys):
    data = compressed(models, photos, tmp_path / "a.tfj")
    capsys.readouterr()
    shape = ["-o", tmp_path / "a.obj"]
    line = mistake(capsys, "reconstruct", tmp_path / "a.tfj", *shape, "--model", models["implicit"])
    assert "the codes are of another model" in line
    for wrong in (data[:-1], data[:50] + b"\0" + data[51:], b"", b"\xff\xd8\xff\xe0" * 9):
        bad = tmp_path / "bad.tfj"
        bad.write_bytes(wrong)
        for arguments in (
            ("reconstruct", bad, *shape, "--model", models["direct"]),
            ("decompress", bad, "-o", tmp_path / "views", "--model", models["direct"]),
            ("info", bad),
        ):
            assert f"error: {bad}: " in mistake(capsys, *arguments)
    assert not (tmp_path / "a.obj").exists()


def test_an_input_is_not_overwritten(models, photos, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    shutil.copy(photos[0], photo)
    model = ["--model", models["direct"]]
    again = tmp_path / "again" / ".." / "photo.png"
    (tmp_path / "again").mkdir()
    for output in (photo, again):
        line = mistake(capsys, "reconstruct", photos[1], photo, "-o", output, *model)
        assert "is one of the inputs: give -o another name" in line
    assert photo.read_bytes() == Path(photos[0]).read_bytes()


def test_files_of_another_object_are_not_left_among_those_of_this_one(
    models, photos, tmp_path, capsys
):
    packets, views = tmp_path / "packets", tmp_path / "views"
    model = ["--model", models["direct"]]
    data = compressed(models, photos, tmp_path / "a.tfj", "--packets", packets)
    compressed(models, photos, tmp_path / "a.tfj", "--packets", packets)  # the same again
    call("decompress", tmp_path / "a.tfj", "-o", views, *model)
    two = ["compress", *photos[:2], "-o", tmp_path / "a.tfj", *model]
    line = mistake(capsys, *two, "--packets", packets)
    assert "view-3.packet is there and would pass for one of this object: take it away" in line
    assert (tmp_path / "a.tfj").read_bytes() == data
    call(*two)
    line = mistake(capsys, "decompress", tmp_path / "a.tfj", "-o", views, *model)
    assert "view-3.png is there" in line


def test_packets_of_two_objects_are_told_apart(models, photos, tmp_path, capsys):
    for name, chosen in {"a": photos[:2], "b": photos[1:]}.items():
        compressed(models, chosen, tmp_path / f"{name}.tfj", "--packets", tmp_path / name)
    mixed = [tmp_path / "a" / "view-1.packet", tmp_path / "b" / "view-2.packet"]
    output = ["-o", tmp_path / "a.obj", "--model", models["direct"]]
    line = mistake(capsys, "reconstruct", *mixed, *output)
    assert f"{mixed[0]} and {mixed[1]} are of two objects: give packets of one" in line
    for line in (
        mistake(capsys, "info", mixed[0]),
        mistake(capsys, "decompress", mixed[0], "-o", tmp_path / "c.png", *output[2:]),
    ):
        assert "view-1.packet is a packet" in line and "give them to reconstruct" in line


def test_without_the_range_coder_coding_says_what_to_install(
    models, photos, tmp_path, capsys, monkeypatch
):
    for name in ("tensorflow_compression_ops", "tensorflow_compression"):
        monkeypatch.setitem(sys.modules, name, None)
    coding.range_coder.cache_clear()
    try:
        output = ["-o", tmp_path / "a.tfj", "--model", models["direct"]]
        line = mistake(capsys, "compress", *photos, *output, "--coding=table")
        assert "use raw, or install tfjoint[tfc]" in line
        call("compress", *photos, *output)
    finally:
        coding.range_coder.cache_clear()


# --- As a process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], *([part, "--help"] for part in PARTS)])
def test_help_is_there_at_once_with_examples(arguments):
    start = time.monotonic()
    result = runs.finish([sys.executable, "-X", "importtime", "-m", "tfjoint", *arguments])
    assert time.monotonic() - start < 20  # on a machine that does other things besides
    assert result.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not imported & {"tensorflow", "keras", "PIL", "numpy"}
    wanted = "examples:\n  tfjoint " if len(arguments) > 1 else "compress"
    assert wanted in result.stdout


def test_the_version_is_said():
    assert runs.finish([*COMMAND, "--version"]).stdout == f"tfjoint {__version__}\n"


@pytest.mark.parametrize(("given", "found"), [(None, "1"), ("0", "0")])
def test_tensorflow_takes_its_fast_kernels_unless_the_user_wants_others(monkeypatch, given, found):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    if given:
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", given)
    with pytest.raises(SystemExit):
        call("--version")
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == found


def test_a_mistake_of_a_process_is_one_line_and_2(tmp_path):
    assert "no file at a.tfj" in runs.refusal([*COMMAND, "reconstruct", "a.tfj", "-o", "a.obj"])


@pytest.mark.slow
def test_one_process_codes_and_another_reconstructs_over_a_pipe(models, photos, tmp_path):
    environment = runs.environment(TFJOINT_MODEL=models["direct"])
    camera = subprocess.Popen(
        [*COMMAND, "compress", *photos, "-o", "-", "--quiet"],
        cwd=runs.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
    )
    ground = subprocess.run(
        [*COMMAND, "reconstruct", "-", "-o", str(tmp_path / "a.npz")],
        cwd=runs.ROOT,
        env=environment,
        stdin=camera.stdout,
        capture_output=True,
        text=True,
        timeout=240,
    )
    camera.stdout.close()
    assert camera.wait(60) == 0 and ground.returncode == 0, ground.stderr
    call("reconstruct", *photos, "-o", tmp_path / "b.npz", "--model", models["direct"])
    shapes = [gallery.read_gallery(tmp_path / f"{name}.npz").occupancy for name in "ab"]
    np.testing.assert_allclose(*shapes, atol=1e-6)


def test_codes_are_not_written_to_a_terminal(photos):
    ours, theirs = pty.openpty()
    try:
        result = subprocess.run(
            [*COMMAND, "compress", *photos, "-o", "-", "--model=none"],
            cwd=runs.ROOT,
            env=runs.environment(),
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            timeout=240,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert result.returncode == 2
    assert result.stderr.startswith("error: bytes are not written to a terminal")
