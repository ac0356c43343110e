"""The files of a tar archive, gzipped or plain, read forwards once; nothing is ever extracted.

    header (512 bytes) | data, filled up to 512 | header | data | ... | two blocks of zeros

The archive may be anything somebody put under that name. `tarfile` would keep a note of each of a
million members and read an extended header whole, however long that says it is; what is needed of
the format fits here.
"""

from __future__ import annotations

import collections
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from tfjoint.errors import UserError

Found = TypeVar("Found")

_BLOCK = 512
_PIECE = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_MOST_EXTENDED_BYTES = 1 << 16
# PNG files hardly shrink, and grids with what a tar archive puts between them six times; a bomb
# shrinks a thousand times.
_MOST_EXPANSION, _EXPANSION_FREE_BYTES = 20, 1 << 28

_REGULAR, _DIRECTORY = (b"0", b"\0", b"7"), b"5"
_LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL = b"L", b"K", b"x", b"g"
_SPARSE = b"S"
# What `skipped` calls the entries that are no files; they have no data.
_NO_FILES = {b"1": "links", b"2": "links", b"3": "devices", b"4": "devices", b"6": "devices"}
_PAX_LINE = re.compile(rb"(\d{1,9}) ([^=]+)=")
_PAX_SIZE = re.compile(rb"\d{1,19}")


class ArchiveError(UserError):
    """A file that is no tar archive, is damaged or cut off, or is made to do harm."""


class _Header(NamedTuple):
    name: str
    size: int
    kind: bytes


