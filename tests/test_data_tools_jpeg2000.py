"""JPEG 2000 variants: what the coder promises of every mode, and the record sets made with it."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import glymur
import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image

from data_tools import jpeg2000, jpeg2000_records
from data_tools.jpeg2000 import Coding
from data_tools.jpeg2000_records import Jpeg2000Config
from tfjoint import files, records
from tfjoint.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "tfjoint" / "demo"
RATES = (6.0, 12.0, 24.0, 48.0, 96.0, 128.0, 192.0, 256.0, 384.0, 480.0)


@functools.cache
def view(index: int, side: int = 68) -> Image.Image:
    """View 0, 1, ... of test objects of the demo set, over black, RGB."""
    record = _demo_test().record(7 * index % len(_demo_test()))
    pixels = np.asarray(Image.open(io.BytesIO(record.views[index % 7])), float)
    rgb = np.round(pixels[..., :3] * pixels[..., 3:] / 255).astype(np.uint8)
    image = Image.fromarray(rgb)
    return image if side == 68 else image.resize((side, side), Image.Resampling.BICUBIC)


@functools.cache
def _demo_test() -> records.RecordSet:
    return records.RecordSet(DEMO, "test")


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def pillow_bytes(image: Image.Image, rate: float, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG2000", quality_mode="rates", quality_layers=[rate], mct=1, **options)
    return stream.getvalue()


def decibels(image: Image.Image, decoded: np.ndarray) -> float:
    error = np.mean((np.asarray(image, float) - decoded) ** 2) / 255**2
    return 10 * np.log10(1 / max(error, 1e-10))


# --- Modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.0, 6.0, 48.0, 480.0])
def test_asked_is_what_openjpeg_makes_of_the_rate_and_nothing_else(rate):
    for side in (32, 68):
        expected = pillow_bytes(view(0, side), rate)
        assert jpeg2000.encode(view(0, side), Coding(rate, "asked", side)) == expected


def test_the_colour_transform_is_worth_its_name():
    """Pillow leaves it off; OpenJPEG's own programs and glymur switch it on for RGB."""
    gains = []
    for index in range(8):
        stream = io.BytesIO()
        view(index).save(stream, "JPEG2000", quality_mode="rates", quality_layers=[24])
        without = np.asarray(Image.open(io.BytesIO(stream.getvalue())))
        coded = jpeg2000.decode(jpeg2000.encode(view(index), Coding(24, "asked", 68)))
        gains.append(decibels(view(index), coded) - decibels(view(index), without))
    assert np.mean(gains) > 3


@pytest.mark.parametrize("rate", [12.0, 48.0, 96.0, 384.0])
def test_no_other_rate_asked_for_gets_a_payload_nearer_to_its_target_from_below(rate):
    coding = Coding(rate, "payload", 68)
    for index in range(3):
        data = jpeg2000.encode(view(index), coding)
        payload = jpeg2000.count_bytes(data).payload
        assert payload <= 68 * 68 * 3 / rate
        others = _payloads_of_many_rates(view(index), coding)
        assert max(other for other in others if other <= 68 * 68 * 3 / rate) == payload
        assert len(others) > 3


def _payloads_of_many_rates(image: Image.Image, coding: Coding) -> set[int]:
    # Everything from half the target to twice as much, byte by byte where that matters.
    wanted = coding.asked_bytes
    budgets = np.unique(np.concatenate([np.arange(60, 180), np.linspace(-0.5, 1, 40) * wanted]))
    tried = [wanted + extra for extra in budgets if wanted + extra > 0]
    options = {"no_jp2": True, "comment": "-", **coding.options, "mct": None}
    options = {k: v for k, v in options.items() if k not in ("mct", "quality_mode")}
    found = set()
    for budget in tried:
        data = pillow_bytes(image, max(1.0, coding.raw_bytes / budget), **options)
        found.add(jpeg2000.count_bytes(data).payload)
    return found


