"""Archives as other programs write them, and as nobody should: what comes out of them."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tracemalloc
import zipfile

import pytest
import shapenet_sample

from data_tools.tar_stream import ArchiveError, TarStream

FILES = {
    "a/empty": b"",
    "a/short": b"x" * 511,
    "a/block": b"y" * 512,
    "a/more": b"z" * 513,
    "a/" + "long/" * 18 + "name": b"90 to 100 characters",
    "b/" + "longer/" * 30 + "name": b"more than 200",
    "c/" + "longest/" * 60 + "name": b"more than 256, beyond the old format",
    "c/n\u00e4me": b"not ASCII",
}


def _read(path, find=lambda name: name, most=1 << 20):
    stream = TarStream(path)
    return dict(stream.members(find, most)), dict(stream.skipped)


def _write(path, files=FILES, mode="w:gz", **options):
    with tarfile.open(path, mode, **options) as archive:
        for name, data in files.items():
            shapenet_sample.add(archive, name, data)
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_file_comes_out_of_every_format(mode, form, tmp_path):
    files = {k: v for k, v in FILES.items() if form != tarfile.USTAR_FORMAT or len(k) < 256}
    assert _read(_write(tmp_path / "a", files, mode, format=form)) == (files, {})


def test_files_come_in_the_order_of_the_archive_and_the_unwanted_are_passed_over(tmp_path):
    path = _write(tmp_path / "a.tgz")
    stream = TarStream(path)
    found = list(stream.members(lambda name: name[2:] if name[0] == "a" else None, 600))
    assert found == [(name[2:], data) for name, data in FILES.items() if name[0] == "a"]
    assert stream.position == stream.size == path.stat().st_size


def test_of_a_file_that_is_too_large_one_byte_more_is_read(tmp_path):
    files, _ = _read(_write(tmp_path / "a.tgz"), most=100)
    assert {name: len(data) for name, data in files.items()} == {
        name: min(len(data), 101) for name, data in FILES.items()
    }


def test_sizes_in_binary_are_read_like_octal_ones(tmp_path):
    header = bytearray(tarfile.TarInfo("a").tobuf())
    header[124:136] = b"\x80" + (5).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a").write_bytes(bytes(header) + b"hello".ljust(512, b"\0") + bytes(1024))
    assert _read(tmp_path / "a") == ({"a": b"hello"}, {})


def test_what_is_no_file_and_what_leads_out_is_counted_and_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a", "w") as archive:
        for number, name in enumerate(("/etc/x", "../x", "a/../../x", "a/..")):
            shapenet_sample.add(archive, name, b"bad" * number)
        shapenet_sample.add(archive, "link", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        shapenet_sample.add(archive, "hard", type=tarfile.LNKTYPE, linkname="../x")
        shapenet_sample.add(archive, "pipe", type=tarfile.FIFOTYPE)
        shapenet_sample.add(archive, "disk", type=tarfile.BLKTYPE, devmajor=8)
        shapenet_sample.add(archive, "tty", type=tarfile.CHRTYPE, devmajor=4)
        shapenet_sample.add(archive, "directory", type=tarfile.DIRTYPE)
        shapenet_sample.add(archive, "unheard", b"of" * 999, type=b"Q")
        sparse = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 50)}
        shapenet_sample.add(archive, "holes", b"12", pax_headers=sparse)
        shapenet_sample.add(archive, "good", b"good")
    assert _read(tmp_path / "a") == (
        {"good": b"good"},
        {
            "names that lead out of the archive": 4,
            "links": 2,
            "devices": 3,
            "sparse or unknown entries": 2,
        },
    )


def test_sparse_files_of_the_old_kind_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a", "w") as archive:
        shapenet_sample.add(archive, "holes", b"12", type=tarfile.GNUTYPE_SPARSE)
    with pytest.raises(ArchiveError, match="sparse file, 'holes'"):
        _read(tmp_path / "a")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_cut_off_anywhere_is_one_clear_error(mode, tmp_path):
    whole = _write(tmp_path / "whole", mode=mode).read_bytes()
    path = tmp_path / "cut"
    # A plain archive ends with zeros that say so: two blocks of them, and what fills up.
    end = len(whole.rstrip(b"\0")) if mode == "w" else len(whole)
    for length in random.Random(0).sample(range(1, end), 60):
        path.write_bytes(whole[:length])
        with pytest.raises(ArchiveError, match=f"{path} is ") as caught:
            _read(path)
        assert "\n" not in str(caught.value)


def _zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/b", b"x" * 1000)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is cut off at 0 of 0 bytes"),
        (b"\x1f\x8b", "is cut off"),
        (b"words " * 200, "is not a tar archive, plain or gzipped"),
        (gzip.compress(b"words " * 200, mtime=0), "is not a tar archive, plain or gzipped"),
        (_zip(), "is not a tar archive"),
        (b"\xfd7zXZ\0" + bytes(range(200)) * 9, "is not a tar archive"),
    ],
)
def test_what_is_no_archive_is_one_clear_error(data, reason, tmp_path):
    (tmp_path / "a.tgz").write_bytes(data)
    with pytest.raises(ArchiveError, match=reason):
        _read(tmp_path / "a.tgz")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_flipped_bytes_end_in_files_or_in_one_clear_error(mode, tmp_path):
    whole = _write(tmp_path / "whole", mode=mode, format=tarfile.PAX_FORMAT).read_bytes()
    rng = random.Random(1)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "a").write_bytes(damaged)
        try:
            _read(tmp_path / "a")
        except ArchiveError:
            refused += 1
    assert refused > 50


def _extended(data, kind=tarfile.XHDTYPE, size=None):
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, len(data) if size is None else size
    return header.tobuf(tarfile.GNU_FORMAT) + data.ljust(-(-len(data) // 512) * 512, b"\0")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_extended(b"", size=1 << 40), "an extended header of 1099511627776 bytes"),
        (_extended(b"", tarfile.GNUTYPE_LONGNAME, 1 << 30), "an extended header of 1073741824"),
        (_extended(b"8 path=a\n" * 3), "damaged extended header"),
        (_extended(b"99 path=a\n"), "damaged extended header"),
        (_extended(b"3 path=abc\n"), "damaged extended header"),
        (_extended(b"10 size=-\n") + _extended(b"x", b"0"), "damaged extended header"),
        (_extended(b"2009 size=" + b"9" * 1998 + b"\n") + _extended(b"x", b"0"), "damaged ext"),
        (_extended(b"12 size=999\n") + _extended(b"x", b"0"), "is cut off"),
    ],
)
def test_extended_headers_made_to_do_harm_are_refused(data, reason, tmp_path):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArchiveError, match=reason):
        _read(tmp_path / "a")


def test_a_bomb_is_refused_and_never_held_in_memory(tmp_path):
    member = tarfile.TarInfo("a")
    member.size = 400 << 20
    with gzip.open(tmp_path / "a.tgz", "wb", compresslevel=1) as file:
        file.write(member.tobuf())
        for _ in range(400):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match="unpacks to more than 20 times its size"):
            _read(tmp_path / "a.tgz", most=1000)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_members(tmp_path):
    def peak(count):
        path = _write(tmp_path / f"{count}", {f"a/{n}": b"x" for n in range(count)}, "w")
        tracemalloc.start()
        try:
            assert sum(1 for _ in TarStream(path).members(lambda name: name, 10)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(4000) < peak(40) + 100_000
