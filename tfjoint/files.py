"""Files and directories that are either whole or absent, however the process ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfjoint.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` when the block succeeds.

    What is written there may be a file or a directory, and so may what it replaces. If the block
    raises, it is removed and whatever stood at `path` before stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A cluster may do the same work twice at once, in containers with equal host names and process
    # numbers: nothing but chance tells their temporary names apart.
    token = secrets.token_hex(8)
    temporary, old = (path.with_name(f".{path.name}.{token}.{s}") for s in ("tmp", "old.tmp"))
    try:
        yield temporary
        _flush_to_disk(temporary)
        if path.exists() and (path.is_dir() or temporary.is_dir()):
            # A rename replaces only a file by a file; put what is there aside, whole, before.
            os.replace(path, old)
        os.replace(temporary, path)
        _flush_directory(path.parent)
        _remove(old)
    except OSError as error:
        # Whoever is told of a full disk knows the file by its own name, if by any.
        if error.filename == str(temporary) or (not error.filename and error.errno in _NO_ROOM):
            error.filename = str(path)
        raise
    finally:
        _remove(temporary)


def is_temporary(path: Path) -> bool:
    """Return whether `path` is a name that `replacing` yields: left over where it was killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


@contextlib.contextmanager
def only_writer(directory: str | os.PathLike) -> Iterator[None]:
    """Hold a lock on a directory that exists. Raises `UserError` if another process holds it."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"another process writes to {directory}: wait for its end, or choose another "
                    "directory"
                ) from error
        yield
    finally:
        os.close(handle)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON with a stable key order; the file is replaced at once."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file in hexadecimal; a file of any size is read a piece at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _flush_to_disk(path: Path) -> None:
    # A rename may reach the disk before the data does; a power cut would then leave an empty file.
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _flush_directory(directory: Path) -> None:
    # The new name itself, so that what is written after it never outlives it.
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