@pytest.mark.parametrize("rate", [12.0, 48.0])
def test_a_whole_file_fits_its_rate_where_it_can(rate):
    coding = Coding(rate, "file", 68)
    for index in range(6):
        data = jpeg2000.encode(view(index), coding)
        assert 0.85 * coding.asked_bytes < len(data) <= coding.asked_bytes


def test_a_file_that_cannot_fit_its_rate_is_the_smallest_there_is():
    for index in range(4):
        data = jpeg2000.encode(view(index), Coding(480, "file", 68))
        counts = jpeg2000.count_bytes(data)
        assert 68 * 68 * 3 / 480 < counts.header < 115 and counts.payload <= 30
        assert len(data) <= len(jpeg2000.encode(view(index), Coding(1e6, "file", 68)))


def test_the_floor_of_the_encoder_is_below_every_default_target():
    """The least that OpenJPEG plans for is 30 bytes; 68 x 68 pixels at 480:1 are 28.9."""
    for rate in RATES:
        for index in range(4):
            coding = Coding(rate, "payload", 68)
            payload = jpeg2000.count_bytes(jpeg2000.encode(view(index), coding)).payload
            assert 0 < payload <= max(coding.asked_bytes, 30)


def test_psnr_falls_with_the_rate_and_the_fair_mode_is_the_better_one():
    means = {}
    for mode in jpeg2000.MODES:
        for rate in RATES:
            coding = Coding(rate, mode, 68)
            coded = [jpeg2000.decode(jpeg2000.encode(view(i), coding)) for i in range(12)]
            means[mode, rate] = np.mean([decibels(view(i), c) for i, c in enumerate(coded)])
        falling = [means[mode, rate] for rate in RATES]
        assert all(a > b - 1e-9 for a, b in zip(falling, falling[1:])), (mode, falling)
    for rate in RATES:
        assert means["payload", rate] > means["file", rate] - 0.5
        assert means["payload", rate] > means["asked", rate] + (2 if rate >= 48 else -20)


def test_a_rate_of_one_is_lossless():
    for mode in ("asked", "payload"):
        coding = Coding(1, mode, 68)
        np.testing.assert_array_equal(
            jpeg2000.decode(jpeg2000.encode(view(0), coding)), np.asarray(view(0))
        )


@pytest.mark.parametrize("mode", jpeg2000.MODES)
def test_images_of_any_size_can_be_coded(mode):
    for side in (1, 2, 3, 5, 8, 17, 31, 32, 137):
        for rate in (2.0, 60.0, 1e9):
            coding = Coding(rate, mode, side)
            data = jpeg2000.encode(view(0, side), coding)
            assert jpeg2000.decode(data).shape == (side, side, 3)
            assert jpeg2000.payload_bytes(data, coding) == jpeg2000.count_bytes(data).payload


# --- Byte counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", jpeg2000.MODES)
@pytest.mark.parametrize("side", [36, 68, 137])
def test_header_and_payload_are_what_glymur_finds_in_the_file(mode, side, tmp_path):
    path = tmp_path / "view.jp2"
    images = [view(0, side), view(1, side), noise(side), Image.new("RGB", (side, side))]
    for rate in RATES:
        coding = Coding(rate, mode, side)
        for image in images:
            data = jpeg2000.encode(image, coding)
            path.write_bytes(data)
            opened = glymur.Jp2k(path)
            segments = opened.get_codestream(header_only=False).segment
            (tile,) = [s for s in segments if s.marker_id == "SOT"]
            (start,) = [s for s in segments if s.marker_id == "SOD"]
            end = segments[-1]
            assert end.marker_id == "EOC" and end.offset == len(data) - 2
            payload = end.offset - start.offset - 2
            assert tile.offset + tile.psot == end.offset
            assert jpeg2000.payload_bytes(data, coding) == payload
            assert jpeg2000.count_bytes(data) == (len(data), start.offset + 2, payload)
            if mode == "asked":
                boxes = [box.box_id for box in opened.box]
                assert boxes == ["jP  ", "ftyp", "jp2h", "jp2c"]
            else:
                assert not opened.box


