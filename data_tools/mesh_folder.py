"""Your own meshes: a folder with a sub-folder per category, to records.

    <meshes>/chair/*.obj *.ply *.stl *.glb *.off   ->  entries  ->  `mesh_set.build`

The files may come from anywhere. What a mesh names is read from inside the folder alone, reading
may take so much memory and time and no more, and what cannot be used is skipped and named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import resource
import signal
import sys
import threading
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import trimesh

from data_tools import categories, mesh_set, meshes, pool
from data_tools.layout import Model
from data_tools.mesh_set import Built, MeshSetConfig
from tfjoint import files
from tfjoint.errors import UserError

_MESHES = tuple(f".{kind}" for kind in meshes.FORMATS)
_NAMED_BY_MESHES = (".mtl", ".bin", ".png", ".jpg", ".jpeg", ".bmp", ".tga", ".tif", ".webp")
_NO_IMAGES = (".mtl", ".bin")
_LONGEST_NAME = 80  # bytes
_MOST_MEMORY = 4 << 30  # bytes beyond what the process has when it begins to read
_MOST_SECONDS = 120  # of the processor; what `largest_bytes` lets through takes some ten


@dataclasses.dataclass(frozen=True)
class FolderConfig(MeshSetConfig):
    """Everything that decides what the records hold, beside the files."""

    name: str = "meshes"
    up: str = "y"
    """Direction in the files that is up."""
    front: str = "z"
    """Direction in the files that a chair looks to."""
    largest_bytes: int = 128 << 20
    """Of a mesh, and of all that it names together; larger files are skipped."""

    def layout_settings(self) -> dict[str, object]:
        """What of it decides the bytes of the layout."""
        own = ("up", "front", "largest_bytes")
        return {**super().layout_settings(), **{name: getattr(self, name) for name in own}}


class FileEntry(NamedTuple):
    """A mesh file to build."""

    root: Path
    path: str
    """Inside `root`."""
    model: Model
    config: FolderConfig

    def load(self) -> meshes.Mesh:
        """Return the mesh in ShapeNet's pose. Raises `UnusableMesh` naming the file."""
        path = PurePosixPath(self.path)
        folder = Folder(self.root, path.parent, self.config.largest_bytes)
        with _listening() as said:
            try:
                with _memory_limit(), _time_limit(_MOST_SECONDS):
                    data = folder.read(path.name)
                    mesh = meshes.load(data, path.suffix[1:].lower(), folder)
                    mesh = meshes.prepare(mesh, meshes.pose(self.config.up, self.config.front))
                if len(mesh.corners) < 2:
                    raise meshes.UnusableMesh("a triangle, a shape has at least 2")
            except (OSError, MemoryError, meshes.UnusableMesh) as error:
                reasons = [str(error) or "it takes too much memory", *said]
                raise meshes.UnusableMesh(f"{self.path}: {'; '.join(reasons)}") from error
        remarks = dict.fromkeys((*mesh.remarks, *folder.refused))  # each once
        return dataclasses.replace(mesh, remarks=tuple(f"{self.path}: {r}" for r in remarks))


class Folder(trimesh.resolvers.Resolver):
    """Gives a mesh the files that it names, of one folder and no other."""

    def __init__(self, root: Path, beside: PurePosixPath, largest_bytes: int) -> None:
        self._root = root.resolve()
        self._beside = self._root / beside
        self._bytes_left = largest_bytes
        self._read: dict[Path, bytes] = {}
        self.refused: list[str] = []
        """Why files that the mesh names were not read."""

    def get(self, key: str | bytes) -> bytes:
        """Return the contents of a file named by the mesh. Raises `OSError`."""
        name = os.fsdecode(key)
        try:
            data = self.read(name)
            if not name.strip().lower().endswith(_NO_IMAGES):
                meshes.check_image(data)
            return data
        except OSError as error:
            self.refused.append(f"{name[:_LONGEST_NAME]!r} is not used: {error}")
            raise

    def read(self, name: str) -> bytes:
        """Return the contents of a file. Raises `OSError` for one outside, or too large."""
        try:
            path = (self._beside / name.strip().replace("\\", "/")).resolve()
            if not path.is_relative_to(self._root):
                raise PermissionError("it lies outside the folder of the meshes")
            if not path.is_file():
                there = os.path.lexists(path)
                raise OSError("it is no regular file" if there else "there is no such file")
            if path not in self._read:
                size = path.stat().st_size
                if size > self._bytes_left:
                    raise OSError(f"{size} bytes are more than the {self._bytes_left} left for it")
                self._read[path] = path.read_bytes()
                self._bytes_left -= size
            return self._read[path]
        except (ValueError, RuntimeError) as error:  # a zero byte, links in a circle
            raise OSError(f"no usable path ({error})") from error

    def keys(self) -> list[str]:
        return []

    def namespaced(self, namespace: str) -> Folder:
        raise NotImplementedError("meshes of one file each")

    def write(self, name: str, data: bytes) -> None:
        raise NotImplementedError("the folder is only read")


