"""Half a layout as the archive it is distributed in, read once and never extracted.

    archive -> files of the layout, in any order -> a spool file per shard, until it is whole

Every file goes to the spool as it comes: neither the archive's size nor the order of its members
decides how much memory that takes.
"""

from __future__ import annotations

import array
import collections
import contextlib
import os
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data_tools import layout, pool
from data_tools.layout import LayoutError, Model, Read
from data_tools.tar_stream import ArchiveError, TarStream

_FRAME = struct.Struct("<II")  # bytes of the name and of the file; then both of them
_UNSEEN = -1


class Archive(NamedTuple):
    """Half a layout in a tar archive, plain or gzipped."""

    path: Path
    sha256: str


class Spooled(NamedTuple):
    """A spool file, and the SHA-256 of the archive that its files come from."""

    path: Path
    archive_sha256: str

    def append(self, name: str, data: bytes) -> None:
        """Write a file of the layout behind the others."""
        # Opened each time: there may be more spool files than a process may hold open.
        encoded = name.encode()
        with self.path.open("ab") as file:
            file.write(_FRAME.pack(len(encoded), len(data)) + encoded + data)

    def state(self, names: Iterable[str]) -> str:
        """Return a text that is another one once a file may have changed."""
        return self.archive_sha256

    @contextlib.contextmanager
    def reading(self) -> Iterator[Read]:
        """Yield what reads the files in the spool."""
        with self.path.open("a+b") as file:  # of objects without any file there is no spool yet
            file.seek(0)
            places = dict(_places(file))

            def read(name: str) -> bytes:
                if name not in places:
                    raise LayoutError(f"{name} is missing")
                offset, length = places[name]
                file.seek(offset)
                return file.read(length)

            yield read


def _places(file: BinaryIO) -> Iterator[tuple[str, tuple[int, int]]]:
    while frame := file.read(_FRAME.size):
        name_bytes, length = _FRAME.unpack(frame)
        name = file.read(name_bytes).decode()
        yield name, (file.tell(), length)
        file.seek(length, os.SEEK_CUR)


def spool_grids(archive: Archive, spooled: Spooled) -> list[Model]:
    """Write every grid of an archive to the spool; return its objects, sorted.

    Raises `ArchiveError` for what is no archive, and `LayoutError` for one without grids.
    """
    stream = TarStream(archive.path)
    seen: dict[Model, int] = {}
    for model, data in stream.members(layout.find_grid, layout.MOST_BYTES):
        name, checksum = layout.voxel_name(model), zlib.crc32(data)
        if _is_new(stream, name, seen.setdefault(model, _UNSEEN), checksum):
            seen[model] = checksum
            spooled.append(name, data)
    _report_skipped(stream)
    if not seen:
        raise LayoutError(
            f"{archive.path} holds no <category>/<model>/model.binvox: give {layout.VOXELS}.tgz"
        )
    return sorted(seen)


def spool_renderings(
    archive: Archive, spools: Mapping[Model, Spooled | None], views: int
) -> Iterator[Spooled]:
    """Write the renderings of objects to their spools; yield each as soon as its objects are whole.

    The spools of objects that lack a file are yielded at the end. None is the spool of an object
    whose renderings are not wanted, but looked at.

    Raises `ArchiveError` for what is no archive, and `LayoutError` for one without renderings.
    """
    stream = TarStream(archive.path)
    index = {file: number for number, file in enumerate(layout.rendering_files(views))}
    seen = {model: array.array("q", [_UNSEEN] * len(index)) for model in spools}
    waiting = collections.Counter(spool for spool in spools.values() if spool is not None)
    waiting = collections.Counter({spool: n * len(index) for spool, n in waiting.items()})
    progress = pool.Progress(100, f"% of {archive.path.name} read")
    found_any = False

    def find(path: str) -> tuple[Model, str] | None:
        nonlocal found_any
        found = layout.find_rendering(path)
        found_any = found_any or found is not None
        return found if found and found[0] in spools and found[1] in index else None

    for (model, file), data in stream.members(find, layout.MOST_BYTES):
        progress.show(min(99, 100 * stream.position // stream.size))
        name, checksum = layout.rendering_name(model, file), zlib.crc32(data)
        if not _is_new(stream, name, seen[model][index[file]], checksum):
            continue
        seen[model][index[file]] = checksum
        spool = spools[model]
        if spool is not None:
            spool.append(name, data)
            waiting[spool] -= 1
            if not waiting[spool]:
                del waiting[spool]
                yield spool
    progress.show(100)
    _report_skipped(stream)
    if not found_any:
        raise LayoutError(
            f"{archive.path} holds no <category>/<model>/rendering: give {layout.RENDERINGS}.tgz"
        )
    yield from waiting


def _is_new(stream: TarStream, name: str, before: int, checksum: int) -> bool:
    if before == _UNSEEN:
        return True
    if before != checksum:
        # Which of the two is meant cannot be told, and must not depend on their order.
        raise ArchiveError(
            f"{stream.path} holds {name} twice, with different contents: pack it anew"
        )
    stream.skipped["files that are there twice"] += 1
    return False


def _report_skipped(stream: TarStream) -> None:
    for what, count in sorted(stream.skipped.items()):
        print(f"{stream.path.name}: passed over {count} {what}", file=sys.stderr)