@pytest.mark.parametrize("mode", jpeg2000.MODES)
def test_headers_are_the_same_in_every_view_of_a_rate_but_for_two_lengths(mode):
    for rate in (6.0, 48.0, 384.0):
        coding = Coding(rate, mode, 68)
        headers = set()
        for index in range(8):
            data = jpeg2000.encode(view(index), coding)
            header = bytearray(data[: jpeg2000.count_bytes(data).header])
            start = header.index(b"\xff\x4f\xff\x51")
            header[-8:-4] = b"psot"
            if mode == "asked":
                header[start - 8 : start - 4] = b"jp2c"
            headers.add(bytes(header))
        assert len(headers) == 1


def test_a_file_unlike_the_others_is_read_anew():
    coding = Coding(24, "payload", 68)
    other = pillow_bytes(view(0), 24, no_jp2=True, tile_size=(32, 32))
    sizes = [segment.psot - 14 for segment in _tile_parts(other)]
    assert len(sizes) == 9
    assert jpeg2000.payload_bytes(other, coding) == jpeg2000.count_bytes(other).payload
    assert jpeg2000.count_bytes(other).payload == sum(sizes)


def _tile_parts(data: bytes) -> list:
    stream = glymur.codestream.Codestream(io.BytesIO(data), len(data), header_only=False)
    return [segment for segment in stream.segment if segment.marker_id == "SOT"]


# --- Views in and out -----------------------------------------------------------------------------


def _png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(("background", "grey"), [("black", 0), ("white", 255)])
def test_views_are_composed_over_the_background(background, grey):
    rgba = np.random.default_rng(1).integers(0, 256, (20, 20, 4), np.uint8)
    alpha = rgba[..., 3:] / 255
    expected = np.round(rgba[..., :3] * alpha + grey * (1 - alpha))
    composed = jpeg2000.compose(_png(rgba), background)
    assert composed.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(composed), expected)
    opaque = rgba[..., :3]
    np.testing.assert_array_equal(jpeg2000.compose(_png(opaque), background), opaque)
    np.testing.assert_array_equal(
        jpeg2000.compose(_png(opaque, "L"), background),
        Image.fromarray(opaque).convert("L").convert("RGB"),
    )


def test_psnr_is_its_closed_form_and_at_most_100():
    image = np.asarray(view(0))
    assert jpeg2000.psnr(image, image) == 100
    other = image.astype(int)
    other[3, 5, 1] += 20 if other[3, 5, 1] < 100 else -20
    expected = 10 * math.log10(255**2 * image.size / 20**2)
    assert jpeg2000.psnr(image, other.astype(np.uint8)) == pytest.approx(expected, abs=1e-4)
    assert jpeg2000.psnr(np.zeros((4, 4, 3), "u1"), np.full((4, 4, 3), 255, "u1")) == pytest.approx(
        0
    )


def test_rates_are_coded_as_if_each_were_alone_and_equal_files_decoded_once(monkeypatch):
    objects = [("chair", [_png(np.asarray(view(0))), _png(np.asarray(view(1)))])]
    codings = [Coding(rate, "asked", 68) for rate in (200, 12, 300, 400, 24)]
    decode, decoded = jpeg2000.decode, []
    monkeypatch.setattr(jpeg2000, "decode", lambda data: decoded.append(data) or decode(data))
    (together,) = jpeg2000.code_objects(jpeg2000.Job(objects, codings, "black"))
    assert len(decoded) == 2 * 4  # 300:1 and 400:1 are below what the encoder can do
    for coding, found in zip(codings, together):
        ((alone,),) = jpeg2000.code_objects(jpeg2000.Job(objects, [coding], "black"))
        assert found.views == alone.views
        np.testing.assert_array_equal(found.code_bytes, alone.code_bytes)
        np.testing.assert_array_equal(found.psnr, alone.psnr)