@contextlib.contextmanager
def _memory_limit() -> Iterator[None]:
    # A few bytes of a file can ask for any amount of memory; this makes it a MemoryError here
    # instead of the end of some process on the machine.
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + _MOST_MEMORY
    known = [value for value in (soft, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    # Some meshes of a few kilobytes, such as nodes a thousand deep, would take the reader hours.
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal arrives there
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"reading it takes more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    # Once a second from then on: here and there the reader goes on after any exception.
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    # What the reader says would be printed with its whole traceback; here it becomes a reason.
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("trimesh")
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield said
    finally:
        log.removeHandler(handler)
        log.propagate = propagate


def build(
    config: FolderConfig,
    root: Path,
    work: Path,
    output: Path,
    split_list: Path | None = None,
    processes: int = 1,
    run: pool.Runner = pool.run,
) -> Built:
    """Build the records of a folder of meshes; see `mesh_set.build`.

    Raises `UserError` where there is no mesh that can be used.
    """
    meshes.pose(config.up, config.front)  # a wrong pose is told before the work
    _require_outside(root, {"--work_dir": work, "--output": output})
    paths = list_files(root, _MESHES)
    if not paths:
        raise UserError(
            f"{root} holds no mesh: it takes a folder with sub-folders of files that end in "
            f"{', '.join(_MESHES)}"
        )
    for folder, reason in skipped_folders(root).items():
        print(f"skipped {folder}: {reason}", file=sys.stderr)
    entries = [FileEntry(root, path, model, config) for path, model in name_models(paths).items()]
    sources = {root.resolve().name or "meshes": folder_sha256(root, config.largest_bytes)}
    return mesh_set.build(config, entries, sources, work, output, split_list, processes, run)


def _require_outside(root: Path, directories: Mapping[str, Path]) -> None:
    for flag, directory in directories.items():
        if directory.resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"{directory} lies inside the folder of the meshes, {root}, and would become part "
                f"of it: choose another {flag}"
            )


def list_files(root: Path, suffixes: Sequence[str]) -> list[str]:
    """Return the files of a folder that end so, as paths inside it, sorted; hidden ones are not.

    Links to directories are not followed. Raises `UserError` when there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"no folder at {root}: give --meshes a folder with sub-folders of meshes")
    found = []
    for directory, names, file_names in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in file_names:
            if name.lower().endswith(tuple(suffixes)) and not name.startswith("."):
                found.append((Path(directory) / name).relative_to(root).as_posix())
    return sorted(found)


def skipped_folders(root: Path) -> dict[str, str]:
    """Return why folders inside `root` are not looked into, by their paths there."""
    found = {}

    def note(error: OSError) -> None:
        found[os.path.relpath(error.filename, root)] = f"{error.strerror}"

    for directory, names, _ in os.walk(root, onerror=note):
        for name in names:
            path = Path(directory) / name
            if path.is_symlink():
                found[path.relative_to(root).as_posix()] = "links to folders are not followed"
    return found


def name_models(paths: Sequence[str]) -> dict[str, Model]:
    """Return what files are called in the layout: the first folder is the category.

    A name that two files would share, or that is long, ends in a digest of its path.
    """
    models = {}
    for path in paths:
        *folders, name = PurePosixPath(path).with_suffix("").parts
        category = _plain(folders[0]) if folders else categories.OTHER
        if _is_long(category):
            category = _distinct(category, folders[0])
        models[path] = Model(category, _plain("-".join([*folders[1:], name])))
    counts = Counter(models.values())
    for path, model in models.items():
        if counts[model] > 1 or _is_long(model.name):
            models[path] = model._replace(name=_distinct(model.name, path))
    return models


def _plain(name: str) -> str:
    composed = unicodedata.normalize("NFC", name)
    return re.sub(r"[^\w-]+", "-", composed).strip("-") or "unnamed"


def _is_long(name: str) -> bool:
    return len(name.encode()) > _LONGEST_NAME


def _distinct(name: str, path: str) -> str:
    short = name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    return f"{short}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def folder_sha256(root: Path, largest_bytes: int) -> str:
    """Return the SHA-256 of the lines `<sha256>  <path>` of the meshes and what they may name.

    Of a file that is too large to be read it is the size instead.
    """
    digest = hashlib.sha256()
    inside = root.resolve()
    paths = list_files(root, (*_MESHES, *_NAMED_BY_MESHES))
    for path in pool.report_progress(paths, len(paths), "files looked at"):
        file = inside / path
        try:
            if file.is_file() and file.resolve().is_relative_to(inside):
                size = file.stat().st_size
                known = f"{size} bytes" if size > largest_bytes else files.sha256(file)
                digest.update(known.encode())
        except (OSError, RuntimeError):  # not for us to read; named when its turn comes
            pass
        digest.update(b"  " + os.fsencode(path) + b"\n")
    return digest.hexdigest()