class TarStream:
    """An archive and how far it is read."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.size = self.path.stat().st_size
        self.skipped: collections.Counter[str] = collections.Counter()
        """How many entries were passed over, by what they were."""
        self._file: BinaryIO | None = None

    @property
    def position(self) -> int:
        """Bytes of the file that are read, of `size`."""
        if self._file is None:
            return 0
        return self.size if self._file.closed else self._file.tell()

    def members(
        self, find: Callable[[str], Found | None], most_bytes: int
    ) -> Iterator[tuple[Found, bytes]]:
        """Yield what `find` makes of the name of a regular file, and the file; pass over None.

        Of a file with more than `most_bytes`, one byte more is read, so that it can be told. Names
        that are absolute or hold ".." are skipped like what is no file. Raises `ArchiveError`.
        """
        with self.path.open("rb") as file:
            self._file = file
            try:
                yield from self._members(_Forwards(file, self.size), find, most_bytes)
            except EOFError as error:
                raise ArchiveError(
                    f"{self.path} is cut off at {self._where()}: fetch it again"
                ) from error
            except (gzip.BadGzipFile, zlib.error) as error:
                raise ArchiveError(
                    f"{self.path} is damaged at {self._where()} ({error}): fetch it again"
                ) from error

    def _where(self) -> str:
        return f"{self.position} of {self.size} bytes"

    def _members(
        self, stream: _Forwards, find: Callable[[str], Found | None], most_bytes: int
    ) -> Iterator[tuple[Found, bytes]]:
        extended: dict[bytes, bytes] = {}
        while (header := self._header(stream)) is not None:
            if header.kind in (_LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL):
                extended.update(self._extended_fields(stream, header))
                continue
            header, sparse = self._extend(header, extended)
            extended = {}
            found = find(header.name) if self._is_usable(header, sparse) else None
            taken = 0 if found is None else min(header.size, most_bytes + 1)
            data = stream.read(taken)
            stream.skip(_whole_blocks(header.size) - taken)
            if found is not None:
                yield found, data
        stream.drain()

    def _is_usable(self, header: _Header, sparse: bool) -> bool:
        if header.kind not in _REGULAR or sparse:
            if header.kind != _DIRECTORY:
                self.skipped[_NO_FILES.get(header.kind, "sparse or unknown entries")] += 1
            return False
        if header.name.startswith("/") or ".." in header.name.split("/"):
            self.skipped["names that lead out of the archive"] += 1
            return False
        return True

    def _header(self, stream: _Forwards) -> _Header | None:
        block = stream.read(_BLOCK)
        if not block.strip(b"\0"):
            return None
        try:
            # The sum of all bytes, those of the sum itself taken as spaces.
            if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
                raise ValueError("its checksum is wrong")
            name, size, kind = block[:100], _number(block[124:136]), block[156:157]
            if size < 0:
                raise ValueError(f"its size is {size}")
        except ValueError as error:
            what = "damaged" if stream.total > _BLOCK else "not a tar archive, plain or gzipped"
            raise ArchiveError(
                f"{self.path} is {what} (the header before byte {stream.total}: {error}): "
                "fetch it again"
            ) from error
        if kind == _SPARSE:
            raise ArchiveError(
                f"{self.path} holds a sparse file, {_text(name)!r}: pack it without --sparse"
            )
        if block[257:263] == b"ustar\0" and block[345] != 0:
            name = block[345:500].split(b"\0")[0] + b"/" + name
        if kind in _NO_FILES or kind == _DIRECTORY:
            size = 0
        return _Header(_text(name), size, kind)

    def _extended_fields(self, stream: _Forwards, header: _Header) -> dict[bytes, bytes]:
        if header.size > _MOST_EXTENDED_BYTES:
            raise ArchiveError(
                f"{self.path} has an extended header of {header.size} bytes, more than the "
                f"{_MOST_EXTENDED_BYTES} that any name takes: do not trust it"
            )
        data = stream.read(_whole_blocks(header.size))[: header.size]
        if header.kind == _LONG_NAME:
            return {b"path": data}
        return self._pax_fields(data) if header.kind == _EXTENDED else {}

    def _pax_fields(self, data: bytes) -> dict[bytes, bytes]:
        fields, start = {}, 0
        while start < len(data):
            match = _PAX_LINE.match(data, start)
            end = start + int(match[1]) if match else 0
            if match is None or not match.end() < end <= len(data):
                raise ArchiveError(f"{self.path} has a damaged extended header: fetch it again")
            key = _SPARSE if match[2].startswith(b"GNU.sparse.") else match[2]
            if key in (b"path", b"size", _SPARSE):
                fields[key] = data[match.end() : end - 1]
            start = end
        return fields

    def _extend(self, header: _Header, fields: dict[bytes, bytes]) -> tuple[_Header, bool]:
        if b"path" in fields:
            header = header._replace(name=_text(fields[b"path"]))
        if b"size" in fields and header.kind in _REGULAR:
            if not _PAX_SIZE.fullmatch(fields[b"size"]):
                raise ArchiveError(f"{self.path} has a damaged extended header: fetch it again")
            header = header._replace(size=int(fields[b"size"]))
        return header, _SPARSE in fields


class _Forwards:
    """The bytes of the archive, unpacked; `EOFError` where they end too early."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.total = 0
        self._name, self._most = file.name, size * _MOST_EXPANSION + _EXPANSION_FREE_BYTES
        gzipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        self._stream = io.BufferedReader(gzip.GzipFile(fileobj=file), _PIECE) if gzipped else file

    def read(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) < count:
            raise EOFError
        self._count(len(data))
        return data

    def skip(self, count: int) -> None:
        while count > 0:
            count -= len(self.read(min(count, _PIECE)))

    def drain(self) -> None:
        # gzip's own checksum stands at the end.
        while data := self._stream.read(_PIECE):
            self._count(len(data))

    def _count(self, count: int) -> None:
        self.total += count
        if self.total > self._most:
            raise ArchiveError(
                f"{self._name} unpacks to more than {_MOST_EXPANSION} times its size: "
                "do not trust it"
            )


def _whole_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _number(field: bytes) -> int:
    # Octal digits, or for large numbers binary behind a first byte of 0x80.
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _text(name: bytes) -> str:
    return name.split(b"\0")[0].decode("utf-8", "surrogateescape")