def test_a_view_that_is_no_image_is_one_line_with_its_object():
    good = _png(np.asarray(noise(8)))
    for bad in (b"", good[:40], good[:-100], b"GIF89a", bytes(200)):
        job = jpeg2000.Job([("a", [good]), ("b", [good, bad])], [Coding(6, "asked", 8)], "black")
        with pytest.raises(UserError, match=r"^b: a view is no readable PNG .*rebuild") as caught:
            jpeg2000.code_objects(job)
        assert "\n" not in str(caught.value)


# --- Record sets ----------------------------------------------------------------------------------

CONFIG = Jpeg2000Config((12.0, 100.0))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """8 training and 3 test objects of 6 views, in shards of 5."""
    directory = tiny.make(tmp_path_factory.mktemp("source"), 8, 3)
    (directory / "CREDITS.md").write_text("by nobody")
    return directory


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    directory = tmp_path_factory.mktemp("built") / "deep" / "sets"
    jpeg2000_records.build(source, directory, CONFIG)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


@pytest.fixture
def coded(monkeypatch):
    """The (object, rate) pairs that are coded, in their order."""
    done = []
    code_objects = jpeg2000.code_objects

    def noted(job):
        done.extend((name, c.rate) for name, _ in job.objects for c in job.codings)
        return code_objects(job)

    monkeypatch.setattr(jpeg2000, "code_objects", noted)
    return done


def test_every_rate_is_the_source_with_other_views(source, built):
    assert sorted(path.name for path in built.iterdir()) == ["100", "12"]
    for rate in CONFIG.rates:
        for split, count in (("train", 8), ("test", 3)):
            raw = records.RecordSet(source, split)
            opened = records.RecordSet(built / f"{rate:g}", split)
            assert opened.manifest.jpeg2000["rate"] == rate
            assert len(opened) == len(raw) == count
            for index in range(count):
                old, new = raw.record(index), opened.record(index)
                for name in ("category", "object_id", "source"):
                    assert getattr(old, name) == getattr(new, name)
                np.testing.assert_array_equal(old.voxels, new.voxels)
                np.testing.assert_array_equal(old.cameras, new.cameras)
            shards = [(s.file, s.records) for s in opened.manifest.splits[split]]
            assert shards == [(s.file, s.records) for s in raw.manifest.splits[split]]
    assert {len(opened.manifest.splits[s]) for s in ("train", "test")} == {2, 1}


@pytest.mark.parametrize("mode", jpeg2000.MODES)
@pytest.mark.parametrize("background", ["black", "white"])
def test_views_are_whole_and_coded_as_pillow_does(source, tmp_path, mode, background):
    config = Jpeg2000Config((20.0,), mode, background)
    jpeg2000_records.build(source, tmp_path, config)
    record = records.RecordSet(source, "test").record(1)
    found = records.RecordSet(tmp_path / "20", "test").record(1)
    raw = 36 * 36 * 3
    for png, original, counts in zip(found.views, record.views, found.code_bytes):
        canvas = Image.new("RGBA", (36, 36), background)
        canvas.alpha_composite(Image.open(io.BytesIO(original)))
        image = canvas.convert("RGB")
        asked, file, payload = counts
        assert asked == round(raw / 20)
        if mode == "asked":
            data = pillow_bytes(image, 20)
            assert (file, payload) == jpeg2000.count_bytes(data)[::2]
            pixels = np.asarray(Image.open(io.BytesIO(data)))
        else:
            data = jpeg2000.encode(image, Coding(20, mode, 36))
            pixels = jpeg2000.decode(data)
            assert (payload if mode == "payload" else file) <= raw / 20
        assert len(data) == file
        np.testing.assert_array_equal(tf.io.decode_png(png), pixels)


def test_the_manifest_says_what_was_done_and_what_it_came_to(source, built):
    manifest = records.read_manifest(built / "12")
    raw = records.read_manifest(source)
    assert manifest.sources == {"tiny/manifest.json": records.manifest_sha256(source)}
    for name in ("split_name", "split_sha256", "image_size", "views", "voxel_size", "settings"):
        assert getattr(manifest, name) == getattr(raw, name)
    assert manifest.name == "tiny JPEG 2000 asked"
    said = dict(manifest.jpeg2000)
    measured = said.pop("measured")
    encoder = said.pop("encoder")
    assert re.fullmatch(r"OpenJPEG 2\.\d+\.\d+", encoder)
    assert said == {
        "rate": 12.0,
        "mode": "asked",
        "background": "black",
        "container": "jp2",
        "resolutions": 6,
        "wavelet": "5/3",
        "colour_transform": True,
    }
    counts, values = [], []
    for split in ("train", "test"):
        old, new = records.RecordSet(source, split), records.RecordSet(built / "12", split)
        for index in range(len(new)):
            counts.append(new.record(index).code_bytes)
            for before, after in zip(old.record(index).views, new.record(index).views):
                image = jpeg2000.compose(before, "black")
                values.append(decibels(image, np.asarray(Image.open(io.BytesIO(after)))))
    counts = np.concatenate(counts)
    assert measured["views"] == len(counts) == 66
    means = [measured[f"{name}_bytes"] for name in records.CODE_BYTE_FIELDS]
    np.testing.assert_allclose(means, counts.mean(0), atol=1e-3)
    assert measured["views_over"] == (counts[:, 1] > 36 * 36 * 3 / 12).sum()
    assert measured["psnr_db"] == pytest.approx(np.mean(values), abs=2e-3)


@pytest.mark.parametrize(("mode", "over"), [("asked", 2), ("file", 2), ("payload", 1)])
def test_views_count_as_over_in_the_bytes_that_their_mode_counts(mode, over):
    code_bytes = np.array([[324, 324, 200], [324, 325, 225], [324, 424, 324], [324, 324, 325]])
    coded = jpeg2000.CodedObject([b""] * 4, code_bytes, np.array([30.0, 40, 50, 60]), 0.0)
    totals = jpeg2000_records._Totals.of(coded, Coding(12, mode, 36))
    assert (totals.views, totals.over) == (4, over)
    assert totals.plus(totals).measured()["psnr_db"] == 45


def test_what_belongs_to_the_objects_comes_along(built):
    for rate in ("12", "100"):
        assert (built / rate / "CREDITS.md").read_text() == "by nobody"
        assert not (built / rate / "split.json").exists()


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_bytes(source, built, tmp_path, processes):
    jpeg2000_records.build(source, tmp_path, CONFIG, processes)
    assert contents(tmp_path) == contents(built)


def test_a_repeated_run_codes_nothing_and_says_so(source, built, tmp_path, coded, capsys):
    shutil.copytree(built, tmp_path / "r")
    rows = jpeg2000_records.build(source, tmp_path / "r", CONFIG, processes=2)
    assert not coded
    assert capsys.readouterr().err.splitlines() == [
        "12:1 is complete and kept",
        "100:1 is complete and kept",
    ]
    assert contents(tmp_path / "r") == contents(built)
    assert [(row.rate, row.objects, row.seconds) for row in rows] == [
        (12, 11, None),
        (100, 11, None),
    ]


def test_rates_can_be_added(source, built, tmp_path, coded, capsys):
    shutil.copytree(built / "12", tmp_path / "12")
    jpeg2000_records.build(source, tmp_path, CONFIG)
    assert {rate for _, rate in coded} == {100} and len(coded) == 11
    assert "12:1 is complete and kept" in capsys.readouterr().err
    # A rate that is not asked for now stays.
    jpeg2000_records.build(source, tmp_path, Jpeg2000Config((12.0,)))
    assert contents(tmp_path) == contents(built)


def test_a_stopped_run_goes_on_after_its_last_shard_and_ends_in_the_same_bytes(
    source, built, tmp_path, monkeypatch, capsys
):
    def stop(count):
        code_objects, calls = jpeg2000.code_objects, []

        def stopping(job):
            calls.append([name for name, _ in job.objects])
            if sum(map(len, calls)) > count:
                raise KeyboardInterrupt
            return code_objects(job)

        return stopping

    monkeypatch.setattr(jpeg2000_records, "_VIEWS_PER_JOB", 1)
    with monkeypatch.context() as patched:
        patched.setattr(jpeg2000, "code_objects", stop(9))
        with pytest.raises(KeyboardInterrupt):
            jpeg2000_records.build(source, tmp_path, CONFIG)
    names = {"test-00000-of-00001.tfrecord", "train-00000-of-00002.tfrecord", "unfinished.json"}
    for rate in ("12", "100"):
        assert {path.name for path in (tmp_path / rate).iterdir()} == names
        with pytest.raises(records.RecordError, match=r"has no manifest\.json"):
            records.read_manifest(tmp_path / rate)
    # The shard of one rate is lost as well: only that is made again.
    (tmp_path / "100" / "train-00000-of-00002.tfrecord").write_bytes(b"half")
    (tmp_path / "12" / ".train-00001-of-00002.tfrecord.1.tmp").write_bytes(b"killed")
    capsys.readouterr()
    done = []
    code_objects = jpeg2000.code_objects
    monkeypatch.setattr(
        jpeg2000,
        "code_objects",
        lambda job: (
            done.extend((name, c.rate) for name, _ in job.objects for c in job.codings)
            or code_objects(job)
        ),
    )
    jpeg2000_records.build(source, tmp_path, CONFIG)
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["12:1 goes on after 2 shards", "100:1 goes on after 1 shards"]
    names = [f"{('box', 'slab')[i % 2]}/object-{i:03d}" for i in range(8)]
    first, rest = names[:5], names[5:]
    assert done == [(n, 100) for n in first] + [(n, r) for n in rest for r in (12, 100)]
    assert contents(tmp_path) == contents(built)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("manifest.json", ""),
        ("train-00001-of-00002.tfrecord", "12:1 lacks shards or has damaged ones"),
        ("test-00000-of-00001.tfrecord", "12:1 lacks shards or has damaged ones"),
    ],
)
def test_a_rate_that_lost_a_file_is_coded_again(
    source, built, tmp_path, lost, message, coded, capsys
):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    (tmp_path / "12" / lost).unlink()
    if lost == "manifest.json":  # what is left of a set that nothing vouches for is in the way
        with pytest.raises(UserError, match="holds something else, 12"):
            jpeg2000_records.build(source, tmp_path, CONFIG)
        shutil.rmtree(tmp_path / "12")
    jpeg2000_records.build(source, tmp_path, CONFIG)
    assert message in capsys.readouterr().err
    assert {rate for _, rate in coded} == {12}
    assert contents(tmp_path) == contents(built)


# --- Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["0.5"], "numbers from 1 to 2000, .*received: 0.5"),
        (["48", "1e6"], "no file is smaller beyond; received: 1e6"),
        (["2000.1"], "received: 2000.1"),
        (["48", "-6"], "received: -6"),
        (["fast"], "received: fast"),
        (["nan"], "received: nan"),
        (["inf"], "received: inf"),
        ([""], "takes numbers"),
        ([], "is empty"),
        (["48", "6", "48.0"], "names 48 twice; received: 48,6,48.0"),
        (["123.4567", "123.4568"], r"names 123\.457 twice"),
    ],
)
def test_rates_that_are_none_are_one_clear_error(texts, message):
    with pytest.raises(UserError, match=message):
        jpeg2000.read_rates(texts)


def test_rates_may_be_any_number_from_one_to_two_thousand():
    assert jpeg2000.read_rates(["480", "1", "7.5", "2000"]) == (480, 1, 7.5, 2000)


@pytest.mark.parametrize("mode", jpeg2000.MODES)
def test_beyond_the_highest_rate_views_do_not_get_smaller(mode):
    files = [
        jpeg2000.encode(noise(137), Coding(rate, mode, 137)) for rate in (jpeg2000.MOST_RATE, 1e6)
    ]
    assert files[0] == files[1]


def _refusal(source: Path, output: Path, config: Jpeg2000Config = CONFIG) -> str:
    before = contents(output) if output.is_dir() else None
    with pytest.raises(UserError) as caught:
        jpeg2000_records.build(source, output, config)
    assert "\n" not in str(caught.value)
    assert before is None or contents(output) == before
    return str(caught.value)


def test_a_source_that_cannot_be_read_is_one_clear_error(source, tmp_path):
    assert "no record directory" in _refusal(tmp_path / "absent", tmp_path / "r")
    shutil.copytree(source, tmp_path / "damaged")
    shard = tmp_path / "damaged" / "test-00000-of-00001.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"test-00000-of-00001\.tfrecord is damaged"):
        jpeg2000_records.build(tmp_path / "damaged", tmp_path / "r2", CONFIG)


def test_a_source_that_was_coded_already_is_one_clear_error(built, tmp_path):
    message = _refusal(built / "12", tmp_path / "r")
    assert "holds JPEG 2000 views already (12:1)" in message
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"mode": "payload"}, r"mode 'asked', not 'payload'"),
        ({"background": "white"}, r"background 'black', not 'white'"),
        ({"mode": "file", "rates": (7.0,)}, r"mode 'asked', not 'file'"),
    ],
)
def test_other_settings_are_not_mixed_with_what_is_there(
    source, built, tmp_path, change, difference
):
    shutil.copytree(built, tmp_path / "r")
    message = _refusal(source, tmp_path / "r", dataclasses.replace(CONFIG, **change))
    assert re.search(rf"was built with other settings .*{difference}.*--output", message)


def test_another_source_is_not_mixed_with_what_is_there(built, tmp_path):
    other = tiny.make(tmp_path / "other", 2, 1)
    shutil.copytree(built, tmp_path / "r")
    assert "other settings (sources" in _refusal(other, tmp_path / "r")


def test_a_stopped_run_of_other_settings_is_not_resumed(source, tmp_path, monkeypatch):
    monkeypatch.setattr(jpeg2000_records, "_write_shards", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        jpeg2000_records.build(source, tmp_path, CONFIG)
    assert "mode 'asked', not 'file'" in _refusal(source, tmp_path, Jpeg2000Config((12.0,), "file"))


@pytest.mark.parametrize("name", ["notes.txt", "12", "48/notes.txt", "12/manifest.json"])
def test_an_output_that_holds_something_else_is_left_alone(source, tmp_path, name):
    path = tmp_path / "r" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    message = _refusal(source, tmp_path / "r")
    assert f"holds something else, {Path(name).parts[0]}: remove it or" in message


def test_the_source_itself_a_raw_set_or_a_file_is_no_output(source, tmp_path):
    assert "is a record set itself" in _refusal(source, source)
    shutil.copytree(source, tmp_path / "r" / "12")
    assert "holds something else, 12" in _refusal(source, tmp_path / "r")
    (tmp_path / "file").write_text("")
    assert "is a file" in _refusal(source, tmp_path / "file")


def test_a_rate_under_another_name_is_something_else(source, built, tmp_path):
    shutil.copytree(built / "12", tmp_path / "r" / "48")
    assert "holds something else, 48" in _refusal(source, tmp_path / "r")


def test_two_runs_do_not_write_to_one_output(source, tmp_path):
    with files.only_writer(tmp_path):
        assert "another process writes to" in _refusal(source, tmp_path)


# --- The command ----------------------------------------------------------------------------------


def _command(*arguments) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "data_tools.build_jpeg2000", *map(str, arguments)]
    return {"args": command, "env": environment, "text": True}


def _run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(**_command(*arguments), capture_output=True, timeout=300)


def test_the_command_builds_keeps_and_prints_a_table(source, built, tmp_path):
    flags = (f"--records={source}", f"--output={tmp_path / 'r'}", "--rates=12,100")
    result = _run(*flags, "--processes=2")
    assert result.returncode == 0, result.stderr
    assert "objects: 11/11, 0 s left" in result.stderr
    head, *rows, last = result.stdout.splitlines()
    names = ["rate", "objects", "views", "asked", "file", "payload", "over", "PSNR", "dB"]
    assert head.split() == [*names, "core", "s"]
    for row, rate in zip(rows, ("12", "100")):
        cells = row.split()
        measured = records.read_manifest(built / rate).jpeg2000["measured"]
        assert cells[:3] == [f"{rate}:1", "11", "66"] and float(cells[8]) >= 0
        printed = [float(cell) for cell in cells[3:8]]
        keys = ("asked_bytes", "file_bytes", "payload_bytes", "views_over", "psnr_db")
        np.testing.assert_allclose(printed, [measured[key] for key in keys], atol=0.051)
    assert re.fullmatch(rf"2 rates in \d+\.\d s: {re.escape(str(tmp_path / 'r'))}", last)
    assert contents(tmp_path / "r") == contents(built)

    result = _run(*flags)
    assert result.returncode == 0 and result.stdout.count("kept") == 2
    assert result.stderr.count("kept") == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--records"),
        (["--records={0}", "--output={1}/r", "--mode=best"], "mode"),
        (["--records={0}", "--output={1}/r", "--background=green"], "background"),
        (["--records={0}", "--output={1}/r", "--rates=6,0"], "received: 0"),
        (["--records={0}", "--output={1}/r", "--processes=0"], "processes"),
        (["--records={1}/absent", "--output={1}/r"], "no record directory"),
        (["--records={0}", "--output={0}"], "is a record set itself"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(
    source, tmp_path, arguments, reason
):
    result = _run(*(argument.format(source, tmp_path) for argument in arguments))
    # TensorFlow 2.21 says things of its own before.
    *before, last = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert last.startswith("error: ") and re.search(reason, last), result.stderr
    assert not re.search("^(error|Traceback|  )", "\n".join(before), re.MULTILINE), result.stderr


def test_neither_help_nor_the_processes_that_code_load_tensorflow():
    for module in ("build_jpeg2000", "jpeg2000"):
        code = f"import sys, data_tools.{module}; print('tensorflow' in sys.modules)"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert result.stdout == "False\n", result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals",
    [[signal.SIGINT], pytest.param([signal.SIGKILL, signal.SIGKILL], marks=pytest.mark.long)],
)
def test_a_run_that_is_killed_resumes_to_the_same_bytes(tmp_path, signals):
    source = tiny.make(tmp_path / "source", 150, 5)  # work enough to be stopped in
    arguments = (f"--records={source}", f"--output={tmp_path / 'r'}", "--rates=6,48,200")
    for number in signals:
        command = _command(*arguments, "--processes=2")
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(**command, **streams, start_new_session=True) as process:
            before = len(list((tmp_path / "r").glob("*/*.tfrecord")))
            until = time.monotonic() + 240
            while len(list((tmp_path / "r").glob("*/*.tfrecord"))) < before + 4:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.005)
            if number == signal.SIGKILL:
                process.kill()
            else:
                os.killpg(process.pid, number)  # as Ctrl-C does: to all of them
            _, errors = process.communicate(timeout=60)
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert "interrupted" in errors.splitlines()[-1] and "Traceback" not in errors
        assert not list((tmp_path / "r").glob("*/manifest.json"))
    result = _run(*arguments)
    assert result.returncode == 0 and "goes on after" in result.stderr, result.stderr
    config = Jpeg2000Config((6.0, 48.0, 200.0))
    jpeg2000_records.build(source, tmp_path / "whole", config)
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


def test_the_default_rates_are_those_that_the_demo_set_can_be_coded_at():
    text = (ROOT / "data_tools" / "build_jpeg2000.py").read_text(encoding="utf-8")
    (listed,) = re.findall(r'"rates",\s*(\[[^]]*\])', text)
    assert jpeg2000.read_rates(json.loads(listed)) == RATES
